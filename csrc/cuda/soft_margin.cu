// Binary cross-entropy with logits against soft targets on NVIDIA GPUs: LOC, whose target is the old model's sigmoid,
// and SEG. Formulas: math/logistic.h. How a tile is worked on: cuda_tiles.h.
#include "../cuda_tiles.h"

namespace wilson {
namespace {

constexpr int kFinishWarps = 16;  // one block adds up all tiles: as many loads under way as it can have

// The target of a class in terms of what the second tensor holds: the old model's logit (LOC), or the target (SEG).
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

// What the loss of each image, a sum over its pixels, is multiplied by: 1 / divisor, with image weights
// g_b / (sum g + 1e-5) / divisor.
template <class acc>
struct ImageFactor {
  AnyMatrix weight;  // (B,), or none
  int64_t images;
  acc divisor;

  // Of the weights; each warp works it out for itself.
  __device__ acc sum() const {
    acc total = 0;
    if (!weight.data) return total;
    for (int64_t b = threadIdx.x; b < images; b += kLanes) total += weight.at<acc>(b);
    return warp_sum(total) + static_cast<acc>(kImageWeightEps);
  }

  __device__ acc of(int64_t b, acc sum) const { return (weight.data ? weight.at<acc>(b) / sum : acc(1)) / divisor; }
};

// sums: (B, tiles), of the losses of the classes of `targets`.
template <class Moves, class Target>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    loss_kernel(AnyMap logits, AnyMap targets, Target target_of, int64_t tiles,
                typename Moves::acc* __restrict__ sums) {
  using acc = typename Moves::acc;
  const int64_t b = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const Pixels<Moves> s(logits, b, tile), q(targets, b, tile);
  LogisticSum<acc> loss;
#pragma unroll 1
  for (int c = threadIdx.y; c < targets.classes; c += blockDim.y) {
    const auto logit = s.load(c), target = q.load(c);
#pragma unroll
    for (int i = 0; i < Moves::n; ++i) {
      const acc x = static_cast<acc>(logit.value[i]);
      loss.add(x, target_of(static_cast<acc>(target.value[i])), exp(-abs(x)));
    }
    loss.added(Moves::n);
  }
  const acc total = block_sum(s.inside() ? loss.value() : acc(0));
  if (threadIdx.x == 0 && threadIdx.y == 0) sums[blockIdx.x] = total;
}

template <class acc>
__global__ void __launch_bounds__(kLanes* kFinishWarps)
    finish_kernel(const acc* __restrict__ sums, int64_t tiles, ImageFactor<acc> factor, acc* __restrict__ loss) {
  const acc sum = factor.sum();
  double total = 0;
  for (int64_t i = threadIdx.y * kLanes + threadIdx.x; i < factor.images * tiles; i += kLanes * kFinishWarps) {
    total += static_cast<double>(factor.of(i / tiles, sum)) * sums[i];
  }
  total = block_sum(total);
  if (threadIdx.x == 0 && threadIdx.y == 0) *loss = static_cast<acc>(total);
}

// (sigmoid(s) - q) * factor * grad for the classes of `targets`, 0 for those beyond.
template <class Moves, class Target>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    gradient_kernel(AnyMatrix grad, AnyMap logits, AnyMap targets, Target target_of,
                    ImageFactor<typename Moves::acc> factor, int64_t tiles, AnyMap grad_logits) {
  using acc = typename Moves::acc;
  const int64_t b = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const Pixels<Moves> s(logits, b, tile), q(targets, b, tile), out(grad_logits, b, tile);
  const acc scale = factor.of(b, factor.sum()) * grad.at<acc>(0);
#pragma unroll 1
  for (int c = threadIdx.y; c < logits.classes; c += blockDim.y) {
    acc value[Moves::n] = {};
    if (c < targets.classes) {
      const auto logit = s.load(c), target = q.load(c);
#pragma unroll
      for (int i = 0; i < Moves::n; ++i) {
        const acc x = static_cast<acc>(logit.value[i]);
        value[i] = (sigmoid(x, exp(-abs(x))) - target_of(static_cast<acc>(target.value[i]))) * scale;
      }
    }
    out.store(c, value);
  }
}

template <class Target>
Tensor loss_of(const Tensor& logits, const Tensor& targets, Target target_of, ScalarType dtype,
               const Tensor* image_weight, int64_t divisor) {
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
        Tensor sums = torch::stable::new_empty(logits, {q.batch, launch.tiles}, dtype);
        if (q.batch > 0) {
          loss_kernel<Moves><<<q.batch * launch.tiles, launch.threads, 0, stream>>>(s, q, target_of, launch.tiles,
                                                                                    mutable_data<acc>(sums));
          STD_CUDA_KERNEL_LAUNCH_CHECK();
        }
        const ImageFactor<acc> factor{image_weight ? any_matrix(*image_weight) : AnyMatrix{}, q.batch,
                                      static_cast<acc>(divisor)};
        finish_kernel<acc><<<1, dim3(kLanes, kFinishWarps), 0, stream>>>(const_data<acc>(sums), launch.tiles, factor,
                                                                         mutable_data<acc>(loss));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      s, q);
  return loss;
}

template <class Target>
Tensor gradient_of(const Tensor& grad, const Tensor& logits, const Tensor& targets, Target target_of, ScalarType dtype,
                   const Tensor* image_weight, int64_t divisor) {
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
        const ImageFactor<acc> factor{image_weight ? any_matrix(*image_weight) : AnyMatrix{}, s.batch,
                                      static_cast<acc>(divisor)};
        gradient_kernel<Moves><<<s.batch * launch.tiles, launch.threads, 0, current_stream(logits)>>>(
            any_matrix(grad), s, q, target_of, factor, launch.tiles, out);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      s, q, out);
  return grad_logits;
}

Tensor localization_prior_loss(const Tensor& scores, const Tensor& old_logits) {
  check_old_logits("localization_prior_loss", old_logits, scores);
  return loss_of(scores, old_logits, FromLogit(), wider_acc_dtype(scores, old_logits), nullptr,
                 std::max<int64_t>(1, old_logits.numel()));
}

Tensor localization_prior_loss_backward(const Tensor& grad, const Tensor& scores, const Tensor& old_logits) {
  check_old_logits("localization_prior_loss_backward", old_logits, scores);
  return gradient_of(grad, scores, old_logits, FromLogit(), wider_acc_dtype(scores, old_logits), nullptr,
                     std::max<int64_t>(1, old_logits.numel()));
}

ScalarType soft_dtype(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& weight) {
  return wider_acc_dtype(logits, targets, weight ? *weight : logits);
}

// Weights divide by their sum, no weights by the number of images.
int64_t soft_divisor(const Tensor& logits, bool weighted) {
  return logits.size(2) * logits.size(3) * (weighted ? 1 : std::max<int64_t>(1, logits.size(0)));
}

Tensor soft_margin_loss(const Tensor& logits, const Tensor& targets, std::optional<Tensor> image_weight) {
  check_targets("soft_margin_loss", logits, targets, image_weight);
  return loss_of(logits, targets, AsIs(), soft_dtype(logits, targets, image_weight),
                 image_weight ? &*image_weight : nullptr, soft_divisor(logits, image_weight.has_value()));
}

Tensor soft_margin_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets,
                                 std::optional<Tensor> image_weight) {
  check_targets("soft_margin_loss_backward", logits, targets, image_weight);
  return gradient_of(grad, logits, targets, AsIs(), soft_dtype(logits, targets, image_weight),
                     image_weight ? &*image_weight : nullptr, soft_divisor(logits, image_weight.has_value()));
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("localization_prior_loss", TORCH_BOX(&wilson::localization_prior_loss));
  m.impl("localization_prior_loss_backward", TORCH_BOX(&wilson::localization_prior_loss_backward));
  m.impl("soft_margin_loss", TORCH_BOX(&wilson::soft_margin_loss));
  m.impl("soft_margin_loss_backward", TORCH_BOX(&wilson::soft_margin_loss_backward));
}
