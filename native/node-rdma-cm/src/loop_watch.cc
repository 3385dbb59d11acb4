#include "loop_watch.h"

#include <poll.h>
#include <sys/resource.h>

#include <algorithm>

#include "rdma_queue_pair.h"

namespace node_rdma_cm {

void Watch::Close(std::function<void()> closed) {
  if (handles_.empty()) {
    closing_ = true;
    if (closed) closed();
    return;
  }
  if (closed) on_closed_.push_back(std::move(closed));
  if (closing_) return;
  closing_ = true;
  for (uv_handle_t* handle : handles_)
    // libuv is done with a handle only in its close callback.
    uv_close(handle, [](uv_handle_t* handle) {
      auto* watch = static_cast<Watch*>(handle->data);
      if (++watch->handles_closed_ < watch->handles_.size()) return;
      const std::shared_ptr<Watch> last = std::move(watch->self_);
      watch->handles_.clear();
      for (const auto& closed : watch->on_closed_) closed();
    });
}

void Watch::KeepAlive(bool wanted) {
  if (closing_ || handles_.empty()) return;
  if (wanted)
    uv_ref(handles_.front());
  else
    uv_unref(handles_.front());
}

std::shared_ptr<DescriptorWatch> DescriptorWatch::Start(uv_loop_t* loop, int fd, std::shared_ptr<void> keep,
                                                        std::function<void()> readable) {
  auto watch = std::shared_ptr<DescriptorWatch>(new DescriptorWatch(loop, std::move(keep), std::move(readable)));
  if (uv_poll_init(loop, &watch->poll_, fd) != 0) return nullptr;
  watch->Opened(&watch->poll_);
  uv_poll_start(&watch->poll_, UV_READABLE, [](uv_poll_t* poll, int status, int) {
    auto* self = static_cast<DescriptorWatch*>(poll->data);
    const std::shared_ptr<Watch> keep_self = self->shared_from_this();
    // A descriptor that is in error would be reported for ever.
    if (status < 0) uv_poll_stop(poll);
    if (!self->closing()) self->readable_();
  });
  uv_unref(reinterpret_cast<uv_handle_t*>(&watch->poll_));
  return watch;
}

std::shared_ptr<TimerWatch> TimerWatch::Start(uv_loop_t* loop, uint64_t every_ms, std::function<void()> due) {
  auto watch = std::shared_ptr<TimerWatch>(new TimerWatch(loop, std::move(due)));
  if (uv_timer_init(loop, &watch->timer_) != 0) return nullptr;
  watch->Opened(&watch->timer_);
  uv_timer_start(
      &watch->timer_,
      [](uv_timer_t* timer) {
        auto* self = static_cast<TimerWatch*>(timer->data);
        const std::shared_ptr<Watch> keep_self = self->shared_from_this();
        if (!self->closing()) self->due_();
      },
      every_ms, every_ms);
  return watch;
}

uint64_t SpinBudget::NextNs() {
  if (max_ns_ == 0) return 0;
  if (pause_ == 0) return max_ns_;
  pause_--;
  return 0;
}

void SpinBudget::Hit() {
  misses_ = 0;
  if (!Preempted()) pause_length_ = kPauseMin;
}

void SpinBudget::Miss() {
  if (Preempted() || ++misses_ < kMissesMax) return;
  // Now and then it is tried again.
  misses_ = 0;
  pause_ = kPauseMin;
}

bool SpinBudget::Preempted() {
  rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) != 0) return false;
  const bool preempted = usage.ru_nivcsw != preemptions_;
  preemptions_ = usage.ru_nivcsw;
  if (preempted) {
    pause_ = pause_length_;
    pause_length_ = std::min(pause_length_ * 2, kPauseMax);
  }
  return preempted;
}

std::shared_ptr<CompletionWatch> CompletionWatch::Start(uv_loop_t* loop, std::shared_ptr<CompletionQueue> queue,
                                                        std::shared_ptr<std::vector<Completion>> batch,
                                                        uint32_t spin_us, Deliver deliver) {
  auto watch = std::shared_ptr<CompletionWatch>(
      new CompletionWatch(loop, std::move(queue), std::move(batch), spin_us, std::move(deliver)));
  if (uv_poll_init(loop, &watch->poll_, watch->queue_->fd()) != 0) return nullptr;
  watch->Opened(&watch->poll_);
  uv_prepare_init(loop, &watch->prepare_);
  watch->Opened(&watch->prepare_);
  uv_idle_init(loop, &watch->awake_);
  watch->Opened(&watch->awake_);
  uv_poll_start(&watch->poll_, UV_READABLE, [](uv_poll_t* poll, int status, int) {
    auto* self = static_cast<CompletionWatch*>(poll->data);
    const std::shared_ptr<Watch> keep = self->shared_from_this();
    if (status < 0) uv_poll_stop(poll);
    self->queue_->ReadEvents();
    self->DeliverReady();
  });
  uv_prepare_start(&watch->prepare_,
                   [](uv_prepare_t* prepare) { static_cast<CompletionWatch*>(prepare->data)->OnPrepare(); });
  for (auto* handle : {reinterpret_cast<uv_handle_t*>(&watch->poll_), reinterpret_cast<uv_handle_t*>(&watch->prepare_)})
    uv_unref(handle);
  return watch;
}

void CompletionWatch::Changed() {
  KeepAlive(referenced_ && (queue_->queue_pairs > 0 || queue_->has_backlog()));
  if (queue_->has_backlog()) StayAwake(true);
}

void CompletionWatch::StayAwake(bool wanted) {
  if (closing()) return;
  if (wanted)
    uv_idle_start(&awake_, [](uv_idle_t*) {});
  else
    uv_idle_stop(&awake_);
}

void CompletionWatch::OnPrepare() {
  const std::shared_ptr<Watch> keep = shared_from_this();
  if (DeliverReady() > 0) {
    // What this sets off is looked at in the next turn, before the loop sleeps.
    StayAwake(true);
    return;
  }
  if (closing()) return;
  if (queue_->queue_pairs > 0 && !queue_->armed()) {
    if (!Spin()) queue_->Arm();
    if (DeliverReady() > 0) {
      StayAwake(true);
      return;
    }
  }
  StayAwake(false);
}

bool CompletionWatch::Spin() {
  const uint64_t budget = spin_.NextNs();
  if (budget == 0) return false;
  const uint64_t end = NowNs() + budget;
  pollfd others = {uv_backend_fd(loop_), POLLIN, 0};
  for (uint32_t round = 1;; round++) {
    if (queue_->Ready()) {
      spin_.Hit();
      return true;
    }
    if (round % 32 == 0) {
      // Others have something to do: neither a hit nor a miss.
      if (poll(&others, 1, 0) > 0) return false;
      if (NowNs() >= end) break;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  spin_.Miss();
  return false;
}

uint32_t CompletionWatch::DeliverReady() {
  uint32_t delivered = 0;
  // A bounded number of batches, then the loop's other events have their turn.
  for (uint32_t round = 0; round < kBatchesPerTurn && !closing(); round++) {
    uint32_t errors = 0;
    const uint32_t count = queue_->Poll(batch_->data(), static_cast<uint32_t>(batch_->size()), &errors);
    if (count == 0) break;
    delivered += count;
    deliver_(count, errors);
  }
  if (delivered > 0 && !closing()) KeepAlive(referenced_ && (queue_->queue_pairs > 0 || queue_->has_backlog()));
  return delivered;
}

}  // namespace node_rdma_cm
