#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace napi_nvme {
namespace {

// The kernel's limit for one registered piece of memory.
constexpr uint64_t kRegisteredPieceBytes = uint64_t{1} << 30;
constexpr uint32_t kRegisteredEntries = 256;
// Below the kernel's limit for one transfer, and a multiple of every block size.
constexpr uint64_t kTransferBytesMax = uint64_t{1} << 30;
// How many commands of one request are under way together.
constexpr uint32_t kCommandsPerRequest = 8;
// A completion names the tag, whether its command named registered memory, and where in the request it began, in
// blocks.
constexpr int kTagBits = 16;
constexpr uint64_t kNamedRegistered = uint64_t{1} << kTagBits;
constexpr int kStartShift = kTagBits + 1;
static_assert(kDepthMax <= 1u << kTagBits);
// Of a request that the kernel interrupts or puts off, and of a submission that it refuses.
constexpr int kRestartsMax = 64;
constexpr int kSubmitAttempts = 1000;

// sqe->uring_cmd_flags stands where other operations have theirs; older headers don't name it.
#if !defined(IORING_URING_CMD_FIXED)
constexpr uint32_t IORING_URING_CMD_FIXED = 1u << 0;
#endif
static_assert(sizeof(nvme_uring_cmd) == 72);

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// The kernel counts a command's time in ticks.
constexpr uint64_t kTickNs = 20000000;

bool IsTransfer(Operation operation) { return operation == kRead || operation == kWrite; }

bool IsByteCount(double value) { return value >= 0 && value <= kBytesMax && std::trunc(value) == value; }

}  // namespace

Ring::Ring(uint32_t depth, std::function<void(const Offloaded&)> offload)
    : depth_(depth),
      offload_(std::move(offload)),
      requests_(depth),
      targets_(kTargetsMax),
      buffers_(kBuffersMax),
      ranges_(depth) {}

int Ring::Create(uint32_t depth, std::function<void(const Offloaded&)> offload, std::unique_ptr<Ring>* out) {
  std::unique_ptr<Ring> ring(new Ring(depth, std::move(offload)));
  // Deferred: completions are worked off when this thread asks for them, and never interrupt it (Linux 6.1). Large
  // entries: for NVMe commands (5.19).
  constexpr uint32_t kDeferred = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
  constexpr uint32_t kLarge = IORING_SETUP_SQE128 | IORING_SETUP_CQE32;
  int result = -EINVAL;
  for (const uint32_t flags : {kDeferred | kLarge, kDeferred, kLarge, 0u}) {
    io_uring_params params = {};
    params.flags = flags | IORING_SETUP_CLAMP;
    result = io_uring_queue_init_params(depth, &ring->ring_, &params);
    ring->deferred_ = (flags & kDeferred) != 0;
    ring->passes_commands_ = (flags & kLarge) != 0;
    if (result != -EINVAL) break;
  }
  if (result != 0) return -result;
  ring->created_ = true;
  if (ring->passes_commands_) {
    io_uring_probe* probe = io_uring_get_probe_ring(&ring->ring_);
    ring->passes_commands_ = probe != nullptr && io_uring_opcode_supported(probe, IORING_OP_URING_CMD) != 0;
    if (probe != nullptr) io_uring_free_probe(probe);
  }
  ring->notify_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (ring->notify_fd_ < 0) return errno;
  result = io_uring_register_eventfd(&ring->ring_, ring->notify_fd_);
  if (result != 0) return -result;
  ring->Notify(false);
  if (io_uring_register_buffers_sparse(&ring->ring_, kRegisteredEntries) == 0)
    ring->entries_.resize(kRegisteredEntries);
  *out = std::move(ring);
  return 0;
}

Ring::~Ring() {
  if (created_) io_uring_queue_exit(&ring_);
  if (notify_fd_ >= 0) close(notify_fd_);
}

void Ring::Notify(bool wanted) {
  io_uring_cq_eventfd_toggle(&ring_, wanted);
  // Who switches it on looks at the ring next; the kernel marks the ring, then looks at the switch. One of the two sees
  // the other.
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void Ring::ReadNotification() {
  uint64_t count;
  // Non-blocking; what it says doesn't matter.
  if (read(notify_fd_, &count, sizeof count) < 0) return;
}

int Ring::AddTarget(BlockTarget&& block) {
  for (uint32_t slot = 0; slot < targets_.size(); slot++) {
    if (targets_[slot].block.is_open()) continue;
    targets_[slot].block = std::move(block);
    targets_[slot].in_flight = 0;
    targets_[slot].commands_name_registered = true;
    return static_cast<int>(slot);
  }
  return -1;
}

const BlockTarget* Ring::target(uint32_t slot) const {
  return slot < targets_.size() && targets_[slot].block.is_open() ? &targets_[slot].block : nullptr;
}

bool Ring::RemoveTarget(uint32_t slot) {
  if (target(slot) == nullptr || targets_[slot].in_flight > 0) return false;
  targets_[slot].block.Close();
  return true;
}

int Ring::FindEntries(uint32_t count) const {
  uint32_t run = 0;
  for (uint32_t i = 0; i < entries_.size(); i++) {
    run = entries_[i] ? 0 : run + 1;
    if (run == count) return static_cast<int>(i + 1 - count);
  }
  return -1;
}

int Ring::AddBuffer(uint8_t* base, size_t length_bytes, bool want_registered, int* register_error) {
  uint32_t slot = 0;
  while (slot < buffers_.size() && buffers_[slot].base != nullptr) slot++;
  if (slot == buffers_.size()) return -1;
  Buffer buffer;
  buffer.base = base;
  buffer.length_bytes = length_bytes;
  *register_error = 0;
  if (want_registered) {
    const auto count = static_cast<uint32_t>((length_bytes + kRegisteredPieceBytes - 1) / kRegisteredPieceBytes);
    const int first = FindEntries(count);
    if (first < 0) {
      *register_error = entries_.empty() ? EOPNOTSUPP : ENOSPC;
    } else {
      std::vector<iovec> pieces(count);
      const std::vector<__u64> tags(count, 0);
      for (uint32_t i = 0; i < count; i++) {
        const uint64_t at = i * kRegisteredPieceBytes;
        pieces[i] = {base + at, std::min<uint64_t>(kRegisteredPieceBytes, length_bytes - at)};
      }
      const int done = io_uring_register_buffers_update_tag(&ring_, first, pieces.data(), tags.data(), count);
      if (done == static_cast<int>(count)) {
        buffer.first_entry = first;
        buffer.entry_count = count;
        std::fill_n(entries_.begin() + first, count, true);
      } else {
        *register_error = done < 0 ? -done : ENOMEM;
        const std::vector<iovec> none(count);
        if (done > 0) io_uring_register_buffers_update_tag(&ring_, first, none.data(), tags.data(), done);
      }
    }
  }
  buffers_[slot] = buffer;
  return static_cast<int>(slot);
}

bool Ring::RemoveBuffer(uint32_t slot) {
  if (slot >= buffers_.size() || buffers_[slot].base == nullptr || buffers_[slot].in_flight > 0) return false;
  Buffer& buffer = buffers_[slot];
  if (buffer.first_entry >= 0) {
    const std::vector<iovec> none(buffer.entry_count);
    const std::vector<__u64> tags(buffer.entry_count, 0);
    io_uring_register_buffers_update_tag(&ring_, buffer.first_entry, none.data(), tags.data(), buffer.entry_count);
    std::fill_n(entries_.begin() + buffer.first_entry, buffer.entry_count, false);
  }
  buffer = Buffer();
  return true;
}

void Ring::LoseBuffer(uint32_t slot) {
  if (slot < buffers_.size()) buffers_[slot].lost = true;
}

uint32_t Ring::buffer_in_flight(uint32_t slot) const { return slot < buffers_.size() ? buffers_[slot].in_flight : 0; }

int Ring::Check(const Instruction& instruction) const {
  const auto operation = static_cast<Operation>(instruction.operation & ~kDurable);
  const BlockTarget* block = target(instruction.target);
  if (block == nullptr) return EBADF;
  if (operation < kRead || operation > kVerify) return EINVAL;
  if ((instruction.operation & kDurable) != 0 && operation != kWrite) return EINVAL;
  if (!IsByteCount(instruction.offset_bytes) || !IsByteCount(instruction.length_bytes) ||
      !IsByteCount(instruction.buffer_offset_bytes))
    return EINVAL;
  if (block->geometry != nullptr) {
    const int error = passes_commands_ ? CheckSupported(*block->geometry, operation) : EOPNOTSUPP;
    if (error != 0) return error;
  } else if (operation == kCompare || operation == kVerify) {
    return EOPNOTSUPP;
  }
  if (operation == kFlush) return 0;
  if (instruction.length_bytes == 0 || instruction.offset_bytes + instruction.length_bytes > kBytesMax) return EINVAL;
  const bool changes = operation == kWrite || operation == kDiscard || operation == kWriteZeroes;
  if (changes && block->read_only) return EROFS;
  if (block->geometry != nullptr && (std::fmod(instruction.offset_bytes, block->logical_block_bytes) != 0 ||
                                     std::fmod(instruction.length_bytes, block->logical_block_bytes) != 0))
    return EINVAL;
  if (!HasData(operation)) return 0;
  if (instruction.buffer >= buffers_.size() || buffers_[instruction.buffer].base == nullptr) return EFAULT;
  const Buffer& buffer = buffers_[instruction.buffer];
  if (buffer.lost) return EFAULT;
  const auto length = static_cast<double>(buffer.length_bytes);
  return instruction.buffer_offset_bytes + instruction.length_bytes <= length ? 0 : EFAULT;
}

bool Ring::Submit(const Instruction* first, uint32_t count) {
  bool all = true;
  const uint64_t now = NowNs();
  for (uint32_t i = 0; i < count; i++) {
    const Instruction& instruction = first[i];
    if (instruction.tag >= depth_ || requests_[instruction.tag].busy) {
      all = false;
      break;
    }
    const int error = Check(instruction);
    if (error != 0) {
      finished_.push_back({instruction.tag, error, 0, 0, 0});
      continue;
    }
    Request& request = requests_[instruction.tag];
    request.operation = static_cast<Operation>(instruction.operation & ~kDurable);
    request.durable = (instruction.operation & kDurable) != 0;
    request.flushing = false;
    request.busy = true;
    request.target = instruction.target;
    request.buffer = instruction.buffer;
    request.offset_bytes = static_cast<uint64_t>(instruction.offset_bytes);
    request.buffer_offset_bytes = static_cast<uint64_t>(instruction.buffer_offset_bytes);
    request.length_bytes = request.operation == kFlush ? 0 : static_cast<uint64_t>(instruction.length_bytes);
    request.done_bytes = 0;
    request.restarts = 0;
    request.punch = request.operation == kDiscard;
    request.commands = 0;
    request.cut_bytes = 0;
    request.failed = false;
    request.begun_ns = now;
    in_flight_++;
    targets_[request.target].in_flight++;
    if (HasData(request.operation)) buffers_[request.buffer].in_flight++;
    Start(instruction.tag);
  }
  EnterPending();
  return all;
}

void Ring::Start(uint32_t tag) {
  Request& request = requests_[tag];
  const BlockTarget& block = targets_[request.target].block;
  if (block.geometry != nullptr) {
    QueueCommands(tag);
    return;
  }
  switch (request.operation) {
    case kRead:
    case kWrite:
      QueueTransfer(tag);
      break;
    case kFlush:
      // On a block device, too, this ends with a flush of its cache.
      QueueFlush(tag);
      break;
    case kDiscard:
    case kWriteZeroes:
      if (block.is_block)
        offload_({tag, request.operation, block.fd, request.offset_bytes, request.length_bytes});
      else
        QueueFallocate(tag);
      break;
    case kCompare:
    case kVerify:
      // Refused by Check.
      break;
  }
}

// As many as may be under way: at least one, further ones while the ring's completion queue has room for all.
void Ring::QueueCommands(uint32_t tag) {
  Request& request = requests_[tag];
  if (request.operation == kFlush) {
    QueueCommand(tag, 0);
    return;
  }
  // A discard's command refers to its range, of which there is one.
  const uint32_t together = request.operation == kDiscard ? 1 : kCommandsPerRequest;
  while (!request.failed && request.cut_bytes < request.length_bytes && request.commands < together &&
         (request.commands == 0 || commands_ < depth_))
    request.cut_bytes += QueueCommand(tag, request.cut_bytes);
}

// Returns how many bytes it takes.
uint64_t Ring::QueueCommand(uint32_t tag, uint64_t start_bytes) {
  Request& request = requests_[tag];
  Target& target = targets_[request.target];
  const NamespaceGeometry& geometry = *target.block.geometry;
  const uint64_t lba = (request.offset_bytes + start_bytes) / geometry.lba_bytes;
  const uint64_t rest = (request.length_bytes - start_bytes) / geometry.lba_bytes;
  const uint64_t count = request.operation == kFlush ? 0 : NextPiece(geometry, request.operation, lba, rest);
  const uint64_t length = count * geometry.lba_bytes;
  io_uring_sqe* entry = NextEntry();
  std::memset(static_cast<void*>(entry), 0, 2 * sizeof *entry);
  entry->opcode = IORING_OP_URING_CMD;
  entry->fd = target.block.fd;
  entry->cmd_op = NVME_URING_CMD_IO;
  entry->user_data = tag | (start_bytes / geometry.lba_bytes) << kStartShift;
  uint64_t address = 0;
  if (HasData(request.operation)) {
    const Buffer& buffer = buffers_[request.buffer];
    const uint64_t in_buffer = request.buffer_offset_bytes + start_bytes;
    address = reinterpret_cast<uintptr_t>(buffer.base + in_buffer);
    const uint64_t piece = in_buffer / kRegisteredPieceBytes;
    const bool within = (in_buffer + length - 1) / kRegisteredPieceBytes == piece;
    if (buffer.first_entry >= 0 && within && target.commands_name_registered) {
      entry->rw_flags = IORING_URING_CMD_FIXED;
      entry->buf_index = static_cast<uint16_t>(buffer.first_entry + static_cast<int>(piece));
      entry->user_data |= kNamedRegistered;
    }
  }
  nvme_uring_cmd command = EncodeCommand(geometry, request.operation, lba, count, address, &ranges_[tag]);
  if (request.durable) command.cdw12 |= kForceUnitAccess;
  std::memcpy(entry->cmd, &command, sizeof command);
  request.commands++;
  commands_++;
  return length;
}

io_uring_sqe* Ring::NextEntry() {
  io_uring_sqe* entry = io_uring_get_sqe(&ring_);
  // Full of what is not submitted yet; there is room for all in flight, so one submission makes room.
  for (int attempt = 0; entry == nullptr; attempt++) {
    // A ring that takes nothing any more, although nothing is wrong with what it is given.
    if (attempt == kSubmitAttempts) std::abort();
    if (io_uring_submit(&ring_) < 0) sched_yield();
    entry = io_uring_get_sqe(&ring_);
  }
  unsubmitted_ = true;
  return entry;
}

void Ring::QueueTransfer(uint32_t tag) {
  Request& request = requests_[tag];
  const Buffer& buffer = buffers_[request.buffer];
  const int fd = targets_[request.target].block.fd;
  const uint64_t in_buffer = request.buffer_offset_bytes + request.done_bytes;
  const uint64_t offset = request.offset_bytes + request.done_bytes;
  uint64_t length = std::min(request.length_bytes - request.done_bytes, kTransferBytesMax);
  io_uring_sqe* entry = NextEntry();
  if (buffer.first_entry >= 0) {
    const uint64_t piece = in_buffer / kRegisteredPieceBytes;
    length = std::min(length, (piece + 1) * kRegisteredPieceBytes - in_buffer);
    const int index = buffer.first_entry + static_cast<int>(piece);
    if (request.operation == kRead)
      io_uring_prep_read_fixed(entry, fd, buffer.base + in_buffer, static_cast<unsigned>(length), offset, index);
    else
      io_uring_prep_write_fixed(entry, fd, buffer.base + in_buffer, static_cast<unsigned>(length), offset, index);
  } else if (request.operation == kRead) {
    io_uring_prep_read(entry, fd, buffer.base + in_buffer, static_cast<unsigned>(length), offset);
  } else {
    io_uring_prep_write(entry, fd, buffer.base + in_buffer, static_cast<unsigned>(length), offset);
  }
  // Where the device doesn't do it itself a flush follows (HandleResult). The kernel would do that too, but from one of
  // its own threads, which on a busy machine waits for its turn.
  if (request.durable && targets_[request.target].block.writes_through) entry->rw_flags = RWF_DSYNC;
  io_uring_sqe_set_data64(entry, tag);
}

void Ring::QueueFlush(uint32_t tag) {
  io_uring_sqe* entry = NextEntry();
  io_uring_prep_fsync(entry, targets_[requests_[tag].target].block.fd, IORING_FSYNC_DATASYNC);
  io_uring_sqe_set_data64(entry, tag);
}

void Ring::QueueFallocate(uint32_t tag) {
  Request& request = requests_[tag];
  const int fd = targets_[request.target].block.fd;
  const int mode = (request.punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
  io_uring_sqe* entry = NextEntry();
  io_uring_prep_fallocate(entry, fd, mode, static_cast<off_t>(request.offset_bytes),
                          static_cast<off_t>(request.length_bytes));
  io_uring_sqe_set_data64(entry, tag);
}

void Ring::EnterPending() {
  if (!unsubmitted_) return;
  unsubmitted_ = false;
  // The kernel may be short of memory for a moment, and nothing else would bring us back here.
  for (int attempt = 0; attempt < kSubmitAttempts; attempt++) {
    const int result = deferred_ ? io_uring_submit_and_get_events(&ring_) : io_uring_submit(&ring_);
    if (result >= 0 && io_uring_sq_ready(&ring_) == 0) return;
    if (attempt > 0) sched_yield();
  }
  unsubmitted_ = true;
}

bool Ring::Ready() const {
  if (!finished_.empty() || unsubmitted_ || io_uring_cq_ready(&ring_) > 0) return true;
  return deferred_ && (IO_URING_READ_ONCE(*ring_.sq.kflags) & IORING_SQ_TASKRUN) != 0;
}

uint32_t Ring::Reap(Completion* out, uint32_t max) {
  if (finished_.empty()) TakeResults();
  uint32_t taken = 0;
  for (; taken < max && !finished_.empty(); taken++) {
    out[taken] = finished_.front();
    finished_.pop_front();
  }
  return taken;
}

void Ring::Drop() {
  TakeResults();
  finished_.clear();
}

uint32_t Ring::TakeResults() {
  EnterPending();
  if (deferred_ && (IO_URING_READ_ONCE(*ring_.sq.kflags) & IORING_SQ_TASKRUN) != 0) io_uring_get_events(&ring_);
  io_uring_cqe* entries[64];
  for (;;) {
    const unsigned count = io_uring_peek_batch_cqe(&ring_, entries, 64);
    if (count == 0) break;
    for (unsigned i = 0; i < count; i++) {
      const uint64_t data = entries[i]->user_data;
      const auto tag = static_cast<uint32_t>(data & ((uint64_t{1} << kTagBits) - 1));
      if (tag >= depth_ || !requests_[tag].busy) continue;
      const BlockTarget& block = targets_[requests_[tag].target].block;
      if (block.geometry != nullptr)
        HandleCommandResult(tag, (data >> kStartShift) * block.logical_block_bytes, (data & kNamedRegistered) != 0,
                            entries[i]->res);
      else
        HandleResult(tag, entries[i]->res);
    }
    io_uring_cq_advance(&ring_, count);
  }
  // What HandleResult queued: the rest of short transfers.
  EnterPending();
  return in_flight_;
}

void Ring::Wait(uint32_t max_wait_us) {
  EnterPending();
  if (Ready() || in_flight_ == 0) return;
  __kernel_timespec limit = {max_wait_us / 1000000, static_cast<long long>(max_wait_us % 1000000) * 1000};
  io_uring_cqe* entry = nullptr;
  io_uring_wait_cqes(&ring_, &entry, 1, &limit, nullptr);
}

// `result`: negative is the kernel's errno, positive the controller's status. EINTR is how the kernel reports commands
// that it gave up: those that took longer than they may, and those that were under way when their controller was reset
// or lost its path. It doesn't say which; the time does. Whoever asked must hear of either, and may ask again.
void Ring::HandleCommandResult(uint32_t tag, uint64_t start_bytes, bool named_registered, int result) {
  Request& request = requests_[tag];
  Target& target = targets_[request.target];
  request.commands--;
  commands_--;
  if (named_registered && (result == -EINVAL || result == -EFAULT)) {
    // Refused for that alone, perhaps; else it will be refused again. Linux 6.1 takes registered memory only up to its
    // end, and not when it has to wait for a path; older ones not at all.
    target.commands_name_registered = false;
    QueueCommand(tag, start_bytes);
    return;
  }
  if (result == -EAGAIN && request.restarts++ < kRestartsMax) {
    QueueCommand(tag, start_bytes);
    return;
  }
  if (result == -EINTR) {
    const uint64_t limit = uint64_t{target.block.geometry->timeout_ms} * 1000000;
    if (NowNs() - request.begun_ns + kTickNs >= limit) result = -ETIMEDOUT;
  }
  if (result != 0 && (!request.failed || start_bytes < request.failed_at_bytes)) {
    request.failed = true;
    request.failed_at_bytes = start_bytes;
    request.failed_error = result < 0 ? -result : EIO;
    request.failed_status = result > 0 ? static_cast<uint32_t>(result) & 0x7fff : 0;
  }
  if (request.operation != kFlush) QueueCommands(tag);
  if (request.commands > 0) return;
  request.done_bytes = request.failed ? request.failed_at_bytes : request.length_bytes;
  Finish(tag, request.failed ? request.failed_error : 0, request.failed ? request.failed_status : 0);
}

void Ring::HandleResult(uint32_t tag, int result) {
  Request& request = requests_[tag];
  if ((result == -EINTR || result == -EAGAIN) && request.restarts++ < kRestartsMax) {
    if (request.flushing)
      QueueFlush(tag);
    else
      Start(tag);
    return;
  }
  if (request.flushing) {
    Finish(tag, result < 0 ? -result : 0);
    return;
  }
  if (!IsTransfer(request.operation)) {
    if (result == -EOPNOTSUPP && request.operation == kWriteZeroes && !request.punch) {
      request.punch = true;
      QueueFallocate(tag);
      return;
    }
    if (result >= 0) request.done_bytes = request.length_bytes;
    Finish(tag, result < 0 ? -result : 0);
    return;
  }
  if (result < 0) {
    Finish(tag, -result);
    return;
  }
  request.done_bytes += static_cast<uint64_t>(result);
  const BlockTarget& block = targets_[request.target].block;
  const bool whole = request.done_bytes % block.logical_block_bytes == 0;
  // Nothing, or a part of a block: the device ends here, and direct I/O could not go on from an odd place anyway.
  if (request.done_bytes < request.length_bytes && result > 0 && whole) {
    QueueTransfer(tag);
    return;
  }
  // What fell short is an error anyway.
  if (request.durable && !block.writes_through && request.done_bytes == request.length_bytes) {
    request.flushing = true;
    QueueFlush(tag);
    return;
  }
  Finish(tag, 0);
}

void Ring::CompleteOffloaded(uint32_t tag, int error) {
  if (tag >= depth_ || !requests_[tag].busy) return;
  if (error == 0) requests_[tag].done_bytes = requests_[tag].length_bytes;
  Finish(tag, error);
}

void Ring::Finish(uint32_t tag, int error, uint32_t nvme_status) {
  Request& request = requests_[tag];
  request.busy = false;
  in_flight_--;
  targets_[request.target].in_flight--;
  if (HasData(request.operation)) buffers_[request.buffer].in_flight--;
  finished_.push_back({tag, error, static_cast<double>(request.done_bytes), nvme_status, 0});
}

}  // namespace napi_nvme
