#include "page_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <system_error>
#include <unordered_map>

namespace holdfast {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
// Small enough that closing a pool doesn't wait long for it.
constexpr size_t kTouchBytes = size_t{4} << 20;
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct Registry {
  std::mutex mutex;
  uint32_t nextId = 1;
  std::unordered_map<uint32_t, std::shared_ptr<PagePool>> pools;
};
// Never destroyed: worker threads may still run finalizers while the process exits.
Registry& registry() {
  static Registry* instance = new Registry();
  return *instance;
}
std::atomic<uint32_t> mappedPools{0};

// madvise only asks. Whether huge pages came is seen in smaps once the first of them has been touched.
bool transparentHugePageCame(const uint8_t* address) {
  FILE* file = std::fopen("/proc/self/smaps", "re");
  if (file == nullptr) return false;
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  bool inside = false;
  bool came = false;
  char line[512];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    uintptr_t from = 0;
    uintptr_t to = 0;
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
      if (inside) break;
      inside = from <= wanted && wanted < to;
      continue;
    }
    unsigned long kibibytes = 0;
    if (inside && std::sscanf(line, "AnonHugePages: %lu kB", &kibibytes) == 1) {
      came = kibibytes > 0;
      break;
    }
  }
  std::fclose(file);
  return came;
}

}  // namespace

PagePool::PagePool(uint32_t id, size_t lengthBytes) : id_(id), lengthBytes_(lengthBytes) {
  mappedBytes_ = (lengthBytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  void* region = mmap(nullptr, mappedBytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (region != MAP_FAILED) {
    hugePages_ = HugePages::kReserved;
    data_ = static_cast<uint8_t*>(region);
  } else {
    // One huge page more than needed; what lies before and behind the aligned part goes back.
    const size_t askedBytes = mappedBytes_ + kHugePageBytes;
    region = mmap(nullptr, askedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of the page pool");
    const auto start = reinterpret_cast<uintptr_t>(region);
    const uintptr_t aligned = (start + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    const size_t before = aligned - start;
    if (before > 0) munmap(region, before);
    const size_t behind = askedBytes - before - mappedBytes_;
    if (behind > 0) munmap(reinterpret_cast<void*>(aligned + mappedBytes_), behind);
    data_ = reinterpret_cast<uint8_t*>(aligned);
    if (madvise(data_, mappedBytes_, MADV_HUGEPAGE) == 0) {
      *static_cast<volatile uint8_t*>(data_) = 0;
      if (transparentHugePageCame(data_)) hugePages_ = HugePages::kTransparent;
    }
  }
  // A child would otherwise turn pages that are registered with a device into copy-on-write ones.
  madvise(data_, mappedBytes_, MADV_DONTFORK);
  toucher_ = std::thread([this] {
    for (size_t at = 0; at < mappedBytes_ && !stopTouching_.load(std::memory_order_relaxed); at += kTouchBytes) {
      // Older kernels don't know it (EINVAL): pages come at their first use then.
      if (madvise(data_ + at, std::min(kTouchBytes, mappedBytes_ - at), MADV_POPULATE_WRITE) != 0) return;
    }
  });
  mappedPools.fetch_add(1);
}

PagePool::~PagePool() {
  stopTouching_.store(true, std::memory_order_relaxed);
  toucher_.join();
  munmap(data_, mappedBytes_);
  mappedPools.fetch_sub(1);
}

std::shared_ptr<PagePool> PagePool::create(size_t lengthBytes) {
  uint32_t id;
  {
    std::lock_guard lock(registry().mutex);
    id = registry().nextId++;
  }
  auto pool = std::make_shared<PagePool>(id, lengthBytes);
  std::lock_guard lock(registry().mutex);
  registry().pools.emplace(id, pool);
  return pool;
}

std::shared_ptr<PagePool> PagePool::find(uint32_t id) {
  std::lock_guard lock(registry().mutex);
  const auto found = registry().pools.find(id);
  return found == registry().pools.end() ? nullptr : found->second;
}

bool PagePool::close(uint32_t id) {
  std::shared_ptr<PagePool> last;  // unmapped outside of the lock
  std::lock_guard lock(registry().mutex);
  const auto found = registry().pools.find(id);
  if (found == registry().pools.end()) return false;
  last = std::move(found->second);
  registry().pools.erase(found);
  return true;
}

uint32_t PagePool::mappedCount() { return mappedPools.load(); }

}  // namespace holdfast
