// The frame layout, as src/protocol/frame.ts documents it; src/fabric/tcp-link.test.ts compares the numbers.
// Nothing here allocates or fails: a header is a sequence of bytes to be judged.
#pragma once

#include <isa-l/crc.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace holdfast {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian and so must the host be");

constexpr uint16_t kFrameMagic = 0x4648;
constexpr uint8_t kFrameVersion = 1;
constexpr size_t kHeaderBytes = 48;
constexpr size_t kAtMagic = 0;
constexpr size_t kAtVersion = 2;
constexpr size_t kAtKind = 3;
constexpr size_t kAtBodyBytes = 4;
constexpr size_t kAtRequestSequence = 32;
constexpr size_t kAtMessageType = 40;
constexpr size_t kAtCrc = 44;

constexpr size_t kPrefixBytes = 32;
constexpr size_t kAtWindowId = 0;
constexpr size_t kAtWindowSecret = 8;
constexpr size_t kAtOffset = 16;
constexpr size_t kAtLength = 24;
constexpr size_t kAtFlags = 28;
constexpr uint32_t kFlagLast = 1;
// The data is not in the frame's checksum: its users have one of their own.
constexpr uint32_t kFlagDataUnchecked = 2;

constexpr size_t kBodyBytesMax = 256 * 1024;
constexpr size_t kChunkBytes = 256 * 1024;
constexpr size_t kTransferBytesMax = 8 * 1024 * 1024;
constexpr size_t kHandshakeRecordBytes = 128;

enum FrameKind : uint8_t {
  kMessage = 1,
  kRequest = 2,
  kReply = 3,
  kReplyError = 4,
  kResume = 5,
  kAck = 6,
  kWrite = 7,
  kReadRequest = 8,
  kReadData = 9,
  kTransferDone = 10,
};
constexpr uint8_t kKindMax = kTransferDone;
constexpr uint8_t kKindStreamMax = kReplyError;

enum class TransferStatus : uint16_t {
  kLanded = 0,
  kWindowUnknown = 1,
  kWindowDenied = 2,
  kOutOfBounds = 3,
  kCancelled = 4,
};

enum class LinkEnd : uint32_t {
  kClosedHere = 0,
  kClosedByPeer = 1,
  kSocketError = 2,
  kBadMagic = 3,
  kBadVersion = 4,
  kBadKind = 5,
  kBadLength = 6,
  kBadChecksum = 7,
  kBadTransfer = 8,
  kBacklogFull = 9,
};

inline uint16_t Load16(const uint8_t* p) {
  uint16_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline uint32_t Load32(const uint8_t* p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline uint64_t Load64(const uint8_t* p) {
  uint64_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void Store16(uint8_t* p, uint16_t v) { memcpy(p, &v, sizeof v); }
inline void Store32(uint8_t* p, uint32_t v) { memcpy(p, &v, sizeof v); }
inline void Store64(uint8_t* p, uint64_t v) { memcpy(p, &v, sizeof v); }

// CRC32C in pieces: start from kCrcInit, finish with ~. crc32_iscsi itself inverts nothing.
constexpr uint32_t kCrcInit = 0xffffffffu;
inline uint32_t CrcUpdate(uint32_t crc, const uint8_t* data, size_t length) {
  return crc32_iscsi(const_cast<uint8_t*>(data), static_cast<int>(length), crc);
}
inline uint32_t CrcHeader(const uint8_t* header) { return CrcUpdate(kCrcInit, header, kAtCrc); }

inline bool BodyLengthAllowed(uint8_t kind, size_t body) {
  if (kind <= kKindStreamMax) return body <= kBodyBytesMax;
  if (kind == kWrite || kind == kReadData) return body > kPrefixBytes && body <= kPrefixBytes + kChunkBytes;
  return body == (kind == kReadRequest ? kPrefixBytes : 0);
}

// kClosedHere stands for "nothing wrong with it".
inline LinkEnd JudgeHeader(const uint8_t* header) {
  if (Load16(header + kAtMagic) != kFrameMagic) return LinkEnd::kBadMagic;
  if (header[kAtVersion] != kFrameVersion) return LinkEnd::kBadVersion;
  const uint8_t kind = header[kAtKind];
  if (kind == 0 || kind > kKindMax) return LinkEnd::kBadKind;
  if (!BodyLengthAllowed(kind, Load32(header + kAtBodyBytes))) return LinkEnd::kBadLength;
  return LinkEnd::kClosedHere;
}

// A header of the link's own: no stream sequence, no epoch. The caller sets the checksum.
inline void WriteLinkHeader(uint8_t* header, FrameKind kind, size_t body, uint64_t transfer_id, uint16_t status) {
  memset(header, 0, kHeaderBytes);
  Store16(header + kAtMagic, kFrameMagic);
  header[kAtVersion] = kFrameVersion;
  header[kAtKind] = kind;
  Store32(header + kAtBodyBytes, static_cast<uint32_t>(body));
  Store64(header + kAtRequestSequence, transfer_id);
  Store16(header + kAtMessageType, status);
}

}  // namespace holdfast
