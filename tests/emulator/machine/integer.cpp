// Integer arithmetic, logic and shifts.
#include "machine.h"

namespace {

template <class T>
T high(T a, T b) {
  using Wide = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                                  std::conditional_t<std::is_signed_v<T>, s64, u64>>;
  return static_cast<T>((static_cast<Wide>(a) * b) >> (8 * sizeof(T)));
}

template <class T>
T shift_left(T a, u32 n) {
  return n >= 8 * sizeof(T) ? 0 : static_cast<T>(static_cast<u64>(a) << n);
}

template <class T>
T shift_right(T a, u32 n) {
  constexpr u32 bits = 8 * sizeof(T);
  if (n >= bits) n = std::is_signed_v<T> ? bits - 1 : bits;
  return n == bits ? 0 : a >> n;
}

template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);  // the hardware's answer; undefined in PTX
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return -a;
  }
  return a / b;
}

template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return 0;
  }
  return a % b;
}

// `count` bits of a from bit `first` on. What lies beyond them is zero, or for signed types the highest of them.
template <class T>
T extract(T a, u32 first, u32 count) {
  constexpr u32 bits = 8 * sizeof(T);
  first &= 255;
  count &= 255;
  const auto bit = [&](u32 i) { return static_cast<u64>(a) >> i & 1; };
  const u64 beyond = std::is_signed_v<T> && count > 0 ? bit(std::min(first + count - 1, bits - 1)) : 0;
  u64 d = 0;
  for (u32 i = 0; i < bits; ++i) d |= (i < count && first + i < bits ? bit(first + i) : beyond) << i;
  return static_cast<T>(d);
}

template <class T>
T insert(T a, T b, u32 first, u32 count) {
  first &= 255;
  count &= 255;
  const u64 field = count >= 64 ? ~0ull : (1ull << count) - 1;
  const u64 mask = first >= 64 ? 0 : field << first;
  const u64 moved = first >= 64 ? 0 : static_cast<u64>(a) << first;
  return static_cast<T>((b & ~mask) | (moved & mask));
}

template <class T>
u32 highest_bit(T a) {
  if constexpr (std::is_signed_v<T>) {
    if (a < 0) a = ~a;
  }
  return a == 0 ? ~0u : 63 - __builtin_clzll(static_cast<std::make_unsigned_t<T>>(a));
}

template <class T>
T reverse(T a) {
  T r = 0;
  for (u32 i = 0; i < 8 * sizeof(T); ++i) r |= (a >> i & T(1)) << (8 * sizeof(T) - 1 - i);
  return r;
}

u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 s = selector >> (4 * i);
    u32 byte = bytes >> (8 * (s & 7)) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * i);
  }
  return r;
}

void lop3(Warp& w, const Instruction& i, u32 lanes) {
  u32* d = w.reg<u32>(i.slot[0]);
  const u32 *a = w.reg<u32>(i.slot[1]), *b = w.reg<u32>(i.slot[2]), *c = w.reg<u32>(i.slot[3]);
  for_lanes(lanes, [&](int l) {
    u32 r = 0;
    for (int row = 0; row < 8; ++row) {
      if (i.imm >> row & 1) r |= (row & 4 ? a[l] : ~a[l]) & (row & 2 ? b[l] : ~b[l]) & (row & 1 ? c[l] : ~c[l]);
    }
    d[l] = r;
  });
}

template <class T>
void arithmetic(Handlers& on, const std::string& t) {
  on["add." + t] = map<[](T a, T b) { return static_cast<T>(a + b); }, T, T, T>;
  on["sub." + t] = map<[](T a, T b) { return static_cast<T>(a - b); }, T, T, T>;
  on["mul.lo." + t] = map<[](T a, T b) { return static_cast<T>(u64(a) * u64(b)); }, T, T, T>;
  on["mad.lo." + t] = map<[](T a, T b, T c) { return static_cast<T>(u64(a) * u64(b) + u64(c)); }, T, T, T, T>;
  on["mul.hi." + t] = map<[](T a, T b) { return high(a, b); }, T, T, T>;
  on["mad.hi." + t] = map<[](T a, T b, T c) { return static_cast<T>(high(a, b) + c); }, T, T, T, T>;
  on["div." + t] = map<[](T a, T b) { return divide(a, b); }, T, T, T>;
  on["rem." + t] = map<[](T a, T b) { return remainder(a, b); }, T, T, T>;
  on["min." + t] = map<[](T a, T b) { return std::min(a, b); }, T, T, T>;
  on["max." + t] = map<[](T a, T b) { return std::max(a, b); }, T, T, T>;
  on["neg." + t] = map<[](T a) { return static_cast<T>(-a); }, T, T>;
  on["abs." + t] = map<[](T a) { return static_cast<T>(a < T(0) ? -a : a); }, T, T>;
  on["shr." + t] = map<[](T a, u32 n) { return shift_right(a, n); }, T, T, u32>;
  on["bfe." + t] = map<[](T a, u32 b, u32 c) { return extract(a, b, c); }, T, T, u32, u32>;
  on["bfind." + t] = map<[](T a) { return highest_bit(a); }, u32, T>;
}

template <class T, class Wide>
void widening(Handlers& on, const std::string& t) {
  on["mul.wide." + t] = map<[](T a, T b) { return Wide(a) * Wide(b); }, Wide, T, T>;
  on["mad.wide." + t] = map<[](T a, T b, Wide c) { return Wide(a) * Wide(b) + c; }, Wide, T, T, Wide>;
}

template <class T>
void logic(Handlers& on, const std::string& t) {
  on["and." + t] = map<[](T a, T b) { return static_cast<T>(a & b); }, T, T, T>;
  on["or." + t] = map<[](T a, T b) { return static_cast<T>(a | b); }, T, T, T>;
  on["xor." + t] = map<[](T a, T b) { return static_cast<T>(a ^ b); }, T, T, T>;
  on["not." + t] = map<[](T a) { return static_cast<T>(~a); }, T, T>;
  on["cnot." + t] = map<[](T a) { return static_cast<T>(a == 0); }, T, T>;
  on["shl." + t] = map<[](T a, u32 n) { return shift_left(a, n); }, T, T, u32>;
  on["shr." + t] = map<[](T a, u32 n) { return shift_right(a, n); }, T, T, u32>;
  on["mov." + t] = map<[](T a) { return a; }, T, T>;
  on["bfi." + t] = map<[](T a, T b, u32 c, u32 d) { return insert(a, b, c, d); }, T, T, T, u32, u32>;
  on["popc." + t] = map<[](T a) { return u32(__builtin_popcountll(a)); }, u32, T>;
  on["clz." + t] = map<[](T a) { return u32(a ? __builtin_clzll(a) - (64 - 8 * sizeof(T)) : 8 * sizeof(T)); }, u32, T>;
  on["brev." + t] = map<[](T a) { return reverse(a); }, T, T>;
}

}  // namespace

void add_integer(Handlers& on) {
  arithmetic<s16>(on, "s16");
  arithmetic<u16>(on, "u16");
  arithmetic<s32>(on, "s32");
  arithmetic<u32>(on, "u32");
  arithmetic<s64>(on, "s64");
  arithmetic<u64>(on, "u64");
  widening<s16, s32>(on, "s16");
  widening<u16, u32>(on, "u16");
  widening<s32, s64>(on, "s32");
  widening<u32, u64>(on, "u32");
  logic<u8>(on, "b8");
  logic<u16>(on, "b16");
  logic<u32>(on, "b32");
  logic<u64>(on, "b64");
  on["prmt.b32"] = map<[](u32 a, u32 b, u32 c) { return permute(a, b, c); }, u32, u32, u32, u32>;
  on["lop3.b32"] = lop3;
  on["shf.l.wrap.b32"] =
      map<[](u32 a, u32 b, u32 n) { return u32((u64(b) << 32 | a) << (n & 31) >> 32); }, u32, u32, u32, u32>;
  on["shf.r.wrap.b32"] =
      map<[](u32 a, u32 b, u32 n) { return u32((u64(b) << 32 | a) >> (n & 31)); }, u32, u32, u32, u32>;
  on["shf.l.clamp.b32"] =
      map<[](u32 a, u32 b, u32 n) { return u32((u64(b) << 32 | a) << std::min(n, 32u) >> 32); }, u32, u32, u32, u32>;
  on["shf.r.clamp.b32"] =
      map<[](u32 a, u32 b, u32 n) { return u32((u64(b) << 32 | a) >> std::min(n, 32u)); }, u32, u32, u32, u32>;
}
