// The page pool: one mmap'd region per pool, 2 MiB aligned, on huge pages where there are any.
//
// Owns the mapping and the process-wide registry of pools by id. Invariants: a pool stays mapped as long as anybody
// holds a reference (the registry until its owner closes it, every isolate's ArrayBuffer until its finalizer has run,
// every cache map over it); ids are never reused in a process. Fault model: mmap may fail (reported with its errno),
// huge pages may be missing (then normal pages, reported); the kernel may kill a process that overcommits, which is not
// ours to prevent.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

namespace holdfast {

enum class HugePages : uint32_t { kNone = 0, kTransparent = 1, kReserved = 2 };

class PagePool {
 public:
  // Throws std::system_error when the region can't be mapped.
  PagePool(uint32_t id, size_t lengthBytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  uint32_t id() const { return id_; }
  uint8_t* data() const { return data_; }
  size_t lengthBytes() const { return lengthBytes_; }
  HugePages hugePages() const { return hugePages_; }

  // Creates a pool and enters it in the registry.
  static std::shared_ptr<PagePool> create(size_t lengthBytes);
  // Null when no pool has this id, or its owner closed it.
  static std::shared_ptr<PagePool> find(uint32_t id);
  // The owner gives up its reference; nobody can open the pool any more. False when that was done before.
  static bool close(uint32_t id);
  // Pools that are mapped now, closed ones that somebody still holds included.
  static uint32_t mappedCount();

 private:
  uint32_t id_;
  uint8_t* data_ = nullptr;
  size_t lengthBytes_;
  size_t mappedBytes_ = 0;
  HugePages hugePages_ = HugePages::kNone;
  // Touches the memory before anybody needs it: a first touch costs up to 10 us for 4 KiB on a virtual machine.
  std::atomic<bool> stopTouching_{false};
  std::thread toucher_;
};

}  // namespace holdfast
