// What the kernel files share: tensor alias, accumulation type, dtype dispatch, tensor views, checks, current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
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

// Calls a lambda with `scalar_t` set to the C++ type of DTYPE. No <<<...>>> inside: the macro splits at its commas.
#define WILSON_DISPATCH(DTYPE, NAME, ...)                                                     \
  THO_DISPATCH_V2(DTYPE, NAME, AT_WRAP(__VA_ARGS__), torch::headeronly::ScalarType::Float,    \
                  torch::headeronly::ScalarType::Double, torch::headeronly::ScalarType::Half, \
                  torch::headeronly::ScalarType::BFloat16)

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// A (B, C, H, W) tensor of any strides, its P = H * W pixels counted row by row. Offsets are 64-bit.
template <class T>
struct MapView {
  T* data;
  int64_t batch, classes, pixels, width;
  int64_t batch_stride, class_stride, row_stride, pixel_stride;

  WILSON_HOST_DEVICE int64_t offset(int64_t pixel) const {
    return pixel / width * row_stride + pixel % width * pixel_stride;
  }
  // Pixels of one class lie side by side: contiguous tensors and slices of their images or classes.
  WILSON_HOST_DEVICE bool unit_stride() const { return pixel_stride == 1 && row_stride == width; }
};

// Whether threads can move `bytes` at a time: rows of classes lie side by side, and all of them start aligned.
template <class T>
bool aligned(const MapView<T>& view, int64_t bytes) {
  const int64_t n = bytes / sizeof(T);
  return view.unit_stride() && view.pixels % n == 0 && view.batch_stride % n == 0 && view.class_stride % n == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % bytes == 0;
}

template <class T>
MapView<T> map_view(const Tensor& tensor) {
  const auto size = tensor.sizes(), stride = tensor.strides();
  T* data = nullptr;
  if constexpr (std::is_const_v<T>) {
    data = const_data<std::remove_const_t<T>>(tensor);
  } else {
    data = mutable_data<T>(tensor);
  }
  MapView<T> view{data, size[0], size[1], size[2] * size[3], size[3], stride[0], stride[1], stride[2], stride[3]};
  // The stride of a side of length 1 means nothing: name the one that the other side continues.
  if (size[3] == 1) view.pixel_stride = size[2] == 1 ? 1 : stride[2], view.width = size[2], view.row_stride = 0;
  if (view.width == view.pixels) view.row_stride = view.width * view.pixel_stride;
  return view;
}

// A (B, C, H, W) tensor of any floating dtype.
struct AnyMap : MapView<const char> {
  ScalarType dtype;

  template <class T>
  WILSON_HOST_DEVICE T* image(int64_t b) const {
    return const_cast<T*>(reinterpret_cast<const T*>(data)) + b * batch_stride;
  }
};

inline AnyMap any_map(const Tensor& tensor) { return {map_view<const char>(tensor), tensor.scalar_type()}; }

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

// Kernels trust their arguments, and a caller of the raw ops may hand over anything: refuse what would read outside.
inline void check_scores(const char* op, const Tensor& scores) {
  STD_TORCH_CHECK(scores.dim() == 4, op, ": scores must be (B, C, H, W), got ", scores.dim(), " dimensions");
  STD_TORCH_CHECK(scores.size(1) > 0 && scores.size(2) > 0 && scores.size(3) > 0, op,
                  ": scores must have C, H and W of at least 1");
}

inline void check_same_grid(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.size(0) == like.size(0) && tensor.size(2) == like.size(2) && tensor.size(3) == like.size(3),
                  op, ": ", name, " must have the batch, height and width of the scores");
}

inline void check_image_labels(const char* op, const Tensor& labels, const Tensor& scores) {
  STD_TORCH_CHECK(labels.dim() == 2 && labels.size(0) == scores.size(0) && labels.size(1) == scores.size(1) - 1, op,
                  ": image_labels must be (B, C-1)");
}

inline void check_per_class(const char* op, const char* name, const Tensor& tensor, const Tensor& scores) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == scores.size(0) && tensor.size(1) == scores.size(1) &&
                      tensor.scalar_type() == acc_dtype(scores.scalar_type()),
                  op, ": ", name, " must be (B, C), float64 for float64 scores, else float32");
}

#if defined(__CUDACC__)
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

}  // namespace wilson
