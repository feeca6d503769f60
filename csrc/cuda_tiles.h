// How the CUDA kernels go through maps.
//
// A block works on a tile: all classes of a run of pixels of one image. Its warps share the classes out, its lanes the
// pixels. What the tiles add up to is added in order by a second kernel, without atomics: the same bits in every run
// and in any batch.
#pragma once

#include <algorithm>
#include <limits>

#include "checks.h"
#include "math/logistic.h"

namespace wilson {

constexpr int kLanes = 32;
constexpr int kMaxWarps = 16;
// Classes of a warp, until a block has all its warps: they are loaded one after the other, so few; but each warp costs
// every other one a step when they join what they found.
constexpr int kWarpClasses = 4;
// Shared memory for the scores of a tile. More than the 48 KiB that every kernel may have, as 128 classes take 64; not
// more than every GPU since sm_80 has.
constexpr size_t kMaxSharedBytes = 96 * 1024;
constexpr size_t kFreeSharedBytes = 48 * 1024;

template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T value[n];
};

// ------------------------------------------------------------------------------------------------- moving the pixels

// All maps of a call have dtype T, and rows of classes that threads can move 16 bytes at a time.
template <class T>
struct Wide {
  using type = T;
  using acc = acc_t<T>;
  static constexpr int n = 16 / sizeof(T);  // pixels of a thread
  static constexpr bool wide = true;
};

// Maps of any dtypes and strides: a pixel at a time, whose dtype is looked at when it is read.
template <class A>
struct Single {
  using type = A;
  using acc = A;
  static constexpr int n = 1;
  static constexpr bool wide = false;
};

// Whether threads can move 16 bytes of a map at a time.
inline bool aligned(const AnyMap& map) {
  AnyMap bytes = map;
  const int64_t size = map.dtype == ScalarType::Double ? 8 : map.dtype == ScalarType::Float ? 4 : 2;
  for (int64_t* count : {&bytes.pixels, &bytes.batch_stride, &bytes.class_stride}) *count *= size;
  return map.unit_stride() && bytes.pixels % 16 == 0 && bytes.batch_stride % 16 == 0 && bytes.class_stride % 16 == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

// Calls run(moves), moves being how the maps of a call can be moved. Doubles go one by one: no training uses them.
template <class Run, class... Maps>
void with_moves(ScalarType acc_type, Run run, const AnyMap& map, const Maps&... others) {
  if (acc_type == ScalarType::Double) return run(Single<double>());
  if (!aligned(map) || !((aligned(others) && others.dtype == map.dtype) && ...)) return run(Single<float>());
  switch (map.dtype) {
    case ScalarType::Float:
      return run(Wide<float>());
    case ScalarType::BFloat16:
      return run(Wide<torch::headeronly::BFloat16>());
    default:
      return run(Wide<torch::headeronly::Half>());
  }
}

// Calls run with a value of the accumulation type.
template <class Run>
void with_acc(ScalarType acc_type, Run run) {
  acc_type == ScalarType::Double ? run(double()) : run(float());
}

template <class acc>
__device__ acc read_as(const void* data, ScalarType dtype, int64_t offset) {
  acc value;
  with_type_of(dtype, [&](auto type) { value = static_cast<acc>(static_cast<const decltype(type)*>(data)[offset]); });
  return value;
}

// The pixels of one thread in one map. Outside of the image they read as 0 and are not written.
template <class Moves>
class Pixels {
 public:
  using T = typename Moves::type;
  using acc = typename Moves::acc;
  static constexpr int n = Moves::n;

  __device__ Pixels(const AnyMap& map, int64_t b, int64_t tile)
      : data_(map.data), dtype_(map.dtype), class_stride_(map.class_stride) {
    const int64_t pixel = (tile * kLanes + threadIdx.x) * n;
    inside_ = pixel < map.pixels;
    offset_ = b * map.batch_stride + (Moves::wide ? pixel : map.offset(pixel));
  }

  __device__ bool inside() const { return inside_; }

  __device__ Pack<T, n> load(int c) const {
    Pack<T, n> pack{};
    const int64_t at = offset_ + c * class_stride_;
    if (!inside_) return pack;
    if constexpr (Moves::wide) {
      pack = *reinterpret_cast<const Pack<T, n>*>(reinterpret_cast<const T*>(data_) + at);
    } else {
      pack.value[0] = read_as<acc>(data_, dtype_, at);
    }
    return pack;
  }

  // Into a map of T, or of acc if kAcc.
  template <bool kAcc = false>
  __device__ void store(int c, const acc (&value)[n]) const {
    const int64_t at = offset_ + c * class_stride_;
    char* data = const_cast<char*>(data_);
    if (!inside_) return;
    if constexpr (Moves::wide) {
      using Out = std::conditional_t<kAcc, acc, T>;
      constexpr int part = 16 / sizeof(Out);
#pragma unroll
      for (int first = 0; first < n; first += part) {
        Pack<Out, part> pack;
#pragma unroll
        for (int i = 0; i < part; ++i) pack.value[i] = static_cast<Out>(value[first + i]);
        *reinterpret_cast<Pack<Out, part>*>(reinterpret_cast<Out*>(data) + at + first) = pack;
      }
    } else {
      with_type_of(dtype_, [&](auto type) {
        using Out = decltype(type);
        reinterpret_cast<Out*>(data)[at] = static_cast<Out>(value[0]);
      });
    }
  }

 private:
  const char* data_;
  ScalarType dtype_;
  int64_t offset_, class_stride_;
  bool inside_;
};

template <class acc>
__device__ acc* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<acc*>(memory);
}

// The scores of a tile: once read, they are kept in shared memory where there is room for them, else read again each
// time. A thread gets only what it read itself, so no barrier is needed.
template <class Moves>
class Scores {
 public:
  using Held = Pack<typename Moves::type, Moves::n>;

  static size_t bytes(int64_t classes) { return classes * kLanes * sizeof(Held); }

  // offset: where there is room in shared memory, or negative if there is none.
  __device__ Scores(const AnyMap& map, int64_t b, int64_t tile, int offset)
      : pixels(map, b, tile),
        held_(reinterpret_cast<Held*>(shared_memory<unsigned char>() + offset)),
        is_held_(offset >= 0) {}

  __device__ Held load(int c) const {
    const Held pack = pixels.load(c);
    if (is_held_) held_[c * kLanes + threadIdx.x] = pack;
    return pack;
  }

  __device__ Held again(int c) const { return is_held_ ? held_[c * kLanes + threadIdx.x] : pixels.load(c); }

  const Pixels<Moves> pixels;

 private:
  Held* held_;
  bool is_held_;
};

// A tensor of at most two dimensions and any dtype, read number by number.
struct AnyMatrix {
  const void* data;
  ScalarType dtype;
  int64_t row_stride, column_stride;

  template <class acc>
  __device__ acc at(int64_t i, int64_t j = 0) const {
    acc value;
    with_label_type_of(dtype, [&](auto type) {
      value = static_cast<acc>(static_cast<const decltype(type)*>(data)[i * row_stride + j * column_stride]);
    });
    return value;
  }
};

inline AnyMatrix any_matrix(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.scalar_type(), tensor.dim() > 0 ? tensor.stride(0) : 0,
          tensor.dim() > 1 ? tensor.stride(1) : 0};
}

__device__ inline int32_t class_at(const LabelView& labels, int64_t b, int64_t y, int64_t x) {
  const int64_t at = b * labels.batch_stride + y * labels.row_stride + x * labels.pixel_stride;
  int64_t value;
  with_label_type_of(labels.dtype, [&](auto type) {
    value = static_cast<int64_t>(static_cast<const decltype(type)*>(labels.data)[at]);
  });
  return labels.as_class(value);
}

// ----------------------------------------------------------------------------------------------------- adding things
// up

// Combines the values of all warps, lane by lane, in the order of the warps. Takes shared memory, from its start, for
// `n` numbers of each thread.
template <class acc, int n, class Combine>
__device__ void across_warps(acc (&value)[n], Combine combine) {
  acc* lane = shared_memory<acc>() + threadIdx.x;  // (warps, n, 32)
#pragma unroll
  for (int i = 0; i < n; ++i) lane[(threadIdx.y * n + i) * kLanes] = value[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) value[i] = lane[i * kLanes];
#pragma unroll 1
  for (int warp = 1; warp < blockDim.y; ++warp) {
#pragma unroll
    for (int i = 0; i < n; ++i) value[i] = combine(value[i], lane[(warp * n + i) * kLanes]);
  }
  __syncthreads();  // before the next call writes
}

// How many numbers that shared memory is.
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

// The softmax of a thread's pixels over classes.
template <class acc, int n>
struct Softmax {
  acc peak[n], sum[n] = {};  // the highest score, and the sum of exp(z - peak)

  __device__ Softmax() {
#pragma unroll
    for (int i = 0; i < n; ++i) peak[i] = -std::numeric_limits<acc>::infinity();
  }

  // Takes in the scores of a class, of the classes of this warp.
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
    linear_ += positive_part(x) - x * q;
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

// ------------------------------------------------------------------------------------------------------------
// launching

struct Launch {
  int64_t tiles;  // of an image
  dim3 threads;
  size_t exchange_bytes;  // shared memory of across_warps
};

// Shared memory of a kernel that keeps the scores of its tile: they start at `offset`, or have no room if it is
// negative.
struct Room {
  int offset;
  size_t bytes;  // all of it
};

// taken: the bytes that the kernel needs besides.
template <class Moves>
Room room_for(size_t taken, int64_t classes) {
  const size_t offset = (taken + 15) / 16 * 16, bytes = offset + Scores<Moves>::bytes(classes);
  return bytes <= kMaxSharedBytes ? Room{static_cast<int>(offset), bytes} : Room{-1, taken};
}

template <class Moves>
Launch launch_for(int64_t pixels, int64_t classes) {
  const int64_t tile = Moves::n * kLanes;
  const int warps = std::min<int64_t>(kMaxWarps, (classes + kWarpClasses - 1) / kWarpClasses);
  return {(pixels + tile - 1) / tile, dim3(kLanes, warps), warps * tile * sizeof(typename Moves::acc)};
}

// Lets a kernel have `bytes` of shared memory.
template <class Kernel>
void allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= kFreeSharedBytes) return;
  STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace wilson
