// What the files of the boundary to JavaScript share.
#ifndef NAPI_NVME_ADDON_H_
#define NAPI_NVME_ADDON_H_

#include <napi.h>

#include <string>

#include "nvme_command.h"

namespace napi_nvme {

// With code, errno, syscall and path, as Node's own errors have them.
Napi::Error SystemError(Napi::Env env, int error, const char* call, const std::string& path);

// From an object with the fields of NamespaceGeometry; throws TypeError or RangeError.
NamespaceGeometry ParseGeometry(Napi::Env env, const Napi::Value& value);

// sendCommand, encodeCommands and namespaceId.
void DefineCommands(Napi::Env env, Napi::Object exports);

}  // namespace napi_nvme

#endif  // NAPI_NVME_ADDON_H_
