// Pseudo-labels and their merge with the old model's output (arXiv 2112.01882, Eq. 5 and 6). With m the softmax of the
// localizer's scores times the image-level labels, h = 1 where m is largest, omega the old model's sigmoid:
//   q = alpha h + (1 - alpha) m
//   target: min(omega_0, q_0) of the background, omega_c of another old class, q_c of a new one
// The background may be a mean instead: (1 - b) omega_0 + b q_0 with a background weight b. Old classes may yield:
// omega_c (1 - M) then stands for omega_c, with M the sum of m over the new classes. And m, but not M, may be mixed
// with a prior p of the new classes, gated as m is: (1 - b) m_n + b p_n and (1 - b) m_0 + b (1 - max_n p_n).
#pragma once

#include <optional>

#include "math/compiler.h"

namespace wilson {

// q, given its soft part (1 - alpha) m.
template <class acc>
WILSON_HOST_DEVICE acc pseudo_label(acc soft, bool hard, acc alpha) {
  return soft + (hard ? alpha : acc(0));
}

// 1 - M, given the gated exponentials of the new classes added up, and 1 over the sum of all.
template <class acc>
WILSON_HOST_DEVICE acc left_to_old(acc gated, acc weight) {
  const acc left = acc(1) - gated * weight;
  return left < acc(0) ? acc(0) : left;  // M passes 1 by rounding; NaN stays
}

// The larger number, NaN if one of them is.
template <class acc>
WILSON_HOST_DEVICE acc highest_of(acc x, acc y) {
  return x > y || x != x ? x : y;
}

// (1 - b) m + b p. On a GPU, where it is computed twice and h is where both are equal, it is rounded in one way.
template <class acc>
WILSON_HOST_DEVICE acc mixed_with_prior(acc m, acc prior, acc weight) {
#if defined(__CUDA_ARCH__)
  return fma(weight, prior, (acc(1) - weight) * m);
#else
  return (acc(1) - weight) * m + weight * prior;
#endif
}

template <class acc>
struct BackgroundMerge {
  bool minimum;
  acc background_weight;  // of the localizer, where it is not the minimum

  explicit BackgroundMerge(std::optional<double> weight)
      : minimum(!weight), background_weight(static_cast<acc>(weight.value_or(0))) {}

  // The target of the background.
  WILSON_HOST_DEVICE acc of(acc omega, acc q) const {
    if (minimum) return omega < q || omega != omega ? omega : q;  // NaN if one of them is
    return (acc(1) - background_weight) * omega + background_weight * q;
  }
};

}  // namespace wilson
