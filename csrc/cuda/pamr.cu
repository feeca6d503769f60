// Refining masks by the image's colours on NVIDIA GPUs: PAMR (Araslanov and Roth, CVPR 2020, as in WILSON's published
// code) and PAR (Ru et al., CVPR 2022), which differ in their affinities alone. Formulas: math/pamr.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"
#include "math/bilinear.h"
#include "math/pamr.h"

namespace wilson {
namespace {

constexpr int kThreads = 128;         // pixels of a block, where a thread works on one
constexpr int kGroup = 8;             // classes of a thread, which loads the affinities once for all: 8 sums
constexpr int kGroupWarps = 8;        // groups of a block, which share them in the cache
constexpr int kMaxDilations = 64;     // what fits among a kernel's arguments with ease
constexpr int kDilationWarps = 8;     // dilations of a block at a time, whose colours stay in registers
constexpr int kRefineThreads = 1024;  // a whole image is refined by one block
// Shared memory for the planes of a block, old and new: what every GPU since sm_80 has.
constexpr size_t kPlaneBytes = 99 * 1024;

struct Stencil {
  int height, width;
  int dilations;
  int distance[kMaxDilations];

  __host__ __device__ int neighbours() const { return 8 * dilations; }
  __host__ __device__ int pixels() const { return height * width; }
};

// What PAR adds to the affinities at each dilation, beside it.
template <class acc>
struct NearStencil : Stencil {
  acc beside[kMaxDilations], corner[kMaxDilations];

  NearStencil(const Stencil& s, const std::vector<Nearness>& nearness) : Stencil(s) {
    for (int d = 0; d < dilations; ++d) {
      beside[d] = static_cast<acc>(nearness[d].beside);
      corner[d] = static_cast<acc>(nearness[d].corner);
    }
  }
};

// What the affinities are worked out of.
template <Affinity kind, class acc>
using AffinityStencil = std::conditional_t<kind == Affinity::kPamr, Stencil, NearStencil<acc>>;

// The rows and columns of the 8 neighbours at one dilation, coordinates clamped to the image.
struct Around {
  int row[3], column[3];

  __device__ Around(const Stencil& s, int y, int x, int distance)
      : row{max(y - distance, 0), y, min(y + distance, s.height - 1)},
        column{max(x - distance, 0), x, min(x + distance, s.width - 1)} {}

  // Calls visit(j, row, column) for the neighbours j = 0..7, in the order of the affinities.
  template <class Visit>
  __device__ void each(Visit visit) const {
#pragma unroll
    for (int i = 0; i < 9; ++i) {
      if (i != 4) visit(i - (i > 4), row[i / 3], column[i % 3]);  // 4 is the pixel itself
    }
  }
};

// affinity: (B, N, P). A lane has a pixel, a warp a dilation: it loads each neighbour once and takes one exponential.
template <Affinity kind, class acc, class T>
__global__ void __launch_bounds__(kLanes* kDilationWarps, 1)
    pamr_affinity_kernel(AnyMap image, AffinityStencil<kind, acc> s, int tiles, acc* __restrict__ affinity) {
  const int64_t b = blockIdx.x / tiles, P = s.pixels();
  const int tile = blockIdx.x % tiles * kLanes, pixel = min(tile + threadIdx.x, s.pixels() - 1);
  const int y = pixel / s.width, x = pixel - y * s.width;
  const T* colours = image.image<T>(b);
  const auto colour = [&](int row, int column, int c) {
    return static_cast<acc>(colours[row * image.row_stride + column * image.pixel_stride + c * image.class_stride]);
  };
  const acc own[3] = {colour(y, x, 0), colour(y, x, 1), colour(y, x, 2)};

  acc difference[8][3];  // of a dilation's neighbours from the pixel
  const auto load = [&](int d) {
    Around(s, y, x, s.distance[d]).each([&](int j, int row, int column) {
#pragma unroll
      for (int c = 0; c < 3; ++c) difference[j][c] = colour(row, column, c) - own[c];
    });
  };
  const bool one_each = s.dilations <= blockDim.y;
  const auto for_my_dilations = [&](auto visit) {
    for (int d = threadIdx.y; d < s.dilations; d += blockDim.y) {
      if (!one_each) load(d);
      visit(d);
    }
  };
  if (one_each) load(threadIdx.y);

  acc least[3] = {}, slope[3];
  if constexpr (kind == Affinity::kPamr) {
    // The pixel counts once for each dilation. As it counts in the mean, the squares of the mean and of the differences
    // are never so close that subtracting them would lose precision: sigma^2 is at least 1/9.
    acc moments[6] = {};  // sums and squares of the three colours
    for_my_dilations([&](int) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          moments[c] += difference[j][c];
          moments[3 + c] += difference[j][c] * difference[j][c];
        }
      }
    });
    across_warps(moments, [](acc p, acc q) { return p + q; });
    const acc values = deviation_values<kind, acc>(s.dilations);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const acc squares = moments[3 + c] - moments[c] * moments[c] / values;
      slope[c] = steepness<kind>(max(squares / (values - acc(1)), acc(0)));
    }
  } else {
    // The pixel does not count, and the mean has to come first.
    acc mean[3] = {}, squares[3] = {};
#pragma unroll
    for (int c = 0; c < 3; ++c) least[c] = std::numeric_limits<acc>::infinity();
    for_my_dilations([&](int) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          mean[c] += difference[j][c];
          least[c] = min(least[c], abs(difference[j][c]));
        }
      }
    });
    across_warps(mean, [](acc p, acc q) { return p + q; });
    across_warps(least, [](acc p, acc q) { return min(p, q); });
    const acc values = deviation_values<kind, acc>(s.dilations);
#pragma unroll
    for (int c = 0; c < 3; ++c) mean[c] /= values;
    for_my_dilations([&](int) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int c = 0; c < 3; ++c) squares[c] += (difference[j][c] - mean[c]) * (difference[j][c] - mean[c]);
      }
    });
    across_warps(squares, [](acc p, acc q) { return p + q; });
#pragma unroll
    for (int c = 0; c < 3; ++c) slope[c] = steepness<kind>(squares[c] / (values - acc(1)));
  }
  const auto similarity_of = [&](int j) {
    acc k = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c) k += similarity<kind>(difference[j][c], least[c], slope[c]);
    return k;
  };

  acc peak[1] = {-std::numeric_limits<acc>::infinity()};
  for_my_dilations([&](int) {
#pragma unroll
    for (int j = 0; j < 8; ++j) peak[0] = max(peak[0], similarity_of(j));
  });
  across_warps(peak, [](acc p, acc q) { return max(p, q); });
  acc norm[1] = {0}, weight[8];
  const auto weigh = [&] {
#pragma unroll
    for (int j = 0; j < 8; ++j) weight[j] = exp(similarity_of(j) - peak[0]);
  };
  for_my_dilations([&](int) {
    weigh();
#pragma unroll
    for (int j = 0; j < 8; ++j) norm[0] += weight[j];
  });
  across_warps(norm, [](acc p, acc q) { return p + q; });
  if (tile + threadIdx.x >= P) return;
  acc* out = affinity + b * s.neighbours() * P + pixel;
  for_my_dilations([&](int d) {
    if (!one_each) weigh();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      acc a = weight[j] / norm[0];
      if constexpr (kind == Affinity::kPar) a += j == 0 || j == 2 || j == 5 || j == 7 ? s.corner[d] : s.beside[d];
      out[(8 * d + j) * P] = a;
    }
  });
}

// The mask's value at a pixel of the image: resized if their sizes differ (bilinear, corners aligned).
template <class acc>
__device__ acc mask_at(const AnyMap& mask, int mask_height, int mask_width, const Stencil& s, int64_t plane, int y,
                       int x) {
  const auto value = [&](int64_t row, int64_t column) {
    return read_as<acc>(mask.data, mask.dtype, plane + mask.offset(row * mask_width + column));
  };
  if (mask_height == s.height && mask_width == s.width) return value(y, x);
  const AlignedCorners<acc> down(y, s.height, mask_height), along(x, s.width, mask_width);
  const auto across = [&](int64_t row) { return blend(value(row, along.low), value(row, along.high), along.weight); };
  return blend(across(down.low), across(down.high), down.weight);
}

// Whether an image shows a class, or nobody says so.
struct Shown {
  AnyMatrix labels;  // (B, C-1), without data if all classes are to be refined

  template <class acc>
  __device__ bool at(int64_t b, int64_t c) const {
    return !labels.data || c == 0 || labels.at<acc>(b, c - 1) != acc(0);
  }
};

// All iterations for `kPlanes` classes of an image, by one block, in shared memory: (P, kPlanes), old and new.
template <class acc, int kPlanes>
__global__ void __launch_bounds__(kRefineThreads, 1)
    pamr_refine_kernel(const acc* __restrict__ affinity, AnyMap mask, int mask_height, int mask_width, Shown shown,
                       Stencil s, int iterations, int groups, acc* __restrict__ refined) {
  using Values = Pack<acc, kPlanes>;
  const int P = s.pixels(), first = blockIdx.x % groups * kPlanes;
  const int64_t b = blockIdx.x / groups, C = mask.classes;
  const int count = min(static_cast<int>(C) - first, kPlanes);
  acc* out = refined + (b * C + first) * P;
  if (kPlanes == 1 && !shown.at<acc>(b, first)) {
    for (int p = threadIdx.x; p < P; p += blockDim.x) out[p] = acc(0);
    return;
  }
  Values *from = shared_memory<Values>(), *to = from + P;
  for (int p = threadIdx.x; p < P; p += blockDim.x) {
    const int y = p / s.width, x = p - y * s.width;
#pragma unroll
    for (int k = 0; k < kPlanes; ++k) {
      const int64_t plane = b * mask.batch_stride + min(first + k, static_cast<int>(C) - 1) * mask.class_stride;
      from[p].value[k] = mask_at<acc>(mask, mask_height, mask_width, s, plane, y, x);
    }
  }
  __syncthreads();
  const acc* weights = affinity + b * s.neighbours() * P;
  for (int i = 1; i <= iterations; ++i) {
    for (int p = threadIdx.x; p < P; p += blockDim.x) {
      const int y = p / s.width, x = p - y * s.width;
      Values sum{};
#pragma unroll 1
      for (int d = 0; d < s.dilations; ++d) {
        const acc* weight = weights + 8 * d * P + p;
        Around(s, y, x, s.distance[d]).each([&](int j, int row, int column) {
          const acc a = __ldg(weight + j * P);
          const Values neighbour = from[row * s.width + column];
#pragma unroll
          for (int k = 0; k < kPlanes; ++k) sum.value[k] += a * neighbour.value[k];
        });
      }
      if (i < iterations) {
        to[p] = sum;
      } else {
#pragma unroll
        for (int k = 0; k < kPlanes; ++k) {
          if (k < count) out[k * P + p] = sum.value[k];
        }
      }
    }
    __syncthreads();
    Values* written = to;
    to = from;
    from = written;
  }
}

// For maps whose planes find no room in shared memory: the mask as (B, C, H, W) acc, then a launch for each iteration.
template <class acc>
__global__ void __launch_bounds__(kThreads, 1)
    pamr_resize_kernel(AnyMap mask, int mask_height, int mask_width, Shown shown, Stencil s, int tiles,
                       acc* __restrict__ resized) {
  const int64_t plane = blockIdx.x / tiles, b = plane / mask.classes, c = plane % mask.classes;
  const int pixel = blockIdx.x % tiles * kThreads + threadIdx.x, y = pixel / s.width;
  if (pixel >= s.pixels() || !shown.at<acc>(b, c)) return;
  resized[plane * s.pixels() + pixel] = mask_at<acc>(
      mask, mask_height, mask_width, s, b * mask.batch_stride + c * mask.class_stride, y, pixel - y * s.width);
}

// One iteration: a lane has a pixel, a warp a group of classes. from, to: (B, C, P).
template <class acc>
__global__ void __launch_bounds__(kLanes* kGroupWarps, 1)
    pamr_step_kernel(const acc* __restrict__ affinity, const acc* __restrict__ from, int classes, Shown shown,
                     Stencil s, int tiles, acc* __restrict__ to) {
  const int64_t P = s.pixels(), b = blockIdx.x / tiles;
  const int pixel = blockIdx.x % tiles * kLanes + threadIdx.x, y = pixel / s.width, x = pixel - y * s.width;
  const int first = (blockIdx.y * blockDim.y + threadIdx.y) * kGroup;
  if (pixel >= P || first >= classes) return;
  const acc* planes = from + (b * classes + first) * P;
  bool wanted[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) wanted[k] = first + k < classes && shown.at<acc>(b, first + k);
  acc sum[kGroup] = {};
#pragma unroll 1
  for (int d = 0; d < s.dilations; ++d) {
    const acc* weight = affinity + (b * s.neighbours() + 8 * d) * P + pixel;
    Around(s, y, x, s.distance[d]).each([&](int j, int row, int column) {
      const acc a = __ldg(weight + j * P);
      const acc* neighbour = planes + row * s.width + column;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (wanted[k]) sum[k] += a * neighbour[k * P];
      }
    });
  }
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if (first + k < classes) to[(b * classes + first + k) * P + pixel] = sum[k];
  }
}

// A call, as its launches see it.
template <class acc>
struct Call {
  AnyMap image, mask;
  int mask_height, mask_width;
  Shown shown;
  Stencil s;
  int iterations;
  cudaStream_t stream;
  acc *affinity, *refined;

  template <Affinity kind>
  void work_out_affinities(const AffinityStencil<kind, acc>& around) const {
    const int tiles = (s.pixels() + kLanes - 1) / kLanes, warps = std::min(s.dilations, kDilationWarps);
    with_type_of(image.dtype, [&](auto type) {
      pamr_affinity_kernel<kind, acc, decltype(type)>
          <<<image.batch * tiles, dim3(kLanes, warps), warps * kLanes * 6 * sizeof(acc), stream>>>(image, around, tiles,
                                                                                                   affinity);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static size_t plane_bytes(const Stencil& s, int planes) { return 2 * planes * s.pixels() * sizeof(acc); }

  template <int kPlanes>
  void refine_in_shared_memory() const {
    const int groups = (mask.classes + kPlanes - 1) / kPlanes;
    const int threads = std::min(kRefineThreads, (s.pixels() + kLanes - 1) / kLanes * kLanes);
    const size_t bytes = plane_bytes(s, kPlanes);
    allow_shared(pamr_refine_kernel<acc, kPlanes>, bytes);
    pamr_refine_kernel<acc, kPlanes><<<mask.batch * groups, threads, bytes, stream>>>(
        affinity, mask, mask_height, mask_width, shown, s, iterations, groups, refined);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  void refine_step_by_step(acc* other) const {
    acc *to = iterations % 2 ? refined : other, *from = iterations % 2 ? other : refined;
    const int64_t blocks = (s.pixels() + kThreads - 1) / kThreads;
    pamr_resize_kernel<acc><<<mask.batch * mask.classes * blocks, kThreads, 0, stream>>>(mask, mask_height, mask_width,
                                                                                         shown, s, blocks, from);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const int tiles = (s.pixels() + kLanes - 1) / kLanes, groups = (mask.classes + kGroup - 1) / kGroup;
    const dim3 threads(kLanes, std::min(kGroupWarps, groups));
    const dim3 grid(mask.batch * tiles, (groups + threads.y - 1) / threads.y);
    for (int i = 0; i < iterations; ++i, std::swap(from, to)) {
      pamr_step_kernel<acc><<<grid, threads, 0, stream>>>(affinity, from, mask.classes, shown, s, tiles, to);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
};

template <Affinity kind, class acc>
void refine_images(const Tensor& image, const Tensor& mask, const std::optional<Tensor>& image_labels,
                   int64_t iterations, const std::vector<int64_t>& dilations, Tensor& refined) {
  Stencil s{static_cast<int>(image.size(2)), static_cast<int>(image.size(3)), static_cast<int>(dilations.size()), {}};
  const int64_t far = std::max(s.height, s.width);  // further out there is nothing but the border again
  std::transform(dilations.begin(), dilations.end(), s.distance,
                 [far](int64_t distance) { return static_cast<int>(std::min(distance, far)); });
  Tensor affinity = torch::stable::new_empty(refined, {image.size(0), s.neighbours(), s.pixels()});
  const Shown shown{image_labels ? any_matrix(*image_labels) : AnyMatrix{}};
  AnyMap colours = any_map(image);  // kernels count its rows and columns apart
  colours.row_stride = image.stride(2), colours.pixel_stride = image.stride(3);
  const Call<acc> call{colours,
                       any_map(mask),
                       static_cast<int>(mask.size(2)),
                       static_cast<int>(mask.size(3)),
                       shown,
                       s,
                       static_cast<int>(iterations),
                       current_stream(image),
                       mutable_data<acc>(affinity),
                       mutable_data<acc>(refined)};
  if constexpr (kind == Affinity::kPamr) {
    call.template work_out_affinities<kind>(s);
  } else {
    call.template work_out_affinities<kind>({s, nearness_of(dilations)});
  }
  // With labels few classes are left of an image, and a block for each keeps more processors busy. Without, several
  // share the affinities once they are loaded.
  if (!image_labels && mask.size(1) > 1 && call.plane_bytes(s, 4) <= kPlaneBytes) {
    call.template refine_in_shared_memory<4>();
  } else if (call.plane_bytes(s, 1) <= kPlaneBytes) {
    call.template refine_in_shared_memory<1>();
  } else {
    Tensor other = torch::stable::new_empty(refined, refined.sizes());
    call.refine_step_by_step(mutable_data<acc>(other));
  }
}

template <Affinity kind>
Tensor refine(const char* op, const Tensor& image, const Tensor& mask, const std::optional<Tensor>& image_labels,
              int64_t iterations, const std::vector<int64_t>& dilations) {
  check_refinement(op, image, mask, image_labels, iterations, dilations, kMaxDilations);
  STD_TORCH_CHECK(image.size(2) <= std::numeric_limits<int>::max() / image.size(3), op,
                  ": image must have fewer than 2^31 pixels on this device, got ", shape_text(image));
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  const ScalarType dtype = acc_dtype(image, mask);
  Tensor refined = torch::stable::new_empty(mask, {mask.size(0), mask.size(1), image.size(2), image.size(3)}, dtype);
  if (mask.size(0) == 0) return refined;
  with_acc(dtype, [&](auto type) {
    refine_images<kind, decltype(type)>(image, mask, image_labels, iterations, dilations, refined);
  });
  return refined;
}

Tensor pamr(const Tensor& image, const Tensor& mask, std::optional<Tensor> image_labels, int64_t iterations,
            std::vector<int64_t> dilations) {
  return refine<Affinity::kPamr>("pamr", image, mask, image_labels, iterations, dilations);
}

Tensor par(const Tensor& image, const Tensor& mask, std::optional<Tensor> image_labels, int64_t iterations,
           std::vector<int64_t> dilations) {
  return refine<Affinity::kPar>("par", image, mask, image_labels, iterations, dilations);
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("pamr", TORCH_BOX(&wilson::pamr));
  m.impl("par", TORCH_BOX(&wilson::par));
}
