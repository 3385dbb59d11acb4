// Receives that are posted and not yet consumed: of a queue pair, or shared by many. Gives each the number by which its
// completion names it.
#ifndef NODE_RDMA_CM_RDMA_RECEIVE_QUEUE_H_
#define NODE_RDMA_CM_RDMA_RECEIVE_QUEUE_H_

#include <memory>
#include <vector>

#include "abi.h"
#include "rdma_memory.h"

namespace node_rdma_cm {

// Marks the work request ids of receives: the device doesn't say what a failed request was.
constexpr uint64_t kReceiveTag = uint64_t{1} << 63;

// Checks segments of an arena and makes the device's of them. Throws EFAULT for a region that isn't there or doesn't
// hold them.
void MakeSegments(const DeviceContext& device, const ProtectionDomain* domain, const Segment* segments, uint32_t count,
                  bool is_inline, ibv_sge* out);

class ReceiveSlots {
 public:
  ReceiveSlots(uint32_t max_receive, uint32_t max_segments);

  const std::shared_ptr<std::vector<std::byte>>& arena() const { return arena_; }
  uint32_t max_receive() const { return max_receive_; }
  uint32_t max_segments() const { return max_segments_; }
  uint32_t outstanding() const { return max_receive_ - static_cast<uint32_t>(free_.size()); }

  // Posts the first `count` of the arena through `post`; returns how many were taken. Throws with `posted`.
  template <typename Post>
  uint32_t PostAll(const DeviceContext& device, const ProtectionDomain* domain, uint32_t count, Post post) {
    VerbsError refused = {0, "ibv_post_recv", ""};
    const uint32_t made = Make(device, domain, count, &refused);
    uint32_t posted = made;
    if (made > 0) {
      ibv_recv_wr* bad = nullptr;
      const int error = post(requests_.data(), &bad);
      if (error != 0) {
        posted = bad == nullptr ? 0 : static_cast<uint32_t>(bad - requests_.data());
        for (uint32_t i = made; i > posted; i--) free_.push_back(static_cast<uint32_t>(requests_[i - 1].wr_id));
        refused = {error, "ibv_post_recv", "a receive was refused"};
      }
    }
    if (refused.error != 0) {
      refused.posted = static_cast<int>(posted);
      throw refused;
    }
    return posted;
  }

  // The user's id of a consumed one; false when it isn't outstanding.
  bool Take(uint64_t slot, double* id);
  // All that are outstanding, as if consumed.
  std::vector<double> TakeAll();

 private:
  uint32_t Make(const DeviceContext& device, const ProtectionDomain* domain, uint32_t count, VerbsError* refused);

  const uint32_t max_receive_;
  const uint32_t max_segments_;
  const std::shared_ptr<std::vector<std::byte>> arena_;
  std::vector<double> ids_;
  std::vector<bool> busy_;
  std::vector<uint32_t> free_;
  std::vector<ibv_recv_wr> requests_;
  std::vector<ibv_sge> segments_;
};

class SharedReceiveQueue {
 public:
  SharedReceiveQueue(std::shared_ptr<ProtectionDomain> domain, uint32_t max_receive, uint32_t max_segments);
  ~SharedReceiveQueue();
  SharedReceiveQueue(const SharedReceiveQueue&) = delete;
  SharedReceiveQueue& operator=(const SharedReceiveQueue&) = delete;

  ibv_srq* srq() const { return srq_; }
  ReceiveSlots& slots() { return slots_; }
  const std::shared_ptr<ProtectionDomain>& domain() const { return domain_; }
  uint32_t Post(uint32_t count);
  void ArmLimit(uint32_t count);

 private:
  const Counted counted_{Live().receive_queues};
  const std::shared_ptr<ProtectionDomain> domain_;
  ReceiveSlots slots_;
  ibv_srq* srq_;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RDMA_RECEIVE_QUEUE_H_
