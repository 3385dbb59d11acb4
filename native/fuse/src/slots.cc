#include "slots.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace holdfast {

Slots::Slots(std::shared_ptr<Ledger> ledger, uint32_t small_count, uint32_t large_count, uint32_t max_write)
    : ledger_(std::move(ledger)),
      small_count_(small_count),
      large_count_(large_count),
      large_bytes_((max_write + 4095) / 4096 * 4096 + 2 * 4096),
      slots_(small_count + large_count) {
  memory_bytes_ = small_count_ * kSmallSlotBytes + large_count_ * large_bytes_;
  void* region =
      mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of the mount's slots");
  memory_ = static_cast<uint8_t*>(region);
  // The last one freed is taken first: its memory is warm, and what was never needed is never touched.
  for (uint32_t i = small_count_; i-- > 0;) free_small_.push_back(i);
  for (uint32_t i = small_count_ + large_count_; i-- > small_count_;) free_large_.push_back(i);
}

Slots::~Slots() { munmap(memory_, memory_bytes_); }

uint8_t* Slots::At(uint32_t slot) const {
  if (slot < small_count_) return memory_ + slot * kSmallSlotBytes;
  return memory_ + small_count_ * kSmallSlotBytes + (slot - small_count_) * large_bytes_;
}

bool Slots::WaitForRoom(std::optional<uint32_t>* large, std::optional<uint32_t>* small) {
  std::unique_lock lock(mutex_);
  const auto take = [this](std::vector<uint32_t>& from, std::optional<uint32_t>* into) {
    if (*into || from.empty()) return;
    *into = from.back();
    from.pop_back();
    slots_[**into].state = State::kReading;
  };
  for (;;) {
    if (stopped_) return false;
    take(free_large_, large);
    take(free_small_, small);
    if (*large && *small) return true;
    room_.wait(lock);
  }
}

void Slots::GiveBack(std::optional<uint32_t> slot) {
  if (!slot) return;
  std::lock_guard lock(mutex_);
  Free(*slot);
}

void Slots::Free(uint32_t slot) {
  slots_[slot].state = State::kFree;
  slots_[slot].generation++;
  (slot < small_count_ ? free_small_ : free_large_).push_back(slot);
  room_.notify_one();
}

Slots::Arrival Slots::Enter(uint32_t index, uint32_t device, const fuse_in_header& header, SlotId* id) {
  const uint64_t name = header.unique & ~kUniqueResent;
  std::lock_guard lock(mutex_);
  const auto known = by_unique_.find(name);
  if (known != by_unique_.end()) {
    Slot& there = slots_[known->second];
    there.unique = header.unique;
    there.device = device;
    ledger_->in_flight(known->second).unique.store(header.unique, std::memory_order_release);
    return Arrival::kAgain;
  }
  InFlightRecord& record = ledger_->in_flight(index);
  record.node = header.nodeid;
  record.opcode = header.opcode;
  record.pid = header.pid;
  record.unique.store(header.unique, std::memory_order_release);
  Slot& slot = slots_[index];
  slot.state = State::kOut;
  slot.device = device;
  slot.opcode = header.opcode;
  slot.unique = header.unique;
  by_unique_.emplace(name, index);
  *id = IdOf(index);
  const auto early = std::find(early_interrupts_.begin(), early_interrupts_.end(), name);
  if (early == early_interrupts_.end()) return Arrival::kNew;
  early_interrupts_.erase(early);
  return Arrival::kInterrupted;
}

std::optional<SlotId> Slots::Interrupt(uint64_t unique) {
  const uint64_t name = unique & ~kUniqueResent & ~kUniqueInterrupt;
  std::lock_guard lock(mutex_);
  const auto known = by_unique_.find(name);
  if (known != by_unique_.end()) return IdOf(known->second);
  early_interrupts_.push_back(name);
  if (early_interrupts_.size() > kEarlyInterruptsMax) early_interrupts_.pop_front();
  return std::nullopt;
}

std::optional<Slots::Taken> Slots::Take(SlotId id) {
  const auto index = static_cast<uint32_t>(id & ((1u << kIndexBits) - 1));
  std::lock_guard lock(mutex_);
  if (index >= slots_.size() || IdOf(index) != id || slots_[index].state != State::kOut) return std::nullopt;
  slots_[index].state = State::kAnswering;
  return Taken{index, slots_[index].unique, slots_[index].device, slots_[index].opcode};
}

std::optional<Slots::Taken> Slots::RenamedFrom(const Taken& taken) const {
  std::lock_guard lock(mutex_);
  const Slot& slot = slots_[taken.slot];
  if (slot.unique == taken.unique) return std::nullopt;
  return Taken{taken.slot, slot.unique, slot.device, slot.opcode};
}

void Slots::Done(const Taken& taken) {
  std::lock_guard lock(mutex_);
  by_unique_.erase(slots_[taken.slot].unique & ~kUniqueResent);
  ledger_->in_flight(taken.slot).unique.store(0, std::memory_order_release);
  Free(taken.slot);
}

std::vector<SlotId> Slots::Out() const {
  std::vector<SlotId> out;
  std::lock_guard lock(mutex_);
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].state == State::kOut) out.push_back(IdOf(i));
  }
  return out;
}

uint32_t Slots::free_small() const {
  std::lock_guard lock(mutex_);
  return static_cast<uint32_t>(free_small_.size());
}

void Slots::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  room_.notify_all();
}

}  // namespace holdfast
