// Runs the blocks of a launch one after the other, the warps of a block in turns, the lanes of a warp together.
//
// Lanes that part at a branch become fragments of their warp. The fragment that is furthest behind runs until it meets
// another, so that they come together again wherever they can. An operation of the warp waits until all lanes that it
// names stand at it, a barrier until all threads of the block do; what can never come is a fault.
#include "memory.h"

namespace {

constexpr int kSpecials = 19;  // program.py lists them in the same order

struct Scheduled : Program {
  s32 special[kSpecials];  // slots, or -1
};

u32 guard(const Warp& w, const Instruction& i) {
  if (i.guard < 0) return kAll;
  const u32 p = w.predicate(i.guard);
  return i.negate ? ~p : p;
}

class Block {
 public:
  Block(Launch& launch, const Scheduled& program, u64 seed, u64 limit)
      : launch_(launch), program_(program), random_(seed), shuffled_(seed != 0), limit_(limit) {
    threads_ = launch.block[0] * launch.block[1] * launch.block[2];
    warps_.resize((threads_ + kLanes - 1) / kLanes);
    const u64 size = (program.initial.size() + 63) / 64 * 64;
    files_.reset(new (std::align_val_t(64)) u8[size * warps_.size()]);
    local_.reset(new u8[program.local_bytes * kLanes * warps_.size() + 1]);
    for (u32 n = 0; n < warps_.size(); ++n) {
      Warp& w = warps_[n];
      w.file = files_.get() + size * n;
      w.local = local_.get() + program.local_bytes * kLanes * n;
      w.index = n;
      w.exists = threads_ - n * kLanes >= kLanes ? kAll : (1u << (threads_ - n * kLanes)) - 1;
      w.launch = &launch;
      std::memcpy(w.file, program.initial.data(), program.initial.size());
      set_thread_registers(w);
    }
  }

  void run() {
    launch_.shared->begin_block();
    for (Warp& w : warps_) {
      for (int d = 0; d < 3; ++d) fill(w, 6 + d, launch_.at[d]);
      w.fragments.assign(1, {0, w.exists, false});
      w.live = w.exists;
      w.at_barrier = false;
    }
    for (;;) {
      std::vector<Warp*> ready;
      for (Warp& w : warps_) {
        if (w.live && !w.at_barrier) ready.push_back(&w);
      }
      if (launch_.stopped) return;
      if (ready.empty()) {
        if (!release()) return;
      } else if (shuffled_) {
        run(*ready[random_() % ready.size()], 1 + random_() % 200);
      } else {
        for (Warp* w : ready) run(*w, ~0ull);
      }
    }
  }

 private:
  void fill(Warp& w, int special, u32 value) {
    const s32 slot = program_.special[special];
    if (slot >= 0) std::fill_n(w.reg<u32>(slot), kLanes, value);
  }

  void set_thread_registers(Warp& w) {
    for (int d = 0; d < 3; ++d) {
      fill(w, 3 + d, launch_.block[d]);
      fill(w, 9 + d, launch_.grid[d]);
    }
    fill(w, 13, w.index);
    for (u32 l = 0; l < kLanes; ++l) {
      const u32 t = w.thread(l), x = launch_.block[0], y = launch_.block[1];
      const u32 value[] = {t % x, t / x % y, t / x / y};
      const u32 below = (1u << l) - 1, self = 1u << l;
      const u32 mask[] = {self, below, below | self, ~(below | self), ~below};
      for (int d = 0; d < 3; ++d) set(w, d, l, value[d]);
      set(w, 12, l, l);
      for (int m = 0; m < 5; ++m) set(w, 14 + m, l, mask[m]);
    }
  }

  void set(Warp& w, int special, u32 lane, u32 value) {
    if (program_.special[special] >= 0) w.reg<u32>(program_.special[special])[lane] = value;
  }

  // Runs a warp for some instructions, until it stands at a barrier or has left.
  void run(Warp& w, u64 budget) {
    while (w.live && !w.at_barrier && !launch_.stopped && budget) {
      size_t behind = pick(w);
      if (behind == w.fragments.size()) return stuck(w);
      behind = meet(w, behind);
      s32 next = -1;  // where the fragment before it stands
      for (const Fragment& f : w.fragments) {
        if (f.pc > w.fragments[behind].pc && (next < 0 || f.pc < next)) next = f.pc;
      }
      advance(w, behind, next, budget);
    }
  }

  static size_t pick(const Warp& w) {
    size_t best = w.fragments.size();
    for (size_t n = 0; n < w.fragments.size(); ++n) {
      const Fragment& f = w.fragments[n];
      if (!f.waits && (best == w.fragments.size() || f.pc < w.fragments[best].pc)) best = n;
    }
    return best;
  }

  // Joins the fragments that stand where this one does.
  static size_t meet(Warp& w, size_t chosen) {
    for (size_t n = w.fragments.size(); n-- > 0;) {
      if (n == chosen || w.fragments[n].pc != w.fragments[chosen].pc) continue;
      w.fragments[chosen].lanes |= w.fragments[n].lanes;
      w.fragments.erase(w.fragments.begin() + n);
      if (n < chosen) --chosen;
    }
    return chosen;
  }

  void advance(Warp& w, size_t chosen, s32 next, u64& budget) {
    // Fragments may move in memory when one is added: everything about this one is written back before that
    s32 pc = w.fragments[chosen].pc;
    u32 lanes = w.fragments[chosen].lanes;
    u64 done = 0;
    const auto leave = [&](bool waits = false) {
      w.fragments[chosen] = {pc, lanes, waits};
      budget -= std::min(budget, done);
      launch_.counts.instructions += done;
      if (launch_.counts.instructions > limit_ && !launch_.stopped) {
        launch_.fault(Wrong::endless, program_.code[pc].line, w.thread(__builtin_ctz(lanes)), 0);
        launch_.stopped = true;
      }
    };
    for (;;) {
      if (pc == next || done >= budget || (done & 0xfffff) == 0xfffff) return leave();
      const Instruction& i = program_.code[pc];
      const u32 active = lanes & guard(w, i);
      ++done;
      ++launch_.counts.by_unit[i.unit];
      if (i.kind == Kind::lanes) {
        if (active) i.handler(w, i, active);
        ++pc;
        if (launch_.stopped) return leave();
        continue;
      }
      if (!active) {
        ++pc;
        continue;
      }
      const u32 rest = lanes & ~active;
      switch (i.kind) {
        case Kind::branch:
          if (rest) {
            ++pc;
            lanes = rest;
            leave();
            w.fragments.push_back({static_cast<s32>(i.imm), active, false});
            return;
          }
          pc = static_cast<s32>(i.imm);
          if (w.fragments.size() > 1) return leave();
          continue;
        case Kind::indirect:
          return jump(w, i, chosen, active, rest, pc, leave);
        case Kind::exit:
          w.live &= ~active;
          for (Fragment& f : w.fragments) f.waits = false;  // fewer lanes to wait for
          ++pc;
          if (rest) {
            lanes = rest;
            return leave();
          }
          leave();
          w.fragments.erase(w.fragments.begin() + chosen);
          return;
        case Kind::warp: {
          if (rest) w.fragments.push_back({pc + 1, rest, false});
          lanes = active;
          const u32 served = together(w, i, active);
          if (!served) return leave(true);
          if (served != active) w.fragments.push_back({pc, active & ~served, true});
          lanes = served;
          ++pc;
          if (rest || served != active) return leave();
          continue;
        }
        case Kind::barrier:
          if (rest) w.fragments.push_back({pc + 1, rest, false});
          lanes = active;
          if (active != w.live) return leave(true);
          leave();
          w.at_barrier = true;
          w.barrier_pc = pc;
          return;
        default:
          return;
      }
    }
  }

  template <class Leave>
  void jump(Warp& w, const Instruction& i, size_t chosen, u32 active, u32 rest, s32& pc, Leave leave) {
    leave();
    if (rest) w.fragments.push_back({pc + 1, rest, false});
    const u32* index = w.reg<u32>(i.slot[0]);
    u32 left = active;
    bool first = true;
    while (left) {
      const u32 target = index[__builtin_ctz(left)];
      u32 group = 0;
      for_lanes(left, [&](int l) { group |= static_cast<u32>(index[l] == target) << l; });
      const s32 to = program_.targets[i.imm + target];
      if (first) {
        w.fragments[chosen] = {to, group, false};
      } else {
        w.fragments.push_back({to, group, false});
      }
      first = false;
      left &= ~group;
    }
  }

  // Lets those lanes do an operation of the warp whose partners are all here; returns them.
  u32 together(Warp& w, const Instruction& i, u32 active) {
    const u32* named = w.reg<u32>(i.slot[5]);
    u32 left = active, served = 0;
    while (left) {
      const int first = __builtin_ctz(left);
      const u32 mask = named[first] & w.exists;
      u32 group = 0;
      for_lanes(left, [&](int l) { group |= static_cast<u32>((named[l] & w.exists) == mask) << l; });
      left &= ~group;
      if (mask & ~w.live) w.fault(Wrong::exited, i, __builtin_ctz(mask & ~w.live));
      if (group & ~mask) w.fault(Wrong::divergent, i, __builtin_ctz(group & ~mask));
      if ((group & mask & w.live) != (mask & w.live)) continue;
      i.handler(w, i, group);
      served |= group;
    }
    return served;
  }

  // No fragment can go on: they wait for each other.
  void stuck(Warp& w) {
    const Fragment& f = w.fragments.front();
    w.fault(Wrong::divergent, program_.code[f.pc], __builtin_ctz(f.lanes));
    launch_.stopped = true;
  }

  // All warps that are left stand at barriers. Opens those that all their threads have reached.
  bool release() {
    bool opened = false, waiting = false;
    for (Warp& w : warps_) {
      if (!w.live || !w.at_barrier) continue;
      waiting = true;
      if (open(w)) opened = true;
    }
    if (waiting && !opened) {
      for (Warp& w : warps_) {
        if (w.live) w.fault(Wrong::deadlock, program_.code[w.barrier_pc], __builtin_ctz(w.live));
      }
      launch_.stopped = true;
    }
    return opened;
  }

  // The barrier that this warp stands at: `imm` is its number, slot 2 the register with its number of threads or -1.
  bool open(Warp& w) {
    const Instruction& here = program_.code[w.barrier_pc];
    u32 expected = here.slot[2] < 0 ? threads_ : w.reg<u32>(here.slot[2])[__builtin_ctz(w.live)];
    u32 arrived = 0, live = 0, votes = 0;
    std::vector<Warp*> here_too;
    for (Warp& other : warps_) {
      live += __builtin_popcount(other.live);
      if (!other.live || !other.at_barrier || program_.code[other.barrier_pc].imm != here.imm) continue;
      arrived += __builtin_popcount(other.live);
      here_too.push_back(&other);
      const Instruction& i = program_.code[other.barrier_pc];
      if (i.slot[1] >= 0) votes += __builtin_popcount(other.predicate(i.slot[1]) & other.live);
    }
    if (arrived != expected) {
      if (arrived != live || here.slot[2] >= 0) return false;
      // The hardware lets those that are left pass; a program must not count on it
      w.fault(Wrong::exited, here, __builtin_ctz(w.live));
    }
    for (Warp* other : here_too) {
      const Instruction& i = program_.code[other->barrier_pc];
      if (i.handler) i.handler(*other, i, other->live);
      if (i.slot[3] >= 0) std::fill_n(other->reg<u32>(i.slot[3]), kLanes, votes);
      if (i.slot[4] >= 0) other->predicate(i.slot[4]) = votes ? kAll : 0;
      if (i.slot[5] >= 0) other->predicate(i.slot[5]) = votes == arrived ? kAll : 0;
      other->at_barrier = false;
      other->fragments.front().pc = other->barrier_pc + 1;
    }
    launch_.shared->barrier();
    launch_.counts.barriers += 1;
    return true;
  }

  Launch& launch_;
  const Scheduled& program_;
  std::mt19937_64 random_;
  bool shuffled_;
  u64 limit_;
  u32 threads_;
  std::vector<Warp> warps_;
  struct Aligned {
    void operator()(u8* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<u8[], Aligned> files_;
  std::unique_ptr<u8[]> local_;
};

void trap(Warp& w, const Instruction& i, u32 lanes) {
  w.fault(Wrong::trap, i, __builtin_ctz(lanes));
  w.launch->stopped = true;
}

const Handlers& handlers() {
  static const Handlers all = [] {
    Handlers on;
    add_integer(on);
    add_floating(on);
    add_convert(on);
    add_predicates(on);
    add_memory(on);
    add_warp(on);
    on["trap"] = trap;
    return on;
  }();
  return all;
}

// As program.py lays it out.
struct Encoded {
  s32 key, kind, line, guard, negate, unit;
  s64 imm;
  s32 slot[kSlots];
};

}  // namespace

extern "C" {

int ptx_knows(const char* key) { return handlers().count(key) != 0; }

void* ptx_program(const char** keys, const Encoded* code, int count, const u8* initial, u64 bytes, const s32* targets,
                  int target_count, u64 local_bytes, const s32* specials) {
  auto* program = new Scheduled;
  for (int n = 0; n < count; ++n) {
    const Encoded& e = code[n];
    Instruction i{};
    i.handler = e.key < 0 ? nullptr : handlers().at(keys[e.key]);
    i.kind = static_cast<Kind>(e.kind);
    i.unit = e.unit;
    i.line = e.line;
    i.guard = e.guard;
    i.negate = e.negate;
    i.imm = e.imm;
    std::copy_n(e.slot, kSlots, i.slot);
    program->code.push_back(i);
  }
  program->initial.assign(initial, initial + bytes);
  program->targets.assign(targets, targets + target_count);
  program->local_bytes = local_bytes;
  std::copy_n(specials, kSpecials, program->special);
  return program;
}

void ptx_free(void* program) { delete static_cast<Scheduled*>(program); }

// Runs a launch; returns how many faults it wrote. `seed` other than 0 shuffles blocks and warps.
int ptx_launch(const void* program, const u32* grid, const u32* block, const u8* parameters, u64 parameter_bytes,
               u64 shared_bytes, const Buffer* buffers, int buffer_count, u64 seed, u64 limit, Counts* counts,
               Fault* faults, int most_faults) {
  const auto& scheduled = *static_cast<const Scheduled*>(program);
  GlobalMemory global(buffers, buffer_count);
  SharedMemory shared(shared_bytes);
  Launch launch{
      &scheduled, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, parameters, parameter_bytes, &global,
      &shared};
  const u64 blocks = static_cast<u64>(grid[0]) * grid[1] * grid[2];
  std::vector<u32> order(blocks);
  for (u64 n = 0; n < blocks; ++n) order[n] = n;
  if (seed) std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  Block runner(launch, scheduled, seed, limit);
  for (u32 n : order) {
    launch.block_index = n;
    launch.at[0] = n % grid[0];
    launch.at[1] = n / grid[0] % grid[1];
    launch.at[2] = n / grid[0] / grid[1];
    runner.run();
    if (launch.stopped) break;
  }
  *counts = launch.counts;
  const int found = std::min<int>(launch.faults.size(), most_faults);
  std::copy_n(launch.faults.begin(), found, faults);
  return found;
}
}
