#include "runtime_addon.h"

#include <errno.h>

#include <algorithm>

#include "rdma_manager_device.h"

namespace node_rdma_cm {
namespace {

// A removal waits so long for us at most. Looking costs a stat per device that is held.
constexpr uint64_t kRemovedDevicesEveryMs = 250;

}  // namespace

std::shared_ptr<Runtime> Runtime::Create(Napi::Env env) {
  auto runtime = std::make_shared<Runtime>();
  napi_get_uv_event_loop(env, &runtime->loop);
  runtime->self_ = runtime;
  env.SetInstanceData(new std::shared_ptr<Runtime>(runtime));
  napi_add_async_cleanup_hook(env, &Runtime::End, runtime.get(), &runtime->hook_);
  return runtime;
}

std::shared_ptr<Runtime> Runtime::Of(Napi::Env env) { return *env.GetInstanceData<std::shared_ptr<Runtime>>(); }

void Runtime::Track(const std::shared_ptr<Watch>& watch) {
  std::erase_if(watches_, [](const std::weak_ptr<Watch>& each) { return each.expired(); });
  watches_.push_back(watch);
}

void Runtime::ReleaseRemovedDevices() {
  if (removed_devices_ != nullptr) return;
  removed_devices_ = TimerWatch::Start(loop, kRemovedDevicesEveryMs, [] { ManagerDevice::ReleaseRemoved(); });
  if (removed_devices_ != nullptr) Track(removed_devices_);
}

void Runtime::End(napi_async_cleanup_hook_handle, void* data) {
  const std::shared_ptr<Runtime> runtime = std::move(static_cast<Runtime*>(data)->self_);
  // Ordered by kind. Closing one doesn't add or remove others.
  for (const auto& [kind, object] : runtime->objects_) object->End();
  // One more than there are, so that it can't reach zero before all have begun.
  auto open = std::make_shared<size_t>(1);
  const auto closed = [runtime, open] {
    if (--*open > 0) return;
    napi_remove_async_cleanup_hook(runtime->hook_);
  };
  for (const auto& weak : runtime->watches_) {
    const std::shared_ptr<Watch> watch = weak.lock();
    if (watch == nullptr) continue;
    ++*open;
    watch->Close(closed);
  }
  closed();
}

Napi::Error MakeError(Napi::Env env, const VerbsError& error) {
  Napi::Error made = Napi::Error::New(env, error.detail + " (" + uv_strerror(-error.error) + ")");
  made.Set("code", Napi::String::New(env, uv_err_name(-error.error)));
  made.Set("errno", Napi::Number::New(env, -error.error));
  made.Set("syscall", Napi::String::New(env, error.call));
  if (error.posted >= 0) made.Set("postedCount", Napi::Number::New(env, error.posted));
  return made;
}

double Number(Napi::Env env, const Napi::Value& value, double min, double max) {
  if (!value.IsNumber()) throw Napi::TypeError::New(env, "a number is wanted");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= min && number <= max)) throw Napi::RangeError::New(env, "number out of range");
  return number;
}

std::string String(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsString()) throw Napi::TypeError::New(info.Env(), "a string is wanted");
  return info[index].As<Napi::String>();
}

void Set(Napi::Object object, const char* name, double value) {
  object.Set(name, Napi::Number::New(object.Env(), value));
}
void Set(Napi::Object object, const char* name, const std::string& value) {
  object.Set(name, Napi::String::New(object.Env(), value));
}

Napi::Value Arena(Napi::Env env, void* data, size_t length_bytes, std::shared_ptr<void> keep) {
  if (length_bytes == 0) return Napi::ArrayBuffer::New(env, 0);
  auto* held = new std::shared_ptr<void>(std::move(keep));
  return Napi::ArrayBuffer::New(
      env, data, length_bytes, [](Napi::Env, void*, std::shared_ptr<void>* last) { delete last; }, held);
}

void CallListener(Napi::Env env, const Napi::FunctionReference& listener, std::initializer_list<napi_value> arguments) {
  napi_value receiver;
  if (napi_get_global(env, &receiver) != napi_ok) return;
  napi_value function = nullptr;
  if (napi_get_reference_value(env, listener, &function) != napi_ok || function == nullptr) return;
  const napi_status status =
      napi_make_callback(env, nullptr, receiver, function, arguments.size(), arguments.begin(), nullptr);
  if (status != napi_pending_exception) return;
  napi_value thrown;
  napi_valuetype type;
  if (napi_get_and_clear_last_exception(env, &thrown) == napi_ok && napi_typeof(env, thrown, &type) == napi_ok &&
      type != napi_undefined)
    napi_fatal_exception(env, thrown);
}

}  // namespace node_rdma_cm
