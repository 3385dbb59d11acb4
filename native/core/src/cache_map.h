// The cache map in native memory: what is cached, so that any thread of the process hits without asking the engine.
//
// Owns entries (inodes in use), slots (pages of the pool), the table from (entry, page) to slot, the dirty ring, the
// dirty credits and the lease word. The behaviour is that of the interface CacheMap (src/cache/cache-map.ts).
//
// Who writes what. The engine is the only writer of the table, of entries' status, coverage and lifetime, and of slots'
// keys; its calls are serialised by a mutex, so that a second engine thread is slow but never harmful. Hits (any
// thread) change only pins, contents of slots they pinned exclusively, size (grow), times, the ring and the credits.
//
// Invariants, and what makes them hold between threads:
// - A slot's key changes only while its pin word has the closed bit and no pin, or under an exclusive pin. A hit looks
// a slot up
//   without a lock, pins it, and compares the key again: equal then means equal until it unpins.
// - A hit reads coverage after its slots are pinned; the engine changes coverage before it closes slots. Both meet in
// the pin
//   word, so one of them sees the other.
// - A hit pins its entry before it reads generation and status; the engine changes these before it waits for the
// entry's pins
//   (store and load in sequentially consistent order on both sides).
// - Growth of a file happens under its grow lock, from the moment the end of file was looked at until the new size is
// there:
//   appends don't interleave, and nothing appears behind an append that was placed before it. The size is stored after
//   the bytes and before the pages are unpinned; readers load it after they have pinned.
// - Locks are taken in one order (entry pin, grow lock, slots ascending) and waited for only for a bounded time: a hit
// that meets a
//   conflict gives everything back and misses.
// - Valid bytes at or behind the end of file are zeros: the engine installs them so, and hits write none without
// growing the file.
//
// Fault model: threads of this process only, and a thread doesn't die inside a call, so pins carry no owner.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "dirty_ring.h"
#include "page_content.h"
#include "page_pool.h"

namespace holdfast {

// The numbers of Miss and TokenMode in the TypeScript interface; the loader compares them.
enum Miss : int32_t {
  kMissLease = -1,
  kMissStale = -2,
  kMissStatus = -3,
  kMissCoverage = -4,
  kMissAbsent = -5,
  kMissBusy = -6,
  kMissCredits = -7,
  kMissLimit = -8,
};
constexpr uint32_t kMissReasons = 8;
constexpr uint32_t kModeNone = 0;
constexpr uint32_t kModeShared = 1;
constexpr uint32_t kModeConcurrentWrite = 2;
constexpr uint32_t kModeExclusive = 3;
constexpr uint32_t kHitPagesMax = 80;
constexpr uint32_t kCoverageRangesMax = 8;
constexpr uint32_t kEntryIndexBits = 20;
constexpr uint32_t kEntryCountLimit = 1u << kEntryIndexBits;
// First offset that no file reaches: 2^53 less a sector.
constexpr int64_t kRangeEnd = (int64_t{1} << 53) - kPageSectorBytes;

// Why an engine call was refused: each is a mistake of the engine, an invariant for its caller.
enum class Fault : int32_t {
  kNone = 0,
  kStaleEntry = 1,
  kEntryHasSlots = 2,
  kSlotInUse = 3,
  kSlotFree = 4,
  kPageInstalled = 5,
  kSlotOpen = 6,
  kNotPinned = 7,
};

struct CoverageRange {
  uint64_t start;
  uint64_t end;
  uint32_t mode;
};

struct EntryState {
  int64_t sizeBytes;
  int64_t mtimeNs;
  int64_t ctimeNs;
  uint64_t changes;
};

struct Statistics {
  uint64_t readHits = 0;
  uint64_t writeHits = 0;
  uint64_t readBytes = 0;
  uint64_t writeBytes = 0;
  uint64_t misses[kMissReasons] = {};
};

class CacheMap {
 public:
  CacheMap(uint32_t id, std::shared_ptr<PagePool> pool, uint32_t slotCount, uint32_t entryCountMax);
  ~CacheMap();
  CacheMap(const CacheMap&) = delete;
  CacheMap& operator=(const CacheMap&) = delete;

  // The registry by id, as for pools. Memory stays until the last holder lets go.
  static std::shared_ptr<CacheMap> create(std::shared_ptr<PagePool> pool, uint32_t slotCount, uint32_t entryCountMax);
  static std::shared_ptr<CacheMap> find(uint32_t id);
  static bool close(uint32_t id);

  uint32_t id() const { return id_; }
  uint32_t slotCount() const { return slotCount_; }
  uint32_t entryCountMax() const { return entryCountMax_; }

  // The engine's calls.
  void setLeaseDeadline(double deadlineMs) { leaseDeadlineMs_.store(deadlineMs, std::memory_order_seq_cst); }
  // 0 when the table is full.
  uint64_t openEntry(const EntryState& state);
  Fault closeEntry(uint64_t entryId);
  Fault setStatusMode(uint64_t entryId, uint32_t mode);
  Fault entryState(uint64_t entryId, EntryState* state);
  Fault setEntryState(uint64_t entryId, const EntryState& state);
  Fault noteWrite(uint64_t entryId, int64_t endBytes, int64_t wallNs);
  Fault setCoverage(uint64_t entryId, const CoverageRange* ranges, uint32_t count);
  Fault install(uint32_t slot, uint64_t entryId, uint64_t pageIndex, const PageContent& content, bool writable);
  Fault setWritable(uint32_t slot, bool writable);
  Fault remove(uint32_t slot);
  Fault content(uint32_t slot, PageContent* content);
  Fault setContent(uint32_t slot, const PageContent& content);
  Fault close(uint32_t slot, bool* quiet);
  Fault reopen(uint32_t slot);
  bool tryPinShared(uint32_t slot);
  bool tryPinExclusive(uint32_t slot);
  Fault unpinShared(uint32_t slot);
  Fault unpinExclusive(uint32_t slot);
  uint32_t takeDirtied(uint32_t* out, uint32_t max);
  int64_t addDirtyCredits(int64_t add);
  uint32_t takeReferences(uint32_t slot);
  Statistics statistics() const;

  // The hits: bytes moved, or a Miss. `offset` is at least 0, for write also -1 (append).
  int32_t read(uint64_t entryId, int64_t offset, uint8_t* target, uint64_t lengthBytes);
  int32_t write(uint64_t entryId, int64_t offset, const uint8_t* source, uint64_t lengthBytes, int64_t wallNs);

 private:
  static constexpr uint64_t kClosed = uint64_t{1} << 63;
  static constexpr uint64_t kExclusive = uint64_t{1} << 62;
  // Beside kExclusive: the engine's pin, so that it can't mistake a hit's for its own.
  static constexpr uint64_t kEngine = uint64_t{1} << 61;
  static constexpr uint64_t kSharedCount = UINT32_MAX;
  static constexpr uint64_t kReaderPin = 1;
  static constexpr uint64_t kWriterPin = uint64_t{1} << 32;
  static constexpr uint32_t kNoSlot = UINT32_MAX;
  static constexpr uint32_t kReferencedByRead = 1;
  static constexpr uint32_t kReferencedByWrite = 2;
  // States of a slot with respect to the dirty ring. Cancelled: still in the ring, but removed since it was pushed.
  enum : uint32_t { kNotQueued = 0, kQueued = 1, kQueueCancelled = 2 };

  struct alignas(64) Slot {
    std::atomic<uint64_t> pin{kClosed};  // closed, exclusive and engine bits, count of shared pins
    std::atomic<uint64_t> key{0};        // 0 while the slot is free
    std::atomic<uint64_t> content{0};    // PageContent::pack
    std::atomic<uint32_t> writable{0};
    std::atomic<uint32_t> queued{kNotQueued};
    std::atomic<uint32_t> references{0};
  };

  struct alignas(64) Entry {
    std::atomic<uint64_t> live{0};  // the generation while open, else 0
    std::atomic<uint64_t> pins{0};  // running hits: reads in the low half, writes in the high half
    std::atomic<uint32_t> status{kModeNone};
    std::atomic<uint32_t> growLock{0};
    std::atomic<uint32_t> stateSequence{0};  // odd while size and times are being changed
    std::atomic<uint32_t> coverageSequence{0};
    std::atomic<int64_t> sizeBytes{0};
    std::atomic<int64_t> mtimeNs{0};
    std::atomic<int64_t> ctimeNs{0};
    std::atomic<uint64_t> changes{0};
    std::atomic<uint32_t> coverageCount{0};
    uint32_t slotCount = 0;   // the engine's
    uint64_t generation = 0;  // the engine's: of the last opening
    struct {
      std::atomic<uint64_t> start{0};
      std::atomic<uint64_t> end{0};
      std::atomic<uint32_t> mode{0};
    } coverage[kCoverageRangesMax];
  };

  struct alignas(64) Stripe {
    std::atomic<uint64_t> readHits{0};
    std::atomic<uint64_t> writeHits{0};
    std::atomic<uint64_t> readBytes{0};
    std::atomic<uint64_t> writeBytes{0};
    std::atomic<uint64_t> misses[kMissReasons] = {};
  };
  static constexpr uint32_t kStripes = 16;

  class Patience;
  class EntryPin;
  class GrowLock;
  class SlotPins;

  static uint64_t keyOf(uint32_t entryIndex, uint64_t pageIndex) {
    return uint64_t{1} << 63 | uint64_t{entryIndex} << 40 | pageIndex;
  }
  static uint32_t entryIndexOf(uint64_t key) { return static_cast<uint32_t>(key >> 40) & (kEntryCountLimit - 1); }
  static uint64_t mix(uint64_t key);
  Entry* liveEntry(uint64_t entryId);
  uint8_t* pageBytes(uint32_t slot) const { return poolBytes_ + uint64_t{slot} * kPageBytes; }
  static bool pinShared(Slot& slot, uint64_t* seen);
  static bool pinExclusive(Slot& slot, uint64_t bits, uint64_t* seen);

  uint32_t find(uint64_t key) const;
  int32_t pinPage(uint64_t key, bool exclusive, Patience& patience, uint32_t* slot);
  bool leaseHolds() const;
  static bool covers(const Entry& entry, uint64_t start, uint64_t end, uint32_t mode);
  static void lockState(Entry& entry);
  static void unlockState(Entry& entry);
  bool takeCredits(int64_t count);
  void markDirtied(uint32_t slot);
  int32_t tryRead(Entry& entry, uint32_t index, uint64_t offset, uint8_t* target, uint64_t lengthBytes, bool* again);
  int32_t tryWrite(Entry& entry, uint32_t index, int64_t offset, const uint8_t* source, uint64_t lengthBytes,
                   int64_t wallNs, bool* again);
  int32_t missed(int32_t reason);
  Stripe& stripe() const;
  void eraseFromTable(uint64_t key, uint32_t slot);
  bool mayChange(const Slot& slot) const;

  const uint32_t id_;
  const std::shared_ptr<PagePool> pool_;
  uint8_t* const poolBytes_;
  const uint32_t slotCount_;
  const uint32_t entryCountMax_;
  const uint64_t tableMask_;
  const std::unique_ptr<Slot[]> slots_;
  // Mapped, so that entries that were never opened take no memory.
  Entry* entries_ = nullptr;
  size_t entriesMappedBytes_ = 0;
  // Cells: the lower half of the key's hash, then slot + 1; 0 is empty. Linear probing, removal shifts back (Knuth 6.4,
  // R).
  const std::unique_ptr<std::atomic<uint64_t>[]> table_;
  alignas(64) std::atomic<uint64_t> tableSequence_{0};  // odd while cells are shifted
  alignas(64) std::atomic<double> leaseDeadlineMs_{0};
  alignas(64) std::atomic<int64_t> dirtyCredits_{0};
  DirtyRing ring_;
  const std::unique_ptr<Stripe[]> stripes_;

  std::mutex engine_;  // guards what follows, and everything that only the engine writes
  uint32_t entriesEverUsed_ = 0;
  std::vector<uint32_t> freeEntries_;
};

}  // namespace holdfast
