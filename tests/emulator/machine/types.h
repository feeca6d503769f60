// The types of PTX and their conversions. bf16 and f16 are kept as bits and computed in float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The float next to x on the side of zero, with its last bit set if x does not fit: rounding it again, to 16 bits, is
// then rounding x once.
inline float to_odd(double x) {
  float f = static_cast<float>(x);
  if (static_cast<double>(f) == x || f != f) return f;
  u32 bits = bits_as<u32>(f);
  if (std::fabs(static_cast<double>(f)) > std::fabs(x)) --bits;
  return bits_as<float>(bits | 1);
}

struct bf16 {
  u16 bits;
  static bf16 from(float x) {
    const u32 b = bits_as<u32>(x);
    if (x != x) return {0x7fff};
    return {static_cast<u16>((b + 0x7fff + (b >> 16 & 1)) >> 16)};
  }
  operator float() const { return bits_as<float>(static_cast<u32>(bits) << 16); }
};

struct f16 {
  u16 bits;
  static f16 from(float x) { return {x != x ? u16(0x7fff) : bits_as<u16>(static_cast<_Float16>(x))}; }
  operator float() const { return static_cast<float>(bits_as<_Float16>(bits)); }
};

// Two values in one register: f16x2, bf16x2, f32x2.
template <class T>
struct Pair {
  T lo, hi;
};

// Subnormal numbers become zero (.ftz).
inline f32 flush(f32 x) { return std::fabs(x) < std::numeric_limits<f32>::min() ? std::copysign(0.f, x) : x; }

template <class T>
inline T saturate(T x) {
  return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);  // NaN becomes 0
}

// To an integer, clamped to its range; NaN becomes 0.
template <class To, class From>
inline To to_integer(From x) {
  constexpr From low = static_cast<From>(std::numeric_limits<To>::min());
  constexpr From end = static_cast<From>(u64(1) << (std::numeric_limits<To>::digits - 1)) * 2;  // one past the largest
  if (x != x) return 0;
  if (x < low) return std::numeric_limits<To>::min();
  return x >= end ? std::numeric_limits<To>::max() : static_cast<To>(x);
}
