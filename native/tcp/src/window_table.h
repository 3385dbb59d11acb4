// Windows: named pieces of the page pool that one peer may write into, or read from, until they are closed.
//
// Invariant (S3): after Close returns, Find no longer gives the window out, and the engine has taken it from every
// connection. Sockets are read and written only on the loop's thread, so that is all closing takes.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "frame.h"

namespace holdfast {

struct Segment {
  uint8_t* base;
  size_t length;
};

enum class WindowAccess : uint8_t { kRead = 1, kWrite = 2 };

struct WindowKey {
  uint64_t id;
  uint64_t secret;
};

struct MemoryWindow {
  WindowKey key;
  uint32_t peer;
  WindowAccess access;
  uint64_t length;
  std::vector<Segment> segments;
};

// The part [offset, offset + length) of a scatter list.
std::vector<Segment> Slice(const std::vector<Segment>& segments, uint64_t offset, uint64_t length);

class WindowTable {
 public:
  WindowKey Open(uint32_t peer, WindowAccess access, std::vector<Segment> segments);
  bool Close(uint64_t id);
  // kLanded with `found` set, or why not.
  TransferStatus Find(WindowKey key, uint32_t peer, WindowAccess access, uint64_t offset, uint64_t length,
                      const MemoryWindow** found) const;
  size_t size() const { return windows_.size(); }

 private:
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, MemoryWindow> windows_;
};

}  // namespace holdfast
