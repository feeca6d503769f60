// Binary cross-entropy of the new classes' scores against a prior from outside, on the CPU. Formulas: math/logistic.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <numeric>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/common/rows.h"

namespace wilson {
namespace {

// The targets t of a call, and of one of its tiles, class by class: `of_tile` is asked first, then `row`, once a class.

// As given.
template <class acc>
struct FromMaps {
  AnyMap maps;

  class Rows {
   public:
    WILSON_INLINE Rows(const FromMaps& from, const Chunk& chunk, int64_t first, int64_t count, Row<acc>* copy)
        : reader_(from.maps, chunk.image, first, count, copy) {}
    WILSON_INLINE const acc* row(int64_t n) { return reader_.row(n); }

   private:
    TileReader<acc> reader_;
  };
  int64_t copied() const { return maps.classes; }  // rows of the copy that a tile may need
};

// sigmoid(A[n, k] / A[n, 0]) with k the class that the old model sees.
template <class acc>
struct FromNames {
  AnyMap old_logits;
  std::vector<acc> of;  // (N, O): the target of each new class where the old model sees an old one

  FromNames(const Tensor& similarity, const Tensor& logits) : old_logits(any_map(logits)) {
    const std::vector<acc> table = read_matrix<acc>(similarity);
    const int64_t C = similarity.size(0), O = old_logits.classes;
    for (int64_t n = O; n < C; ++n) {
      for (int64_t k = 0; k < O; ++k) {
        const acc ratio = table[n * C + k] / table[n * C];
        of.push_back(sigmoid(ratio, exp_nonpositive(-std::abs(ratio))));
      }
    }
  }

  class Rows {
   public:
    WILSON_INLINE Rows(const FromNames& from, const Chunk& chunk, int64_t first, int64_t count, Row<acc>* copy)
        : of_(from.of.data()), classes_(from.old_logits.classes) {
      const auto s = read_tile(from.old_logits, chunk.image, first, count, copy);
      std::copy_n(s.row(0), kTile, target_.value);  // the highest so far
      std::fill_n(seen_, kTile, 0);
      for (int32_t k = 1; k < classes_; ++k) {
        const acc* sk = s.row(k);
        prefetch(sk + kTile);
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) {
          const acc highest = target_.value[j];
          // the first NaN is above all, as in torch.argmax
          const bool higher = (sk[j] > highest) | ((sk[j] != sk[j]) & (highest == highest));
          target_.value[j] = higher ? sk[j] : highest;
          seen_[j] = higher ? k : seen_[j];
        }
      }
    }
    WILSON_INLINE const acc* row(int64_t n) {
      const acc* of_class = of_ + n * classes_;
      for (int64_t j = 0; j < kTile; ++j) target_.value[j] = of_class[seen_[j]];
      return target_.value;
    }

   private:
    const acc* of_;
    int64_t classes_;
    alignas(64) int32_t seen_[kTile];
    Row<acc> target_;
  };
  int64_t copied() const { return old_logits.classes; }
};

template <class acc>
struct Scratch {
  Scratch(int64_t scores, int64_t targets, int64_t grads) : scores(scores), targets(targets), grads(grads) {}
  std::vector<Row<acc>> scores, targets, grads;
};

// Sum over the pixels of a tile of max(z, 0) - z t + log(1 + exp(-|z|)).
template <class acc>
WILSON_INLINE double class_loss(const acc* z, const acc* t, int64_t count) {
  Lanes<acc> linear{}, product{};
  static_assert(kTile / kLanes <= kMaxFactors);
  for (int64_t i = 0; i < kTile; i += kLanes) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) {
      const bool inside = i + j < count;
      const acc x = inside ? z[i + j] : acc(0), e = exp_nonpositive(-std::abs(x));
      linear.value[j] += positive_part(x) - (inside ? x * t[i + j] : acc(0));
      product.value[j] = times_one_plus(product.value[j], inside ? e : acc(0));
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < kLanes; ++j) linear.value[j] += log1p_nonnegative(product.value[j]);
  return linear.sum();
}

// The same where 0 times infinity is 0, for a tile whose loss came out as NaN.
template <class acc>
__attribute__((noinline)) double class_loss_with_infinities(const acc* z, const acc* t, int64_t count) {
  double total = 0;
  for (int64_t j = 0; j < count; ++j) {
    total += linear_part(z[j], t[j]) + log1p_nonnegative(exp_nonpositive(-std::abs(z[j])));
  }
  return total;
}

// scores: of the new classes; labels: theirs, in the image of the chunk. A class whose label is 0 is not looked at.
template <class acc, class Targets>
WILSON_CPU_LEVELS double prior_fwd_chunk(const AnyMap& scores, const Targets& targets, const acc* labels,
                                         const Chunk& chunk, Scratch<acc>& scratch) {
  double total = 0;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const TileReader<acc> z(scores, chunk.image, first, count, scratch.scores.data());
    typename Targets::Rows t(targets, chunk, first, count, scratch.targets.data());
    for (int64_t n = 0; n < scores.classes; ++n) {
      if (labels[n] == acc(0)) continue;
      const acc *zn = z.row(n), *tn = t.row(n);
      double loss = class_loss(zn, tn, count);
      if (loss != loss) loss = class_loss_with_infinities(zn, tn, count);
      total += labels[n] * loss;
    }
  }
  return total;
}

// labels[n] * factor * (sigmoid(z) - t) for the new classes, the last of `grad`; 0 for the others.
template <class acc, class Targets>
WILSON_CPU_LEVELS void prior_bwd_chunk(const AnyMap& scores, const Targets& targets, const acc* labels, acc factor,
                                       const AnyMap& grad, const Chunk& chunk, Scratch<acc>& scratch) {
  const int64_t old = grad.classes - scores.classes;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t count = std::min(kTile, chunk.end - first);
    const TileReader<acc> z(scores, chunk.image, first, count, scratch.scores.data());
    typename Targets::Rows t(targets, chunk, first, count, scratch.targets.data());
    const TileWriter<acc> out(grad, chunk.image, first, count, scratch.grads.data());
    for (int64_t c = 0; c < grad.classes; ++c) {
      const int64_t n = c - old;
      acc* to = out.row(c);
      if (n < 0 || labels[n] == acc(0)) {
        std::fill_n(to, kTile, acc(0));
      } else {
        const acc *zn = z.row(n), *tn = t.row(n);
        const acc scale = labels[n] * factor;
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) {
          to[j] = (sigmoid(zn[j], exp_nonpositive(-std::abs(zn[j]))) - tn[j]) * scale;
        }
      }
      out.row_done(c);
    }
    out.done();
  }
}

// The labels of the last `classes` classes, image by image.
template <class acc>
std::vector<acc> last_labels(const Tensor& image_labels, int64_t classes) {
  const std::vector<acc> all = read_matrix<acc>(image_labels);
  std::vector<acc> labels;
  for (int64_t b = 1; b <= image_labels.size(0); ++b) {
    const auto end = all.begin() + b * image_labels.size(1);
    labels.insert(labels.end(), end - classes, end);
  }
  return labels;
}

template <class acc, class Targets>
double prior_fwd(const AnyMap& scores, const Targets& targets, const std::vector<acc>& labels) {
  const int64_t N = scores.classes;
  std::vector<double> chunk_loss(scores.batch * chunks_of(scores.pixels));
  parallel_chunks(
      scores.batch, scores.pixels, targets.copied(), [&] { return Scratch<acc>(N, targets.copied(), 0); },
      [&](const Chunk& chunk, Scratch<acc>& scratch) {
        const acc* of_image = labels.data() + chunk.image * N;
        if (std::all_of(of_image, of_image + N, [](acc label) { return label == acc(0); })) return;
        chunk_loss[chunk.index] = prior_fwd_chunk(scores, targets, of_image, chunk, scratch);
      });
  return std::accumulate(chunk_loss.begin(), chunk_loss.end(), 0.0);
}

template <class acc, class Targets>
void prior_bwd(const AnyMap& scores, const Targets& targets, const std::vector<acc>& labels, acc factor,
               const AnyMap& grad) {
  const int64_t N = scores.classes;
  parallel_chunks(
      grad.batch, grad.pixels, grad.classes, [&] { return Scratch<acc>(N, targets.copied(), grad.classes); },
      [&](const Chunk& chunk, Scratch<acc>& scratch) {
        prior_bwd_chunk(scores, targets, labels.data() + chunk.image * N, factor, grad, chunk, scratch);
      });
}

// Calls body(targets, scores of the new classes, labels of the new classes), in the accumulation dtype.
template <class Body>
void with_targets(const PriorArguments& given, Body body) {
  with_acc(given.dtype(), [&](auto type) {
    using acc = decltype(type);
    const AnyMap scores = last_classes(any_map(given.scores), given.classes());
    const auto labels = last_labels<acc>(given.image_labels, given.classes());
    if (given.maps) {
      body(FromMaps<acc>{any_map(*given.maps)}, scores, labels);
    } else {
      body(FromNames<acc>(*given.similarity, *given.old_logits), scores, labels);
    }
  });
}

Tensor prior_loss(const Tensor& scores, const Tensor& image_labels, std::optional<Tensor> maps,
                  std::optional<Tensor> similarity, std::optional<Tensor> old_logits) {
  const PriorArguments given{scores, image_labels, maps, similarity, old_logits};
  given.check("prior_loss");
  Tensor loss = torch::stable::empty({}, given.dtype());
  with_targets(given, [&](const auto& targets, const AnyMap& z, const auto& labels) {
    using acc = typename std::decay_t<decltype(labels)>::value_type;
    *mutable_data<acc>(loss) = static_cast<acc>(prior_fwd(z, targets, labels) / given.counted());
  });
  return loss;
}

Tensor prior_loss_backward(const Tensor& grad, const Tensor& scores, const Tensor& image_labels,
                           std::optional<Tensor> maps, std::optional<Tensor> similarity,
                           std::optional<Tensor> old_logits) {
  const PriorArguments given{scores, image_labels, maps, similarity, old_logits};
  given.check("prior_loss_backward");
  Tensor grad_scores = torch::stable::empty_like(scores);
  with_targets(given, [&](const auto& targets, const AnyMap& z, const auto& labels) {
    using acc = typename std::decay_t<decltype(labels)>::value_type;
    prior_bwd(z, targets, labels, read_scalar<acc>(grad) / given.counted(), any_map(grad_scores));
  });
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("prior_loss", TORCH_BOX(&wilson::prior_loss));
  m.impl("prior_loss_backward", TORCH_BOX(&wilson::prior_loss_backward));
}
