// A bounded queue of slot numbers: many threads push, one at a time takes (D. Vyukov, "Bounded MPMC queue",
// 1024cores.net).
//
// Never full: its users push a slot only while it isn't queued, and the capacity is at least the number of slots.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <thread>

#include "spin.h"

namespace holdfast {

class DirtyRing {
 public:
  explicit DirtyRing(uint32_t slotCount)
      : mask_(std::bit_ceil(uint64_t{slotCount} + 1) - 1), cells_(std::make_unique<Cell[]>(mask_ + 1)) {
    for (uint64_t i = 0; i <= mask_; i++) cells_[i].turn.store(i, std::memory_order_relaxed);
  }

  void push(uint32_t slot) {
    const uint64_t position = tail_.fetch_add(1, std::memory_order_relaxed);
    Cell& cell = cells_[position & mask_];
    cell.slot = slot;
    cell.turn.store(position + 1, std::memory_order_release);
  }

  // False when nothing is queued. Whoever has claimed the next cell is about to fill it and is waited for: behind it
  // may lie pages of threads that are done with their writes, and a flush must not miss them.
  bool take(uint32_t* slot) {
    Cell& cell = cells_[head_ & mask_];
    for (uint32_t look = 0; cell.turn.load(std::memory_order_acquire) != head_ + 1; look++) {
      if (tail_.load(std::memory_order_acquire) == head_) return false;
      if (look < kBusyLooks) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
    *slot = cell.slot;
    cell.turn.store(head_ + mask_ + 1, std::memory_order_release);
    head_++;
    return true;
  }

 private:
  static constexpr uint32_t kBusyLooks = 200;
  struct Cell {
    std::atomic<uint64_t> turn{0};
    uint32_t slot = 0;
  };
  const uint64_t mask_;
  const std::unique_ptr<Cell[]> cells_;
  alignas(64) std::atomic<uint64_t> tail_{0};
  alignas(64) uint64_t head_ = 0;
};

}  // namespace holdfast
