#include "window_table.h"

#include <sys/random.h>

#include <algorithm>

namespace holdfast {

std::vector<Segment> Slice(const std::vector<Segment>& segments, uint64_t offset, uint64_t length) {
  std::vector<Segment> out;
  for (const Segment& segment : segments) {
    if (length == 0) break;
    if (offset >= segment.length) {
      offset -= segment.length;
      continue;
    }
    const uint64_t take = std::min<uint64_t>(segment.length - offset, length);
    out.push_back({segment.base + offset, static_cast<size_t>(take)});
    offset = 0;
    length -= take;
  }
  return out;
}

WindowKey WindowTable::Open(uint32_t peer, WindowAccess access, std::vector<Segment> segments) {
  WindowKey key{next_id_++, 0};
  // Peers are authenticated; the secret keeps a confused one from writing by a number it guessed or remembered.
  if (getrandom(&key.secret, sizeof key.secret, 0) != sizeof key.secret) key.secret = key.id * 0x9e3779b97f4a7c15ull;
  uint64_t length = 0;
  for (const Segment& segment : segments) length += segment.length;
  windows_.emplace(key.id, MemoryWindow{key, peer, access, length, std::move(segments)});
  return key;
}

bool WindowTable::Close(uint64_t id) { return windows_.erase(id) == 1; }

TransferStatus WindowTable::Find(WindowKey key, uint32_t peer, WindowAccess access, uint64_t offset, uint64_t length,
                                 const MemoryWindow** found) const {
  const auto it = windows_.find(key.id);
  if (it == windows_.end()) return TransferStatus::kWindowUnknown;
  const MemoryWindow& window = it->second;
  if (window.key.secret != key.secret || window.peer != peer || window.access != access) {
    return TransferStatus::kWindowDenied;
  }
  if (offset > window.length || length > window.length - offset) return TransferStatus::kOutOfBounds;
  *found = &window;
  return TransferStatus::kLanded;
}

}  // namespace holdfast
