// Pseudo-labels from the localizer and the old model, and the segmentation loss against them, on NVIDIA GPUs
// (arXiv 2112.01882, Eq. 5 to 7). Formulas: math/pseudo_labels.h, math/logistic.h, math/weights.h. One kernel reads the
// inputs once for the targets, the loss and its derivative. How a kernel goes through a tile: cuda/common/tiles.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"
#include "math/pseudo_labels.h"
#include "math/weights.h"

namespace wilson {
namespace {

// The forward stores the derivative: forward and backward move 6 maps, with targets that are merged again they move 7.

template <class acc>
struct Options {
  acc alpha;  // weight of the hard labels
  BackgroundMerge<acc> background;
  AnyMatrix image_labels;  // (B, C-1)
  int64_t classes, old;    // C and O
  acc prior_weight;

  __device__ acc gate(int64_t b, int64_t c) const { return c == 0 ? acc(1) : image_labels.at<acc>(b, c - 1); }
};

// Stands for the pixels of a prior where there is none.
struct NoPrior {
  __device__ NoPrior(const AnyMap&, Place, int&) {}
  __device__ void fetch() const {}
};
template <class Moves, bool kPrior>
using Prior = std::conditional_t<kPrior, Pixels<Moves>, NoPrior>;

// Calls visit(c, q) for the classes c of this warp, where q are the targets of the thread's pixels. `found`,
// (B, C - O, tiles), gets 1 where a new class has a target above 0. Shared memory: what across_warps takes, then the
// gates (C), then the scores of the tile if there is room.
template <class Moves, bool kOldYields, bool kPrior, class Visit>
__device__ void merge_tile(const Scores<Moves>& z, const Pixels<Moves>& o, const Prior<Moves, kPrior>& prior,
                           Place place, const Options<typename Moves::acc>& options, unsigned tiles, uint8_t* found,
                           Visit visit) {
  using acc = typename Moves::acc;
  constexpr int n = Moves::n;
  const int64_t b = place.b;
  const int classes = options.classes, old = options.old;
  acc* gate = shared_memory<acc>() + exchange_count<Moves>();
  for (int c = threadIdx.y * kLanes + threadIdx.x; c < classes; c += kLanes * blockDim.y) gate[c] = options.gate(b, c);

  acc peak[n], sum[n] = {}, best[n] = {}, left[n] = {};  // left: to old classes by the new ones, if they yield
  acc highest[n] = {};                                   // of the gated prior
#pragma unroll
  for (int i = 0; i < n; ++i) peak[i] = -std::numeric_limits<acc>::infinity();
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    const auto pack = z.load(c);
#pragma unroll
    for (int i = 0; i < n; ++i) peak[i] = max(peak[i], static_cast<acc>(pack.value[i]));
  }
  across_warps(peak, [](acc x, acc y) { return max(x, y); });  // its barrier also publishes the gates
  // The prior of a new class, times its label: where that is 0, it is not read.
  [[maybe_unused]] const auto load_prior = [&](int c, acc(&p)[n]) {
    if constexpr (kPrior) {
      if (gate[c] == acc(0)) return;
      const auto pack = prior.load(c - old);
#pragma unroll
      for (int i = 0; i < n; ++i) p[i] = static_cast<acc>(pack.value[i]) * gate[c];
    }
  };
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    const auto pack = z.again(c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc e = exp(static_cast<acc>(pack.value[i]) - peak[i]);
      sum[i] += e;
      if (!kPrior) best[i] = max(best[i], e * gate[c]);
      if (kOldYields && c >= old) left[i] += e * gate[c];
    }
    if (kPrior && c >= old) {
      acc p[n] = {};
      load_prior(c, p);
#pragma unroll
      for (int i = 0; i < n; ++i) highest[i] = highest_of(highest[i], p[i]);
    }
  }
  across_warps(sum, [](acc x, acc y) { return x + y; });
  if constexpr (kPrior) {
    across_warps(highest, [](acc x, acc y) { return highest_of(x, y); });
  } else {
    across_warps(best, [](acc x, acc y) { return max(x, y); });
  }
#pragma unroll
  for (int i = 0; i < n; ++i) sum[i] = acc(1) / sum[i];
  if constexpr (kOldYields) {
    across_warps(left, [](acc x, acc y) { return x + y; });
#pragma unroll
    for (int i = 0; i < n; ++i) left[i] = left_to_old(left[i], sum[i]);
  }
  // m of class c, mixed with the prior; computed twice, in the same way, as the hard label is where it is highest.
  [[maybe_unused]] const auto mixed = [&](int c, acc(&m)[n]) {
    const auto pack = z.again(c);
    acc p[n] = {};
    if (c >= old) load_prior(c, p);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      m[i] = exp(static_cast<acc>(pack.value[i]) - peak[i]) * gate[c] * sum[i];
      if (c == 0 || c >= old) m[i] = mixed_with_prior(m[i], c == 0 ? acc(1) - highest[i] : p[i], options.prior_weight);
    }
  };
  if constexpr (kPrior) {
#pragma unroll 1
    for (int c = threadIdx.y; c < classes; c += blockDim.y) {
      if (gate[c] == acc(0)) continue;
      acc m[n];
      mixed(c, m);
#pragma unroll
      for (int i = 0; i < n; ++i) best[i] = highest_of(best[i], m[i]);
    }
    across_warps(best, [](acc x, acc y) { return highest_of(x, y); });
  }

#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    acc q[n] = {}, omega[n] = {};
    if (c < old) {
      const auto pack = o.load(c);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const acc x = static_cast<acc>(pack.value[i]);
        omega[i] = sigmoid(x, exp(-abs(x)));
        if (kOldYields) omega[i] *= left[i];
      }
    }
    if (kPrior && (c == 0 || c >= old)) {
      mixed(c, q);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        q[i] = pseudo_label((acc(1) - options.alpha) * q[i], q[i] == best[i], options.alpha);
      }
    } else if (c == 0 || c >= old) {
      const auto pack = z.again(c);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const acc e = exp(static_cast<acc>(pack.value[i]) - peak[i]) * gate[c];
        q[i] = pseudo_label((acc(1) - options.alpha) * (e * sum[i]), e == best[i], options.alpha);
      }
    }
    if (c >= old) {
      bool any = false;
#pragma unroll
      for (int i = 0; i < n; ++i) any |= z.pixels.inside(i) && q[i] > acc(0);
      any = __any_sync(~0u, any);
      if (threadIdx.x == 0) found[(b * (classes - old) + c - old) * tiles + place.tile] = any;
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) q[i] = c == 0 ? options.background.of(omega[i], q[i]) : omega[i];
    }
    visit(c, q);
  }
}

// The targets of a thread's pixels, in (B, C, P) acc.
template <class Moves>
class Targets {
 public:
  using acc = typename Moves::acc;
  static constexpr int n = Moves::n;

  __device__ Targets(acc* targets, const AnyMap& scores, Place place) : pixels_(scores.pixels) {
    const unsigned first = (place.tile * kLanes + threadIdx.x) * n;
    left_ = static_cast<int>(pixels_ - first);
    of_class_ = targets + place.b * scores.classes * pixels_ + first;
  }

  __device__ void store(int c, const acc (&q)[n]) const {
    acc* to = of_class_ + c * pixels_;
    if (pixels_ % n == 0) {
      if (left_ > 0) *reinterpret_cast<Pack<acc, n>*>(to) = pack_of<acc>(q);
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (i < left_) to[i] = q[i];
      }
    }
  }

 private:
  acc* of_class_;
  int64_t pixels_;
  int left_;  // pixels of the image, from the thread's on
};

template <class Moves, bool kOldYields, bool kPrior>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    merge_pseudo_labels_fwd_kernel(AnyMap scores, AnyMap old_logits, AnyMap prior, Options<typename Moves::acc> options,
                                   int offset, unsigned tiles, typename Moves::acc* __restrict__ targets,
                                   uint8_t* __restrict__ found) {
  using acc = typename Moves::acc;
  const Place place = place_of(tiles);
  const Targets<Moves> out(targets, scores, place);
  const Scores<Moves> z(scores, place, offset);
  const Pixels<Moves> o(old_logits, place, offset);
  const Prior<Moves, kPrior> p(prior, place, offset);
  fetch<Moves>(z, o, p);
  merge_tile<Moves, kOldYields, kPrior>(z, o, p, place, options, tiles, found,
                                        [&](int c, const acc(&q)[Moves::n]) { out.store(c, q); });
}

// sums: (B, tiles). derivative: sigmoid(s) - q, if with_derivative.
template <class Moves, bool kOldYields, bool kPrior>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    pseudo_label_loss_fwd_kernel(AnyMap logits, AnyMap scores, AnyMap old_logits, AnyMap prior,
                                 Options<typename Moves::acc> options, int offset, unsigned tiles, AnyMap derivative,
                                 bool with_derivative, uint8_t* __restrict__ found,
                                 typename Moves::acc* __restrict__ sums) {
  using acc = typename Moves::acc;
  const Place place = place_of(tiles);
  const Scores<Moves> z(scores, place, offset);
  const Pixels<Moves> o(old_logits, place, offset), s(logits, place, offset), out(derivative, place, offset);
  const Prior<Moves, kPrior> p(prior, place, offset);
  fetch<Moves>(z, o, s, p);
  LogisticSum<acc> loss;
  merge_tile<Moves, kOldYields, kPrior>(z, o, p, place, options, tiles, found, [&](int c, const acc(&q)[Moves::n]) {
    const auto pack = s.load(c);
    acc value[Moves::n];
#pragma unroll
    for (int i = 0; i < Moves::n; ++i) {
      const acc x = static_cast<acc>(pack.value[i]), e = exp(-abs(x));
      if (!Moves::staged || s.inside(i)) loss.add(x, q[i], e);
      value[i] = sigmoid(x, e) - q[i];
    }
    loss.added(Moves::n);
    if (with_derivative) out.store(c, value);
  });
  if (with_derivative) put(out);
  const acc total = block_sum(s.inside(0) ? loss.value() : acc(0));
  if (threadIdx.x == 0 && threadIdx.y == 0) sums[blockIdx.x] = total;
}

// 1 for an image whose new classes found are the labelled ones, else 0. All lanes of a warp get it.
template <class acc>
__device__ acc image_weight(const Options<acc>& options, int64_t b, int64_t tiles, const uint8_t* found) {
  bool matches = true;
  for (int64_t c = options.old; c < options.classes; ++c) {
    const uint8_t* in_tile = found + (b * (options.classes - options.old) + c - options.old) * tiles;
    int any = 0;
    for (int64_t tile = threadIdx.x; tile < tiles; tile += kLanes) any |= in_tile[tile];
    matches &= __any_sync(~0u, any) == (options.gate(b, c) > acc(0));
  }
  return matches ? acc(1) : acc(0);
}

template <class acc>
__global__ void __launch_bounds__(kLanes* kFinishWarps, 1)
    merge_pseudo_labels_finish_kernel(Options<acc> options, int64_t images, int64_t tiles,
                                      const uint8_t* __restrict__ found, acc* __restrict__ weight) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kFinishWarps + threadIdx.y;
  if (b >= images) return;
  const acc g = image_weight(options, b, tiles, found);
  if (threadIdx.x == 0) weight[b] = g;
}

// factor: (B,), of each image; loss: the sum of the images' losses, each times its factor. One block: a warp takes an
// image and leaves its weight in `factor` and its loss in `image_loss`; then all threads add up the images.
template <class acc>
__global__ void __launch_bounds__(kLanes* kFinishWarps, 1)
    pseudo_label_loss_finish_kernel(const acc* __restrict__ sums, const uint8_t* __restrict__ found,
                                    Options<acc> options, int64_t images, int64_t tiles, acc pixels,
                                    acc* __restrict__ image_loss, acc* __restrict__ factor, acc* __restrict__ loss) {
  for (int64_t b = threadIdx.y; b < images; b += kFinishWarps) {
    const acc g = image_weight(options, b, tiles, found);
    double total = 0;
    for (int64_t tile = threadIdx.x; tile < tiles; tile += kLanes) total += sums[b * tiles + tile];
    total = warp_sum(total);
    if (threadIdx.x == 0) {
      factor[b] = g;
      image_loss[b] = static_cast<acc>(total);
    }
  }
  __syncthreads();
  const int thread = threadIdx.y * kLanes + threadIdx.x;
  acc sum = 0;
  for (int64_t b = thread; b < images; b += kLanes * kFinishWarps) sum += factor[b];
  sum = block_sum(sum);
  double total = 0;
  for (int64_t b = thread; b < images; b += kLanes * kFinishWarps) {
    factor[b] = image_factor(factor[b], sum, pixels);
    total += static_cast<double>(factor[b]) * image_loss[b];
  }
  total = block_sum(total);
  if (thread == 0) *loss = static_cast<acc>(total);
}

template <class Moves>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    pseudo_label_loss_bwd_kernel(AnyMatrix grad, AnyMatrix factor, AnyMap derivative, int offset, unsigned tiles,
                                 AnyMap grad_logits) {
  using acc = typename Moves::acc;
  const Place place = place_of(tiles);
  const Pixels<Moves> from(derivative, place, offset), to(grad_logits, place, offset);
  fetch<Moves>(from);
  const acc scale = factor.at<acc>(place.b) * grad.at<acc>(0);
  const int classes = static_cast<int>(derivative.classes);
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    const auto pack = from.load(c);
    acc value[Moves::n];
#pragma unroll
    for (int i = 0; i < Moves::n; ++i) value[i] = static_cast<acc>(pack.value[i]) * scale;
    to.store(c, value);
  }
  put(to);
}

template <class acc>
Options<acc> options_of(const Tensor& scores, const Tensor& old_logits, const Tensor& image_labels, double alpha,
                        std::optional<double> background_weight, double prior_weight) {
  return {static_cast<acc>(alpha), BackgroundMerge<acc>(background_weight), any_matrix(image_labels), scores.size(1),
          old_logits.size(1),      static_cast<acc>(prior_weight)};
}

// A prior without weight is none.
std::optional<AnyMap> map_of_prior(const std::optional<Tensor>& prior, double weight) {
  return prior && weight != 0 ? std::optional(any_map(*prior)) : std::nullopt;
}

// with_moves of maps and of the prior, if there is one.
template <class Run, class... Maps>
void with_moves_and_prior(ScalarType acc_type, Run run, const std::optional<AnyMap>& prior, const Maps&... maps) {
  return prior ? with_moves(acc_type, run, maps..., *prior) : with_moves(acc_type, run, maps...);
}

// Calls body with two flags as constants of their types, and returns what it does.
template <class Body>
auto with_flags(bool first, bool second, Body body) {
  if (first) return second ? body(std::true_type(), std::true_type()) : body(std::true_type(), std::false_type());
  return second ? body(std::false_type(), std::true_type()) : body(std::false_type(), std::false_type());
}

// The exchange of across_warps, the gates and the scores.
template <class Moves, class... Maps>
Room room_of(const Launch& launch, const std::optional<AnyMap>& prior, const AnyMap& scores, const Maps&... maps) {
  const size_t taken = launch.exchange_bytes + scores.classes * sizeof(typename Moves::acc);
  return prior ? room_to_keep<Moves>(scores.classes, taken, scores, maps..., *prior)
               : room_to_keep<Moves>(scores.classes, taken, scores, maps...);
}

Tensor empty_found(const Tensor& scores, const Tensor& old_logits, int64_t tiles) {
  return torch::stable::new_empty(scores, {scores.size(0), scores.size(1) - old_logits.size(1), tiles},
                                  ScalarType::Byte);
}

std::tuple<Tensor, Tensor> merge_pseudo_labels(const Tensor& localizer_scores, const Tensor& old_logits,
                                               const Tensor& image_labels, double alpha,
                                               std::optional<double> background_weight, bool old_yields,
                                               std::optional<Tensor> prior, double prior_weight) {
  check_pseudo_labels("merge_pseudo_labels", localizer_scores, old_logits, image_labels, prior);
  const torch::stable::accelerator::DeviceGuard guard(localizer_scores.get_device_index());
  const cudaStream_t stream = current_stream(localizer_scores);
  const ScalarType dtype = acc_dtype(localizer_scores, old_logits, image_labels, prior ? *prior : localizer_scores);
  const int64_t B = localizer_scores.size(0);
  Tensor targets = torch::stable::new_empty(localizer_scores, localizer_scores.sizes(), dtype);
  Tensor weight = torch::stable::new_empty(localizer_scores, {B}, dtype);
  if (B == 0) return {targets, weight};
  const AnyMap scores = any_map(localizer_scores), old = any_map(old_logits);
  const std::optional<AnyMap> mixes = map_of_prior(prior, prior_weight);
  with_moves_and_prior(
      dtype,
      [&](auto moves) {
        using Moves = decltype(moves);
        using acc = typename Moves::acc;
        const Launch launch = launch_for<Moves>(scores.pixels, scores.classes);
        const Room room = room_of<Moves>(launch, mixes, scores, old);
        const auto options =
            options_of<acc>(localizer_scores, old_logits, image_labels, alpha, background_weight, prior_weight);
        Tensor found = empty_found(localizer_scores, old_logits, launch.tiles);
        const auto kernel = with_flags(old_yields, mixes.has_value(), [](auto yields, auto mixed) {
          return merge_pseudo_labels_fwd_kernel<Moves, yields, mixed>;
        });
        allow_shared(kernel, room.bytes);
        kernel<<<B * launch.tiles, launch.threads, room.bytes, stream>>>(
            scores, old, mixes.value_or(AnyMap{}), options, room.offset, launch.tiles, mutable_data<acc>(targets),
            mutable_data<uint8_t>(found));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        merge_pseudo_labels_finish_kernel<acc>
            <<<(B + kFinishWarps - 1) / kFinishWarps, dim3(kLanes, kFinishWarps), 0, stream>>>(
                options, B, launch.tiles, const_data<uint8_t>(found), mutable_data<acc>(weight));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      mixes, scores, old);
  return {targets, weight};
}

std::tuple<Tensor, Tensor, Tensor> pseudo_label_loss(const Tensor& logits, const Tensor& localizer_scores,
                                                     const Tensor& old_logits, const Tensor& image_labels, double alpha,
                                                     std::optional<double> background_weight, bool old_yields,
                                                     std::optional<Tensor> prior, double prior_weight,
                                                     bool with_derivative) {
  check_pseudo_label_loss("pseudo_label_loss", logits, localizer_scores, old_logits, image_labels, prior);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const cudaStream_t stream = current_stream(logits);
  const ScalarType dtype =
      acc_dtype(logits, localizer_scores, old_logits, image_labels, prior ? *prior : localizer_scores);
  const int64_t B = logits.size(0);
  Tensor loss = torch::stable::new_empty(logits, {}, dtype), factor = torch::stable::new_empty(logits, {B}, dtype),
         image_loss = torch::stable::new_empty(logits, {B}, dtype),
         derivative =
             with_derivative ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, {0}, dtype);
  const AnyMap s = any_map(logits), scores = any_map(localizer_scores), old = any_map(old_logits),
               out = with_derivative ? any_map(derivative) : s;
  const std::optional<AnyMap> mixes = map_of_prior(prior, prior_weight);
  with_moves_and_prior(
      dtype,
      [&](auto moves) {
        using Moves = decltype(moves);
        using acc = typename Moves::acc;
        const Launch launch = launch_for<Moves>(s.pixels, s.classes);
        const Room room = room_of<Moves>(launch, mixes, scores, old, s, out);
        const auto options =
            options_of<acc>(localizer_scores, old_logits, image_labels, alpha, background_weight, prior_weight);
        Tensor found = empty_found(localizer_scores, old_logits, launch.tiles),
               sums = torch::stable::new_empty(logits, {B, launch.tiles}, dtype);
        if (B > 0) {
          const auto kernel = with_flags(old_yields, mixes.has_value(), [](auto yields, auto mixed) {
            return pseudo_label_loss_fwd_kernel<Moves, yields, mixed>;
          });
          allow_shared(kernel, room.bytes);
          kernel<<<B * launch.tiles, launch.threads, room.bytes, stream>>>(
              s, scores, old, mixes.value_or(AnyMap{}), options, room.offset, launch.tiles, out, with_derivative,
              mutable_data<uint8_t>(found), mutable_data<acc>(sums));
          STD_CUDA_KERNEL_LAUNCH_CHECK();
        }
        pseudo_label_loss_finish_kernel<acc><<<1, dim3(kLanes, kFinishWarps), 0, stream>>>(
            const_data<acc>(sums), const_data<uint8_t>(found), options, B, launch.tiles, static_cast<acc>(s.pixels),
            mutable_data<acc>(image_loss), mutable_data<acc>(factor), mutable_data<acc>(loss));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      mixes, s, scores, old, out);
  return {loss, factor, derivative};
}

Tensor pseudo_label_loss_backward(const Tensor& grad, const Tensor& factor, const Tensor& derivative) {
  check_map("pseudo_label_loss_backward", "derivative", derivative);
  check_per_image("pseudo_label_loss_backward", "factor", factor, derivative);
  const torch::stable::accelerator::DeviceGuard guard(derivative.get_device_index());
  Tensor grad_logits = torch::stable::empty_like(derivative);
  const AnyMap from = any_map(derivative), to = any_map(grad_logits);
  if (from.batch == 0) return grad_logits;
  with_moves(
      acc_dtype(factor, derivative),
      [&](auto moves) {
        using Moves = decltype(moves);
        const Launch launch = launch_for<Moves>(from.pixels, from.classes);
        const Room room = room_for<Moves>(0, from, to);
        allow_shared(pseudo_label_loss_bwd_kernel<Moves>, room.bytes);
        pseudo_label_loss_bwd_kernel<Moves>
            <<<from.batch * launch.tiles, launch.threads, room.bytes, current_stream(derivative)>>>(
                any_matrix(grad), any_matrix(factor), from, room.offset, launch.tiles, to);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      from, to);
  return grad_logits;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("merge_pseudo_labels", TORCH_BOX(&wilson::merge_pseudo_labels));
  m.impl("pseudo_label_loss", TORCH_BOX(&wilson::pseudo_label_loss));
  m.impl("pseudo_label_loss_backward", TORCH_BOX(&wilson::pseudo_label_loss_backward));
}
