// A session serves one mount: its devices (the descriptor and clones of it), one reader thread for each, the slots, the
// node table, the notifier. Knows nothing of JavaScript; what happened is posted to Events.
//
// A reader answers by itself what needs no engine: INIT, FORGETs, what doesn't fit (EIO), what nobody serves (ENOSYS),
// ids that aren't live (ESTALE), and hits. Everything else it hands over.
//
// Life: serving -> refusing -> closed. A session that refuses answers every request itself, FLUSH and RELEASE with
// success (a dying process waits for FLUSH, M7), the rest with an errno: so whatever a notification waits for comes
// (F4), and closing never hangs.
// Fault model: the kernel may go on without us (abort, unmount) at any moment: answers are then refused by it, readers
// end, and say so. Any byte of a request may be wrong.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "descriptor.h"
#include "events.h"
#include "init_reply.h"
#include "ledger.h"
#include "node_table.h"
#include "notifier.h"
#include "slots.h"

namespace holdfast {

struct SessionSettings {
  uint32_t small_slots;
  uint32_t large_slots;
  InitSettings init;
  uint32_t notifier_threads;
  size_t notifications_max;
  size_t attributes_max;
  size_t names_max;
};

struct SessionCounters {
  std::array<std::atomic<uint64_t>, kOpcodeMax + 1> requests{};  // by opcode, all that came
  std::atomic<uint64_t> unknown{0};
  std::atomic<uint64_t> bad_length{0};
  std::atomic<uint64_t> stale_node{0};
  std::atomic<uint64_t> attribute_hits{0};
  std::atomic<uint64_t> lookup_hits{0};
  std::atomic<uint64_t> interrupts{0};
  std::atomic<uint64_t> interrupts_early{0};
  std::atomic<uint64_t> resent{0};
  std::atomic<uint64_t> answers{0};
  std::atomic<uint64_t> answers_refused{0};  // by the kernel: the request was gone
  std::atomic<uint64_t> refused{0};          // by a session that refuses
  std::atomic<uint64_t> bytes_in{0};
  std::atomic<uint64_t> bytes_out{0};
};

class Session {
 public:
  // Takes the descriptors. Throws std::system_error.
  Session(std::vector<Descriptor> devices, std::shared_ptr<Ledger> ledger, const SessionSettings& settings,
          std::function<void()> wake);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void Start();
  // One more reader with a clone of the first device. 0 or an errno.
  int AddReader();
  std::vector<int> descriptors() const;

  static constexpr int kNotYours = -1;
  // The engine's answers: 0, the kernel's errno (ENOENT: the request is gone), or kNotYours for an id that isn't out.
  // `error` is 0 or a positive errno; `body` are the parts behind the header.
  int Answer(SlotId id, int error, iovec* body, size_t parts);

  // From now on everything is answered with an errno, what is out too.
  void Refuse(int error);
  // Refuses, waits for notifications under way, then for the readers. May wait for the kernel: not the engine's thread.
  void Close();

  Events events;
  const std::shared_ptr<Ledger> ledger;
  NodeTable nodes;
  Slots slots;
  SessionCounters counters;
  std::unique_ptr<Notifier> notifier;

 private:
  struct Reader {
    std::optional<uint32_t> large;
    std::optional<uint32_t> small;
  };
  void Read(uint32_t device);
  void Handle(uint32_t device, Reader* mine, const uint8_t* bytes, size_t length);
  bool Hit(uint32_t device, const fuse_in_header& header, const uint8_t* bytes);
  void Forget(const fuse_in_header& header, const uint8_t* bytes, size_t length);
  void Agree(uint32_t device, const fuse_in_header& header, const uint8_t* bytes, size_t length);
  int Reply(uint32_t device, uint64_t unique, int error, iovec* body, size_t parts);
  static bool EndsWell(uint32_t opcode);

  const SessionSettings settings_;
  mutable std::mutex devices_mutex_;
  std::vector<std::unique_ptr<Descriptor>> devices_;
  std::vector<std::thread> readers_;
  Descriptor stop_;  // an eventfd that every reader polls
  std::atomic<bool> stopped_{false};
  std::atomic<int> refuse_{0};
  bool closed_ = false;
};

}  // namespace holdfast
