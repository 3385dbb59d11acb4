// INIT: what is agreed on with the kernel. docs/mount.md says why each flag is on or off.
#pragma once

#include <cstdint>

#include "fuse_wire.h"

namespace holdfast {

struct InitSettings {
  uint32_t max_write;
  uint32_t max_readahead;
  uint16_t max_background;
};

struct Agreement {
  fuse_init_out reply{};
  uint64_t flags = 0;
  int error = 0;  // EPROTO: a kernel that is too old, or of another major version
};

// `length`: of INIT's body, which is 16 bytes from kernels before 7.36. `body` has that many.
Agreement AgreeOn(const uint8_t* body, size_t length, const InitSettings& settings);

}  // namespace holdfast
