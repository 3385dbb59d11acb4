// A completion queue with its completion channel. Translates what the device reports into records that name requests
// as their user did.
//
// Invariants: never more completions possible than it holds (queue pairs reserve their share); completions of a queue
// pair that closes are taken off the device before its number can be used again, and kept here until somebody asks.
// Fault model: completions of queue pairs that are gone (dropped), events that come twice or late (polling decides).
#ifndef NODE_RDMA_CM_RDMA_COMPLETION_QUEUE_H_
#define NODE_RDMA_CM_RDMA_COMPLETION_QUEUE_H_

#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>

#include "abi.h"
#include "rdma_device.h"

namespace node_rdma_cm {

class CompletionQueue {
 public:
  // `watched`: with a completion channel.
  CompletionQueue(std::shared_ptr<DeviceContext> device, uint32_t depth, bool watched);
  ~CompletionQueue();
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;

  ibv_cq* cq() const { return cq_; }
  uint32_t depth() const { return depth_; }
  const std::shared_ptr<DeviceContext>& device() const { return device_; }

  // Takes at most `max` completions that are there; never waits. `errors` gets how many of them are failures.
  uint32_t Poll(Completion* out, uint32_t max, uint32_t* errors);
  // As Poll, looking for at most so long.
  uint32_t PollFor(Completion* out, uint32_t max, uint32_t* errors, uint64_t max_wait_ns);
  // Whether Poll would find something.
  bool Ready();
  bool has_backlog() const { return !backlog_.empty(); }

  // The completion channel: readable after Arm when a completion has come since.
  int fd() const { return channel_ == nullptr ? -1 : channel_->fd; }
  void Arm();
  void ReadEvents();
  bool armed() const { return armed_; }

  // A queue pair's share. Throws ENOSPC when there isn't room for it.
  void Reserve(uint32_t count);
  void Release(uint32_t count) { reserved_ -= count; }

  // Takes what is there into the backlog: before and after a queue pair of it is destroyed.
  void TakeAll();
  // Completions that the device doesn't bring any more. `state` is counted down when it is handed out.
  void Add(const Completion& completion, std::shared_ptr<QueuePairState> state, uint32_t sends, uint32_t receives);
  // Queue pairs that use it, for whoever decides what keeps the process alive.
  uint32_t queue_pairs = 0;
  // Called when a queue pair came or went, and when completions came without the device.
  std::function<void()> changed;

 private:
  struct Kept {
    Completion completion;
    std::shared_ptr<QueuePairState> state;
    uint32_t sends;
    uint32_t receives;
  };
  // False when nobody wants to know.
  bool Translate(const ibv_wc& wc, Kept* out);
  uint32_t Hand(Kept&& kept, Completion* out);

  const Counted counted_{Live().completion_queues};
  const std::shared_ptr<DeviceContext> device_;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* cq_ = nullptr;
  uint32_t depth_ = 0;
  uint32_t reserved_ = 0;
  bool armed_ = false;
  std::deque<Kept> backlog_;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RDMA_COMPLETION_QUEUE_H_
