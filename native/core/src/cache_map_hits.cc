// The hits of the cache map: look up, pin, check, copy, unpin. What they rely on is said in cache_map.h.
#include <algorithm>
#include <cstring>
#include <thread>

#include "cache_map.h"
#include "clocks.h"
#include "spin.h"

namespace holdfast {
namespace {

constexpr uint32_t kAttempts = 4;

}  // namespace

// How long one hit waits for pins in all: about two microseconds busily, then a few turns of the scheduler.
class CacheMap::Patience {
 public:
  // False when it is used up.
  bool wait() {
    if (spins_ == 0) startMs_ = bootTimeMs();
    if (spins_ < kSpinsMax) {
      spins_++;
      for (uint32_t i = 0; i < 8; i++) relax();
      if (bootTimeMs() - startMs_ >= 0.002) spins_ = kSpinsMax;
      return true;
    }
    if (yields_ == kYieldsMax) return false;
    yields_++;
    std::this_thread::yield();
    return true;
  }

 private:
  static constexpr uint32_t kSpinsMax = 64;
  static constexpr uint32_t kYieldsMax = 4;
  uint32_t spins_ = 0;
  uint32_t yields_ = 0;
  double startMs_ = 0;
};

class CacheMap::EntryPin {
 public:
  EntryPin(CacheMap& map, uint64_t entryId, uint64_t weight, uint32_t mode) : weight_(weight) {
    Entry* entry = map.liveEntry(entryId);
    if (entry == nullptr) return;
    // Hits that can't succeed don't pin, or threads that keep trying would keep the engine waiting.
    if (entry->status.load(std::memory_order_relaxed) < mode) {
      miss_ = kMissStatus;
      return;
    }
    entry->pins.fetch_add(weight, std::memory_order_seq_cst);
    entry_ = entry;
    // Only after the pin is this answer one that lasts.
    if (map.liveEntry(entryId) == nullptr) drop();
  }
  ~EntryPin() { drop(); }
  EntryPin(const EntryPin&) = delete;
  EntryPin& operator=(const EntryPin&) = delete;
  // Null when the hit is a miss, for the reason miss().
  Entry* get() const { return entry_; }
  int32_t miss() const { return miss_; }

 private:
  void drop() {
    if (entry_ != nullptr) entry_->pins.fetch_sub(weight_, std::memory_order_release);
    entry_ = nullptr;
  }
  Entry* entry_ = nullptr;
  const uint64_t weight_;
  int32_t miss_ = kMissStale;
};

class CacheMap::GrowLock {
 public:
  explicit GrowLock(Entry& entry) : entry_(entry) {}
  ~GrowLock() {
    if (held_) entry_.growLock.store(0, std::memory_order_release);
  }
  GrowLock(const GrowLock&) = delete;
  GrowLock& operator=(const GrowLock&) = delete;

  bool take(Patience& patience) {
    while (entry_.growLock.exchange(1, std::memory_order_acquire) != 0) {
      if (!patience.wait()) return false;
    }
    held_ = true;
    return true;
  }
  bool held() const { return held_; }

 private:
  Entry& entry_;
  bool held_ = false;
};

// The slots of consecutive pages, pinned in ascending order.
class CacheMap::SlotPins {
 public:
  SlotPins(CacheMap& map, bool exclusive) : map_(map), exclusive_(exclusive) {}
  ~SlotPins() {
    for (uint32_t i = 0; i < count_; i++) {
      std::atomic<uint64_t>& pin = map_.slots_[slots_[i]].pin;
      if (exclusive_) {
        pin.fetch_and(~kExclusive, std::memory_order_release);
      } else {
        pin.fetch_sub(1, std::memory_order_release);
      }
    }
  }
  SlotPins(const SlotPins&) = delete;
  SlotPins& operator=(const SlotPins&) = delete;

  // 0, or why not; what was pinned until then stays with this object.
  int32_t take(uint32_t entryIndex, uint64_t firstPage, uint32_t count, Patience& patience) {
    for (; count_ < count; count_++) {
      const int32_t miss = map_.pinPage(keyOf(entryIndex, firstPage + count_), exclusive_, patience, &slots_[count_]);
      if (miss != 0) return miss;
    }
    return 0;
  }
  uint32_t operator[](uint32_t i) const { return slots_[i]; }

 private:
  CacheMap& map_;
  const bool exclusive_;
  uint32_t count_ = 0;
  uint32_t slots_[kHitPagesMax];
};

bool CacheMap::leaseHolds() const { return bootTimeMs() < leaseDeadlineMs_.load(std::memory_order_acquire); }

CacheMap::Stripe& CacheMap::stripe() const {
  static std::atomic<uint32_t> threads{0};
  thread_local const uint32_t mine = threads.fetch_add(1, std::memory_order_relaxed) % kStripes;
  return stripes_[mine];
}

int32_t CacheMap::missed(int32_t reason) {
  stripe().misses[-reason - 1].fetch_add(1, std::memory_order_relaxed);
  return reason;
}

int32_t CacheMap::pinPage(uint64_t key, bool exclusive, Patience& patience, uint32_t* slotOut) {
  for (;;) {
    const uint32_t index = find(key);
    if (index == kNoSlot) return kMissAbsent;
    Slot& slot = slots_[index];
    uint64_t seen;
    if (exclusive ? pinExclusive(slot, kExclusive, &seen) : pinShared(slot, &seen)) {
      if (slot.key.load(std::memory_order_relaxed) == key) {
        *slotOut = index;
        return 0;
      }
      // Removed, and installed as another page, between the look and the pin.
      if (exclusive) {
        slot.pin.fetch_and(~kExclusive, std::memory_order_release);
      } else {
        slot.pin.fetch_sub(1, std::memory_order_release);
      }
    } else if ((seen & kClosed) != 0 && slot.key.load(std::memory_order_relaxed) == key) {
      return kMissBusy;  // the engine is at it for longer than a hit waits
    }
    if (!patience.wait()) return kMissBusy;
  }
}

// The whole of [start, end) lies in published ranges whose mode is at least `mode`.
bool CacheMap::covers(const Entry& entry, uint64_t start, uint64_t end, uint32_t mode) {
  CoverageRange ranges[kCoverageRangesMax];
  for (uint32_t attempt = 0; attempt < 64; attempt++) {
    const uint32_t sequence = entry.coverageSequence.load(std::memory_order_acquire);
    if (sequence & 1) {
      relax();
      continue;
    }
    const uint32_t count = std::min(entry.coverageCount.load(std::memory_order_relaxed), kCoverageRangesMax);
    for (uint32_t i = 0; i < count; i++) {
      ranges[i].start = entry.coverage[i].start.load(std::memory_order_relaxed);
      ranges[i].end = entry.coverage[i].end.load(std::memory_order_relaxed);
      ranges[i].mode = entry.coverage[i].mode.load(std::memory_order_relaxed);
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if (entry.coverageSequence.load(std::memory_order_relaxed) != sequence) continue;
    bool moved = true;
    while (start < end && moved) {
      moved = false;
      for (uint32_t i = 0; i < count; i++) {
        if (ranges[i].mode >= mode && ranges[i].start <= start && start < ranges[i].end) {
          start = ranges[i].end;
          moved = true;
        }
      }
    }
    return start >= end;
  }
  return false;
}

bool CacheMap::takeCredits(int64_t count) {
  int64_t before = dirtyCredits_.load(std::memory_order_relaxed);
  do {
    if (before < count) return false;
  } while (!dirtyCredits_.compare_exchange_weak(before, before - count, std::memory_order_acq_rel));
  return true;
}

void CacheMap::markDirtied(uint32_t slot) {
  if (slots_[slot].queued.exchange(kQueued, std::memory_order_acq_rel) == kNotQueued) ring_.push(slot);
}

int32_t CacheMap::read(uint64_t entryId, int64_t offset, uint8_t* target, uint64_t lengthBytes) {
  if (!leaseHolds()) return missed(kMissLease);
  const EntryPin pin(*this, entryId, kReaderPin, kModeShared);
  if (pin.get() == nullptr) return missed(pin.miss());
  const auto index = static_cast<uint32_t>(pin.get() - entries_);
  for (uint32_t attempt = 0; attempt < kAttempts; attempt++) {
    bool again = false;
    const int32_t result = tryRead(*pin.get(), index, static_cast<uint64_t>(offset), target, lengthBytes, &again);
    if (again) continue;
    if (result < 0) return missed(result);
    Stripe& counts = stripe();
    counts.readHits.fetch_add(1, std::memory_order_relaxed);
    counts.readBytes.fetch_add(static_cast<uint64_t>(result), std::memory_order_relaxed);
    return result;
  }
  return missed(kMissBusy);
}

int32_t CacheMap::tryRead(Entry& entry, uint32_t index, uint64_t offset, uint8_t* target, uint64_t lengthBytes,
                          bool* again) {
  if (entry.status.load(std::memory_order_seq_cst) < kModeShared) return kMissStatus;
  const auto clip = [&entry, offset, lengthBytes] {
    const auto size = static_cast<uint64_t>(entry.sizeBytes.load(std::memory_order_acquire));
    return std::min(offset + lengthBytes, std::max(size, offset));
  };
  const uint64_t endForeseen = clip();
  // Others may have written behind what this node knows to be the end.
  const auto endIsKnown = [&entry, offset, lengthBytes](uint64_t end) {
    return end == offset + lengthBytes || entry.status.load(std::memory_order_acquire) != kModeConcurrentWrite;
  };
  if (!endIsKnown(endForeseen)) return kMissStatus;
  if (endForeseen == offset) return 0;
  const uint64_t firstPage = offset / kPageBytes;
  const uint64_t pageCount = (endForeseen - 1) / kPageBytes - firstPage + 1;
  if (pageCount > kHitPagesMax) return kMissLimit;

  Patience patience;
  SlotPins slots(*this, false);
  if (const int32_t miss = slots.take(index, firstPage, static_cast<uint32_t>(pageCount), patience); miss != 0)
    return miss;

  const uint64_t end = clip();
  if (!endIsKnown(end)) return kMissStatus;
  if (end == offset) return 0;
  if ((end - 1) / kPageBytes - firstPage + 1 > pageCount) {
    *again = true;  // the file grew into pages that are not pinned
    return 0;
  }
  if (!leaseHolds()) return kMissLease;
  if (entry.status.load(std::memory_order_acquire) < kModeShared) return kMissStatus;
  if (!covers(entry, offset, end, kModeShared)) return kMissCoverage;
  const auto inPage = [offset, end, firstPage](uint64_t i, uint32_t* from, uint32_t* to) {
    const uint64_t pageStart = (firstPage + i) * kPageBytes;
    *from = static_cast<uint32_t>(std::max(offset, pageStart) - pageStart);
    *to = static_cast<uint32_t>(std::min(end, pageStart + kPageBytes) - pageStart);
  };
  const uint64_t usedPages = (end - 1) / kPageBytes - firstPage + 1;
  uint32_t from;
  uint32_t to;
  for (uint64_t i = 0; i < usedPages; i++) {
    inPage(i, &from, &to);
    const Slot& slot = slots_[slots[static_cast<uint32_t>(i)]];
    if (!PageContent::unpack(slot.content.load(std::memory_order_relaxed)).readable(from, to)) return kMissAbsent;
  }
  for (uint64_t i = 0; i < usedPages; i++) {
    inPage(i, &from, &to);
    const uint32_t slotIndex = slots[static_cast<uint32_t>(i)];
    // memmove: the target may itself be a view of the pool.
    std::memmove(target, pageBytes(slotIndex) + from, to - from);
    target += to - from;
    std::atomic<uint32_t>& references = slots_[slotIndex].references;
    if ((references.load(std::memory_order_relaxed) & kReferencedByRead) == 0) {
      references.fetch_or(kReferencedByRead, std::memory_order_relaxed);
    }
  }
  return static_cast<int32_t>(end - offset);
}

int32_t CacheMap::write(uint64_t entryId, int64_t offset, const uint8_t* source, uint64_t lengthBytes, int64_t wallNs) {
  if (!leaseHolds()) return missed(kMissLease);
  const EntryPin pin(*this, entryId, kWriterPin, kModeConcurrentWrite);
  if (pin.get() == nullptr) return missed(pin.miss());
  const auto index = static_cast<uint32_t>(pin.get() - entries_);
  for (uint32_t attempt = 0; attempt < kAttempts; attempt++) {
    bool again = false;
    const int32_t result = tryWrite(*pin.get(), index, offset, source, lengthBytes, wallNs, &again);
    if (again) continue;
    if (result < 0) return missed(result);
    Stripe& counts = stripe();
    counts.writeHits.fetch_add(1, std::memory_order_relaxed);
    counts.writeBytes.fetch_add(static_cast<uint64_t>(result), std::memory_order_relaxed);
    return result;
  }
  return missed(kMissBusy);
}

int32_t CacheMap::tryWrite(Entry& entry, uint32_t index, int64_t offsetAsked, const uint8_t* source,
                           uint64_t lengthBytes, int64_t wallNs, bool* again) {
  // Where the end is, only who has the status exclusively knows.
  const uint32_t modeNeeded = offsetAsked < 0 ? kModeExclusive : kModeConcurrentWrite;
  if (entry.status.load(std::memory_order_seq_cst) < modeNeeded) return kMissStatus;
  if (lengthBytes == 0) return 0;
  if (lengthBytes > uint64_t{kHitPagesMax} * kPageBytes) return kMissLimit;

  Patience patience;
  GrowLock growLock(entry);
  const auto length = static_cast<int64_t>(lengthBytes);
  const bool append = offsetAsked < 0;
  if (append || entry.sizeBytes.load(std::memory_order_acquire) < offsetAsked + length) {
    if (!growLock.take(patience)) return kMissBusy;
  }
  const int64_t offset = append ? entry.sizeBytes.load(std::memory_order_acquire) : offsetAsked;
  const int64_t end = offset + length;
  if (end > kRangeEnd) return kMissCoverage;  // no token reaches there
  const uint64_t firstPage = static_cast<uint64_t>(offset) / kPageBytes;
  const uint64_t pageCount = static_cast<uint64_t>(end - 1) / kPageBytes - firstPage + 1;
  if (pageCount > kHitPagesMax) return kMissLimit;

  SlotPins slots(*this, true);
  if (const int32_t miss = slots.take(index, firstPage, static_cast<uint32_t>(pageCount), patience); miss != 0)
    return miss;

  // The engine sets sizes without the grow lock.
  const int64_t size = entry.sizeBytes.load(std::memory_order_acquire);
  if (append ? size != offset : !growLock.held() && size < end) {
    *again = true;
    return 0;
  }
  if (!leaseHolds()) return kMissLease;
  if (entry.status.load(std::memory_order_acquire) < modeNeeded) return kMissStatus;
  const auto coverStart = static_cast<uint64_t>(offset) / kPageSectorBytes * kPageSectorBytes;
  const auto coverEnd = (static_cast<uint64_t>(end) + kPageSectorBytes - 1) / kPageSectorBytes * kPageSectorBytes;
  if (!covers(entry, coverStart, coverEnd, kModeExclusive)) return kMissCoverage;

  const auto inPage = [offset, end, firstPage](uint32_t i, uint32_t* from, uint32_t* to) {
    const auto pageStart = static_cast<int64_t>((firstPage + i) * kPageBytes);
    *from = static_cast<uint32_t>(std::max(offset, pageStart) - pageStart);
    *to = static_cast<uint32_t>(std::min(end, pageStart + int64_t{kPageBytes}) - pageStart);
  };
  uint64_t after[kHitPagesMax];
  bool turnsDirty[kHitPagesMax];
  int64_t credits = 0;
  uint32_t from;
  uint32_t to;
  for (uint32_t i = 0; i < pageCount; i++) {
    const Slot& slot = slots_[slots[i]];
    if (slot.writable.load(std::memory_order_acquire) == 0) return kMissAbsent;
    PageContent content = PageContent::unpack(slot.content.load(std::memory_order_relaxed));
    turnsDirty[i] = !content.isDirty();
    if (turnsDirty[i]) credits++;
    inPage(i, &from, &to);
    if (!content.absorb(from, to)) return kMissAbsent;
    after[i] = content.pack();
  }
  if (credits > 0 && !takeCredits(credits)) return kMissCredits;

  // From here on nothing fails.
  for (uint32_t i = 0; i < pageCount; i++) {
    inPage(i, &from, &to);
    std::memmove(pageBytes(slots[i]) + from, source, to - from);
    source += to - from;
    Slot& slot = slots_[slots[i]];
    slot.content.store(after[i], std::memory_order_release);
    if ((slot.references.load(std::memory_order_relaxed) & kReferencedByWrite) == 0) {
      slot.references.fetch_or(kReferencedByWrite, std::memory_order_relaxed);
    }
    if (turnsDirty[i]) markDirtied(slots[i]);
  }
  lockState(entry);
  if (entry.sizeBytes.load(std::memory_order_relaxed) < end) entry.sizeBytes.store(end, std::memory_order_release);
  entry.mtimeNs.store(wallNs, std::memory_order_relaxed);
  entry.ctimeNs.store(wallNs, std::memory_order_relaxed);
  entry.changes.store(entry.changes.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  unlockState(entry);
  return static_cast<int32_t>(length);
}

}  // namespace holdfast
