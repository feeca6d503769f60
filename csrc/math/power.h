// Powers for loops on the CPU. float: branch-free, so that the compiler vectorises it without fast-math. double: the C
// library's.
#pragma once

#include <cmath>

#include "math/bits.h"
#include "math/exp.h"

namespace wilson {

// x^exponent for x in 0..1 (a little above is fine) and an exponent above 0, as e^(exponent log x); 0 for x below 0.
// The error is that of log x times the exponent, and that of exp_nonpositive. x = 2^n (1 + f) with 1 + f between
// sqrt(1/2) and sqrt(2), and log(1 + f) = 2 artanh(f / (2 + f)) by its series.
WILSON_INLINE float power_of_share(float x, float exponent) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const int32_t n = static_cast<int32_t>(bits_as<uint32_t>(x) - kSqrtHalf) >> 23;
  const float f = bits_as<float>(bits_as<uint32_t>(x) - (static_cast<uint32_t>(n) << 23)) - 1.f;
  const float s = f / (2.f + f), s2 = s * s;
  const float series = s * s2 * (0.666666667f + s2 * (0.4f + s2 * (0.285714286f + s2 * 0.222222222f)));
  const float power = exp_nonpositive(exponent * (2.f * s + (series + static_cast<float>(n) * 0.693147181f)));
  return x > 0.f ? power : 0.f;
}

WILSON_INLINE double power_of_share(double x, double exponent) { return x > 0 ? std::pow(x, exponent) : 0.0; }

}  // namespace wilson
