#include "nvme_passthrough.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace napi_nvme {
namespace {

#if !defined(NVME_IOCTL_IO64_CMD)
#define NVME_IOCTL_IO64_CMD _IOWR('N', 0x48, struct nvme_passthru_cmd64)
#endif

}  // namespace

uint32_t NamespaceId(int fd) {
  const int id = ioctl(fd, NVME_IOCTL_ID);
  return id > 0 ? static_cast<uint32_t>(id) : 0;
}

int OpenNamespace(const std::string& path, bool read_only, uint32_t nsid, int* fd, std::string* failed_call) {
  *failed_call = "open";
  do {
    *fd = open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
  } while (*fd < 0 && errno == EINTR);
  if (*fd < 0) return errno;
  *failed_call = "fstat";
  struct stat status;
  int error = fstat(*fd, &status) != 0 ? errno : 0;
  if (error == 0) {
    *failed_call = "ioctl";
    // Opened by name twice, once to be asked and once here: another device may have taken the name in between.
    if (!S_ISCHR(status.st_mode))
      error = ENOTTY;
    else if (NamespaceId(*fd) != nsid)
      error = ENODEV;
  }
  if (error != 0) {
    close(*fd);
    *fd = -1;
    return error;
  }
  failed_call->clear();
  return 0;
}

int SendCommand(int fd, CommandSet set, nvme_passthru_cmd64* command, uint32_t* status) {
  *status = 0;
  const int result = ioctl(fd, set == CommandSet::kAdmin ? NVME_IOCTL_ADMIN64_CMD : NVME_IOCTL_IO64_CMD, command);
  if (result < 0) return errno;
  *status = static_cast<uint32_t>(result) & 0x7fff;
  return 0;
}

}  // namespace napi_nvme
