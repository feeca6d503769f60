// The affinities of PAMR (Araslanov and Roth, CVPR 2020, as in the published code of arXiv 2112.01882):
//   k_n = mean over the 3 colours of -|x - x_n| / (1e-8 + 0.1 sigma),   a = softmax of k over a pixel's neighbours n
// The neighbours are the 8 around the pixel at each dilation. sigma is a colour's unbiased standard deviation over them
// and the pixel itself, which counts once for each dilation.
//
// The affinities of PAR (Ru et al., CVPR 2022):
//   k_n = mean over the 3 colours of -(|x - x_n| / (sigma + 1e-8) / 0.3)^2,   a = softmax of k + 0.01 nearness
// sigma is taken over the neighbours alone. Where they are all alike, but not like the pixel, the squares reach 1e17,
// and would round the other colours away. So the least of a colour's squares is taken off, which the softmax does not
// see, and which leaves 0 there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "math/compiler.h"

namespace wilson {

enum class Affinity { kPamr, kPar };

// The values that sigma is taken over.
template <Affinity kind, class acc>
WILSON_HOST_DEVICE acc deviation_values(int64_t dilations) {
  return static_cast<acc>((kind == Affinity::kPamr ? 9 : 8) * dilations);
}

// A colour's share of the factor of k_n, given sigma^2.
template <Affinity kind, class acc>
WILSON_HOST_DEVICE acc steepness(acc variance) {
  using std::sqrt;
  if constexpr (kind == Affinity::kPamr) {
    return acc(-1) / acc(3) / (acc(1e-8) + acc(0.1) * sqrt(variance));
  } else {
    const acc width = acc(0.3) * (acc(1e-8) + sqrt(variance));
    return acc(-1) / acc(3) / (width * width);
  }
}

// A colour's share of k_n, given the difference to the neighbour, and the least of all neighbours, which PAR asks for.
template <Affinity kind, class acc>
WILSON_HOST_DEVICE acc similarity(acc difference, acc least, acc steepness) {
  using std::abs;
  if constexpr (kind == Affinity::kPamr) return abs(difference) * steepness;
  return (abs(difference) - least) * (abs(difference) + least) * steepness;  // the squares lose fewer digits so
}

// What PAR adds to the affinities at each dilation, of a neighbour beside the pixel and of one at a corner:
// 0.01 softmax of -(rho / (sigma_rho + 1e-8) / 0.3)^2, of the distances rho.
struct Nearness {
  double beside, corner;
};

inline std::vector<Nearness> nearness_of(const std::vector<int64_t>& dilations) {
  const double root = std::sqrt(2.0), values = 8.0 * static_cast<double>(dilations.size());
  double total = 0, squares = 0, norm = 0;
  for (const int64_t d : dilations) total += 4 * (1 + root) * static_cast<double>(d);
  const double mean = total / values;
  for (const int64_t d : dilations) {
    for (const double rho : {d * 1.0, d * root}) squares += 4 * (rho - mean) * (rho - mean);
  }
  const double width = 0.3 * (std::sqrt(squares / (values - 1)) + 1e-8);
  const double nearest = static_cast<double>(*std::min_element(dilations.begin(), dilations.end()));
  const auto weight = [&](double rho) { return std::exp((nearest - rho) * (nearest + rho) / (width * width)); };
  std::vector<Nearness> found;
  for (const int64_t d : dilations) {
    found.push_back({weight(static_cast<double>(d)), weight(root * static_cast<double>(d))});
    norm += 4 * (found.back().beside + found.back().corner);
  }
  for (Nearness& near : found) near.beside *= 0.01 / norm, near.corner *= 0.01 / norm;
  return found;
}

}  // namespace wilson
