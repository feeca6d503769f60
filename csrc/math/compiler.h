// What the formulas need from the compiler, so that one text serves the CPU's vector loops and the GPU.
#pragma once

// Always inlined: a call inside a loop keeps the loop from being vectorised, and would run at the baseline level inside
// an AVX clone.
#if defined(__CUDACC__) || defined(__HIPCC__)
#define WILSON_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define WILSON_HOST_DEVICE inline __attribute__((always_inline))
#endif
#define WILSON_INLINE inline __attribute__((always_inline))

// Stands before a template for host and device that calls its argument: the argument may be code of one of them only,
// and nvcc is not to warn about it.
#if defined(__CUDACC__)
#define WILSON_ANY_BODY _Pragma("nv_exec_check_disable")
#else
#define WILSON_ANY_BODY
#endif
