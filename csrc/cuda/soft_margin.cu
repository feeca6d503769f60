// Binary cross-entropy with logits against soft targets on NVIDIA GPUs: LOC, whose target is the old model's sigmoid,
// and SEG. Formulas: math/logistic.h, math/weights.h. How a kernel goes through a tile: cuda/common/tiles.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"
#include "math/weights.h"

namespace wilson {
namespace {

// The backward computes the derivative anew: forward and backward move 5 maps either way, and no map stays in memory
// between them.

// The target of a class, from what the second tensor holds: the old model's logit (LOC), or the target itself (SEG).
struct FromLogit {
  template <class acc>
  __device__ acc operator()(acc o) const {
    return sigmoid(o, exp(-abs(o)));
  }
};
struct AsIs {
  template <class acc>
  __device__ acc operator()(acc target) const {
    return target;
  }
};

// What the losses of a tile are multiplied by: the factor of its image.
template <class acc>
struct TileFactor {
  AnyMatrix weight;  // (B,), or none
  int64_t images, tiles;
  acc pixels;   // of an image with weights, of all images without
  acc sum = 0;  // of the weights

  // Each warp adds up the weights for itself.
  __device__ void load() {
    if (!weight.data) return;
    for (int64_t b = threadIdx.x; b < images; b += kLanes) sum += weight.at<acc>(b);
    sum = warp_sum(sum);
  }

  __device__ acc of_image(int64_t b) const {
    return weight.data ? image_factor(weight.at<acc>(b), sum, pixels) : image_factor(pixels);
  }
  __device__ double of(int64_t tile) const { return of_image(tile / tiles); }
};

template <class acc>
TileFactor<acc> tile_factor(const Tensor* image_weight, int64_t images, int64_t tiles, int64_t pixels) {
  return {image_weight ? any_matrix(*image_weight) : AnyMatrix{}, images, tiles, static_cast<acc>(pixels)};
}

// sums: (B, tiles), of the losses of the classes of `targets`.
template <class Moves, class Target>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    soft_margin_loss_fwd_kernel(AnyMap logits, AnyMap targets, Target target_of, int offset, unsigned tiles,
                                typename Moves::acc* __restrict__ sums) {
  using acc = typename Moves::acc;
  const Place place = place_of(tiles);
  const Pixels<Moves> s(logits, place, offset), q(targets, place, offset);
  fetch<Moves>(s, q);
  LogisticSum<acc> loss;
  const int classes = static_cast<int>(targets.classes);
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    const auto logit = s.load(c), target = q.load(c);
#pragma unroll
    for (int i = 0; i < Moves::n; ++i) {
      if (Moves::staged && !s.inside(i)) continue;
      const acc x = static_cast<acc>(logit.value[i]);
      loss.add(x, target_of(static_cast<acc>(target.value[i])), exp(-abs(x)));
    }
    loss.added(Moves::n);
  }
  const acc total = block_sum(s.inside(0) ? loss.value() : acc(0));
  if (threadIdx.x == 0 && threadIdx.y == 0) sums[blockIdx.x] = total;
}

// (sigmoid(s) - q) * factor * grad for the classes of `targets`, 0 for those beyond.
template <class Moves, class Target>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    soft_margin_loss_bwd_kernel(AnyMatrix grad, AnyMap logits, AnyMap targets, Target target_of,
                                TileFactor<typename Moves::acc> factor, int offset, unsigned tiles,
                                AnyMap grad_logits) {
  using acc = typename Moves::acc;
  const Place place = place_of(tiles);
  const Pixels<Moves> s(logits, place, offset), q(targets, place, offset), out(grad_logits, place, offset);
  fetch<Moves>(s, q);
  factor.load();
  const acc scale = factor.of_image(place.b) * grad.at<acc>(0);
  const int classes = static_cast<int>(logits.classes), with_target = static_cast<int>(targets.classes);
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    acc value[Moves::n] = {};
    if (c < with_target) {
      const auto logit = s.load(c), target = q.load(c);
#pragma unroll
      for (int i = 0; i < Moves::n; ++i) {
        const acc x = static_cast<acc>(logit.value[i]);
        value[i] = (sigmoid(x, exp(-abs(x))) - target_of(static_cast<acc>(target.value[i]))) * scale;
      }
    }
    out.store(c, value);
  }
  put(out);
}

template <class Target>
Tensor loss_of(const Tensor& logits, const Tensor& targets, Target target_of, ScalarType dtype,
               const Tensor* image_weight, int64_t pixels) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const cudaStream_t stream = current_stream(logits);
  const AnyMap s = any_map(logits), q = any_map(targets);
  Tensor loss = torch::stable::new_empty(logits, {}, dtype);
  with_moves(
      dtype,
      [&](auto moves) {
        using Moves = decltype(moves);
        using acc = typename Moves::acc;
        const Launch launch = launch_for<Moves>(q.pixels, q.classes);
        const Room room = room_for<Moves>(0, s, q);
        Tensor sums = torch::stable::new_empty(logits, {q.batch, launch.tiles}, dtype);
        if (q.batch > 0) {
          const auto kernel = soft_margin_loss_fwd_kernel<Moves, Target>;
          allow_shared(kernel, room.bytes);
          kernel<<<q.batch * launch.tiles, launch.threads, room.bytes, stream>>>(s, q, target_of, room.offset,
                                                                                 launch.tiles, mutable_data<acc>(sums));
          STD_CUDA_KERNEL_LAUNCH_CHECK();
        }
        finish_loss<acc>(sums, 1, loss, tile_factor<acc>(image_weight, q.batch, launch.tiles, pixels));
      },
      s, q);
  return loss;
}

template <class Target>
Tensor gradient_of(const Tensor& grad, const Tensor& logits, const Tensor& targets, Target target_of, ScalarType dtype,
                   const Tensor* image_weight, int64_t pixels) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor grad_logits = torch::stable::empty_like(logits);
  const AnyMap s = any_map(logits), q = any_map(targets), out = any_map(grad_logits);
  if (s.batch == 0) return grad_logits;
  with_moves(
      dtype,
      [&](auto moves) {
        using Moves = decltype(moves);
        using acc = typename Moves::acc;
        const Launch launch = launch_for<Moves>(s.pixels, s.classes);
        const Room room = room_for<Moves>(0, s, q, out);
        const auto factor = tile_factor<acc>(image_weight, s.batch, launch.tiles, pixels);
        const auto kernel = soft_margin_loss_bwd_kernel<Moves, Target>;
        allow_shared(kernel, room.bytes);
        kernel<<<s.batch * launch.tiles, launch.threads, room.bytes, current_stream(logits)>>>(
            any_matrix(grad), s, q, target_of, factor, room.offset, launch.tiles, out);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      s, q, out);
  return grad_logits;
}

Tensor localization_prior_loss(const Tensor& scores, const Tensor& old_logits) {
  check_old_logits("localization_prior_loss", old_logits, "scores", scores);
  return loss_of(scores, old_logits, FromLogit(), acc_dtype(scores, old_logits), nullptr,
                 std::max<int64_t>(1, old_logits.numel()));
}

Tensor localization_prior_loss_backward(const Tensor& grad, const Tensor& scores, const Tensor& old_logits) {
  check_old_logits("localization_prior_loss_backward", old_logits, "scores", scores);
  return gradient_of(grad, scores, old_logits, FromLogit(), acc_dtype(scores, old_logits), nullptr,
                     std::max<int64_t>(1, old_logits.numel()));
}

ScalarType soft_margin_dtype(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& weight) {
  return acc_dtype(logits, targets, weight ? *weight : logits);
}

// The pixels of an image with weights, of all images without.
int64_t pixels_of(const Tensor& logits, bool weighted) {
  return logits.size(2) * logits.size(3) * (weighted ? 1 : std::max<int64_t>(1, logits.size(0)));
}

Tensor soft_margin_loss(const Tensor& logits, const Tensor& targets, std::optional<Tensor> image_weight) {
  check_soft_margin("soft_margin_loss", logits, targets, image_weight);
  return loss_of(logits, targets, AsIs(), soft_margin_dtype(logits, targets, image_weight),
                 image_weight ? &*image_weight : nullptr, pixels_of(logits, image_weight.has_value()));
}

Tensor soft_margin_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets,
                                 std::optional<Tensor> image_weight) {
  check_soft_margin("soft_margin_loss_backward", logits, targets, image_weight);
  return gradient_of(grad, logits, targets, AsIs(), soft_margin_dtype(logits, targets, image_weight),
                     image_weight ? &*image_weight : nullptr, pixels_of(logits, image_weight.has_value()));
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("localization_prior_loss", TORCH_BOX(&wilson::localization_prior_loss));
  m.impl("localization_prior_loss_backward", TORCH_BOX(&wilson::localization_prior_loss_backward));
  m.impl("soft_margin_loss", TORCH_BOX(&wilson::soft_margin_loss));
  m.impl("soft_margin_loss_backward", TORCH_BOX(&wilson::soft_margin_loss_backward));
}
