// The bits of one type read as another of the same size.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/compiler.h"

namespace wilson {

template <class To, class From>
WILSON_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace wilson
