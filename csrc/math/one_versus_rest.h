// One-versus-rest logits l_c = s_c - log sum_{k != c} exp(s_k), whose sigmoid is the softmax of s. With the highest
// score t, the second u (t again where several are the highest), and the sum R of exp(s - u) over all classes but one
// of the highest, the others of a class are
//   exp(u) R            of the one class above u
//   exp(t) (1 + x_c)    of any other, x_c = (R - exp(s_c - u)) exp(u - t) >= 0: the highest is always among them
// so that nothing cancels: 1 - p_c, which is 0 for a sure class, is never taken. The derivative, with
// h_c = g_c / (1 + x_c) of the classes not above u, and their sum H:
//   g_j - H                                                      of the class above u
//   g_j - exp(s_j - u) (exp(u - t) (H - h_j) + g_above / R)      of any other
#pragma once

#include "math/compiler.h"

namespace wilson {

// x_c, given own = exp(s_c - u), sum = R and ratio = exp(u - t).
template <class acc>
WILSON_HOST_DEVICE acc others_beside_top(acc own, acc sum, acc ratio) {
  const acc left = sum - own;
  return (left < acc(0) ? acc(0) : left) * ratio;  // below 0 by rounding; NaN stays
}

// g_above / R, where R is 0 if all others are ruled out: none of them gets anything then.
template <class acc>
WILSON_HOST_DEVICE acc share_of_above(acc grad_above, acc sum) {
  return sum == acc(0) ? acc(0) : grad_above / sum;
}

// Of a class not above u, given own = exp(s_j - u); above: share_of_above.
template <class acc>
WILSON_HOST_DEVICE acc one_versus_rest_slope(acc grad, acc own, acc ratio, acc quotients, acc quotient, acc above) {
  return grad - own * (ratio * (quotients - quotient) + above);
}

}  // namespace wilson
