// What several CUDA kernels add up: the softmax and the losses of a tile, across its warps; then the losses of all
// tiles, by a second kernel, in a fixed order and without atomics: the same bits in every run and in any batch.
#pragma once

#include <algorithm>
#include <limits>

#include "cuda/common/launch.h"
#include "cuda/common/tiles.h"
#include "math/logistic.h"

namespace wilson {

// ------------------------------------------------------------------------------------------------------ across a block

// Combines the values of all warps, lane by lane, in the order of the warps; the threads share them out. It takes
// shared memory for `n` numbers of each thread, from the start.
template <class acc, int n, class Combine>
__device__ void across_warps(acc (&value)[n], Combine combine) {
  if (blockDim.y == 1) return;
  constexpr int row = n * kLanes;  // of the values of a warp
  acc *all = shared_memory<acc>(), *lane = all + threadIdx.x;
#pragma unroll
  for (int i = 0; i < n; ++i) lane[threadIdx.y * row + i * kLanes] = value[i];
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.y * kLanes + threadIdx.x; i < row; i += blockDim.y * kLanes) {
    acc joined = all[i];
    for (int warp = 1; warp < blockDim.y; ++warp) joined = combine(joined, all[warp * row + i]);
    all[i] = joined;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) value[i] = lane[i * kLanes];
  __syncthreads();  // before the next call writes
}

// How many numbers those are.
template <class Moves>
__device__ int exchange_count() {
  return blockDim.y * Moves::n * kLanes;
}

template <class acc>
__device__ acc warp_sum(acc value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// The sum of the values of all threads, for all threads.
template <class acc>
__device__ acc block_sum(acc value) {
  __shared__ acc of_warp[kLanes];
  value = warp_sum(value);
  if (threadIdx.x == 0) of_warp[threadIdx.y] = value;
  __syncthreads();
  value = of_warp[0];
  for (int warp = 1; warp < blockDim.y; ++warp) value += of_warp[warp];
  __syncthreads();
  return value;
}

// ---------------------------------------------------------------------------------------------------- over the classes

// One step of a softmax over a stream of scores, relative to the largest so far:
//   sum = before * sum + now * term
// It takes one exponential, and a kernel reads the scores only once. The first peak is the lowest number: -inf adds 0
// then, and a pixel of nothing else has a sum of 0.
template <class acc>
struct Step {
  acc before, now;
};

template <class acc>
__device__ Step<acc> softmax_step(acc& peak, acc z, acc e) {  // e: exp(-|z - peak|)
  const acc rise = z - peak;
  peak = max(peak, z);
  return rise > acc(0) ? Step<acc>{e, acc(1)} : Step<acc>{acc(1), e};
}
template <class acc>
__device__ Step<acc> softmax_step(acc& peak, acc z) {
  return softmax_step(peak, z, exp(-abs(z - peak)));
}

// Makes `peak` the largest of all warps; `rescale` is what a warp then multiplies its sums by.
template <class acc, int n>
__device__ void share_peak(acc (&peak)[n], acc (&rescale)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) rescale[i] = peak[i];
  across_warps(peak, [](acc a, acc b) { return max(a, b); });
#pragma unroll
  for (int i = 0; i < n; ++i) rescale[i] = exp(rescale[i] - peak[i]);
}

// The softmax of a thread's pixels over classes.
template <class acc, int n>
struct Softmax {
  acc peak[n], sum[n] = {};  // the highest score, and the sum of exp(z - peak)

  __device__ Softmax() {
#pragma unroll
    for (int i = 0; i < n; ++i) peak[i] = std::numeric_limits<acc>::lowest();
  }

  // Takes in the scores of one class; each warp has its own classes.
  template <class T>
  __device__ void add(const Pack<T, n>& z) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const Step<acc> step = softmax_step(peak[i], static_cast<acc>(z.value[i]));
      sum[i] = step.before * sum[i] + step.now;
    }
  }

  // Joins the warps.
  __device__ void join() {
    acc rescale[n];
    share_peak(peak, rescale);
#pragma unroll
    for (int i = 0; i < n; ++i) sum[i] *= rescale[i];
    across_warps(sum, [](acc x, acc y) { return x + y; });
  }
};

// A sum of max(x, 0) - x q + log(1 + e) over many x, with e = exp(-|x|). Formulas: math/logistic.h.
template <class acc>
class LogisticSum {
 public:
  __device__ void add(acc x, acc q, acc e) {
    linear_ += linear_part(x, q);
    product_ = times_one_plus(product_, e);
  }

  // The same for q = 1 at a hit, else 0.
  __device__ void add(acc x, bool hit, acc e) {
    linear_ += positive_part(x) - (hit ? x : acc(0));
    product_ = times_one_plus(product_, e);
  }

  // After every `terms` calls of add.
  __device__ void added(int terms) {
    factors_ += terms;
    if (factors_ + terms > kMaxFactors) settle();
  }

  __device__ acc value() {
    settle();
    return total_;
  }

 private:
  __device__ void settle() {
    total_ += linear_ + log1p(product_);  // short sums first: less rounding
    linear_ = product_ = acc(0);
    factors_ = 0;
  }

  acc total_ = 0, linear_ = 0, product_ = 0;
  int factors_ = 0;
};

// ------------------------------------------------------------------------------------------------------ over the tiles

constexpr int kFinishWarps = 16;  // one block adds up all tiles: as many loads under way as it can have

// The sums of tiles as they are.
struct Unscaled {
  __device__ void load() {}
  __device__ double of(int64_t) const { return 1; }
};

// loss: the sum of scale.of(i) * sums[i] over the tiles i, divided by `pixels`. If there is `counted`, the sum of it,
// at least 1, takes the place of `pixels` and goes to `divisor`.
template <class acc, class Scale>
__global__ void __launch_bounds__(kLanes* kFinishWarps, 1)
    loss_finish_kernel(const acc* __restrict__ sums, const int32_t* __restrict__ counted, int64_t tiles, int64_t pixels,
                       Scale scale, acc* __restrict__ loss, acc* __restrict__ divisor) {
  scale.load();
  double total = 0;
  int64_t found = 0;
  for (int64_t i = threadIdx.y * kLanes + threadIdx.x; i < tiles; i += kLanes * kFinishWarps) {
    total += scale.of(i) * sums[i];
    if (counted) found += counted[i];
  }
  total = block_sum(total);
  if (counted) pixels = max(block_sum(found), int64_t(1));
  if (threadIdx.x > 0 || threadIdx.y > 0) return;
  *loss = static_cast<acc>(total / static_cast<double>(pixels));
  if (counted) *divisor = static_cast<acc>(pixels);
}

// sums: (tiles), in any shape; pixels: what the loss is divided by, unless there is `counted`, int32 like sums, whose
// sum goes to `divisor`.
template <class acc, class Scale = Unscaled>
void finish_loss(const Tensor& sums, int64_t pixels, Tensor& loss, Scale scale = {}, const Tensor* counted = nullptr,
                 Tensor* divisor = nullptr) {
  loss_finish_kernel<acc><<<1, dim3(kLanes, kFinishWarps), 0, current_stream(sums)>>>(
      const_data<acc>(sums), counted ? const_data<int32_t>(*counted) : nullptr, sums.numel(), pixels, scale,
      mutable_data<acc>(loss), divisor ? mutable_data<acc>(*divisor) : nullptr);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace wilson
