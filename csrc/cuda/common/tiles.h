// How the CUDA kernels go through maps.
//
// A block works on a tile: all classes of a run of pixels of one image. Its lanes share out the pixels, its warps the
// classes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/span.h"
#include "dtypes.h"
#include "maps.h"

namespace wilson {

template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T value[n];
};

template <class T, class acc, int n>
__device__ Pack<T, n> pack_of(const acc (&value)[n]) {
  Pack<T, n> pack;
#pragma unroll
  for (int i = 0; i < n; ++i) pack.value[i] = static_cast<T>(value[i]);
  return pack;
}

// The ways in which threads move maps.

// All maps of a call have dtype T, and rows of classes that threads can move 16 bytes at a time.
template <class T>
struct Wide {
  using type = T;
  using acc = acc_t<T>;
  static constexpr int n = 16 / sizeof(T);  // pixels of a thread
  static constexpr bool staged = false;     // whether tiles lie in shared memory
};

// All maps of a call have dtype T, and the classes of each pixel lie side by side, one pixel behind the other. A block
// moves a tile as one run of memory, 16 bytes at a time; its threads work on a copy in shared memory.
template <class T>
struct ChannelsLast {
  using type = T;
  using acc = acc_t<T>;
  static constexpr int n = 4 / sizeof(T);
  static constexpr bool staged = true;
};

// Maps of any dtypes and strides: a thread moves one pixel at a time and looks its dtype up.
template <class A>
struct Single {
  using type = A;
  using acc = A;
  static constexpr int n = 1;
  static constexpr bool staged = false;
};

// Shared memory for the tiles of channels-last maps. Maps of more classes are moved pixel by pixel.
constexpr int64_t kMaxStagedBytes = 80 * 1024;

// Whether offsets within an image fit in 31 bits.
inline bool near(const AnyMap& map) {
  return (map.classes - 1) * map.class_stride + (map.pixels - 1) * map.pixel_stride < int64_t(1) << 31;
}

// Whether threads can move 16 bytes of a map at a time.
inline bool aligned(const AnyMap& map) {
  AnyMap bytes = map;
  const int64_t size = map.dtype == ScalarType::Double ? 8 : map.dtype == ScalarType::Float ? 4 : 2;
  for (int64_t* count : {&bytes.pixels, &bytes.batch_stride, &bytes.class_stride}) *count *= size;
  return map.unit_stride() && near(map) && bytes.pixels % 16 == 0 && bytes.batch_stride % 16 == 0 &&
         bytes.class_stride % 16 == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

// Whether a tile of a map is one run of memory.
inline bool one_run(const AnyMap& map) { return map.channels_last() && map.pixel_stride == map.classes && near(map); }

template <class acc>
__device__ acc read_as(const void* data, ScalarType dtype, int64_t offset) {
  acc value;
  with_type_of(dtype, [&](auto type) { value = static_cast<acc>(static_cast<const decltype(type)*>(data)[offset]); });
  return value;
}

// The tile of a block: blocks go through the tiles of an image, then through the images.
struct Place {
  int64_t b;
  unsigned tile;
};

__device__ inline Place place_of(unsigned tiles) {
  const unsigned b = blockIdx.x / tiles;
  return {b, blockIdx.x - b * tiles};
}

template <class acc>
__device__ acc* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<acc*>(memory);
}

// The pixels of one thread in one map. Pixels outside of the image read as some number and are not written.
//
// Tiles in shared memory have to be fetched, all of a kernel's at once, before their pixels are loaded, and put back
// once they are stored. They lie at `offset`, which then moves on behind them; other ways to move take no notice of it.
template <class Moves>
class Pixels;

template <class T>
class Pixels<Wide<T>> {
 public:
  using acc = acc_t<T>;
  static constexpr int n = Wide<T>::n;

  __device__ Pixels(const AnyMap& map, Place place, int&) : class_stride_(static_cast<int>(map.class_stride)) {
    const int pixel = (place.tile * kLanes + threadIdx.x) * n;
    inside_ = pixel < map.pixels;
    data_ = map.image<T>(place.b) + pixel;
  }

  __device__ bool inside(int) const { return inside_; }

  __device__ Pack<T, n> load(int c) const {
    if (!inside_) return {};
    return *reinterpret_cast<const Pack<T, n>*>(data_ + c * class_stride_);
  }

  __device__ void store(int c, const acc (&value)[n]) const {
    if (inside_) *reinterpret_cast<Pack<T, n>*>(data_ + c * class_stride_) = pack_of<T>(value);
  }

 private:
  T* data_;
  int class_stride_;
  bool inside_;
};

template <class T>  // here, pixels outside of the image read as the last one inside, so that no load depends on it
class Pixels<ChannelsLast<T>> {
 public:
  using acc = acc_t<T>;
  static constexpr int n = ChannelsLast<T>::n;
  using Tile = Span<T, n * kLanes>;

  __device__ Pixels(const AnyMap& map, Place place, int& offset)
      : Pixels(map, place, static_cast<unsigned>(map.pixels) - place.tile * n * kLanes, offset) {}

  __device__ bool inside(int i) const { return threadIdx.x * n + i < left_; }

  __device__ Pack<T, n> load(int c) const {
    Pack<T, n> pack;
#pragma unroll
    for (int i = 0; i < n; ++i) pack.value[i] = own_[i][c];
    return pack;
  }

  __device__ void store(int c, const acc (&value)[n]) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (inside(i)) own_[i][c] = static_cast<T>(value[i]);
    }
  }

  __device__ void fetch() const { tile_.fetch(); }
  __device__ void put() const { tile_.put(); }

 private:
  __device__ Pixels(const AnyMap& map, Place place, unsigned left, int& offset)
      : tile_(map.image<T>(place.b) + place.tile * n * kLanes * static_cast<unsigned>(map.classes),
              min(left, n * kLanes), map.classes, shared_memory<unsigned char>() + offset),
        left_(left) {
#pragma unroll
    for (int i = 0; i < n; ++i) own_[i] = tile_.row(min(threadIdx.x * n + i, left - 1));
    offset += Tile::bytes(map.classes);
  }

  const Tile tile_;
  unsigned left_;  // pixels of the image, from the tile on
  T* own_[n];
};

template <class A>
class Pixels<Single<A>> {
 public:
  __device__ Pixels(const AnyMap& map, Place place, int&) : dtype_(map.dtype), class_stride_(map.class_stride) {
    const int64_t pixel = int64_t(place.tile) * kLanes + threadIdx.x;
    inside_ = pixel < map.pixels;
    data_ = map.data;
    offset_ = place.b * map.batch_stride + map.offset(pixel);
  }

  __device__ bool inside(int) const { return inside_; }

  __device__ Pack<A, 1> load(int c) const {
    return {inside_ ? read_as<A>(data_, dtype_, offset_ + c * class_stride_) : A()};
  }

  __device__ void store(int c, const A (&value)[1]) const {
    if (!inside_) return;
    with_type_of(dtype_, [&](auto type) {
      using Out = decltype(type);
      const_cast<Out*>(reinterpret_cast<const Out*>(data_))[offset_ + c * class_stride_] = static_cast<Out>(value[0]);
    });
  }

 private:
  const char* data_;
  ScalarType dtype_;
  int64_t offset_, class_stride_;
  bool inside_;
};

// Shared memory for the tiles of maps.
template <class Moves, class... Maps>
int64_t tile_bytes(const Maps&... maps) {
  if constexpr (Moves::staged) {
    return (int64_t(Pixels<Moves>::Tile::bytes(maps.classes)) + ...);
  } else {
    return 0;
  }
}

// Calls run(moves), where moves says how threads can move all maps of a call. Doubles go one by one: no training uses
// them.
template <class Run, class... Maps>
void with_moves(ScalarType acc_type, Run run, const AnyMap& map, const Maps&... others) {
  if (acc_type == ScalarType::Double) return run(Single<double>());
  const auto with = [&](auto type) {
    using T = decltype(type);
    if (aligned(map) && (aligned(others) && ...)) return run(Wide<T>());
    const bool has_room = tile_bytes<ChannelsLast<T>>(map, others...) <= kMaxStagedBytes;
    if (has_room && one_run(map) && (one_run(others) && ...)) return run(ChannelsLast<T>());
    run(Single<float>());
  };
  if (!((others.dtype == map.dtype) && ...)) return run(Single<float>());
  switch (map.dtype) {
    case ScalarType::Float:
      return with(float());
    case ScalarType::BFloat16:
      return with(BFloat16());
    default:
      return with(Half());
  }
}

// Brings the tiles of maps to shared memory. All threads of a block call it.
template <class Moves, class... Maps>
__device__ void fetch(const Maps&... maps) {
  if constexpr (Moves::staged) {
    (maps.fetch(), ...);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
  }
}

// Brings a tile back to memory, after all threads have stored.
template <class Moves>
__device__ void put(const Pixels<Moves>& pixels) {
  if constexpr (Moves::staged) {
    __syncthreads();
    pixels.put();
  }
}

// The scores of a tile. Shared memory keeps them once they are read, if it has room; else they are read again each
// time. A thread gets only what it read itself, so no barrier is needed.
template <class Moves>
class Scores {
 public:
  using Held = Pack<typename Moves::type, Moves::n>;

  // Shared memory besides that of the tile.
  static size_t bytes(int64_t classes) { return Moves::staged ? 0 : classes * kLanes * sizeof(Held); }

  // offset: where they begin in shared memory, negative if it has no room.
  __device__ Scores(const AnyMap& map, Place place, int& offset)
      : is_held_(!Moves::staged && offset >= 0),
        held_(reinterpret_cast<Held*>(shared_memory<unsigned char>() + offset)),
        pixels(map, place, offset) {}

  __device__ Held load(int c) const {
    const Held pack = pixels.load(c);
    if (is_held_) held_[c * kLanes + threadIdx.x] = pack;
    return pack;
  }

  __device__ Held again(int c) const { return is_held_ ? held_[c * kLanes + threadIdx.x] : pixels.load(c); }

  __device__ void fetch() const { pixels.fetch(); }

 private:
  bool is_held_;
  Held* held_;

 public:
  const Pixels<Moves> pixels;
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

// The class at an offset. Most labels are int64: they take no look at a list of dtypes.
__device__ inline int32_t class_at(const LabelView& labels, int64_t at) {
  if (labels.dtype == ScalarType::Long) return labels.as_class(static_cast<const int64_t*>(labels.data)[at]);
  int64_t value;
  with_label_type_of(labels.dtype, [&](auto type) {
    value = static_cast<int64_t>(static_cast<const decltype(type)*>(labels.data)[at]);
  });
  return labels.as_class(value);
}

__device__ inline int32_t class_at(const LabelView& labels, int64_t b, int64_t y, int64_t x) {
  return class_at(labels, b * labels.batch_stride + y * labels.row_stride + x * labels.pixel_stride);
}

}  // namespace wilson
