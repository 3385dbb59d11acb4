// The boundary to JavaScript: the class Engine (one ring, its arenas, its place in the event loop) and what opens and
// allocates.
//
// Lifetime. `Core` outlives the JavaScript object: it ends when the ring is idle and both libuv handles have had their
// close callbacks, whichever of these began it: close(), the garbage collector, or the end of the environment (a worker
// that exits with I/O in flight: the asynchronous cleanup hook keeps the loop running until the kernel has let go of
// the buffers). Buffers are held by strong references while they are attached, so the collector can't take memory that
// the kernel writes into. While I/O is in flight the object itself is referenced.
//
// What could go wrong and doesn't: a closed engine (every method says so), a second close (nothing happens), wrong
// types (TypeError), a wrong `this` (refused by the engine's signature check), a detached buffer (refused at
// submission), a callback that throws (uncaughtException, as from any event), collected while in flight (referenced),
// several engines, several threads (no globals).
#include <errno.h>
#include <napi.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "addon.h"
#include "block_target.h"
#include "ring.h"

namespace napi_nvme {
namespace {

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

class Engine;

// How long the loop may spin before it sleeps: long enough to catch a fast device's answer; nothing where that doesn't
// pay, because the device is slow, or because cores are short: who spins then uses up the time that the scheduler would
// give him for working.
class SpinBudget {
 public:
  explicit SpinBudget(uint32_t max_us) : max_ns_(max_us * uint64_t{1000}) {}
  uint64_t NextNs() {
    if (max_ns_ == 0) return 0;
    if (pause_ == 0) return max_ns_;
    pause_--;
    return 0;
  }
  void Hit() {
    misses_ = 0;
    // It is a system call; not for each of many hits.
    if (++hits_ % kHitsPerLook == 0 && !Preempted()) pause_length_ = kPauseMin;
  }
  void Miss() {
    if (Preempted() || ++misses_ < kMissesMax) return;
    misses_ = 0;
    Pause();
  }
  // The spinning itself stood still: so does a virtual machine's processor that its host has taken away, and nothing
  // else tells of that.
  void Stalled() { Pause(); }

 private:
  // Whether others wanted this core since the last look.
  bool Preempted() {
    rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) != 0) return false;
    const bool preempted = usage.ru_nivcsw != preemptions_;
    preemptions_ = usage.ru_nivcsw;
    if (preempted) Pause();
    return preempted;
  }
  // Now and then it is tried again, ever more rarely while it goes on like this.
  void Pause() {
    pause_ = pause_length_;
    pause_length_ = std::min(pause_length_ * 2, kPauseMax);
  }

  static constexpr uint32_t kMissesMax = 3;
  static constexpr uint32_t kHitsPerLook = 16;
  static constexpr uint32_t kPauseMin = 32;
  static constexpr uint32_t kPauseMax = 4096;
  const uint64_t max_ns_;
  uint32_t misses_ = 0;
  uint32_t hits_ = 0;
  uint32_t pause_ = 0;
  uint32_t pause_length_ = kPauseMin;
  long preemptions_ = 0;
};

struct Core {
  Core(uint32_t depth, uint32_t spin_us) : submissions(depth), completions(depth), control(1), spin(spin_us) {}

  std::unique_ptr<Ring> ring;
  std::vector<Instruction> submissions;
  std::vector<Completion> completions;
  std::vector<Control> control;
  SpinBudget spin;
  uv_loop_t* loop = nullptr;
  uv_poll_t poll;
  uv_prepare_t prepare;
  // Active: the loop doesn't sleep.
  uv_idle_t awake;
  // Null once the object is gone.
  Engine* engine = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;
  bool watching = false;
  bool closing = false;
  int handles_open = 0;
  bool environment_ends = false;
  // The arenas' memory belongs to this; the external ArrayBuffers hold it, too.
  std::shared_ptr<Core> self;
};

class Engine : public Napi::ObjectWrap<Engine> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(
        env, "Engine",
        {InstanceMethod("attach", &Engine::Attach), InstanceMethod("detach", &Engine::Detach),
         InstanceMethod("open", &Engine::Open), InstanceMethod("openNamespace", &Engine::OpenNamespace),
         InstanceMethod("closeTarget", &Engine::CloseTarget),
         InstanceAccessor("passesCommands", &Engine::PassesCommands, nullptr),
         InstanceMethod("submit", &Engine::Submit), InstanceMethod("poll", &Engine::Poll),
         InstanceMethod("close", &Engine::Close), InstanceAccessor("submissions", &Engine::Submissions, nullptr),
         InstanceAccessor("completions", &Engine::Completions, nullptr),
         InstanceAccessor("control", &Engine::ControlWords, nullptr)});
  }

  // new Engine(depth, spinUs, onCompletions: (count) => void)
  explicit Engine(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Engine>(info) {
    const Napi::Env env = info.Env();
    const uint32_t depth = Number(info, 0, 1, kDepthMax);
    const uint32_t spin_us = Number(info, 1, 0, 1000);
    if (!info[2].IsFunction()) throw Napi::TypeError::New(env, "the third argument is a function");
    auto core = std::make_shared<Core>(depth, spin_us);
    Core* raw = core.get();
    const int error = Ring::Create(
        depth, [raw](const Ring::Offloaded& work) { Offload(raw, work); }, &core->ring);
    if (error != 0) throw SystemError(env, error, "io_uring_setup", "");
    napi_get_uv_event_loop(env, &core->loop);
    if (uv_poll_init(core->loop, &core->poll, core->ring->notify_fd()) != 0)
      throw Napi::Error::New(env, "the event loop can't watch the ring");
    uv_prepare_init(core->loop, &core->prepare);
    uv_idle_init(core->loop, &core->awake);
    core->poll.data = core->prepare.data = core->awake.data = raw;
    core->handles_open = kHandles;
    uv_poll_start(&core->poll, UV_READABLE, &Engine::OnReadable);
    uv_prepare_start(&core->prepare, &Engine::OnPrepare);
    uv_unref(Handle(&core->poll));
    uv_unref(Handle(&core->prepare));
    uv_unref(Handle(&core->awake));
    core->engine = this;
    core->self = core;
    core_ = core;
    on_completions_ = Napi::Persistent(info[2].As<Napi::Function>());
    buffers_.resize(kBuffersMax);
    napi_add_async_cleanup_hook(env, &Engine::EnvironmentEnds, raw, &core->hook);
  }

  ~Engine() override {
    core_->engine = nullptr;
    BeginClose(core_.get());
  }

 private:
  static uint32_t Number(const Napi::CallbackInfo& info, size_t index, double min, double max) {
    if (!info[index].IsNumber()) throw Napi::TypeError::New(info.Env(), "a number is wanted");
    const double value = info[index].As<Napi::Number>().DoubleValue();
    if (!(value >= min && value <= max)) throw Napi::RangeError::New(info.Env(), "number out of range");
    return static_cast<uint32_t>(value);
  }

  Ring* Live(const Napi::CallbackInfo& info) {
    if (core_->closing) throw Napi::Error::New(info.Env(), "the engine is closed");
    return core_->ring.get();
  }

  template <typename T>
  Napi::Value Arena(const Napi::CallbackInfo& info, std::vector<T>& records) {
    auto* keep = new std::shared_ptr<Core>(core_);
    return Napi::ArrayBuffer::New(
        info.Env(), records.data(), records.size() * sizeof(T),
        [](Napi::Env, void*, std::shared_ptr<Core>* held) { delete held; }, keep);
  }
  Napi::Value Submissions(const Napi::CallbackInfo& info) { return Arena(info, core_->submissions); }
  Napi::Value Completions(const Napi::CallbackInfo& info) { return Arena(info, core_->completions); }
  Napi::Value ControlWords(const Napi::CallbackInfo& info) { return Arena(info, core_->control); }

  // attach(buffer, wantRegistered) -> { slot, baseAddressModulo, registerErrno }
  Napi::Value Attach(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    Ring* ring = Live(info);
    if (!info[0].IsArrayBuffer()) throw Napi::TypeError::New(env, "an ArrayBuffer is wanted");
    auto buffer = info[0].As<Napi::ArrayBuffer>();
    if (buffer.IsDetached() || buffer.ByteLength() == 0)
      throw Napi::RangeError::New(env, "the buffer is empty or detached");
    auto* base = static_cast<uint8_t*>(buffer.Data());
    int register_error = 0;
    const int slot = ring->AddBuffer(base, buffer.ByteLength(), info[1].ToBoolean(), &register_error);
    if (slot < 0) throw SystemError(env, ENOBUFS, "attach", "");
    buffers_[static_cast<size_t>(slot)] = Napi::Persistent(buffer);
    Napi::Object made = Napi::Object::New(env);
    made.Set("slot", slot);
    made.Set("addressModulo", static_cast<double>(reinterpret_cast<uintptr_t>(base) % 4096));
    made.Set("registerErrno", register_error);
    return made;
  }

  // detach(slot) -> false while I/O names it
  Napi::Value Detach(const Napi::CallbackInfo& info) {
    Ring* ring = Live(info);
    const uint32_t slot = Number(info, 0, 0, kBuffersMax - 1);
    const bool done = ring->RemoveBuffer(slot);
    if (done) buffers_[slot].Reset();
    return Napi::Boolean::New(info.Env(), done);
  }

  class Opening;
  // open(path, readOnly, direct: 0 prefer, 1 require, 2 off, lock) -> Promise<{ slot, … }>
  Napi::Value Open(const Napi::CallbackInfo& info);
  // openNamespace(path, readOnly, geometry, lock) -> Promise<{ slot, … }>
  Napi::Value OpenNamespace(const Napi::CallbackInfo& info);

  Napi::Value PassesCommands(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), Live(info)->passes_commands());
  }

  Napi::Value CloseTarget(const Napi::CallbackInfo& info) {
    Ring* ring = Live(info);
    return Napi::Boolean::New(info.Env(), ring->RemoveTarget(Number(info, 0, 0, kTargetsMax - 1)));
  }

  // submit(): what is written
  Napi::Value Submit(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    Live(info);
    const bool all = SubmitWritten();
    // What completes meanwhile is the loop's to deliver: handed out here, one read after the other could keep the loop
    // waiting for ever.
    Watch(core_.get());
    if (!all) throw Napi::RangeError::New(env, kBadTag);
    return env.Undefined();
  }

  // False when a tag was none. In a handle scope.
  bool SubmitWritten() {
    Core* core = core_.get();
    const uint32_t count = std::min(core->control[0].written, core->ring->depth());
    core->control[0].written = 0;
    if (count == 0) return true;
    LoseDetached(core->submissions.data(), count);
    return core->ring->Submit(core->submissions.data(), count);
  }

  // Memory that was transferred away is not ours any more, and the collector may have taken it.
  void LoseDetached(const Instruction* first, uint32_t count) {
    static_assert(kBuffersMax <= 64);
    uint64_t looked_at = 0;
    for (uint32_t i = 0; i < count; i++) {
      const uint32_t slot = first[i].buffer;
      if (slot >= kBuffersMax || (looked_at >> slot & 1) != 0) continue;
      looked_at |= uint64_t{1} << slot;
      if (!buffers_[slot].IsEmpty() && buffers_[slot].Value().IsDetached()) core_->ring->LoseBuffer(slot);
    }
  }

  // poll(maxWaitUs) -> completions in the arena
  Napi::Value Poll(const Napi::CallbackInfo& info) {
    Ring* ring = Live(info);
    const uint32_t wait_us = Number(info, 0, 0, 4e9);
    if (!SubmitWritten()) throw Napi::RangeError::New(info.Env(), kBadTag);
    ring->Wait(wait_us);
    const uint32_t ready = ring->Reap(core_->completions.data(), ring->depth());
    Watch(core_.get());
    return Napi::Number::New(info.Env(), ready);
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    BeginClose(core_.get());
    return info.Env().Undefined();
  }

  // In the loop

  // All three handles are there from beginning to end. How they play together: while anything is in flight, `prepare`
  // looks for completions once per turn of the loop, first without, then (briefly, if that has paid before) with
  // spinning. Only when there are none it switches the eventfd on and lets the loop sleep; so a busy ring costs no
  // eventfd write, read or wake-up at all.

  template <typename T>
  static uv_handle_t* Handle(T* handle) {
    return reinterpret_cast<uv_handle_t*>(handle);
  }

  // Keeps the process and this object alive exactly while something is in flight.
  static void Watch(Core* core) {
    const bool wanted = core->ring->pending() > 0;
    if (wanted == core->watching) return;
    core->watching = wanted;
    if (wanted) {
      uv_ref(Handle(&core->poll));
      if (core->engine != nullptr) core->engine->Ref();
    } else {
      uv_unref(Handle(&core->poll));
      if (core->engine != nullptr) core->engine->Unref();
    }
  }

  static void StayAwake(Core* core, bool wanted) {
    if (wanted)
      uv_idle_start(&core->awake, [](uv_idle_t*) {});
    else
      uv_idle_stop(&core->awake);
  }

  static void OnReadable(uv_poll_t* poll, int, int) {
    Core* core = static_cast<Core*>(poll->data);
    core->ring->Notify(false);
    core->ring->ReadNotification();
    Deliver(core);
  }

  static void OnPrepare(uv_prepare_t* prepare) {
    Core* core = static_cast<Core*>(prepare->data);
    if (core->ring->pending() == 0) {
      StayAwake(core, false);
      return;
    }
    if (core->ring->Ready() || Spin(core)) {
      // What this sets off is looked at in the next turn, before the loop sleeps.
      StayAwake(core, true);
      Deliver(core);
      return;
    }
    core->ring->Notify(true);
    // It may have come before the eventfd was on.
    StayAwake(core, core->ring->Ready());
  }

  // A wake-up costs tens of microseconds, a fast device's answer is there sooner. True when there is something to reap.
  static bool Spin(Core* core) {
    if (core->ring->in_flight() == 0 || core->ring->in_flight() > kSpinInFlightMax) return false;
    const uint64_t budget = core->spin.NextNs();
    if (budget == 0) return false;
    uint64_t now = NowNs();
    const uint64_t end = now + budget;
    uint64_t look = now + kLookNs;
    pollfd others = {uv_backend_fd(core->loop), POLLIN, 0};
    for (uint32_t round = 1;; round++) {
      if (core->ring->Ready()) {
        core->spin.Hit();
        return true;
      }
      if (round % 32 == 0) {
        const uint64_t before = now;
        now = NowNs();
        if (now - before > kStallNs) {
          core->spin.Stalled();
          return false;
        }
        if (now >= end) break;
        if (now < look) continue;
        look = now + kLookNs;
        // Others have something to do: neither a hit nor a miss.
        if (poll(&others, 1, 0) > 0) return false;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    core->spin.Miss();
    return false;
  }

  static void Deliver(Core* core) {
    // The callback may close the engine and drop the last reference.
    const std::shared_ptr<Core> keep = core->self;
    // In batches, each followed by the submissions that it sets off: small ones while the device has little left to do,
    // so that it has work again soon, larger ones while it has more to do than there is to look at. Where one follows
    // the other at once they are waited for here, without a turn of the loop each. A bounded number of them, then the
    // loop's other events have their turn.
    for (uint32_t batch = 0; batch < kBatchesPerTurn && !core->closing && core->engine != nullptr; batch++) {
      const uint32_t most = std::max(kBatchMin, core->ring->TakeResults());
      const uint32_t count = core->ring->Reap(core->completions.data(), std::min(most, core->ring->depth()));
      if (count > 0)
        core->engine->Call(count);
      else if (batch == 0 || !Spin(core))
        break;
    }
    if (core->closing && core->ring != nullptr) core->ring->Drop();
    if (core->ring != nullptr) Watch(core);
    if (core->closing) FinishClose(core);
  }

  // Without node-addon-api's exceptions: when a worker is being terminated every call may fail, and that is not an
  // error.
  void Call(uint32_t count) {
    const napi_env env = Env();
    const Napi::HandleScope scope(env);
    napi_value receiver;
    napi_value argument;
    if (napi_get_global(env, &receiver) != napi_ok || napi_create_uint32(env, count, &argument) != napi_ok) return;
    // The callback may close the engine and drop the last reference to this.
    const std::shared_ptr<Core> core = core_;
    core->control[0].dispatching = 1;
    const napi_status status =
        napi_make_callback(env, nullptr, receiver, on_completions_.Value(), 1, &argument, nullptr);
    core->control[0].dispatching = 0;
    if (status == napi_pending_exception) ReportPending(env);
    if (core->closing || core->engine == nullptr || SubmitWritten()) return;
    napi_value message;
    napi_value error;
    if (napi_create_string_utf8(env, kBadTag, NAPI_AUTO_LENGTH, &message) == napi_ok &&
        napi_create_range_error(env, nullptr, message, &error) == napi_ok)
      napi_fatal_exception(env, error);
  }

  static void ReportPending(napi_env env) {
    napi_value thrown;
    napi_valuetype type;
    if (napi_get_and_clear_last_exception(env, &thrown) == napi_ok && napi_typeof(env, thrown, &type) == napi_ok &&
        type != napi_undefined)
      napi_fatal_exception(env, thrown);
  }

  // Blocking work of block devices, in libuv's threads.
  struct OffloadedWork {
    uv_work_t work;
    std::shared_ptr<Core> core;
    Ring::Offloaded what;
    int error;
  };
  static void Offload(Core* core, const Ring::Offloaded& what) {
    auto* task = new OffloadedWork{{}, core->self, what, 0};
    task->work.data = task;
    uv_queue_work(
        core->loop, &task->work,
        [](uv_work_t* work) {
          auto* task = static_cast<OffloadedWork*>(work->data);
          const auto& what = task->what;
          task->error = what.operation == kDiscard ? DiscardBlocks(what.fd, what.offset_bytes, what.length_bytes)
                                                   : ZeroBlocks(what.fd, what.offset_bytes, what.length_bytes);
        },
        [](uv_work_t* work, int) {
          const std::unique_ptr<OffloadedWork> task(static_cast<OffloadedWork*>(work->data));
          task->core->ring->CompleteOffloaded(task->what.tag, task->error);
          Deliver(task->core.get());
        });
  }

  // The end

  static void EnvironmentEnds(napi_async_cleanup_hook_handle, void* data) {
    Core* core = static_cast<Core*>(data);
    core->environment_ends = true;
    BeginClose(core);
  }

  // From here on nothing is started; what is in flight is waited for in the loop, then everything is released.
  static void BeginClose(Core* core) {
    if (core->closing) return;
    core->closing = true;
    core->ring->Drop();
    FinishClose(core);
  }

  static void FinishClose(Core* core) {
    if (core->ring == nullptr || core->ring->pending() > 0 || uv_is_closing(Handle(&core->poll))) return;
    if (core->watching) Watch(core);
    // libuv is done with a handle only in its close callback.
    const auto closed = [](uv_handle_t* handle) {
      Core* core = static_cast<Core*>(handle->data);
      if (--core->handles_open > 0) return;
      const std::shared_ptr<Core> last = std::move(core->self);
      core->ring.reset();
      if (core->engine != nullptr) core->engine->ReleaseBuffers();
      if (core->hook != nullptr) napi_remove_async_cleanup_hook(core->hook);
      core->hook = nullptr;
    };
    uv_close(Handle(&core->poll), closed);
    uv_close(Handle(&core->prepare), closed);
    uv_close(Handle(&core->awake), closed);
  }

  void ReleaseBuffers() {
    if (core_->environment_ends) return;
    const Napi::HandleScope scope(Env());
    buffers_.clear();
  }

  static constexpr uint32_t kSpinInFlightMax = 2;
  // Thirty-two looks take some microseconds.
  static constexpr uint64_t kStallNs = 500000;
  // How often who spins looks for others' events, which is a system call.
  static constexpr uint64_t kLookNs = 20000;
  static constexpr uint32_t kBatchMin = 4;
  static constexpr uint32_t kBatchesPerTurn = 32;
  static constexpr int kHandles = 3;
  static constexpr const char* kBadTag = "a tag is out of range or in use";

  std::shared_ptr<Core> core_;
  Napi::FunctionReference on_completions_;
  std::vector<Napi::Reference<Napi::ArrayBuffer>> buffers_;
};

// open(2) and the ioctls may block for as long as a device likes: in a thread.
class Engine::Opening : public Napi::AsyncWorker {
 public:
  // `lock`: null, or an array of names.
  Opening(Napi::Env env, Engine* engine, std::string path, bool read_only, Direct direct, const Napi::Value& lock)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        path_(std::move(path)),
        read_only_(read_only),
        direct_(direct),
        lock_(lock.IsArray()),
        failed_path_(path_) {
    if (lock_) {
      const auto names = lock.As<Napi::Array>();
      for (uint32_t i = 0; i < names.Length(); i++) lock_names_.push_back(names.Get(i).ToString());
    }
    engine_ = Napi::Persistent(engine->Value());
    raw_ = engine;
  }
  // From here on it is a namespace that is opened.
  void SetGeometry(const NamespaceGeometry& geometry) { geometry_ = std::make_unique<NamespaceGeometry>(geometry); }
  Napi::Promise Promise() const { return deferred_.Promise(); }

  void Execute() override {
    error_ = geometry_ != nullptr ? target_.OpenNamespace(path_, read_only_, *geometry_, &call_)
                                  : target_.Open(path_, read_only_, direct_, &call_);
    if (error_ == 0 && lock_) error_ = target_.Lock(lock_names_, &call_, &failed_path_);
  }

  void OnOK() override {
    const Napi::Env env = Env();
    const Napi::HandleScope scope(env);
    if (error_ != 0) {
      deferred_.Reject(SystemError(env, error_, call_.c_str(), failed_path_).Value());
      return;
    }
    if (raw_->core_->closing) {
      deferred_.Reject(Napi::Error::New(env, "the engine is closed").Value());
      return;
    }
    Napi::Object made = Napi::Object::New(env);
    made.Set("block", target_.is_block);
    made.Set("direct", target_.direct);
    made.Set("readOnly", target_.read_only);
    made.Set("sizeBytes", static_cast<double>(target_.size_bytes));
    made.Set("logicalBlockBytes", target_.logical_block_bytes);
    made.Set("physicalBlockBytes", target_.physical_block_bytes);
    made.Set("memoryAlignBytes", target_.memory_align_bytes);
    const int slot = raw_->core_->ring->AddTarget(std::move(target_));
    if (slot < 0) {
      deferred_.Reject(SystemError(env, EMFILE, "open", path_).Value());
      return;
    }
    made.Set("slot", slot);
    deferred_.Resolve(made);
  }

 private:
  const Napi::Promise::Deferred deferred_;
  const std::string path_;
  const bool read_only_;
  const Direct direct_;
  const bool lock_;
  std::vector<std::string> lock_names_;
  // A name of the storage that another process has, perhaps.
  std::string failed_path_;
  std::unique_ptr<NamespaceGeometry> geometry_;
  Napi::ObjectReference engine_;
  Engine* raw_;
  BlockTarget target_;
  int error_ = 0;
  std::string call_;
};

Napi::Value Engine::Open(const Napi::CallbackInfo& info) {
  Live(info);
  if (!info[0].IsString()) throw Napi::TypeError::New(info.Env(), "a path is wanted");
  const uint32_t direct = Number(info, 2, 0, 2);
  auto* opening = new Opening(info.Env(), this, info[0].As<Napi::String>(), info[1].ToBoolean(),
                              static_cast<Direct>(direct), info[3]);
  const Napi::Promise promise = opening->Promise();
  opening->Queue();
  return promise;
}

Napi::Value Engine::OpenNamespace(const Napi::CallbackInfo& info) {
  const Ring* ring = Live(info);
  if (!info[0].IsString()) throw Napi::TypeError::New(info.Env(), "a path is wanted");
  if (!ring->passes_commands()) throw SystemError(info.Env(), EOPNOTSUPP, "io_uring_setup", info[0].As<Napi::String>());
  const NamespaceGeometry geometry = ParseGeometry(info.Env(), info[2]);
  auto* opening =
      new Opening(info.Env(), this, info[0].As<Napi::String>(), info[1].ToBoolean(), Direct::kRequire, info[3]);
  opening->SetGeometry(geometry);
  const Napi::Promise promise = opening->Promise();
  opening->Queue();
  return promise;
}

// allocate(lengthBytes) -> ArrayBuffer at a page's boundary, all zeros: what direct I/O wants.
Napi::Value Allocate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const double wanted = info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : 0;
  if (!(wanted >= 1 && wanted <= kBytesMax)) throw Napi::RangeError::New(env, "a length in bytes is wanted");
  const auto length = static_cast<size_t>(wanted);
  void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw SystemError(env, errno, "mmap", "");
  return Napi::ArrayBuffer::New(env, memory, length, [length](Napi::Env, void* data) { munmap(data, length); });
}

Napi::Object Abi(Napi::Env env) {
  Napi::Object abi = Napi::Object::New(env);
  const auto set = [&](const char* name, double value) { abi.Set(name, value); };
  set("read", kRead);
  set("write", kWrite);
  set("flush", kFlush);
  set("discard", kDiscard);
  set("writeZeroes", kWriteZeroes);
  set("compare", kCompare);
  set("verify", kVerify);
  set("durable", kDurable);
  set("instructionBytes", sizeof(Instruction));
  set("operationAt", offsetof(Instruction, operation));
  set("targetAt", offsetof(Instruction, target));
  set("bufferAt", offsetof(Instruction, buffer));
  set("tagAt", offsetof(Instruction, tag));
  set("offsetAt", offsetof(Instruction, offset_bytes));
  set("bufferOffsetAt", offsetof(Instruction, buffer_offset_bytes));
  set("lengthAt", offsetof(Instruction, length_bytes));
  set("completionBytes", sizeof(Completion));
  set("completionTagAt", offsetof(Completion, tag));
  set("completionErrorAt", offsetof(Completion, error));
  set("completionDoneAt", offsetof(Completion, done_bytes));
  set("completionStatusAt", offsetof(Completion, nvme_status));
  set("controlWrittenAt", offsetof(Control, written));
  set("controlDispatchingAt", offsetof(Control, dispatching));
  set("commandBytes", sizeof(nvme_uring_cmd));
  set("depthMax", kDepthMax);
  return abi;
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("abi", Abi(env));
  exports.Set("Engine", Engine::Define(env));
  exports.Set("allocate", Napi::Function::New(env, Allocate, "allocate"));
  DefineCommands(env, exports);
  return exports;
}

}  // namespace
}  // namespace napi_nvme

using napi_nvme::Init;
NODE_API_MODULE(napi_nvme, Init)
