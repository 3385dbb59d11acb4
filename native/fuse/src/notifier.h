// Notifications to the kernel, sent by threads of their own, since one may wait for a kernel lock for as long as a
// request holds it (M2). Bounded; no order among those in the queue; each one's completion is an event.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "events.h"

namespace holdfast {

class Notifier {
 public:
  Notifier(int fd, Events* events, uint32_t threads, size_t queue_max);
  ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  // `payload`: the notification's struct and what follows it. False when the queue is full, or it was stopped.
  bool Submit(double id, uint32_t code, std::vector<uint8_t> payload);
  // Queued ones are not sent any more (ECANCELED); those under way end as the kernel lets them. Then Join returns.
  void Stop();
  void Join();
  // Queued and under way.
  size_t pending() const;

 private:
  struct Notification {
    double id;
    uint32_t code;
    std::vector<uint8_t> payload;
  };
  void Run();
  int Send(const Notification& notification) const;

  const int fd_;
  Events* const events_;
  const size_t queue_max_;
  mutable std::mutex mutex_;
  std::condition_variable more_;
  std::deque<Notification> queue_;
  size_t under_way_ = 0;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace holdfast
