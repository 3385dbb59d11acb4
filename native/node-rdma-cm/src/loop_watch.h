// Descriptors and completion queues, watched by the event loop.
//
// Lifetime: a watch outlives whoever made it until libuv has called all its close callbacks; it holds what it watches
// until then. After Close its callback is not called any more. Knows nothing of JavaScript.
#ifndef NODE_RDMA_CM_LOOP_WATCH_H_
#define NODE_RDMA_CM_LOOP_WATCH_H_

#include <uv.h>

#include <functional>
#include <memory>
#include <vector>

#include "rdma_completion_queue.h"

namespace node_rdma_cm {

class Watch : public std::enable_shared_from_this<Watch> {
 public:
  virtual ~Watch() = default;
  // A second call does nothing. `closed` is called when libuv has let go of it.
  void Close(std::function<void()> closed = nullptr);
  bool closing() const { return closing_; }
  // Whether it keeps the process alive.
  void KeepAlive(bool wanted);

 protected:
  explicit Watch(uv_loop_t* loop) : loop_(loop) {}
  template <typename T>
  void Opened(T* handle) {
    handle->data = this;
    handles_.push_back(reinterpret_cast<uv_handle_t*>(handle));
    uv_unref(handles_.back());
    if (self_ == nullptr) self_ = shared_from_this();
  }

  uv_loop_t* const loop_;

 private:
  std::vector<uv_handle_t*> handles_;
  size_t handles_closed_ = 0;
  bool closing_ = false;
  std::vector<std::function<void()>> on_closed_;
  std::shared_ptr<Watch> self_;
};

// Calls `readable` while the descriptor is; `keep` is what owns the descriptor.
class DescriptorWatch : public Watch {
 public:
  // Null when the loop can't watch it.
  static std::shared_ptr<DescriptorWatch> Start(uv_loop_t* loop, int fd, std::shared_ptr<void> keep,
                                                std::function<void()> readable);

 private:
  DescriptorWatch(uv_loop_t* loop, std::shared_ptr<void> keep, std::function<void()> readable)
      : Watch(loop), keep_(std::move(keep)), readable_(std::move(readable)) {}
  const std::shared_ptr<void> keep_;
  const std::function<void()> readable_;
  uv_poll_t poll_;
};

// Calls `due` again and again.
class TimerWatch : public Watch {
 public:
  // Null when the loop has no timers.
  static std::shared_ptr<TimerWatch> Start(uv_loop_t* loop, uint64_t every_ms, std::function<void()> due);

 private:
  TimerWatch(uv_loop_t* loop, std::function<void()> due) : Watch(loop), due_(std::move(due)) {}
  const std::function<void()> due_;
  uv_timer_t timer_;
};

// How long the loop may spin before it sleeps: long enough to catch an answer that is on its way; nothing where that
// doesn't pay, or where cores are short: who spins then uses up the time that the scheduler would give him for working.
class SpinBudget {
 public:
  explicit SpinBudget(uint32_t max_us) : max_ns_(max_us * uint64_t{1000}) {}
  uint64_t NextNs();
  void Hit();
  void Miss();

 private:
  // Whether others wanted this core since the last look: then spinning pauses, for longer every time.
  bool Preempted();

  static constexpr uint32_t kMissesMax = 3;
  static constexpr uint32_t kPauseMin = 32;
  static constexpr uint32_t kPauseMax = 4096;
  const uint64_t max_ns_;
  uint32_t misses_ = 0;
  uint32_t pause_ = 0;
  uint32_t pause_length_ = kPauseMin;
  long preemptions_ = 0;
};

// Delivers a queue's completions in batches. While they come, the queue is looked at once per turn of the loop; only
// when there are none it is armed, looked at once more (one may have come in between), and the loop sleeps.
class CompletionWatch : public Watch {
 public:
  using Deliver = std::function<void(uint32_t count, uint32_t errors)>;
  // Null when the loop can't watch it. `batch` holds what is delivered until the callback returns.
  static std::shared_ptr<CompletionWatch> Start(uv_loop_t* loop, std::shared_ptr<CompletionQueue> queue,
                                                std::shared_ptr<std::vector<Completion>> batch, uint32_t spin_us,
                                                Deliver deliver);
  // Queue pairs came or went, or completions came without the device.
  void Changed();
  void SetReferenced(bool referenced) {
    referenced_ = referenced;
    Changed();
  }

 private:
  CompletionWatch(uv_loop_t* loop, std::shared_ptr<CompletionQueue> queue,
                  std::shared_ptr<std::vector<Completion>> batch, uint32_t spin_us, Deliver deliver)
      : Watch(loop), queue_(std::move(queue)), batch_(std::move(batch)), deliver_(std::move(deliver)), spin_(spin_us) {}
  void OnPrepare();
  uint32_t DeliverReady();
  bool Spin();
  void StayAwake(bool wanted);

  static constexpr uint32_t kBatchesPerTurn = 32;
  const std::shared_ptr<CompletionQueue> queue_;
  const std::shared_ptr<std::vector<Completion>> batch_;
  const Deliver deliver_;
  SpinBudget spin_;
  bool referenced_ = true;
  uv_poll_t poll_;
  uv_prepare_t prepare_;
  // Active: the loop doesn't sleep.
  uv_idle_t awake_;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_LOOP_WATCH_H_
