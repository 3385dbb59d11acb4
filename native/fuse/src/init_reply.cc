#include "init_reply.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace holdfast {
namespace {

constexpr size_t kShortInitBytes = 16;

constexpr uint64_t kWanted = FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS | FUSE_ATOMIC_O_TRUNC |
                             FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_DO_READDIRPLUS | FUSE_ASYNC_DIO |
                             FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL | FUSE_ABORT_ERROR | FUSE_MAX_PAGES |
                             FUSE_CACHE_SYMLINKS | FUSE_EXPLICIT_INVAL_DATA | FUSE_HANDLE_KILLPRIV_V2 |
                             FUSE_SETXATTR_EXT | FUSE_INIT_EXT | kHasExpireOnly | kDirectIoAllowMmap | kHasResend;
// Without these a rule of coherence would not hold.
constexpr uint64_t kNeeded = FUSE_EXPLICIT_INVAL_DATA | FUSE_SETXATTR_EXT;

}  // namespace

Agreement AgreeOn(const uint8_t* body, size_t length, const InitSettings& settings) {
  Agreement agreement;
  fuse_init_in in{};
  memcpy(&in, body, std::min(length, sizeof in));
  if (length < kShortInitBytes || in.major != kProtocolMajor || in.minor < kProtocolMinorLeast) {
    agreement.error = EPROTO;
    return agreement;
  }
  uint64_t offered = in.flags;
  if ((offered & FUSE_INIT_EXT) != 0 && length >= sizeof in) offered |= uint64_t{in.flags2} << 32;
  agreement.flags = offered & kWanted;
  if ((agreement.flags & kNeeded) != kNeeded) {
    agreement.error = EPROTO;
    return agreement;
  }
  fuse_init_out& out = agreement.reply;
  out.major = kProtocolMajor;
  out.minor = std::min(in.minor, kProtocolMinor);
  out.max_readahead = std::min(in.max_readahead, settings.max_readahead);
  out.flags = static_cast<uint32_t>(agreement.flags);
  out.flags2 = static_cast<uint32_t>(agreement.flags >> 32);
  out.max_background = settings.max_background;
  out.congestion_threshold = static_cast<uint16_t>(settings.max_background / 4 * 3);
  out.max_write = settings.max_write;
  out.time_gran = 1;
  out.max_pages = static_cast<uint16_t>(settings.max_write / 4096);
  return agreement;
}

}  // namespace holdfast
