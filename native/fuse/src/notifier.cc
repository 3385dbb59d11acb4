#include "notifier.h"

#include <pthread.h>
#include <sys/uio.h>

#include <cerrno>

#include "fuse_wire.h"

namespace holdfast {

Notifier::Notifier(int fd, Events* events, uint32_t threads, size_t queue_max)
    : fd_(fd), events_(events), queue_max_(queue_max) {
  for (uint32_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { Run(); });
    pthread_setname_np(threads_.back().native_handle(), "hf-notify");
  }
}

Notifier::~Notifier() {
  Stop();
  Join();
}

bool Notifier::Submit(double id, uint32_t code, std::vector<uint8_t> payload) {
  std::lock_guard lock(mutex_);
  if (stopped_ || queue_.size() >= queue_max_) return false;
  queue_.push_back(Notification{id, code, std::move(payload)});
  more_.notify_one();
  return true;
}

void Notifier::Stop() {
  std::deque<Notification> dropped;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    dropped.swap(queue_);
    more_.notify_all();
  }
  for (const Notification& one : dropped) events_->Post({EventKind::kNotified, one.id, ECANCELED});
}

void Notifier::Join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

size_t Notifier::pending() const {
  std::lock_guard lock(mutex_);
  return queue_.size() + under_way_;
}

void Notifier::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    more_.wait(lock, [this] { return stopped_ || !queue_.empty(); });
    if (stopped_) return;
    const Notification one = std::move(queue_.front());
    queue_.pop_front();
    under_way_++;
    lock.unlock();
    const int error = Send(one);
    lock.lock();
    under_way_--;
    lock.unlock();
    events_->Post({EventKind::kNotified, one.id, static_cast<double>(error)});
    lock.lock();
  }
}

int Notifier::Send(const Notification& one) const {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + one.payload.size());
  header.error = static_cast<int32_t>(one.code);
  iovec parts[2] = {{&header, sizeof header}, {const_cast<uint8_t*>(one.payload.data()), one.payload.size()}};
  for (;;) {
    if (writev(fd_, parts, one.payload.empty() ? 1 : 2) >= 0) return 0;
    if (errno != EINTR) return errno;
  }
}

}  // namespace holdfast
