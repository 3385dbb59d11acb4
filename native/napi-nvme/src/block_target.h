// One opened block device, loop device, regular file, or NVMe namespace by its character device, and what can be found
// out about it.
#ifndef NAPI_NVME_BLOCK_TARGET_H_
#define NAPI_NVME_BLOCK_TARGET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nvme_command.h"

namespace napi_nvme {

enum class Direct { kPrefer, kRequire, kOff };

// Owns its descriptor.
class BlockTarget {
 public:
  BlockTarget() = default;
  ~BlockTarget() { Close(); }
  BlockTarget(const BlockTarget&) = delete;
  BlockTarget& operator=(const BlockTarget&) = delete;
  BlockTarget(BlockTarget&& other) noexcept { *this = static_cast<BlockTarget&&>(other); }
  BlockTarget& operator=(BlockTarget&& other) noexcept;

  // Blocking. Returns 0 or an errno, and in `failed_call` the system call's name.
  int Open(const std::string& path, bool read_only, Direct direct, std::string* failed_call);
  // The same for a namespace's character device; what it is like is known already.
  int OpenNamespace(const std::string& path, bool read_only, const NamespaceGeometry& geometry,
                    std::string* failed_call);
  // An exclusive lock that goes with the last reference to the opened file: while the kernel still works on what a
  // process left under way when it died, nobody else gets it. `names` are files of the same storage, in an order that
  // all who open it agree on: the first is held too, the rest only tried, since whoever has one of them has the first
  // or is dead. What this process may not open is left out. 0, EBUSY or another errno, and what it is of.
  int Lock(const std::vector<std::string>& names, std::string* failed_call, std::string* failed_path);
  void Close();

  bool is_open() const { return fd >= 0; }

  int fd = -1;
  // Of the name that all agree on, where `fd` isn't that one.
  int agreed_fd = -1;
  bool is_block = false;
  bool direct = false;
  bool read_only = false;
  uint64_t size_bytes = 0;
  uint32_t logical_block_bytes = 512;
  uint32_t physical_block_bytes = 512;
  // The device makes a write durable without a flush of all that is in its cache: it has none, or FUA.
  bool writes_through = false;
  // What O_DIRECT asks of memory addresses.
  uint32_t memory_align_bytes = 1;
  // Set for a namespace to which commands are passed through; null for everything else.
  std::unique_ptr<NamespaceGeometry> geometry;
};

// The blocking halves of discard and write-zeroes for block devices; for a thread. 0 or an errno.
int DiscardBlocks(int fd, uint64_t offset_bytes, uint64_t length_bytes);
int ZeroBlocks(int fd, uint64_t offset_bytes, uint64_t length_bytes);

}  // namespace napi_nvme

#endif  // NAPI_NVME_BLOCK_TARGET_H_
