// Comparisons, selection, and logic on predicates, which are one bit per lane.
#include "machine.h"

namespace {

template <auto F, class T>
void compare(Warp& w, const Instruction& i, u32 lanes) {
  const T *a = w.reg<T>(i.slot[1]), *b = w.reg<T>(i.slot[2]);
  u32 result = 0;
  for (int l = 0; l < kLanes; ++l) result |= static_cast<u32>(F(a[l], b[l])) << l;
  u32& p = w.predicate(i.slot[0]);
  p = (p & ~lanes) | (result & lanes);
}

template <class T>
void ordered(Handlers& on, const std::string& t) {
  on["setp.eq." + t] = compare<[](T a, T b) { return a == b; }, T>;
  on["setp.lt." + t] = compare<[](T a, T b) { return a < b; }, T>;
  on["setp.le." + t] = compare<[](T a, T b) { return a <= b; }, T>;
  on["setp.gt." + t] = compare<[](T a, T b) { return (a > b); }, T>;
  on["setp.ge." + t] = compare<[](T a, T b) { return a >= b; }, T>;
}

template <class T>
void integer(Handlers& on, const std::string& t) {
  ordered<T>(on, t);
  on["setp.ne." + t] = compare<[](T a, T b) { return a != b; }, T>;
}

// The plain comparisons are false for NaN; those that end in u are true.
template <class T>
void real(Handlers& on, const std::string& t) {
  ordered<T>(on, t);
  on["setp.ne." + t] = compare<[](T a, T b) { return (a < b || a > b); }, T>;
  on["setp.equ." + t] = compare<[](T a, T b) { return !(a < b || a > b); }, T>;
  on["setp.neu." + t] = compare<[](T a, T b) { return !(a == b); }, T>;
  on["setp.ltu." + t] = compare<[](T a, T b) { return !(a >= b); }, T>;
  on["setp.leu." + t] = compare<[](T a, T b) { return !(a > b); }, T>;
  on["setp.gtu." + t] = compare<[](T a, T b) { return !(a <= b); }, T>;
  on["setp.geu." + t] = compare<[](T a, T b) { return !(a < b); }, T>;
  on["setp.num." + t] = compare<[](T a, T b) { return a == a && b == b; }, T>;
  on["setp.nan." + t] = compare<[](T a, T b) { return a != a || b != b; }, T>;
  on["testp.finite." + t] = compare<[](T a, T) { return std::isfinite(a); }, T>;
  on["testp.infinite." + t] = compare<[](T a, T) { return std::isinf(a); }, T>;
  on["testp.number." + t] = compare<[](T a, T) { return a == a; }, T>;
  on["testp.notanumber." + t] = compare<[](T a, T) { return a != a; }, T>;
  on["testp.normal." + t] = compare<[](T a, T) { return std::isnormal(a); }, T>;
  on["testp.subnormal." + t] = compare<[](T a, T) { return std::fpclassify(a) == FP_SUBNORMAL; }, T>;
}

template <class T>
void select(Warp& w, const Instruction& i, u32 lanes) {
  T* d = w.reg<T>(i.slot[0]);
  const T *a = w.reg<T>(i.slot[1]), *b = w.reg<T>(i.slot[2]);
  const u32 p = w.predicate(i.slot[3]);
  for_lanes(lanes, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

template <auto F>
void logic(Warp& w, const Instruction& i, u32 lanes) {
  const u32 result = F(w.predicate(i.slot[1]), w.predicate(i.slot[2]));
  u32& p = w.predicate(i.slot[0]);
  p = (p & ~lanes) | (result & lanes);
}

}  // namespace

void add_predicates(Handlers& on) {
  integer<s16>(on, "s16");
  integer<u16>(on, "u16");
  integer<s32>(on, "s32");
  integer<u32>(on, "u32");
  integer<s64>(on, "s64");
  integer<u64>(on, "u64");
  real<f32>(on, "f32");
  real<f64>(on, "f64");
  on["selp.b16"] = select<u16>;
  on["selp.b32"] = select<u32>;
  on["selp.b64"] = select<u64>;
  // One source leaves the second slot at the first
  on["mov.pred"] = logic<[](u32 a, u32) { return a; }>;
  on["not.pred"] = logic<[](u32 a, u32) { return ~a; }>;
  on["and.pred"] = logic<[](u32 a, u32 b) { return a & b; }>;
  on["or.pred"] = logic<[](u32 a, u32 b) { return a | b; }>;
  on["xor.pred"] = logic<[](u32 a, u32 b) { return a ^ b; }>;
  on["andnot.pred"] = logic<[](u32 a, u32 b) { return a & ~b; }>;
}
