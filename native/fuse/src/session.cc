#include "session.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "request_check.h"

namespace holdfast {
namespace {

constexpr size_t kDevicesMax = 16;
// An answer's parts: its header, and what the engine names.
constexpr size_t kPartsMax = 1 + 320;

template <typename T>
T Load(const uint8_t* at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

void SetNonBlocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    throw std::system_error(errno, std::generic_category(), "the FUSE descriptor");
  }
}

}  // namespace

Session::Session(std::vector<Descriptor> devices, std::shared_ptr<Ledger> its_ledger, const SessionSettings& settings,
                 std::function<void()> wake)
    : events(std::move(wake)),
      ledger(std::move(its_ledger)),
      nodes(ledger, settings.attributes_max, settings.names_max),
      slots(ledger, settings.small_slots, settings.large_slots, settings.init.max_write),
      settings_(settings),
      stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!stop_) throw std::system_error(errno, std::generic_category(), "eventfd");
  devices_.reserve(kDevicesMax);
  for (Descriptor& device : devices) {
    SetNonBlocking(device.get());
    devices_.push_back(std::make_unique<Descriptor>(std::move(device)));
  }
  notifier =
      std::make_unique<Notifier>(devices_[0]->get(), &events, settings.notifier_threads, settings.notifications_max);
}

Session::~Session() { Close(); }

void Session::Start() {
  std::lock_guard lock(devices_mutex_);
  for (uint32_t i = static_cast<uint32_t>(readers_.size()); i < devices_.size(); ++i) {
    readers_.emplace_back([this, i] { Read(i); });
    pthread_setname_np(readers_.back().native_handle(), "hf-fuse-read");
  }
}

int Session::AddReader() {
  {
    std::lock_guard lock(devices_mutex_);
    if (closed_) return ESHUTDOWN;
    if (devices_.size() >= kDevicesMax) return EMFILE;
    Descriptor clone(open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!clone) return errno;
    uint32_t of = static_cast<uint32_t>(devices_[0]->get());
    if (ioctl(clone.get(), FUSE_DEV_IOC_CLONE, &of) != 0) return errno;
    devices_.push_back(std::make_unique<Descriptor>(std::move(clone)));
  }
  Start();
  return 0;
}

std::vector<int> Session::descriptors() const {
  std::lock_guard lock(devices_mutex_);
  std::vector<int> all;
  for (const auto& device : devices_) all.push_back(device->get());
  return all;
}

void Session::Read(uint32_t device) {
  Reader mine;
  int fd;
  {
    std::lock_guard lock(devices_mutex_);
    fd = devices_[device]->get();
  }
  while (!stopped_.load(std::memory_order_acquire) && slots.WaitForRoom(&mine.large, &mine.small)) {
    uint8_t* bytes = slots.ReadInto(*mine.large);
    const ssize_t length = read(fd, bytes, slots.ReadBytesMax());
    if (length > 0) {
      Handle(device, &mine, bytes, static_cast<size_t>(length));
      continue;
    }
    // ENOENT: the request was interrupted before it was read whole.
    if (length < 0 && (errno == EINTR || errno == ENOENT)) continue;
    if (length < 0 && errno == EAGAIN) {
      pollfd both[2] = {{fd, POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      poll(both, 2, -1);
      continue;
    }
    events.Post({EventKind::kEnded, static_cast<double>(length == 0 ? ENODEV : errno)});
    break;
  }
  slots.GiveBack(mine.large);
  slots.GiveBack(mine.small);
}

bool Session::EndsWell(uint32_t opcode) {
  return opcode == FUSE_FLUSH || opcode == FUSE_RELEASE || opcode == FUSE_RELEASEDIR;
}

void Session::Handle(uint32_t device, Reader* mine, const uint8_t* bytes, size_t length) {
  if (length < kHeaderBytes) {
    counters.bad_length++;
    return;
  }
  const auto header = Load<fuse_in_header>(bytes);
  counters.bytes_in += length;
  if (header.opcode <= kOpcodeMax) counters.requests[header.opcode]++;
  switch (header.opcode) {
    case FUSE_INIT:
      return Agree(device, header, bytes, length);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
      return Forget(header, bytes, length);
    case FUSE_INTERRUPT: {
      if (length < kHeaderBytes + sizeof(fuse_interrupt_in)) {
        counters.bad_length++;
        return;
      }
      counters.interrupts++;
      const auto slot = slots.Interrupt(Load<fuse_interrupt_in>(bytes + kHeaderBytes).unique);
      if (slot) events.Post({EventKind::kInterrupt, static_cast<double>(*slot)});
      return;
    }
    case FUSE_NOTIFY_REPLY:
      return;  // nobody retrieves; such a thing wants no answer
    case FUSE_DESTROY:
      Reply(device, header.unique, 0, nullptr, 0);
      return;
    default:
      break;
  }
  const RequestFit fit = CheckRequest(bytes, length);
  int error = 0;
  if (fit == RequestFit::kUnknown) {
    counters.unknown++;
    error = ENOSYS;
  } else if (fit == RequestFit::kBadLength) {
    counters.bad_length++;
    error = EIO;
  } else if (!nodes.IsLive(header.nodeid)) {
    counters.stale_node++;
    error = ESTALE;
  } else if (const int refuse = refuse_.load(std::memory_order_acquire); refuse != 0) {
    counters.refused++;
    Reply(device, header.unique, EndsWell(header.opcode) ? 0 : refuse, nullptr, 0);
    return;
  }
  if (error != 0) {
    Reply(device, header.unique, error, nullptr, 0);
    return;
  }
  if ((header.unique & kUniqueResent) == 0 && Hit(device, header, bytes)) return;

  const bool fits_small = length <= kSmallSlotBytes;
  std::optional<uint32_t>* whose = fits_small ? &mine->small : &mine->large;
  const uint32_t slot = **whose;
  if (fits_small) memcpy(slots.At(slot), bytes, length);
  SlotId id;
  const Slots::Arrival arrival = slots.Enter(slot, device, header, &id);
  if ((header.unique & kUniqueResent) != 0) counters.resent++;
  if (arrival == Slots::Arrival::kAgain) return;
  whose->reset();
  const uint8_t* at = fits_small ? slots.At(slot) : bytes;
  events.Post({EventKind::kRequest, static_cast<double>(id), static_cast<double>(at - slots.memory()),
               static_cast<double>(length)});
  if (arrival == Slots::Arrival::kInterrupted) {
    counters.interrupts_early++;
    events.Post({EventKind::kInterrupt, static_cast<double>(id)});
  }
  // Refusing began between the look above and now: what Refuse found out didn't have this one.
  if (const int refuse = refuse_.load(std::memory_order_seq_cst); refuse != 0) {
    if (Answer(id, EndsWell(header.opcode) ? 0 : refuse, nullptr, 0) != kNotYours) counters.refused++;
  }
}

bool Session::Hit(uint32_t device, const fuse_in_header& header, const uint8_t* bytes) {
  const auto send = [this, device, &header](const void* body, size_t length, int32_t error) {
    iovec part{const_cast<void*>(body), length};
    return Reply(device, header.unique, -error, &part, length == 0 ? 0 : 1) == 0;
  };
  if (header.opcode == FUSE_GETATTR || header.opcode == kOpStatx) {
    const bool answered = header.opcode == FUSE_GETATTR ? nodes.AnswerGetattr(header.nodeid, send)
                                                        : nodes.AnswerStatx(header.nodeid, send);
    if (!answered) return false;
    counters.attribute_hits++;
    return true;
  }
  if (header.opcode == FUSE_LOOKUP) {
    // CheckRequest saw its NUL.
    if (!nodes.AnswerLookup(header.nodeid, reinterpret_cast<const char*>(bytes + kHeaderBytes), send)) return false;
    counters.lookup_hits++;
    return true;
  }
  return false;
}

void Session::Forget(const fuse_in_header& header, const uint8_t* bytes, size_t length) {
  const auto one = [this](uint64_t node, uint64_t count) {
    if (nodes.Forget(node, count)) events.Post({EventKind::kForgotten, static_cast<double>(node)});
  };
  if (header.opcode == FUSE_FORGET) {
    if (length != kHeaderBytes + sizeof(fuse_forget_in)) {
      counters.bad_length++;
      return;
    }
    one(header.nodeid, Load<fuse_forget_in>(bytes + kHeaderBytes).nlookup);
    return;
  }
  const size_t head = kHeaderBytes + sizeof(fuse_batch_forget_in);
  const size_t count = length < head ? 0 : Load<fuse_batch_forget_in>(bytes + kHeaderBytes).count;
  if (length < head || length - head != count * sizeof(fuse_forget_one)) {
    counters.bad_length++;
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const auto forget = Load<fuse_forget_one>(bytes + head + i * sizeof(fuse_forget_one));
    one(forget.nodeid, forget.nlookup);
  }
}

void Session::Agree(uint32_t device, const fuse_in_header& header, const uint8_t* bytes, size_t length) {
  Agreement agreement = AgreeOn(bytes + kHeaderBytes, length - kHeaderBytes, settings_.init);
  if (agreement.error != 0) {
    Reply(device, header.unique, agreement.error, nullptr, 0);
    events.Post({EventKind::kEnded, static_cast<double>(agreement.error)});
    return;
  }
  LedgerHeader& agreed = ledger->header();
  agreed.minor = agreement.reply.minor;
  agreed.flags = agreement.flags;
  agreed.max_write = agreement.reply.max_write;
  agreed.max_readahead = agreement.reply.max_readahead;
  agreed.agreed.store(1, std::memory_order_release);
  iovec part{&agreement.reply, sizeof agreement.reply};
  Reply(device, header.unique, 0, &part, 1);
  events.Post({EventKind::kAgreed, static_cast<double>(agreement.reply.minor),
               static_cast<double>(agreement.reply.flags), static_cast<double>(agreement.reply.flags2)});
}

int Session::Reply(uint32_t device, uint64_t unique, int error, iovec* body, size_t parts) {
  fuse_out_header header{};
  header.error = -error;
  header.unique = unique;
  size_t length = sizeof header;
  iovec all[kPartsMax];
  all[0] = {&header, sizeof header};
  for (size_t i = 0; i < parts; ++i) {
    all[1 + i] = body[i];
    length += body[i].iov_len;
  }
  header.len = static_cast<uint32_t>(length);
  int fd;
  {
    std::lock_guard lock(devices_mutex_);
    fd = devices_[device]->get();
  }
  for (;;) {
    if (writev(fd, all, static_cast<int>(1 + parts)) >= 0) {
      counters.answers++;
      counters.bytes_out += length;
      return 0;
    }
    if (errno == EINTR) continue;
    counters.answers_refused++;
    return errno;
  }
}

int Session::Answer(SlotId id, int error, iovec* body, size_t parts) {
  if (parts > kPartsMax - 1) return EINVAL;
  auto taken = slots.Take(id);
  if (!taken) return kNotYours;
  int result = Reply(taken->device, taken->unique, error, body, parts);
  while (result == ENOENT) {
    const auto renamed = slots.RenamedFrom(*taken);
    if (!renamed) break;
    taken = renamed;
    result = Reply(taken->device, taken->unique, error, body, parts);
  }
  // What the kernel doesn't take as an answer (too long, say) would leave its caller waiting for ever.
  if (result != 0 && result != ENOENT && result != ENODEV) Reply(taken->device, taken->unique, EIO, nullptr, 0);
  slots.Done(*taken);
  return result;
}

void Session::Refuse(int error) {
  refuse_.store(error, std::memory_order_seq_cst);
  for (const SlotId id : slots.Out()) {
    const auto taken = slots.Take(id);
    if (!taken) continue;
    Reply(taken->device, taken->unique, EndsWell(taken->opcode) ? 0 : error, nullptr, 0);
    slots.Done(*taken);
    counters.refused++;
  }
}

void Session::Close() {
  {
    std::lock_guard lock(devices_mutex_);
    if (closed_) return;
    closed_ = true;
  }
  Refuse(ENOTCONN);
  notifier->Stop();
  notifier->Join();
  stopped_.store(true, std::memory_order_release);
  slots.Stop();
  eventfd_write(stop_.get(), 1);
  for (std::thread& reader : readers_) reader.join();
  // Whoever else holds the connection goes on; if nobody does, the kernel ends it now and not when memory is collected.
  std::lock_guard lock(devices_mutex_);
  devices_.clear();
}

}  // namespace holdfast
