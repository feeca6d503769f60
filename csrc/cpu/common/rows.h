// What several CPU kernels do with the rows of a tile: the parts of a softmax, and sums of log(1 + e).
#pragma once

#include "cpu/common/tiles.h"
#include "math/exp.h"
#include "math/log.h"
#include "math/logistic.h"

namespace wilson {

// The highest score of each pixel.
template <class acc>
WILSON_INLINE void find_peaks(const Tile<const acc>& z, int64_t classes, acc* peak) {
  std::copy_n(z.row(0), kTile, peak);
  for (int64_t c = 1; c < classes; ++c) {
    const acc* zc = z.row(c);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) peak[j] = zc[j] > peak[j] ? zc[j] : peak[j];
  }
}

template <class acc>
WILSON_INLINE void prefetch(const acc* row) {
  for (int64_t j = 0; j < kTile; j += 64 / sizeof(acc)) __builtin_prefetch(row + j);
}

// e_c = exp(z_c - peak) into the rows of `terms`, which may be those of z, and their sum.
template <class acc>
WILSON_INLINE void exponentials(const Tile<const acc>& z, int64_t classes, const acc* peak, Row<acc>* terms, acc* sum) {
  std::fill_n(sum, kTile, acc(0));
  for (int64_t c = 0; c < classes; ++c) {
    const acc* zc = z.row(c);
    acc* e = terms[c].value;
    prefetch(zc + kTile);  // of the next tile
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      e[j] = exp_nonpositive(zc[j] - peak[j]);
      sum[j] += e[j];
    }
  }
}

// Sum over the classes and pixels of a tile of the logistic loss, where 0 times infinity is 0. For a tile whose loss
// came out as NaN: that of a logit of -inf with a target of 0 is 0. `s` and `q` have row(c).
template <class acc, class Logits, class Targets, class TargetOf>
__attribute__((noinline)) double margin_loss_with_infinities(const Logits& s, const Targets& q, int64_t classes,
                                                             int64_t count, TargetOf target_of) {
  double total = 0;
  for (int64_t c = 0; c < classes; ++c) {
    const acc *sc = s.row(c), *qc = q.row(c);
    for (int64_t j = 0; j < count; ++j) {
      total += linear_part(sc[j], target_of(qc[j])) + log1p_nonnegative(exp_nonpositive(-std::abs(sc[j])));
    }
  }
  return total;
}

// To be called after each class c. `product` stands for a sum of log(1 + e); this adds the sum to `loss` when the
// product can take no more factors, and after the last class.
template <class acc>
WILSON_INLINE void settle(int64_t c, int64_t classes, acc* product, acc* loss) {
  if ((c + 1) % kMaxFactors != 0 && c + 1 != classes) return;
#pragma omp simd
  for (int64_t j = 0; j < kTile; ++j) {
    loss[j] += log1p_nonnegative(product[j]);
    product[j] = acc(0);
  }
}

}  // namespace wilson
