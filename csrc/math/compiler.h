// What the formulas need from the compiler, so that one text serves the CPU's vector loops and the GPU.
#pragma once

// Always inlined: a function that stays a call inside a loop keeps it from being vectorised, and would run at the
// baseline level inside an AVX clone.
#if defined(__CUDACC__) || defined(__HIPCC__)
#define WILSON_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define WILSON_HOST_DEVICE inline __attribute__((always_inline))
#endif
#define WILSON_INLINE inline __attribute__((always_inline))

// One copy of a CPU function for each level, chosen when the library is loaded; `cpu_level` in common.h names the
// choice. The clones may round differently (they contract a * b + c), so bits are the same on one machine only.
#if !defined(__x86_64__) || !defined(__linux__) || defined(__CUDACC__)
#define WILSON_CPU_LEVELS
#elif defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // does not choose by level
#define WILSON_CPU_LEVELS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WILSON_CPU_LEVELS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
