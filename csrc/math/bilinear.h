// Where the pixels of a resized axis lie between those they are interpolated from (bilinear).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/compiler.h"

namespace wilson {

// In whole numbers: exact, so that a pixel is on the same side of a border whoever asks. Pixel i of `size` lies at
// (slope i + offset) / unit among `low_size` pixels, and not before the first. Corners not aligned, that is
// (i + 1/2) low_size / size - 1/2; aligned, i (low_size - 1) / (size - 1). A type each, as one for both takes a
// register more than the derivatives have on sm_100 (where those of aligned corners spill 4 bytes).
template <bool kAligned>
struct PixelAxis {
  int64_t size, low_size;

  WILSON_HOST_DEVICE int64_t slope() const { return kAligned ? low_size - 1 : 2 * low_size; }
  WILSON_HOST_DEVICE int64_t offset() const { return kAligned ? 0 : low_size - size; }
  WILSON_HOST_DEVICE int64_t unit() const { return kAligned ? (size > 1 ? size - 1 : 1) : 2 * size; }

  // The last pixel at or before pixel i.
  WILSON_HOST_DEVICE int64_t low(int64_t i) const {
    const int64_t place = slope() * i + offset();
    return place > 0 ? place / unit() : 0;
  }

  // How far pixel i is from there, in shares of 1 / unit of the way to the next one; below 0 before the first.
  WILSON_HOST_DEVICE int64_t rest(int64_t i, int64_t low) const { return slope() * i + offset() - unit() * low; }
  // The same as the weight of the next one.
  template <class acc>
  WILSON_HOST_DEVICE acc weight(int64_t i, int64_t low) const {
    const int64_t shares = rest(i, low);
    return shares > 0 ? static_cast<acc>(shares) / static_cast<acc>(unit()) : acc(0);
  }

  // The first pixel that has `low` or one after it as its low.
  WILSON_HOST_DEVICE int64_t first(int64_t low) const {
    if (low <= 0) return 0;
    if (kAligned && low_size == 1) return size;
    const int64_t above = unit() * low - offset();
    const int64_t i = above > 0 ? (above + slope() - 1) / slope() : 0;
    return i < size ? i : size;
  }
};

// Calls run with the type of the axes.
template <class Run>
auto with_axes(bool align_corners, Run run) {
  return align_corners ? run(PixelAxis<true>()) : run(PixelAxis<false>());
}

// Where pixel i of `size` lies among those of `source_size` when the corners are aligned: between `low` and `high`.
template <class acc>
struct AlignedCorners {
  int64_t low, high;
  acc weight;  // of `high`

  WILSON_HOST_DEVICE AlignedCorners(int64_t i, int64_t size, int64_t source_size) {
    const acc scale = size > 1 ? static_cast<acc>(source_size - 1) / static_cast<acc>(size - 1) : acc(0);
    const acc source = scale * static_cast<acc>(i);
    const int64_t last = source_size - 1;
    low = static_cast<int64_t>(source) < last ? static_cast<int64_t>(source) : last;
    high = low < last ? low + 1 : last;
    weight = source - static_cast<acc>(low);
  }
};

// -inf is interpolated as the lowest number, since a weight of 0 would make it NaN. What comes out is then so low, down
// to a share of 2^-40, that it passes for -inf.
template <class acc>
WILSON_HOST_DEVICE acc interpolable(acc score) {
  constexpr acc lowest = std::numeric_limits<acc>::lowest();
  return score < lowest ? lowest : score;
}
template <class acc>
WILSON_HOST_DEVICE bool ruled_out(acc score) {
  return score <= std::numeric_limits<acc>::lowest() * acc(0x1p-40);
}
template <class acc>
WILSON_HOST_DEVICE acc interpolated(acc score) {
  return ruled_out(score) ? -std::numeric_limits<acc>::infinity() : score;
}

// (1 - weight) near + weight far. Two kernels may round it differently.
template <class acc>
WILSON_HOST_DEVICE acc blend(acc near, acc far, acc weight) {
  return (acc(1) - weight) * near + weight * far;
}

// The same with one rounding more, but the same bits in every kernel.
template <class acc>
WILSON_HOST_DEVICE acc mix(acc near, acc far, acc weight) {
  using std::fma;
  return fma(weight, far - near, near);
}

}  // namespace wilson
