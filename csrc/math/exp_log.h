// exp and log for loops over floats on the CPU: branch-free, so that the compiler vectorises them; no fast-math needed.
// float: polynomials fitted for the least relative error (Remez). double: the C library, accuracy before speed.
#pragma once

#include <cmath>

#include "bits.h"

namespace wilson {

// e^x for x <= 0 (a little above is fine), as softmax needs it; 0 below -87, NaN stays. Error under 1e-7 for x > -1, and
// of e^x's own size times 2e-8 |x| further out. x log2(e) = n + f with |f| <= 1/2, then 2^f by polynomial, then 2^n by
// adding n to the exponent.
WILSON_INLINE float exp_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
  const float rounded = x * kLog2E + kRound;
  const float f = x * kLog2E - (rounded - kRound);
  const float power =
      1.f + f * (0.693147182f +
                 f * (0.240226477f +
                      f * (0.0555033237f + f * (0.00961843692f + f * (0.00133988739f + f * 0.00015353362f)))));
  const float value = bits_as<float>(bits_as<uint32_t>(power) + (bits_as<uint32_t>(rounded) << 23));
  return x < -87.f ? 0.f : value;
}

WILSON_INLINE double exp_nonpositive(double x) {
  return std::exp(x);
}

// ln x for normal x > 0: error under 2e-7 of the larger of 1 and |ln x|.
// x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), then n ln2 + f - f^2 / 2 + f^3 p(f).
WILSON_INLINE float log_positive(float x) {
  const uint32_t bits = bits_as<uint32_t>(x) - 0x3f3504f3u;  // counted from sqrt(1/2)
  const float n = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float f = bits_as<float>((bits & 0x007fffffu) + 0x3f3504f3u) - 1.f;
  const float p =
      0.333335012f +
      f * (-0.250014096f +
           f * (0.199769318f + f * (-0.165785879f + f * (0.147814631f + f * (-0.142358184f + f * 0.0903360769f)))));
  return (f - 0.5f * f * f + f * f * f * p) + n * 0.693147181f;
}

WILSON_INLINE double log_positive(double x) {
  return std::log(x);
}

}  // namespace wilson
