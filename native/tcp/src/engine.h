// An engine is the sockets, windows and page pool of one fabric, on one event loop and its thread.
//
// Owns every connection and listener; nothing here knows JavaScript. What happened is told to an EventSink, connections
// and listeners are named by numbers that are never reused, so that a late call for a closed one finds nothing.
// A handle is deleted only in its uv close callback; the engine outlives them (AllClosed).
#pragma once

#include <uv.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "window_table.h"

namespace holdfast {

class Connection;
class Listener;

class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void OnAccept(uint32_t listener, uint32_t connection) = 0;
  virtual void OnConnected(uint32_t connection, int error) = 0;
  virtual void OnRecord(uint32_t connection, const uint8_t* record) = 0;
  virtual void OnBatch(uint32_t connection, uint32_t frame_count, uint32_t completion_count) = 0;
  virtual void OnClosed(uint32_t connection, LinkEnd end, int error) = 0;
  virtual void OnAllClosed() = 0;
  // Memory that outlives the connection for as long as anyone holds a view of it.
  virtual uint8_t* NewReceiveBuffer(uint32_t connection, size_t bytes) = 0;
  virtual void DropReceiveBuffer(uint32_t connection) = 0;
};

struct EngineStats {
  uint64_t bytes_received = 0;
  uint64_t bytes_sent = 0;
  uint64_t transfer_bytes_landed = 0;
  uint64_t transfer_bytes_discarded = 0;
  uint64_t windows_refused = 0;
  uint64_t accept_failures = 0;
};

class Engine {
 public:
  Engine(uv_loop_t* loop, EventSink* sink, Segment pool, uint32_t* offsets, size_t offsets_max, uint32_t* completions,
         size_t completions_max);
  ~Engine();

  // All of these return 0 or a negative errno.
  int Listen(const char* host, int port, int backlog, uint32_t* id, int* bound_port);
  int Dial(const char* host, int port, uint32_t* id);
  bool CloseListener(uint32_t id);

  Connection* Find(uint32_t id) const;
  WindowKey OpenWindow(uint32_t peer, WindowAccess access, std::vector<Segment> segments);
  bool CloseWindow(uint64_t id);

  // Closes everything; OnAllClosed follows from the loop, or at once when nothing was open.
  void Destroy();
  bool destroyed() const { return destroyed_; }

  // For connections and listeners.
  Connection* Adopt(int fd, bool connecting);
  void Forget(uint32_t connection);
  void HandleClosed();
  void HandleOpened() { ++handles_; }

  uv_loop_t* const loop;
  EventSink* const sink;
  const Segment pool;
  uint32_t* const offsets;
  const size_t offsets_max;
  uint32_t* const completions;
  const size_t completions_max;
  WindowTable windows;
  EngineStats stats;

 private:
  uint32_t next_id_ = 1;
  size_t handles_ = 0;
  bool destroyed_ = false;
  std::unordered_map<uint32_t, Connection*> connections_;
  std::unordered_map<uint32_t, Listener*> listeners_;
};

}  // namespace holdfast
