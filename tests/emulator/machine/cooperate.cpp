// What the lanes of a warp do together. `lanes` are the participants, who all name the same lanes in slot 5.
#include "memory.h"

namespace {

enum class Shuffle { up, down, bfly, idx };

// slot 0: the value; 1: whether its source was in range; 2: the value given; 3: the lane or distance; 4: the segment.
template <Shuffle kShuffle>
void shuffle(Warp& w, const Instruction& i, u32 lanes) {
  const u32 *a = w.reg<u32>(i.slot[2]), *b = w.reg<u32>(i.slot[3]), *c = w.reg<u32>(i.slot[4]);
  u32 value[kLanes], in_range = 0;
  for_lanes(lanes, [&](int lane) {
    const int distance = b[lane] & 31, clamp = c[lane] & 31, segment = c[lane] >> 8 & 31;
    const int highest = (lane & segment) | (clamp & ~segment), lowest = lane & segment;
    int from = 0;
    bool valid = true;
    switch (kShuffle) {
      case Shuffle::up:
        from = lane - distance, valid = from >= highest;
        break;
      case Shuffle::down:
        from = lane + distance, valid = from <= highest;
        break;
      case Shuffle::bfly:
        from = lane ^ distance, valid = from <= highest;
        break;
      case Shuffle::idx:
        from = lowest | (distance & ~segment), valid = from <= highest;
        break;
    }
    if (!valid) from = lane;
    if (!(lanes >> from & 1)) w.fault(Wrong::divergent, i, lane);  // a lane that takes no part has nothing to give
    value[lane] = a[from];
    in_range |= static_cast<u32>(valid) << lane;
  });
  u32* d = w.reg<u32>(i.slot[0]);
  for_lanes(lanes, [&](int lane) { d[lane] = value[lane]; });
  u32& p = w.predicate(i.slot[1]);
  p = (p & ~lanes) | in_range;
  w.launch->counts.shuffles += 1;
}

template <auto F>
void vote(Warp& w, const Instruction& i, u32 lanes) {
  const u32 result = F(w.predicate(i.slot[2]) & lanes, lanes) ? lanes : 0;
  u32& p = w.predicate(i.slot[0]);
  p = (p & ~lanes) | result;
}

void ballot(Warp& w, const Instruction& i, u32 lanes) {
  const u32 votes = w.predicate(i.slot[2]) & lanes;
  for_lanes(lanes, [&](int lane) { w.reg<u32>(i.slot[0])[lane] = votes; });
}

template <class T, auto F>
void reduce(Warp& w, const Instruction& i, u32 lanes) {
  const T* a = w.reg<T>(i.slot[2]);
  T result = a[__builtin_ctz(lanes)];
  for_lanes(lanes & (lanes - 1), [&](int lane) { result = F(result, a[lane]); });
  for_lanes(lanes, [&](int lane) { w.reg<T>(i.slot[0])[lane] = result; });
}

template <class T>
void reductions(Handlers& on, const std::string& t) {
  on["redux.add." + t] = reduce<T, [](T a, T b) { return static_cast<T>(a + b); }>;
  on["redux.min." + t] = reduce<T, [](T a, T b) { return std::min(a, b); }>;
  on["redux.max." + t] = reduce<T, [](T a, T b) { return std::max(a, b); }>;
}

template <class T>
void match_any(Warp& w, const Instruction& i, u32 lanes) {
  const T* a = w.reg<T>(i.slot[2]);
  for_lanes(lanes, [&](int lane) {
    u32 same = 0;
    for_lanes(lanes, [&](int other) { same |= static_cast<u32>(a[other] == a[lane]) << other; });
    w.reg<u32>(i.slot[0])[lane] = same;
  });
}

void synchronise(Warp&, const Instruction&, u32) {}

void active_mask(Warp& w, const Instruction& i, u32 lanes) {
  for_lanes(lanes, [&](int lane) { w.reg<u32>(i.slot[0])[lane] = lanes; });
}

// ldmatrix and stmatrix of `n` 8x8 matrices of 16-bit elements: lane 8 m + r names row r of matrix m (slot 6), and lane
// l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 (of column, if transposed) of matrix m in slot 7 + m.
template <int n, bool kTransposed, bool kStore>
void matrix(Warp& w, const Instruction& i, u32) {
  for (int m = 0; m < n; ++m) {
    u16 rows[8][8];
    const auto each_row = [&](auto body) {
      for (int r = 0; r < 8; ++r) body(r, 8 * m + r, static_cast<u32>(w.reg<u64>(i.slot[6])[8 * m + r] + i.imm));
    };
    if (!kStore) {
      each_row([&](int r, int lane, u32 address) {
        const u8* bytes = w.launch->shared->load(w, i, lane, address, sizeof rows[r]);
        if (bytes) std::memcpy(rows[r], bytes, sizeof rows[r]);
      });
    }
    u32* values = w.reg<u32>(i.slot[7 + m]);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const int a = lane / 4, b = 2 * (lane % 4) + half;
        u16& element = kTransposed ? rows[b][a] : rows[a][b];
        if (kStore) {
          element = static_cast<u16>(values[lane] >> (16 * half));
        } else {
          values[lane] = (values[lane] & ~(0xffffu << (16 * half))) | static_cast<u32>(element) << (16 * half);
        }
      }
    }
    if (kStore) {
      each_row([&](int r, int lane, u32 address) {
        w.launch->shared->store(w, i, lane, address, reinterpret_cast<const u8*>(rows[r]), sizeof rows[r]);
      });
    }
  }
}

template <int n>
void matrices(Handlers& on) {
  const std::string count = std::to_string(n);
  on["ldmatrix.x" + count] = matrix<n, false, false>;
  on["ldmatrix.x" + count + ".trans"] = matrix<n, true, false>;
  on["stmatrix.x" + count] = matrix<n, false, true>;
  on["stmatrix.x" + count + ".trans"] = matrix<n, true, true>;
}

}  // namespace

void add_warp(Handlers& on) {
  on["shfl.up"] = shuffle<Shuffle::up>;
  on["shfl.down"] = shuffle<Shuffle::down>;
  on["shfl.bfly"] = shuffle<Shuffle::bfly>;
  on["shfl.idx"] = shuffle<Shuffle::idx>;
  on["vote.any"] = vote<[](u32 votes, u32) { return votes != 0; }>;
  on["vote.all"] = vote<[](u32 votes, u32 lanes) { return votes == lanes; }>;
  on["vote.uni"] = vote<[](u32 votes, u32 lanes) { return votes == 0 || votes == lanes; }>;
  on["vote.ballot"] = ballot;
  reductions<s32>(on, "s32");
  reductions<u32>(on, "u32");
  on["redux.and.b32"] = reduce<u32, [](u32 a, u32 b) { return a & b; }>;
  on["redux.or.b32"] = reduce<u32, [](u32 a, u32 b) { return a | b; }>;
  on["redux.xor.b32"] = reduce<u32, [](u32 a, u32 b) { return a ^ b; }>;
  on["match.any.b32"] = match_any<u32>;
  on["match.any.b64"] = match_any<u64>;
  on["warpsync"] = synchronise;
  on["activemask"] = active_mask;
  matrices<1>(on);
  matrices<2>(on);
  matrices<4>(on);
}
