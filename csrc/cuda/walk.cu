// Scores that walk at random and stop at edges (IRN) on NVIDIA GPUs. Ahn et al., CVPR 2019. Formulas: math/walk.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/tiles.h"
#include "math/walk.h"

namespace wilson {
namespace {

constexpr int kWeightThreads = 128;
constexpr int kWalkThreads = 1024;
// Shared memory for the scores of a block, before and after a step: what every GPU since sm_80 has.
constexpr size_t kScoreBytes = 99 * 1024;
// Maps that have no room there go in tiles, so many steps a launch: a tile of 48 x 48 then begins with 112 x 112
// pixels, and walks 2.7 times its own. Twice the steps would leave no tile at all, half of them twice the launches.
constexpr int kFusedSteps = 8;
constexpr int kLeastShare = 6;  // of a side is the tile, or the steps are fewer: at large radii
// Classes of a block share the weights once they are loaded. With fewer blocks than GPUs have processors, one class a
// block makes more of them.
constexpr int kPlanes = 4;
constexpr int64_t kManyBlocks = 128;

struct Stencil {
  int height, width;
  int reach;  // rows and columns to the furthest neighbour
  int links;
  int down[kMostLinks], right[kMostLinks];

  __host__ __device__ int pixels() const { return height * width; }
  // How far scores get in so many steps, if the map is so large.
  __host__ __device__ int halo(int steps) const { return min(steps, max(height, width)) * reach; }
};

Stencil stencil_of(const Tensor& scores, int64_t radius) {
  Stencil s{
      static_cast<int>(scores.size(2)), static_cast<int>(scores.size(3)), static_cast<int>(radius) - 1, 0, {}, {}};
  each_link(static_cast<int>(radius), [&](int down, int right) {
    if (down >= s.height || std::abs(right) >= s.width) return;
    s.down[s.links] = down, s.right[s.links] = right, ++s.links;
  });
  return s;
}

// weights: (B, links + 1, P): a^beta of each link of each pixel, 0 where it leads out of the map; then 1 over the sum
// of the weights of all links that begin or end in the pixel, and its own of 1.
template <class acc, class T>
__global__ void __launch_bounds__(kWeightThreads, 1)
    walk_weights_kernel(AnyMap edge, Stencil s, acc beta, int tiles, acc* __restrict__ weights) {
  const int64_t b = blockIdx.x / tiles, P = s.pixels();
  const int pixel = blockIdx.x % tiles * kWeightThreads + threadIdx.x;
  if (pixel >= P) return;
  const int y = pixel / s.width, x = pixel - y * s.width;
  const T* edges = edge.image<T>(b);
  const auto weight_of = [&](int row, int column, int down, int right) {  // of a link, and where it begins
    if (row < 0 || row + down >= s.height || min(column, column + right) < 0 ||
        max(column, column + right) >= s.width) {
      return acc(0);
    }
    acc strongest = -std::numeric_limits<acc>::infinity();
    each_on_path(down, right, [&](int i, int j) {
      const T e = edges[(row + i) * edge.row_stride + (column + j) * edge.pixel_stride];
      strongest = max(strongest, static_cast<acc>(e));
    });
    const acc affinity = acc(1) - strongest;
    return affinity > acc(0) ? exp(beta * log(affinity)) : acc(0);
  };
  acc total = 0;  // the pixel's own 1 comes last, here as in a step: it would swallow many of the weights one by one
  acc* out = weights + b * (s.links + 1) * P + pixel;
#pragma unroll 1
  for (int n = 0; n < s.links; ++n) {
    const int down = s.down[n], right = s.right[n];
    const acc weight = weight_of(y, x, down, right);
    total += weight + weight_of(y - down, x - right, down, right);
    out[n * P] = weight;
  }
  out[s.links * P] = acc(1) / (acc(1) + total);
}

// Rows or columns from `begin` to `end`.
struct Range {
  int begin, end;

  __device__ int count() const { return end - begin; }
  // With so many more on either side, as far as there are any.
  __device__ Range around(int more, int size) const { return {max(begin - more, 0), min(end + more, size)}; }
};

// Some steps of `planes` classes of a tile of an image, in shared memory: (pixels, planes), before and after a step. In
// each step there are less pixels around the tile: those that the steps left to go still reach it from.
// edge: without data after the first steps of a walk.
template <class acc, int planes>
__global__ void __launch_bounds__(kWalkThreads, 1)
    walk_kernel(const acc* __restrict__ weights, AnyMap scores, AnyMap edge, Stencil s, int tile_rows, int tile_columns,
                int steps, acc* __restrict__ walked) {
  using Values = Pack<acc, planes>;
  const int P = s.pixels(), across = (s.width + tile_columns - 1) / tile_columns;
  const int tiles = (s.height + tile_rows - 1) / tile_rows * across;
  const int groups = (static_cast<int>(scores.classes) + planes - 1) / planes;
  const int64_t b = blockIdx.x / tiles / groups;
  const int tile = blockIdx.x % tiles, first = blockIdx.x / tiles % groups * planes;
  const int top = tile / across * tile_rows, left = tile % across * tile_columns;
  const Range rows{top, min(top + tile_rows, s.height)}, columns{left, min(left + tile_columns, s.width)};
  const Range all_rows = rows.around(s.halo(steps), s.height), all_columns = columns.around(s.halo(steps), s.width);
  const int pitch = all_columns.count(), size = all_rows.count() * pitch;
  Values *from = shared_memory<Values>(), *to = from + size;

  // Calls visit(pixel of the map, of the block) for the pixels of some rows and columns.
  const auto each_pixel = [&](const Range& ys, const Range& xs, auto visit) {
    const int width = xs.count(), count = ys.count() * width;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const int row = i / width, y = ys.begin + row, x = xs.begin + i - row * width;
      visit(y * s.width + x, (y - all_rows.begin) * pitch + x - all_columns.begin);
    }
  };
  each_pixel(all_rows, all_columns, [&](int p, int at) {
    const acc rest =
        edge.data ? acc(1) - read_as<acc>(edge.data, edge.dtype, b * edge.batch_stride + edge.offset(p)) : acc(1);
    const int64_t of_image = b * scores.batch_stride + scores.offset(p);
    to[at] = Values{};  // pixels that no step reaches are read, too, where a link leads out of the map
#pragma unroll
    for (int k = 0; k < planes; ++k) {
      const int c = min(first + k, static_cast<int>(scores.classes) - 1);
      from[at].value[k] = rest * read_as<acc>(scores.data, scores.dtype, of_image + c * scores.class_stride);
    }
  });
  __syncthreads();
  weights += b * (s.links + 1) * P;
  for (int left_to_go = steps - 1; left_to_go >= 0; --left_to_go) {
    const int more = s.halo(left_to_go);
    each_pixel(rows.around(more, s.height), columns.around(more, s.width), [&](int p, int at) {
      Values sum{};
      const Values own = from[at];
      const acc* weight = weights + p;
#pragma unroll 2
      for (int n = 0; n < s.links; ++n, weight += P) {
        const int back = s.down[n] * s.width + s.right[n], step = s.down[n] * pitch + s.right[n];
        const acc forth = __ldg(weight), other = p >= back ? __ldg(weight - back) : acc(0);
        // a link that leads out of the map has a weight of 0, and points at another pixel, or beside the block's memory
        const Values next = from[min(at + step, size - 1)], last = from[max(at - step, 0)];
#pragma unroll
        for (int k = 0; k < planes; ++k) {
          sum.value[k] = fma(forth, next.value[k], sum.value[k]);
          sum.value[k] = fma(other, last.value[k], sum.value[k]);
        }
      }
      const acc share = __ldg(weight);
#pragma unroll
      for (int k = 0; k < planes; ++k) sum.value[k] = (own.value[k] + sum.value[k]) * share;
      to[at] = sum;
    });
    __syncthreads();
    Values* written = to;
    to = from;
    from = written;
  }
  acc* out = walked + (b * scores.classes + first) * P;
  each_pixel(rows, columns, [&](int p, int at) {
#pragma unroll
    for (int k = 0; k < planes; ++k) {
      if (first + k < scores.classes) out[int64_t(k) * P + p] = from[at].value[k];
    }
  });
}

// A call, as its launches see it.
template <class acc>
struct Call {
  AnyMap edge;
  Stencil s;
  cudaStream_t stream;
  acc* weights;

  void weigh(acc beta) const {
    const int tiles = (s.pixels() + kWeightThreads - 1) / kWeightThreads;
    with_type_of(edge.dtype, [&](auto type) {
      walk_weights_kernel<acc, decltype(type)>
          <<<edge.batch * tiles, kWeightThreads, 0, stream>>>(edge, s, beta, tiles, weights);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // Takes some steps, in tiles of so many rows and columns.
  template <int planes>
  void walk(const AnyMap& scores, bool begins, int rows, int columns, int steps, acc* walked) const {
    const auto blocks_of = [](int64_t size, int64_t part) { return (size + part - 1) / part; };
    const auto with_halo = [&](int side, int size) { return std::min(size, side + 2 * s.halo(steps)); };
    const int pixels = with_halo(rows, s.height) * with_halo(columns, s.width);
    const int threads = std::min(kWalkThreads, (pixels + kLanes - 1) / kLanes * kLanes);
    const size_t bytes = 2 * planes * sizeof(acc) * pixels;
    AnyMap edges = edge;
    if (!begins) edges.data = nullptr;
    allow_shared(walk_kernel<acc, planes>, bytes);
    walk_kernel<acc, planes>
        <<<scores.batch * blocks_of(scores.classes, planes) * blocks_of(s.height, rows) * blocks_of(s.width, columns),
           threads, bytes, stream>>>(weights, scores, edges, s, rows, columns, steps, walked);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

template <class acc>
void walk_maps(const Tensor& scores, const Tensor& edge, double beta, int64_t steps, const Stencil& s, Tensor& walked) {
  Tensor weights = torch::stable::new_empty(walked, {scores.size(0), s.links + 1, s.pixels()});
  AnyMap edges = any_map(edge);  // kernels count its rows and columns apart
  edges.width = edge.size(3), edges.row_stride = edge.stride(2), edges.pixel_stride = edge.stride(3);
  const AnyMap maps = any_map(scores);
  const Call<acc> call{edges, s, current_stream(scores), mutable_data<acc>(weights)};
  call.weigh(static_cast<acc>(beta));
  const size_t plane_bytes = 2 * sizeof(acc) * size_t(s.pixels());
  const int all = static_cast<int>(steps);
  acc* result = mutable_data<acc>(walked);
  if (kPlanes * plane_bytes <= kScoreBytes && maps.batch * maps.classes > kManyBlocks) {
    return call.template walk<kPlanes>(maps, true, s.height, s.width, all, result);
  }
  if (plane_bytes <= kScoreBytes) return call.template walk<1>(maps, true, s.height, s.width, all, result);

  const int side = static_cast<int>(std::sqrt(kScoreBytes / (2 * sizeof(acc))));
  int fused = kFusedSteps;
  while (kLeastShare * (side - 2 * fused * s.reach) < side) --fused;
  const int tile = side - 2 * fused * s.reach;
  Tensor other = torch::stable::new_empty(walked, walked.sizes());
  const int launches = std::max(1, (all + fused - 1) / fused);
  AnyMap from = maps;
  for (int i = 0; i < launches; ++i) {
    Tensor& to = (launches - i) % 2 ? walked : other;
    call.template walk<1>(from, i == 0, tile, tile, std::min(fused, all - i * fused), mutable_data<acc>(to));
    from = any_map(to);
  }
}

Tensor random_walk(const Tensor& scores, const Tensor& edge, int64_t radius, double beta, int64_t steps) {
  check_random_walk(scores, edge, radius, beta, steps);
  STD_TORCH_CHECK(scores.size(2) <= std::numeric_limits<int>::max() / scores.size(3),
                  "random_walk: scores must have fewer than 2^31 pixels on this device, got ", shape_text(scores));
  STD_TORCH_CHECK(steps <= std::numeric_limits<int>::max(),
                  "random_walk: steps must be less than 2^31 on this device, got ", steps);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const ScalarType dtype = acc_dtype(scores, edge);
  Tensor walked =
      torch::stable::new_empty(scores, {scores.size(0), scores.size(1), scores.size(2), scores.size(3)}, dtype);
  if (scores.size(0) == 0) return walked;
  const Stencil s = stencil_of(scores, radius);
  with_acc(dtype, [&](auto type) { walk_maps<decltype(type)>(scores, edge, beta, steps, s, walked); });
  return walked;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) { m.impl("random_walk", TORCH_BOX(&wilson::random_walk)); }
