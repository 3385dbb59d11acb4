// What the addon's classes share: errors, arguments, arenas, and the Runtime: the state of one JavaScript environment.
//
// Lifetime. Each class holds a shared_ptr to its verbs object; the graph of these (rdma_device.h) makes any order of
// letting go safe, the garbage collector's included. When the environment ends (a worker exits with transfers in
// flight), the cleanup hook closes everything from the leaves on, before JavaScript's memory goes: windows and queue
// pairs first, then regions, so that nothing can land in memory that belongs to somebody else; then the watches, and
// the environment waits until libuv has let go of them.
//
// What could go wrong and doesn't: a closed object (every method says so), a second close (nothing happens), wrong
// types (TypeError), a wrong `this` (refused by the class's signature check), an object of another class as argument
// (type tags), a callback that throws (uncaughtException, as from any event), collected while open (the JavaScript side
// holds open queue pairs and ids), several threads (no globals but counters).
#ifndef NODE_RDMA_CM_RUNTIME_ADDON_H_
#define NODE_RDMA_CM_RUNTIME_ADDON_H_

#include <napi.h>
#include <uv.h>

#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "loop_watch.h"
#include "rdma_device.h"

namespace node_rdma_cm {

// In the order in which they are closed when the environment ends.
enum class Kind : uint32_t {
  kMemoryWindow,
  kConnectionId,
  kQueuePair,
  kMemoryRegion,
  kSharedReceiveQueue,
  kProtectionDomain,
  kCompletionQueue,
  kEventChannel,
  kDevice,
  kCount
};

class Runtime;

// What the Runtime knows of each object.
class Closable {
 public:
  virtual ~Closable() = default;
  // The environment ends: let go of everything.
  virtual void End() = 0;
};

class Runtime {
 public:
  static std::shared_ptr<Runtime> Create(Napi::Env env);
  static std::shared_ptr<Runtime> Of(Napi::Env env);

  void Register(Kind kind, Closable* object) { objects_.emplace(kind, object); }
  void Forget(Kind kind, Closable* object) { objects_.erase({kind, object}); }
  // Waited for when the environment ends.
  void Track(const std::shared_ptr<Watch>& watch);
  // From the first channel on librdmacm may hold devices: those that were removed are given back until the environment
  // ends.
  void ReleaseRemovedDevices();

  uv_loop_t* loop = nullptr;
  Napi::FunctionReference constructors[static_cast<size_t>(Kind::kCount)];

 private:
  static void End(napi_async_cleanup_hook_handle handle, void* data);

  std::set<std::pair<Kind, Closable*>> objects_;
  std::vector<std::weak_ptr<Watch>> watches_;
  std::shared_ptr<TimerWatch> removed_devices_;
  std::shared_ptr<Runtime> self_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
};

// An Error with `code`, `errno`, `syscall` and, of a batch, `postedCount`.
Napi::Error MakeError(Napi::Env env, const VerbsError& error);

// Runs it; what verbs refuse becomes a JavaScript error.
template <typename Call>
auto Verbs(Napi::Env env, Call call) {
  try {
    return call();
  } catch (const VerbsError& error) {
    throw MakeError(env, error);
  } catch (const std::bad_alloc&) {
    throw MakeError(env, {ENOMEM, "allocate", "no memory"});
  }
}

double Number(Napi::Env env, const Napi::Value& value, double min, double max);
inline uint32_t Number(const Napi::CallbackInfo& info, size_t index, double min, double max) {
  return static_cast<uint32_t>(Number(info.Env(), info[index], min, max));
}
std::string String(const Napi::CallbackInfo& info, size_t index);
void Set(Napi::Object object, const char* name, double value);
void Set(Napi::Object object, const char* name, const std::string& value);

// Memory of ours as an ArrayBuffer; `keep` stays as long as that: the memory alone, not the object that uses it.
Napi::Value Arena(Napi::Env env, void* data, size_t length_bytes, std::shared_ptr<void> keep);
inline Napi::Value Arena(Napi::Env env, const std::shared_ptr<std::vector<std::byte>>& memory) {
  return Arena(env, memory->data(), memory->size(), memory);
}

// Calls a listener from the event loop. What it throws is an uncaught exception; when a worker is being terminated
// every call may fail, and that is no error.
void CallListener(Napi::Env env, const Napi::FunctionReference& listener, std::initializer_list<napi_value> arguments);

// A class of which JavaScript gets instances only from us. `Core` is its verbs object.
template <typename Self, typename Core, Kind kKind>
class Wrapped : public Napi::ObjectWrap<Self>, public Closable {
 public:
  struct Made {
    std::shared_ptr<Core> core;
    // Given to the class beside its core: a listener.
    Napi::Value extra;
  };

  static Napi::Object Make(Napi::Env env, std::shared_ptr<Core> core, Napi::Value extra = Napi::Value()) {
    Made made = {std::move(core), extra};
    return Runtime::Of(env)->constructors[static_cast<size_t>(kKind)].New({Napi::External<Made>::New(env, &made)});
  }

  // Of an argument. Throws a TypeError for anything else.
  static Self* From(const Napi::CallbackInfo& info, size_t index) {
    if (info[index].IsObject()) {
      const auto object = info[index].As<Napi::Object>();
      if (object.CheckTypeTag(&kTag)) return Napi::ObjectWrap<Self>::Unwrap(object);
    }
    throw Napi::TypeError::New(info.Env(), "argument " + std::to_string(index) + " is of another class");
  }

  explicit Wrapped(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Self>(info), runtime_(Runtime::Of(info.Env())) {
    if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "made by the addon only");
    auto* made = info[0].As<Napi::External<Made>>().Data();
    core_ = std::move(made->core);
    extra_ = made->extra;
    info.This().As<Napi::Object>().TypeTag(&kTag);
    runtime_->Register(kKind, this);
  }
  ~Wrapped() override { runtime_->Forget(kKind, this); }

  // Throws EBADF when it is closed.
  const std::shared_ptr<Core>& core(Napi::Env env) const {
    if (core_ == nullptr) throw MakeError(env, {EBADF, "call", "it is closed"});
    return core_;
  }

 protected:
  static constexpr napi_type_tag kTag = {0x6e6f64652d72646dULL, 0x612d636d00000000ULL + static_cast<uint64_t>(kKind)};
  const std::shared_ptr<Runtime> runtime_;
  // Null when it is closed.
  std::shared_ptr<Core> core_;
  // Only during construction.
  Napi::Value extra_;
};

// The classes, defined in their files.
void DefineDeviceClasses(Napi::Env env, Runtime& runtime, Napi::Object exports);
void DefineConnectionClasses(Napi::Env env, Runtime& runtime, Napi::Object exports);

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RUNTIME_ADDON_H_
