// Floating-point arithmetic. The approximate functions of the hardware (ex2, lg2, rcp, sqrt, sin ...) are computed
// exactly and rounded: what is within their error bounds on a GPU is so here, but not the same bits.
#include <cfenv>

#include "machine.h"

namespace {

template <class T>
T smaller(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;  // -0 is under +0
  return a < b ? a : b;
}

template <class T>
T larger(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

// The hardware's starting value of a division has the upper half of the bits.
f64 upper_half(f64 x) { return bits_as<f64>(bits_as<u64>(x) & 0xffffffff00000000ull); }

template <class T>
T or_nan(T a, T b, T result) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : result;
}

// The same handler under another direction of rounding.
template <int kDirection, Handler kHandler>
void rounded(Warp& w, const Instruction& i, u32 lanes) {
  std::fesetround(kDirection);
  kHandler(w, i, lanes);
  std::fesetround(FE_TONEAREST);
}

// F of operands of type T, as it is, with subnormal numbers flushed, and clamped to 0..1.
template <class T, auto F, class... S>
void variants(Handlers& on, const std::string& op, const std::string& t) {
  on[op + "." + t] = map<[](S... s) { return T(F(s...)); }, T, S...>;
  if constexpr (std::is_same_v<T, f32>) {
    on[op + ".ftz." + t] = map<[](S... s) { return flush(F(flush(s)...)); }, T, S...>;
    on[op + ".sat." + t] = map<[](S... s) { return saturate(F(s...)); }, T, S...>;
    on[op + ".ftz.sat." + t] = map<[](S... s) { return saturate(flush(F(flush(s)...))); }, T, S...>;
  }
}

template <class T, auto F, class... S>
void directed(Handlers& on, const std::string& op, const std::string& t) {
  variants<T, F, S...>(on, op, t);
  constexpr Handler plain = map<[](S... s) { return T(F(s...)); }, T, S...>;
  on[op + ".rz." + t] = rounded<FE_TOWARDZERO, plain>;
  on[op + ".rm." + t] = rounded<FE_DOWNWARD, plain>;
  on[op + ".rp." + t] = rounded<FE_UPWARD, plain>;
  if constexpr (std::is_same_v<T, f32>) {
    constexpr Handler flushed = map<[](S... s) { return flush(F(flush(s)...)); }, T, S...>;
    on[op + ".ftz.rz." + t] = rounded<FE_TOWARDZERO, flushed>;
    on[op + ".ftz.rm." + t] = rounded<FE_DOWNWARD, flushed>;
    on[op + ".ftz.rp." + t] = rounded<FE_UPWARD, flushed>;
  }
}

template <class T>
void real(Handlers& on, const std::string& t) {
  directed<T, [](T a, T b) { return a + b; }, T, T>(on, "add", t);
  directed<T, [](T a, T b) { return a - b; }, T, T>(on, "sub", t);
  directed<T, [](T a, T b) { return a * b; }, T, T>(on, "mul", t);
  directed<T, [](T a, T b) { return a / b; }, T, T>(on, "div", t);
  directed<T, [](T a, T b, T c) { return std::fma(a, b, c); }, T, T, T>(on, "fma", t);
  directed<T, [](T a) { return T(1) / a; }, T>(on, "rcp", t);
  directed<T, [](T a) { return std::sqrt(a); }, T>(on, "sqrt", t);
  variants<T, [](T a) { return T(1) / std::sqrt(a); }, T>(on, "rsqrt", t);
  variants<T, [](T a) { return -a; }, T>(on, "neg", t);
  variants<T, [](T a) { return std::fabs(a); }, T>(on, "abs", t);
  variants<T, [](T a, T b) { return smaller(a, b); }, T, T>(on, "min", t);
  variants<T, [](T a, T b) { return larger(a, b); }, T, T>(on, "max", t);
  variants<T, [](T a, T b) { return or_nan(a, b, smaller(a, b)); }, T, T>(on, "min.NaN", t);
  variants<T, [](T a, T b) { return or_nan(a, b, larger(a, b)); }, T, T>(on, "max.NaN", t);
  variants<T, [](T a, T b, T c) { return smaller(smaller(a, b), c); }, T, T, T>(on, "min3", t);
  variants<T, [](T a, T b, T c) { return larger(larger(a, b), c); }, T, T, T>(on, "max3", t);
  on["copysign." + t] = map<[](T a, T b) { return std::copysign(b, a); }, T, T, T>;
}

// 16-bit types: computed in double, rounded once.
template <class T, auto F, class... S>
T once(S... s) {
  return T::from(to_odd(F(static_cast<f64>(static_cast<f32>(s))...)));
}

template <class T, auto F, class... S>
void half_op(Handlers& on, const std::string& op, const std::string& t) {
  on[op + "." + t] = map<[](S... s) { return once<T, F>(s...); }, T, S...>;
  on[op + "." + t + "x2"] =
      map<[](Pair<S>... s) { return Pair<T>{once<T, F>(s.lo...), once<T, F>(s.hi...)}; }, Pair<T>, Pair<S>...>;
}

template <class T>
void half(Handlers& on, const std::string& t) {
  half_op<T, [](f64 a, f64 b) { return a + b; }, T, T>(on, "add", t);
  half_op<T, [](f64 a, f64 b) { return a - b; }, T, T>(on, "sub", t);
  half_op<T, [](f64 a, f64 b) { return a * b; }, T, T>(on, "mul", t);
  half_op<T, [](f64 a, f64 b, f64 c) { return a * b + c; }, T, T, T>(on, "fma", t);
  half_op<T, [](f64 a) { return -a; }, T>(on, "neg", t);
  half_op<T, [](f64 a) { return std::fabs(a); }, T>(on, "abs", t);
  half_op<T, [](f64 a, f64 b) { return smaller(a, b); }, T, T>(on, "min", t);
  half_op<T, [](f64 a, f64 b) { return larger(a, b); }, T, T>(on, "max", t);
  half_op<T, [](f64 a, f64 b) { return or_nan(a, b, smaller(a, b)); }, T, T>(on, "min.NaN", t);
  half_op<T, [](f64 a, f64 b) { return or_nan(a, b, larger(a, b)); }, T, T>(on, "max.NaN", t);
  half_op<T, [](f64 a) { return std::exp2(a); }, T>(on, "ex2", t);
  half_op<T, [](f64 a) { return std::tanh(a); }, T>(on, "tanh", t);
}

template <auto F, class... S>
void pair_op(Handlers& on, const std::string& op) {
  on[op + ".f32x2"] = map<[](Pair<S>... s) { return Pair<f32>{F(s.lo...), F(s.hi...)}; }, Pair<f32>, Pair<S>...>;
}

}  // namespace

void add_floating(Handlers& on) {
  real<f32>(on, "f32");
  real<f64>(on, "f64");
  half<f16>(on, "f16");
  half<bf16>(on, "bf16");
  // Two floats in one register, since sm_100
  pair_op<[](f32 a, f32 b) { return a + b; }, f32, f32>(on, "add");
  pair_op<[](f32 a, f32 b) { return a - b; }, f32, f32>(on, "sub");
  pair_op<[](f32 a, f32 b) { return a * b; }, f32, f32>(on, "mul");
  pair_op<[](f32 a, f32 b, f32 c) { return std::fma(a, b, c); }, f32, f32, f32>(on, "fma");
  variants<f32, [](f32 a) { return std::exp2(a); }, f32>(on, "ex2", "f32");
  variants<f32, [](f32 a) { return std::log2(a); }, f32>(on, "lg2", "f32");
  variants<f32, [](f32 a) { return std::sin(a); }, f32>(on, "sin", "f32");
  variants<f32, [](f32 a) { return std::cos(a); }, f32>(on, "cos", "f32");
  variants<f32, [](f32 a) { return std::tanh(a); }, f32>(on, "tanh", "f32");
  on["rcp.ftz.f64"] = map<[](f64 a) { return upper_half(1 / a); }, f64, f64>;
  on["rsqrt.ftz.f64"] = map<[](f64 a) { return upper_half(1 / std::sqrt(a)); }, f64, f64>;
}
