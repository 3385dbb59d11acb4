#include "cache_map.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <new>
#include <system_error>
#include <thread>
#include <unordered_map>

#include "spin.h"

namespace holdfast {
namespace {

struct Registry {
  std::mutex mutex;
  uint32_t nextId = 1;
  std::unordered_map<uint32_t, std::shared_ptr<CacheMap>> maps;
};
// Never destroyed, as the registry of pools.
Registry& registry() {
  static Registry* instance = new Registry();
  return *instance;
}

// Running hits end within microseconds unless their thread was descheduled: then it needs the processor more than we
// do.
template <typename Condition>
void waitUntil(Condition done) {
  for (uint32_t turn = 0; !done(); turn++) {
    if (turn < 200) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

// A cell is the low half of the key's hash and the slot plus one. The table is smaller than 2^32, so that a cell's home
// can be told from the cell alone, without a look at its slot.
constexpr uint64_t kTagMask = 0xffffffff;

}  // namespace

CacheMap::CacheMap(uint32_t id, std::shared_ptr<PagePool> pool, uint32_t slotCount, uint32_t entryCountMax)
    : id_(id),
      pool_(std::move(pool)),
      poolBytes_(pool_->data()),
      slotCount_(slotCount),
      entryCountMax_(entryCountMax),
      tableMask_(std::bit_ceil(uint64_t{slotCount} * 2 + 2) - 1),
      slots_(std::make_unique<Slot[]>(slotCount)),
      table_(std::make_unique<std::atomic<uint64_t>[]>(tableMask_ + 1)),
      ring_(slotCount),
      stripes_(std::make_unique<Stripe[]>(kStripes)) {
  entriesMappedBytes_ = sizeof(Entry) * entryCountMax;
  void* region =
      mmap(nullptr, entriesMappedBytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of the cache map's entries");
  entries_ = static_cast<Entry*>(region);
}

CacheMap::~CacheMap() {
  // Entries hold atomics only: nothing to destroy.
  munmap(entries_, entriesMappedBytes_);
}

std::shared_ptr<CacheMap> CacheMap::create(std::shared_ptr<PagePool> pool, uint32_t slotCount, uint32_t entryCountMax) {
  uint32_t id;
  {
    std::lock_guard lock(registry().mutex);
    id = registry().nextId++;
  }
  auto map = std::make_shared<CacheMap>(id, std::move(pool), slotCount, entryCountMax);
  std::lock_guard lock(registry().mutex);
  registry().maps.emplace(id, map);
  return map;
}

std::shared_ptr<CacheMap> CacheMap::find(uint32_t id) {
  std::lock_guard lock(registry().mutex);
  const auto found = registry().maps.find(id);
  return found == registry().maps.end() ? nullptr : found->second;
}

bool CacheMap::close(uint32_t id) {
  std::shared_ptr<CacheMap> last;  // freed outside of the lock
  std::lock_guard lock(registry().mutex);
  const auto found = registry().maps.find(id);
  if (found == registry().maps.end()) return false;
  last = std::move(found->second);
  registry().maps.erase(found);
  return true;
}

// Entries.

CacheMap::Entry* CacheMap::liveEntry(uint64_t entryId) {
  const uint64_t index = entryId & (kEntryCountLimit - 1);
  const uint64_t generation = entryId >> kEntryIndexBits;
  if (index >= entryCountMax_ || generation == 0) return nullptr;
  Entry& entry = entries_[index];
  return entry.live.load(std::memory_order_seq_cst) == generation ? &entry : nullptr;
}

uint64_t CacheMap::openEntry(const EntryState& state) {
  std::lock_guard lock(engine_);
  uint32_t index;
  if (!freeEntries_.empty()) {
    index = freeEntries_.back();
    freeEntries_.pop_back();
  } else if (entriesEverUsed_ < entryCountMax_) {
    index = entriesEverUsed_++;
    new (&entries_[index]) Entry();
  } else {
    return 0;
  }
  Entry& entry = entries_[index];
  entry.generation++;
  entry.status.store(kModeNone, std::memory_order_relaxed);
  entry.coverageCount.store(0, std::memory_order_relaxed);
  entry.sizeBytes.store(state.sizeBytes, std::memory_order_relaxed);
  entry.mtimeNs.store(state.mtimeNs, std::memory_order_relaxed);
  entry.ctimeNs.store(state.ctimeNs, std::memory_order_relaxed);
  entry.changes.store(0, std::memory_order_relaxed);
  entry.live.store(entry.generation, std::memory_order_seq_cst);
  return entry.generation << kEntryIndexBits | index;
}

Fault CacheMap::closeEntry(uint64_t entryId) {
  std::lock_guard lock(engine_);
  Entry* entry = liveEntry(entryId);
  if (entry == nullptr) return Fault::kStaleEntry;
  if (entry->slotCount != 0) return Fault::kEntryHasSlots;
  entry->live.store(0, std::memory_order_seq_cst);
  waitUntil([entry] { return entry->pins.load(std::memory_order_seq_cst) == 0; });
  freeEntries_.push_back(static_cast<uint32_t>(entry - entries_));
  return Fault::kNone;
}

Fault CacheMap::setStatusMode(uint64_t entryId, uint32_t mode) {
  std::lock_guard lock(engine_);
  Entry* entry = liveEntry(entryId);
  if (entry == nullptr) return Fault::kStaleEntry;
  const uint32_t before = entry->status.exchange(mode, std::memory_order_seq_cst);
  if (before == kModeExclusive && mode != kModeExclusive) {
    waitUntil([entry] { return entry->pins.load(std::memory_order_seq_cst) / kWriterPin == 0; });
  }
  if (before != kModeNone && mode == kModeNone) {
    waitUntil([entry] { return entry->pins.load(std::memory_order_seq_cst) == 0; });
  }
  return Fault::kNone;
}

// Size and times change together: a seqlock whose writers exclude each other by making the sequence odd.
void CacheMap::lockState(Entry& entry) {
  waitUntil([&entry] {
    uint32_t sequence = entry.stateSequence.load(std::memory_order_relaxed);
    return (sequence & 1) == 0 &&
           entry.stateSequence.compare_exchange_weak(sequence, sequence + 1, std::memory_order_acquire);
  });
  std::atomic_thread_fence(std::memory_order_release);
}

void CacheMap::unlockState(Entry& entry) {
  entry.stateSequence.store(entry.stateSequence.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

Fault CacheMap::entryState(uint64_t entryId, EntryState* state) {
  const Entry* entry = liveEntry(entryId);
  if (entry == nullptr) return Fault::kStaleEntry;
  waitUntil([entry, state] {
    const uint32_t before = entry->stateSequence.load(std::memory_order_acquire);
    if (before & 1) return false;
    state->sizeBytes = entry->sizeBytes.load(std::memory_order_relaxed);
    state->mtimeNs = entry->mtimeNs.load(std::memory_order_relaxed);
    state->ctimeNs = entry->ctimeNs.load(std::memory_order_relaxed);
    state->changes = entry->changes.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    return entry->stateSequence.load(std::memory_order_relaxed) == before;
  });
  // Another thread's look at an entry that was closed and reused meanwhile.
  return liveEntry(entryId) == entry ? Fault::kNone : Fault::kStaleEntry;
}

Fault CacheMap::setEntryState(uint64_t entryId, const EntryState& state) {
  std::lock_guard lock(engine_);
  Entry* entry = liveEntry(entryId);
  if (entry == nullptr) return Fault::kStaleEntry;
  lockState(*entry);
  entry->sizeBytes.store(state.sizeBytes, std::memory_order_release);
  entry->mtimeNs.store(state.mtimeNs, std::memory_order_relaxed);
  entry->ctimeNs.store(state.ctimeNs, std::memory_order_relaxed);
  unlockState(*entry);
  return Fault::kNone;
}

Fault CacheMap::noteWrite(uint64_t entryId, int64_t endBytes, int64_t wallNs) {
  std::lock_guard lock(engine_);
  Entry* entry = liveEntry(entryId);
  if (entry == nullptr) return Fault::kStaleEntry;
  lockState(*entry);
  if (entry->sizeBytes.load(std::memory_order_relaxed) < endBytes) {
    entry->sizeBytes.store(endBytes, std::memory_order_release);
  }
  entry->mtimeNs.store(wallNs, std::memory_order_relaxed);
  entry->ctimeNs.store(wallNs, std::memory_order_relaxed);
  entry->changes.store(entry->changes.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  unlockState(*entry);
  return Fault::kNone;
}

Fault CacheMap::setCoverage(uint64_t entryId, const CoverageRange* ranges, uint32_t count) {
  std::lock_guard lock(engine_);
  Entry* entry = liveEntry(entryId);
  if (entry == nullptr) return Fault::kStaleEntry;
  count = std::min(count, kCoverageRangesMax);
  const uint32_t sequence = entry->coverageSequence.load(std::memory_order_relaxed);
  entry->coverageSequence.store(sequence + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  for (uint32_t i = 0; i < count; i++) {
    entry->coverage[i].start.store(ranges[i].start, std::memory_order_relaxed);
    entry->coverage[i].end.store(ranges[i].end, std::memory_order_relaxed);
    entry->coverage[i].mode.store(ranges[i].mode, std::memory_order_relaxed);
  }
  entry->coverageCount.store(count, std::memory_order_relaxed);
  entry->coverageSequence.store(sequence + 2, std::memory_order_release);
  return Fault::kNone;
}

// The table.

// The finaliser of MurmurHash3.
uint64_t CacheMap::mix(uint64_t key) {
  key ^= key >> 33;
  key *= 0xff51afd7ed558ccdULL;
  key ^= key >> 33;
  key *= 0xc4ceb9fe1a85ec53ULL;
  return key ^ key >> 33;
}

uint32_t CacheMap::find(uint64_t key) const {
  const uint64_t hash = mix(key);
  const uint64_t tag = hash & kTagMask;
  // Cells that are being shifted back may hide a key for a moment; not finding it is harmless, so a few looks are
  // enough.
  for (uint32_t look = 0; look < 4; look++) {
    const uint64_t sequence = tableSequence_.load(std::memory_order_acquire);
    for (uint64_t position = hash & tableMask_, n = 0; n <= tableMask_; position = (position + 1) & tableMask_, n++) {
      const uint64_t cell = table_[position].load(std::memory_order_acquire);
      if (cell == 0) break;
      const uint32_t slot = static_cast<uint32_t>(cell) - 1;
      if (cell >> 32 == tag && slots_[slot].key.load(std::memory_order_relaxed) == key) return slot;
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if ((sequence & 1) == 0 && tableSequence_.load(std::memory_order_relaxed) == sequence) break;
  }
  return kNoSlot;
}

Fault CacheMap::install(uint32_t slotIndex, uint64_t entryId, uint64_t pageIndex, const PageContent& content,
                        bool writable) {
  std::lock_guard lock(engine_);
  Entry* entry = liveEntry(entryId);
  if (entry == nullptr) return Fault::kStaleEntry;
  Slot& slot = slots_[slotIndex];
  if (slot.key.load(std::memory_order_relaxed) != 0) return Fault::kSlotInUse;
  const uint64_t key = keyOf(static_cast<uint32_t>(entry - entries_), pageIndex);
  if (find(key) != kNoSlot) return Fault::kPageInstalled;
  slot.content.store(content.pack(), std::memory_order_relaxed);
  slot.writable.store(writable ? 1 : 0, std::memory_order_relaxed);
  slot.references.store(0, std::memory_order_relaxed);
  slot.key.store(key, std::memory_order_relaxed);
  // Whoever pins it from here on acquires all of the above, and the page's bytes.
  slot.pin.store(0, std::memory_order_release);
  entry->slotCount++;
  const uint64_t hash = mix(key);
  uint64_t position = hash & tableMask_;
  while (table_[position].load(std::memory_order_relaxed) != 0) position = (position + 1) & tableMask_;
  table_[position].store((hash & kTagMask) << 32 | (uint64_t{slotIndex} + 1), std::memory_order_release);
  return Fault::kNone;
}

void CacheMap::eraseFromTable(uint64_t key, uint32_t slotIndex) {
  uint64_t hole = mix(key) & tableMask_;
  while (static_cast<uint32_t>(table_[hole].load(std::memory_order_relaxed)) != slotIndex + 1) {
    hole = (hole + 1) & tableMask_;
  }
  const uint64_t sequence = tableSequence_.load(std::memory_order_relaxed);
  tableSequence_.store(sequence + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  for (uint64_t next = (hole + 1) & tableMask_;; next = (next + 1) & tableMask_) {
    const uint64_t cell = table_[next].load(std::memory_order_relaxed);
    if (cell == 0) break;
    const uint64_t home = (cell >> 32) & tableMask_;
    // It may move into the hole unless its home lies behind the hole, cyclically.
    if (((next - home) & tableMask_) >= ((next - hole) & tableMask_)) {
      table_[hole].store(cell, std::memory_order_release);
      hole = next;
    }
  }
  table_[hole].store(0, std::memory_order_release);
  tableSequence_.store(sequence + 2, std::memory_order_release);
}

// Slots.

bool CacheMap::mayChange(const Slot& slot) const {
  const uint64_t pin = slot.pin.load(std::memory_order_acquire);
  return (pin & kEngine) != 0 || pin == kClosed;
}

Fault CacheMap::setWritable(uint32_t slotIndex, bool writable) {
  std::lock_guard lock(engine_);
  Slot& slot = slots_[slotIndex];
  if (slot.key.load(std::memory_order_relaxed) == 0) return Fault::kSlotFree;
  slot.writable.store(writable ? 1 : 0, std::memory_order_release);
  return Fault::kNone;
}

Fault CacheMap::remove(uint32_t slotIndex) {
  std::lock_guard lock(engine_);
  Slot& slot = slots_[slotIndex];
  const uint64_t key = slot.key.load(std::memory_order_relaxed);
  if (key == 0) return Fault::kSlotFree;
  if (!mayChange(slot)) return Fault::kSlotOpen;
  eraseFromTable(key, slotIndex);
  entries_[entryIndexOf(key)].slotCount--;
  slot.key.store(0, std::memory_order_relaxed);
  slot.content.store(0, std::memory_order_relaxed);
  slot.writable.store(0, std::memory_order_relaxed);
  uint32_t queued = kQueued;
  slot.queued.compare_exchange_strong(queued, kQueueCancelled, std::memory_order_acq_rel);
  slot.pin.store(kClosed, std::memory_order_release);
  return Fault::kNone;
}

Fault CacheMap::content(uint32_t slotIndex, PageContent* content) {
  const Slot& slot = slots_[slotIndex];
  if (slot.key.load(std::memory_order_relaxed) == 0) return Fault::kSlotFree;
  *content = PageContent::unpack(slot.content.load(std::memory_order_acquire));
  return Fault::kNone;
}

Fault CacheMap::setContent(uint32_t slotIndex, const PageContent& content) {
  std::lock_guard lock(engine_);
  Slot& slot = slots_[slotIndex];
  if (slot.key.load(std::memory_order_relaxed) == 0) return Fault::kSlotFree;
  const uint64_t pin = slot.pin.load(std::memory_order_acquire);
  if ((pin & (kEngine | kClosed)) == 0) return Fault::kSlotOpen;
  slot.content.store(content.pack(), std::memory_order_release);
  return Fault::kNone;
}

Fault CacheMap::close(uint32_t slotIndex, bool* quiet) {
  Slot& slot = slots_[slotIndex];
  if (slot.key.load(std::memory_order_relaxed) == 0) return Fault::kSlotFree;
  *quiet = (slot.pin.fetch_or(kClosed, std::memory_order_acq_rel) & ~kClosed) == 0;
  return Fault::kNone;
}

Fault CacheMap::reopen(uint32_t slotIndex) {
  std::lock_guard lock(engine_);
  Slot& slot = slots_[slotIndex];
  if (slot.key.load(std::memory_order_relaxed) == 0) return Fault::kSlotFree;
  slot.pin.fetch_and(~kClosed, std::memory_order_acq_rel);
  return Fault::kNone;
}

// False with the word that was in the way. A compare-and-swap, so that a closed or exclusively pinned word never
// changes under its owner.
bool CacheMap::pinShared(Slot& slot, uint64_t* seen) {
  *seen = slot.pin.load(std::memory_order_relaxed);
  while ((*seen & (kClosed | kExclusive)) == 0) {
    if (slot.pin.compare_exchange_weak(*seen, *seen + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

bool CacheMap::pinExclusive(Slot& slot, uint64_t bits, uint64_t* seen) {
  *seen = 0;
  return slot.pin.compare_exchange_strong(*seen, bits, std::memory_order_acq_rel);
}

bool CacheMap::tryPinShared(uint32_t slot) {
  uint64_t seen;
  return pinShared(slots_[slot], &seen);
}

bool CacheMap::tryPinExclusive(uint32_t slot) {
  uint64_t seen;
  return pinExclusive(slots_[slot], kExclusive | kEngine, &seen);
}

Fault CacheMap::unpinShared(uint32_t slotIndex) {
  Slot& slot = slots_[slotIndex];
  if ((slot.pin.load(std::memory_order_relaxed) & kSharedCount) == 0) return Fault::kNotPinned;
  slot.pin.fetch_sub(1, std::memory_order_acq_rel);
  return Fault::kNone;
}

Fault CacheMap::unpinExclusive(uint32_t slotIndex) {
  Slot& slot = slots_[slotIndex];
  if ((slot.pin.load(std::memory_order_relaxed) & kEngine) == 0) return Fault::kNotPinned;
  slot.pin.fetch_and(~(kExclusive | kEngine), std::memory_order_acq_rel);
  return Fault::kNone;
}

uint32_t CacheMap::takeDirtied(uint32_t* out, uint32_t max) {
  std::lock_guard lock(engine_);
  uint32_t count = 0;
  uint32_t slot;
  while (count < max && ring_.take(&slot)) {
    if (slots_[slot].queued.exchange(kNotQueued, std::memory_order_acq_rel) == kQueued) out[count++] = slot;
  }
  return count;
}

int64_t CacheMap::addDirtyCredits(int64_t add) {
  int64_t before = dirtyCredits_.load(std::memory_order_relaxed);
  int64_t after;
  do {
    after = std::max<int64_t>(0, before + add);
  } while (!dirtyCredits_.compare_exchange_weak(before, after, std::memory_order_acq_rel));
  return after;
}

uint32_t CacheMap::takeReferences(uint32_t slot) {
  return slots_[slot].references.exchange(0, std::memory_order_relaxed);
}

Statistics CacheMap::statistics() const {
  Statistics sum;
  for (uint32_t i = 0; i < kStripes; i++) {
    const Stripe& stripe = stripes_[i];
    sum.readHits += stripe.readHits.load(std::memory_order_relaxed);
    sum.writeHits += stripe.writeHits.load(std::memory_order_relaxed);
    sum.readBytes += stripe.readBytes.load(std::memory_order_relaxed);
    sum.writeBytes += stripe.writeBytes.load(std::memory_order_relaxed);
    for (uint32_t reason = 0; reason < kMissReasons; reason++) {
      sum.misses[reason] += stripe.misses[reason].load(std::memory_order_relaxed);
    }
  }
  return sum;
}

}  // namespace holdfast
