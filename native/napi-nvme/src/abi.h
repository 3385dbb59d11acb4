// What JavaScript and C++ agree on: the layout of the two arenas and the numbers in them. This is the only place where
// they are written down; the addon hands them to lib/native.ts as `abi`.
//
// Submission arena: `depth` instructions, written by JavaScript from index 0 on, read by one native call.
//   byte  0  u32  operation; for a write perhaps with kDurable
//         4  u32  target slot
//         8  u32  buffer slot (reads, writes and compares)
//        12  u32  tag: 0 .. depth-1, named again by the completion; one operation per tag at a time
//        16  f64  offset on the device in bytes
//        24  f64  offset in the buffer in bytes
//        32  f64  length in bytes
// Completion arena: `depth` records, written by a native call or before the callback, read by JavaScript before it
// returns.
//   byte  0  u32  tag
//         4  i32  errno, 0 for none
//         8  f64  bytes done: less than asked for with errno 0 = the device ended there
//        16  u32  NVMe status field without its phase bit (SC, SCT, CRD, M, DNR), 0 for none; errno is then EIO
//        20  u32  0
// Control words, u32 each:
//   0  instructions that are written and not handed over: JavaScript counts up, a native call sets it back
//   1  1 while completions are being dispatched: what is written until then, microtasks included, is handed over after
//   it,
//      without a call
#ifndef NAPI_NVME_ABI_H_
#define NAPI_NVME_ABI_H_

#include <cstddef>
#include <cstdint>

namespace napi_nvme {

enum Operation : uint32_t {
  kRead = 1,
  kWrite = 2,
  kFlush = 3,
  kDiscard = 4,
  kWriteZeroes = 5,
  kCompare = 6,
  kVerify = 7
};
// Beside kWrite: durable when it completes, whatever cache the device has. Of these bytes alone; no other write is
// waited for.
constexpr uint32_t kDurable = 0x100;

struct Instruction {
  uint32_t operation;
  uint32_t target;
  uint32_t buffer;
  uint32_t tag;
  double offset_bytes;
  double buffer_offset_bytes;
  double length_bytes;
};
static_assert(sizeof(Instruction) == 40 && offsetof(Instruction, length_bytes) == 32);

struct Completion {
  uint32_t tag;
  int32_t error;
  double done_bytes;
  uint32_t nvme_status;
  uint32_t zero;
};
static_assert(sizeof(Completion) == 24 && offsetof(Completion, nvme_status) == 16);

struct Control {
  uint32_t written;
  uint32_t dispatching;
};
static_assert(sizeof(Control) == 8 && offsetof(Control, dispatching) == 4);

constexpr uint32_t kDepthMax = 4096;
constexpr uint32_t kTargetsMax = 256;
constexpr uint32_t kBuffersMax = 64;
// Lengths and offsets are doubles on their way; beyond this they would not be integers.
constexpr double kBytesMax = 9007199254740991.0;

}  // namespace napi_nvme

#endif  // NAPI_NVME_ABI_H_
