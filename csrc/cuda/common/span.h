// A run of memory that the threads of a block copy to shared memory and back, 16 bytes at a time.
#pragma once

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "math/compiler.h"

namespace wilson {

constexpr int kLanes = 32;

// So many rows of `width` numbers each, one behind the other in memory. In shared memory there are gaps between rows
// that are a multiple of 32 bytes long: lanes that each read their own would wait for one another.
template <class T, unsigned kRows>
class Span {
 public:
  // Shared memory of all rows, from a multiple of 16 bytes on to another.
  static WILSON_HOST_DEVICE unsigned bytes(unsigned width) { return kRows * (width + gap(width)) * sizeof(T) + 16; }

  // rows: those that there are in memory, from 1 to kRows.
  __device__ Span(T* memory, unsigned rows, unsigned width, void* shared)
      : memory_(memory), count_(rows * width), width_(width) {
    // Memory and copy begin as many numbers behind a multiple of 16 bytes.
    const unsigned skew = static_cast<unsigned>(reinterpret_cast<uintptr_t>(memory)) % 16 / sizeof(T);
    shared_ = static_cast<T*>(shared) + skew;
    before_ = min((kChunk - skew) % kChunk, count_);
    gap_ = skew == 0 ? gap(width) : 0;
  }

  __device__ T* row(unsigned i) const { return shared_ + i * (width_ + gap_); }

  // The copy is there once the thread has waited for its pipeline, for other threads after a barrier.
  __device__ void fetch() const {
    copy([](T* memory, T* shared) { __pipeline_memcpy_async(shared, memory, 16); },
         [](T* memory, T* shared) { *shared = *memory; });
  }

  __device__ void put() const {
    copy([](T* memory, T* shared) { *reinterpret_cast<uint4*>(memory) = *reinterpret_cast<uint4*>(shared); },
         [](T* memory, T* shared) { *memory = *shared; });
  }

 private:
  static constexpr unsigned kChunk = 16 / sizeof(T);

  static WILSON_HOST_DEVICE unsigned gap(unsigned width) { return width % (2 * kChunk) == 0 ? kChunk : 0; }

  // Calls chunk(memory, shared) for all 16 bytes, and one(memory, shared) for the numbers before and after them.
  template <class Chunk, class One>
  __device__ void copy(Chunk chunk, One one) const {
    const unsigned thread = threadIdx.y * kLanes + threadIdx.x, step = blockDim.y * kLanes * kChunk;
    const unsigned in_chunks = (count_ - before_) / kChunk * kChunk, end = before_ + in_chunks;
#pragma unroll 1
    for (unsigned i = before_ + thread * kChunk; i < end; i += step) {
      chunk(memory_ + i, shared_ + i + (gap_ ? i / width_ * gap_ : 0));
    }
    const unsigned edge = thread < before_ ? thread : thread + in_chunks;
    if (edge < count_) one(memory_ + edge, shared_ + edge);  // no gaps then: all rows would be whole chunks
  }

  T *memory_, *shared_;
  unsigned count_, width_, before_, gap_;
};

}  // namespace wilson
