// The NVM command set as far as a block engine speaks it: how a byte range becomes commands, and how a command becomes
// 64 bytes (NVM Express NVM Command Set Specification 1.0, section 3.2). Pure: no descriptor, no ring, no clock.
//
// A range is cut into pieces: none is longer than the controller takes (MDTS and its kin), none crosses the namespace's
// boundary of optimal I/O (NOIOB), and none crosses the end of the namespace, so that what lies before the end is done
// and what lies behind it is refused by the controller itself.
#ifndef NAPI_NVME_NVME_COMMAND_H_
#define NAPI_NVME_NVME_COMMAND_H_

#include <linux/nvme_ioctl.h>

#include <cstddef>
#include <cstdint>

#include "abi.h"

namespace napi_nvme {

// Bits of ONCS, the optional commands that a controller has.
enum OptionalCommands : uint32_t {
  kOncsCompare = 1u << 0,
  kOncsDatasetManagement = 1u << 2,
  kOncsWriteZeroes = 1u << 3,
  kOncsVerify = 1u << 7,
};

// Dword 12 of a write: it completes when the data is on the medium, not in a volatile cache.
constexpr uint32_t kForceUnitAccess = 1u << 30;

struct NamespaceGeometry {
  uint32_t nsid = 0;
  uint32_t lba_bytes = 512;
  uint64_t lba_count = 0;
  // 0, or 1 to 3: then the controller makes protection information on writes, checks and strips it on reads (PRACT).
  uint32_t protection_type = 0;
  uint32_t optional_commands = 0;
  uint32_t transfer_blocks_max = 1;
  // NOIOB; 0 for none.
  uint32_t boundary_blocks = 0;
  uint32_t zeroes_blocks_max = 1;
  uint32_t verify_blocks_max = 1;
  uint32_t deallocate_blocks_max = 1;
  uint32_t timeout_ms = 0;
};

// One range of a dataset management command.
struct DeallocateRange {
  uint32_t context_attributes;
  uint32_t block_count;
  uint64_t first_lba;
};
static_assert(sizeof(DeallocateRange) == 16);

// Whether the operation moves data between the device and the caller's memory.
constexpr bool HasData(Operation operation) {
  return operation == kRead || operation == kWrite || operation == kCompare;
}

// 0, or the errno with which it is refused before it reaches the device.
int CheckSupported(const NamespaceGeometry& geometry, Operation operation);

// How many of `block_count` blocks from `lba` on the next command takes; at least 1.
uint64_t NextPiece(const NamespaceGeometry& geometry, Operation operation, uint64_t lba, uint64_t block_count);

// One command. `address` is the data's; `range` is written for kDiscard, and the command refers to it.
nvme_uring_cmd EncodeCommand(const NamespaceGeometry& geometry, Operation operation, uint64_t lba, uint64_t block_count,
                             uint64_t address, DeallocateRange* range);

}  // namespace napi_nvme

#endif  // NAPI_NVME_NVME_COMMAND_H_
