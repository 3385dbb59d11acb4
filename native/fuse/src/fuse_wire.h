// The kernel's protocol (linux/fuse.h), with what Debian's headers of 7.38 lack of 7.45.
#pragma once

#include <linux/fuse.h>

#include <cstddef>
#include <cstdint>

namespace holdfast {

constexpr uint32_t kProtocolMajor = 7;
constexpr uint32_t kProtocolMinor = 45;
// What the mount can't do without came by then: explicit invalidation, killpriv v2, expiry of names (asked for by
// flag).
constexpr uint32_t kProtocolMinorLeast = 31;

// INIT's second word of flags.
constexpr uint64_t kHasExpireOnly = 1ull << 35;
constexpr uint64_t kDirectIoAllowMmap = 1ull << 36;
constexpr uint64_t kHasResend = 1ull << 39;

constexpr uint32_t kOpStatx = 52;
constexpr uint32_t kOpCopyFileRange64 = 53;
constexpr uint32_t kOpcodeMax = 53;

constexpr uint32_t kNotifyResend = 7;
constexpr uint32_t kNotifyIncEpoch = 8;

// In `unique`: a request that comes again after RESEND; and an INTERRUPT (which names its request without the bit).
constexpr uint64_t kUniqueResent = 1ull << 63;
constexpr uint64_t kUniqueInterrupt = 1;

constexpr size_t kHeaderBytes = sizeof(fuse_in_header);
constexpr size_t kWriteHeadBytes = sizeof(fuse_in_header) + sizeof(fuse_write_in);
constexpr size_t kAttrOutBytes = sizeof(fuse_attr_out);
static_assert(kHeaderBytes == 40 && kWriteHeadBytes == 80 && kAttrOutBytes == 104 && sizeof(fuse_entry_out) == 128);

// Since 7.39.
struct StatxTime {
  int64_t seconds;
  uint32_t nanoseconds;
  int32_t reserved;
};
struct StatxOut {
  uint64_t attr_valid;
  uint32_t attr_valid_nsec;
  uint32_t flags;
  uint64_t spare[2];
  uint32_t mask;
  uint32_t blksize;
  uint64_t attributes;
  uint32_t nlink;
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint16_t spare0;
  uint64_t ino;
  uint64_t size;
  uint64_t blocks;
  uint64_t attributes_mask;
  StatxTime atime;
  StatxTime btime;
  StatxTime ctime;
  StatxTime mtime;
  uint32_t rdev_major;
  uint32_t rdev_minor;
  uint32_t dev_major;
  uint32_t dev_minor;
  uint64_t spare2[14];
};
static_assert(sizeof(StatxOut) == 32 + 256);
// STATX_BASIC_STATS | STATX_BTIME
constexpr uint32_t kStatxMask = 0xfff;

// What is put into the table of attributes: the answer to GETATTR, and the time of birth, which only STATX tells.
struct KnownAttributes {
  fuse_attr_out out;
  int64_t birth_seconds;
  uint32_t birth_nanoseconds;
  uint32_t reserved;
};
static_assert(sizeof(KnownAttributes) == 120);

}  // namespace holdfast
