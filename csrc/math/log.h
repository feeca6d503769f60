// log(1 + x) for loops on the CPU. float: branch-free, so that the compiler vectorises it without fast-math. double:
// the C library's.
#pragma once

#include <cmath>

#include "math/bits.h"

namespace wilson {

// log(1 + x) for x in 0..1e38, with an error under 3.1 ULP; NaN stays. 1 + x = 2^n (1 + f) with 1 + f between sqrt(1/2)
// and sqrt(2), and log(1 + f) = 2 artanh(f / (2 + f)) by its series. What rounding took from 1 + x is added at the end.
WILSON_INLINE float log1p_nonnegative(float x) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const float u = 1.f + x;
  const int32_t n = static_cast<int32_t>(bits_as<uint32_t>(u) - kSqrtHalf) >> 23;
  const float f = bits_as<float>(bits_as<uint32_t>(u) - (static_cast<uint32_t>(n) << 23)) - 1.f;
  const float lost = n > 0 ? 1.f - (u - x) : x - (u - 1.f);
  const float s = f / (2.f + f), s2 = s * s;
  const float series = s * s2 * (0.666666667f + s2 * (0.4f + s2 * (0.285714286f + s2 * 0.222222222f)));
  return 2.f * s + (series + (lost / u + static_cast<float>(n) * 0.693147181f));
}

WILSON_INLINE double log1p_nonnegative(double x) { return std::log1p(x); }

}  // namespace wilson
