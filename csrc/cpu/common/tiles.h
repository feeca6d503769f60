// How the CPU kernels go through maps: in tiles of pixels with all their classes, read from and written to tensors of
// any dtype and strides.
//
// Threads share out the chunks of all images. The sums of chunks are added in their order, so that neither the number
// of threads nor the other images of the batch can change a bit. A chunk is worked on tile by tile, and a tile is small
// enough to stay in the cache.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/common/levels.h"
#include "cpu/common/transpose.h"
#include "maps.h"
#include "math/convert.h"

namespace wilson {

constexpr int64_t kTile = 128;  // pixels whose scores of all classes stay in the cache
constexpr int64_t kChunk = 8 * kTile;
constexpr int64_t kLanes = 16;     // running sums side by side, so that they are added up once, not once a pixel
constexpr int64_t kGrain = 16384;  // elements that are worth a thread

// One class of a tile. The padding keeps the rows out of each other's cache sets.
template <class acc>
struct alignas(64) Row {
  acc value[kTile + kLanes];
};

template <class acc>
struct alignas(64) Lanes {
  acc value[kLanes];

  acc sum() const { return std::accumulate(value, value + kLanes, acc(0)); }
};

// Adds up `count` values of a tile.
template <class acc>
WILSON_INLINE acc sum_of(const acc* value, int64_t count) {
  Lanes<acc> lanes{};
  for (int64_t i = 0; i < kTile; i += kLanes) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) lanes.value[j] += i + j < count ? value[i + j] : acc(0);
  }
  return lanes.sum();
}

// Whether the rows of a tile can be used where they are.
template <class acc>
WILSON_INLINE bool direct(const AnyMap& map, int64_t count) {
  const ScalarType dtype = std::is_same_v<acc, double> ? ScalarType::Double : ScalarType::Float;
  return map.dtype == dtype && map.unit_stride() && count == kTile;
}

// The rows of a tile: where they are in the tensor, or in a copy.
template <class acc>
struct Tile {
  acc* data;
  int64_t stride;

  WILSON_INLINE acc* row(int64_t c) const { return data + c * stride; }
};

template <class acc>
WILSON_INLINE Tile<acc> tile_of(Row<acc>* rows) {
  return {rows->value, sizeof(Row<acc>) / sizeof(acc)};
}

// Offsets of `count` pixels from `first` on.
WILSON_INLINE void pixel_offsets(const AnyMap& view, int64_t first, int64_t count, int64_t* offset) {
  int64_t row = first / view.width, column = first % view.width;
  for (int64_t j = 0; j < count; ++j) {
    offset[j] = row * view.row_stride + column * view.pixel_stride;
    if (++column == view.width) column = 0, ++row;
  }
}

// Copies `count` pixels of class c of image b from `first` on, where pixels lie side by side. The other columns get 0.
template <class acc>
WILSON_INLINE void copy_row(const AnyMap& map, int64_t b, int64_t c, int64_t first, int64_t count, Row<acc>* copy) {
  with_type_of(map.dtype, [&](auto type) __attribute__((always_inline)) {
    const auto* from = map.image<const decltype(type)>(b) + c * map.class_stride + first;
    acc* to = copy->value;
    if (count == kTile) {
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) to[j] = static_cast<acc>(from[j]);
    } else {
      for (int64_t j = 0; j < kTile; ++j) to[j] = j < count ? static_cast<acc>(from[j]) : acc(0);
    }
  });
}

// Blocks of channels-last maps, as they are turned.
constexpr int64_t kStrip = 16, kLine = 64;  // pixels, classes

// Calls body(first pixel, first class, pixels, classes) for the blocks of a tile.
template <class Body>
WILSON_INLINE void each_block(int64_t count, int64_t classes, Body body) {
  for (int64_t j = 0; j < count; j += kStrip) {
    for (int64_t c = 0; c < classes; c += kLine) body(j, c, std::min(kStrip, count - j), std::min(kLine, classes - c));
  }
}

// Calls body(first pixel, length) for the runs of `m` classes of `n` pixels: a run for each, or one of all pixels where
// they follow without a gap. Conversions of few classes are slow, as a vector holds 16.
template <class Body>
WILSON_INLINE void each_run(const AnyMap& map, int64_t n, int64_t m, Body body) {
  if (map.pixel_stride == m) return body(0, n * m);
  for (int64_t i = 0; i < n; ++i) body(i, m);
}

// Copies a tile of all classes, a row of `copy` for each, where the classes of a pixel lie side by side. The columns
// beyond the tile keep what they hold.
template <class T, class acc>
WILSON_INLINE void copy_channels_last(const AnyMap& map, int64_t b, int64_t first, int64_t count, Row<acc>* copy) {
  const T* image = map.image<const T>(b) + first * map.pixel_stride;
  const auto rows = tile_of(copy);
  each_block(count, map.classes, [&](int64_t j, int64_t c, int64_t n, int64_t m) __attribute__((always_inline)) {
    const T* from = image + j * map.pixel_stride + c;
    if constexpr (std::is_same_v<T, acc>) {
      transpose(from, map.pixel_stride, n, m, rows.row(c) + j, rows.stride);
    } else {
      acc line[kStrip * kLine];
      each_run(map, n, m, [&](int64_t start, int64_t length) __attribute__((always_inline)) {
        const T* run = from + start * map.pixel_stride;
#pragma omp simd
        for (int64_t k = 0; k < length; ++k) line[start * m + k] = static_cast<acc>(run[k]);
      });
      transpose(line, m, n, m, rows.row(c) + j, rows.stride);
    }
  });
}

// The other way round.
template <class T, class acc>
WILSON_INLINE void write_channels_last(const AnyMap& map, int64_t b, int64_t first, int64_t count, Tile<acc> rows) {
  T* image = map.image<T>(b) + first * map.pixel_stride;
  each_block(count, map.classes, [&](int64_t j, int64_t c, int64_t n, int64_t m) __attribute__((always_inline)) {
    T* to = image + j * map.pixel_stride + c;
    if constexpr (std::is_same_v<T, acc>) {
      transpose(rows.row(c) + j, rows.stride, m, n, to, map.pixel_stride);
    } else {
      acc line[kStrip * kLine];
      transpose(rows.row(c) + j, rows.stride, m, n, line, m);
      each_run(map, n, m, [&](int64_t start, int64_t length) __attribute__((always_inline)) {
        T* run = to + start * map.pixel_stride;
#pragma omp simd
        for (int64_t k = 0; k < length; ++k) run[k] = round_to<T>(line[start * m + k]);
      });
    }
  });
}

// Copies a tile of all classes, a row of `copy` for each, where the pixels of a class lie apart. The other columns get
// 0.
template <class acc>
WILSON_INLINE void copy_strided(const AnyMap& map, int64_t b, int64_t first, int64_t count, Row<acc>* copy) {
  with_type_of(map.dtype, [&](auto type) __attribute__((always_inline)) {
    using T = decltype(type);
    if (map.channels_last()) return copy_channels_last<T>(map, b, first, count, copy);
    int64_t offset[kTile];
    pixel_offsets(map, first, count, offset);
    for (int64_t j = 0; j < count; ++j) {
      const T* from = map.image<const T>(b) + offset[j];
      for (int64_t c = 0; c < map.classes; ++c) copy[c].value[j] = static_cast<acc>(from[c * map.class_stride]);
    }
  });
  for (int64_t c = 0; c < map.classes; ++c) std::fill(copy[c].value + count, copy[c].value + kTile, acc(0));
}

// A tile that a kernel reads more than once: where it is, or in `copy`, which has a row for each class.
template <class acc>
WILSON_INLINE Tile<const acc> read_tile(const AnyMap& map, int64_t b, int64_t first, int64_t count, Row<acc>* copy) {
  if (direct<acc>(map, count)) return {map.image<const acc>(b) + first, map.class_stride};
  if (map.unit_stride()) {
    for (int64_t c = 0; c < map.classes; ++c) copy_row(map, b, c, first, count, copy + c);
  } else {
    copy_strided(map, b, first, count, copy);
  }
  const auto rows = tile_of(copy);
  return {rows.data, rows.stride};
}

// A tile that a kernel reads once, row by row: a row is good until the kernel asks for the next. Converting row by row
// keeps the copy in the nearest cache.
template <class acc>
class TileReader {
 public:
  WILSON_INLINE TileReader(const AnyMap& map, int64_t b, int64_t first, int64_t count, Row<acc>* copy)
      : map_(map), b_(b), first_(first), count_(count), copy_(copy), direct_(direct<acc>(map, count)) {
    if (!direct_ && !map.unit_stride()) copy_strided(map, b, first, count, copy);
  }

  WILSON_INLINE const acc* row(int64_t c) const {
    if (direct_) return map_.image<const acc>(b_) + c * map_.class_stride + first_;
    if (!map_.unit_stride()) return copy_[c].value;
    copy_row(map_, b_, c, first_, count_, copy_);
    return copy_->value;
  }

 private:
  const AnyMap& map_;
  int64_t b_, first_, count_;
  Row<acc>* copy_;
  bool direct_;
};

// A tile that a kernel writes: it fills the rows one after the other and calls `row_done` after each, `done` at the
// end. `copy` has a row for each class. Filling a row leaves the later ones alone, so they may hold what is still
// needed.
template <class acc>
class TileWriter {
 public:
  WILSON_INLINE TileWriter(const AnyMap& map, int64_t b, int64_t first, int64_t count, Row<acc>* copy)
      : map_(map), b_(b), first_(first), count_(count), direct_(direct<acc>(map, count)), rows_(tile_of(copy)) {
    if (direct_) {
      rows_ = {map.image<acc>(b) + first, map.class_stride};
    } else if (map.unit_stride()) {
      rows_.stride = 0;  // row_done converts a row at once, so all rows can share one place in the nearest cache
    }
  }

  WILSON_INLINE acc* row(int64_t c) const { return rows_.row(c); }

  WILSON_INLINE void row_done(int64_t c) const {
    if (direct_ || !map_.unit_stride()) return;
    with_type_of(map_.dtype, [&](auto type) __attribute__((always_inline)) {
      using T = decltype(type);
      T* to = map_.image<T>(b_) + c * map_.class_stride + first_;
      const acc* from = row(c);
      if (count_ == kTile) {
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) to[j] = round_to<T>(from[j]);
      } else {
        for (int64_t j = 0; j < count_; ++j) to[j] = round_to<T>(from[j]);
      }
    });
  }

  WILSON_INLINE void done() const {
    if (direct_ || map_.unit_stride()) return;
    with_type_of(map_.dtype, [&](auto type) __attribute__((always_inline)) {
      using T = decltype(type);
      if (map_.channels_last()) return write_channels_last<T>(map_, b_, first_, count_, rows_);
      int64_t offset[kTile];
      pixel_offsets(map_, first_, count_, offset);
      for (int64_t j = 0; j < count_; ++j) {
        T* to = map_.image<T>(b_) + offset[j];
        for (int64_t c = 0; c < map_.classes; ++c) to[c * map_.class_stride] = round_to<T>(row(c)[j]);
      }
    });
  }

 private:
  const AnyMap& map_;
  int64_t b_, first_, count_;
  bool direct_;
  Tile<acc> rows_;
};

inline int64_t chunks_of(int64_t pixels) { return (pixels + kChunk - 1) / kChunk; }

// Part of an image; `index` counts the chunks of all images.
struct Chunk {
  int64_t index, image, begin, end;
};

// Calls body(chunk, scratch) for the chunks of all images, on all threads; make_scratch() once per thread.
template <class MakeScratch, class Body>
void parallel_chunks(int64_t images, int64_t pixels, int64_t classes, MakeScratch make_scratch, Body body) {
  const int64_t chunks = chunks_of(pixels);
  const int64_t grain = std::max<int64_t>(1, kGrain / (classes * std::min(pixels, kChunk)));
  torch::stable::parallel_for(0, images * chunks, grain, [&](int64_t begin, int64_t end) {
    auto scratch = make_scratch();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % chunks * kChunk;
      body(Chunk{i, i / chunks, first, std::min(pixels, first + kChunk)}, scratch);
    }
  });
}

// The values of a (B, N) tensor, row by row.
template <class T>
std::vector<T> read_matrix(const Tensor& tensor) {
  const int64_t rows = tensor.size(0), columns = tensor.size(1);
  std::vector<T> values(rows * columns);
  with_label_type_of(tensor.scalar_type(), [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < rows * columns; ++i) {
      values[i] = static_cast<T>(data[i / columns * tensor.stride(0) + i % columns * tensor.stride(1)]);
    }
  });
  return values;
}

template <class T>
std::vector<T> read_vector(const Tensor& tensor) {
  std::vector<T> values(tensor.size(0));
  with_label_type_of(tensor.scalar_type(), [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < tensor.size(0); ++i) values[i] = static_cast<T>(data[i * tensor.stride(0)]);
  });
  return values;
}

template <class T>
T read_scalar(const Tensor& tensor) {
  T value;
  with_label_type_of(tensor.scalar_type(), [&](auto type) {
    value = static_cast<T>(*static_cast<const decltype(type)*>(tensor.const_data_ptr()));
  });
  return value;
}

// Labels that are read a run of pixels at a time.
struct LabelMap : LabelView {
  // The classes of `count` pixels from (row, column) on, through the next rows; -1 where the label is no class.
  WILSON_INLINE void read(int64_t b, int64_t row, int64_t column, int64_t count, int32_t* label) const {
    with_label_type_of(dtype, [&](auto type) __attribute__((always_inline)) {
      const auto* image = static_cast<const decltype(type)*>(data) + b * batch_stride;
      while (count > 0) {
        const auto* from = image + row * row_stride + column * pixel_stride;
        const int64_t n = std::min(count, width - column), stride = pixel_stride;
        if (stride == 1) {
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) label[j] = as_class(static_cast<int64_t>(from[j]));
        } else {
          for (int64_t j = 0; j < n; ++j) label[j] = as_class(static_cast<int64_t>(from[j * stride]));
        }
        label += n, count -= n, column = 0, ++row;
      }
    });
  }
};

inline LabelMap label_map(const Tensor& labels, int64_t classes, int64_t ignore_index) {
  return {label_view(labels, classes, ignore_index)};
}

}  // namespace wilson
