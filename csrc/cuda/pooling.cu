// nGWP + focal pooling on NVIDIA GPUs. Formulas: math/pooling.h. How a kernel goes through a tile: cuda/common/tiles.h.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"
#include "math/pooling.h"

namespace wilson {
namespace {

// The backward computes the softmax anew: forward and backward move 3 maps, with a softmax that is kept they move 5.

constexpr int kTileWarps = 8;  // warps that share out the tiles of an image and 32 classes

// sums: (B, tiles, 2, C), S and T of each tile. Shared memory: what across_warps takes, then at `offset` the scores of
// the tile if there is room.
template <class Moves>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    ngwp_focal_pool_fwd_kernel(AnyMap scores, int offset, unsigned tiles, typename Moves::acc* __restrict__ sums) {
  using acc = typename Moves::acc;
  constexpr int n = Moves::n;
  const Scores<Moves> z(scores, place_of(tiles), offset);
  fetch<Moves>(z);
  const int classes = static_cast<int>(scores.classes);
  Softmax<acc, n> softmax;
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) softmax.add(z.load(c));
  softmax.join();
  acc weight[n];
#pragma unroll
  for (int i = 0; i < n; ++i) weight[i] = z.pixels.inside(i) ? acc(1) / softmax.sum[i] : acc(0);
  acc* tile_sums = sums + static_cast<int64_t>(blockIdx.x) * 2 * classes;
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    const auto pack = z.again(c);
    acc mass = 0, total = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc score = static_cast<acc>(pack.value[i]), m = exp(score - softmax.peak[i]) * weight[i];
      mass += m;
      total += m * counted_score(score);
    }
    mass = warp_sum(mass);
    total = warp_sum(total);
    if (threadIdx.x == 0) {
      tile_sums[c] = mass;
      tile_sums[classes + c] = total;
    }
  }
}

// Adds up the tiles of each image and class. A column of threads has a class; its threads are added in order.
template <class acc>
__global__ void __launch_bounds__(kLanes* kTileWarps)
    ngwp_focal_pool_finish_kernel(const acc* __restrict__ sums, int64_t tiles, int64_t classes,
                                  PoolingOptions<acc> options, acc* __restrict__ pooled, acc* __restrict__ mass,
                                  acc* __restrict__ score) {
  __shared__ acc shared[2][kTileWarps][kLanes];
  const int64_t groups = (classes + kLanes - 1) / kLanes;
  const int64_t b = blockIdx.x / groups, c = blockIdx.x % groups * kLanes + threadIdx.x;
  acc S = 0, total = 0;
  if (c < classes) {
    for (int64_t tile = threadIdx.y; tile < tiles; tile += kTileWarps) {
      const acc* tile_sums = sums + (b * tiles + tile) * 2 * classes + c;
      S += tile_sums[0];
      total += tile_sums[classes];
    }
  }
  shared[0][threadIdx.y][threadIdx.x] = S;
  shared[1][threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y > 0 || c >= classes) return;
  for (int warp = 1; warp < kTileWarps; ++warp) {
    S += shared[0][warp][threadIdx.x];
    total += shared[1][warp][threadIdx.x];
  }
  const int64_t i = b * classes + c;
  mass[i] = S;
  score[i] = mean_score(S, total, options);
  pooled[i] = with_penalty(score[i], S, options);
}

// Shared memory: what across_warps takes, the slopes (C), then the scores of the tile if there is room.
template <class Moves>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    ngwp_focal_pool_bwd_kernel(AnyMatrix grad_pooled, AnyMap scores, const typename Moves::acc* __restrict__ mass,
                               const typename Moves::acc* __restrict__ score,
                               PoolingOptions<typename Moves::acc> options, int offset, unsigned tiles,
                               AnyMap grad_scores) {
  using acc = typename Moves::acc;
  constexpr int n = Moves::n;
  const Place place = place_of(tiles);
  const int classes = static_cast<int>(scores.classes);
  auto* slopes = reinterpret_cast<PoolingSlopes<acc>*>(shared_memory<acc>() + exchange_count<Moves>());
  for (int c = threadIdx.y * kLanes + threadIdx.x; c < classes; c += kLanes * blockDim.y) {
    const int64_t i = place.b * classes + c;
    slopes[c] = pooling_slopes(grad_pooled.at<acc>(place.b, c), mass[i], score[i], options);
  }
  __syncthreads();

  const Scores<Moves> z(scores, place, offset);
  const Pixels<Moves> out(grad_scores, place, offset);
  fetch<Moves>(z);
  acc peak[n], norm[n] = {}, inner[n] = {}, weight[n];
#pragma unroll
  for (int i = 0; i < n; ++i) peak[i] = std::numeric_limits<acc>::lowest();
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    const auto [A, B] = slopes[c];
    const auto pack = z.load(c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc value = static_cast<acc>(pack.value[i]);
      const Step<acc> step = softmax_step(peak[i], value);
      norm[i] = step.before * norm[i] + step.now;
      inner[i] = step.before * inner[i] + step.now * (A + B * counted_score(value));
    }
  }
  share_peak(peak, weight);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    norm[i] *= weight[i];
    inner[i] *= weight[i];
  }
  across_warps(norm, [](acc a, acc b) { return a + b; });
  across_warps(inner, [](acc a, acc b) { return a + b; });
#pragma unroll
  for (int i = 0; i < n; ++i) {
    weight[i] = acc(1) / norm[i];
    inner[i] *= weight[i];
  }
#pragma unroll 1
  for (int c = threadIdx.y; c < classes; c += blockDim.y) {
    const auto [A, B] = slopes[c];
    const auto pack = z.again(c);
    acc value[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc x = static_cast<acc>(pack.value[i]), m = exp(x - peak[i]) * weight[i];
      value[i] = m * ((A + B * counted_score(x)) - inner[i] + B);
    }
    out.store(c, value);
  }
  put(out);
}

std::tuple<Tensor, Tensor, Tensor> ngwp_focal_pool(const Tensor& scores, double eps, double gamma, double lam,
                                                   bool focal) {
  check_map("ngwp_focal_pool", "scores", scores);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const cudaStream_t stream = current_stream(scores);
  const ScalarType dtype = acc_dtype(scores);
  const AnyMap z = any_map(scores);
  const int64_t B = z.batch, C = z.classes;
  Tensor pooled = torch::stable::new_empty(scores, {B, C}, dtype),
         mass = torch::stable::new_empty(scores, {B, C}, dtype),
         score = torch::stable::new_empty(scores, {B, C}, dtype);
  if (B == 0) return {pooled, mass, score};
  with_moves(
      dtype,
      [&](auto moves) {
        using Moves = decltype(moves);
        using acc = typename Moves::acc;
        const Launch launch = launch_for<Moves>(z.pixels, C);
        const Room room = room_to_keep<Moves>(C, launch.exchange_bytes, z);
        Tensor sums = torch::stable::new_empty(scores, {B, launch.tiles, 2, C}, dtype);
        allow_shared(ngwp_focal_pool_fwd_kernel<Moves>, room.bytes);
        ngwp_focal_pool_fwd_kernel<Moves><<<B * launch.tiles, launch.threads, room.bytes, stream>>>(
            z, room.offset, launch.tiles, mutable_data<acc>(sums));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        const int64_t groups = (C + kLanes - 1) / kLanes;
        const auto options = pooling_options<acc>(eps, gamma, lam, z.pixels, focal);
        ngwp_focal_pool_finish_kernel<acc><<<B * groups, dim3(kLanes, kTileWarps), 0, stream>>>(
            const_data<acc>(sums), launch.tiles, C, options, mutable_data<acc>(pooled), mutable_data<acc>(mass),
            mutable_data<acc>(score));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      z);
  return {pooled, mass, score};
}

Tensor ngwp_focal_pool_backward(const Tensor& grad_pooled, const Tensor& scores, const Tensor& mass,
                                const Tensor& score, double eps, double gamma, double lam, bool focal) {
  check_map("ngwp_focal_pool_backward", "scores", scores);
  check_statistic("ngwp_focal_pool_backward", "grad_pooled", grad_pooled, scores);
  check_statistic("ngwp_focal_pool_backward", "mass", mass, scores);
  check_statistic("ngwp_focal_pool_backward", "score", score, scores);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  Tensor grad_scores = torch::stable::empty_like(scores);
  const AnyMap z = any_map(scores), out = any_map(grad_scores);
  if (z.batch == 0) return grad_scores;
  with_moves(
      acc_dtype(scores),
      [&](auto moves) {
        using Moves = decltype(moves);
        using acc = typename Moves::acc;
        const Launch launch = launch_for<Moves>(z.pixels, z.classes);
        const size_t taken = launch.exchange_bytes + z.classes * sizeof(PoolingSlopes<acc>);
        const Room room = room_to_keep<Moves>(z.classes, taken, z, out);
        const auto options = pooling_options<acc>(eps, gamma, lam, z.pixels, focal);
        allow_shared(ngwp_focal_pool_bwd_kernel<Moves>, room.bytes);
        ngwp_focal_pool_bwd_kernel<Moves>
            <<<z.batch * launch.tiles, launch.threads, room.bytes, current_stream(scores)>>>(
                any_matrix(grad_pooled), z, const_data<acc>(mass), const_data<acc>(score), options, room.offset,
                launch.tiles, out);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      z, out);
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("ngwp_focal_pool", TORCH_BOX(&wilson::ngwp_focal_pool));
  m.impl("ngwp_focal_pool_backward", TORCH_BOX(&wilson::ngwp_focal_pool_backward));
}
