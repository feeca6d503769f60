// Conversions between types, and moves that split or join registers.
#include "machine.h"

namespace {

// Truncates, or extends with zeros or the sign.
template <class From>
void resize(Handlers& on, const std::string& from) {
  on["resize." + from + ".8"] = map<[](From a) { return static_cast<u8>(a); }, u8, From>;
  on["resize." + from + ".16"] = map<[](From a) { return static_cast<u16>(a); }, u16, From>;
  on["resize." + from + ".32"] = map<[](From a) { return static_cast<u32>(a); }, u32, From>;
  on["resize." + from + ".64"] = map<[](From a) { return static_cast<u64>(a); }, u64, From>;
}

template <class T>
T round_to_whole(T x, char how) {
  switch (how) {
    case 'n':
      return std::nearbyint(x);
    case 'm':
      return std::floor(x);
    case 'p':
      return std::ceil(x);
    default:
      return std::trunc(x);
  }
}

template <class T, char how>
void whole(Handlers& on, const std::string& t) {
  const std::string op = std::string("cvt.r") + how + "i.";
  on[op + t + "." + t] = map<[](T a) { return round_to_whole(a, how); }, T, T>;
  on[op + "s8." + t] = map<[](T a) { return to_integer<s8>(round_to_whole(a, how)); }, s8, T>;
  on[op + "u8." + t] = map<[](T a) { return to_integer<u8>(round_to_whole(a, how)); }, u8, T>;
  on[op + "s16." + t] = map<[](T a) { return to_integer<s16>(round_to_whole(a, how)); }, s16, T>;
  on[op + "u16." + t] = map<[](T a) { return to_integer<u16>(round_to_whole(a, how)); }, u16, T>;
  on[op + "s32." + t] = map<[](T a) { return to_integer<s32>(round_to_whole(a, how)); }, s32, T>;
  on[op + "u32." + t] = map<[](T a) { return to_integer<u32>(round_to_whole(a, how)); }, u32, T>;
  on[op + "s64." + t] = map<[](T a) { return to_integer<s64>(round_to_whole(a, how)); }, s64, T>;
  on[op + "u64." + t] = map<[](T a) { return to_integer<u64>(round_to_whole(a, how)); }, u64, T>;
}

template <class T>
void from_integer(Handlers& on, const std::string& t) {
  on["cvt." + t + ".s32"] = map<[](s32 a) { return static_cast<T>(a); }, T, s32>;
  on["cvt." + t + ".u32"] = map<[](u32 a) { return static_cast<T>(a); }, T, u32>;
  on["cvt." + t + ".s64"] = map<[](s64 a) { return static_cast<T>(a); }, T, s64>;
  on["cvt." + t + ".u64"] = map<[](u64 a) { return static_cast<T>(a); }, T, u64>;
}

template <class H>
void half(Handlers& on, const std::string& t) {
  on["cvt.f32." + t] = map<[](H a) { return static_cast<f32>(a); }, f32, H>;
  on["cvt.f64." + t] = map<[](H a) { return static_cast<f64>(static_cast<f32>(a)); }, f64, H>;
  on["cvt." + t + ".f32"] = map<[](f32 a) { return H::from(a); }, H, f32>;
  on["cvt." + t + ".f64"] = map<[](f64 a) { return H::from(to_odd(a)); }, H, f64>;
  on["cvt." + t + ".s64"] = map<[](s64 a) { return H::from(to_odd(static_cast<f64>(a))); }, H, s64>;
  on["cvt." + t + "x2.f32"] = map<[](f32 hi, f32 lo) { return Pair<H>{H::from(lo), H::from(hi)}; }, Pair<H>, f32, f32>;
}

// mov.b64 {a, b}, c and mov.b64 c, {a, b}: the first part is the lowest.
template <class Whole, class Part>
void parts(Handlers& on, const std::string& sizes) {
  constexpr int n = sizeof(Whole) / sizeof(Part);
  on["unpack." + sizes] = [](Warp& w, const Instruction& i, u32 lanes) {
    const Whole* from = w.reg<Whole>(i.slot[0]);
    for_lanes(lanes, [&](int l) {
      const Whole whole = from[l];
      for (int k = 0; k < n; ++k) w.reg<Part>(i.slot[1 + k])[l] = static_cast<Part>(whole >> (8 * sizeof(Part) * k));
    });
  };
  on["pack." + sizes] = [](Warp& w, const Instruction& i, u32 lanes) {
    for_lanes(lanes, [&](int l) {
      Whole whole = 0;
      for (int k = 0; k < n; ++k) whole |= static_cast<Whole>(w.reg<Part>(i.slot[1 + k])[l]) << (8 * sizeof(Part) * k);
      w.reg<Whole>(i.slot[0])[l] = whole;
    });
  };
}

}  // namespace

void add_convert(Handlers& on) {
  resize<s8>(on, "s8");
  resize<u8>(on, "u8");
  resize<s16>(on, "s16");
  resize<u16>(on, "u16");
  resize<s32>(on, "s32");
  resize<u32>(on, "u32");
  resize<s64>(on, "s64");
  resize<u64>(on, "u64");
  whole<f32, 'n'>(on, "f32");
  whole<f32, 'm'>(on, "f32");
  whole<f32, 'p'>(on, "f32");
  whole<f32, 'z'>(on, "f32");
  whole<f64, 'n'>(on, "f64");
  whole<f64, 'm'>(on, "f64");
  whole<f64, 'p'>(on, "f64");
  whole<f64, 'z'>(on, "f64");
  from_integer<f32>(on, "f32");
  from_integer<f64>(on, "f64");
  half<f16>(on, "f16");
  half<bf16>(on, "bf16");
  on["cvt.f64.f32"] = map<[](f32 a) { return static_cast<f64>(a); }, f64, f32>;
  on["cvt.f32.f64"] = map<[](f64 a) { return static_cast<f32>(a); }, f32, f64>;
  on["cvt.ftz.f64.f32"] = map<[](f32 a) { return static_cast<f64>(flush(a)); }, f64, f32>;
  on["cvt.ftz.f32.f64"] = map<[](f64 a) { return flush(static_cast<f32>(a)); }, f32, f64>;
  on["cvt.f32.f32"] = map<[](f32 a) { return a; }, f32, f32>;
  on["cvt.ftz.f32.f32"] = map<[](f32 a) { return flush(a); }, f32, f32>;
  on["cvt.sat.f32.f32"] = map<[](f32 a) { return saturate(a); }, f32, f32>;
  on["cvt.ftz.sat.f32.f32"] = map<[](f32 a) { return saturate(flush(a)); }, f32, f32>;
  on["cvt.sat.f64.f64"] = map<[](f64 a) { return saturate(a); }, f64, f64>;
  parts<u64, u32>(on, "64.32");
  parts<u64, u16>(on, "64.16");
  parts<u32, u16>(on, "32.16");
  parts<u32, u8>(on, "32.8");
  parts<u16, u8>(on, "16.8");
}
