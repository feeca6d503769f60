// Loads, stores and atomic operations in all state spaces.
//
// ld: slot 0 is the address, the values follow; st likewise; the offset is `imm`.
#include "memory.h"

namespace {

enum class Space { global, shared, local, param, generic };

// Counts what an instruction asks of global memory. Lanes that name the same address are served by one request.
class Requests {
 public:
  void add(u64 address) {
    if (address >= kLocalWindow) return;  // shared or local, by a generic address
    if (count_ == 0 || address > largest_) {
      largest_ = address;
    } else if (std::find(known_, known_ + count_, address) != known_ + count_) {
      return;
    }
    known_[count_++] = address;
  }
  u64 count() const { return count_; }

 private:
  u64 known_[kLanes], largest_ = 0;
  int count_ = 0;
};

constexpr bool may_be_global(Space space) { return space == Space::global || space == Space::generic; }

u8* local(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) {
  const u64 size = w.launch->program->local_bytes;
  if (address % bytes || address + bytes > size) return w.fault(Wrong::out_of_bounds, i, lane, address), nullptr;
  return w.local + lane * size + address;
}

// Where a load of one lane finds its bytes, or null if it must not happen.
template <Space kSpace>
const u8* source(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) {
  const Launch& launch = *w.launch;
  if constexpr (kSpace == Space::generic) {
    if (address >= kSharedWindow) return source<Space::shared>(w, i, lane, address - kSharedWindow, bytes);
    if (address >= kLocalWindow) return source<Space::local>(w, i, lane, address - kLocalWindow, bytes);
    return source<Space::global>(w, i, lane, address, bytes);
  } else if constexpr (kSpace == Space::global) {
    return launch.global->load(w, i, lane, address, bytes) ? reinterpret_cast<const u8*>(address) : nullptr;
  } else if constexpr (kSpace == Space::shared) {
    return launch.shared->load(w, i, lane, static_cast<u32>(address), bytes);
  } else if constexpr (kSpace == Space::local) {
    return local(w, i, lane, address, bytes);
  } else {
    if (address + bytes > launch.parameter_bytes) return w.fault(Wrong::out_of_bounds, i, lane, address), nullptr;
    return launch.parameters + address;
  }
}

template <Space kSpace>
void put(Warp& w, const Instruction& i, int lane, u64 address, const u8* value, u32 bytes) {
  const Launch& launch = *w.launch;
  if constexpr (kSpace == Space::generic) {
    if (address >= kSharedWindow) return put<Space::shared>(w, i, lane, address - kSharedWindow, value, bytes);
    if (address >= kLocalWindow) return put<Space::local>(w, i, lane, address - kLocalWindow, value, bytes);
    put<Space::global>(w, i, lane, address, value, bytes);
  } else if constexpr (kSpace == Space::global) {
    if (launch.global->store(w, i, lane, address, bytes)) std::memcpy(reinterpret_cast<u8*>(address), value, bytes);
  } else if constexpr (kSpace == Space::shared) {
    launch.shared->store(w, i, lane, static_cast<u32>(address), value, bytes);
  } else {
    u8* to = local(w, i, lane, address, bytes);
    if (to) std::memcpy(to, value, bytes);
  }
}

template <class T, int n, Space kSpace>
void load(Warp& w, const Instruction& i, u32 lanes) {
  const u64* address = w.reg<u64>(i.slot[0]);
  Requests requests;
  for_lanes(lanes, [&](int l) {
    if (may_be_global(kSpace)) requests.add(address[l] + i.imm);
    const u8* from = source<kSpace>(w, i, l, address[l] + i.imm, n * sizeof(T));
    if (!from) return;
    for (int k = 0; k < n; ++k) std::memcpy(&w.reg<T>(i.slot[1 + k])[l], from + k * sizeof(T), sizeof(T));
  });
  w.launch->counts.loads += requests.count();
  w.launch->counts.load_bytes += requests.count() * n * sizeof(T);
  if (n * sizeof(T) >= kWide) w.launch->counts.wide_bytes += requests.count() * n * sizeof(T);
}

template <class T, int n, Space kSpace>
void store(Warp& w, const Instruction& i, u32 lanes) {
  const u64* address = w.reg<u64>(i.slot[0]);
  Requests requests;
  for_lanes(lanes, [&](int l) {
    if (may_be_global(kSpace)) requests.add(address[l] + i.imm);
    T value[n];
    for (int k = 0; k < n; ++k) value[k] = w.reg<T>(i.slot[1 + k])[l];
    put<kSpace>(w, i, l, address[l] + i.imm, reinterpret_cast<const u8*>(value), sizeof value);
  });
  w.launch->counts.stores += requests.count();
  w.launch->counts.store_bytes += requests.count() * n * sizeof(T);
  if (n * sizeof(T) >= kWide) w.launch->counts.wide_bytes += requests.count() * n * sizeof(T);
}

template <class T, int n>
void moves(Handlers& on) {
  const std::string size = std::to_string(8 * sizeof(T)) + "x" + std::to_string(n);
  on["ld.global." + size] = load<T, n, Space::global>;
  on["ld.shared." + size] = load<T, n, Space::shared>;
  on["ld.local." + size] = load<T, n, Space::local>;
  on["ld.param." + size] = load<T, n, Space::param>;
  on["ld.generic." + size] = load<T, n, Space::generic>;
  on["st.global." + size] = store<T, n, Space::global>;
  on["st.shared." + size] = store<T, n, Space::shared>;
  on["st.local." + size] = store<T, n, Space::local>;
  on["st.generic." + size] = store<T, n, Space::generic>;
}

// slot 0: the old value; 1: the address; 2, 3: operands.
template <class T, auto F, bool kShared>
void atomic(Warp& w, const Instruction& i, u32 lanes) {
  for_lanes(lanes, [&](int l) {
    const u64 address = w.reg<u64>(i.slot[1])[l] + i.imm;
    u8* at = nullptr;
    if constexpr (kShared) {
      at = w.launch->shared->load(w, i, l, static_cast<u32>(address), sizeof(T));
    } else if (w.launch->global->atomic(w, i, l, address, sizeof(T))) {
      at = reinterpret_cast<u8*>(address);
    }
    if (!at) return;
    T old;
    std::memcpy(&old, at, sizeof(T));
    const T now = F(old, w.reg<T>(i.slot[2])[l], w.reg<T>(i.slot[3])[l]);
    std::memcpy(at, &now, sizeof(T));
    w.reg<T>(i.slot[0])[l] = old;
  });
}

template <class T, auto F>
void both(Handlers& on, const std::string& op) {
  on["atom.global." + op] = atomic<T, F, false>;
  on["atom.shared." + op] = atomic<T, F, true>;
}

template <class T>
void arithmetic_atomics(Handlers& on, const std::string& t) {
  both<T, [](T old, T a, T) { return static_cast<T>(old + a); }>(on, "add." + t);
  both<T, [](T old, T a, T) { return std::min(old, a); }>(on, "min." + t);
  both<T, [](T old, T a, T) { return std::max(old, a); }>(on, "max." + t);
}

template <class T>
void bit_atomics(Handlers& on, const std::string& t) {
  both<T, [](T, T a, T) { return a; }>(on, "exch." + t);
  both<T, [](T old, T a, T b) { return old == a ? b : old; }>(on, "cas." + t);
  both<T, [](T old, T a, T) { return T(old & a); }>(on, "and." + t);
  both<T, [](T old, T a, T) { return T(old | a); }>(on, "or." + t);
  both<T, [](T old, T a, T) { return T(old ^ a); }>(on, "xor." + t);
}

// cp.async: slot 0 the shared address, 1 the global one, 2 how many bytes to read; the rest of `imm` bytes becomes 0.
// Done at once: what is missing is a wait that comes too late.
void copy_to_shared(Warp& w, const Instruction& i, u32 lanes) {
  for_lanes(lanes, [&](int l) {
    const u32 bytes = static_cast<u32>(i.imm);
    const u32 wanted = std::min(w.reg<u32>(i.slot[2])[l], bytes);
    const u64 from = w.reg<u64>(i.slot[1])[l];
    if (wanted && !w.launch->global->load(w, i, l, from, wanted)) return;
    u8 value[16] = {};
    if (wanted) std::memcpy(value, reinterpret_cast<const u8*>(from), wanted);
    w.launch->counts.load_bytes += wanted;
    if (wanted >= kWide) w.launch->counts.wide_bytes += wanted;
    w.launch->shared->store(w, i, l, static_cast<u32>(w.reg<u64>(i.slot[0])[l]), value, bytes);
  });
}

template <u64 kWindow, bool kTo>
void convert_address(Warp& w, const Instruction& i, u32 lanes) {
  for_lanes(lanes, [&](int l) {
    const u64 address = w.reg<u64>(i.slot[1])[l];
    w.reg<u64>(i.slot[0])[l] = kTo ? address - kWindow : address + kWindow;
  });
}

}  // namespace

void add_memory(Handlers& on) {
  moves<u8, 1>(on);
  moves<u8, 2>(on);
  moves<u8, 4>(on);
  moves<u16, 1>(on);
  moves<u16, 2>(on);
  moves<u16, 4>(on);
  moves<u16, 8>(on);
  moves<u32, 1>(on);
  moves<u32, 2>(on);
  moves<u32, 4>(on);
  moves<u32, 8>(on);
  moves<u64, 1>(on);
  moves<u64, 2>(on);
  moves<u64, 4>(on);
  arithmetic_atomics<u32>(on, "u32");
  arithmetic_atomics<s32>(on, "s32");
  arithmetic_atomics<u64>(on, "u64");
  arithmetic_atomics<s64>(on, "s64");
  arithmetic_atomics<f32>(on, "f32");
  arithmetic_atomics<f64>(on, "f64");
  bit_atomics<u32>(on, "b32");
  bit_atomics<u64>(on, "b64");
  on["cp.async"] = copy_to_shared;
  on["cvta.shared"] = convert_address<kSharedWindow, false>;
  on["cvta.local"] = convert_address<kLocalWindow, false>;
  on["cvta.to.shared"] = convert_address<kSharedWindow, true>;
  on["cvta.to.local"] = convert_address<kLocalWindow, true>;
}
