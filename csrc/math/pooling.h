// nGWP + focal pooling of one image and class (arXiv 2112.01882, Eq. 1 and 2):
//   pooled = T / (eps + S) + (1 - S/P)^gamma log(lam + S/P),   S = sum_i m_i,   T = sum_i m_i z_i
// over the P pixels, m the softmax of the scores z over classes.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/compiler.h"

namespace wilson {

template <class acc>
struct PoolingOptions {
  acc eps, gamma, lam;
  acc pixels;  // P
  bool focal;
};

template <class acc>
PoolingOptions<acc> pooling_options(double eps, double gamma, double lam, int64_t pixels, bool focal) {
  return {static_cast<acc>(eps), static_cast<acc>(gamma), static_cast<acc>(lam), static_cast<acc>(pixels), focal};
}

// A score as it is weighted: -inf has probability 0 and adds nothing, which 0 times infinity would not give.
template <class acc>
WILSON_HOST_DEVICE acc counted_score(acc z) {
  return z < std::numeric_limits<acc>::lowest() ? acc(0) : z;
}

// x^e for x in 0..1 and e >= 0. Not pow: that is a call on a GPU, around which double kernels spill.
template <class acc>
WILSON_HOST_DEVICE acc power(acc x, acc e) {
  using std::exp;
  using std::log;
  if (e == acc(0)) return acc(1);
  return x > acc(0) ? exp(e * log(x)) : acc(0);
}

// (1 - x)^gamma log(lam + x) at x = S/P, the share of the image that the class covers.
template <class acc>
WILSON_HOST_DEVICE acc focal_penalty(acc mass, const PoolingOptions<acc>& o) {
  using std::log;
  const acc share = mass < o.pixels ? mass / o.pixels : acc(1);  // S can pass P by rounding
  return power(acc(1) - share, o.gamma) * log(o.lam + share);
}

// T / (eps + S), which is called the score of an image and class.
template <class acc>
WILSON_HOST_DEVICE acc mean_score(acc mass, acc total, const PoolingOptions<acc>& o) {
  return total / (o.eps + mass);
}

// What the op returns for them.
template <class acc>
WILSON_HOST_DEVICE acc with_penalty(acc score, acc mass, const PoolingOptions<acc>& o) {
  return score + (o.focal ? focal_penalty(mass, o) : acc(0));
}

// The penalty's derivative by S; 0 where S passes P, as the share is held at 1 there.
template <class acc>
WILSON_HOST_DEVICE acc focal_penalty_slope(acc mass, const PoolingOptions<acc>& o) {
  using std::log;
  if (mass > o.pixels) return acc(0);
  const acc share = mass / o.pixels, rest = acc(1) - share;
  return power(rest, o.gamma - acc(1)) * (rest / (o.lam + share) - o.gamma * log(o.lam + share)) / o.pixels;
}

// What the gradient needs of an image and class: dL/dm_i = by_mass + by_total * z_i.
template <class acc>
struct PoolingSlopes {
  acc by_mass;   // dL/dS at fixed T
  acc by_total;  // dL/dT
};

// score = T / (eps + S).
template <class acc>
WILSON_HOST_DEVICE PoolingSlopes<acc> pooling_slopes(acc grad_pooled, acc mass, acc score,
                                                     const PoolingOptions<acc>& o) {
  const acc focal = o.focal ? focal_penalty_slope(mass, o) : acc(0);
  const acc by_total = acc(1) / (o.eps + mass);
  return {grad_pooled * (focal - score * by_total), grad_pooled * by_total};
}

}  // namespace wilson
