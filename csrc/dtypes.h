// The types that kernels compute in, and the way from a tensor's dtype to a C++ type.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "math/compiler.h"

namespace wilson {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// What a kernel computes in: double for double inputs, float for all others.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The same for a call: double if one of its tensors is, else float.
template <class... Tensors>
ScalarType acc_dtype(const Tensors&... tensors) {
  return ((tensors.scalar_type() == ScalarType::Double) || ...) ? ScalarType::Double : ScalarType::Float;
}

// Calls body with a value of the C++ type of an accumulation dtype.
template <class Body>
void with_acc(ScalarType dtype, Body body) {
  if (dtype == ScalarType::Double) {
    body(double());
  } else {
    body(float());
  }
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
      return body(BFloat16());
    default:
      return body(Half());
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
    case ScalarType::UInt64:  // read as signed, labels from 2^63 on are negative: no class, either way
      return body(int64_t());
    case ScalarType::UInt16:
      return body(uint16_t());
    case ScalarType::UInt32:
      return body(uint32_t());
    default:
      return with_type_of(dtype, body);
  }
}

}  // namespace wilson
