// Whether a request is as long as its opcode says: looked at before anybody believes a field of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast {

enum class RequestFit {
  kFits,
  kUnknown,    // an opcode that nobody here serves: ENOSYS
  kBadLength,  // EIO
};

// `bytes` are `length` bytes as read from the device, the header first.
RequestFit CheckRequest(const uint8_t* bytes, size_t length);

}  // namespace holdfast
