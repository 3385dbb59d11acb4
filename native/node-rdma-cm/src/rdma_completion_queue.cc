#include "rdma_completion_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>

#include <algorithm>

#include "rdma_queue_pair.h"

namespace node_rdma_cm {

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

CompletionQueue::CompletionQueue(std::shared_ptr<DeviceContext> device, uint32_t depth, bool watched)
    : device_(std::move(device)), depth_(depth) {
  if (watched) {
    channel_ = ibv_create_comp_channel(device_->context());
    if (channel_ == nullptr) throw VerbsError{errno, "ibv_create_comp_channel", "no completion channel"};
    fcntl(channel_->fd, F_SETFL, fcntl(channel_->fd, F_GETFL) | O_NONBLOCK);
  }
  cq_ = ibv_create_cq(device_->context(), static_cast<int>(depth), nullptr, channel_, 0);
  if (cq_ == nullptr) {
    const int error = errno;
    if (channel_ != nullptr) ibv_destroy_comp_channel(channel_);
    throw VerbsError{error, "ibv_create_cq", "no completion queue"};
  }
}

CompletionQueue::~CompletionQueue() {
  // Events that nobody read count as unacknowledged only once they are read.
  ibv_destroy_cq(cq_);
  if (channel_ != nullptr) ibv_destroy_comp_channel(channel_);
}

void CompletionQueue::Reserve(uint32_t count) {
  if (count > depth_ - reserved_)
    throw VerbsError{ENOSPC, "ibv_create_qp",
                     "the completion queue holds " + std::to_string(depth_) + " and has promised " +
                         std::to_string(reserved_) + ", " + std::to_string(count) + " more could overrun it"};
  reserved_ += count;
}

bool CompletionQueue::Translate(const ibv_wc& wc, Kept* out) {
  const auto found = device_->queue_pairs.find(wc.qp_num);
  if (found == device_->queue_pairs.end()) return false;
  QueuePair* queue_pair = found->second;
  Completion& record = out->completion;
  record = {};
  record.queue_pair = queue_pair->handle();
  record.status = wc.status;
  record.vendor_error = wc.status == IBV_WC_SUCCESS ? 0 : wc.vendor_err;
  out->state = queue_pair->state();
  out->sends = out->receives = 0;
  if ((wc.wr_id & kReceiveTag) != 0) {
    if (!queue_pair->TakeReceive(wc.wr_id & ~kReceiveTag, &record.id, &out->receives)) return false;
    record.operation = kReceive;
    if (wc.status != IBV_WC_SUCCESS) return true;
    if (wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM) record.operation = kReceiveWriteWithImmediate;
    record.length = wc.byte_len;
    if ((wc.wc_flags & IBV_WC_WITH_IMM) != 0) {
      record.flags = kHasImmediate;
      record.immediate = be32toh(wc.imm_data);
    } else if ((wc.wc_flags & IBV_WC_WITH_INV) != 0) {
      record.flags = kHasInvalidatedKey;
      record.invalidated_key = wc.invalidated_rkey;
    }
    return true;
  }
  const bool wanted = queue_pair->RetireSends(wc.wr_id, wc.status == IBV_WC_SUCCESS, &record, &out->sends);
  // Unsignalled ones are counted, at once, and not reported.
  if (!wanted) out->state->sends_outstanding -= out->sends;
  return wanted;
}

uint32_t CompletionQueue::Hand(Kept&& kept, Completion* out) {
  kept.state->sends_outstanding -= kept.sends;
  kept.state->receives_outstanding -= kept.receives;
  *out = kept.completion;
  return kept.completion.status == IBV_WC_SUCCESS ? 0 : 1;
}

uint32_t CompletionQueue::Poll(Completion* out, uint32_t max, uint32_t* errors) {
  uint32_t count = 0;
  *errors = 0;
  while (count < max && !backlog_.empty()) {
    *errors += Hand(std::move(backlog_.front()), &out[count++]);
    backlog_.pop_front();
  }
  ibv_wc completions[32];
  while (count < max) {
    const int wanted = static_cast<int>(std::min<uint32_t>(max - count, 32));
    const int got = ibv_poll_cq(cq_, wanted, completions);
    for (int i = 0; i < got; i++) {
      Kept kept;
      if (Translate(completions[i], &kept)) *errors += Hand(std::move(kept), &out[count++]);
    }
    if (got < wanted) break;
  }
  return count;
}

uint32_t CompletionQueue::PollFor(Completion* out, uint32_t max, uint32_t* errors, uint64_t max_wait_ns) {
  uint32_t count = Poll(out, max, errors);
  if (count > 0 || max_wait_ns == 0) return count;
  const uint64_t end = NowNs() + max_wait_ns;
  for (uint32_t round = 1;; round++) {
    count = Poll(out, max, errors);
    if (count > 0) return count;
    if (round % 16 == 0 && NowNs() >= end) return 0;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

bool CompletionQueue::Ready() {
  if (!backlog_.empty()) return true;
  ibv_wc completion;
  if (ibv_poll_cq(cq_, 1, &completion) <= 0) return false;
  Kept kept;
  if (Translate(completion, &kept)) backlog_.push_back(std::move(kept));
  return !backlog_.empty();
}

void CompletionQueue::TakeAll() {
  ibv_wc completions[32];
  int got;
  do {
    got = ibv_poll_cq(cq_, 32, completions);
    for (int i = 0; i < got; i++) {
      Kept kept;
      if (Translate(completions[i], &kept)) backlog_.push_back(std::move(kept));
    }
  } while (got == 32);
}

void CompletionQueue::Add(const Completion& completion, std::shared_ptr<QueuePairState> state, uint32_t sends,
                          uint32_t receives) {
  backlog_.push_back({completion, std::move(state), sends, receives});
}

void CompletionQueue::Arm() {
  if (!armed_ && ibv_req_notify_cq(cq_, 0) == 0) armed_ = true;
}

void CompletionQueue::ReadEvents() {
  ibv_cq* cq;
  void* user;
  // Arming brings one event at most. At once acknowledged: destroying the queue waits for that.
  if (ibv_get_cq_event(channel_, &cq, &user) != 0) return;
  ibv_ack_cq_events(cq_, 1);
  armed_ = false;
}

}  // namespace node_rdma_cm
