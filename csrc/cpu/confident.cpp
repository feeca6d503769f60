// Choosing confident pixels and the loss on them on the CPU. Published code of WILSON (arXiv 2112.01882).
// Formulas: math/confident.h, math/weights.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/common/rows.h"
#include "math/confident.h"
#include "math/weights.h"

namespace wilson {
namespace {

// ---------------------------------------------------------------------------------------------------- confident pixels

// Classes that can claim pixels: the background and those with a label; the gate makes the others 0.
template <class acc>
struct Candidates {
  std::vector<int64_t> classes;
  std::vector<acc> gate;
};

template <class acc>
Candidates<acc> candidates(const acc* labels, int64_t classes) {
  Candidates<acc> found{{0}, {acc(1)}};
  for (int64_t c = 1; c < classes; ++c) {
    if (labels[c - 1] != acc(0)) found.classes.push_back(c), found.gate.push_back(labels[c - 1]);
  }
  return found;
}

// One class of a tile, gated.
template <class acc>
WILSON_INLINE void read_gated(const AnyMap& refined, int64_t b, int64_t c, acc gate, int64_t first, int64_t count,
                              Row<acc>* row) {
  with_type_of(refined.dtype, [&](auto type) __attribute__((always_inline)) {
    const auto* from = refined.image<const decltype(type)>(b) + c * refined.class_stride;
    if (refined.unit_stride()) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) row->value[j] = static_cast<acc>(from[first + j]) * gate;
    } else {
      for (int64_t j = 0; j < count; ++j) row->value[j] = static_cast<acc>(from[refined.offset(first + j)]) * gate;
    }
  });
}

template <class acc>
WILSON_CPU_LEVELS void confident_labels_peaks(const AnyMap& refined, int64_t b, const Candidates<acc>& candidates,
                                              acc* peak) {
  Row<acc> row;
  for (size_t k = 0; k < candidates.classes.size(); ++k) {
    acc highest = -std::numeric_limits<acc>::infinity();
    acc sum = 0;  // NaN if a score is, or if one is inf and another -inf: inf as the peak claims nothing either
    for (int64_t first = 0; first < refined.pixels; first += kTile) {
      const int64_t count = std::min(kTile, refined.pixels - first);
      read_gated(refined, b, candidates.classes[k], candidates.gate[k], first, count, &row);
#pragma omp simd reduction(max : highest) reduction(+ : sum)
      for (int64_t j = 0; j < count; ++j) {
        highest = row.value[j] > highest ? row.value[j] : highest;
        sum += row.value[j];
      }
    }
    peak[k] = sum == sum ? highest : sum;
  }
}

template <class acc>
WILSON_CPU_LEVELS void confident_labels_fwd(const AnyMap& refined, int64_t b, const Candidates<acc>& candidates,
                                            const acc* threshold, int64_t ignore_index, int64_t* label,
                                            int64_t* count_of) {
  Row<acc> row;
  int32_t claims[kTile], owner[kTile];
  for (int64_t first = 0; first < refined.pixels; first += kTile) {
    const int64_t count = std::min(kTile, refined.pixels - first);
    std::fill_n(claims, kTile, 0);
    std::fill_n(owner, kTile, 0);
    for (size_t k = 0; k < candidates.classes.size(); ++k) {
      const int32_t c = static_cast<int32_t>(candidates.classes[k]);
      const acc least = threshold[k];
      read_gated(refined, b, c, candidates.gate[k], first, count, &row);
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const bool claimed = row.value[j] > least;
        claims[j] += claimed;
        owner[j] = claimed ? c : owner[j];
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      const bool one = claims[j] == 1;
      label[first + j] = one ? owner[j] : ignore_index;
      count_of[owner[j]] += one;
    }
  }
}

std::tuple<Tensor, Tensor> confident_labels(const Tensor& refined, const Tensor& image_labels, double background_ratio,
                                            double class_ratio, double floor, int64_t ignore_index) {
  check_map("confident_labels", "refined", refined);
  check_image_labels("confident_labels", image_labels, refined);
  const int64_t B = refined.size(0), C = refined.size(1), H = refined.size(2), W = refined.size(3);
  Tensor labels = torch::stable::empty({B, H, W}, ScalarType::Long),
         counts = torch::stable::empty({B, C}, ScalarType::Long);
  std::fill_n(mutable_data<int64_t>(counts), B * C, int64_t(0));
  with_acc(acc_dtype(refined), [&](auto type) {
    using acc = decltype(type);
    const AnyMap map = any_map(refined);
    const auto y = read_matrix<acc>(image_labels);
    const Threshold<acc> threshold{static_cast<acc>(background_ratio), static_cast<acc>(class_ratio),
                                   static_cast<acc>(floor)};
    torch::stable::parallel_for(0, B, std::max<int64_t>(1, kGrain / (C * H * W)), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const auto able = candidates(y.data() + b * (C - 1), C);
        std::vector<acc> least(able.classes.size());
        confident_labels_peaks(map, b, able, least.data());
        for (size_t k = 0; k < least.size(); ++k) least[k] = threshold.of(able.classes[k], least[k]);
        confident_labels_fwd(map, b, able, least.data(), ignore_index, mutable_data<int64_t>(labels) + b * H * W,
                             mutable_data<int64_t>(counts) + b * C);
      }
    });
  });
  return {labels, counts};
}

// ---------------------------------------------------------------------------------------------------- the loss on them

// The weight of each image and class; all 0 for an image that does not count.
template <class acc>
std::vector<acc> balanced_weights(const Tensor& counts, const Tensor& image_labels) {
  const int64_t B = counts.size(0), C = counts.size(1);
  const auto n = read_matrix<int64_t>(counts);
  const auto y = read_matrix<double>(image_labels);
  std::vector<acc> weight(B * C, acc(0));
  for (int64_t b = 0; b < B; ++b) {
    const int64_t* of = n.data() + b * C;
    const int64_t sum = std::accumulate(of, of + C, int64_t(0));
    int64_t missing = 0;
    for (int64_t c = 0; c < C; ++c) missing += missing_class(c == 0 || y[b * (C - 1) + c - 1] > 0, of[c]);
    for (int64_t c = 0; missing == 0 && c < C; ++c) weight[b * C + c] = class_weight<acc>(of[c], sum);
  }
  return weight;
}

template <class acc>
struct SoftmaxTile {
  alignas(64) acc peak[kTile], sum[kTile];
  int32_t label[kTile];
  acc weight[kTile];  // 0 where the pixel does not count
};

// Labels and weights of a tile; whether any pixel counts.
template <class acc>
WILSON_INLINE bool read_weights(const LabelMap& labels, const acc* class_weight, int64_t b, int64_t first,
                                int64_t count, SoftmaxTile<acc>& tile) {
  labels.read(b, first / labels.width, first % labels.width, count, tile.label);
  bool any = false;
  for (int64_t j = 0; j < kTile; ++j) {
    if (j >= count) tile.label[j] = -1;
    tile.weight[j] = tile.label[j] < 0 ? acc(0) : class_weight[tile.label[j]];
    any |= tile.weight[j] != acc(0);
  }
  return any;
}

// Pixels that do not count may hold anything: their exponentials are 0 where they would make NaN of a weight of 0.
template <class acc>
WILSON_INLINE void drop_undefined(SoftmaxTile<acc>& tile, int64_t classes, Row<acc>* terms) {
  int64_t undefined = 0;
#pragma omp simd reduction(+ : undefined)
  for (int64_t j = 0; j < kTile; ++j) undefined += tile.sum[j] != tile.sum[j];
  for (int64_t j = 0; undefined > 0 && j < kTile; ++j) {
    if (tile.weight[j] != acc(0) || tile.sum[j] == tile.sum[j]) continue;
    tile.sum[j] = acc(0);
    for (int64_t c = 0; c < classes; ++c) terms[c].value[j] = acc(0);
  }
}

// The backward computes the derivative anew. Both passes take 1.00 (24x21x32x32) and 0.61 (12x81x56x56) of the
// processor time of a stored derivative where all pixels count, 0.88 and 0.83 where half of them do, counting what
// pseudo_label_loss pays to write it and to read and scale it (float32, 2 threads).

template <class acc>
struct Scratch {
  explicit Scratch(int64_t classes) : scores(classes), terms(classes) {}
  std::vector<Row<acc>> scores, terms;
};

template <class acc>
WILSON_CPU_LEVELS double balanced_cross_entropy_fwd_chunk(const AnyMap& scores, const LabelMap& labels,
                                                          const acc* class_weight, const Chunk& chunk,
                                                          Scratch<acc>& scratch) {
  double total = 0;
  SoftmaxTile<acc> tile;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    if (!read_weights(labels, class_weight, chunk.image, first, count, tile)) continue;
    const auto z = read_tile(scores, chunk.image, first, count, scratch.scores.data());
    find_peaks(z, scores.classes, tile.peak);
    exponentials(z, scores.classes, tile.peak, scratch.terms.data(), tile.sum);
    alignas(64) acc loss[kTile];
    for (int64_t j = 0; j < kTile; ++j) loss[j] = tile.peak[j] - z.row(std::max(tile.label[j], 0))[j];
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      const acc entropy = loss[j] + log1p_nonnegative(tile.sum[j] - acc(1));
      loss[j] = tile.weight[j] != acc(0) ? tile.weight[j] * entropy : acc(0);
    }
    total += sum_of(loss, count);
  }
  return total;
}

template <class acc>
WILSON_CPU_LEVELS void balanced_cross_entropy_bwd_chunk(const AnyMap& scores, const LabelMap& labels,
                                                        const acc* class_weight, acc factor, const AnyMap& grad,
                                                        const Chunk& chunk, Scratch<acc>& scratch) {
  SoftmaxTile<acc> tile;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first), C = scores.classes;
    Row<acc>* terms = scratch.terms.data();
    const bool any = read_weights(labels, class_weight, chunk.image, first, count, tile);
    if (any) {
      const auto z = read_tile(scores, chunk.image, first, count, scratch.scores.data());
      find_peaks(z, C, tile.peak);
      exponentials(z, C, tile.peak, terms, tile.sum);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        tile.weight[j] *= factor;
        tile.sum[j] = tile.weight[j] / tile.sum[j];
      }
      drop_undefined(tile, C, terms);
    }
    const TileWriter<acc> out(grad, chunk.image, first, count, terms);
    for (int64_t c = 0; c < C; ++c) {
      const acc* e = terms[c].value;
      acc* to = out.row(c);
      if (any) {
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) {
          to[j] = e[j] * tile.sum[j] - (tile.label[j] == static_cast<int32_t>(c) ? tile.weight[j] : acc(0));
        }
      } else {
        std::fill_n(to, kTile, acc(0));
      }
      out.row_done(c);
    }
    out.done();
  }
}

Tensor balanced_cross_entropy(const Tensor& scores, const Tensor& labels, const Tensor& counts,
                              const Tensor& image_labels, int64_t ignore_index) {
  check_balanced("balanced_cross_entropy", scores, labels, counts, image_labels);
  Tensor loss = torch::stable::empty({}, acc_dtype(scores));
  with_acc(acc_dtype(scores), [&](auto type) {
    using acc = decltype(type);
    const AnyMap z = any_map(scores);
    const LabelMap index = label_map(labels, z.classes, ignore_index);
    const auto weight = balanced_weights<acc>(counts, image_labels);
    std::vector<double> chunk_loss(z.batch * chunks_of(z.pixels));
    parallel_chunks(
        z.batch, z.pixels, z.classes, [&] { return Scratch<acc>(z.classes); },
        [&](const Chunk& chunk, Scratch<acc>& scratch) {
          const acc* class_weight = weight.data() + chunk.image * z.classes;
          chunk_loss[chunk.index] = balanced_cross_entropy_fwd_chunk(z, index, class_weight, chunk, scratch);
        });
    const double sum = std::accumulate(chunk_loss.begin(), chunk_loss.end(), 0.0);
    *mutable_data<acc>(loss) = static_cast<acc>(sum / std::max<int64_t>(1, labels.numel()));
  });
  return loss;
}

Tensor balanced_cross_entropy_backward(const Tensor& grad, const Tensor& scores, const Tensor& labels,
                                       const Tensor& counts, const Tensor& image_labels, int64_t ignore_index) {
  check_balanced("balanced_cross_entropy_backward", scores, labels, counts, image_labels);
  Tensor grad_scores = torch::stable::empty_like(scores);
  with_acc(acc_dtype(scores), [&](auto type) {
    using acc = decltype(type);
    const AnyMap z = any_map(scores), out = any_map(grad_scores);
    const LabelMap index = label_map(labels, z.classes, ignore_index);
    const auto weight = balanced_weights<acc>(counts, image_labels);
    const acc factor = read_scalar<acc>(grad) / std::max<int64_t>(1, labels.numel());
    parallel_chunks(
        z.batch, z.pixels, z.classes, [&] { return Scratch<acc>(z.classes); },
        [&](const Chunk& chunk, Scratch<acc>& scratch) {
          const acc* class_weight = weight.data() + chunk.image * z.classes;
          balanced_cross_entropy_bwd_chunk(z, index, class_weight, factor, out, chunk, scratch);
        });
  });
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("confident_labels", TORCH_BOX(&wilson::confident_labels));
  m.impl("balanced_cross_entropy", TORCH_BOX(&wilson::balanced_cross_entropy));
  m.impl("balanced_cross_entropy_backward", TORCH_BOX(&wilson::balanced_cross_entropy_backward));
}
