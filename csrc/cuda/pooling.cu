// nGWP + focal pooling on NVIDIA GPUs. Formulas: math/pooling.h.
//
// A block works on a tile: all classes of a run of pixels of one image. Its warps share the classes out, its lanes the
// pixels. The sums of the tiles are added in order by a second kernel, without atomics: the same bits in every run and
// in any batch.
#include <algorithm>
#include <limits>
#include <tuple>

#include "../common.h"
#include "../math/pooling.h"

namespace wilson {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxWarps = 16;
// Classes that a warp holds in registers, so that scores are read once: with 16 warps, up to 128 classes. Above that,
// classes are read twice. 8 of them take 32 registers.
constexpr int kHeld = 8;
constexpr int kFinishWarps = 8;

// Pixels of a thread: 16 bytes of each class where they can be moved at once, else at most 4 (8 would spill).
template <class T, bool kWide>
constexpr int kPixels = kWide ? 16 / sizeof(T) : std::min<int>(4, 16 / sizeof(T));

template <class T, bool kWide>
struct alignas(kPixels<T, kWide> * sizeof(T)) Pack {
  T value[kPixels<T, kWide>];
};

// The pixels of one thread. If kWide, neighbours that are moved 16 bytes at a time; else every 32nd pixel of the tile,
// anywhere in memory. Pixels outside of the image read as 0 and are not written.
template <class T, bool kWide>
class Pixels {
 public:
  template <class View>
  __device__ Pixels(const View& view, int64_t tile) {
    const int64_t first = tile * kLanes * n;
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const int64_t pixel = first + (kWide ? threadIdx.x * n : i * kLanes + threadIdx.x);
      inside_[i] = pixel < view.pixels;
      offset_[i] = kWide ? pixel : view.offset(pixel);
    }
  }

  __device__ bool inside(int i) const { return inside_[kWide ? 0 : i]; }

  __device__ Pack<T, kWide> load(const T* row) const {
    Pack<T, kWide> pack{};
    if constexpr (kWide) {
      if (inside_[0]) pack = *reinterpret_cast<const Pack<T, kWide>*>(row + offset_[0]);
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (inside_[i]) pack.value[i] = row[offset_[i]];
      }
    }
    return pack;
  }

  __device__ void store(T* row, const Pack<T, kWide>& pack) const {
    if constexpr (kWide) {
      if (inside_[0]) *reinterpret_cast<Pack<T, kWide>*>(row + offset_[0]) = pack;
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (inside_[i]) row[offset_[i]] = pack.value[i];
      }
    }
  }

 private:
  static constexpr int n = kPixels<T, kWide>, kRuns = kWide ? 1 : n;
  int64_t offset_[kRuns];
  bool inside_[kRuns];
};

// Calls body(k, c) for the k-th class c of this warp.
template <bool kHold, class Body>
__device__ void for_each_class(int classes, Body body) {
  if constexpr (kHold) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int c = threadIdx.y + k * blockDim.y;
      if (c < classes) body(k, c);
    }
  } else {
#pragma unroll 1
    for (int k = 0, c = threadIdx.y; c < classes; ++k, c += blockDim.y) body(k, c);
  }
}

// The scores of a tile as one thread sees them, held in registers if kHold, else read again each time.
template <class T, bool kWide, bool kHold>
class Scores {
 public:
  __device__ Scores(const MapView<const T>& view, int64_t b, int64_t tile)
      : pixels(view, tile), image_(view.data + b * view.batch_stride), class_stride_(view.class_stride) {
    if constexpr (kHold) {
      for_each_class<true>(view.classes, [&](int k, int c) { held_[k] = pixels.load(image_ + c * class_stride_); });
    }
  }

  __device__ Pack<T, kWide> get(int k, int c) const {
    if constexpr (kHold) {
      return held_[k];
    } else {
      return pixels.load(image_ + c * class_stride_);
    }
  }

  const Pixels<T, kWide> pixels;

 private:
  const T* image_;
  int64_t class_stride_;
  Pack<T, kWide> held_[kHold ? kHeld : 1];
};

// Combines the values of all warps, lane by lane, in the order of the warps. Takes shared memory for `n` numbers of
// each thread.
template <class acc, int n, class Combine>
__device__ void across_warps(acc (&value)[n], Combine combine) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  acc* lane = reinterpret_cast<acc*>(shared_memory) + threadIdx.x;  // (warps, n, 32)
#pragma unroll
  for (int i = 0; i < n; ++i) lane[(threadIdx.y * n + i) * kLanes] = value[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) value[i] = lane[i * kLanes];
  for (int warp = 1; warp < blockDim.y; ++warp) {
#pragma unroll
    for (int i = 0; i < n; ++i) value[i] = combine(value[i], lane[(warp * n + i) * kLanes]);
  }
  __syncthreads();  // before the next call writes
}

template <class acc>
__device__ acc warp_sum(acc value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// One step of a softmax over a stream of scores, relative to the largest so far: with `before` and `now`,
// sum = before * sum + now * term. One exponential, and the scores need to be gone through only once.
template <class acc>
struct Step {
  acc before, now;
};

template <class acc>
__device__ Step<acc> softmax_step(acc& peak, acc z) {
  const acc rise = z - peak, e = exp(-abs(rise));
  peak = max(peak, z);
  return rise > acc(0) ? Step<acc>{e, acc(1)} : Step<acc>{acc(1), e};
}

// The largest score of all warps; returns what each warp's sums must be multiplied with.
template <class acc, int n>
__device__ void share_peak(acc (&peak)[n], acc (&rescale)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) rescale[i] = peak[i];
  across_warps(peak, [](acc a, acc b) { return max(a, b); });
#pragma unroll
  for (int i = 0; i < n; ++i) rescale[i] = exp(rescale[i] - peak[i]);
}

// sums: (B, tiles, 2, C), S and T of each tile.
template <class T, bool kWide, bool kHold>
__global__ void __launch_bounds__(kLanes* kMaxWarps)
    forward_kernel(MapView<const T> view, int64_t tiles, acc_t<T>* __restrict__ sums) {
  using acc = acc_t<T>;
  constexpr int n = kPixels<T, kWide>;
  const Scores<T, kWide, kHold> scores(view, blockIdx.x / tiles, blockIdx.x % tiles);
  acc peak[n], norm[n] = {}, weight[n];
#pragma unroll
  for (int i = 0; i < n; ++i) peak[i] = -std::numeric_limits<acc>::infinity();
  for_each_class<kHold>(view.classes, [&](int k, int c) {
    const Pack<T, kWide> z = scores.get(k, c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const Step<acc> step = softmax_step(peak[i], static_cast<acc>(z.value[i]));
      norm[i] = step.before * norm[i] + step.now;
    }
  });
  share_peak(peak, weight);
#pragma unroll
  for (int i = 0; i < n; ++i) norm[i] *= weight[i];
  across_warps(norm, [](acc a, acc b) { return a + b; });
#pragma unroll
  for (int i = 0; i < n; ++i) weight[i] = scores.pixels.inside(i) ? acc(1) / norm[i] : acc(0);
  acc* tile_sums = sums + static_cast<int64_t>(blockIdx.x) * 2 * view.classes;
  for_each_class<kHold>(view.classes, [&](int k, int c) {
    const Pack<T, kWide> pack = scores.get(k, c);
    acc mass = 0, total = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc z = static_cast<acc>(pack.value[i]), m = exp(z - peak[i]) * weight[i];
      mass += m;
      total += m * z;
    }
    mass = warp_sum(mass);
    total = warp_sum(total);
    if (threadIdx.x == 0) {
      tile_sums[c] = mass;
      tile_sums[view.classes + c] = total;
    }
  });
}

// Adds the tiles of each image and class: a column of threads per class, then its threads in order.
template <class acc>
__global__ void __launch_bounds__(kLanes* kFinishWarps)
    finish_kernel(const acc* __restrict__ sums, int64_t tiles, int64_t classes, PoolingOptions<acc> options,
                  acc* __restrict__ pooled, acc* __restrict__ mass, acc* __restrict__ score) {
  __shared__ acc shared[2][kFinishWarps][kLanes];
  const int64_t groups = (classes + kLanes - 1) / kLanes;
  const int64_t b = blockIdx.x / groups, c = blockIdx.x % groups * kLanes + threadIdx.x;
  acc S = 0, total = 0;
  if (c < classes) {
    for (int64_t tile = threadIdx.y; tile < tiles; tile += kFinishWarps) {
      const acc* tile_sums = sums + (b * tiles + tile) * 2 * classes + c;
      S += tile_sums[0];
      total += tile_sums[classes];
    }
  }
  shared[0][threadIdx.y][threadIdx.x] = S;
  shared[1][threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y > 0 || c >= classes) return;
  for (int warp = 1; warp < kFinishWarps; ++warp) {
    S += shared[0][warp][threadIdx.x];
    total += shared[1][warp][threadIdx.x];
  }
  const int64_t i = b * classes + c;
  mass[i] = S;
  score[i] = total / (options.eps + S);
  pooled[i] = score[i] + (options.focal ? focal_penalty(S, options) : acc(0));
}

// The slopes of this warp's classes, 32 at a time: each lane works out those of one class and tells the others.
template <class acc, bool kHold, class SlopesOf>
class WarpSlopes {
 public:
  __device__ WarpSlopes(int classes, SlopesOf slopes_of) : classes_(classes), slopes_of_(slopes_of) {
    if (kHold) work_out(0);
  }

  __device__ PoolingSlopes<acc> get(int k) {
    if (!kHold && k % kLanes == 0) work_out(k);
    return {__shfl_sync(~0u, mine_.by_mass, k % kLanes), __shfl_sync(~0u, mine_.by_total, k % kLanes)};
  }

 private:
  __device__ void work_out(int k) {
    const int c = threadIdx.y + (k + threadIdx.x) * blockDim.y;
    if (c < classes_) mine_ = slopes_of_(c);
  }

  int classes_;
  SlopesOf slopes_of_;
  PoolingSlopes<acc> mine_{};
};

template <class T, bool kWide, bool kHold>
__global__ void __launch_bounds__(kLanes* kMaxWarps, kHold ? 0 : 1)
    backward_kernel(const acc_t<T>* __restrict__ grad_pooled, int64_t image_stride, int64_t class_stride,
                    MapView<const T> view, const acc_t<T>* __restrict__ mass, const acc_t<T>* __restrict__ score,
                    PoolingOptions<acc_t<T>> options, int64_t tiles, MapView<T> grad) {
  using acc = acc_t<T>;
  constexpr int n = kPixels<T, kWide>;
  const int64_t b = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const Scores<T, kWide, kHold> scores(view, b, tile);
  const auto slopes_of = [&](int c) {
    const int64_t i = b * view.classes + c;
    return pooling_slopes(grad_pooled[b * image_stride + c * class_stride], mass[i], score[i], options);
  };
  WarpSlopes<acc, kHold, decltype(slopes_of)> slopes(view.classes, slopes_of);
  acc peak[n], norm[n] = {}, inner[n] = {}, weight[n];
#pragma unroll
  for (int i = 0; i < n; ++i) peak[i] = -std::numeric_limits<acc>::infinity();
  for_each_class<kHold>(view.classes, [&](int k, int c) {
    const auto [A, B] = slopes.get(k);
    const Pack<T, kWide> pack = scores.get(k, c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc z = static_cast<acc>(pack.value[i]);
      const Step<acc> step = softmax_step(peak[i], z);
      norm[i] = step.before * norm[i] + step.now;
      inner[i] = step.before * inner[i] + step.now * (A + B * z);
    }
  });
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
  const Pixels<T, kWide> grad_pixels = kWide ? scores.pixels : Pixels<T, kWide>(grad, tile);
  T* grad_image = grad.data + b * grad.batch_stride;
  for_each_class<kHold>(view.classes, [&](int k, int c) {
    const auto [A, B] = slopes.get(k);
    const Pack<T, kWide> pack = scores.get(k, c);
    Pack<T, kWide> out;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const acc z = static_cast<acc>(pack.value[i]), m = exp(z - peak[i]) * weight[i];
      out.value[i] = static_cast<T>(m * ((A + B * z) - inner[i] + B));
    }
    grad_pixels.store(grad_image + c * grad.class_stride, out);
  });
}

// How to launch the kernels: for wide moves or not, with classes held or not.
struct Launch {
  int64_t tiles;  // of an image
  dim3 threads;
  size_t shared_bytes;
};

template <class T, bool kWide>
Launch launch_for(const MapView<const T>& view) {
  constexpr int64_t n = kPixels<T, kWide>;
  const int warps = std::min<int64_t>(kMaxWarps, (view.classes + kHeld - 1) / kHeld);
  return {(view.pixels + n * kLanes - 1) / (n * kLanes), dim3(kLanes, warps), warps * n * kLanes * sizeof(acc_t<T>)};
}

// Calls run(wide, hold) with compile-time constants.
template <class Run>
void choose(bool wide, bool hold, Run run) {
  using std::false_type;
  using std::true_type;
  if (wide) {
    hold ? run(true_type{}, true_type{}) : run(true_type{}, false_type{});
  } else {
    hold ? run(false_type{}, true_type{}) : run(false_type{}, false_type{});
  }
}

template <class T>
void forward(const Tensor& scores, const PoolingOptions<acc_t<T>>& options, Tensor& pooled, Tensor& mass,
             Tensor& score) {
  using acc = acc_t<T>;
  const auto view = map_view<const T>(scores);
  const int64_t B = view.batch, C = view.classes;
  const cudaStream_t stream = current_stream(scores);
  choose(aligned(view, 16), C <= kHeld * kMaxWarps, [&](auto wide, auto hold) {
    const Launch launch = launch_for<T, wide>(view);
    Tensor sums = torch::stable::new_empty(scores, {B, launch.tiles, 2, C}, acc_dtype(scores.scalar_type()));
    forward_kernel<T, wide, hold><<<B * launch.tiles, launch.threads, launch.shared_bytes, stream>>>(
        view, launch.tiles, mutable_data<acc>(sums));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const int64_t groups = (C + kLanes - 1) / kLanes;
    finish_kernel<acc><<<B * groups, dim3(kLanes, kFinishWarps), 0, stream>>>(
        const_data<acc>(sums), launch.tiles, C, options, mutable_data<acc>(pooled), mutable_data<acc>(mass),
        mutable_data<acc>(score));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

template <class T>
void backward(const Tensor& grad_pooled, const Tensor& scores, const Tensor& mass, const Tensor& score,
              const PoolingOptions<acc_t<T>>& options, Tensor& grad_scores) {
  using acc = acc_t<T>;
  const auto view = map_view<const T>(scores);
  const auto grad = map_view<T>(grad_scores);
  const int64_t B = view.batch, C = view.classes;
  choose(aligned(view, 16) && aligned(grad, 16), C <= kHeld * kMaxWarps, [&](auto wide, auto hold) {
    const Launch launch = launch_for<T, wide>(view);
    backward_kernel<T, wide, hold><<<B * launch.tiles, launch.threads, launch.shared_bytes, current_stream(scores)>>>(
        const_data<acc>(grad_pooled), grad_pooled.stride(0), grad_pooled.stride(1), view, const_data<acc>(mass),
        const_data<acc>(score), options, launch.tiles, grad);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

std::tuple<Tensor, Tensor, Tensor> ngwp_focal_pool(const Tensor& scores, double eps, double gamma, double lam,
                                                   bool focal) {
  check_scores("ngwp_focal_pool", scores);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const ScalarType dtype = acc_dtype(scores.scalar_type());
  const int64_t B = scores.size(0), C = scores.size(1), P = scores.size(2) * scores.size(3);
  Tensor pooled = torch::stable::new_empty(scores, {B, C}, dtype),
         mass = torch::stable::new_empty(scores, {B, C}, dtype),
         score = torch::stable::new_empty(scores, {B, C}, dtype);
  if (B > 0) {
    WILSON_DISPATCH(scores.scalar_type(), "ngwp_focal_pool", [&] {
      const auto options = pooling_options<acc_t<scalar_t>>(eps, gamma, lam, P, focal);
      forward<scalar_t>(scores, options, pooled, mass, score);
    });
  }
  return {pooled, mass, score};
}

Tensor ngwp_focal_pool_backward(const Tensor& grad_pooled, const Tensor& scores, const Tensor& mass,
                                const Tensor& score, double eps, double gamma, double lam, bool focal) {
  check_scores("ngwp_focal_pool_backward", scores);
  check_per_class("ngwp_focal_pool_backward", "grad_pooled", grad_pooled, scores);
  check_per_class("ngwp_focal_pool_backward", "mass", mass, scores);
  check_per_class("ngwp_focal_pool_backward", "score", score, scores);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  Tensor grad_scores = torch::stable::empty_like(scores);
  if (scores.size(0) > 0) {
    WILSON_DISPATCH(scores.scalar_type(), "ngwp_focal_pool_backward", [&] {
      const auto options = pooling_options<acc_t<scalar_t>>(eps, gamma, lam, scores.size(2) * scores.size(3), focal);
      backward<scalar_t>(grad_pooled, scores, mass, score, options, grad_scores);
    });
  }
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("ngwp_focal_pool", TORCH_BOX(&wilson::ngwp_focal_pool));
  m.impl("ngwp_focal_pool_backward", TORCH_BOX(&wilson::ngwp_focal_pool_backward));
}
