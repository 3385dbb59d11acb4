#include "rdma_queue_pair.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <cmath>

namespace node_rdma_cm {
namespace {

uint32_t NextHandle() {
  static std::atomic<uint32_t> next{1};
  return next++;
}

bool HasSegments(uint32_t operation) { return operation != kBindWindow && operation != kInvalidateLocal; }

ibv_wr_opcode Opcode(uint32_t operation) {
  switch (operation) {
    case kSend:
      return IBV_WR_SEND;
    case kSendWithImmediate:
      return IBV_WR_SEND_WITH_IMM;
    case kSendWithInvalidate:
      return IBV_WR_SEND_WITH_INV;
    case kWrite:
      return IBV_WR_RDMA_WRITE;
    case kWriteWithImmediate:
      return IBV_WR_RDMA_WRITE_WITH_IMM;
    case kRead:
      return IBV_WR_RDMA_READ;
    case kCompareAndSwap:
      return IBV_WR_ATOMIC_CMP_AND_SWP;
    case kFetchAndAdd:
      return IBV_WR_ATOMIC_FETCH_AND_ADD;
    case kBindWindow:
      return IBV_WR_BIND_MW;
    default:
      return IBV_WR_LOCAL_INV;
  }
}

}  // namespace

QueuePair::QueuePair(rdma_cm_id* id, std::shared_ptr<ProtectionDomain> domain,
                     std::shared_ptr<CompletionQueue> send_queue, std::shared_ptr<CompletionQueue> receive_queue,
                     std::shared_ptr<SharedReceiveQueue> shared, const QueuePairSizes& sizes)
    : domain_(std::move(domain)),
      send_queue_(std::move(send_queue)),
      receive_queue_(std::move(receive_queue)),
      shared_(std::move(shared)),
      sizes_(sizes),
      handle_(NextHandle()),
      state_(std::make_shared<QueuePairState>()),
      send_arena_(std::make_shared<std::vector<std::byte>>(
          sizes.max_send * (sizeof(WorkRequest) + sizes.max_send_segments * sizeof(Segment)))),
      receives_(shared_ == nullptr ? sizes.max_receive : 0, shared_ == nullptr ? sizes.max_receive_segments : 0),
      sent_(sizes.max_send),
      requests_(sizes.max_send),
      segments_(static_cast<size_t>(sizes.max_send) * sizes.max_send_segments) {
  // What a shared queue holds may all arrive through any of its queue pairs.
  if (shared_ != nullptr) sizes_.max_receive = shared_->slots().max_receive();
  send_queue_->Reserve(sizes_.max_send);
  try {
    receive_queue_->Reserve(sizes_.max_receive);
  } catch (const VerbsError&) {
    send_queue_->Release(sizes_.max_send);
    throw;
  }
  ibv_qp_init_attr create = {};
  create.send_cq = send_queue_->cq();
  create.recv_cq = receive_queue_->cq();
  create.srq = shared_ == nullptr ? nullptr : shared_->srq();
  create.qp_type = IBV_QPT_RC;
  create.cap = {sizes_.max_send, shared_ == nullptr ? sizes_.max_receive : 0, sizes_.max_send_segments,
                shared_ == nullptr ? sizes_.max_receive_segments : 0, sizes_.max_inline_bytes};
  qp_ = ibv_create_qp(domain_->pd(), &create);
  const int create_error = errno;
  VerbsError refused = {qp_ == nullptr ? create_error : 0, "ibv_create_qp", "no queue pair of this size"};
  if (qp_ != nullptr) {
    sizes_.max_inline_bytes = std::max(sizes_.max_inline_bytes, create.cap.max_inline_data);
    ibv_qp_attr attributes = {};
    int mask = 0;
    attributes.qp_state = IBV_QPS_INIT;
    if (rdma_init_qp_attr(id, &attributes, &mask) != 0) {
      refused = {errno, "rdma_init_qp_attr", "the connection manager has no address for it"};
    } else {
      // What peers may do is decided by regions and windows.
      attributes.qp_access_flags |= IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
      refused.error = ibv_modify_qp(qp_, &attributes, mask);
      refused.call = "ibv_modify_qp";
      refused.detail = "the queue pair can't be initialized";
    }
    if (refused.error != 0) {
      ibv_destroy_qp(qp_);
      qp_ = nullptr;
    }
  }
  if (refused.error != 0) {
    send_queue_->Release(sizes_.max_send);
    receive_queue_->Release(sizes_.max_receive);
    throw refused;
  }
  number_ = qp_->qp_num;
  counted_.emplace(Live().queue_pairs);
  domain_->device()->queue_pairs[number_] = this;
  send_queue_->queue_pairs++;
  receive_queue_->queue_pairs++;
  NotifyQueues();
}

void QueuePair::Modify(ibv_qp_attr* attributes, int mask, const char* what) {
  const int error = ibv_modify_qp(qp_, attributes, mask);
  if (error != 0) throw VerbsError{error, "ibv_modify_qp", what};
}

void QueuePair::Connect(rdma_cm_id* id, const ConnectParameters& parameters) {
  if (qp_ == nullptr) throw VerbsError{EBADF, "connect", "the queue pair is closed"};
  ibv_qp_attr attributes = {};
  int mask = 0;
  attributes.qp_state = IBV_QPS_RTR;
  if (rdma_init_qp_attr(id, &attributes, &mask) != 0)
    throw VerbsError{errno, "rdma_init_qp_attr", "the connection manager has no route for it"};
  attributes.max_dest_rd_atomic = parameters.responder_resources;
  attributes.min_rnr_timer = parameters.min_rnr_timer;
  mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  Modify(&attributes, mask, "it can't be made ready to receive");
  attributes = {};
  attributes.qp_state = IBV_QPS_RTS;
  if (rdma_init_qp_attr(id, &attributes, &mask) != 0)
    throw VerbsError{errno, "rdma_init_qp_attr", "the connection manager has no route for it"};
  attributes.max_rd_atomic = parameters.initiator_depth;
  // The peer's wish could be to retry for ever.
  attributes.retry_cnt = parameters.retry_count;
  attributes.rnr_retry = parameters.rnr_retry_count;
  mask |= IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY;
  Modify(&attributes, mask, "it can't be made ready to send");
  state_->phase = kConnected;
}

void QueuePair::MoveToError() {
  if (qp_ == nullptr || moved_to_error_) return;
  moved_to_error_ = true;
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_ERR;
  state_->phase = kError;
  // A device that is gone refuses; then closing brings the completions.
  ibv_modify_qp(qp_, &attributes, IBV_QP_STATE);
}

void QueuePair::Close() {
  if (qp_ == nullptr) return;
  MoveToError();
  send_queue_->TakeAll();
  if (receive_queue_ != send_queue_) receive_queue_->TakeAll();
  ibv_destroy_qp(qp_);
  qp_ = nullptr;
  // What came in the meantime. From here on none comes of this number.
  send_queue_->TakeAll();
  if (receive_queue_ != send_queue_) receive_queue_->TakeAll();
  domain_->device()->queue_pairs.erase(number_);
  Completion record = {};
  record.queue_pair = handle_;
  record.status = IBV_WC_WR_FLUSH_ERR;
  for (; tail_ != head_; tail_++) {
    record.id = At(tail_).id;
    record.operation = At(tail_).operation;
    send_queue_->Add(record, state_, 1, 0);
  }
  record.operation = kReceive;
  for (const double id : receives_.TakeAll()) {
    record.id = id;
    receive_queue_->Add(record, state_, 0, 1);
  }
  send_queue_->Release(sizes_.max_send);
  receive_queue_->Release(sizes_.max_receive);
  send_queue_->queue_pairs--;
  receive_queue_->queue_pairs--;
  NotifyQueues();
  counted_.reset();
  shared_.reset();
  receive_queue_.reset();
  send_queue_.reset();
  domain_.reset();
}

void QueuePair::NotifyQueues() const {
  if (send_queue_->changed) send_queue_->changed();
  if (receive_queue_ != send_queue_ && receive_queue_->changed) receive_queue_->changed();
}

void QueuePair::Make(const WorkRequest& request, const Segment* segments, ibv_send_wr* out, ibv_sge* sges, Sent* sent) {
  const uint32_t operation = request.operation;
  if (operation >= kOperationCount) throw VerbsError{EINVAL, "post", "there is no such operation"};
  const bool has_segments = HasSegments(operation);
  if (request.segment_count > sizes_.max_send_segments || (has_segments && request.segment_count == 0))
    throw VerbsError{EINVAL, "post", "too many segments, or none"};
  const bool is_inline = has_segments && (request.flags & kInline) != 0;
  *out = {};
  out->opcode = Opcode(operation);
  out->sg_list = sges;
  uint64_t length = 0;
  if (has_segments) {
    MakeSegments(*domain_->device(), domain_.get(), segments, request.segment_count, is_inline, sges);
    for (uint32_t i = 0; i < request.segment_count; i++) length += sges[i].length;
    out->num_sge = static_cast<int>(request.segment_count);
    if (is_inline && length > sizes_.max_inline_bytes) throw VerbsError{EINVAL, "post", "too much to be inline"};
  }
  switch (operation) {
    case kSendWithImmediate:
    case kWriteWithImmediate:
      out->imm_data = htobe32(request.immediate);
      break;
    case kSendWithInvalidate:
    case kInvalidateLocal:
      out->invalidate_rkey = request.remote_key;
      break;
    default:
      break;
  }
  if (!(request.remote_address >= 0 && request.remote_address <= kBytesMax))
    throw VerbsError{EINVAL, "post", "the remote address is none"};
  const auto remote = static_cast<uint64_t>(request.remote_address);
  if (operation == kWrite || operation == kWriteWithImmediate || operation == kRead) {
    out->wr.rdma = {remote, request.remote_key};
  } else if (operation == kCompareAndSwap || operation == kFetchAndAdd) {
    if (length != 8) throw VerbsError{EINVAL, "post", "an atomic operation has 8 bytes"};
    out->wr.atomic = {remote, request.compare_add, request.swap, request.remote_key};
  } else if (operation == kBindWindow) {
    const MemoryWindow* window = domain_->device()->windows.Find(request.window);
    const MemoryRegion* region = domain_->device()->regions.Find(request.region);
    if (window == nullptr || region == nullptr || window->domain() != domain_.get() ||
        region->domain() != domain_.get())
      throw VerbsError{EFAULT, "post", "the window or the region is closed, or of another protection domain"};
    if (!region->Contains(request.bind_offset, request.bind_length))
      throw VerbsError{EFAULT, "post", "the range is not inside of its region"};
    out->bind_mw.mw = window->mw();
    out->bind_mw.rkey = request.remote_key;
    out->bind_mw.bind_info = {region->mr(), region->address() + static_cast<uint64_t>(request.bind_offset),
                              static_cast<uint64_t>(request.bind_length), request.bind_access & kAccessAll};
  }
  const bool signalled = (request.flags & kSignalled) != 0;
  // Else a queue of unsignalled requests would fill up and never be known to be empty.
  unsignalled_run_ = signalled || unsignalled_run_ + 1 >= (sizes_.max_send + 1) / 2 ? 0 : unsignalled_run_ + 1;
  *sent = {request.id,           0, operation, static_cast<uint32_t>(std::min<uint64_t>(length, UINT32_MAX)), signalled,
           unsignalled_run_ == 0};
  if (sent->signalled) out->send_flags |= IBV_SEND_SIGNALED;
  if ((request.flags & kFence) != 0) out->send_flags |= IBV_SEND_FENCE;
  if ((request.flags & kSolicited) != 0) out->send_flags |= IBV_SEND_SOLICITED;
  if (is_inline) out->send_flags |= IBV_SEND_INLINE;
}

uint32_t QueuePair::PostSends(uint32_t count) {
  if (qp_ == nullptr) throw VerbsError{EBADF, "post", "the queue pair is closed", 0};
  if (state_->phase == kInitialized) throw VerbsError{ENOTCONN, "post", "the queue pair is not connected", 0};
  const size_t record_bytes = sizeof(WorkRequest) + sizes_.max_send_segments * sizeof(Segment);
  const uint64_t now = NowNs();
  VerbsError refused = {0, "ibv_post_send", ""};
  uint32_t made = 0;
  for (; made < count; made++) {
    const auto* request = reinterpret_cast<const WorkRequest*>(send_arena_->data() + made * record_bytes);
    try {
      if (head_ + made - tail_ >= sizes_.max_send) throw VerbsError{ENOBUFS, "post", "the send queue is full"};
      Make(*request, reinterpret_cast<const Segment*>(request + 1), &requests_[made],
           &segments_[static_cast<size_t>(made) * sizes_.max_send_segments], &At(head_ + made));
    } catch (const VerbsError& error) {
      refused = error;
      break;
    }
    At(head_ + made).posted_ns = now;
    requests_[made].wr_id = head_ + made;
    if (made > 0) requests_[made - 1].next = &requests_[made];
  }
  uint32_t posted = made;
  if (made > 0) {
    ibv_send_wr* bad = nullptr;
    const int error = ibv_post_send(qp_, requests_.data(), &bad);
    if (error != 0) {
      posted = bad == nullptr ? 0 : static_cast<uint32_t>(bad - requests_.data());
      refused = {error, "ibv_post_send", "a request was refused"};
    }
  }
  for (uint32_t i = 0; i < posted; i++) {
    if (requests_[i].opcode != IBV_WR_BIND_MW) continue;
    const auto* request = reinterpret_cast<const WorkRequest*>(send_arena_->data() + i * record_bytes);
    domain_->device()
        ->windows.Find(request->window)
        ->BoundTo(domain_->device()->regions.Find(request->region)->shared_from_this(), request->remote_key);
  }
  head_ += posted;
  state_->sends_outstanding += posted;
  if (refused.error != 0) {
    refused.posted = static_cast<int>(posted);
    throw refused;
  }
  return posted;
}

uint32_t QueuePair::PostReceives(uint32_t count) {
  if (qp_ == nullptr) throw VerbsError{EBADF, "post", "the queue pair is closed", 0};
  try {
    const uint32_t posted =
        receives_.PostAll(*domain_->device(), domain_.get(), count,
                          [this](ibv_recv_wr* first, ibv_recv_wr** bad) { return ibv_post_recv(qp_, first, bad); });
    state_->receives_outstanding += posted;
    return posted;
  } catch (const VerbsError& error) {
    if (error.posted > 0) state_->receives_outstanding += static_cast<uint32_t>(error.posted);
    throw;
  }
}

bool QueuePair::RetireSends(uint64_t position, bool succeeded, Completion* record, uint32_t* sends) {
  *sends = 0;
  // Not between tail and head: none of ours.
  if (position - tail_ >= head_ - tail_) return false;
  const Sent& sent = At(position);
  record->id = sent.id;
  record->operation = sent.operation;
  if (succeeded)
    record->length = sent.length;
  else
    state_->phase = kError;
  *sends = static_cast<uint32_t>(position + 1 - tail_);
  tail_ = position + 1;
  return sent.reported || !succeeded;
}

bool QueuePair::TakeReceive(uint64_t slot, double* id, uint32_t* receives) {
  *receives = shared_ == nullptr ? 1 : 0;
  return (shared_ == nullptr ? receives_ : shared_->slots()).Take(slot, id);
}

uint64_t QueuePair::OldestSendAgeNs() const {
  for (uint64_t position = tail_; position != head_; position++)
    if (At(position).signalled) return NowNs() - At(position).posted_ns;
  return 0;
}

}  // namespace node_rdma_cm
