// The memory that requests are read into, and who has which piece of it.
//
// Small slots (8 KiB) for nearly all requests, large ones (max_write and two pages) for the rest. A large slot is read
// into from kReadAtBytes on, so that the bytes of a WRITE begin at a page. States: free -> reading (a reader's own) ->
// out (the engine's) -> answering -> free. Ids carry the slot's generation: an id that was answered names nothing.
//
// Invariant: a slot's bytes change only while it is reading. All of this is under one mutex, held for a few
// instructions.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "fuse_wire.h"
#include "ledger.h"

namespace holdfast {

constexpr size_t kSmallSlotBytes = 8192;
constexpr size_t kReadAtBytes = 4096 - kWriteHeadBytes;
constexpr uint32_t kSlotCountMax = 1u << 16;

using SlotId = uint64_t;  // index, and from bit 20 on the generation

class Slots {
 public:
  // Throws std::system_error when the memory can't be had.
  Slots(std::shared_ptr<Ledger> ledger, uint32_t small_count, uint32_t large_count, uint32_t max_write);
  ~Slots();
  Slots(const Slots&) = delete;
  Slots& operator=(const Slots&) = delete;

  uint8_t* memory() const { return memory_; }
  size_t memory_bytes() const { return memory_bytes_; }
  uint32_t count() const { return small_count_ + large_count_; }

  // A reader's turn: waits until there are both, a large slot to read into (kept by the reader between turns) and a
  // small one. False when Stop was called.
  bool WaitForRoom(std::optional<uint32_t>* large, std::optional<uint32_t>* small);
  void GiveBack(std::optional<uint32_t> slot);
  uint8_t* ReadInto(uint32_t large) const { return At(large) + kReadAtBytes; }
  size_t ReadBytesMax() const { return large_bytes_ - kReadAtBytes; }
  uint8_t* At(uint32_t slot) const;

  enum class Arrival {
    kNew,
    kInterrupted,  // new, and its INTERRUPT came before it
    kAgain,        // it is out already, under an earlier name: that one now has this name
  };
  // Puts down a request that was read into `slot`; from here on it can be interrupted and answered.
  Arrival Enter(uint32_t slot, uint32_t device, const fuse_in_header& header, SlotId* id);
  // Which slot an INTERRUPT means; nothing when its request is not here (it is remembered, should it still come).
  std::optional<SlotId> Interrupt(uint64_t unique);

  struct Taken {
    uint32_t slot;
    uint64_t unique;
    uint32_t device;
    uint32_t opcode;
  };
  // Takes a request to answer it; nothing when the id names none that is out.
  std::optional<Taken> Take(SlotId id);
  // What it is called by now, if RESEND has changed that while it was being answered under the old name.
  std::optional<Taken> RenamedFrom(const Taken& taken) const;
  void Done(const Taken& taken);

  std::vector<SlotId> Out() const;
  uint32_t free_small() const;
  void Stop();

 private:
  enum class State : uint8_t { kFree, kReading, kOut, kAnswering };
  struct Slot {
    State state = State::kFree;
    uint32_t generation = 0;
    uint32_t device = 0;
    uint32_t opcode = 0;
    uint64_t unique = 0;
  };
  static constexpr uint32_t kIndexBits = 20;
  static constexpr size_t kEarlyInterruptsMax = 64;

  SlotId IdOf(uint32_t slot) const { return uint64_t{slots_[slot].generation} << kIndexBits | slot; }
  void Free(uint32_t slot);

  const std::shared_ptr<Ledger> ledger_;
  const uint32_t small_count_;
  const uint32_t large_count_;
  const size_t large_bytes_;
  uint8_t* memory_ = nullptr;
  size_t memory_bytes_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable room_;
  bool stopped_ = false;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_small_;
  std::vector<uint32_t> free_large_;
  std::unordered_map<uint64_t, uint32_t> by_unique_;  // without kUniqueResent
  std::deque<uint64_t> early_interrupts_;
};

}  // namespace holdfast
