// Which scores are confident: those above max(ratio * peak of the class in the image, floor) (published code of arXiv
// 2112.01882).
#pragma once

#include <cstdint>

#include "math/compiler.h"

namespace wilson {

template <class acc>
struct Threshold {
  acc background_ratio, class_ratio, floor;

  WILSON_HOST_DEVICE acc of(int64_t c, acc peak) const {
    const acc share = (c == 0 ? background_ratio : class_ratio) * peak;
    return share < floor ? floor : share;  // NaN stays: such a class claims nothing
  }
};

}  // namespace wilson
