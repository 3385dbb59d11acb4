#include "rdma_receive_queue.h"

#include <errno.h>

namespace node_rdma_cm {

void MakeSegments(const DeviceContext& device, const ProtectionDomain* domain, const Segment* segments, uint32_t count,
                  bool is_inline, ibv_sge* out) {
  for (uint32_t i = 0; i < count; i++) {
    const Segment& segment = segments[i];
    const MemoryRegion* region = device.regions.Find(segment.region);
    if (region == nullptr || region->domain() != domain)
      throw VerbsError{EFAULT, "post", "a memory region is closed, or of another protection domain"};
    if (!region->Contains(segment.offset, segment.length))
      throw VerbsError{EFAULT, "post", "a segment is not inside of its region"};
    // The device checks keys by itself; what is inline is read by the processor, here.
    if (is_inline && region->memory_is_there && !region->memory_is_there())
      throw VerbsError{EFAULT, "post", "the region's buffer has been detached"};
    const auto offset = static_cast<uint64_t>(segment.offset);
    out[i] = {is_inline ? reinterpret_cast<uintptr_t>(region->base()) + offset : region->address() + offset,
              segment.length, region->mr()->lkey};
  }
}

ReceiveSlots::ReceiveSlots(uint32_t max_receive, uint32_t max_segments)
    : max_receive_(max_receive),
      max_segments_(max_segments),
      arena_(std::make_shared<std::vector<std::byte>>(max_receive *
                                                      (sizeof(ReceiveRequest) + max_segments * sizeof(Segment)))),
      ids_(max_receive),
      busy_(max_receive),
      requests_(max_receive),
      segments_(static_cast<size_t>(max_receive) * max_segments) {
  for (uint32_t slot = max_receive; slot > 0; slot--) free_.push_back(slot - 1);
}

uint32_t ReceiveSlots::Make(const DeviceContext& device, const ProtectionDomain* domain, uint32_t count,
                            VerbsError* refused) {
  const size_t record_bytes = sizeof(ReceiveRequest) + max_segments_ * sizeof(Segment);
  uint32_t made = 0;
  for (; made < count; made++) {
    const auto* request = reinterpret_cast<const ReceiveRequest*>(arena_->data() + made * record_bytes);
    ibv_sge* segments = &segments_[static_cast<size_t>(made) * max_segments_];
    try {
      if (free_.empty()) throw VerbsError{ENOBUFS, "post", "the receive queue is full"};
      if (request->segment_count > max_segments_) throw VerbsError{EINVAL, "post", "too many segments"};
      MakeSegments(device, domain, reinterpret_cast<const Segment*>(request + 1), request->segment_count, false,
                   segments);
    } catch (const VerbsError& error) {
      *refused = error;
      break;
    }
    const uint32_t slot = free_.back();
    free_.pop_back();
    busy_[slot] = true;
    ids_[slot] = request->id;
    requests_[made] = {};
    requests_[made].wr_id = kReceiveTag | slot;
    requests_[made].sg_list = segments;
    requests_[made].num_sge = static_cast<int>(request->segment_count);
    if (made > 0) requests_[made - 1].next = &requests_[made];
  }
  return made;
}

bool ReceiveSlots::Take(uint64_t slot, double* id) {
  if (slot >= max_receive_ || !busy_[slot]) return false;
  busy_[slot] = false;
  *id = ids_[slot];
  free_.push_back(static_cast<uint32_t>(slot));
  return true;
}

std::vector<double> ReceiveSlots::TakeAll() {
  std::vector<double> ids;
  for (uint32_t slot = 0; slot < max_receive_; slot++) {
    double id;
    if (Take(slot, &id)) ids.push_back(id);
  }
  return ids;
}

SharedReceiveQueue::SharedReceiveQueue(std::shared_ptr<ProtectionDomain> domain, uint32_t max_receive,
                                       uint32_t max_segments)
    : domain_(std::move(domain)), slots_(max_receive, max_segments) {
  ibv_srq_init_attr attributes = {};
  attributes.attr.max_wr = max_receive;
  attributes.attr.max_sge = max_segments;
  srq_ = ibv_create_srq(domain_->pd(), &attributes);
  if (srq_ == nullptr) throw VerbsError{errno, "ibv_create_srq", "no shared receive queue"};
}

SharedReceiveQueue::~SharedReceiveQueue() { ibv_destroy_srq(srq_); }

uint32_t SharedReceiveQueue::Post(uint32_t count) {
  return slots_.PostAll(*domain_->device(), domain_.get(), count,
                        [this](ibv_recv_wr* first, ibv_recv_wr** bad) { return ibv_post_srq_recv(srq_, first, bad); });
}

void SharedReceiveQueue::ArmLimit(uint32_t count) {
  ibv_srq_attr attributes = {};
  attributes.srq_limit = count;
  const int error = ibv_modify_srq(srq_, &attributes, IBV_SRQ_LIMIT);
  if (error != 0) throw VerbsError{error, "ibv_modify_srq", "the limit can't be set"};
}

}  // namespace node_rdma_cm
