#include "nvme_command.h"

#include <errno.h>

#include <algorithm>

namespace napi_nvme {
namespace {

// NVM Command Set Specification 1.0, figure 11.
enum Opcode : uint8_t {
  kOpFlush = 0x00,
  kOpWrite = 0x01,
  kOpRead = 0x02,
  kOpCompare = 0x05,
  kOpWriteZeroes = 0x08,
  kOpDatasetManagement = 0x09,
  kOpVerify = 0x0c,
};

// Dword 12: PRINFO.
constexpr uint32_t kProtectionAction = 1u << 29;
constexpr uint32_t kCheckGuard = 1u << 28;
constexpr uint32_t kCheckReferenceTag = 1u << 26;
// Dword 11 of dataset management.
constexpr uint32_t kDeallocate = 1u << 2;

// Of a field that holds the number of blocks minus one in 16 bits.
constexpr uint64_t kBlocksMax = 65536;

Opcode OpcodeOf(Operation operation) {
  switch (operation) {
    case kRead:
      return kOpRead;
    case kWrite:
      return kOpWrite;
    case kCompare:
      return kOpCompare;
    case kVerify:
      return kOpVerify;
    case kWriteZeroes:
      return kOpWriteZeroes;
    case kDiscard:
      return kOpDatasetManagement;
    case kFlush:
      break;
  }
  return kOpFlush;
}

uint64_t PieceMax(const NamespaceGeometry& geometry, Operation operation) {
  switch (operation) {
    case kDiscard:
      return geometry.deallocate_blocks_max;
    case kWriteZeroes:
      return std::min<uint64_t>(geometry.zeroes_blocks_max, kBlocksMax);
    case kVerify:
      return std::min<uint64_t>(geometry.verify_blocks_max, kBlocksMax);
    default:
      return std::min<uint64_t>(geometry.transfer_blocks_max, kBlocksMax);
  }
}

uint32_t ProtectionBits(const NamespaceGeometry& geometry, Operation operation) {
  if (geometry.protection_type == 0) return 0;
  const uint32_t checks = kCheckGuard | (geometry.protection_type == 3 ? 0 : kCheckReferenceTag);
  // Verify takes no action, it looks at what is there; and of zeroes there is nothing to check.
  if (operation == kVerify) return checks;
  return operation == kWriteZeroes ? kProtectionAction : checks | kProtectionAction;
}

}  // namespace

int CheckSupported(const NamespaceGeometry& geometry, Operation operation) {
  uint32_t needed = 0;
  if (operation == kCompare) needed = kOncsCompare;
  if (operation == kDiscard) needed = kOncsDatasetManagement;
  if (operation == kWriteZeroes) needed = kOncsWriteZeroes;
  if (operation == kVerify) needed = kOncsVerify;
  if ((geometry.optional_commands & needed) != needed) return EOPNOTSUPP;
  // Compare wants the protection information with the data; what is made by the controller isn't there to give.
  if (operation == kCompare && geometry.protection_type != 0) return EOPNOTSUPP;
  return 0;
}

uint64_t NextPiece(const NamespaceGeometry& geometry, Operation operation, uint64_t lba, uint64_t block_count) {
  uint64_t piece = std::min(block_count, PieceMax(geometry, operation));
  if (HasData(operation) && geometry.boundary_blocks != 0)
    piece = std::min<uint64_t>(piece, geometry.boundary_blocks - lba % geometry.boundary_blocks);
  if (lba < geometry.lba_count) piece = std::min(piece, geometry.lba_count - lba);
  return std::max<uint64_t>(piece, 1);
}

nvme_uring_cmd EncodeCommand(const NamespaceGeometry& geometry, Operation operation, uint64_t lba, uint64_t block_count,
                             uint64_t address, DeallocateRange* range) {
  nvme_uring_cmd command = {};
  command.opcode = OpcodeOf(operation);
  command.nsid = geometry.nsid;
  command.timeout_ms = geometry.timeout_ms;
  if (operation == kFlush) return command;
  if (operation == kDiscard) {
    *range = {0, static_cast<uint32_t>(block_count), lba};
    command.addr = reinterpret_cast<uintptr_t>(range);
    command.data_len = sizeof *range;
    // The number of ranges minus one.
    command.cdw10 = 0;
    command.cdw11 = kDeallocate;
    return command;
  }
  command.cdw10 = static_cast<uint32_t>(lba);
  command.cdw11 = static_cast<uint32_t>(lba >> 32);
  command.cdw12 = static_cast<uint32_t>(block_count - 1) | ProtectionBits(geometry, operation);
  // The reference tag of the first block: the low bits of its address (types 1 and 2).
  if (geometry.protection_type == 1 || geometry.protection_type == 2) command.cdw14 = static_cast<uint32_t>(lba);
  if (HasData(operation)) {
    command.addr = address;
    command.data_len = static_cast<uint32_t>(block_count * geometry.lba_bytes);
  }
  return command;
}

}  // namespace napi_nvme
