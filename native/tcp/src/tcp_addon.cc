// The Node-API boundary of the TCP links; src/native/tcp.ts is its typed face and documents every call.
//
// State: one Handle per engine, an external tagged with kTag, freed when JS has let go of it *and* every uv handle has
// closed. An environment that ends (a worker's, too) closes its engines by an asynchronous cleanup hook and is kept
// waiting until libuv has let go of them.
// What could go wrong and is answered: wrong argument types (TypeError), a closed engine (Error), a closed connection
// (found by number: nothing happens), a callback that throws (uncaughtException of its own environment), memory still
// viewed after a close (receive buffers belong to the JS heap).
#include <node_api.h>
#include <uv.h>

#include <cmath>
#include <string>
#include <unordered_map>
#include <vector>

#include "addon_arguments.h"
#include "connection.h"
#include "engine.h"

namespace holdfast {
namespace {

constexpr napi_type_tag kTag = {0x9f1d5b6c0e7a4c21ull, 0x8a3be2d40c1f7765ull};

class Handle final : public EventSink {
 public:
  enum Callback { kAccept, kConnected, kRecord, kBatch, kClosed, kCallbackCount };

  explicit Handle(napi_env env) : env_(env) {}

  ~Handle() override {
    if (env_gone_) return;
    for (napi_ref ref : callbacks_) Release(ref);
    Release(pool_ref_);
    Release(offsets_ref_);
    Release(completions_ref_);
    for (auto& [id, ref] : buffers_) Release(ref);
    if (context_ != nullptr) napi_async_destroy(env_, context_);
    if (hook_ != nullptr) napi_remove_async_cleanup_hook(hook_);
  }

  napi_env env() const { return env_; }
  Engine* engine() const { return engine_.get(); }

  void OnAccept(uint32_t listener, uint32_t connection) override {
    Call(kAccept, {Number(listener), Number(connection)});
  }
  void OnConnected(uint32_t connection, int error) override { Call(kConnected, {Number(connection), Number(error)}); }
  void OnBatch(uint32_t connection, uint32_t frames, uint32_t completions) override {
    Call(kBatch, {Number(connection), Number(frames), Number(completions)});
  }
  void OnClosed(uint32_t connection, LinkEnd end, int error) override {
    Call(kClosed, {Number(connection), Number(static_cast<uint32_t>(end)), Number(error)});
  }
  void OnRecord(uint32_t connection, const uint8_t* record) override {
    Call(kRecord, {Number(connection), Bytes(record, kHandshakeRecordBytes)});
  }
  void OnAllClosed() override {
    all_closed_ = true;
    if (env_ending_) {
      env_gone_ = true;
      napi_async_cleanup_hook_handle hook = hook_;
      hook_ = nullptr;
      const bool last = finalized_;
      napi_remove_async_cleanup_hook(hook);
      if (last) delete this;
      return;
    }
    if (finalized_) delete this;
  }
  uint8_t* NewReceiveBuffer(uint32_t connection, size_t bytes) override {
    napi_handle_scope scope;
    napi_open_handle_scope(env_, &scope);
    void* data = nullptr;
    napi_value buffer;
    napi_ref ref = nullptr;
    if (napi_create_arraybuffer(env_, bytes, &data, &buffer) == napi_ok &&
        napi_create_reference(env_, buffer, 1, &ref) == napi_ok) {
      buffers_[connection] = ref;
    } else {
      data = nullptr;
    }
    napi_close_handle_scope(env_, scope);
    return static_cast<uint8_t*>(data);
  }
  void DropReceiveBuffer(uint32_t connection) override {
    const auto it = buffers_.find(connection);
    if (it == buffers_.end()) return;
    Release(it->second);
    buffers_.erase(it);
  }
  napi_value ReceiveBuffer(uint32_t connection) {
    napi_value value = nullptr;
    const auto it = buffers_.find(connection);
    if (it == buffers_.end()) {
      napi_get_null(env_, &value);
    } else {
      napi_get_reference_value(env_, it->second, &value);
    }
    return value;
  }

  bool Open(uv_loop_t* loop, napi_value pool, napi_value callbacks, napi_value offsets, napi_value completions);

  static void Finalize(napi_env, void* data, void*) {
    auto* self = static_cast<Handle*>(data);
    self->finalized_ = true;
    if (self->all_closed_) {
      delete self;
      return;
    }
    self->engine_->Destroy();  // ends in OnAllClosed, at once or from the loop
  }

 private:
  static void EnvironmentEnds(napi_async_cleanup_hook_handle, void* data) {
    auto* self = static_cast<Handle*>(data);
    self->env_ending_ = true;
    if (self->all_closed_) {
      self->OnAllClosed();
      return;
    }
    self->engine_->Destroy();
  }

  void Release(napi_ref ref) {
    if (ref != nullptr && !env_gone_) napi_delete_reference(env_, ref);
  }

  struct Argument {
    bool is_bytes;
    double number;
    const uint8_t* bytes;
    size_t length;
  };
  static Argument Number(double value) { return {false, value, nullptr, 0}; }
  static Argument Bytes(const uint8_t* bytes, size_t length) { return {true, 0, bytes, length}; }

  void Call(Callback which, std::initializer_list<Argument> arguments) {
    if (env_ending_) return;
    napi_handle_scope scope;
    if (napi_open_handle_scope(env_, &scope) != napi_ok) return;
    napi_value argv[4], receiver, callback;
    size_t argc = 0;
    for (const Argument& argument : arguments) {
      if (argument.is_bytes) {
        void* data = nullptr;
        napi_value buffer;
        napi_create_arraybuffer(env_, argument.length, &data, &buffer);
        memcpy(data, argument.bytes, argument.length);
        napi_create_typedarray(env_, napi_uint8_array, argument.length, buffer, 0, &argv[argc++]);
      } else {
        napi_create_double(env_, argument.number, &argv[argc++]);
      }
    }
    napi_get_global(env_, &receiver);
    napi_get_reference_value(env_, callbacks_[which], &callback);
    if (napi_make_callback(env_, context_, receiver, callback, argc, argv, nullptr) == napi_pending_exception) {
      napi_value exception;
      if (napi_get_and_clear_last_exception(env_, &exception) == napi_ok) napi_fatal_exception(env_, exception);
    }
    napi_close_handle_scope(env_, scope);
  }

  napi_env const env_;
  std::unique_ptr<Engine> engine_;
  napi_async_context context_ = nullptr;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  napi_ref callbacks_[kCallbackCount] = {};
  napi_ref pool_ref_ = nullptr;
  napi_ref offsets_ref_ = nullptr;
  napi_ref completions_ref_ = nullptr;
  std::unordered_map<uint32_t, napi_ref> buffers_;
  bool finalized_ = false;
  bool all_closed_ = false;
  bool env_ending_ = false;
  bool env_gone_ = false;
};

// --- arguments ---

class Arguments : public CheckedArguments<7> {
 public:
  using CheckedArguments::CheckedArguments;

  Handle* Engine_(size_t index = 0) const {
    auto* handle = static_cast<Handle*>(Tagged(index, kTag, "not an engine of this addon"));
    if (handle->engine()->destroyed()) throw Fault{"the engine is closed"};
    return handle;
  }
  std::string String(size_t index) const {
    char text[256];
    size_t length = 0;
    if (index >= count_ || napi_get_value_string_utf8(env_, values_[index], text, sizeof text, &length) != napi_ok) {
      throw Fault{"an argument is not a string"};
    }
    return std::string(text, length);
  }
  Segment Bytes(size_t index) const {
    const auto bytes = Uint8Array(index);
    return {bytes.data(), bytes.size()};
  }
  WindowKey Key(size_t index) const {
    const Segment bytes = Bytes(index);
    if (bytes.length < 16) throw Fault{"a window name is at least 16 bytes"};
    return {Load64(bytes.base), Load64(bytes.base + 8)};
  }
  // Float64Array of (offset, length) pairs within the pool.
  std::vector<Segment> Segments(size_t index, const Segment& pool) const {
    constexpr const char* kFault = "segments are a Float64Array of offsets and lengths";
    const auto pairs = Elements<const double>(index, napi_float64_array, kFault);
    if (pairs.size() % 2 != 0 || pairs.empty()) throw Fault{kFault};
    std::vector<Segment> segments;
    segments.reserve(pairs.size() / 2);
    double total = 0;
    for (size_t i = 0; i < pairs.size(); i += 2) {
      const double offset = pairs[i], bytes = pairs[i + 1];
      const double pool_bytes = static_cast<double>(pool.length);
      if (!(offset >= 0) || !(bytes > 0) || offset != std::floor(offset) || bytes != std::floor(bytes) ||
          offset > pool_bytes || bytes > pool_bytes - offset) {
        throw Fault{"a segment outside of the pool"};
      }
      total += bytes;
      segments.push_back({pool.base + static_cast<size_t>(offset), static_cast<size_t>(bytes)});
    }
    if (total > static_cast<double>(kTransferBytesMax)) throw Fault{"more than one transfer may move"};
    return segments;
  }
};

napi_value NumberValue(napi_env env, double value) {
  napi_value out;
  napi_create_double(env, value, &out);
  return out;
}

template <napi_value (*body)(napi_env, const Arguments&)>
constexpr napi_callback Guarded = GuardedCall<Arguments, body>;

bool Handle::Open(uv_loop_t* loop, napi_value pool, napi_value callbacks, napi_value offsets, napi_value completions) {
  void* pool_data = nullptr;
  size_t pool_length = 0;
  if (napi_get_arraybuffer_info(env_, pool, &pool_data, &pool_length) != napi_ok) return false;
  napi_typedarray_type type;
  void *offsets_data = nullptr, *completions_data = nullptr;
  size_t offsets_length = 0, completions_length = 0;
  if (napi_get_typedarray_info(env_, offsets, &type, &offsets_length, &offsets_data, nullptr, nullptr) != napi_ok ||
      type != napi_uint32_array || offsets_length == 0) {
    return false;
  }
  if (napi_get_typedarray_info(env_, completions, &type, &completions_length, &completions_data, nullptr, nullptr) !=
          napi_ok ||
      type != napi_uint32_array || completions_length < 4) {
    return false;
  }
  napi_value resource, name, function;
  for (uint32_t i = 0; i < kCallbackCount; ++i) {
    napi_valuetype value_type;
    if (napi_get_element(env_, callbacks, i, &function) != napi_ok ||
        napi_typeof(env_, function, &value_type) != napi_ok || value_type != napi_function) {
      return false;
    }
    napi_create_reference(env_, function, 1, &callbacks_[i]);
  }
  napi_create_reference(env_, pool, 1, &pool_ref_);
  napi_create_reference(env_, offsets, 1, &offsets_ref_);
  napi_create_reference(env_, completions, 1, &completions_ref_);
  napi_create_object(env_, &resource);
  napi_create_string_utf8(env_, "holdfast.tcp", NAPI_AUTO_LENGTH, &name);
  if (napi_async_init(env_, resource, name, &context_) != napi_ok) return false;
  engine_ = std::make_unique<Engine>(loop, this, Segment{static_cast<uint8_t*>(pool_data), pool_length},
                                     static_cast<uint32_t*>(offsets_data), offsets_length,
                                     static_cast<uint32_t*>(completions_data), completions_length / 2);
  return napi_add_async_cleanup_hook(env_, EnvironmentEnds, this, &hook_) == napi_ok;
}

// --- exported functions ---

napi_value CreateEngine(napi_env env, const Arguments& a) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Fault{"no event loop"};
  auto handle = std::make_unique<Handle>(env);
  if (!handle->Open(loop, a[0], a[1], a[2], a[3])) throw Fault{"createEngine: pool, callbacks or arrays don't fit"};
  napi_value external;
  napi_create_external(env, handle.get(), Handle::Finalize, nullptr, &external);
  napi_type_tag_object(env, external, &kTag);
  handle.release();
  return external;
}

napi_value DestroyEngine(napi_env, const Arguments& a) {
  a.Engine_()->engine()->Destroy();
  return nullptr;
}

napi_value Listen(napi_env env, const Arguments& a) {
  uint32_t id = 0;
  int port = 0;
  const int error = a.Engine_()->engine()->Listen(a.String(1).c_str(), static_cast<int>(a.Integer(2, 65535)),
                                                  static_cast<int>(a.Integer(3, 65535)), &id, &port);
  napi_value result;
  napi_create_array_with_length(env, 3, &result);
  napi_set_element(env, result, 0, NumberValue(env, -error));
  napi_set_element(env, result, 1, NumberValue(env, id));
  napi_set_element(env, result, 2, NumberValue(env, port));
  return result;
}

napi_value CloseListener(napi_env, const Arguments& a) {
  a.Engine_()->engine()->CloseListener(a.U32(1));
  return nullptr;
}

napi_value Dial(napi_env env, const Arguments& a) {
  uint32_t id = 0;
  const int error = a.Engine_()->engine()->Dial(a.String(1).c_str(), static_cast<int>(a.Integer(2, 65535)), &id);
  return NumberValue(env, error != 0 ? error : static_cast<double>(id));
}

napi_value ReceiveBuffer(napi_env, const Arguments& a) { return a.Engine_()->ReceiveBuffer(a.U32(1)); }

napi_value SendRecord(napi_env, const Arguments& a) {
  Connection* connection = a.Engine_()->engine()->Find(a.U32(1));
  const Segment record = a.Bytes(2);
  if (record.length != kHandshakeRecordBytes) throw Fault{"a handshake record has another length"};
  if (connection != nullptr) connection->SendRecord(record.base);
  return nullptr;
}

napi_value StartFrames(napi_env, const Arguments& a) {
  Connection* connection = a.Engine_()->engine()->Find(a.U32(1));
  if (connection != nullptr) connection->StartFrames(a.U32(2));
  return nullptr;
}

napi_value Send(napi_env env, const Arguments& a) {
  Connection* connection = a.Engine_()->engine()->Find(a.U32(1));
  const Segment bytes = a.Bytes(2);
  const uint32_t start = a.U32(3), end = a.U32(4);
  if (start > end || end > bytes.length) throw Fault{"frames outside of their buffer"};
  if (connection == nullptr) return NumberValue(env, 0);
  if (!connection->Send(bytes.base + start, end - start)) throw Fault{"not a run of whole frames"};
  return NumberValue(env, static_cast<uint32_t>(connection->broken()));
}

template <bool writing>
napi_value Transfer(napi_env, const Arguments& a) {
  Handle* handle = a.Engine_();
  Connection* connection = handle->engine()->Find(a.U32(1));
  const uint32_t transfer = a.U32(2);
  const WindowKey key = a.Key(3);
  const uint64_t offset = a.U53(4);
  std::vector<Segment> segments = a.Segments(5, handle->engine()->pool);
  const bool unchecked = a.U32(6) != 0;
  if (connection == nullptr) return nullptr;
  if (writing) {
    connection->Write(transfer, key, offset, std::move(segments), unchecked);
  } else {
    connection->Read(transfer, key, offset, std::move(segments), unchecked);
  }
  return nullptr;
}

napi_value Flush(napi_env env, const Arguments& a) {
  Connection* connection = a.Engine_()->engine()->Find(a.U32(1));
  if (connection == nullptr) return NumberValue(env, 0);
  connection->Flush();
  return NumberValue(env, static_cast<uint32_t>(connection->broken()));
}

napi_value Cancel(napi_env, const Arguments& a) {
  Connection* connection = a.Engine_()->engine()->Find(a.U32(1));
  if (connection != nullptr) connection->Cancel(a.U32(2));
  return nullptr;
}

napi_value CloseConnection(napi_env, const Arguments& a) {
  Connection* connection = a.Engine_()->engine()->Find(a.U32(1));
  if (connection != nullptr) connection->Close();
  return nullptr;
}

napi_value OpenWindow(napi_env env, const Arguments& a) {
  Handle* handle = a.Engine_();
  const auto access = static_cast<WindowAccess>(static_cast<int>(a.Integer(2, 2)));
  if (access != WindowAccess::kRead && access != WindowAccess::kWrite) throw Fault{"access is 1 or 2"};
  const WindowKey key = handle->engine()->OpenWindow(a.U32(1), access, a.Segments(3, handle->engine()->pool));
  void* data = nullptr;
  napi_value buffer, bytes;
  napi_create_arraybuffer(env, 16, &data, &buffer);
  memcpy(data, &key.id, 8);
  memcpy(static_cast<uint8_t*>(data) + 8, &key.secret, 8);
  napi_create_typedarray(env, napi_uint8_array, 16, buffer, 0, &bytes);
  return bytes;
}

napi_value CloseWindow(napi_env env, const Arguments& a) {
  napi_value result;
  napi_get_boolean(env, a.Engine_()->engine()->CloseWindow(a.Key(1).id), &result);
  return result;
}

napi_value Stats(napi_env env, const Arguments& a) {
  const EngineStats& stats = a.Engine_()->engine()->stats;
  const std::pair<const char*, uint64_t> fields[] = {
      {"bytesReceived", stats.bytes_received},
      {"bytesSent", stats.bytes_sent},
      {"transferBytesLanded", stats.transfer_bytes_landed},
      {"transferBytesDiscarded", stats.transfer_bytes_discarded},
      {"windowsRefused", stats.windows_refused},
      {"acceptFailures", stats.accept_failures},
      {"windowsOpen", a.Engine_()->engine()->windows.size()},
  };
  napi_value result;
  napi_create_object(env, &result);
  for (const auto& [name, value] : fields) {
    napi_set_named_property(env, result, name, NumberValue(env, static_cast<double>(value)));
  }
  return result;
}

napi_value Constants(napi_env env) {
  const std::pair<const char*, double> fields[] = {
      {"frameMagic", kFrameMagic},
      {"frameVersion", kFrameVersion},
      {"frameHeaderBytes", kHeaderBytes},
      {"atMagic", kAtMagic},
      {"atVersion", kAtVersion},
      {"atKind", kAtKind},
      {"atBodyBytes", kAtBodyBytes},
      {"atRequestSequence", kAtRequestSequence},
      {"atMessageType", kAtMessageType},
      {"atCrc32c", kAtCrc},
      {"transferPrefixBytes", kPrefixBytes},
      {"atWindowId", kAtWindowId},
      {"atWindowSecret", kAtWindowSecret},
      {"atOffsetBytes", kAtOffset},
      {"atLengthBytes", kAtLength},
      {"atFlags", kAtFlags},
      {"transferFlagLast", kFlagLast},
      {"transferFlagDataUnchecked", kFlagDataUnchecked},
      {"frameBodyBytesMax", kBodyBytesMax},
      {"transferChunkBytes", kChunkBytes},
      {"transferBytesMax", kTransferBytesMax},
      {"handshakeRecordBytes", kHandshakeRecordBytes},
      {"kindMessage", kMessage},
      {"kindRequest", kRequest},
      {"kindReply", kReply},
      {"kindReplyError", kReplyError},
      {"kindResume", kResume},
      {"kindAck", kAck},
      {"kindWrite", kWrite},
      {"kindReadRequest", kReadRequest},
      {"kindReadData", kReadData},
      {"kindTransferDone", kTransferDone},
      {"kindMax", kKindMax},
      {"kindStreamMax", kKindStreamMax},
      {"statusLanded", static_cast<double>(TransferStatus::kLanded)},
      {"statusWindowUnknown", static_cast<double>(TransferStatus::kWindowUnknown)},
      {"statusWindowDenied", static_cast<double>(TransferStatus::kWindowDenied)},
      {"statusOutOfBounds", static_cast<double>(TransferStatus::kOutOfBounds)},
      {"statusCancelled", static_cast<double>(TransferStatus::kCancelled)},
      {"endClosedHere", static_cast<double>(LinkEnd::kClosedHere)},
      {"endClosedByPeer", static_cast<double>(LinkEnd::kClosedByPeer)},
      {"endSocketError", static_cast<double>(LinkEnd::kSocketError)},
      {"endBadMagic", static_cast<double>(LinkEnd::kBadMagic)},
      {"endBadVersion", static_cast<double>(LinkEnd::kBadVersion)},
      {"endBadKind", static_cast<double>(LinkEnd::kBadKind)},
      {"endBadLength", static_cast<double>(LinkEnd::kBadLength)},
      {"endBadChecksum", static_cast<double>(LinkEnd::kBadChecksum)},
      {"endBadTransfer", static_cast<double>(LinkEnd::kBadTransfer)},
      {"endBacklogFull", static_cast<double>(LinkEnd::kBacklogFull)},
  };
  napi_value result;
  napi_create_object(env, &result);
  for (const auto& [name, value] : fields) napi_set_named_property(env, result, name, NumberValue(env, value));
  return result;
}

napi_value Init(napi_env env, napi_value exports) {
  const std::pair<const char*, napi_callback> functions[] = {
      {"createEngine", Guarded<CreateEngine>},
      {"destroyEngine", Guarded<DestroyEngine>},
      {"listen", Guarded<Listen>},
      {"closeListener", Guarded<CloseListener>},
      {"dial", Guarded<Dial>},
      {"receiveBuffer", Guarded<ReceiveBuffer>},
      {"sendRecord", Guarded<SendRecord>},
      {"startFrames", Guarded<StartFrames>},
      {"send", Guarded<Send>},
      {"write", Guarded<Transfer<true>>},
      {"read", Guarded<Transfer<false>>},
      {"flush", Guarded<Flush>},
      {"cancel", Guarded<Cancel>},
      {"closeConnection", Guarded<CloseConnection>},
      {"openWindow", Guarded<OpenWindow>},
      {"closeWindow", Guarded<CloseWindow>},
      {"stats", Guarded<Stats>},
  };
  ExportFunctions(env, exports, functions);
  napi_set_named_property(env, exports, "constants", Constants(env));
  return exports;
}

}  // namespace
}  // namespace holdfast

NAPI_MODULE(tcp, holdfast::Init)
