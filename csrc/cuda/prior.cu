// Binary cross-entropy of the new classes' scores against a prior from outside, on NVIDIA GPUs. Formulas:
// math/logistic.h. How a kernel goes through a tile: cuda/common/tiles.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"

namespace wilson {
namespace {

// What targets are made from, and the targets of a thread's pixels: all threads fetch, then prepare, then take them
// class by class.

// The targets themselves.
struct FromMaps {
  AnyMap maps;

  AnyMap map() const { return maps; }
  // Whether the warps of a block exchange numbers.
  static constexpr bool exchanges = false;

  template <class Moves>
  class Targets {
   public:
    using acc = typename Moves::acc;
    __device__ Targets(const FromMaps& from, Place place, int& offset) : pixels_(from.maps, place, offset) {}
    __device__ void fetch() const { pixels_.fetch(); }
    __device__ void prepare() {}
    __device__ void load(int n, acc (&target)[Moves::n]) const {
      const auto pack = pixels_.load(n);
#pragma unroll
      for (int i = 0; i < Moves::n; ++i) target[i] = static_cast<acc>(pack.value[i]);
    }

   private:
    const Pixels<Moves> pixels_;
  };
};

// sigmoid(A[n, k] / A[n, 0]) with k the class that the old model sees.
struct FromNames {
  AnyMap old_logits;
  AnyMatrix similarity;

  AnyMap map() const { return old_logits; }
  static constexpr bool exchanges = true;

  template <class Moves>
  class Targets {
   public:
    using acc = typename Moves::acc;
    static constexpr int n_pixels = Moves::n;

    __device__ Targets(const FromNames& from, Place place, int& offset)
        : similarity_(from.similarity),
          classes_(static_cast<int>(from.old_logits.classes)),
          pixels_(from.old_logits, place, offset) {}
    __device__ void fetch() const { pixels_.fetch(); }

    // Each warp looks at its own classes; the first NaN is above all, as in torch.argmax.
    __device__ void prepare() {
      acc highest[n_pixels], peak[n_pixels];
#pragma unroll
      for (int i = 0; i < n_pixels; ++i) {
        highest[i] = -std::numeric_limits<acc>::infinity();
        seen_[i] = static_cast<acc>(threadIdx.y < classes_ ? threadIdx.y : 0);
      }
#pragma unroll 1
      for (int k = threadIdx.y; k < classes_; k += blockDim.y) {
        const auto pack = pixels_.load(k);
#pragma unroll
        for (int i = 0; i < n_pixels; ++i) {
          const acc s = static_cast<acc>(pack.value[i]);
          if (s > highest[i] || (s != s && highest[i] == highest[i])) {
            highest[i] = s;
            seen_[i] = static_cast<acc>(k);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < n_pixels; ++i) peak[i] = highest[i];
      across_warps(peak, [](acc x, acc y) { return x != x || x >= y ? x : y; });
#pragma unroll
      for (int i = 0; i < n_pixels; ++i) {
        const bool highest_here = peak[i] == peak[i] ? highest[i] == peak[i] : highest[i] != highest[i];
        if (!highest_here) seen_[i] = static_cast<acc>(classes_);
      }
      across_warps(seen_, [](acc x, acc y) { return min(x, y); });
    }

    __device__ void load(int n, acc (&target)[n_pixels]) const {
      const int64_t row = classes_ + n;
      const acc background = similarity_.at<acc>(row, 0);
#pragma unroll
      for (int i = 0; i < n_pixels; ++i) {
        const acc ratio = similarity_.at<acc>(row, static_cast<int64_t>(seen_[i])) / background;
        target[i] = sigmoid(ratio, exp(-abs(ratio)));
      }
    }

   private:
    const AnyMatrix similarity_;
    const int classes_;  // old ones
    const Pixels<Moves> pixels_;
    acc seen_[n_pixels];
  };
};

// The labels of the new classes, the last columns of the matrix.
struct NewLabels {
  AnyMatrix labels;
  int64_t first;
  int classes;

  template <class acc>
  __device__ acc of(int64_t b, int n) const {
    return labels.at<acc>(b, first + n);
  }
  // Whether an image shows a new class. Each warp looks for itself.
  template <class acc>
  __device__ bool any(int64_t b) const {
    acc shown = 0;
    for (int n = threadIdx.x; n < classes; n += kLanes) shown += of<acc>(b, n) != acc(0) ? acc(1) : acc(0);
    return warp_sum(shown) > acc(0);
  }
};

// sums: (B, tiles), of the losses of the new classes, the last of `scores`. A class whose label is 0 is not looked at.
template <class Moves, class Source>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    prior_loss_fwd_kernel(AnyMap scores, Source source, NewLabels labels, int offset, unsigned tiles,
                          typename Moves::acc* __restrict__ sums) {
  using acc = typename Moves::acc;
  const Place place = place_of(tiles);
  const Pixels<Moves> z(scores, place, offset);
  typename Source::template Targets<Moves> t(source, place, offset);
  acc total = 0;
  if (labels.any<acc>(place.b)) {
    fetch<Moves>(z, t);
    t.prepare();
    const int old = static_cast<int>(scores.classes) - labels.classes;
#pragma unroll 1
    for (int n = threadIdx.y; n < labels.classes; n += blockDim.y) {
      const acc label = labels.of<acc>(place.b, n);
      if (label == acc(0)) continue;
      const auto pack = z.load(old + n);
      acc target[Moves::n];
      t.load(n, target);
      LogisticSum<acc> loss;
#pragma unroll
      for (int i = 0; i < Moves::n; ++i) {
        const acc x = static_cast<acc>(pack.value[i]);
        if (z.inside(i)) loss.add(x, target[i], exp(-abs(x)));
      }
      total += label * loss.value();
    }
  }
  total = block_sum(total);
  if (threadIdx.x == 0 && threadIdx.y == 0) sums[blockIdx.x] = total;
}

// y (sigmoid(z) - t) * grad / counted for the new classes, 0 for the others.
template <class Moves, class Source>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    prior_loss_bwd_kernel(AnyMatrix grad, AnyMap scores, Source source, NewLabels labels, int64_t counted, int offset,
                          unsigned tiles, AnyMap grad_scores) {
  using acc = typename Moves::acc;
  const Place place = place_of(tiles);
  const Pixels<Moves> z(scores, place, offset);
  typename Source::template Targets<Moves> t(source, place, offset);
  const Pixels<Moves> out(grad_scores, place, offset);
  const bool any = labels.any<acc>(place.b);
  if (any) {
    fetch<Moves>(z, t);
    t.prepare();
  }
  const acc factor = grad.at<acc>(0) / static_cast<acc>(counted);
  const int classes = static_cast<int>(scores.classes), old = classes - labels.classes;
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    acc value[Moves::n] = {};
    const acc label = any && c >= old ? labels.of<acc>(place.b, c - old) : acc(0);
    if (label != acc(0)) {
      const auto pack = z.load(c);
      acc target[Moves::n];
      t.load(c - old, target);
#pragma unroll
      for (int i = 0; i < Moves::n; ++i) {
        const acc x = static_cast<acc>(pack.value[i]);
        value[i] = (sigmoid(x, exp(-abs(x))) - target[i]) * (label * factor);
      }
    }
    out.store(c, value);
  }
  put(out);
}

NewLabels new_labels(const PriorArguments& given) {
  const int64_t classes = given.classes();
  return {any_matrix(given.image_labels), given.image_labels.size(1) - classes, static_cast<int>(classes)};
}

// Calls body(source) with what the targets are made from.
template <class Body>
void with_source(const PriorArguments& given, Body body) {
  if (given.maps) {
    body(FromMaps{any_map(*given.maps)});
  } else {
    body(FromNames{any_map(*given.old_logits), any_matrix(*given.similarity)});
  }
}

// Blocks for `classes` classes or those of the source, whichever are more.
template <class Moves, class Source>
Launch launch_of(const Source& source, int64_t pixels, int64_t classes) {
  return launch_for<Moves>(pixels, Source::exchanges ? std::max(classes, source.map().classes) : classes);
}

Tensor prior_loss(const Tensor& scores, const Tensor& image_labels, std::optional<Tensor> maps,
                  std::optional<Tensor> similarity, std::optional<Tensor> old_logits) {
  const PriorArguments given{scores, image_labels, maps, similarity, old_logits};
  given.check("prior_loss");
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const AnyMap z = any_map(scores);
  const ScalarType dtype = given.dtype();
  Tensor loss = torch::stable::new_empty(scores, {}, dtype);
  with_source(given, [&](const auto& source) {
    using Source = std::decay_t<decltype(source)>;
    with_moves(
        dtype,
        [&](auto moves) {
          using Moves = decltype(moves);
          using acc = typename Moves::acc;
          const Launch launch = launch_of<Moves>(source, z.pixels, given.classes());
          const Room room = room_for<Moves>(Source::exchanges ? launch.exchange_bytes : 0, z, source.map());
          Tensor sums = torch::stable::new_empty(scores, {z.batch, launch.tiles}, dtype);
          if (z.batch > 0) {
            const auto kernel = prior_loss_fwd_kernel<Moves, Source>;
            allow_shared(kernel, room.bytes);
            kernel<<<z.batch * launch.tiles, launch.threads, room.bytes, current_stream(scores)>>>(
                z, source, new_labels(given), room.offset, launch.tiles, mutable_data<acc>(sums));
            STD_CUDA_KERNEL_LAUNCH_CHECK();
          }
          finish_loss<acc>(sums, given.counted(), loss);
        },
        z, source.map());
  });
  return loss;
}

Tensor prior_loss_backward(const Tensor& grad, const Tensor& scores, const Tensor& image_labels,
                           std::optional<Tensor> maps, std::optional<Tensor> similarity,
                           std::optional<Tensor> old_logits) {
  const PriorArguments given{scores, image_labels, maps, similarity, old_logits};
  given.check("prior_loss_backward");
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  Tensor grad_scores = torch::stable::empty_like(scores);
  const AnyMap z = any_map(scores), out = any_map(grad_scores);
  if (z.batch == 0) return grad_scores;
  with_source(given, [&](const auto& source) {
    using Source = std::decay_t<decltype(source)>;
    with_moves(
        given.dtype(),
        [&](auto moves) {
          using Moves = decltype(moves);
          const Launch launch = launch_of<Moves>(source, z.pixels, z.classes);
          const Room room = room_for<Moves>(Source::exchanges ? launch.exchange_bytes : 0, z, source.map(), out);
          const auto kernel = prior_loss_bwd_kernel<Moves, Source>;
          allow_shared(kernel, room.bytes);
          kernel<<<z.batch * launch.tiles, launch.threads, room.bytes, current_stream(scores)>>>(
              any_matrix(grad), z, source, new_labels(given), given.counted(), room.offset, launch.tiles, out);
          STD_CUDA_KERNEL_LAUNCH_CHECK();
        },
        z, source.map(), out);
  });
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("prior_loss", TORCH_BOX(&wilson::prior_loss));
  m.impl("prior_loss_backward", TORCH_BOX(&wilson::prior_loss_backward));
}
