// EventChannel, ConnectionId, QueuePair, as JavaScript sees them (lib/native.ts).
#include <errno.h>

#include <iterator>

#include "device_addon.h"
#include "rdma_connection.h"
#include "runtime_addon.h"

namespace node_rdma_cm {
namespace {

class EventChannelObject : public Wrapped<EventChannelObject, EventChannel, Kind::kEventChannel> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "EventChannel",
                       {InstanceMethod("createId", &EventChannelObject::CreateId),
                        InstanceMethod("setReferenced", &EventChannelObject::SetReferenced),
                        InstanceMethod("close", &EventChannelObject::Close)});
  }

  explicit EventChannelObject(const Napi::CallbackInfo& info) : Wrapped(info) {
    listener_ = Napi::Persistent(extra_.As<Napi::Function>());
    watch_ = DescriptorWatch::Start(runtime_->loop, core_->fd(), core_, [this] { OnEvents(); });
    if (watch_ == nullptr) throw MakeError(info.Env(), {EBADF, "uv_poll_init", "the loop can't watch the channel"});
    runtime_->Track(watch_);
    core_->changed = [this] { KeepAlive(); };
  }
  ~EventChannelObject() override {
    if (core_ != nullptr) core_->changed = nullptr;
    if (watch_ != nullptr) watch_->Close();
  }
  void End() override {
    if (watch_ != nullptr) watch_->Close();
    watch_.reset();
    if (core_ != nullptr) core_->changed = nullptr;
    core_.reset();
  }

 private:
  void KeepAlive() {
    if (watch_ != nullptr) watch_->KeepAlive(referenced_ && core_->id_count() > 0);
  }

  void OnEvents();
  Napi::Value CreateId(const Napi::CallbackInfo& info);
  Napi::Value SetReferenced(const Napi::CallbackInfo& info) {
    referenced_ = info[0].ToBoolean();
    KeepAlive();
    return info.Env().Undefined();
  }
  Napi::Value Close(const Napi::CallbackInfo& info) {
    const bool was_open = core_ != nullptr;
    End();
    return Napi::Boolean::New(info.Env(), was_open);
  }

  static constexpr uint32_t kEventsPerTurn = 64;
  Napi::FunctionReference listener_;
  std::shared_ptr<DescriptorWatch> watch_;
  bool referenced_ = true;
};

class QueuePairObject : public Wrapped<QueuePairObject, QueuePair, Kind::kQueuePair> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "QueuePair",
                       {InstanceAccessor("handle", &QueuePairObject::Handle, nullptr),
                        InstanceAccessor("number", &QueuePairObject::QueuePairNumber, nullptr),
                        InstanceAccessor("sends", &QueuePairObject::Sends, nullptr),
                        InstanceAccessor("receives", &QueuePairObject::Receives, nullptr),
                        InstanceAccessor("state", &QueuePairObject::State, nullptr),
                        InstanceAccessor("maxSend", &QueuePairObject::MaxSend, nullptr),
                        InstanceAccessor("maxReceive", &QueuePairObject::MaxReceive, nullptr),
                        InstanceAccessor("maxSendSegments", &QueuePairObject::MaxSendSegments, nullptr),
                        InstanceAccessor("maxReceiveSegments", &QueuePairObject::MaxReceiveSegments, nullptr),
                        InstanceAccessor("maxInlineBytes", &QueuePairObject::MaxInlineBytes, nullptr),
                        InstanceMethod("postSends", &QueuePairObject::PostSends),
                        InstanceMethod("postReceives", &QueuePairObject::PostReceives),
                        InstanceMethod("moveToError", &QueuePairObject::MoveToError),
                        InstanceMethod("oldestSendAgeMs", &QueuePairObject::OldestSendAgeMs),
                        InstanceMethod("close", &QueuePairObject::Close)});
  }
  explicit QueuePairObject(const Napi::CallbackInfo& info) : Wrapped(info) {}
  void End() override {
    if (core_ != nullptr) core_->Close();
  }

 private:
  static Napi::Value U32(const Napi::CallbackInfo& info, uint32_t value) {
    return Napi::Number::New(info.Env(), value);
  }
  Napi::Value Handle(const Napi::CallbackInfo& info) { return U32(info, core(info.Env())->handle()); }
  Napi::Value QueuePairNumber(const Napi::CallbackInfo& info) { return U32(info, core(info.Env())->number()); }
  Napi::Value MaxSend(const Napi::CallbackInfo& info) { return U32(info, core(info.Env())->sizes().max_send); }
  Napi::Value MaxReceive(const Napi::CallbackInfo& info) { return U32(info, core(info.Env())->sizes().max_receive); }
  Napi::Value MaxSendSegments(const Napi::CallbackInfo& info) {
    return U32(info, core(info.Env())->sizes().max_send_segments);
  }
  Napi::Value MaxReceiveSegments(const Napi::CallbackInfo& info) {
    return U32(info, core(info.Env())->sizes().max_receive_segments);
  }
  Napi::Value MaxInlineBytes(const Napi::CallbackInfo& info) {
    return U32(info, core(info.Env())->sizes().max_inline_bytes);
  }
  Napi::Value Sends(const Napi::CallbackInfo& info) {
    const auto& pair = core(info.Env());
    return Arena(info.Env(), pair->send_arena());
  }
  Napi::Value Receives(const Napi::CallbackInfo& info) {
    const auto& pair = core(info.Env());
    return Arena(info.Env(), pair->receive_arena());
  }
  // Without the queue pair: it is read after that was closed.
  Napi::Value State(const Napi::CallbackInfo& info) {
    const auto& state = core(info.Env())->state();
    return Arena(info.Env(), state.get(), sizeof(QueuePairState), state);
  }
  Napi::Value PostSends(const Napi::CallbackInfo& info) {
    QueuePair& pair = *core(info.Env());
    const uint32_t count = Number(info, 0, 0, pair.sizes().max_send);
    return U32(info, Verbs(info.Env(), [&] { return pair.PostSends(count); }));
  }
  Napi::Value PostReceives(const Napi::CallbackInfo& info) {
    QueuePair& pair = *core(info.Env());
    const uint32_t count = Number(info, 0, 0, pair.sizes().max_receive);
    return U32(info, Verbs(info.Env(), [&] { return pair.PostReceives(count); }));
  }
  Napi::Value MoveToError(const Napi::CallbackInfo& info) {
    core(info.Env())->MoveToError();
    return info.Env().Undefined();
  }
  Napi::Value OldestSendAgeMs(const Napi::CallbackInfo& info) {
    const double age_ns = static_cast<double>(core(info.Env())->OldestSendAgeNs());
    return Napi::Number::New(info.Env(), age_ns / 1e6);
  }
  Napi::Value Close(const Napi::CallbackInfo& info) {
    const bool was_open = core_ != nullptr && !core_->closed();
    if (core_ != nullptr) core_->Close();
    core_.reset();
    return Napi::Boolean::New(info.Env(), was_open);
  }
};

class ConnectionIdObject : public Wrapped<ConnectionIdObject, ConnectionId, Kind::kConnectionId> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(
        env, "ConnectionId",
        {InstanceAccessor("handle", &ConnectionIdObject::Handle, nullptr),
         InstanceAccessor("deviceName", &ConnectionIdObject::DeviceNameValue, nullptr),
         InstanceAccessor("portNumber", &ConnectionIdObject::PortNumber, nullptr),
         InstanceAccessor("localAddress", &ConnectionIdObject::LocalAddress, nullptr),
         InstanceAccessor("remoteAddress", &ConnectionIdObject::RemoteAddress, nullptr),
         InstanceMethod("setOption", &ConnectionIdObject::SetOption), InstanceMethod("bind", &ConnectionIdObject::Bind),
         InstanceMethod("resolveAddress", &ConnectionIdObject::ResolveAddress),
         InstanceMethod("resolveRoute", &ConnectionIdObject::ResolveRoute),
         InstanceMethod("listen", &ConnectionIdObject::Listen),
         InstanceMethod("createQueuePair", &ConnectionIdObject::CreateQueuePair),
         InstanceMethod("connect", &ConnectionIdObject::Connect), InstanceMethod("accept", &ConnectionIdObject::Accept),
         InstanceMethod("reject", &ConnectionIdObject::Reject),
         InstanceMethod("disconnect", &ConnectionIdObject::Disconnect),
         InstanceMethod("close", &ConnectionIdObject::Close)});
  }
  explicit ConnectionIdObject(const Napi::CallbackInfo& info) : Wrapped(info) {}
  void End() override {
    if (core_ != nullptr) core_->Close();
  }

 private:
  Napi::Value Handle(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), core(info.Env())->handle());
  }
  Napi::Value DeviceNameValue(const Napi::CallbackInfo& info) {
    const std::string name = core(info.Env())->device_name();
    if (name.empty()) return info.Env().Null();
    return Napi::String::New(info.Env(), name);
  }
  Napi::Value PortNumber(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), core(info.Env())->port_number());
  }
  static Napi::Value AddressValue(Napi::Env env, const Address& address) {
    if (address.version == 0) return env.Null();
    Napi::Object made = Napi::Object::New(env);
    Set(made, "family", address.version == 4 ? "IPv4" : "IPv6");
    Set(made, "host", address.host);
    Set(made, "port", address.port);
    return made;
  }
  Napi::Value LocalAddress(const Napi::CallbackInfo& info) {
    return AddressValue(info.Env(), core(info.Env())->local_address());
  }
  Napi::Value RemoteAddress(const Napi::CallbackInfo& info) {
    return AddressValue(info.Env(), core(info.Env())->remote_address());
  }

  // setOption(name, value)
  Napi::Value SetOption(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto& id = core(env);
    const std::string name = String(info, 0);
    const uint32_t value = Number(info, 1, 0, 255);
    const auto byte = static_cast<uint8_t>(value);
    const auto word = static_cast<int>(value);
    Verbs(env, [&] {
      if (name == "typeOfService")
        id->SetOption(RDMA_OPTION_ID_TOS, &byte, sizeof byte);
      else if (name == "reuseAddress")
        id->SetOption(RDMA_OPTION_ID_REUSEADDR, &word, sizeof word);
      else if (name == "ackTimeout")
        id->SetOption(RDMA_OPTION_ID_ACK_TIMEOUT, &byte, sizeof byte);
      else
        throw VerbsError{EINVAL, "rdma_set_option", "there is no such option"};
    });
    return env.Undefined();
  }

  // bind(host, port)
  Napi::Value Bind(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    const std::string host = String(info, 0);
    const auto port = static_cast<uint16_t>(Number(info, 1, 0, 65535));
    Verbs(info.Env(), [&] { id->Bind(host, port); });
    return info.Env().Undefined();
  }

  // resolveAddress(sourceHost | null, host, port, timeoutMs)
  Napi::Value ResolveAddress(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    const std::string source = info[0].IsNull() ? "" : String(info, 0);
    const std::string host = String(info, 1);
    const auto port = static_cast<uint16_t>(Number(info, 2, 0, 65535));
    const auto timeout_ms = static_cast<int>(Number(info, 3, 1, 1e9));
    Verbs(info.Env(), [&] { id->ResolveAddress(source, host, port, timeout_ms); });
    return info.Env().Undefined();
  }

  Napi::Value ResolveRoute(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    const auto timeout_ms = static_cast<int>(Number(info, 0, 1, 1e9));
    Verbs(info.Env(), [&] { id->ResolveRoute(timeout_ms); });
    return info.Env().Undefined();
  }

  Napi::Value Listen(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    const auto backlog = static_cast<int>(Number(info, 0, 1, 65535));
    Verbs(info.Env(), [&] { id->Listen(backlog); });
    return info.Env().Undefined();
  }

  // createQueuePair(domain, sendQueue, receiveQueue, shared | null, sizes)
  Napi::Value CreateQueuePair(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto& id = core(env);
    const auto& domain = ProtectionDomainObject::From(info, 0)->core(env);
    const auto& send_queue = CompletionQueueObject::From(info, 1)->core(env);
    const auto& receive_queue = CompletionQueueObject::From(info, 2)->core(env);
    std::shared_ptr<SharedReceiveQueue> shared;
    if (!info[3].IsNull()) shared = SharedReceiveQueueObject::From(info, 3)->core(env);
    if (!info[4].IsObject()) throw Napi::TypeError::New(env, "sizes are wanted");
    const auto options = info[4].As<Napi::Object>();
    const auto size = [&](const char* name, double min, double max) {
      return static_cast<uint32_t>(Number(env, options.Get(name), min, max));
    };
    const QueuePairSizes sizes = {size("maxSend", 1, kQueueMax), size("maxReceive", 1, kQueueMax),
                                  size("maxSendSegments", 1, kSegmentsMax), size("maxReceiveSegments", 1, kSegmentsMax),
                                  size("maxInlineBytes", 0, 65536)};
    if (send_queue->device() != domain->device() || receive_queue->device() != domain->device() ||
        (shared != nullptr && shared->domain() != domain))
      throw Napi::TypeError::New(env, "the queues are of another device or protection domain");
    return QueuePairObject::Make(
        env, Verbs(env, [&] { return id->CreateQueuePair(domain, send_queue, receive_queue, shared, sizes); }));
  }

  static std::vector<uint8_t> PrivateData(Napi::Env env, const Napi::Value& value) {
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
      throw Napi::TypeError::New(env, "private data is an Uint8Array");
    const auto bytes = value.As<Napi::Uint8Array>();
    if (bytes.ByteLength() > 255) throw Napi::RangeError::New(env, "too much private data");
    return std::vector<uint8_t>(bytes.Data(), bytes.Data() + bytes.ByteLength());
  }
  static ConnectParameters Parameters(const Napi::CallbackInfo& info, size_t index) {
    const Napi::Env env = info.Env();
    if (!info[index].IsObject()) throw Napi::TypeError::New(env, "parameters are wanted");
    const auto options = info[index].As<Napi::Object>();
    const auto byte = [&](const char* name, double max) {
      return static_cast<uint8_t>(Number(env, options.Get(name), 0, max));
    };
    return {PrivateData(env, options.Get("privateData")), byte("responderResources", 255), byte("initiatorDepth", 255),
            byte("retryCount", 7),
            // 7 would be for ever.
            byte("rnrRetryCount", 6), byte("minRnrTimer", 31)};
  }

  // connect(queuePair, parameters)
  Napi::Value Connect(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    const auto& pair = QueuePairObject::From(info, 0)->core(info.Env());
    ConnectParameters parameters = Parameters(info, 1);
    Verbs(info.Env(), [&] { id->Connect(pair, std::move(parameters)); });
    return info.Env().Undefined();
  }

  // accept(queuePair, parameters)
  Napi::Value Accept(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    const auto& pair = QueuePairObject::From(info, 0)->core(info.Env());
    const ConnectParameters parameters = Parameters(info, 1);
    Verbs(info.Env(), [&] { id->Accept(pair, parameters); });
    return info.Env().Undefined();
  }

  // reject(privateData)
  Napi::Value Reject(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    const std::vector<uint8_t> data = PrivateData(info.Env(), info[0]);
    Verbs(info.Env(), [&] { id->Reject(data); });
    return info.Env().Undefined();
  }

  Napi::Value Disconnect(const Napi::CallbackInfo& info) {
    const auto& id = core(info.Env());
    Verbs(info.Env(), [&] { id->Disconnect(); });
    return info.Env().Undefined();
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    const bool was_open = core_ != nullptr;
    if (core_ != nullptr) core_->Close();
    core_.reset();
    return Napi::Boolean::New(info.Env(), was_open);
  }
};

Napi::Value EventChannelObject::CreateId(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& channel = core(env);
  return ConnectionIdObject::Make(env, Verbs(env, [&] { return channel->CreateId(); }));
}

void EventChannelObject::OnEvents() {
  const Napi::Env env = Env();
  const Napi::HandleScope scope(env);
  const std::shared_ptr<EventChannel> channel = core_;
  CmEvent event;
  // One at a time: a listener may close what the next one is for.
  for (uint32_t i = 0; i < kEventsPerTurn && core_ != nullptr && channel->NextEvent(&event); i++) {
    const Napi::HandleScope event_scope(env);
    try {
      Napi::Object made = Napi::Object::New(env);
      Set(made, "type", event.type < std::size(kCmEventNames) ? kCmEventNames[event.type] : "unknown");
      Set(made, "status", event.status);
      Set(made, "id", event.id);
      if (event.new_id != nullptr) made.Set("newId", ConnectionIdObject::Make(env, std::move(event.new_id)));
      if (!event.private_data.empty()) {
        Napi::ArrayBuffer data = Napi::ArrayBuffer::New(env, event.private_data.size());
        std::copy(event.private_data.begin(), event.private_data.end(), static_cast<uint8_t*>(data.Data()));
        made.Set("privateData", data);
      }
      Set(made, "responderResources", event.responder_resources);
      Set(made, "initiatorDepth", event.initiator_depth);
      Set(made, "retryCount", event.retry_count);
      Set(made, "rnrRetryCount", event.rnr_retry_count);
      CallListener(env, listener_, {made});
    } catch (const Napi::Error&) {
      return;  // The worker is being terminated.
    }
  }
}

// createEventChannel(listener)
Napi::Value CreateEventChannel(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsFunction()) throw Napi::TypeError::New(env, "a listener is wanted");
  Runtime::Of(env)->ReleaseRemovedDevices();
  return EventChannelObject::Make(env, Verbs(env, [] { return std::make_shared<EventChannel>(); }), info[0]);
}

}  // namespace

void DefineConnectionClasses(Napi::Env env, Runtime& runtime, Napi::Object exports) {
  const auto keep = [&](Kind kind, const Napi::Function& constructor) {
    runtime.constructors[static_cast<size_t>(kind)] = Napi::Persistent(constructor);
  };
  keep(Kind::kEventChannel, EventChannelObject::Define(env));
  keep(Kind::kConnectionId, ConnectionIdObject::Define(env));
  keep(Kind::kQueuePair, QueuePairObject::Define(env));
  exports.Set("createEventChannel", Napi::Function::New(env, CreateEventChannel, "createEventChannel"));
}

}  // namespace node_rdma_cm
