// How the CUDA kernels go through maps.
//
// A block works on a tile: all classes of a run of pixels of one image. Its lanes share out the pixels, its warps the
// classes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "dtypes.h"
#include "maps.h"

namespace wilson {

constexpr int kLanes = 32;

template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T value[n];
};

// All maps of a call have dtype T, and rows of classes that threads can move 16 bytes at a time.
template <class T>
struct Wide {
  using type = T;
  using acc = acc_t<T>;
  static constexpr int n = 16 / sizeof(T);  // pixels of a thread
  static constexpr bool wide = true;
};

// Maps of any dtypes and strides: a thread moves one pixel at a time and looks its dtype up.
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

// Calls run(moves), where moves says how threads can move all maps of a call. Doubles go one by one: no training uses
// them.
template <class Run, class... Maps>
void with_moves(ScalarType acc_type, Run run, const AnyMap& map, const Maps&... others) {
  if (acc_type == ScalarType::Double) return run(Single<double>());
  if (!aligned(map) || !((aligned(others) && others.dtype == map.dtype) && ...)) return run(Single<float>());
  switch (map.dtype) {
    case ScalarType::Float:
      return run(Wide<float>());
    case ScalarType::BFloat16:
      return run(Wide<BFloat16>());
    default:
      return run(Wide<Half>());
  }
}

template <class acc>
__device__ acc read_as(const void* data, ScalarType dtype, int64_t offset) {
  acc value;
  with_type_of(dtype, [&](auto type) { value = static_cast<acc>(static_cast<const decltype(type)*>(data)[offset]); });
  return value;
}

// The pixels of one thread in one map. Pixels outside of the image read as 0 and are not written.
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

// The scores of a tile. Shared memory keeps them once they are read, if it has room; else they are read again each
// time. A thread gets only what it read itself, so no barrier is needed.
template <class Moves>
class Scores {
 public:
  using Held = Pack<typename Moves::type, Moves::n>;

  static size_t bytes(int64_t classes) { return classes * kLanes * sizeof(Held); }

  // offset: where they begin in shared memory, negative if it has no room.
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

}  // namespace wilson
