// One-versus-rest logits of a softmax model on the CPU. Formulas: math/one_versus_rest.h.
#include "math/one_versus_rest.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <vector>

#include "checks.h"
#include "cpu/common/rows.h"

namespace wilson {
namespace {

template <class acc>
struct Scratch {
  explicit Scratch(int64_t classes) : scores(classes), grads(classes), terms(classes) {}
  std::vector<Row<acc>> scores, grads, terms;
};

// In the loops below a class above u takes other values into the same arithmetic: results chosen afterwards would be
// computed in a branch, which keeps the loops from being vectorised.

// t, u, R and exp(u - t) of the pixels of a tile.
template <class acc>
struct Others {
  alignas(64) acc top[kTile], second[kTile], sum[kTile], ratio[kTile];
};

// Leaves exp(s - u) in the rows of `terms`, 0 for a class above u.
template <class acc>
WILSON_INLINE void find_others(const Tile<const acc>& z, int64_t classes, Row<acc>* terms, Others<acc>& others) {
  acc *top = others.top, *second = others.second, *sum = others.sum;
  std::copy_n(z.row(0), kTile, top);
  std::fill_n(second, kTile, std::numeric_limits<acc>::lowest());  // not -inf: exp(-inf - u) is 0 then
  for (int64_t c = 1; c < classes; ++c) {
    const acc* zc = z.row(c);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      const acc lower = zc[j] > top[j] ? top[j] : zc[j];
      top[j] = zc[j] > top[j] ? zc[j] : top[j];
      second[j] = lower > second[j] ? lower : second[j];
    }
  }
  std::fill_n(sum, kTile, acc(0));
  for (int64_t c = 0; c < classes; ++c) {
    const acc* zc = z.row(c);
    acc* e = terms[c].value;
    prefetch(zc + kTile);  // of the next tile
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      const acc counted = zc[j] > second[j] ? acc(0) : acc(1);
      e[j] = counted * exp_nonpositive(-std::abs(zc[j] - second[j]));
      sum[j] += e[j];
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < kTile; ++j) {
    const acc odd = top[j] - top[j];  // 0, or NaN where the softmax is
    sum[j] = sum[j] - (top[j] == second[j] ? acc(1) : acc(0)) + odd;
    others.ratio[j] = exp_nonpositive(second[j] - top[j]);
  }
}

template <class acc>
WILSON_CPU_LEVELS void one_versus_rest_fwd_chunk(const AnyMap& logits, const AnyMap& result, const Chunk& chunk,
                                                 Scratch<acc>& scratch) {
  Others<acc> others;
  alignas(64) acc base[kTile], beside[kTile];  // of the class above u: its others are exp(base) (1 + beside)
  const acc *top = others.top, *second = others.second, *sum = others.sum, *ratio = others.ratio;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const auto z = read_tile(logits, chunk.image, first, count, scratch.scores.data());
    find_others(z, logits.classes, scratch.terms.data(), others);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      base[j] = sum[j] == acc(0) ? -std::numeric_limits<acc>::infinity() : second[j];  // 0: all others are ruled out
      beside[j] = sum[j] - acc(1);
      beside[j] = beside[j] < acc(0) ? acc(0) : beside[j];
    }
    const TileWriter<acc> out(result, chunk.image, first, count, scratch.terms.data());
    for (int64_t c = 0; c < logits.classes; ++c) {
      const acc *zc = z.row(c), *e = scratch.terms[c].value;
      acc* to = out.row(c);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        const bool above = zc[j] > second[j];
        const acc x = others_beside_top(e[j], sum[j], ratio[j]), high = above ? base[j] : top[j];
        to[j] = (zc[j] - high) - log1p_nonnegative(above ? beside[j] : x);
      }
      out.row_done(c);
    }
    out.done();
  }
}

// The backward computes the sums anew: to keep the exponentials would be another map.
template <class acc>
WILSON_CPU_LEVELS void one_versus_rest_bwd_chunk(const AnyMap& grad, const AnyMap& logits, const AnyMap& grad_logits,
                                                 const Chunk& chunk, Scratch<acc>& scratch) {
  Others<acc> others;
  alignas(64) acc quotients[kTile], above[kTile];
  const acc *second = others.second, *sum = others.sum, *ratio = others.ratio;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const auto z = read_tile(logits, chunk.image, first, count, scratch.scores.data());
    const auto g = read_tile(grad, chunk.image, first, count, scratch.grads.data());
    find_others(z, logits.classes, scratch.terms.data(), others);
    std::fill_n(quotients, kTile, acc(0));
    std::fill_n(above, kTile, acc(0));
    for (int64_t c = 0; c < logits.classes; ++c) {
      const acc *zc = z.row(c), *gc = g.row(c), *e = scratch.terms[c].value;
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        const acc counted = zc[j] > second[j] ? acc(0) : gc[j];
        quotients[j] += counted / (acc(1) + others_beside_top(e[j], sum[j], ratio[j]));
        above[j] = zc[j] > second[j] ? gc[j] : above[j];
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) above[j] = share_of_above(above[j], sum[j]);
    const TileWriter<acc> out(grad_logits, chunk.image, first, count, scratch.terms.data());
    for (int64_t c = 0; c < logits.classes; ++c) {
      const acc *zc = z.row(c), *gc = g.row(c), *e = scratch.terms[c].value;
      acc* to = out.row(c);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        const acc grad = gc[j] - (zc[j] > second[j] ? quotients[j] : acc(0));  // e is 0 there
        const acc quotient = gc[j] / (acc(1) + others_beside_top(e[j], sum[j], ratio[j]));
        to[j] = one_versus_rest_slope(grad, e[j], ratio[j], quotients[j], quotient, above[j]);
      }
      out.row_done(c);
    }
    out.done();
  }
}

Tensor one_versus_rest(const Tensor& logits) {
  check_one_versus_rest("one_versus_rest", logits);
  Tensor result = torch::stable::empty_like(logits);
  with_acc(acc_dtype(logits), [&](auto type) {
    using acc = decltype(type);
    const AnyMap from = any_map(logits), to = any_map(result);
    parallel_chunks(
        from.batch, from.pixels, from.classes, [&] { return Scratch<acc>(from.classes); },
        [&](const Chunk& chunk, Scratch<acc>& scratch) { one_versus_rest_fwd_chunk(from, to, chunk, scratch); });
  });
  return result;
}

Tensor one_versus_rest_backward(const Tensor& grad, const Tensor& logits) {
  check_one_versus_rest("one_versus_rest_backward", logits);
  check_map("one_versus_rest_backward", "grad", grad);
  check_same_shape("one_versus_rest_backward", "grad", grad, "logits", logits);
  Tensor grad_logits = torch::stable::empty_like(logits);
  with_acc(acc_dtype(grad, logits), [&](auto type) {
    using acc = decltype(type);
    const AnyMap g = any_map(grad), from = any_map(logits), to = any_map(grad_logits);
    parallel_chunks(
        from.batch, from.pixels, from.classes, [&] { return Scratch<acc>(from.classes); },
        [&](const Chunk& chunk, Scratch<acc>& scratch) { one_versus_rest_bwd_chunk(g, from, to, chunk, scratch); });
  });
  return grad_logits;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("one_versus_rest", TORCH_BOX(&wilson::one_versus_rest));
  m.impl("one_versus_rest_backward", TORCH_BOX(&wilson::one_versus_rest_backward));
}
