// The links of the random walk (IRN; Ahn et al., CVPR 2019):
//   a_ij = 1 - max of the edge on the path from i to j,   x_j <- sum_i a_ij^beta x_i / sum_k a_kj^beta,   a_ii = 1
// between pixels less than `radius` apart. Links are symmetric: half the neighbours, those below and to the right, name
// each once.
#pragma once

#include <cstdint>

#include "math/compiler.h"

namespace wilson {

constexpr int64_t kMostRadius = 8;
constexpr int kMostLinks = 96;  // of a pixel at that radius

// Calls visit(down, right) for half the neighbours of a pixel.
WILSON_ANY_BODY
template <class Visit>
WILSON_HOST_DEVICE void each_link(int radius, Visit visit) {
  for (int down = 0; down < radius; ++down) {
    for (int right = down > 0 ? 1 - radius : 1; right < radius; ++right) {
      if (down * down + right * right < radius * radius) visit(down, right);
    }
  }
}

// Calls visit(down, right) for the pixels on the path of a link, both ends included: those of the box around the ends
// that are less than 1 away from the line between them.
WILSON_ANY_BODY
template <class Visit>
WILSON_HOST_DEVICE void each_on_path(int down, int right, Visit visit) {
  const int columns = right < 0 ? -right : right, side = right < 0 ? -1 : 1;
  for (int y = 0; y <= down; ++y) {
    for (int x = 0; x <= columns; ++x) {
      const int away = down * x - columns * y;
      if (away * away < down * down + right * right) visit(y, side * x);
    }
  }
}

}  // namespace wilson
