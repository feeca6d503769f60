// Where the pixels of an upsampled axis lie between those they are interpolated from (bilinear, corners not aligned),
// in whole numbers: exact, so that a pixel is on the same side of a border whoever asks.
#pragma once

#include <cmath>
#include <cstdint>

#include "compiler.h"

namespace wilson {

// Pixel i of `size` lies at ((2i + 1) low_size - size) / (2 size) among `low_size` pixels, and not before the first.
struct HalfPixelAxis {
  int64_t size, low_size;

  // The last pixel at or before pixel i.
  WILSON_HOST_DEVICE int64_t low(int64_t i) const {
    const int64_t place = (2 * i + 1) * low_size - size;
    return place > 0 ? place / (2 * size) : 0;
  }

  // How far pixel i is from there to the next one, which is its weight.
  template <class acc>
  WILSON_HOST_DEVICE acc weight(int64_t i, int64_t low) const {
    const int64_t rest = (2 * i + 1) * low_size - size - 2 * size * low;
    return rest > 0 ? static_cast<acc>(rest) / static_cast<acc>(2 * size) : acc(0);
  }

  // The first pixel that has `low` or one after it as its low.
  WILSON_HOST_DEVICE int64_t first(int64_t low) const {
    if (low <= 0) return 0;
    const int64_t above = 2 * size * low + size - low_size, step = 2 * low_size;
    const int64_t i = above > 0 ? (above + step - 1) / step : 0;
    return i < size ? i : size;
  }
};

// Between two values. One rounding more than it takes, but the same bits wherever it is compiled into.
template <class acc>
WILSON_HOST_DEVICE acc mix(acc near, acc far, acc weight) {
  using std::fma;
  return fma(weight, far - near, near);
}

}  // namespace wilson
