// CRC-32C (Castagnoli; RFC 3720 appendix B.4) by ISA-L, in the usual form: "123456789" gives 0xE3069283.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast {

constexpr size_t kSectorBytes = 4096;

// `seed` is the checksum of what came before; 0 at the start.
uint32_t crc32c(const uint8_t* data, size_t lengthBytes, uint32_t seed);
// One checksum per sector, each from seed 0.
void crc32cSectors(const uint8_t* data, size_t sectorCount, uint32_t* out);

}  // namespace holdfast
