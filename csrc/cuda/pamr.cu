// Refining masks by the image's colours (PAMR) on NVIDIA GPUs. Araslanov and Roth, CVPR 2020, as in WILSON's published
// code. Formulas: math/pamr.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"
#include "math/bilinear.h"
#include "math/pamr.h"

namespace wilson {
namespace {

constexpr int kThreads = 128;      // pixels of a block, where a thread works on one
constexpr int kGroup = 8;          // classes of a thread, which loads the affinities once for all: 8 sums
constexpr int kGroupWarps = 8;     // groups of a block, which share them in the cache
constexpr int kMaxDilations = 64;  // what fits among a kernel's arguments with ease

struct Stencil {
  int64_t height, width;
  int dilations;
  int distance[kMaxDilations];

  __host__ __device__ int neighbours() const { return 8 * dilations; }
};

// Calls visit(n, offset) for the neighbours n of a pixel, in the order of the affinities; offset counts pixels.
template <class Visit>
__device__ void for_each_neighbour(const Stencil& s, int64_t pixel, Visit visit) {
  const int64_t y = pixel / s.width, x = pixel - y * s.width;
#pragma unroll 1
  for (int d = 0; d < s.dilations; ++d) {
    const int64_t distance = s.distance[d];
    const int64_t rows[3] = {max(y - distance, int64_t(0)), y, min(y + distance, s.height - 1)};
    const int64_t columns[3] = {max(x - distance, int64_t(0)), x, min(x + distance, s.width - 1)};
#pragma unroll
    for (int i = 0; i < 9; ++i) {
      if (i == 4) continue;  // the pixel itself
      visit(8 * d + i - (i > 4), rows[i / 3] * s.width + columns[i % 3]);
    }
  }
}

template <class acc>
struct Colour {
  acc channel[3];
};

template <class acc>
__device__ Colour<acc> colour_at(const AnyMap& image, int64_t b, int64_t pixel) {
  Colour<acc> colour;
  const int64_t at = b * image.batch_stride + image.offset(pixel);
  with_type_of(image.dtype, [&](auto type) {
    const auto* from = reinterpret_cast<const decltype(type)*>(image.data) + at;
#pragma unroll
    for (int c = 0; c < 3; ++c) colour.channel[c] = static_cast<acc>(from[c * image.class_stride]);
  });
  return colour;
}

// affinity: (B, N, P).
template <class acc>
__global__ void __launch_bounds__(kThreads, 1)
    pamr_affinity_kernel(AnyMap image, Stencil s, int64_t tiles, acc* __restrict__ affinity) {
  const int64_t b = blockIdx.x / tiles, pixel = blockIdx.x % tiles * kThreads + threadIdx.x;
  if (pixel >= image.pixels) return;
  const Colour<acc> own = colour_at<acc>(image, b, pixel);
  // Differences from the pixel, which counts once for each dilation. As it counts in the mean, the squares of the mean
  // and of the differences are never so close that subtracting them would lose precision: sigma^2 is at least 1/9.
  acc sum[3] = {}, squares[3] = {};
  for_each_neighbour(s, pixel, [&](int, int64_t neighbour) {
    const Colour<acc> other = colour_at<acc>(image, b, neighbour);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const acc difference = other.channel[c] - own.channel[c];
      sum[c] += difference;
      squares[c] += difference * difference;
    }
  });
  const acc values = deviation_values<acc>(s.dilations);
  acc slope[3];
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const acc variance = max((squares[c] - sum[c] * sum[c] / values) / (values - acc(1)), acc(0));
    slope[c] = steepness(variance);
  }
  const auto similarity_to = [&](int64_t neighbour) {
    const Colour<acc> other = colour_at<acc>(image, b, neighbour);
    acc k = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c) k += similarity(own.channel[c], other.channel[c], slope[c]);
    return k;
  };
  acc peak = -std::numeric_limits<acc>::infinity(), norm = 0;
  for_each_neighbour(s, pixel, [&](int, int64_t neighbour) {
    const Step<acc> step = softmax_step(peak, similarity_to(neighbour));
    norm = step.before * norm + step.now;
  });
  norm = acc(1) / norm;
  acc* out = affinity + b * s.neighbours() * image.pixels + pixel;
  for_each_neighbour(
      s, pixel, [&](int n, int64_t neighbour) { out[n * image.pixels] = exp(similarity_to(neighbour) - peak) * norm; });
}

// A (B, C, h, w) mask of any dtype and strides as (B, C, H, W) acc.
template <class acc>
__global__ void __launch_bounds__(kThreads, 1)
    pamr_resize_kernel(AnyMap mask, int64_t mask_height, int64_t mask_width, int64_t height, int64_t width,
                       int64_t tiles, acc* __restrict__ resized) {
  const int64_t plane = blockIdx.x / tiles, pixel = blockIdx.x % tiles * kThreads + threadIdx.x;
  if (pixel >= height * width) return;
  const AlignedCorners<acc> y(pixel / width, height, mask_height), x(pixel % width, width, mask_width);
  const int64_t image = plane / mask.classes * mask.batch_stride + plane % mask.classes * mask.class_stride;
  const auto value = [&](int64_t row, int64_t column) {
    return read_as<acc>(mask.data, mask.dtype, image + mask.offset(row * mask_width + column));
  };
  const auto across = [&](int64_t row) { return blend(value(row, x.low), value(row, x.high), x.weight); };
  resized[plane * height * width + pixel] = blend(across(y.low), across(y.high), y.weight);
}

// One iteration: a lane has a pixel, a warp a group of classes. from, to: (B, C, P).
template <class acc>
__global__ void __launch_bounds__(kLanes* kGroupWarps, 1)
    pamr_step_kernel(const acc* __restrict__ affinity, const acc* __restrict__ from, int64_t image_stride,
                     int64_t class_stride, int64_t classes, Stencil s, int64_t tiles, acc* __restrict__ to) {
  const int64_t P = s.height * s.width, b = blockIdx.x / tiles, pixel = blockIdx.x % tiles * kLanes + threadIdx.x;
  const int64_t first = (static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y) * kGroup;
  if (pixel >= P || first >= classes) return;
  const acc* weights = affinity + b * s.neighbours() * P + pixel;
  const acc* planes = from + b * image_stride + first * class_stride;
  const int count = static_cast<int>(min(classes - first, int64_t(kGroup)));
  acc sum[kGroup] = {};
  for_each_neighbour(s, pixel, [&](int n, int64_t neighbour) {
    const acc weight = weights[n * P];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (k < count) sum[k] += weight * planes[k * class_stride + neighbour];
    }
  });
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if (k < count) to[(b * classes + first + k) * P + pixel] = sum[k];
  }
}

template <class acc>
void refine_images(const Tensor& image, const Tensor& mask, int64_t iterations, const Stencil& s, Tensor& refined) {
  const cudaStream_t stream = current_stream(image);
  const AnyMap colours = any_map(image), given = any_map(mask);
  const int64_t B = given.batch, C = given.classes, P = colours.pixels, blocks = (P + kThreads - 1) / kThreads;
  Tensor affinity = torch::stable::new_empty(refined, {B, s.neighbours(), P}),
         other = torch::stable::new_empty(refined, refined.sizes());
  pamr_affinity_kernel<acc><<<B * blocks, kThreads, 0, stream>>>(colours, s, blocks, mutable_data<acc>(affinity));
  STD_CUDA_KERNEL_LAUNCH_CHECK();

  acc *to = mutable_data<acc>(iterations % 2 ? refined : other),
      *spare = mutable_data<acc>(iterations % 2 ? other : refined);
  const bool same_size = mask.size(2) == s.height && mask.size(3) == s.width;
  const bool as_it_is = same_size && given.unit_stride() && given.dtype == refined.scalar_type();
  const acc* from = as_it_is ? reinterpret_cast<const acc*>(given.data) : spare;
  int64_t image_stride = as_it_is ? given.batch_stride : C * P, class_stride = as_it_is ? given.class_stride : P;
  if (!as_it_is) {
    pamr_resize_kernel<acc>
        <<<B * C * blocks, kThreads, 0, stream>>>(given, mask.size(2), mask.size(3), s.height, s.width, blocks, spare);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const int64_t tiles = (P + kLanes - 1) / kLanes, groups = (C + kGroup - 1) / kGroup;
  const dim3 threads(kLanes, std::min<int64_t>(kGroupWarps, groups));
  const dim3 grid(B * tiles, (groups + threads.y - 1) / threads.y);
  for (int64_t i = 0; i < iterations; ++i) {
    pamr_step_kernel<acc>
        <<<grid, threads, 0, stream>>>(const_data<acc>(affinity), from, image_stride, class_stride, C, s, tiles, to);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    from = to;
    std::swap(to, spare);
    image_stride = C * P, class_stride = P;
  }
}

Tensor pamr(const Tensor& image, const Tensor& mask, int64_t iterations, std::vector<int64_t> dilations) {
  check_pamr(image, mask, iterations, dilations, kMaxDilations);
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  const ScalarType dtype = acc_dtype(image, mask);
  Tensor refined = torch::stable::new_empty(mask, {mask.size(0), mask.size(1), image.size(2), image.size(3)}, dtype);
  if (mask.size(0) == 0) return refined;
  Stencil s{image.size(2), image.size(3), static_cast<int>(dilations.size()), {}};
  const int64_t far = std::max(s.height, s.width);  // further out there is nothing but the border again
  std::transform(dilations.begin(), dilations.end(), s.distance,
                 [far](int64_t distance) { return static_cast<int>(std::min(distance, far)); });
  with_acc(dtype, [&](auto type) { refine_images<decltype(type)>(image, mask, iterations, s, refined); });
  return refined;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) { m.impl("pamr", TORCH_BOX(&wilson::pamr)); }
