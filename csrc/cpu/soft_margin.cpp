// Binary cross-entropy with logits against soft targets on the CPU: LOC, whose target is the old model's sigmoid, and
// SEG. Formulas: math/logistic.h, math/weights.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <numeric>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/common/rows.h"
#include "math/weights.h"

namespace wilson {
namespace {

// The target of a class, from what the second tensor holds: the old model's logit (LOC), or the target itself (SEG).
struct FromLogit {
  template <class acc>
  WILSON_INLINE acc operator()(acc o) const {
    return sigmoid(o, exp_nonpositive(-std::abs(o)));
  }
};
struct AsIs {
  template <class acc>
  WILSON_INLINE acc operator()(acc target) const {
    return target;
  }
};

// The backward computes the derivative anew. Both passes take 0.93 (24x21x32x32) and 0.92 (12x81x56x56) of the
// processor time of a stored derivative for LOC, 0.88 and 0.81 for SEG, counting what pseudo_label_loss pays to write
// it and to read and scale it (float32, 2 threads).

template <class acc>
struct Scratch {
  explicit Scratch(int64_t classes) : logits(classes), targets(classes), grads(classes) {}
  std::vector<Row<acc>> logits, targets, grads;
};

// Sum over the classes of `targets` and the pixels of a chunk of max(s, 0) - s q + log(1 + exp(-|s|)).
template <class Target, class acc>
WILSON_CPU_LEVELS double soft_margin_fwd_chunk(const AnyMap& logits, const AnyMap& targets, const Chunk& chunk,
                                               Target target_of, Scratch<acc>& scratch) {
  const int64_t C = targets.classes;
  double total = 0;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const TileReader<acc> s(logits, chunk.image, first, count, scratch.logits.data());
    const TileReader<acc> q(targets, chunk.image, first, count, scratch.targets.data());
    alignas(64) acc loss[kTile] = {}, product[kTile] = {};
    for (int64_t c = 0; c < C; ++c) {
      const acc *sc = s.row(c), *qc = q.row(c);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        product[j] = times_one_plus(product[j], exp_nonpositive(-std::abs(sc[j])));
        loss[j] += positive_part(sc[j]) - sc[j] * target_of(qc[j]);
      }
      settle(c, C, product, loss);
    }
    const acc sum = sum_of(loss, count);
    total += sum == sum ? sum : margin_loss_with_infinities<acc>(s, q, C, count, target_of);
  }
  return total;
}

// (sigmoid(s) - q) * factor for the classes of `targets`, 0 for those beyond.
template <class Target, class acc>
WILSON_CPU_LEVELS void soft_margin_bwd_chunk(const AnyMap& logits, const AnyMap& targets, const AnyMap& grad,
                                             acc factor, const Chunk& chunk, Target target_of, Scratch<acc>& scratch) {
  const int64_t C = targets.classes;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const TileReader<acc> s(logits, chunk.image, first, count, scratch.logits.data());
    const TileReader<acc> q(targets, chunk.image, first, count, scratch.targets.data());
    const TileWriter<acc> out(grad, chunk.image, first, count, scratch.grads.data());
    for (int64_t c = 0; c < grad.classes; ++c) {
      acc* to = out.row(c);
      if (c < C) {
        const acc *sc = s.row(c), *qc = q.row(c);
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) {
          to[j] = (sigmoid(sc[j], exp_nonpositive(-std::abs(sc[j]))) - target_of(qc[j])) * factor;
        }
      } else {
        std::fill_n(to, kTile, acc(0));
      }
      out.row_done(c);
    }
    out.done();
  }
}

// Sum of the loss of each image over its classes and pixels.
template <class acc, class Target>
std::vector<double> soft_margin_fwd(const AnyMap& logits, const AnyMap& targets, Target target_of) {
  const int64_t B = targets.batch, C = targets.classes, chunks = chunks_of(targets.pixels);
  std::vector<double> chunk_loss(B * chunks), loss(B);
  parallel_chunks(
      B, targets.pixels, C, [&] { return Scratch<acc>(C); },
      [&](const Chunk& chunk, Scratch<acc>& scratch) {
        chunk_loss[chunk.index] = soft_margin_fwd_chunk(logits, targets, chunk, target_of, scratch);
      });
  for (int64_t i = 0; i < B * chunks; ++i) loss[i / chunks] += chunk_loss[i];
  return loss;
}

// factor: of each image.
template <class acc, class Target>
void soft_margin_bwd(const AnyMap& logits, const AnyMap& targets, const std::vector<acc>& factor, Target target_of,
                     const AnyMap& grad) {
  parallel_chunks(
      targets.batch, targets.pixels, grad.classes, [&] { return Scratch<acc>(grad.classes); },
      [&](const Chunk& chunk, Scratch<acc>& scratch) {
        soft_margin_bwd_chunk(logits, targets, grad, factor[chunk.image], chunk, target_of, scratch);
      });
}

// The map without the classes that are not old.
AnyMap old_classes(AnyMap scores, const AnyMap& old) {
  scores.classes = old.classes;
  return scores;
}

Tensor localization_prior_loss(const Tensor& scores, const Tensor& old_logits) {
  check_old_logits("localization_prior_loss", old_logits, "scores", scores);
  Tensor loss = torch::stable::empty({}, acc_dtype(scores, old_logits));
  with_acc(acc_dtype(scores, old_logits), [&](auto type) {
    using acc = decltype(type);
    const AnyMap old = any_map(old_logits);
    const auto images = soft_margin_fwd<acc>(old_classes(any_map(scores), old), old, FromLogit());
    const double sum = std::accumulate(images.begin(), images.end(), 0.0);
    *mutable_data<acc>(loss) = static_cast<acc>(sum / std::max<int64_t>(1, old_logits.numel()));
  });
  return loss;
}

Tensor localization_prior_loss_backward(const Tensor& grad, const Tensor& scores, const Tensor& old_logits) {
  check_old_logits("localization_prior_loss_backward", old_logits, "scores", scores);
  Tensor grad_scores = torch::stable::empty_like(scores);
  with_acc(acc_dtype(scores, old_logits), [&](auto type) {
    using acc = decltype(type);
    const AnyMap old = any_map(old_logits);
    const acc factor = read_scalar<acc>(grad) / std::max<int64_t>(1, old_logits.numel());
    soft_margin_bwd(old_classes(any_map(scores), old), old, std::vector<acc>(old.batch, factor), FromLogit(),
                    any_map(grad_scores));
  });
  return grad_scores;
}

// The factor of each image, from the weights or without.
template <class acc>
std::vector<acc> image_factors(const Tensor& logits, const std::optional<Tensor>& weight) {
  const int64_t B = logits.size(0);
  const int64_t P = logits.size(2) * logits.size(3);
  if (!weight) return std::vector<acc>(B, image_factor(static_cast<acc>(B * P)));
  std::vector<acc> factor = read_vector<acc>(*weight);
  const acc sum = std::accumulate(factor.begin(), factor.end(), acc(0));
  for (acc& f : factor) f = image_factor(f, sum, static_cast<acc>(P));
  return factor;
}

Tensor soft_margin_loss(const Tensor& logits, const Tensor& targets, std::optional<Tensor> image_weight) {
  check_soft_margin("soft_margin_loss", logits, targets, image_weight);
  const Tensor& weight = image_weight ? *image_weight : logits;
  Tensor loss = torch::stable::empty({}, acc_dtype(logits, targets, weight));
  with_acc(acc_dtype(logits, targets, weight), [&](auto type) {
    using acc = decltype(type);
    const auto images = soft_margin_fwd<acc>(any_map(logits), any_map(targets), AsIs());
    const auto factor = image_factors<acc>(logits, image_weight);
    *mutable_data<acc>(loss) = static_cast<acc>(std::inner_product(images.begin(), images.end(), factor.begin(), 0.0));
  });
  return loss;
}

Tensor soft_margin_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets,
                                 std::optional<Tensor> image_weight) {
  check_soft_margin("soft_margin_loss_backward", logits, targets, image_weight);
  Tensor grad_logits = torch::stable::empty_like(logits);
  with_acc(acc_dtype(logits, targets, image_weight ? *image_weight : logits), [&](auto type) {
    using acc = decltype(type);
    auto factor = image_factors<acc>(logits, image_weight);
    for (acc& f : factor) f *= read_scalar<acc>(grad);
    soft_margin_bwd(any_map(logits), any_map(targets), factor, AsIs(), any_map(grad_logits));
  });
  return grad_logits;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("localization_prior_loss", TORCH_BOX(&wilson::localization_prior_loss));
  m.impl("localization_prior_loss_backward", TORCH_BOX(&wilson::localization_prior_loss_backward));
  m.impl("soft_margin_loss", TORCH_BOX(&wilson::soft_margin_loss));
  m.impl("soft_margin_loss_backward", TORCH_BOX(&wilson::soft_margin_loss_backward));
}
