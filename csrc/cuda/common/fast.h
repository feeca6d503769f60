// Functions by the special function units, good to 22 bits and rounded to zero below 2^-126: for losses that are bound
// by them. Doubles are computed in full.
#pragma once

#include <cuda_runtime.h>

namespace wilson {

// e^x. What x log2(e) loses by rounding is a share of |x| 2^-24, which is little where e^x is not.
__device__ inline float fast_exp(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.44269504f));
  return power;
}
__device__ inline double fast_exp(double x) { return exp(x); }

__device__ inline float fast_reciprocal(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}
__device__ inline double fast_reciprocal(double x) { return 1 / x; }

}  // namespace wilson
