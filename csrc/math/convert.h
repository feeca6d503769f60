// Rounding to a narrow type, to nearest even, for loops on the CPU: branch-free, so that the compiler vectorises it.
// (Torch's own conversions to float vectorise as they are.)
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "math/bits.h"

namespace wilson {

template <class T, class acc>
WILSON_INLINE T round_to(acc wide) {
  using torch::headeronly::BFloat16;
  using torch::headeronly::Half;
  const float value = static_cast<float>(wide);
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = bits_as<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return BFloat16(static_cast<uint16_t>(value == value ? rounded : 0x7fc0u), BFloat16::from_bits());
  } else if constexpr (std::is_same_v<T, Half>) {
    const uint32_t bits = bits_as<uint32_t>(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    const uint32_t normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    // Adding 1/2 rounds to a multiple of 2^-24, the step of subnormal halves.
    const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(size) + 0.5f) - 0x3f000000u;
    uint32_t half = size < 0x38800000u ? subnormal : normal;  // 2^-14
    half = size < 0x477ff000u ? half : 0x7c00u;               // 65520 and above: infinity
    half = size > 0x7f800000u ? 0x7e00u : half;               // NaN
    return Half(static_cast<uint16_t>(sign | half), Half::from_bits());
  } else {
    return static_cast<T>(wide);
  }
}

}  // namespace wilson
