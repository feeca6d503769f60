// Choosing confident pixels and the loss on them on NVIDIA GPUs. Published code of WILSON (arXiv 2112.01882).
// Formulas: math/confident.h, math/weights.h. How a kernel goes through a tile: cuda/common/tiles.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"
#include "math/confident.h"
#include "math/weights.h"

namespace wilson {
namespace {

// ---------------------------------------------------------------------------------------------------- confident pixels

// A block labels an image by itself, in one launch: it reads only the classes with a label, which are few.
constexpr int kConfidentWarps = 32;

// Classes that can claim pixels: the background and those with a label; the gate makes the others 0. They are in shared
// memory, C at most; `peak` has room for the peaks that the warps find in their parts of the image.
template <class acc>
struct Candidates {
  acc *gate, *threshold, *peak;
  int *index, *count;  // the class, and the pixels that it got

  static int peaks(int64_t classes) { return static_cast<int>(std::max<int64_t>(classes, kConfidentWarps)); }
  static size_t bytes(int64_t classes) {
    return (2 * classes + peaks(classes)) * sizeof(acc) + 2 * classes * sizeof(int);
  }

  __device__ explicit Candidates(int classes) {
    gate = shared_memory<acc>();
    threshold = gate + classes;
    peak = threshold + classes;
    index = reinterpret_cast<int*>(peak + max(classes, kConfidentWarps));
    count = index + classes;
  }

  // Lists them in order and returns how many there are. One warp calls it.
  __device__ int find(const AnyMatrix& image_labels, int64_t b, int classes) const {
    int found = 0;
    for (int first = 0; first < classes; first += kLanes) {
      const int c = first + threadIdx.x;
      const acc label = c == 0 ? acc(1) : c < classes ? image_labels.at<acc>(b, c - 1) : acc(0);
      const unsigned able = __ballot_sync(~0u, label != acc(0));
      if (label != acc(0)) {
        const int k = found + __popc(able & ((1u << threadIdx.x) - 1));
        index[k] = c;
        gate[k] = label;
        count[k] = 0;
      }
      found += __popc(able);
    }
    return found;
  }
};

// NaN if one of them is: such a class claims nothing.
template <class acc>
__device__ acc max_or_nan(acc a, acc b) {
  return a > b || a != a ? a : b;
}

// labels: (B, P); counts: (B, C).
template <class acc>
__global__ void __launch_bounds__(kLanes* kConfidentWarps, 1)
    confident_labels_fwd_kernel(AnyMap refined, AnyMatrix image_labels, Threshold<acc> threshold, int64_t ignore_index,
                                int64_t* __restrict__ labels, int64_t* __restrict__ counts) {
  __shared__ int shared_found;
  const int64_t b = blockIdx.x, P = refined.pixels;
  const int classes = static_cast<int>(refined.classes), thread = threadIdx.y * kLanes + threadIdx.x;
  const Candidates<acc> able(classes);
  const auto score = [&](int k, int64_t offset) {
    return able.gate[k] * read_as<acc>(refined.data, refined.dtype,
                                       b * refined.batch_stride + able.index[k] * refined.class_stride + offset);
  };
  const bool unit = refined.unit_stride();
  const auto offset_of = [&](int64_t pixel) { return unit ? pixel : refined.offset(pixel); };
  if (threadIdx.y == 0) {
    const int found = able.find(image_labels, b, classes);
    if (threadIdx.x == 0) shared_found = found;
  }
  for (int c = thread; c < classes; c += kLanes * kConfidentWarps) counts[b * classes + c] = 0;
  __syncthreads();

  // The peaks: a warp has a part of the image and a class.
  const int found = shared_found, parts = max(kConfidentWarps / found, 1);
  for (int i = threadIdx.y; i < found * parts; i += kConfidentWarps) {
    acc peak = -std::numeric_limits<acc>::infinity();
    for (int64_t p = i % parts * kLanes + threadIdx.x; p < P; p += parts * kLanes) {
      peak = max_or_nan(peak, score(i / parts, offset_of(p)));
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      peak = max_or_nan(peak, __shfl_xor_sync(~0u, peak, distance));
    }
    if (threadIdx.x == 0) able.peak[i] = peak;
  }
  __syncthreads();
  for (int k = thread; k < found; k += kLanes * kConfidentWarps) {
    acc peak = able.peak[k * parts];
    for (int part = 1; part < parts; ++part) peak = max_or_nan(peak, able.peak[k * parts + part]);
    able.threshold[k] = threshold.of(able.index[k], peak);
  }
  __syncthreads();

  for (int64_t p = thread; p < P; p += kLanes * kConfidentWarps) {
    const int64_t offset = offset_of(p);
    int claims = 0, owner = 0;
    for (int k = 0; k < found; ++k) {
      if (score(k, offset) > able.threshold[k]) {
        ++claims;
        owner = k;
      }
    }
    labels[b * P + p] = claims == 1 ? able.index[owner] : ignore_index;
    if (claims == 1) atomicAdd(&able.count[owner], 1);  // whole numbers: any order gives the same sum
  }
  __syncthreads();
  for (int k = thread; k < found; k += kLanes * kConfidentWarps) counts[b * classes + able.index[k]] = able.count[k];
}

std::tuple<Tensor, Tensor> confident_labels(const Tensor& refined, const Tensor& image_labels, double background_ratio,
                                            double class_ratio, double floor, int64_t ignore_index) {
  check_map("confident_labels", "refined", refined);
  check_image_labels("confident_labels", image_labels, refined);
  const torch::stable::accelerator::DeviceGuard guard(refined.get_device_index());
  const AnyMap map = any_map(refined);
  Tensor labels = torch::stable::new_empty(refined, {map.batch, refined.size(2), refined.size(3)}, ScalarType::Long),
         counts = torch::stable::new_empty(refined, {map.batch, map.classes}, ScalarType::Long);
  if (map.batch == 0) return {labels, counts};
  with_acc(acc_dtype(refined), [&](auto type) {
    using acc = decltype(type);
    const Threshold<acc> threshold{static_cast<acc>(background_ratio), static_cast<acc>(class_ratio),
                                   static_cast<acc>(floor)};
    const size_t bytes = Candidates<acc>::bytes(map.classes);
    allow_shared(confident_labels_fwd_kernel<acc>, bytes);
    confident_labels_fwd_kernel<acc><<<map.batch, dim3(kLanes, kConfidentWarps), bytes, current_stream(refined)>>>(
        map, any_matrix(image_labels), threshold, ignore_index, mutable_data<int64_t>(labels),
        mutable_data<int64_t>(counts));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {labels, counts};
}

// ---------------------------------------------------------------------------------------------------- the loss on them

// The backward computes the derivative anew: forward and backward move 3 maps, with a derivative that is stored they
// move 4.

// The weights of the classes of an image (C), 0 if it does not count. Both are in shared memory, `number` is for the
// counts. One warp works them out.
template <class acc>
__device__ void find_weights(const AnyMatrix& counts, const AnyMatrix& image_labels, int64_t b, int classes,
                             int64_t* number, acc* weights) {
  int64_t sum = 0;
  int missing = 0;
  for (int c = threadIdx.x; c < classes; c += kLanes) {
    const int64_t n = number[c] = counts.at<int64_t>(b, c);
    sum += n;
    missing += missing_class(c == 0 || image_labels.at<double>(b, c - 1) > 0, n);
  }
  sum = warp_sum(sum);
  const bool complete = warp_sum(missing) == 0;
  for (int c = threadIdx.x; c < classes; c += kLanes) {
    weights[c] = complete ? class_weight<acc>(number[c], sum) : acc(0);
  }
}

// The labels of a thread's pixels and the weights of their classes, 0 for pixels that do not count. A block reads each
// label once. Shared memory: what across_warps takes, then the counts and weights (C).
template <class Moves>
struct LabelledPixels {
  using acc = typename Moves::acc;
  static constexpr int n = Moves::n;
  int32_t label[n];
  acc weight[n];
  bool any = false;  // whether one of them counts

  __device__ LabelledPixels(const LabelView& labels, const AnyMatrix& counts, const AnyMatrix& image_labels,
                            Place place) {
    __shared__ int32_t of_tile[n * kLanes];
    const int classes = static_cast<int>(labels.classes);
    auto* number = reinterpret_cast<int64_t*>(shared_memory<acc>() + exchange_count<Moves>());
    auto* weights = reinterpret_cast<acc*>(number + classes);
    if (threadIdx.y == 0) find_weights(counts, image_labels, place.b, classes, number, weights);
    for (int i = threadIdx.y * kLanes + threadIdx.x; i < n * kLanes; i += blockDim.y * kLanes) {
      const unsigned pixel = place.tile * n * kLanes + i, y = pixel / static_cast<unsigned>(labels.width);
      of_tile[i] = y < labels.height ? class_at(labels, place.b, y, pixel - y * labels.width) : -1;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < n; ++i) {
      label[i] = of_tile[threadIdx.x * n + i];
      weight[i] = label[i] < 0 ? acc(0) : weights[label[i]];
      any |= weight[i] != acc(0);
    }
  }
};

// What those take.
template <class Moves>
size_t bytes_beside_tiles(const Launch& launch, int64_t classes) {
  return launch.exchange_bytes + classes * (sizeof(int64_t) + sizeof(typename Moves::acc));
}

// sums: (B, tiles).
template <class Moves>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    balanced_cross_entropy_fwd_kernel(AnyMap scores, LabelView labels, AnyMatrix counts, AnyMatrix image_labels,
                                      int offset, unsigned tiles, typename Moves::acc* __restrict__ sums) {
  using acc = typename Moves::acc;
  constexpr int n = Moves::n;
  const Place place = place_of(tiles);
  const LabelledPixels<Moves> pixels(labels, counts, image_labels, place);
  acc loss = 0;
  if (__syncthreads_or(pixels.any)) {  // else there is nothing to be read
    const Pixels<Moves> z(scores, place, offset);
    fetch<Moves>(z);
    Softmax<acc, n> softmax;
    acc own[n] = {};
    const int classes = static_cast<int>(scores.classes);
#pragma unroll 1
    for (int c = threadIdx.y; c < classes; c += blockDim.y) {
      const auto pack = z.load(c);
      softmax.add(pack);
#pragma unroll
      for (int i = 0; i < n; ++i) own[i] += pixels.label[i] == c ? static_cast<acc>(pack.value[i]) : acc(0);
    }
    softmax.join();
    across_warps(own, [](acc x, acc y) { return x + y; });
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (pixels.weight[i] != acc(0)) loss += pixels.weight[i] * (log(softmax.sum[i]) + (softmax.peak[i] - own[i]));
    }
  }
  if (threadIdx.y > 0) return;  // all warps have the same
  loss = warp_sum(loss);
  if (threadIdx.x == 0) sums[blockIdx.x] = loss;
}

// Shared memory: what LabelledPixels takes, then at `offset` the scores of the tile if there is room.
template <class Moves>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    balanced_cross_entropy_bwd_kernel(AnyMatrix grad, AnyMap scores, LabelView labels, AnyMatrix counts,
                                      AnyMatrix image_labels, int64_t pixels_of_all, int offset, unsigned tiles,
                                      AnyMap grad_scores) {
  using acc = typename Moves::acc;
  constexpr int n = Moves::n;
  const Place place = place_of(tiles);
  LabelledPixels<Moves> pixels(labels, counts, image_labels, place);
  const bool any = __syncthreads_or(pixels.any);
  const Scores<Moves> z(scores, place, offset);
  const Pixels<Moves> out(grad_scores, place, offset);
  const int classes = static_cast<int>(scores.classes);
  Softmax<acc, n> softmax;
  if (any) {
    fetch<Moves>(z);
#pragma unroll 1
    for (int c = threadIdx.y; c < classes; c += blockDim.y) softmax.add(z.load(c));
    softmax.join();
    const acc factor = grad.at<acc>(0) / static_cast<acc>(pixels_of_all);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      pixels.weight[i] *= factor;
      softmax.sum[i] = pixels.weight[i] / softmax.sum[i];
    }
  }
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    acc value[n] = {};
    if (any) {
      const auto pack = z.again(c);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const acc derivative = exp(static_cast<acc>(pack.value[i]) - softmax.peak[i]) * softmax.sum[i] -
                               (pixels.label[i] == c ? pixels.weight[i] : acc(0));
        value[i] = pixels.weight[i] != acc(0) ? derivative : acc(0);  // whatever such a pixel holds
      }
    }
    out.store(c, value);
  }
  put(out);
}

Tensor balanced_cross_entropy(const Tensor& scores, const Tensor& labels, const Tensor& counts,
                              const Tensor& image_labels, int64_t ignore_index) {
  check_balanced("balanced_cross_entropy", scores, labels, counts, image_labels);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const cudaStream_t stream = current_stream(scores);
  const ScalarType dtype = acc_dtype(scores);
  const AnyMap z = any_map(scores);
  const LabelView index = label_view(labels, z.classes, ignore_index);
  Tensor loss = torch::stable::new_empty(scores, {}, dtype);
  with_moves(
      dtype,
      [&](auto moves) {
        using Moves = decltype(moves);
        using acc = typename Moves::acc;
        const Launch launch = launch_for<Moves>(z.pixels, z.classes);
        const Room room = room_for<Moves>(bytes_beside_tiles<Moves>(launch, z.classes), z);
        Tensor sums = torch::stable::new_empty(scores, {z.batch, launch.tiles}, dtype);
        if (z.batch > 0) {
          allow_shared(balanced_cross_entropy_fwd_kernel<Moves>, room.bytes);
          balanced_cross_entropy_fwd_kernel<Moves><<<z.batch * launch.tiles, launch.threads, room.bytes, stream>>>(
              z, index, any_matrix(counts), any_matrix(image_labels), room.offset, launch.tiles,
              mutable_data<acc>(sums));
          STD_CUDA_KERNEL_LAUNCH_CHECK();
        }
        finish_loss<acc>(sums, std::max<int64_t>(1, labels.numel()), loss);
      },
      z);
  return loss;
}

Tensor balanced_cross_entropy_backward(const Tensor& grad, const Tensor& scores, const Tensor& labels,
                                       const Tensor& counts, const Tensor& image_labels, int64_t ignore_index) {
  check_balanced("balanced_cross_entropy_backward", scores, labels, counts, image_labels);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  Tensor grad_scores = torch::stable::empty_like(scores);
  const AnyMap z = any_map(scores), out = any_map(grad_scores);
  if (z.batch == 0) return grad_scores;
  with_moves(
      acc_dtype(scores),
      [&](auto moves) {
        using Moves = decltype(moves);
        const Launch launch = launch_for<Moves>(z.pixels, z.classes);
        const Room room = room_to_keep<Moves>(z.classes, bytes_beside_tiles<Moves>(launch, z.classes), z, out);
        allow_shared(balanced_cross_entropy_bwd_kernel<Moves>, room.bytes);
        balanced_cross_entropy_bwd_kernel<Moves>
            <<<z.batch * launch.tiles, launch.threads, room.bytes, current_stream(scores)>>>(
                any_matrix(grad), z, label_view(labels, z.classes, ignore_index), any_matrix(counts),
                any_matrix(image_labels), labels.numel(), room.offset, launch.tiles, out);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      z, out);
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("confident_labels", TORCH_BOX(&wilson::confident_labels));
  m.impl("balanced_cross_entropy", TORCH_BOX(&wilson::balanced_cross_entropy));
  m.impl("balanced_cross_entropy_backward", TORCH_BOX(&wilson::balanced_cross_entropy_backward));
}
