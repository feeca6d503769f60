// The affinities of PAMR (Araslanov and Roth, CVPR 2020, as in the published code of arXiv 2112.01882):
//   k_n = mean over the 3 colours of -|x - x_n| / (1e-8 + 0.1 sigma),   a = softmax of k over a pixel's neighbours n
// The neighbours are the 8 around the pixel at each dilation. sigma is a colour's unbiased standard deviation over them
// and the pixel itself, which counts once for each dilation.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/compiler.h"

namespace wilson {

// The values that sigma is taken over.
template <class acc>
WILSON_HOST_DEVICE acc deviation_values(int64_t dilations) {
  return static_cast<acc>(9 * dilations);
}

// A colour's share of -1 / (1e-8 + 0.1 sigma), given sigma^2.
template <class acc>
WILSON_HOST_DEVICE acc steepness(acc variance) {
  using std::sqrt;
  return acc(-1) / acc(3) / (acc(1e-8) + acc(0.1) * sqrt(variance));
}

// A colour's share of k_n, given the difference to the neighbour.
template <class acc>
WILSON_HOST_DEVICE acc similarity(acc difference, acc steepness) {
  using std::abs;
  return abs(difference) * steepness;
}

}  // namespace wilson
