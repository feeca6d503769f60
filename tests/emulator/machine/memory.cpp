#include "memory.h"

// ----------------------------------------------------------------------------------------------------------- global

GlobalMemory::GlobalMemory(const Buffer* buffers, int count) {
  for (int b = 0; b < count; ++b) {
    Entry entry{buffers[b], nullptr};
    if (entry.writable) entry.touched.reset(new Touched[entry.end - entry.begin]);
    entries_.push_back(std::move(entry));
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
}

GlobalMemory::Entry* GlobalMemory::find(u64 address, u32 bytes) {
  const auto holds = [&](const Entry& e) { return address >= e.begin && address + bytes <= e.end; };
  if (last_ && holds(*last_)) return last_;
  auto next = std::upper_bound(entries_.begin(), entries_.end(), address,
                               [](u64 a, const Entry& entry) { return a < entry.begin; });
  if (next == entries_.begin() || !holds(*--next)) return nullptr;
  return last_ = &*next;
}

bool GlobalMemory::place(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes, Entry*& entry) {
  if (address % bytes != 0) return w.fault(Wrong::misaligned, i, lane, address), false;
  entry = find(address, bytes);
  if (!entry) return w.fault(Wrong::out_of_bounds, i, lane, address), false;
  return true;
}

bool GlobalMemory::load(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) {
  Entry* entry;
  if (!place(w, i, lane, address, bytes, entry)) return false;
  u8* state = entry->state + (address - entry->begin);
  u8 all = 0xff;
  for (u32 k = 0; k < bytes; ++k) {
    all &= state[k];
    state[k] |= kLoaded;
  }
  if (!(all & kInside)) return w.fault(Wrong::out_of_bounds, i, lane, address), false;
  if (!(all & kInitialised)) w.fault(Wrong::uninitialised, i, lane, address);
  if (entry->touched) {
    const u32 me = w.launch->block_index + 2;
    Touched* touched = &entry->touched[address - entry->begin];
    for (u32 k = 0; k < bytes; ++k) {
      if (touched[k].stored && touched[k].stored != me) w.fault(Wrong::block_race, i, lane, address);
      touched[k].loaded = touched[k].loaded == 0 || touched[k].loaded == me ? me : 1;
    }
  }
  return true;
}

bool GlobalMemory::store(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) {
  Entry* entry;
  if (!place(w, i, lane, address, bytes, entry)) return false;
  u8* state = entry->state + (address - entry->begin);
  u8 all = 0xff;
  for (u32 k = 0; k < bytes; ++k) all &= state[k];
  if (!(all & kInside)) return w.fault(Wrong::out_of_bounds, i, lane, address), false;
  if (!(all & kWritable)) return w.fault(Wrong::read_only, i, lane, address), false;
  const u32 me = w.launch->block_index + 2;
  Touched* touched = &entry->touched[address - entry->begin];
  for (u32 k = 0; k < bytes; ++k) {
    state[k] |= kInitialised | kStored;
    const bool others =
        (touched[k].stored && touched[k].stored != me) || (touched[k].loaded && touched[k].loaded != me);
    if (others) w.fault(Wrong::block_race, i, lane, address);
    touched[k].stored = me;
  }
  return true;
}

// Blocks may share a word that all of them change atomically: no race.
bool GlobalMemory::atomic(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) {
  Entry* entry;
  if (!place(w, i, lane, address, bytes, entry)) return false;
  u8* state = entry->state + (address - entry->begin);
  u8 all = 0xff;
  for (u32 k = 0; k < bytes; ++k) {
    all &= state[k];
    state[k] |= kLoaded | kStored;
  }
  if (!(all & kInside)) return w.fault(Wrong::out_of_bounds, i, lane, address), false;
  if (!(all & kWritable)) return w.fault(Wrong::read_only, i, lane, address), false;
  if (!(all & kInitialised)) w.fault(Wrong::uninitialised, i, lane, address);
  w.launch->counts.atomics += 1;
  w.launch->counts.load_bytes += bytes;
  w.launch->counts.store_bytes += bytes;
  return true;
}

// ----------------------------------------------------------------------------------------------------------- shared

bool SharedMemory::place(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) {
  if (address % bytes != 0) return w.fault(Wrong::shared_misaligned, i, lane, address), false;
  if (address + bytes > bytes_) return w.fault(Wrong::shared_out_of_bounds, i, lane, address), false;
  return true;
}

u8* SharedMemory::load(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes) {
  if (!place(w, i, lane, address, bytes)) return nullptr;
  const u32 me = 1u << w.index;
  for (u32 k = 0; k < bytes; ++k) {
    Known& known = known_[address + k];
    if (known.stored < block_epoch_) w.fault(Wrong::shared_uninitialised, i, lane, address);
    if (known.stored == epoch_ && !(known.storers & me)) w.fault(Wrong::shared_race, i, lane, address);
    if (known.loaded != epoch_) known.loaded = epoch_, known.loaders = 0;
    known.loaders |= me;
  }
  return data_.get() + address;
}

void SharedMemory::store(Warp& w, const Instruction& i, int lane, u64 address, const u8* value, u32 bytes) {
  if (!place(w, i, lane, address, bytes)) return;
  const u32 me = 1u << w.index;
  for (u32 k = 0; k < bytes; ++k) {
    Known& known = known_[address + k];
    const bool known_value = known.stored >= block_epoch_, stored_now = known.stored == epoch_;
    if (known_value && data_[address + k] == value[k]) {
      if (stored_now) known.storers |= me;
      continue;
    }
    const bool others_stored = stored_now && (known.storers & ~me);
    const bool others_loaded = known.loaded == epoch_ && (known.loaders & ~me);
    if (others_stored || others_loaded) w.fault(Wrong::shared_race, i, lane, address);
    known.stored = epoch_;
    known.storers = me;
    data_[address + k] = value[k];
  }
}
