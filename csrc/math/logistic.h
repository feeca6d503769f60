// The logistic loss and its parts. With e = exp(-|x|), log(1 + exp(x)) = max(x, 0) + log(1 + e), and the sigmoid is a
// fraction of 1, e and 1 + e: one exponential serves both, whatever the sign and size of x.
#pragma once

#include "math/compiler.h"

namespace wilson {

// sigmoid(x), given e = exp(-|x|).
template <class acc>
WILSON_HOST_DEVICE acc sigmoid(acc x, acc e) {
  return (x >= acc(0) ? acc(1) : e) / (acc(1) + e);
}

template <class acc>
WILSON_HOST_DEVICE acc positive_part(acc x) {
  return x > acc(0) ? x : acc(0);
}

// max(x, 0) - x q, where 0 times infinity is 0: a logit of -inf costs nothing where the target is 0.
template <class acc>
WILSON_HOST_DEVICE acc linear_part(acc x, acc q) {
  return positive_part(x) - (q == acc(0) ? acc(0) : x) * q;
}

// A sum of log(1 + e) over terms e in 0..1, as log(1 + p) of p = prod(1 + e) - 1: one multiply-add and one addition a
// term instead of a logarithm. p keeps its relative precision however small the terms are.
template <class acc>
WILSON_HOST_DEVICE acc times_one_plus(acc p, acc e) {
  return p * e + (p + e);
}
constexpr int kMaxFactors = 64;  // the product stays under 2^64

}  // namespace wilson
