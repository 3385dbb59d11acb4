// A reliable connected queue pair: encodes requests for the device, knows what is outstanding, and brings a completion
// for each, by itself if the device doesn't.
//
// Invariants: requests outstanding never exceed the queue; a completion retires all requests before it; every request
// that is signalled or failed is reported exactly once (completions are named by position, so a stray one is found
// out). At least one request in half a queue is signalled, for the sake of the count. Fault model: any number in a
// record may be wrong (refused before the device sees it); the device may refuse in the middle of a batch; it may die.
#ifndef NODE_RDMA_CM_RDMA_QUEUE_PAIR_H_
#define NODE_RDMA_CM_RDMA_QUEUE_PAIR_H_

#include <rdma/rdma_cma.h>

#include <memory>
#include <optional>
#include <vector>

#include "abi.h"
#include "rdma_completion_queue.h"
#include "rdma_memory.h"
#include "rdma_receive_queue.h"

namespace node_rdma_cm {

uint64_t NowNs();

struct QueuePairSizes {
  uint32_t max_send;
  uint32_t max_receive;
  uint32_t max_send_segments;
  uint32_t max_receive_segments;
  uint32_t max_inline_bytes;
};

// What is set when it connects, beside what the connection manager knows.
struct ConnectParameters {
  std::vector<uint8_t> private_data;
  uint8_t responder_resources;
  uint8_t initiator_depth;
  uint8_t retry_count;
  uint8_t rnr_retry_count;
  uint8_t min_rnr_timer;
};

class QueuePair {
 public:
  // In state INIT, of the id's port: receives can be posted.
  QueuePair(rdma_cm_id* id, std::shared_ptr<ProtectionDomain> domain, std::shared_ptr<CompletionQueue> send_queue,
            std::shared_ptr<CompletionQueue> receive_queue, std::shared_ptr<SharedReceiveQueue> shared,
            const QueuePairSizes& sizes);
  ~QueuePair() { Close(); }
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  // Ready to receive and to send, with the addresses that the id has learned.
  void Connect(rdma_cm_id* id, const ConnectParameters& parameters);
  void MoveToError();
  // Nothing of it moves any more when this returns; what was outstanding is in the completion queues' backlogs.
  void Close();
  bool closed() const { return qp_ == nullptr; }

  uint32_t PostSends(uint32_t count);
  uint32_t PostReceives(uint32_t count);

  uint32_t handle() const { return handle_; }
  uint32_t number() const { return number_; }
  bool has_shared_receives() const { return shared_ != nullptr; }
  const QueuePairSizes& sizes() const { return sizes_; }
  const std::shared_ptr<QueuePairState>& state() const { return state_; }
  const std::shared_ptr<std::vector<std::byte>>& send_arena() const { return send_arena_; }
  const std::shared_ptr<std::vector<std::byte>>& receive_arena() const { return receives_.arena(); }
  // Of the oldest request that will be reported; 0 when there is none.
  uint64_t OldestSendAgeNs() const;

  // For the completion queue.

  // The completion of the request at this position came. True when it is to be reported; `sends` gets how many are
  // done.
  bool RetireSends(uint64_t position, bool succeeded, Completion* record, uint32_t* sends);
  // `receives` gets 1 when it was of this queue pair's own queue.
  bool TakeReceive(uint64_t slot, double* id, uint32_t* receives);

 private:
  struct Sent {
    double id;
    uint64_t posted_ns;
    uint32_t operation;
    uint32_t length;
    // Wanted by the user; by the device.
    bool reported;
    bool signalled;
  };
  void Make(const WorkRequest& request, const Segment* segments, ibv_send_wr* out, ibv_sge* sges, Sent* sent);
  void NotifyQueues() const;
  void Modify(ibv_qp_attr* attributes, int mask, const char* what);
  Sent& At(uint64_t position) { return sent_[position % sizes_.max_send]; }
  const Sent& At(uint64_t position) const { return sent_[position % sizes_.max_send]; }

  // Let go of by Close.
  std::shared_ptr<ProtectionDomain> domain_;
  std::shared_ptr<CompletionQueue> send_queue_;
  std::shared_ptr<CompletionQueue> receive_queue_;
  std::shared_ptr<SharedReceiveQueue> shared_;
  QueuePairSizes sizes_;
  ibv_qp* qp_ = nullptr;
  std::optional<Counted> counted_;
  const uint32_t handle_;
  uint32_t number_ = 0;
  const std::shared_ptr<QueuePairState> state_;
  const std::shared_ptr<std::vector<std::byte>> send_arena_;
  ReceiveSlots receives_;
  std::vector<Sent> sent_;
  // Positions: the next to be posted, the oldest without completion.
  uint64_t head_ = 0;
  uint64_t tail_ = 0;
  uint32_t unsignalled_run_ = 0;
  bool moved_to_error_ = false;
  std::vector<ibv_send_wr> requests_;
  std::vector<ibv_sge> segments_;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RDMA_QUEUE_PAIR_H_
