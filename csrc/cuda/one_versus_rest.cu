// One-versus-rest logits of a softmax model on NVIDIA GPUs. Formulas: math/one_versus_rest.h. How a kernel goes through
// a tile: cuda/common/tiles.h.
#include "math/one_versus_rest.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "checks.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"

namespace wilson {
namespace {

// t, u, R and exp(u - t) of a thread's pixels.
template <class acc, int n>
struct Others {
  acc top[n], second[n], sum[n] = {}, ratio[n];

  __device__ Others() {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      top[i] = -std::numeric_limits<acc>::infinity();
      second[i] = std::numeric_limits<acc>::lowest();  // not -inf: exp(-inf - u) is 0 then
    }
  }

  // Takes in the logits of one class; each warp has its own classes.
  template <class T>
  __device__ void add(const Pack<T, n>& pack) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc z = static_cast<acc>(pack.value[i]);
      add_other(i, z > top[i] ? top[i] : z);
      top[i] = max(top[i], z);
    }
  }

  // Joins the warps: the first of those that hold the highest keeps it, the highest of any other is one of the others.
  __device__ void join() {
    acc highest[n], owner[n], rescale[n];
#pragma unroll
    for (int i = 0; i < n; ++i) highest[i] = top[i];
    across_warps(highest, [](acc x, acc y) { return max(x, y); });
#pragma unroll
    for (int i = 0; i < n; ++i) owner[i] = static_cast<acc>(top[i] == highest[i] ? threadIdx.y : kMaxWarps);
    across_warps(owner, [](acc x, acc y) { return min(x, y); });
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (owner[i] != static_cast<acc>(threadIdx.y)) add_other(i, top[i]);
    }
    share_peak(second, rescale);
#pragma unroll
    for (int i = 0; i < n; ++i) sum[i] *= rescale[i];
    across_warps(sum, [](acc x, acc y) { return x + y; });
#pragma unroll
    for (int i = 0; i < n; ++i) {
      top[i] = highest[i];
      sum[i] += top[i] - top[i];  // NaN where the softmax is
      ratio[i] = exp(second[i] - top[i]);
    }
  }

  __device__ bool above(int i, acc z) const { return z > second[i]; }

 private:
  __device__ void add_other(int i, acc z) {
    const Step<acc> step = softmax_step(second[i], z);
    sum[i] = step.before * sum[i] + step.now;
  }
};

// Shared memory, here and in the backward: what across_warps takes, then the logits of the tile if there is room.
template <class Moves>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    one_versus_rest_fwd_kernel(AnyMap logits, int offset, unsigned tiles, AnyMap result) {
  using acc = typename Moves::acc;
  constexpr int n = Moves::n;
  const Place place = place_of(tiles);
  const Scores<Moves> z(logits, place, offset);
  const Pixels<Moves> out(result, place, offset);
  fetch<Moves>(z);
  Others<acc, n> others;
#pragma unroll 1
  for (int c = threadIdx.y; c < logits.classes; c += blockDim.y) others.add(z.load(c));
  others.join();
  acc of_above[n];
#pragma unroll
  for (int i = 0; i < n; ++i) of_above[i] = (others.top[i] - others.second[i]) - log(others.sum[i]);  // log(0) is -inf
#pragma unroll 1
  for (int c = threadIdx.y; c < logits.classes; c += blockDim.y) {
    const auto pack = z.again(c);
    acc value[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc s = static_cast<acc>(pack.value[i]);
      const acc beside = others_beside_top(exp(s - others.second[i]), others.sum[i], others.ratio[i]);
      value[i] = others.above(i, s) ? of_above[i] : (s - others.top[i]) - log1p(beside);
    }
    out.store(c, value);
  }
  put(out);
}

// After the logits come the gradients, if there is room for both.
template <class Moves>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    one_versus_rest_bwd_kernel(AnyMap grad, AnyMap logits, int offset, int grad_offset, unsigned tiles,
                               AnyMap grad_logits) {
  using acc = typename Moves::acc;
  constexpr int n = Moves::n;
  const Place place = place_of(tiles);
  const Scores<Moves> z(logits, place, offset), g(grad, place, Moves::staged ? offset : grad_offset);
  const Pixels<Moves> out(grad_logits, place, offset);
  fetch<Moves>(z, g);
  Others<acc, n> others;
#pragma unroll 1
  for (int c = threadIdx.y; c < logits.classes; c += blockDim.y) others.add(z.load(c));
  others.join();
  acc quotients[n] = {}, above[n] = {};
#pragma unroll 1
  for (int c = threadIdx.y; c < logits.classes; c += blockDim.y) {
    const auto scores = z.again(c), grads = g.load(c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc s = static_cast<acc>(scores.value[i]), slope = static_cast<acc>(grads.value[i]);
      const acc beside = others_beside_top(exp(s - others.second[i]), others.sum[i], others.ratio[i]);
      quotients[i] += others.above(i, s) ? acc(0) : slope / (acc(1) + beside);
      above[i] += others.above(i, s) ? slope : acc(0);
    }
  }
  across_warps(quotients, [](acc x, acc y) { return x + y; });
  across_warps(above, [](acc x, acc y) { return x + y; });
#pragma unroll
  for (int i = 0; i < n; ++i) above[i] = share_of_above(above[i], others.sum[i]);
#pragma unroll 1
  for (int c = threadIdx.y; c < logits.classes; c += blockDim.y) {
    const auto scores = z.again(c), grads = g.again(c);
    acc value[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc s = static_cast<acc>(scores.value[i]), slope = static_cast<acc>(grads.value[i]);
      const acc own = exp(s - others.second[i]), ratio = others.ratio[i];
      const acc quotient = slope / (acc(1) + others_beside_top(own, others.sum[i], ratio));
      value[i] = others.above(i, s) ? slope - quotients[i]
                                    : one_versus_rest_slope(slope, own, ratio, quotients[i], quotient, above[i]);
    }
    out.store(c, value);
  }
  put(out);
}

Tensor one_versus_rest(const Tensor& logits) {
  check_one_versus_rest("one_versus_rest", logits);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor result = torch::stable::empty_like(logits);
  const AnyMap from = any_map(logits), to = any_map(result);
  if (from.batch == 0) return result;
  with_moves(
      acc_dtype(logits),
      [&](auto moves) {
        using Moves = decltype(moves);
        const Launch launch = launch_for<Moves>(from.pixels, from.classes);
        const Room room = room_to_keep<Moves>(from.classes, launch.exchange_bytes, from, to);
        allow_shared(one_versus_rest_fwd_kernel<Moves>, room.bytes);
        one_versus_rest_fwd_kernel<Moves>
            <<<from.batch * launch.tiles, launch.threads, room.bytes, current_stream(logits)>>>(from, room.offset,
                                                                                                launch.tiles, to);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      from, to);
  return result;
}

Tensor one_versus_rest_backward(const Tensor& grad, const Tensor& logits) {
  check_one_versus_rest("one_versus_rest_backward", logits);
  check_map("one_versus_rest_backward", "grad", grad);
  check_same_shape("one_versus_rest_backward", "grad", grad, "logits", logits);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor grad_logits = torch::stable::empty_like(logits);
  const AnyMap g = any_map(grad), from = any_map(logits), to = any_map(grad_logits);
  if (from.batch == 0) return grad_logits;
  with_moves(
      acc_dtype(grad, logits),
      [&](auto moves) {
        using Moves = decltype(moves);
        const Launch launch = launch_for<Moves>(from.pixels, from.classes);
        const Room both = room_to_keep<Moves>(2 * from.classes, launch.exchange_bytes, from, g, to);
        const Room room =
            both.offset < 0 ? room_to_keep<Moves>(from.classes, launch.exchange_bytes, from, g, to) : both;
        const int grad_offset =
            both.offset < 0 ? -1 : both.offset + static_cast<int>(Scores<Moves>::bytes(from.classes));
        allow_shared(one_versus_rest_bwd_kernel<Moves>, room.bytes);
        one_versus_rest_bwd_kernel<Moves>
            <<<from.batch * launch.tiles, launch.threads, room.bytes, current_stream(logits)>>>(
                g, from, room.offset, grad_offset, launch.tiles, to);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      },
      g, from, to);
  return grad_logits;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("one_versus_rest", TORCH_BOX(&wilson::one_versus_rest));
  m.impl("one_versus_rest_backward", TORCH_BOX(&wilson::one_versus_rest_backward));
}
