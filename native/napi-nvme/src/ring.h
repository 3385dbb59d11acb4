// One io_uring and what is in flight on it: owns the ring, the opened targets, the registered memory and the table of
// requests.
//
// Invariants: a tag names at most one request; every accepted instruction yields exactly one completion; a target and a
// buffer stay while requests name them. Short transfers are continued here, and reported only when the device has
// nothing more. Fault model: any number in an instruction may be wrong (EINVAL, the request never reaches the kernel);
// the kernel may answer short, interrupted or with any errno; registration may be refused.
//
// Knows nothing of JavaScript; one thread only. Operations that the ring can't do are handed to `offload` and come back
// by `CompleteOffloaded`. Where the kernel has them, entries are of 128 bytes: then commands of NVMe's own travel next
// to everything else. A request to a namespace is cut into commands, several of which are under way at a time; the
// first that failed, by its place, decides.
#ifndef NAPI_NVME_RING_H_
#define NAPI_NVME_RING_H_

#include <liburing.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "abi.h"
#include "block_target.h"

namespace napi_nvme {

class Ring {
 public:
  // Blocking work for a thread: discard or write-zeroes of a block device.
  struct Offloaded {
    uint32_t tag;
    Operation operation;
    int fd;
    uint64_t offset_bytes;
    uint64_t length_bytes;
  };

  // 0 or an errno.
  static int Create(uint32_t depth, std::function<void(const Offloaded&)> offload, std::unique_ptr<Ring>* out);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Readable when there is something to reap, if `Notify(true)` came before it; `ReadNotification` resets it.
  // An eventfd, since a ring with deferred completions doesn't wake those who poll its own descriptor (seen on
  // Linux 6.18).
  int notify_fd() const { return notify_fd_; }
  void Notify(bool wanted);
  void ReadNotification();
  uint32_t depth() const { return depth_; }
  uint32_t in_flight() const { return in_flight_; }
  // Whether NVMe commands can be passed through.
  bool passes_commands() const { return passes_commands_; }
  // In flight, or completed and not yet reaped.
  uint32_t pending() const { return in_flight_ + static_cast<uint32_t>(finished_.size()); }

  // A slot, or -1 when there are too many.
  int AddTarget(BlockTarget&& target);
  const BlockTarget* target(uint32_t slot) const;
  // False while requests name it, or if it isn't there.
  bool RemoveTarget(uint32_t slot);

  // A slot, or -1. `register_error` gets 0 or the errno for which the memory is used unregistered.
  int AddBuffer(uint8_t* base, size_t length_bytes, bool want_registered, int* register_error);
  bool RemoveBuffer(uint32_t slot);
  // Its memory has gone away: requests that name it fail from here on (EFAULT).
  void LoseBuffer(uint32_t slot);
  uint32_t buffer_in_flight(uint32_t slot) const;

  // Takes instructions over; false if one can't be given a completion (tag out of range or in use): those before it are
  // taken over.
  bool Submit(const Instruction* first, uint32_t count);
  // Looks at what the kernel has completed, without waiting; returns how many operations it still works on.
  uint32_t TakeResults();
  // Completions that are there, at most `max`; never waits.
  uint32_t Reap(Completion* out, uint32_t max);
  // Forgets what has completed: nobody wants to know any more.
  void Drop();
  // Whether Reap would find something, without a system call.
  bool Ready() const;
  // Waits until there is one, at most that long.
  void Wait(uint32_t max_wait_us);
  void CompleteOffloaded(uint32_t tag, int error);

 private:
  struct Request {
    Operation operation;
    bool busy = false;
    uint32_t target;
    uint32_t buffer;
    uint64_t offset_bytes;
    uint64_t buffer_offset_bytes;
    uint64_t length_bytes;
    uint64_t done_bytes;
    int restarts;
    bool durable;
    // Of a durable write: the bytes are on the device, and what follows is its flush.
    bool flushing;
    // The second way to zero a file, when the file system lacks the first.
    bool punch;
    // Of a namespace: commands under way, bytes that have been cut into commands, and the first that failed.
    uint32_t commands;
    uint64_t cut_bytes;
    uint64_t begun_ns;
    bool failed;
    uint64_t failed_at_bytes;
    int failed_error;
    uint32_t failed_status;
  };
  struct Buffer {
    uint8_t* base = nullptr;
    uint64_t length_bytes = 0;
    uint32_t in_flight = 0;
    // First of its entries in the kernel's table, which holds pieces of at most kRegisteredPieceBytes; -1 =
    // unregistered.
    int first_entry = -1;
    uint32_t entry_count = 0;
    bool lost = false;
  };
  struct Target {
    BlockTarget block;
    uint32_t in_flight = 0;
    // Until the kernel refuses a command that names registered memory.
    bool commands_name_registered = true;
  };

  Ring(uint32_t depth, std::function<void(const Offloaded&)> offload);
  int Check(const Instruction& instruction) const;
  void Start(uint32_t tag);
  void QueueTransfer(uint32_t tag);
  void QueueFlush(uint32_t tag);
  void QueueFallocate(uint32_t tag);
  void QueueCommands(uint32_t tag);
  uint64_t QueueCommand(uint32_t tag, uint64_t start_bytes);
  io_uring_sqe* NextEntry();
  void HandleResult(uint32_t tag, int result);
  void HandleCommandResult(uint32_t tag, uint64_t start_bytes, bool named_registered, int result);
  void Finish(uint32_t tag, int error, uint32_t nvme_status = 0);
  int FindEntries(uint32_t count) const;
  void EnterPending();

  const uint32_t depth_;
  const std::function<void(const Offloaded&)> offload_;
  io_uring ring_ = {};
  int notify_fd_ = -1;
  bool created_ = false;
  bool deferred_ = false;
  bool passes_commands_ = false;
  uint32_t in_flight_ = 0;
  uint32_t commands_ = 0;
  bool unsubmitted_ = false;
  std::vector<Request> requests_;
  std::vector<Target> targets_;
  std::vector<Buffer> buffers_;
  // Entries of the kernel's table that are taken; empty when it doesn't support sparse tables.
  std::vector<bool> entries_;
  std::deque<Completion> finished_;
  // One for each tag: what a command in flight refers to stays.
  std::vector<DeallocateRange> ranges_;
};

}  // namespace napi_nvme

#endif  // NAPI_NVME_RING_H_
