// Tensors as kernels see them: a pointer, sizes and strides.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "dtypes.h"
#include "math/compiler.h"

namespace wilson {

using torch::stable::Tensor;

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// A (B, C, H, W) tensor of any floating dtype and strides, its P = H * W pixels counted row by row. Offsets are 64-bit.
struct AnyMap {
  const char* data;
  int64_t batch, classes, pixels, width;
  int64_t batch_stride, class_stride, row_stride, pixel_stride;
  ScalarType dtype;

  WILSON_HOST_DEVICE int64_t offset(int64_t pixel) const {
    return pixel / width * row_stride + pixel % width * pixel_stride;
  }
  // Whether the pixels of a class lie side by side, as in contiguous tensors and slices of their images or classes.
  WILSON_HOST_DEVICE bool unit_stride() const { return pixel_stride == 1 && row_stride == width; }
  // Whether the classes of a pixel lie side by side, and the pixels one after the other.
  WILSON_HOST_DEVICE bool channels_last() const { return class_stride == 1 && row_stride == width * pixel_stride; }

  template <class T>
  WILSON_HOST_DEVICE T* image(int64_t b) const {
    return const_cast<T*>(reinterpret_cast<const T*>(data)) + b * batch_stride;
  }
};

inline AnyMap any_map(const Tensor& tensor) {
  const auto size = tensor.sizes(), stride = tensor.strides();
  AnyMap map{const_data<char>(tensor),
             size[0],
             size[1],
             size[2] * size[3],
             size[3],
             stride[0],
             stride[1],
             stride[2],
             stride[3],
             tensor.scalar_type()};
  // A side of length 1 may have any stride. So a single column is read as a row, and a single row has the row stride
  // that a next row would have: both can then be seen to lie side by side.
  if (size[3] == 1) map.pixel_stride = size[2] == 1 ? 1 : stride[2], map.width = size[2], map.row_stride = 0;
  if (map.width == map.pixels) map.row_stride = map.width * map.pixel_stride;
  return map;
}

// The map of its last `count` classes.
inline AnyMap last_classes(AnyMap map, int64_t count) {
  with_type_of(map.dtype, [&](auto type) { map.data += (map.classes - count) * map.class_stride * sizeof(type); });
  map.classes = count;
  return map;
}

// A (B, H, W) tensor of class labels of any integer dtype.
struct LabelView {
  const void* data;
  ScalarType dtype;
  int64_t batch, height, width;
  int64_t batch_stride, row_stride, pixel_stride;
  int64_t classes, ignore_index;

  // -1 for what is no class.
  WILSON_HOST_DEVICE int32_t as_class(int64_t value) const {
    return value >= 0 && value < classes && value != ignore_index ? static_cast<int32_t>(value) : -1;
  }
};

inline LabelView label_view(const Tensor& labels, int64_t classes, int64_t ignore_index) {
  return {labels.const_data_ptr(), labels.scalar_type(), labels.size(0),   labels.size(1), labels.size(2),
          labels.stride(0),        labels.stride(1),     labels.stride(2), classes,        ignore_index};
}

}  // namespace wilson
