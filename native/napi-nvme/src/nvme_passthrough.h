// NVMe's character devices: a namespace's /dev/ngXnY and a controller's /dev/nvmeX.
#ifndef NAPI_NVME_NVME_PASSTHROUGH_H_
#define NAPI_NVME_NVME_PASSTHROUGH_H_

#include <linux/nvme_ioctl.h>

#include <cstdint>
#include <string>

namespace napi_nvme {

enum class CommandSet { kAdmin, kIo };

// Opens a namespace's character device and checks that it is that namespace. 0 or an errno, and in `failed_call` the
// system call's name.
int OpenNamespace(const std::string& path, bool read_only, uint32_t nsid, int* fd, std::string* failed_call);

// Sends one command and waits for it; for a thread. An errno when the kernel refused it or cancelled it; else 0, with
// the status field in `status` and dwords 0 and 1 of the completion in the command's `result`.
int SendCommand(int fd, CommandSet set, nvme_passthru_cmd64* command, uint32_t* status);

// Whether namespaces of this descriptor are asked about: the namespace's id, or 0 for a controller or anything else.
uint32_t NamespaceId(int fd);

}  // namespace napi_nvme

#endif  // NAPI_NVME_NVME_PASSTHROUGH_H_
