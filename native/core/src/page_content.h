// What is in a page: which sectors are valid, which are dirty, and one run of bytes that is both though its sectors are
// not.
//
// Pure arithmetic. The partial run is canonical after every write: its first and its last sector are not wholly valid.
#pragma once

#include <algorithm>
#include <cstdint>

namespace holdfast {

constexpr uint32_t kPageBytes = 16384;
constexpr uint32_t kPageSectorBytes = 4096;
constexpr uint32_t kPageSectors = kPageBytes / kPageSectorBytes;
constexpr uint32_t kAllSectors = (1u << kPageSectors) - 1;

struct PageContent {
  uint32_t validMask = 0;
  uint32_t dirtyMask = 0;
  uint32_t partialStart = 0;
  uint32_t partialEnd = 0;

  // One word, so that a reader never sees a mixture; below 2^48, so that it is exact as a double.
  uint64_t pack() const {
    return uint64_t{validMask} | uint64_t{dirtyMask} << 8 | uint64_t{partialStart} << 16 | uint64_t{partialEnd} << 32;
  }
  static PageContent unpack(uint64_t word) {
    return {static_cast<uint32_t>(word & 0xff), static_cast<uint32_t>(word >> 8 & 0xff),
            static_cast<uint32_t>(word >> 16 & 0xffff), static_cast<uint32_t>(word >> 32 & 0xffff)};
  }

  bool hasPartial() const { return partialStart < partialEnd; }
  bool isDirty() const { return dirtyMask != 0 || hasPartial(); }
  bool isSound() const {
    if (validMask > kAllSectors || (dirtyMask & ~validMask) != 0) return false;
    if (partialStart == 0 && partialEnd == 0) return true;
    return partialStart < partialEnd && partialEnd <= kPageBytes;
  }

  // Every byte of [start, end) lies in a valid sector or in the partial run.
  bool readable(uint32_t start, uint32_t end) const {
    for (uint32_t sector = start / kPageSectorBytes; sector * kPageSectorBytes < end; sector++) {
      if (validMask >> sector & 1) continue;
      const uint32_t from = std::max(start, sector * kPageSectorBytes);
      const uint32_t to = std::min(end, (sector + 1) * kPageSectorBytes);
      if (from < partialStart || to > partialEnd) return false;
    }
    return true;
  }

  // Takes in a write of [start, end), not empty. False, and nothing changed, when masks and one run can't express the
  // result.
  bool absorb(uint32_t start, uint32_t end) {
    uint32_t touched = 0;
    uint32_t covered = 0;
    bool loose = false;  // some sector is neither valid nor wholly covered
    for (uint32_t sector = start / kPageSectorBytes; sector * kPageSectorBytes < end; sector++) {
      const uint32_t bit = 1u << sector;
      touched |= bit;
      if (start <= sector * kPageSectorBytes && (sector + 1) * kPageSectorBytes <= end) {
        covered |= bit;
      } else if (!(validMask & bit)) {
        loose = true;
      }
    }
    if (loose) {
      if (!hasPartial()) {
        partialStart = start;
        partialEnd = end;
      } else if (start <= partialEnd && partialStart <= end) {
        partialStart = std::min(partialStart, start);
        partialEnd = std::max(partialEnd, end);
      } else {
        return false;
      }
    }
    validMask |= covered;
    dirtyMask |= touched & validMask;
    settle();
    return true;
  }

 private:
  // Sectors that the run covers wholly become valid and dirty; ends of the run that lie in valid sectors are cut off.
  void settle() {
    if (!hasPartial()) return;
    for (uint32_t sector = 0; sector < kPageSectors; sector++) {
      if (partialStart <= sector * kPageSectorBytes && (sector + 1) * kPageSectorBytes <= partialEnd) {
        validMask |= 1u << sector;
        dirtyMask |= 1u << sector;
      }
    }
    while (hasPartial() && (validMask >> partialStart / kPageSectorBytes & 1)) {
      dirtyMask |= 1u << partialStart / kPageSectorBytes;
      partialStart = (partialStart / kPageSectorBytes + 1) * kPageSectorBytes;
    }
    while (hasPartial() && (validMask >> (partialEnd - 1) / kPageSectorBytes & 1)) {
      dirtyMask |= 1u << (partialEnd - 1) / kPageSectorBytes;
      partialEnd = (partialEnd - 1) / kPageSectorBytes * kPageSectorBytes;
    }
    if (!hasPartial()) partialStart = partialEnd = 0;
  }
};

}  // namespace holdfast
