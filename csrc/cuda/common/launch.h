// How many blocks, threads and bytes of shared memory the CUDA kernels are launched with, and on which stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>

#include "cuda/common/tiles.h"

namespace wilson {

constexpr int kMaxWarps = 16;
// Classes of a warp, until a block has all its warps. Few, as a warp loads its classes one after the other; but not
// one, as each further warp costs all others a step when they join what they found.
constexpr int kWarpClasses = 4;
// Numbers of a thread where tiles lie in shared memory, from which loads are quick. What such a thread does before and
// after, some 150 instructions, counts the less the more there are.
constexpr int kStagedNumbers = 12;
// Shared memory for the scores of a tile. 128 classes take 64 KiB, more than the 48 that every kernel may have; every
// GPU since sm_80 has 96.
constexpr size_t kMaxSharedBytes = 96 * 1024;
constexpr size_t kFreeSharedBytes = 48 * 1024;
// What a kernel declares itself, which counts towards those 48, too. At most: the labels and weights of a tile.
constexpr size_t kMostStaticBytes = 4 * 1024;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

struct Launch {
  int64_t tiles;  // of an image
  dim3 threads;
  size_t exchange_bytes;  // shared memory of across_warps
};

// Shared memory of a kernel.
struct Room {
  int offset;    // of the tiles of maps or of the scores that are kept; negative if these have no room
  size_t bytes;  // of all
};

// For the tiles of maps, if they lie there. taken: the bytes that the kernel needs besides.
template <class Moves, class... Maps>
Room room_for(size_t taken, const Maps&... maps) {
  const size_t offset = (taken + 15) / 16 * 16;
  return {static_cast<int>(offset), offset + tile_bytes<Moves>(maps...)};
}

// The same for a kernel that keeps the scores of so many classes, where tiles do not lie there.
template <class Moves, class... Maps>
Room room_to_keep(int64_t classes, size_t taken, const Maps&... maps) {
  Room room = room_for<Moves>(taken, maps...);
  room.bytes += Scores<Moves>::bytes(classes);
  return room.bytes <= kMaxSharedBytes ? room : Room{-1, taken};
}

template <class Moves>
Launch launch_for(int64_t pixels, int64_t classes) {
  const int64_t tile = Moves::n * kLanes, share = Moves::staged ? kStagedNumbers / Moves::n : kWarpClasses;
  const int warps = std::min<int64_t>(kMaxWarps, (classes + share - 1) / share);
  return {(pixels + tile - 1) / tile, dim3(kLanes, warps), warps * tile * sizeof(typename Moves::acc)};
}

// Lets a kernel have `bytes` of shared memory besides what it declares.
template <class Kernel>
void allow_shared(Kernel kernel, size_t bytes) {
  if (bytes + kMostStaticBytes <= kFreeSharedBytes) return;
  STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace wilson
