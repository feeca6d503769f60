// What the parts of the machine share: an instruction, a warp and its registers, a launch.
//
// A register holds one value for each of the 32 lanes, side by side; a predicate is one bit per lane. All registers,
// the constants and the special registers of a warp lie in one file, and an operand is a byte offset into it.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "types.h"

constexpr int kLanes = 32;
constexpr u32 kAll = ~0u;
constexpr int kSlots = 12;

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, u32 lanes);

// How the scheduler treats an instruction.
enum class Kind : s32 { lanes, branch, indirect, exit, warp, barrier };

// The unit that executes it; units.py has the same.
constexpr int kUnits = 6;

struct Instruction {
  Handler handler;
  Kind kind;
  s32 unit;
  s32 line;     // of the PTX text
  s32 guard;    // offset of the predicate, or -1
  bool negate;  // run where the guard is false
  s64 imm;      // address offset, branch target, table
  s32 slot[kSlots];
};

using Handlers = std::unordered_map<std::string, Handler>;

struct Program {
  std::vector<Instruction> code;
  std::vector<s32> targets;  // of indirect branches
  std::vector<u8> initial;   // the register file with its constants
  u64 local_bytes = 0;       // of each thread
};

// Where and what went wrong; the numbers are those of FAULTS in faults.py.
enum class Wrong : s32 {
  out_of_bounds,
  misaligned,
  uninitialised,
  read_only,
  shared_out_of_bounds,
  shared_misaligned,
  shared_uninitialised,
  block_race,
  shared_race,
  divergent,
  exited,
  deadlock,
  endless,
  trap,
};

struct Fault {
  Wrong wrong;
  s32 line;
  u32 block[3];
  u32 thread;
  u64 address;
};

// Bytes of a lane from which on an access is wide.
constexpr u32 kWide = 8;

struct Counts {
  u64 by_unit[kUnits];  // instructions of PTX, each for a warp
  u64 instructions, loads, load_bytes, stores, store_bytes, wide_bytes, atomics, barriers, shuffles;
};

class GlobalMemory;
class SharedMemory;

// One launch of a kernel.
struct Launch {
  const Program* program;
  u32 grid[3], block[3];
  const u8* parameters;
  u64 parameter_bytes;
  GlobalMemory* global;
  SharedMemory* shared;
  u32 at[3] = {};  // the block that runs
  u32 block_index = 0;
  Counts counts = {};
  std::vector<Fault> faults;
  bool stopped = false;

  // Each kind of fault is kept once for a line: it happens in many lanes.
  void fault(Wrong wrong, s32 line, u32 thread, u64 address) {
    for (const Fault& known : faults) {
      if (known.wrong == wrong && known.line == line) return;
    }
    faults.push_back({wrong, line, {at[0], at[1], at[2]}, thread, address});
  }
};

// Lanes that stand at the same instruction.
struct Fragment {
  s32 pc;
  u32 lanes;
  bool waits;  // at an operation of the warp for the lanes that it names
};

struct Warp {
  u8* file;  // registers, constants, special registers
  u8* local;
  u32 index;   // in its block
  u32 exists;  // lanes of the block: the last warp may not be full
  u32 live;    // lanes that have not left
  std::vector<Fragment> fragments;
  bool at_barrier;
  s32 barrier_pc;
  Launch* launch;

  template <class T>
  T* reg(s32 slot) const {
    return reinterpret_cast<T*>(file + slot);
  }
  u32& predicate(s32 slot) const { return *reinterpret_cast<u32*>(file + slot); }
  u32 thread(int lane) const { return index * kLanes + lane; }
  void fault(Wrong wrong, const Instruction& i, int lane, u64 address = 0) {
    launch->fault(wrong, i.line, thread(lane), address);
  }
};

// Calls body(lane) for the lanes of a mask.
template <class Body>
inline void for_lanes(u32 lanes, Body body) {
  for (; lanes; lanes &= lanes - 1) body(__builtin_ctz(lanes));
}

// d = F(a, b, ...) in each lane; the destination is slot 0, the sources follow.
template <auto F, class D, class... S>
void map(Warp& w, const Instruction& i, u32 lanes) {
  [&]<size_t... k>(std::index_sequence<k...>) {
    const auto run = [&](D* d, const S*... s) {
      if (lanes == kAll) {
#pragma GCC ivdep
        for (int l = 0; l < kLanes; ++l) d[l] = F(s[l]...);
      } else {
        for_lanes(lanes, [&](int l) { d[l] = F(s[l]...); });
      }
    };
    run(w.reg<D>(i.slot[0]), w.reg<S>(i.slot[1 + k])...);
  }(std::index_sequence_for<S...>{});
}

void add_integer(Handlers&);
void add_floating(Handlers&);
void add_convert(Handlers&);
void add_predicates(Handlers&);
void add_memory(Handlers&);
void add_warp(Handlers&);
