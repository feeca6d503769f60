// Kernels for several CPU levels in one library; the best level is chosen at run time. No torch header here.
#pragma once

#include <string>
#include <vector>

// WILSON_CPU_LEVELS before a function compiles a copy of it for each level. What the function calls must be inlined, or
// it runs at the baseline. The copies may round differently (they contract a * b + c), so bits are equal on one machine
// only.
#if !defined(__x86_64__) || !defined(__linux__) || defined(__clang__)  // clang cannot clone function templates
#define WILSON_ONE_CPU_LEVEL
#define WILSON_CPU_LEVELS
#elif __GNUC__ < 12  // no dispatch by arch= yet
#define WILSON_CPU_LEVELS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WILSON_CPU_LEVELS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

namespace wilson {

// The levels in the library, and the one in use on this machine.
#if !defined(WILSON_ONE_CPU_LEVEL)
inline std::vector<std::string> cpu_levels() { return {"baseline", "avx2", "avx512"}; }

inline std::string cpu_level() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return "avx512";
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "avx2" : "baseline";
}
#else
inline std::vector<std::string> cpu_levels() { return {"baseline"}; }
inline std::string cpu_level() { return "baseline"; }
#endif

}  // namespace wilson
