// What the kernel files share: tensor alias, accumulation type, dtype dispatch, tensor views, current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "math/compiler.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace wilson {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What a kernel computes in: double for double inputs, float for all others.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType acc_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class... Tensors>
ScalarType wider_acc_dtype(const Tensors&... tensors) {
  return ((tensors.scalar_type() == ScalarType::Double) || ...) ? ScalarType::Double : ScalarType::Float;
}

constexpr double kImageWeightEps = 1e-5;  // keeps the weighted mean over images finite when no image counts

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
  // Pixels of one class lie side by side: contiguous tensors and slices of their images or classes.
  WILSON_HOST_DEVICE bool unit_stride() const { return pixel_stride == 1 && row_stride == width; }

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
  // The stride of a side of length 1 means nothing: name the one that the other side continues.
  if (size[3] == 1) map.pixel_stride = size[2] == 1 ? 1 : stride[2], map.width = size[2], map.row_stride = 0;
  if (map.width == map.pixels) map.row_stride = map.width * map.pixel_stride;
  return map;
}

// Calls body with a value of the C++ type of a floating dtype.
WILSON_ANY_BODY
template <class Body>
WILSON_HOST_DEVICE void with_type_of(ScalarType dtype, Body body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16());
    default:
      return body(torch::headeronly::Half());
  }
}

// Calls body with a value of the C++ type of labels: integers of any width, bool, or floating.
WILSON_ANY_BODY
template <class Body>
WILSON_HOST_DEVICE void with_label_type_of(ScalarType dtype, Body body) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
      return body(uint8_t());
    case ScalarType::Char:
      return body(int8_t());
    case ScalarType::Short:
      return body(int16_t());
    case ScalarType::Int:
      return body(int32_t());
    case ScalarType::Long:
    case ScalarType::UInt64:  // beyond 2^63 they turn negative: no class, either way
      return body(int64_t());
    case ScalarType::UInt16:
      return body(uint16_t());
    case ScalarType::UInt32:
      return body(uint32_t());
    default:
      return with_type_of(dtype, body);
  }
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

#if defined(__CUDACC__)
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

}  // namespace wilson
