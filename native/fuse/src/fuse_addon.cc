// The Node-API boundary of the mount's transport; src/native/fuse.ts is its typed face and documents every call.
//
// State: one Handle per session, an external tagged with kTag. Its end has three parts that come in this order: Close
// runs on a thread of its own (it may wait for the kernel), the uv_async is closed on the loop, JavaScript lets go. An
// environment that ends closes its sessions by an asynchronous cleanup hook and is kept waiting until they are.
// What could go wrong and is answered: wrong argument types (TypeError), a closed session (Error), a slot that was
// answered (a number says so), a callback that throws (uncaughtException), memory still viewed after a close (the slots
// and the ledger are kept until their ArrayBuffers are collected).
#include <fcntl.h>
#include <node_api.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <uv.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "addon_arguments.h"
#include "request_check.h"
#include "session.h"

namespace holdfast {
namespace {

constexpr napi_type_tag kTag = {0x5d0c9b1e7f4a2233ull, 0xb1c7e90d64f20a58ull};
constexpr size_t kEventNumbers = 4;
constexpr size_t kSegmentsMax = 300;
constexpr size_t kNotifyBytesMax = 65536;

napi_value Number(napi_env env, double value) {
  napi_value out = nullptr;
  napi_create_double(env, value, &out);
  return out;
}
napi_value Boolean(napi_env env, bool value) {
  napi_value out = nullptr;
  napi_get_boolean(env, value, &out);
  return out;
}

struct Bytes {
  uint8_t* base;
  size_t length;
};

class Handle {
 public:
  explicit Handle(napi_env env) : env_(env) {}

  // Throws Fault or what Session throws.
  void Open(uv_loop_t* loop, std::vector<Descriptor> devices, std::shared_ptr<Ledger> ledger,
            const SessionSettings& settings, napi_value on_events, napi_value on_closed, napi_value numbers,
            napi_value pool) {
    napi_typedarray_type type;
    void* data = nullptr;
    size_t length = 0;
    if (napi_get_typedarray_info(env_, numbers, &type, &length, &data, nullptr, nullptr) != napi_ok ||
        type != napi_float64_array || length < kEventNumbers) {
      throw Fault{"events go into a Float64Array"};
    }
    numbers_ = static_cast<double*>(data);
    events_max_ = length / kEventNumbers;
    void* pool_data = nullptr;
    if (napi_get_arraybuffer_info(env_, pool, &pool_data, &pool_.length) != napi_ok) {
      throw Fault{"the pool is an ArrayBuffer"};
    }
    pool_.base = static_cast<uint8_t*>(pool_data);
    napi_valuetype on_events_type, on_closed_type;
    if (napi_typeof(env_, on_events, &on_events_type) != napi_ok || on_events_type != napi_function ||
        napi_typeof(env_, on_closed, &on_closed_type) != napi_ok || on_closed_type != napi_function) {
      throw Fault{"callbacks are functions"};
    }
    async_ = new uv_async_t{};
    if (uv_async_init(loop, async_, Woken) != 0) {
      delete async_;
      throw Fault{"no wake-up for this event loop"};
    }
    async_->data = this;
    try {
      session_ =
          std::make_shared<Session>(std::move(devices), std::move(ledger), settings, [this] { uv_async_send(async_); });
    } catch (...) {
      uv_close(reinterpret_cast<uv_handle_t*>(async_),
               [](uv_handle_t* handle) { delete reinterpret_cast<uv_async_t*>(handle); });
      throw;
    }
    napi_create_reference(env_, on_events, 1, &on_events_);
    napi_create_reference(env_, on_closed, 1, &on_closed_);
    napi_create_reference(env_, numbers, 1, &numbers_ref_);
    napi_create_reference(env_, pool, 1, &pool_ref_);
    napi_value resource, name;
    napi_create_object(env_, &resource);
    napi_create_string_utf8(env_, "holdfast.fuse", NAPI_AUTO_LENGTH, &name);
    napi_async_init(env_, resource, name, &context_);
    napi_add_async_cleanup_hook(env_, EnvironmentEnds, this, &hook_);
  }

  bool closing() const { return closer_.joinable() || closed_; }
  Session& session() const { return *session_; }
  const std::shared_ptr<Session>& shared() const { return session_; }
  const Bytes& pool() const { return pool_; }

  void BeginClose() {
    if (closing()) return;
    closer_ = std::thread([this] {
      session_->Close();
      close_done_.store(true, std::memory_order_release);
      uv_async_send(async_);
    });
  }

  static void Finalize(napi_env, void* data, void*) {
    auto* self = static_cast<Handle*>(data);
    self->finalized_ = true;
    if (self->closed_) {
      delete self;
      return;
    }
    self->BeginClose();
  }

 private:
  static void Woken(uv_async_t* async) { static_cast<Handle*>(async->data)->OnWoken(); }

  void OnWoken() {
    if (!ending_ && !finalized_) TellEvents();
    if (!close_done_.load(std::memory_order_acquire) || uv_closing_) return;
    uv_closing_ = true;
    closer_.join();
    if (!ending_ && !finalized_) TellEvents();  // what came until the last thread was gone
    uv_close(reinterpret_cast<uv_handle_t*>(async_), [](uv_handle_t* handle) {
      auto* self = static_cast<Handle*>(handle->data);
      delete reinterpret_cast<uv_async_t*>(handle);
      self->OnClosed();
    });
  }

  void TellEvents() {
    session_->events.Take(&taken_);
    for (size_t from = 0; from < taken_.size();) {
      const size_t count = std::min(events_max_, taken_.size() - from);
      for (size_t i = 0; i < count; ++i) {
        const Event& event = taken_[from + i];
        double* out = numbers_ + i * kEventNumbers;
        out[0] = static_cast<double>(event.kind);
        out[1] = event.a;
        out[2] = event.b;
        out[3] = event.c;
      }
      from += count;
      Call(on_events_, static_cast<double>(count));
    }
  }

  void OnClosed() {
    closed_ = true;
    if (!ending_ && !finalized_) Call(on_closed_, 0);
    // From here on nothing needs the environment; the rest goes when JavaScript lets go of the external.
    for (napi_ref ref : {on_events_, on_closed_, numbers_ref_, pool_ref_}) {
      if (ref != nullptr) napi_delete_reference(env_, ref);
    }
    if (context_ != nullptr) napi_async_destroy(env_, context_);
    const bool last = finalized_;
    if (hook_ != nullptr) napi_remove_async_cleanup_hook(hook_);
    if (last) delete this;
  }

  static void EnvironmentEnds(napi_async_cleanup_hook_handle, void* data) {
    auto* self = static_cast<Handle*>(data);
    self->ending_ = true;
    self->BeginClose();
  }

  void Call(napi_ref callback_ref, double argument) {
    napi_handle_scope scope;
    if (napi_open_handle_scope(env_, &scope) != napi_ok) return;
    napi_value receiver, callback, value;
    napi_create_double(env_, argument, &value);
    napi_get_global(env_, &receiver);
    napi_get_reference_value(env_, callback_ref, &callback);
    if (napi_make_callback(env_, context_, receiver, callback, 1, &value, nullptr) == napi_pending_exception) {
      napi_value exception;
      if (napi_get_and_clear_last_exception(env_, &exception) == napi_ok) napi_fatal_exception(env_, exception);
    }
    napi_close_handle_scope(env_, scope);
  }

  napi_env const env_;
  std::shared_ptr<Session> session_;
  uv_async_t* async_ = nullptr;
  std::thread closer_;
  std::atomic<bool> close_done_{false};
  std::vector<Event> taken_;
  double* numbers_ = nullptr;
  size_t events_max_ = 0;
  Bytes pool_{};
  napi_async_context context_ = nullptr;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  napi_ref on_events_ = nullptr;
  napi_ref on_closed_ = nullptr;
  napi_ref numbers_ref_ = nullptr;
  napi_ref pool_ref_ = nullptr;
  bool uv_closing_ = false;
  bool closed_ = false;
  bool finalized_ = false;
  bool ending_ = false;
};

class Arguments : public CheckedArguments<12> {
 public:
  using CheckedArguments::CheckedArguments;

  Handle* TheHandle() const { return static_cast<Handle*>(Tagged(0, kTag, "not a session of this addon")); }
  Handle* OpenHandle() const {
    Handle* handle = TheHandle();
    if (handle->closing()) throw Fault{"the session is closed"};
    return handle;
  }
  bool Flag(size_t index) const { return U32(index, 1) != 0; }
  double Any(size_t index) const {
    double value = 0;
    if (index >= count_ || napi_get_value_double(env_, values_[index], &value) != napi_ok) {
      throw Fault{"an argument is not a number"};
    }
    return value;
  }
  std::string String(size_t index) const {
    size_t length = 0;
    if (index >= count_ || napi_get_value_string_utf8(env_, values_[index], nullptr, 0, &length) != napi_ok ||
        length > 65536) {
      throw Fault{"an argument is not a string"};
    }
    std::string text(length + 1, '\0');
    napi_get_value_string_utf8(env_, values_[index], text.data(), text.size(), &length);
    text.resize(length);
    return text;
  }
  Bytes Array(size_t index) const {
    const auto bytes = Uint8Array(index);
    return {bytes.data(), bytes.size()};
  }
  // Float64Array: `multiple` numbers for each item, at most `items_max` items.
  const double* Doubles(size_t index, size_t multiple, size_t items_max, size_t* items) const {
    constexpr const char* kFault = "an argument is not a Float64Array of the right length";
    const auto numbers = Elements<const double>(index, napi_float64_array, kFault);
    if (numbers.size() % multiple != 0 || numbers.size() / multiple > items_max) throw Fault{kFault};
    *items = numbers.size() / multiple;
    return numbers.data();
  }
  std::vector<Descriptor> Devices(size_t index) const {
    uint32_t count = 0;
    if (index >= count_ || napi_get_array_length(env_, values_[index], &count) != napi_ok || count == 0 || count > 16) {
      throw Fault{"devices are an array of descriptors"};
    }
    std::vector<Descriptor> devices;
    for (uint32_t i = 0; i < count; ++i) {
      napi_value value;
      int32_t fd = -1;
      if (napi_get_element(env_, values_[index], i, &value) != napi_ok ||
          napi_get_value_int32(env_, value, &fd) != napi_ok) {
        throw Fault{"devices are an array of descriptors"};
      }
      Descriptor mine(fcntl(fd, F_DUPFD_CLOEXEC, 3));
      if (!mine) throw std::system_error(errno, std::generic_category(), "dup of a FUSE descriptor");
      devices.push_back(std::move(mine));
    }
    return devices;
  }
};

template <napi_value (*body)(napi_env, const Arguments&)>
constexpr napi_callback Guarded = GuardedCall<Arguments, body>;

// --- what may wait for the kernel, on a thread of the pool ---

struct Work {
  std::function<int()> body;
  int result = 0;
  napi_async_work work = nullptr;
  napi_deferred deferred = nullptr;
};

// A promise of what `body` returns.
napi_value Promise(napi_env env, const char* name, std::function<int()> body) {
  auto* work = new Work{std::move(body)};
  napi_value promise, resource_name;
  napi_create_promise(env, &work->deferred, &promise);
  napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &resource_name);
  napi_create_async_work(
      env, nullptr, resource_name,
      [](napi_env, void* data) {
        auto* w = static_cast<Work*>(data);
        w->result = w->body();
      },
      [](napi_env e, napi_status status, void* data) {
        std::unique_ptr<Work> w(static_cast<Work*>(data));
        napi_resolve_deferred(e, w->deferred, Number(e, status == napi_ok ? w->result : ECANCELED));
        napi_delete_async_work(e, w->work);
      },
      work, &work->work);
  napi_queue_async_work(env, work->work);
  return promise;
}

// The reader's look at a request, for tests of the two against each other: 0 fits, 1 unknown, 2 bad length.
napi_value Check(napi_env env, const Arguments& a) {
  const Bytes bytes = a.Array(0);
  return Number(env, static_cast<double>(CheckRequest(bytes.base, bytes.length)));
}

napi_value OpenDevice(napi_env env, const Arguments&) {
  const int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  return Number(env, fd < 0 ? -errno : fd);
}

napi_value CloseDescriptor(napi_env env, const Arguments& a) {
  return Number(env, close(static_cast<int>(a.U32(0, 1 << 30))) == 0 ? 0 : errno);
}

napi_value Mount(napi_env env, const Arguments& a) {
  const uint32_t fd = a.U32(0, 1 << 30);
  const std::string source = a.String(1), target = a.String(2), type = a.String(3);
  const uint32_t flags = a.U32(4);
  const std::string options = a.String(5);
  return Promise(env, "holdfast.fuse.mount", [=] {
    struct stat status;
    if (stat(target.c_str(), &status) != 0) return errno;
    if (!S_ISDIR(status.st_mode)) return ENOTDIR;
    const std::string all = "fd=" + std::to_string(fd) + ",rootmode=40000,user_id=0,group_id=0" + options;
    return mount(source.c_str(), target.c_str(), type.c_str(), flags, all.c_str()) == 0 ? 0 : errno;
  });
}

napi_value Unmount(napi_env env, const Arguments& a) {
  const std::string target = a.String(0);
  const int flags = static_cast<int>(a.U32(1, 255));
  return Promise(env, "holdfast.fuse.unmount",
                 [=] { return umount2(target.c_str(), flags | UMOUNT_NOFOLLOW) == 0 ? 0 : errno; });
}

napi_value MountControl(napi_env env, const Arguments&) {
  return Promise(env, "holdfast.fuse.control", [] {
    return mount("fusectl", "/sys/fs/fuse/connections", "fusectl", 0, nullptr) == 0 || errno == EBUSY ? 0 : errno;
  });
}

// --- sessions ---

napi_value LedgerCreate(napi_env env, const Arguments& a) {
  const auto ledger =
      Ledger::Create(a.U32(0, kSlotCountMax), std::max(2u, a.U32(1, kNodeCapacityMax)), a.U32(2, kHandleCapacityMax));
  const int fd = fcntl(ledger->fd(), F_DUPFD_CLOEXEC, 3);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "dup of the mount's ledger");
  return Number(env, fd);
}

// (devices, ledger, settings, events, pool, onEvents, onClosed)
napi_value CreateSession(napi_env env, const Arguments& a) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Fault{"no event loop"};
  size_t count = 0;
  const double* numbers = a.Doubles(2, 9, 1, &count);
  if (count != 1) throw Fault{"settings are nine numbers"};
  const double limits[9] = {kSlotCountMax, kSlotCountMax, 1 << 24, 1 << 30, 65535, 64, 1 << 20, 1 << 26, 1 << 26};
  for (int i = 0; i < 9; ++i) {
    if (!(numbers[i] >= 1) || numbers[i] > limits[i] || numbers[i] != std::floor(numbers[i])) {
      throw Fault{"a setting is out of its range"};
    }
  }
  SessionSettings settings{};
  settings.small_slots = static_cast<uint32_t>(numbers[0]);
  settings.large_slots = static_cast<uint32_t>(numbers[1]);
  settings.init = {static_cast<uint32_t>(numbers[2]), static_cast<uint32_t>(numbers[3]),
                   static_cast<uint16_t>(numbers[4])};
  settings.notifier_threads = static_cast<uint32_t>(numbers[5]);
  settings.notifications_max = static_cast<size_t>(numbers[6]);
  settings.attributes_max = static_cast<size_t>(numbers[7]);
  settings.names_max = static_cast<size_t>(numbers[8]);
  if (settings.init.max_write % 4096 != 0) throw Fault{"writes are whole pages"};
  std::vector<Descriptor> devices = a.Devices(0);
  std::shared_ptr<Ledger> ledger = Ledger::Map(static_cast<int>(a.U32(1, 1 << 30)));
  if (settings.small_slots + settings.large_slots > ledger->header().slot_capacity) {
    throw Fault{"the ledger has room for fewer requests"};
  }
  auto handle = std::make_unique<Handle>(env);
  handle->Open(loop, std::move(devices), std::move(ledger), settings, a[5], a[6], a[3], a[4]);
  napi_value external;
  napi_create_external(env, handle.get(), Handle::Finalize, nullptr, &external);
  napi_type_tag_object(env, external, &kTag);
  handle.release();
  return external;
}

// Over memory that lives as long as the session, which the buffer keeps.
napi_value ViewOf(napi_env env, const std::shared_ptr<Session>& session, uint8_t* bytes, size_t length) {
  auto* keep = new std::shared_ptr<Session>(session);
  napi_value buffer = nullptr;
  if (napi_create_external_arraybuffer(
          env, bytes, length, [](napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<Session>*>(hint); },
          keep, &buffer) != napi_ok) {
    delete keep;
    throw Fault{"this Node.js can't make an ArrayBuffer over native memory"};
  }
  return buffer;
}

napi_value SlotMemory(napi_env env, const Arguments& a) {
  Handle* handle = a.OpenHandle();
  return ViewOf(env, handle->shared(), handle->session().slots.memory(), handle->session().slots.memory_bytes());
}
napi_value LedgerMemory(napi_env env, const Arguments& a) {
  Handle* handle = a.OpenHandle();
  return ViewOf(env, handle->shared(), handle->session().ledger->bytes(), handle->session().ledger->length());
}

napi_value Start(napi_env, const Arguments& a) {
  a.OpenHandle()->session().Start();
  return nullptr;
}
napi_value AddReader(napi_env env, const Arguments& a) { return Number(env, a.OpenHandle()->session().AddReader()); }

napi_value Descriptors(napi_env env, const Arguments& a) {
  const std::vector<int> all = a.OpenHandle()->session().descriptors();
  napi_value array;
  napi_create_array_with_length(env, all.size(), &array);
  for (uint32_t i = 0; i < all.size(); ++i) napi_set_element(env, array, i, Number(env, all[i]));
  return array;
}

// (session, id, errno, bytes, length)
napi_value Answer(napi_env env, const Arguments& a) {
  Handle* handle = a.OpenHandle();
  const Bytes bytes = a.Array(3);
  const size_t length = a.U32(4);
  if (length > bytes.length) throw Fault{"an answer longer than its bytes"};
  iovec part{bytes.base, length};
  return Number(env, handle->session().Answer(a.U53(1), static_cast<int>(a.U32(2, 511)), &part, length == 0 ? 0 : 1));
}

// (session, id, segments): pairs of offset and length in the pool.
napi_value AnswerPool(napi_env env, const Arguments& a) {
  Handle* handle = a.OpenHandle();
  size_t count = 0;
  const double* pairs = a.Doubles(2, 2, kSegmentsMax, &count);
  iovec parts[kSegmentsMax];
  const auto pool_bytes = static_cast<double>(handle->pool().length);
  for (size_t i = 0; i < count; ++i) {
    const double offset = pairs[2 * i], bytes = pairs[2 * i + 1];
    if (!(offset >= 0) || !(bytes > 0) || offset != std::floor(offset) || bytes != std::floor(bytes) ||
        offset > pool_bytes || bytes > pool_bytes - offset) {
      throw Fault{"a segment outside of the pool"};
    }
    parts[i] = {handle->pool().base + static_cast<size_t>(offset), static_cast<size_t>(bytes)};
  }
  return Number(env, handle->session().Answer(a.U53(1), 0, parts, count));
}

// (session, id, code, payload)
napi_value Notify(napi_env env, const Arguments& a) {
  Handle* handle = a.OpenHandle();
  const Bytes payload = a.Array(3);
  if (payload.length > kNotifyBytesMax) throw Fault{"a notification too long"};
  return Boolean(env,
                 handle->session().notifier->Submit(static_cast<double>(a.U53(1)), a.U32(2, 64),
                                                    std::vector<uint8_t>(payload.base, payload.base + payload.length)));
}

napi_value Refuse(napi_env, const Arguments& a) {
  a.OpenHandle()->session().Refuse(static_cast<int>(a.U32(1, 511)));
  return nullptr;
}

napi_value Close(napi_env, const Arguments& a) {
  a.TheHandle()->BeginClose();
  return nullptr;
}

napi_value NodeRoot(napi_env, const Arguments& a) {
  a.OpenHandle()->session().nodes.SetRoot(a.U53(1), a.U53(2));
  return nullptr;
}
napi_value NodeAdd(napi_env env, const Arguments& a) {
  return Number(env, static_cast<double>(a.OpenHandle()->session().nodes.Add(a.U53(1), a.U53(2))));
}
napi_value NodeLookedUp(napi_env env, const Arguments& a) {
  return Boolean(env, a.OpenHandle()->session().nodes.LookedUp(a.U53(1), a.U53(2)));
}
napi_value NodeRemove(napi_env env, const Arguments& a) {
  return Boolean(env, a.OpenHandle()->session().nodes.Remove(a.U53(1)));
}
napi_value PutAttributes(napi_env env, const Arguments& a) {
  const Bytes bytes = a.Array(2);
  KnownAttributes attributes;
  if (bytes.length != sizeof attributes) throw Fault{"attributes of another length"};
  memcpy(&attributes, bytes.base, sizeof attributes);
  return Boolean(env, a.OpenHandle()->session().nodes.PutAttributes(a.U53(1), attributes));
}
std::string_view Name(const Bytes& bytes) {
  if (bytes.length == 0 || bytes.length > 1024) throw Fault{"a name too short or too long"};
  return {reinterpret_cast<const char*>(bytes.base), bytes.length};
}
napi_value PutName(napi_env env, const Arguments& a) {
  return Boolean(env, a.OpenHandle()->session().nodes.PutName(a.U53(1), Name(a.Array(2)), a.U53(3), a.U53(4)));
}
napi_value TakeBack(napi_env, const Arguments& a) {
  a.OpenHandle()->session().nodes.TakeBack(a.U53(1));
  return nullptr;
}
napi_value TakeBackAttributes(napi_env, const Arguments& a) {
  a.OpenHandle()->session().nodes.TakeBackAttributes(a.U53(1));
  return nullptr;
}
napi_value TakeBackName(napi_env, const Arguments& a) {
  a.OpenHandle()->session().nodes.TakeBackName(a.U53(1), Name(a.Array(2)));
  return nullptr;
}
napi_value SetLeaseDeadline(napi_env, const Arguments& a) {
  a.OpenHandle()->session().nodes.SetLeaseDeadline(a.Any(1));
  return nullptr;
}

napi_value Counters(napi_env env, const Arguments& a) {
  Session& session = a.OpenHandle()->session();
  const SessionCounters& c = session.counters;
  const std::pair<const char*, uint64_t> fields[] = {
      {"unknown", c.unknown},
      {"badLength", c.bad_length},
      {"staleNode", c.stale_node},
      {"attributeHits", c.attribute_hits},
      {"lookupHits", c.lookup_hits},
      {"interrupts", c.interrupts},
      {"interruptsEarly", c.interrupts_early},
      {"resent", c.resent},
      {"answers", c.answers},
      {"answersRefused", c.answers_refused},
      {"refused", c.refused},
      {"bytesIn", c.bytes_in},
      {"bytesOut", c.bytes_out},
      {"nodes", session.nodes.live_count()},
      {"slotsFree", session.slots.free_small()},
      {"notificationsPending", session.notifier->pending()},
  };
  napi_value result, requests;
  napi_create_object(env, &result);
  for (const auto& [name, value] : fields) {
    napi_set_named_property(env, result, name, Number(env, static_cast<double>(value)));
  }
  napi_create_array_with_length(env, c.requests.size(), &requests);
  for (uint32_t i = 0; i < c.requests.size(); ++i) {
    napi_set_element(env, requests, i, Number(env, static_cast<double>(c.requests[i].load())));
  }
  napi_set_named_property(env, result, "requests", requests);
  return result;
}

napi_value Constants(napi_env env) {
  const std::pair<const char*, double> fields[] = {
      {"smallSlotBytes", kSmallSlotBytes},
      {"headerBytes", kHeaderBytes},
      {"knownAttributesBytes", sizeof(KnownAttributes)},
      {"ledgerPageBytes", kLedgerPageBytes},
      {"handleRecordBytes", kHandleRecordBytes},
      {"handlesOffsetAt", offsetof(LedgerHeader, handles_offset)},
      {"handleCapacityAt", offsetof(LedgerHeader, handle_capacity)},
      {"nodeCapacityAt", offsetof(LedgerHeader, node_capacity)},
      {"slotCapacityAt", offsetof(LedgerHeader, slot_capacity)},
      {"placesUsedAt", offsetof(LedgerHeader, places_used)},
      {"handlesUsedAt", offsetof(LedgerHeader, handles_used)},
      {"inFlightRecordBytes", sizeof(InFlightRecord)},
      {"nodeRecordBytes", sizeof(NodeRecord)},
      {"opcodeMax", kOpcodeMax},
  };
  napi_value result;
  napi_create_object(env, &result);
  for (const auto& [name, value] : fields) napi_set_named_property(env, result, name, Number(env, value));
  return result;
}

napi_value Init(napi_env env, napi_value exports) {
  const std::pair<const char*, napi_callback> functions[] = {
      {"checkRequest", Guarded<Check>},
      {"openDevice", Guarded<OpenDevice>},
      {"closeDescriptor", Guarded<CloseDescriptor>},
      {"mount", Guarded<Mount>},
      {"unmount", Guarded<Unmount>},
      {"mountControl", Guarded<MountControl>},
      {"createLedger", Guarded<LedgerCreate>},
      {"createSession", Guarded<CreateSession>},
      {"slotMemory", Guarded<SlotMemory>},
      {"ledgerMemory", Guarded<LedgerMemory>},
      {"start", Guarded<Start>},
      {"addReader", Guarded<AddReader>},
      {"descriptors", Guarded<Descriptors>},
      {"answer", Guarded<Answer>},
      {"answerPool", Guarded<AnswerPool>},
      {"notify", Guarded<Notify>},
      {"refuse", Guarded<Refuse>},
      {"close", Guarded<Close>},
      {"nodeRoot", Guarded<NodeRoot>},
      {"nodeAdd", Guarded<NodeAdd>},
      {"nodeLookedUp", Guarded<NodeLookedUp>},
      {"nodeRemove", Guarded<NodeRemove>},
      {"putAttributes", Guarded<PutAttributes>},
      {"putName", Guarded<PutName>},
      {"takeBack", Guarded<TakeBack>},
      {"takeBackAttributes", Guarded<TakeBackAttributes>},
      {"takeBackName", Guarded<TakeBackName>},
      {"setLeaseDeadline", Guarded<SetLeaseDeadline>},
      {"counters", Guarded<Counters>},
  };
  ExportFunctions(env, exports, functions);
  napi_set_named_property(env, exports, "constants", Constants(env));
  return exports;
}

}  // namespace
}  // namespace holdfast

NAPI_MODULE(fuse, holdfast::Init)
