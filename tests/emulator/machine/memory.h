// Global and shared memory, every access checked.
#pragma once

#include "machine.h"

// Generic addresses of shared and local memory begin here; no pointer of this process lies so high.
constexpr u64 kSharedWindow = 1ull << 62, kLocalWindow = 1ull << 61;

// What is known of a byte of a buffer; memory.py has the same numbers.
enum ByteState : u8 { kInside = 1, kInitialised = 2, kWritable = 4, kLoaded = 8, kStored = 16 };

// Memory of one tensor's storage. The state of its bytes is the caller's.
struct Buffer {
  u64 begin, end;
  u8* state;
  u64 writable;  // some byte of it is
};

// Which blocks touched a byte in this launch: 0 none, 1 several, else the block's number + 2.
struct Touched {
  u32 loaded = 0, stored = 0;
};

class GlobalMemory {
 public:
  GlobalMemory(const Buffer* buffers, int count);

  // Whether `bytes` at `address` may be loaded or stored; if not, a fault is noted.
  bool load(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes);
  bool store(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes);
  bool atomic(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes);

 private:
  struct Entry : Buffer {
    std::unique_ptr<Touched[]> touched;  // of writable buffers
  };
  Entry* find(u64 address, u32 bytes);
  bool place(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes, Entry*& entry);

  std::vector<Entry> entries_;
  Entry* last_ = nullptr;
};

// The shared memory of the block that runs. Between two barriers, a byte that one warp changes is no other warp's; that
// several store the same value, as compilers let them, harms nobody.
class SharedMemory {
 public:
  explicit SharedMemory(u64 bytes) : bytes_(bytes), data_(new u8[bytes + 16]), known_(new Known[bytes]) {}

  void begin_block() {
    block_epoch_ = ++epoch_;
    std::memset(data_.get(), 0xcd, bytes_);
  }
  void barrier() { ++epoch_; }

  // Where the bytes lie, or null if they may not be touched.
  u8* load(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes);
  void store(Warp& w, const Instruction& i, int lane, u64 address, const u8* value, u32 bytes);

 private:
  struct Known {
    u32 stored = 0, loaded = 0;    // epochs of the last accesses
    u32 storers = 0, loaders = 0;  // the warps that stored and loaded then, one bit each
  };
  bool place(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes);

  u64 bytes_;
  std::unique_ptr<u8[]> data_;
  std::unique_ptr<Known[]> known_;
  u32 epoch_ = 0, block_epoch_ = 0;
};
