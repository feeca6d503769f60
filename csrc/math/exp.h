// exp for loops on the CPU. float: a polynomial fitted for the least relative error (Remez), branch-free, so that the
// compiler vectorises it without fast-math. double: the C library's, as accuracy comes before speed.
#pragma once

#include <cmath>

#include "math/bits.h"

namespace wilson {

// e^x for x <= 0 (a little above is fine), as softmax needs it; 0 below -87, NaN stays. x log2(e) = n + f with
// |f| <= 1/2, then 2^f by polynomial, then 2^n by adding n to the exponent. The error grows with |x|, as n takes digits
// from f: under 2 ULP for x > -1; for x > -87 under 20 where the compiler fuses multiplication and addition, else 64.
WILSON_INLINE float exp_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
  const float rounded = x * kLog2E + kRound;
  const float f = x * kLog2E - (rounded - kRound);
  const float power =
      1.f +
      f * (0.693147182f +
           f * (0.240226477f + f * (0.0555033237f + f * (0.00961843692f + f * (0.00133988739f + f * 0.00015353362f)))));
  const float value = bits_as<float>(bits_as<uint32_t>(power) + (bits_as<uint32_t>(rounded) << 23));
  return x < -87.f ? 0.f : value;
}

WILSON_INLINE double exp_nonpositive(double x) { return std::exp(x); }

}  // namespace wilson
