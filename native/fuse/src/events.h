// What the threads tell the engine: one queue, one wake-up for as many as have gathered.
//
// Bounded by what can cause an event: a request or an INTERRUPT per slot, a node that is forgotten, a notification in
// the notifier's queue.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace holdfast {

enum class EventKind : uint32_t {
  kRequest = 0,    // slot id, offset in the slots' memory, bytes
  kInterrupt = 1,  // slot id
  kForgotten = 2,  // node id
  kNotified = 3,   // notification, errno
  kAgreed = 4,     // minor version, INIT's flags, its second word of flags
  kEnded = 5,      // errno: the kernel gives no more requests on a device
};

struct Event {
  EventKind kind;
  double a = 0;
  double b = 0;
  double c = 0;
};

class Events {
 public:
  explicit Events(std::function<void()> wake) : wake_(std::move(wake)) {}

  void Post(const Event& event) {
    bool first;
    {
      std::lock_guard lock(mutex_);
      first = events_.empty();
      events_.push_back(event);
    }
    if (first) wake_();
  }
  // All there are, in the order in which they were posted; `into` is emptied first.
  void Take(std::vector<Event>* into) {
    into->clear();
    std::lock_guard lock(mutex_);
    into->swap(events_);
  }

 private:
  const std::function<void()> wake_;
  std::mutex mutex_;
  std::vector<Event> events_;
};

}  // namespace holdfast
