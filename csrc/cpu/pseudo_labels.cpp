// Pseudo-labels from the localizer and the old model, and the segmentation loss against them, on the CPU
// (arXiv 2112.01882, Eq. 5 to 7). Formulas: math/pseudo_labels.h, math/logistic.h, math/weights.h. One pass over the
// inputs gives the targets, the loss and its derivative of a tile.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/common/rows.h"
#include "math/pseudo_labels.h"
#include "math/weights.h"

namespace wilson {
namespace {

template <class acc>
struct Options {
  acc alpha;  // weight of the hard labels
  BackgroundMerge<acc> background;
  acc prior_weight;
  int64_t classes, old;                       // C and O
  std::vector<acc> image_labels, log_labels;  // (B, C-1)

  acc gate(int64_t b, int64_t c) const { return c == 0 ? acc(1) : image_labels[b * (classes - 1) + c - 1]; }
  // Added to a score, it has the probability times the gate: nothing where that is 1, which leaves every bit.
  acc log_gate(int64_t b, int64_t c) const { return c == 0 ? acc(0) : log_labels[b * (classes - 1) + c - 1]; }
};

// What the targets are made of.
struct Sources {
  AnyMap scores, old_logits;
  std::optional<AnyMap> prior;  // (B, C - O, H, W)
};

// A prior without weight is none.
Sources sources_of(const Tensor& scores, const Tensor& old_logits, const std::optional<Tensor>& prior,
                   double prior_weight) {
  return {any_map(scores), any_map(old_logits),
          prior && prior_weight != 0 ? std::optional(any_map(*prior)) : std::nullopt};
}

template <class acc>
Options<acc> options_of(const Sources& from, const Tensor& image_labels, double alpha,
                        std::optional<double> background_weight, double prior_weight) {
  Options<acc> options{static_cast<acc>(alpha),
                       BackgroundMerge<acc>(background_weight),
                       static_cast<acc>(prior_weight),
                       from.scores.classes,
                       from.old_logits.classes,
                       read_matrix<acc>(image_labels),
                       {}};
  for (const acc label : options.image_labels) options.log_labels.push_back(std::log(label));
  return options;
}

// The forward stores the derivative, as computing it anew means merging the targets again: both passes take 0.71
// (24x21x32x32) and 0.91 (12x81x56x56) of the processor time of two forwards (float32, 2 threads).

template <class acc>
struct Scratch {
  explicit Scratch(int64_t classes, int64_t of_prior = 0)
      : scores(classes), old_logits(classes), targets(classes), logits(classes), prior(of_prior), found(classes) {}
  std::vector<Row<acc>> scores, old_logits, targets, logits, prior;
  std::vector<uint8_t> found;  // per class: whether q is above 0 at a pixel of the chunk
};

// Below this, e^x is 0 in acc. (exp_nonpositive is 0 already where results stop being normal numbers.)
template <class acc>
constexpr acc kUnderflow = std::is_same_v<acc, double> ? acc(-745.13) : acc(-103.97);

// q of the background and the new classes, into their rows of scratch.targets, which hold the exponentials. What is
// largest, the scores tell, and a class that has a probability, however small, is found.
template <class acc>
WILSON_INLINE void label_tile(const Tile<const acc>& z, const acc* peak, acc* sum, const Options<acc>& options,
                              int64_t b, int64_t count, Scratch<acc>& scratch) {
  const int64_t C = options.classes, O = options.old;
  alignas(64) acc best[kTile];  // of those that the labels allow, among which the hard label is chosen
  std::copy_n(z.row(0), kTile, best);
  for (int64_t c = 1; c < C; ++c) {
    if (options.gate(b, c) == acc(0)) continue;
    const acc *zc = z.row(c), gate = options.log_gate(b, c);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) best[j] = zc[j] + gate > best[j] ? zc[j] + gate : best[j];
  }
  int64_t lost = 0;  // pixels where all that is allowed has probability 0: every class is the largest then
#pragma omp simd reduction(+ : lost)
  for (int64_t j = 0; j < kTile; ++j) lost += best[j] - peak[j] < kUnderflow<acc>;
  const acc hard = options.alpha, soft = acc(1) - options.alpha;
#pragma omp simd
  for (int64_t j = 0; j < kTile; ++j) sum[j] = soft / sum[j];
  for (int64_t c = 0; c < C; c = c == 0 ? O : c + 1) {  // the classes that are the localizer's
    const acc* zc = z.row(c);
    acc* q = scratch.targets[c].value;
    const acc gate = options.gate(b, c), log_gate = options.log_gate(b, c);
    if (gate == acc(0)) {
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) q[j] = acc(0) * sum[j];  // NaN in a pixel whose softmax is
    } else {
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        q[j] = pseudo_label(q[j] * gate * sum[j], zc[j] + log_gate == best[j], hard);
      }
    }
    for (int64_t j = 0; lost > 0 && j < kTile; ++j) {
      if (best[j] - peak[j] < kUnderflow<acc>) q[j] = hard + acc(0) * sum[j];
    }
    if (c > 0 && !scratch.found[c]) {
      for (int64_t j = 0; j < count && !scratch.found[c]; ++j) {
        scratch.found[c] =
            q[j] > acc(0) || (gate > acc(0) && soft > acc(0) && zc[j] + log_gate - peak[j] >= kUnderflow<acc>);
      }
    }
  }
}

// The same of m mixed with a prior, which is read once and where there is a label.
template <class acc>
WILSON_INLINE void label_tile_with_prior(const Tile<const acc>& z, const TileReader<acc>& prior, const acc* peak,
                                         acc* sum, const Options<acc>& options, int64_t b, int64_t count,
                                         Scratch<acc>& scratch) {
  const int64_t C = options.classes, O = options.old;
  const acc weight = options.prior_weight;
  alignas(64) acc best[kTile] = {}, highest[kTile] = {};  // highest: of the gated prior
#pragma omp simd
  for (int64_t j = 0; j < kTile; ++j) sum[j] = acc(1) / sum[j];
  for (int64_t c = 1; c < C; ++c) {
    acc* m = scratch.targets[c].value;
    const acc gate = options.gate(b, c);
    if (gate == acc(0)) {
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) m[j] = acc(0) * sum[j];  // NaN in a pixel whose softmax is
      continue;
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) m[j] *= gate * sum[j];
    if (c >= O) {
      const acc* p = prior.row(c - O);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        highest[j] = highest_of(highest[j], p[j] * gate);
        m[j] = mixed_with_prior(m[j], p[j] * gate, weight);
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) best[j] = highest_of(best[j], m[j]);
  }
  acc* m0 = scratch.targets[0].value;
#pragma omp simd
  for (int64_t j = 0; j < kTile; ++j) {
    m0[j] = mixed_with_prior(m0[j] * sum[j], acc(1) - highest[j], weight);
    best[j] = highest_of(best[j], m0[j]);
  }
  const acc hard = options.alpha, soft = acc(1) - options.alpha;
  for (int64_t c = 0; c < C; c = c == 0 ? O : c + 1) {
    acc* q = scratch.targets[c].value;
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) q[j] = pseudo_label(soft * q[j], q[j] == best[j], hard);
    if (c == 0 || scratch.found[c]) continue;
    const acc *zc = z.row(c), gate = options.gate(b, c), log_gate = options.log_gate(b, c);
    const bool counts = gate > acc(0) && soft > acc(0) && weight < acc(1);
    for (int64_t j = 0; j < count && !scratch.found[c]; ++j) {
      scratch.found[c] = q[j] > acc(0) || (counts && zc[j] + log_gate - peak[j] >= kUnderflow<acc>);
    }
  }
}

// The targets of a tile, row by row into scratch.targets.
template <bool kOldYields, class acc>
WILSON_INLINE void merge_tile(const Sources& from, const Options<acc>& options, int64_t b, int64_t first, int64_t count,
                              Scratch<acc>& scratch) {
  const int64_t C = options.classes, O = options.old;
  const auto z = read_tile(from.scores, b, first, count, scratch.scores.data());
  const TileReader<acc> o(from.old_logits, b, first, count, scratch.old_logits.data());
  Row<acc>* rows = scratch.targets.data();
  alignas(64) acc peak[kTile], sum[kTile];  // of all classes
  find_peaks(z, C, peak);
  exponentials(z, C, peak, rows, sum);
  alignas(64) acc left[kTile];  // to old classes by the new ones, if they yield
  if constexpr (kOldYields) {
    std::fill_n(left, kTile, acc(0));
    for (int64_t c = O; c < C; ++c) {
      const acc *e = rows[c].value, gate = options.gate(b, c);
      if (gate == acc(0)) continue;
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) left[j] += e[j] * gate;
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) left[j] = left_to_old(left[j], acc(1) / sum[j]);
  }
  if (from.prior) {
    const TileReader<acc> prior(*from.prior, b, first, count, scratch.prior.data());
    label_tile_with_prior(z, prior, peak, sum, options, b, count, scratch);
  } else {
    label_tile(z, peak, sum, options, b, count, scratch);
  }
  acc* q = rows[0].value;
  const acc* o0 = o.row(0);
  const BackgroundMerge<acc> background = options.background;
#pragma omp simd
  for (int64_t j = 0; j < kTile; ++j) {
    acc omega = sigmoid(o0[j], exp_nonpositive(-std::abs(o0[j])));
    if (kOldYields) omega *= left[j];
    q[j] = background.of(omega, q[j]);
  }
  for (int64_t c = 1; c < O; ++c) {
    const acc* oc = o.row(c);
    acc* omega = rows[c].value;
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      omega[j] = sigmoid(oc[j], exp_nonpositive(-std::abs(oc[j])));
      if (kOldYields) omega[j] *= left[j];
    }
  }
}

template <bool kOldYields, class acc>
WILSON_CPU_LEVELS void merge_pseudo_labels_fwd_chunk(const Sources& from, const AnyMap& targets,
                                                     const Options<acc>& options, const Chunk& chunk,
                                                     Scratch<acc>& scratch) {
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    merge_tile<kOldYields>(from, options, chunk.image, first, count, scratch);
    const TileWriter<acc> out(targets, chunk.image, first, count, scratch.targets.data());
    for (int64_t c = 0; c < options.classes; ++c) {
      std::copy_n(scratch.targets[c].value, kTile, out.row(c));
      out.row_done(c);
    }
    out.done();
  }
}

// Sum over classes and pixels of the loss; sigmoid(s) - q goes to `derivative` if there is one.
template <bool kOldYields, class acc>
WILSON_CPU_LEVELS double pseudo_label_loss_fwd_chunk(const AnyMap& logits, const Sources& from,
                                                     const AnyMap* derivative, const Options<acc>& options,
                                                     const Chunk& chunk, Scratch<acc>& scratch) {
  double total = 0;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    merge_tile<kOldYields>(from, options, chunk.image, first, count, scratch);
    const TileReader<acc> s(logits, chunk.image, first, count, scratch.logits.data());
    alignas(64) acc loss[kTile] = {}, product[kTile] = {};
    const TileWriter<acc> out(derivative ? *derivative : logits, chunk.image, first, count, scratch.scores.data());
    for (int64_t c = 0; c < options.classes; ++c) {
      const acc *sc = s.row(c), *q = scratch.targets[c].value;
      if (derivative) {
        acc* to = out.row(c);
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) {
          const acc x = sc[j], target = q[j], e = exp_nonpositive(-std::abs(x));
          product[j] = times_one_plus(product[j], e);
          loss[j] += positive_part(x) - x * target;
          to[j] = sigmoid(x, e) - target;
        }
        out.row_done(c);
      } else {
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) {
          product[j] = times_one_plus(product[j], exp_nonpositive(-std::abs(sc[j])));
          loss[j] += positive_part(sc[j]) - sc[j] * q[j];
        }
      }
      settle(c, options.classes, product, loss);
    }
    if (derivative) out.done();
    const acc sum = sum_of(loss, count);
    total += sum == sum ? sum
                        : margin_loss_with_infinities<acc>(s, tile_of(scratch.targets.data()), options.classes, count,
                                                           [](acc target) { return target; });
  }
  return total;
}

template <class acc>
WILSON_CPU_LEVELS void pseudo_label_loss_bwd_chunk(const AnyMap& derivative, const AnyMap& grad, acc factor,
                                                   const Chunk& chunk, Scratch<acc>& scratch) {
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const TileReader<acc> d(derivative, chunk.image, first, count, scratch.logits.data());
    const TileWriter<acc> out(grad, chunk.image, first, count, scratch.targets.data());
    for (int64_t c = 0; c < grad.classes; ++c) {
      const acc* from = d.row(c);
      acc* to = out.row(c);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) to[j] = from[j] * factor;
      out.row_done(c);
    }
    out.done();
  }
}

// Calls run(chunk, scratch) for all chunks; it notes the new classes that it found. Returns the weights of the images:
// 1 where the new classes found are the labelled ones.
template <class acc, class Run>
std::vector<acc> image_weights(const Sources& from, const Options<acc>& options, Run run) {
  const int64_t images = from.scores.batch, pixels = from.scores.pixels, C = options.classes;
  const int64_t of_prior = from.prior ? C - options.old : 0, chunks = chunks_of(pixels);
  std::vector<uint8_t> found(images * chunks * C);
  parallel_chunks(
      images, pixels, C, [&] { return Scratch<acc>(C, of_prior); },
      [&](const Chunk& chunk, Scratch<acc>& scratch) {
        std::fill(scratch.found.begin(), scratch.found.end(), uint8_t(0));
        run(chunk, scratch);
        std::copy(scratch.found.begin(), scratch.found.end(), found.begin() + chunk.index * C);
      });
  std::vector<acc> weight(images, acc(1));
  for (int64_t b = 0; b < images; ++b) {
    for (int64_t c = options.old; c < C; ++c) {
      bool anywhere = false;
      for (int64_t k = 0; k < chunks; ++k) anywhere |= found[(b * chunks + k) * C + c];
      if (anywhere != (options.gate(b, c) > acc(0))) weight[b] = acc(0);
    }
  }
  return weight;
}

std::tuple<Tensor, Tensor> merge_pseudo_labels(const Tensor& localizer_scores, const Tensor& old_logits,
                                               const Tensor& image_labels, double alpha,
                                               std::optional<double> background_weight, bool old_yields,
                                               std::optional<Tensor> prior, double prior_weight) {
  check_pseudo_labels("merge_pseudo_labels", localizer_scores, old_logits, image_labels, prior);
  const ScalarType dtype = acc_dtype(localizer_scores, old_logits, image_labels, prior ? *prior : localizer_scores);
  Tensor targets = torch::stable::empty(localizer_scores.sizes(), dtype);
  Tensor weight = torch::stable::empty({localizer_scores.size(0)}, dtype);
  with_acc(dtype, [&](auto type) {
    using acc = decltype(type);
    const Sources from = sources_of(localizer_scores, old_logits, prior, prior_weight);
    const AnyMap out = any_map(targets);
    const auto options = options_of<acc>(from, image_labels, alpha, background_weight, prior_weight);
    const auto weights = image_weights(from, options, [&](const Chunk& chunk, Scratch<acc>& scratch) {
      if (old_yields) return merge_pseudo_labels_fwd_chunk<true>(from, out, options, chunk, scratch);
      merge_pseudo_labels_fwd_chunk<false>(from, out, options, chunk, scratch);
    });
    std::copy(weights.begin(), weights.end(), mutable_data<acc>(weight));
  });
  return {targets, weight};
}

std::tuple<Tensor, Tensor, Tensor> pseudo_label_loss(const Tensor& logits, const Tensor& localizer_scores,
                                                     const Tensor& old_logits, const Tensor& image_labels, double alpha,
                                                     std::optional<double> background_weight, bool old_yields,
                                                     std::optional<Tensor> prior, double prior_weight,
                                                     bool with_derivative) {
  check_pseudo_label_loss("pseudo_label_loss", logits, localizer_scores, old_logits, image_labels, prior);
  const ScalarType dtype =
      acc_dtype(logits, localizer_scores, old_logits, image_labels, prior ? *prior : localizer_scores);
  const int64_t B = logits.size(0);
  Tensor loss = torch::stable::empty({}, dtype), factor = torch::stable::empty({B}, dtype),
         derivative = with_derivative ? torch::stable::empty_like(logits) : torch::stable::empty({0}, dtype);
  with_acc(dtype, [&](auto type) {
    using acc = decltype(type);
    const AnyMap s = any_map(logits);
    const Sources from = sources_of(localizer_scores, old_logits, prior, prior_weight);
    const std::optional<AnyMap> out = with_derivative ? std::optional(any_map(derivative)) : std::nullopt;
    const auto options = options_of<acc>(from, image_labels, alpha, background_weight, prior_weight);
    std::vector<double> chunk_loss(B * chunks_of(s.pixels));
    const auto weights = image_weights(from, options, [&](const Chunk& chunk, Scratch<acc>& scratch) {
      const AnyMap* to = out ? &*out : nullptr;
      chunk_loss[chunk.index] = old_yields ? pseudo_label_loss_fwd_chunk<true>(s, from, to, options, chunk, scratch)
                                           : pseudo_label_loss_fwd_chunk<false>(s, from, to, options, chunk, scratch);
    });
    const acc sum = std::accumulate(weights.begin(), weights.end(), acc(0));
    acc* factors = mutable_data<acc>(factor);
    for (int64_t b = 0; b < B; ++b) factors[b] = image_factor(weights[b], sum, static_cast<acc>(s.pixels));
    double total = 0;
    for (size_t i = 0; i < chunk_loss.size(); ++i) total += factors[i / chunks_of(s.pixels)] * chunk_loss[i];
    *mutable_data<acc>(loss) = static_cast<acc>(total);
  });
  return {loss, factor, derivative};
}

Tensor pseudo_label_loss_backward(const Tensor& grad, const Tensor& factor, const Tensor& derivative) {
  check_map("pseudo_label_loss_backward", "derivative", derivative);
  check_per_image("pseudo_label_loss_backward", "factor", factor, derivative);
  Tensor grad_logits = torch::stable::empty_like(derivative);
  with_acc(acc_dtype(factor, derivative), [&](auto type) {
    using acc = decltype(type);
    const AnyMap from = any_map(derivative), to = any_map(grad_logits);
    auto factors = read_vector<acc>(factor);
    for (acc& f : factors) f *= read_scalar<acc>(grad);
    parallel_chunks(
        from.batch, from.pixels, from.classes, [&] { return Scratch<acc>(from.classes); },
        [&](const Chunk& chunk, Scratch<acc>& scratch) {
          pseudo_label_loss_bwd_chunk(from, to, factors[chunk.image], chunk, scratch);
        });
  });
  return grad_logits;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("merge_pseudo_labels", TORCH_BOX(&wilson::merge_pseudo_labels));
  m.impl("pseudo_label_loss", TORCH_BOX(&wilson::pseudo_label_loss));
  m.impl("pseudo_label_loss_backward", TORCH_BOX(&wilson::pseudo_label_loss_backward));
}
