// How the CPU kernels of the neighbourhood of a pixel go through maps: in planes, row by row, a block of pixels at a
// time.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "maps.h"
#include "math/compiler.h"

namespace wilson {

constexpr int64_t kBlock = 16;  // pixels of a row that are worked on together: one AVX-512 register of floats

// kBlock numbers as a vector: the compiler keeps it in registers, which it does not for arrays in nested loops.
template <class acc>
struct Block {
  typedef acc Vector __attribute__((vector_size(kBlock * sizeof(acc)), aligned(sizeof(acc)), may_alias));

  static WILSON_INLINE Vector load(const acc* from) { return *reinterpret_cast<const Vector*>(from); }
  static WILSON_INLINE void store(acc* to, const Vector& value) { *reinterpret_cast<Vector*>(to) = value; }
};

// A (B, C, H, W) tensor that is read row by row. (AnyMap counts pixels, whatever their rows.)
struct Planes {
  const Tensor& tensor;
  int64_t batch, classes, height, width;

  explicit Planes(const Tensor& t)
      : tensor(t), batch(t.size(0)), classes(t.size(1)), height(t.size(2)), width(t.size(3)) {}

  // Calls body(row_of): row_of(y)(x) is a value of class c of image b.
  template <class Body>
  void with_rows(int64_t b, int64_t c, Body body) const {
    with_type_of(tensor.scalar_type(), [&](auto type) {
      const auto* plane =
          static_cast<const decltype(type)*>(tensor.const_data_ptr()) + b * tensor.stride(0) + c * tensor.stride(1);
      const int64_t row_stride = tensor.stride(2), stride = tensor.stride(3);
      body([=](int64_t y) { return [row = plane + y * row_stride, stride](int64_t x) { return row[x * stride]; }; });
    });
  }
};

}  // namespace wilson
