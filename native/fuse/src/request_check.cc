#include "request_check.h"

#include <array>
#include <cstring>

#include "fuse_wire.h"

namespace holdfast {
namespace {

enum class Tail : uint8_t { kNone, kWriteData, kXattrValue };

struct Shape {
  bool known = false;
  uint16_t fixed_bytes = 0;
  uint8_t names = 0;
  Tail tail = Tail::kNone;
};

constexpr std::array<Shape, kOpcodeMax + 1> Shapes() {
  std::array<Shape, kOpcodeMax + 1> shapes{};
  const auto set = [&shapes](uint32_t opcode, size_t fixed, uint8_t names = 0, Tail tail = Tail::kNone) {
    shapes[opcode] = Shape{true, static_cast<uint16_t>(fixed), names, tail};
  };
  set(FUSE_LOOKUP, 0, 1);
  set(FUSE_GETATTR, sizeof(fuse_getattr_in));
  set(FUSE_SETATTR, sizeof(fuse_setattr_in));
  set(FUSE_READLINK, 0);
  set(FUSE_SYMLINK, 0, 2);
  set(FUSE_MKNOD, sizeof(fuse_mknod_in), 1);
  set(FUSE_MKDIR, sizeof(fuse_mkdir_in), 1);
  set(FUSE_UNLINK, 0, 1);
  set(FUSE_RMDIR, 0, 1);
  set(FUSE_RENAME, sizeof(fuse_rename_in), 2);
  set(FUSE_LINK, sizeof(fuse_link_in), 1);
  set(FUSE_OPEN, sizeof(fuse_open_in));
  set(FUSE_READ, sizeof(fuse_read_in));
  set(FUSE_WRITE, sizeof(fuse_write_in), 0, Tail::kWriteData);
  set(FUSE_STATFS, 0);
  set(FUSE_RELEASE, sizeof(fuse_release_in));
  set(FUSE_FSYNC, sizeof(fuse_fsync_in));
  set(FUSE_SETXATTR, sizeof(fuse_setxattr_in), 1, Tail::kXattrValue);
  set(FUSE_GETXATTR, sizeof(fuse_getxattr_in), 1);
  set(FUSE_LISTXATTR, sizeof(fuse_getxattr_in));
  set(FUSE_REMOVEXATTR, 0, 1);
  set(FUSE_FLUSH, sizeof(fuse_flush_in));
  set(FUSE_OPENDIR, sizeof(fuse_open_in));
  set(FUSE_READDIR, sizeof(fuse_read_in));
  set(FUSE_RELEASEDIR, sizeof(fuse_release_in));
  set(FUSE_FSYNCDIR, sizeof(fuse_fsync_in));
  set(FUSE_GETLK, sizeof(fuse_lk_in));
  set(FUSE_SETLK, sizeof(fuse_lk_in));
  set(FUSE_SETLKW, sizeof(fuse_lk_in));
  set(FUSE_ACCESS, sizeof(fuse_access_in));
  set(FUSE_CREATE, sizeof(fuse_create_in), 1);
  set(FUSE_FALLOCATE, sizeof(fuse_fallocate_in));
  set(FUSE_READDIRPLUS, sizeof(fuse_read_in));
  set(FUSE_RENAME2, sizeof(fuse_rename2_in), 2);
  set(FUSE_LSEEK, sizeof(fuse_lseek_in));
  set(FUSE_COPY_FILE_RANGE, sizeof(fuse_copy_file_range_in));
  set(FUSE_SYNCFS, sizeof(fuse_syncfs_in));
  set(FUSE_TMPFILE, sizeof(fuse_create_in), 1);
  set(kOpStatx, 24);
  set(kOpCopyFileRange64, sizeof(fuse_copy_file_range_in));
  return shapes;
}

constexpr auto kShapes = Shapes();

template <typename T>
T Load(const uint8_t* at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

RequestFit CheckRequest(const uint8_t* bytes, size_t length) {
  if (length < kHeaderBytes) return RequestFit::kBadLength;
  const auto header = Load<fuse_in_header>(bytes);
  if (header.opcode > kOpcodeMax || !kShapes[header.opcode].known) return RequestFit::kUnknown;
  // Extensions come only where they were agreed on, which they aren't.
  if (header.len != length || header.total_extlen != 0) return RequestFit::kBadLength;
  const Shape& shape = kShapes[header.opcode];
  size_t at = kHeaderBytes + shape.fixed_bytes;
  if (length < at) return RequestFit::kBadLength;
  for (uint8_t i = 0; i < shape.names; ++i) {
    const void* end = memchr(bytes + at, 0, length - at);
    if (end == nullptr) return RequestFit::kBadLength;
    const size_t name_end = static_cast<size_t>(static_cast<const uint8_t*>(end) - bytes);
    if (name_end == at) return RequestFit::kBadLength;
    at = name_end + 1;
  }
  size_t tail = 0;
  if (shape.tail == Tail::kWriteData) tail = Load<fuse_write_in>(bytes + kHeaderBytes).size;
  if (shape.tail == Tail::kXattrValue) tail = Load<fuse_setxattr_in>(bytes + kHeaderBytes).size;
  return length - at == tail ? RequestFit::kFits : RequestFit::kBadLength;
}

}  // namespace holdfast
