#include "checksum.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace holdfast {

uint32_t crc32c(const uint8_t* data, size_t lengthBytes, uint32_t seed) {
  constexpr size_t kChunkBytes = size_t{1} << 30;  // ISA-L takes the length as an int
  // ISA-L leaves the inversions before and after to its caller, and takes a pointer that it doesn't write through.
  uint32_t state = ~seed;
  while (lengthBytes > 0) {
    const size_t chunk = std::min(lengthBytes, kChunkBytes);
    state = crc32_iscsi(const_cast<unsigned char*>(data), static_cast<int>(chunk), state);
    data += chunk;
    lengthBytes -= chunk;
  }
  return ~state;
}

void crc32cSectors(const uint8_t* data, size_t sectorCount, uint32_t* out) {
  for (size_t i = 0; i < sectorCount; i++) out[i] = crc32c(data + i * kSectorBytes, kSectorBytes, 0);
}

}  // namespace holdfast
