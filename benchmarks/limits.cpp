// Loops that do one thing alone, as fast as the compiler makes them on this machine: what no op can do without.
#include <omp.h>

#include <cstdint>

#include "math/exp.h"

extern "C" {

void use_threads(int count) { omp_set_num_threads(count); }

// The sum of the exponentials of n values at most 0.
float exponentials(const float* x, int64_t n) {
  float sum = 0;
#pragma omp parallel for simd reduction(+ : sum) schedule(static)
  for (int64_t i = 0; i < n; ++i) sum += wilson::exp_nonpositive(x[i]);
  return sum;
}

// The sum of n values.
float read(const float* x, int64_t n) {
  float sum = 0;
#pragma omp parallel for simd reduction(+ : sum) schedule(static)
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

void store(float* x, int64_t n) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) x[i] = 1;
}
}
