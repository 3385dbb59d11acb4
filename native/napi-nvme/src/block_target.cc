#include "block_target.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fstream>
#include <utility>

#include "nvme_passthrough.h"

namespace napi_nvme {
namespace {

int OpenRetrying(const char* path, int flags) {
  int fd;
  do {
    fd = open(path, flags | O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

// Again on what is locked by this very descriptor changes nothing. EBUSY if another has it.
int LockExclusively(int fd) {
  int result;
  do {
    result = flock(fd, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return 0;
  return errno == EWOULDBLOCK ? EBUSY : errno;
}

// struct statx of the kernel's headers may be newer than the C library's; the fields for direct I/O came with
// Linux 6.1.
struct DioAlign {
  uint32_t memory = 0;
  uint32_t offset = 0;
};
DioAlign QueryDioAlign(int fd) {
  DioAlign align;
#if defined(STATX_DIOALIGN)
  // As raw words: the layout is the kernel's, whatever headers this is compiled with.
  alignas(8) uint32_t raw[64] = {};
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, raw) == 0 && (raw[0] & STATX_DIOALIGN) != 0) {
    align.memory = raw[38];
    align.offset = raw[39];
  }
#else
  (void)fd;
#endif
  return align;
}

// One line of a disk's or, for a partition, its disk's queue; empty if the kernel doesn't say.
std::string QueueAttribute(dev_t device, const char* name) {
  const std::string number = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  for (const char* place : {"/queue/", "/../queue/"}) {
    std::ifstream file("/sys/dev/block/" + number + place + name);
    std::string line;
    if (std::getline(file, line)) return line;
  }
  return "";
}

bool WritesThrough(dev_t device) {
  return QueueAttribute(device, "fua") == "1" || QueueAttribute(device, "write_cache") == "write through";
}

}  // namespace

BlockTarget& BlockTarget::operator=(BlockTarget&& other) noexcept {
  if (this == &other) return *this;
  Close();
  fd = std::exchange(other.fd, -1);
  agreed_fd = std::exchange(other.agreed_fd, -1);
  is_block = other.is_block;
  direct = other.direct;
  read_only = other.read_only;
  size_bytes = other.size_bytes;
  logical_block_bytes = other.logical_block_bytes;
  physical_block_bytes = other.physical_block_bytes;
  memory_align_bytes = other.memory_align_bytes;
  writes_through = other.writes_through;
  geometry = std::move(other.geometry);
  return *this;
}

void BlockTarget::Close() {
  if (fd >= 0) close(fd);
  if (agreed_fd >= 0) close(agreed_fd);
  fd = agreed_fd = -1;
  geometry.reset();
}

int BlockTarget::Lock(const std::vector<std::string>& names, std::string* failed_call, std::string* failed_path) {
  *failed_call = "fstat";
  struct stat own;
  if (fstat(fd, &own) != 0) return errno;
  *failed_call = "flock";
  bool agreed = false;
  for (const std::string& name : names) {
    const int other = OpenRetrying(name.c_str(), O_RDONLY | O_NONBLOCK);
    struct stat status;
    if (other < 0 || fstat(other, &status) != 0) {
      if (other >= 0) close(other);
      continue;
    }
    const bool is_own = status.st_dev == own.st_dev && status.st_ino == own.st_ino;
    const int error = LockExclusively(is_own ? fd : other);
    if (error == 0 && !agreed && !is_own)
      agreed_fd = other;
    else
      close(other);
    agreed = true;
    if (error != 0) {
      *failed_path = name;
      return error;
    }
  }
  const int error = LockExclusively(fd);
  if (error == 0) failed_call->clear();
  return error;
}

int BlockTarget::OpenNamespace(const std::string& path, bool want_read_only, const NamespaceGeometry& wanted,
                               std::string* failed_call) {
  const int error = napi_nvme::OpenNamespace(path, want_read_only, wanted.nsid, &fd, failed_call);
  if (error != 0) return error;
  is_block = true;
  direct = true;
  read_only = want_read_only;
  size_bytes = wanted.lba_count * wanted.lba_bytes;
  logical_block_bytes = wanted.lba_bytes;
  physical_block_bytes = wanted.lba_bytes;
  // Of physical region pages.
  memory_align_bytes = 4;
  geometry = std::make_unique<NamespaceGeometry>(wanted);
  return 0;
}

int BlockTarget::Open(const std::string& path, bool want_read_only, Direct want_direct, std::string* failed_call) {
  *failed_call = "open";
  const int access = want_read_only ? O_RDONLY : O_RDWR;
  direct = want_direct != Direct::kOff;
  fd = OpenRetrying(path.c_str(), access | (direct ? O_DIRECT : 0));
  if (fd < 0 && errno == EINVAL && want_direct == Direct::kPrefer) {
    // The file system refuses O_DIRECT: through the page cache then, and `direct` says so.
    direct = false;
    fd = OpenRetrying(path.c_str(), access);
  }
  if (fd < 0) return errno;

  *failed_call = "fstat";
  struct stat status;
  if (fstat(fd, &status) != 0) return errno;
  is_block = S_ISBLK(status.st_mode);
  // Through the page cache a write is the kernel's to bring to the device, and then a flush.
  writes_through = direct && WritesThrough(is_block ? status.st_rdev : status.st_dev);
  read_only = want_read_only;
  if (is_block) {
    *failed_call = "ioctl";
    int logical = 0;
    unsigned physical = 0;
    int is_read_only = 0;
    if (ioctl(fd, BLKGETSIZE64, &size_bytes) != 0 || ioctl(fd, BLKSSZGET, &logical) != 0 ||
        ioctl(fd, BLKPBSZGET, &physical) != 0 || ioctl(fd, BLKROGET, &is_read_only) != 0)
      return errno;
    logical_block_bytes = static_cast<uint32_t>(logical);
    physical_block_bytes = physical;
    read_only = read_only || is_read_only != 0;
    // Since 6.0 devices tell their own (usually 4 or 512); before, the logical block was the rule.
    memory_align_bytes = direct ? logical_block_bytes : 1;
  } else if (S_ISREG(status.st_mode)) {
    size_bytes = static_cast<uint64_t>(status.st_size);
    logical_block_bytes = direct ? 512 : 1;
    physical_block_bytes = static_cast<uint32_t>(status.st_blksize);
    memory_align_bytes = direct ? 512 : 1;
  } else {
    return S_ISDIR(status.st_mode) ? EISDIR : ENOTBLK;
  }
  if (direct) {
    const DioAlign align = QueryDioAlign(fd);
    if (align.memory != 0) memory_align_bytes = align.memory;
    if (align.offset != 0 && !is_block) logical_block_bytes = align.offset;
  }
  failed_call->clear();
  return 0;
}

int DiscardBlocks(int fd, uint64_t offset_bytes, uint64_t length_bytes) {
  uint64_t range[2] = {offset_bytes, length_bytes};
  return ioctl(fd, BLKDISCARD, range) == 0 ? 0 : errno;
}

int ZeroBlocks(int fd, uint64_t offset_bytes, uint64_t length_bytes) {
  uint64_t range[2] = {offset_bytes, length_bytes};
  return ioctl(fd, BLKZEROOUT, range) == 0 ? 0 : errno;
}

}  // namespace napi_nvme
