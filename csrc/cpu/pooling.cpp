// nGWP + focal pooling on the CPU. Formulas: math/pooling.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/common/rows.h"
#include "math/pooling.h"

namespace wilson {
namespace {

// The backward computes the softmax anew, as it depends on the incoming gradient class by class. Both passes take at
// most 0.77 (24x21x32x32) and 0.61 (12x81x56x56) of the processor time of a kept softmax, counting what
// pseudo_label_loss pays to write such a map and to read and scale it (float32, 2 threads).

// What one thread works with.
template <class acc>
struct Scratch {
  explicit Scratch(int64_t classes) : scores(classes), terms(classes), mass(classes), total(classes) {}
  std::vector<Row<acc>> scores, terms;
  std::vector<Lanes<acc>> mass, total;
};

template <class acc>
WILSON_CPU_LEVELS void ngwp_focal_pool_fwd_chunk(const AnyMap& scores, const Chunk& chunk, Scratch<acc>& scratch) {
  const int64_t C = scores.classes;
  Row<acc>* terms = scratch.terms.data();
  Lanes<acc>*mass = scratch.mass.data(), *total = scratch.total.data();
  std::fill_n(mass, C, Lanes<acc>{});
  std::fill_n(total, C, Lanes<acc>{});
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const auto z = read_tile(scores, chunk.image, first, count, scratch.scores.data());
    alignas(64) acc peak[kTile], sum[kTile];
    find_peaks(z, C, peak);
    exponentials(z, C, peak, terms, sum);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) sum[j] = j < count ? acc(1) / sum[j] : acc(0);
    for (int64_t c = 0; c < C; ++c) {
      const acc *zc = z.row(c), *e = terms[c].value;
      Lanes<acc> s{}, t{};  // short sums first: less rounding
      for (int64_t i = 0; i < kTile; i += kLanes) {
#pragma omp simd
        for (int64_t j = 0; j < kLanes; ++j) {
          const acc m = e[i + j] * sum[i + j];
          s.value[j] += m;
          t.value[j] += m * counted_score(zc[i + j]);
        }
      }
#pragma omp simd
      for (int64_t j = 0; j < kLanes; ++j) {
        mass[c].value[j] += s.value[j];
        total[c].value[j] += t.value[j];
      }
    }
  }
}

template <class acc>
WILSON_CPU_LEVELS void ngwp_focal_pool_bwd_chunk(const AnyMap& scores, const AnyMap& grad, const Chunk& chunk,
                                                 const acc* by_mass, const acc* by_total, Scratch<acc>& scratch) {
  const int64_t C = scores.classes;
  Row<acc>* terms = scratch.terms.data();
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const auto z = read_tile(scores, chunk.image, first, count, scratch.scores.data());
    alignas(64) acc peak[kTile], sum[kTile], inner[kTile];
    find_peaks(z, C, peak);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) sum[j] = inner[j] = acc(0);
    for (int64_t c = 0; c < C; ++c) {
      const acc* zc = z.row(c);
      acc* e = terms[c].value;
      const acc A = by_mass[c], B = by_total[c];
      prefetch(zc + kTile);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        e[j] = exp_nonpositive(zc[j] - peak[j]);
        sum[j] += e[j];
        inner[j] += e[j] * (A + B * counted_score(zc[j]));
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      sum[j] = acc(1) / sum[j];
      inner[j] *= sum[j];
    }
    const TileWriter<acc> out(grad, chunk.image, first, count, terms);
    for (int64_t c = 0; c < C; ++c) {
      const acc *zc = z.row(c), *e = terms[c].value;
      acc* to = out.row(c);
      const acc A = by_mass[c], B = by_total[c];
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) to[j] = e[j] * sum[j] * ((A + B * counted_score(zc[j])) - inner[j] + B);
      out.row_done(c);
    }
    out.done();
  }
}

template <class acc>
void ngwp_focal_pool_fwd(const AnyMap& scores, const PoolingOptions<acc>& options, acc* pooled, acc* mass, acc* score) {
  const int64_t B = scores.batch, C = scores.classes, P = scores.pixels, chunks = chunks_of(P);
  const std::unique_ptr<acc[]> sums(new acc[B * chunks * 2 * C]);  // (B, chunks, 2, C): S and T of each chunk
  parallel_chunks(
      B, P, C, [&] { return Scratch<acc>(C); },
      [&](const Chunk& chunk, Scratch<acc>& scratch) {
        ngwp_focal_pool_fwd_chunk(scores, chunk, scratch);
        acc* chunk_sums = sums.get() + chunk.index * 2 * C;
        for (int64_t c = 0; c < C; ++c) {
          chunk_sums[c] = scratch.mass[c].sum();
          chunk_sums[C + c] = scratch.total[c].sum();
        }
      });
  for (int64_t i = 0; i < B * C; ++i) {
    const acc* chunk_sums = sums.get() + i / C * chunks * 2 * C + i % C;
    double s = 0, t = 0;
    for (int64_t k = 0; k < chunks; ++k) {
      s += chunk_sums[k * 2 * C];
      t += chunk_sums[k * 2 * C + C];
    }
    mass[i] = static_cast<acc>(s);
    score[i] = mean_score(mass[i], static_cast<acc>(t), options);
    pooled[i] = with_penalty(score[i], mass[i], options);
  }
}

template <class acc>
void ngwp_focal_pool_bwd(const Tensor& grad_pooled, const AnyMap& scores, const acc* mass, const acc* score,
                         const PoolingOptions<acc>& options, const AnyMap& grad_scores) {
  const int64_t B = scores.batch, C = scores.classes;
  std::vector<acc> by_mass = read_matrix<acc>(grad_pooled), by_total(B * C);
  for (int64_t i = 0; i < B * C; ++i) {
    const auto slopes = pooling_slopes(by_mass[i], mass[i], score[i], options);
    by_mass[i] = slopes.by_mass;
    by_total[i] = slopes.by_total;
  }
  parallel_chunks(
      B, scores.pixels, C, [&] { return Scratch<acc>(C); },
      [&](const Chunk& chunk, Scratch<acc>& scratch) {
        const int64_t image = chunk.image * C;
        ngwp_focal_pool_bwd_chunk(scores, grad_scores, chunk, by_mass.data() + image, by_total.data() + image, scratch);
      });
}

std::tuple<Tensor, Tensor, Tensor> ngwp_focal_pool(const Tensor& scores, double eps, double gamma, double lam,
                                                   bool focal) {
  check_map("ngwp_focal_pool", "scores", scores);
  const ScalarType dtype = acc_dtype(scores);
  const int64_t B = scores.size(0), C = scores.size(1), P = scores.size(2) * scores.size(3);
  Tensor pooled = torch::stable::empty({B, C}, dtype), mass = torch::stable::empty({B, C}, dtype),
         score = torch::stable::empty({B, C}, dtype);
  with_acc(dtype, [&](auto type) {
    using acc = decltype(type);
    ngwp_focal_pool_fwd(any_map(scores), pooling_options<acc>(eps, gamma, lam, P, focal), mutable_data<acc>(pooled),
                        mutable_data<acc>(mass), mutable_data<acc>(score));
  });
  return {pooled, mass, score};
}

Tensor ngwp_focal_pool_backward(const Tensor& grad_pooled, const Tensor& scores, const Tensor& mass,
                                const Tensor& score, double eps, double gamma, double lam, bool focal) {
  check_map("ngwp_focal_pool_backward", "scores", scores);
  check_statistic("ngwp_focal_pool_backward", "grad_pooled", grad_pooled, scores);
  check_statistic("ngwp_focal_pool_backward", "mass", mass, scores);
  check_statistic("ngwp_focal_pool_backward", "score", score, scores);
  Tensor grad_scores = torch::stable::empty_like(scores);
  with_acc(acc_dtype(scores), [&](auto type) {
    using acc = decltype(type);
    const auto options = pooling_options<acc>(eps, gamma, lam, scores.size(2) * scores.size(3), focal);
    ngwp_focal_pool_bwd(grad_pooled, any_map(scores), const_data<acc>(mass), const_data<acc>(score), options,
                        any_map(grad_scores));
  });
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("ngwp_focal_pool", TORCH_BOX(&wilson::ngwp_focal_pool));
  m.impl("ngwp_focal_pool_backward", TORCH_BOX(&wilson::ngwp_focal_pool_backward));
}
