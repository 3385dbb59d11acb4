// The module: its classes and functions, and the layouts of abi.h for JavaScript.
#include <infiniband/verbs.h>
#include <napi.h>

#include <cstddef>
#include <iterator>
#include <mutex>

#include "abi.h"
#include "runtime_addon.h"

namespace node_rdma_cm {
namespace {

template <size_t kCount>
Napi::Array Names(Napi::Env env, const char* const (&names)[kCount]) {
  Napi::Array list = Napi::Array::New(env, kCount);
  for (uint32_t i = 0; i < kCount; i++) list.Set(i, Napi::String::New(env, names[i]));
  return list;
}

Napi::Object Numbers(Napi::Env env, std::initializer_list<std::pair<const char*, size_t>> entries) {
  Napi::Object object = Napi::Object::New(env);
  for (const auto& [name, value] : entries) Set(object, name, static_cast<double>(value));
  return object;
}

Napi::Object Abi(Napi::Env env) {
  Napi::Object abi = Napi::Object::New(env);
  Napi::Object operations = Napi::Object::New(env);
  for (uint32_t i = 0; i < kOperationCount; i++) Set(operations, kOperationNames[i], i);
  abi.Set("operations", operations);
  abi.Set("operationNames", Names(env, kOperationNames));
  abi.Set("statusNames", Names(env, kStatusNames));
  abi.Set("cmEventNames", Names(env, kCmEventNames));
  abi.Set("asyncEventNames", Names(env, kAsyncEventNames));
  abi.Set("flags",
          Numbers(env, {{"signalled", kSignalled}, {"fence", kFence}, {"solicited", kSolicited}, {"inline", kInline}}));
  abi.Set("access", Numbers(env, {{"localWrite", kLocalWrite},
                                  {"remoteWrite", kRemoteWrite},
                                  {"remoteRead", kRemoteRead},
                                  {"remoteAtomic", kRemoteAtomic},
                                  {"windowBind", kWindowBind},
                                  {"zeroBased", kZeroBased},
                                  {"relaxedOrdering", kRelaxedOrdering}}));
  abi.Set("request", Numbers(env, {{"bytes", sizeof(WorkRequest)},
                                   {"operation", offsetof(WorkRequest, operation)},
                                   {"flags", offsetof(WorkRequest, flags)},
                                   {"id", offsetof(WorkRequest, id)},
                                   {"remoteAddress", offsetof(WorkRequest, remote_address)},
                                   {"remoteKey", offsetof(WorkRequest, remote_key)},
                                   {"immediate", offsetof(WorkRequest, immediate)},
                                   {"compareAdd", offsetof(WorkRequest, compare_add)},
                                   {"swap", offsetof(WorkRequest, swap)},
                                   {"window", offsetof(WorkRequest, window)},
                                   {"region", offsetof(WorkRequest, region)},
                                   {"bindOffset", offsetof(WorkRequest, bind_offset)},
                                   {"bindLength", offsetof(WorkRequest, bind_length)},
                                   {"bindAccess", offsetof(WorkRequest, bind_access)},
                                   {"segmentCount", offsetof(WorkRequest, segment_count)}}));
  abi.Set("receive", Numbers(env, {{"bytes", sizeof(ReceiveRequest)},
                                   {"id", offsetof(ReceiveRequest, id)},
                                   {"segmentCount", offsetof(ReceiveRequest, segment_count)}}));
  abi.Set("segment", Numbers(env, {{"bytes", sizeof(Segment)},
                                   {"region", offsetof(Segment, region)},
                                   {"length", offsetof(Segment, length)},
                                   {"offset", offsetof(Segment, offset)}}));
  abi.Set("completion", Numbers(env, {{"bytes", sizeof(Completion)},
                                      {"id", offsetof(Completion, id)},
                                      {"status", offsetof(Completion, status)},
                                      {"operation", offsetof(Completion, operation)},
                                      {"queuePair", offsetof(Completion, queue_pair)},
                                      {"length", offsetof(Completion, length)},
                                      {"flags", offsetof(Completion, flags)},
                                      {"immediate", offsetof(Completion, immediate)},
                                      {"invalidatedKey", offsetof(Completion, invalidated_key)},
                                      {"vendorError", offsetof(Completion, vendor_error)},
                                      {"hasImmediate", kHasImmediate},
                                      {"hasInvalidatedKey", kHasInvalidatedKey}}));
  abi.Set("state", Numbers(env, {{"sendsOutstanding", offsetof(QueuePairState, sends_outstanding) / 4},
                                 {"receivesOutstanding", offsetof(QueuePairState, receives_outstanding) / 4},
                                 {"phase", offsetof(QueuePairState, phase) / 4},
                                 {"phaseError", kError},
                                 {"phaseConnected", kConnected}}));
  Set(abi, "segmentsMax", kSegmentsMax);
  Set(abi, "queueMax", kQueueMax);
  return abi;
}

// Children of a process with registered memory: newer kernels copy pinned pages for the child at the fork; for older
// ones the library keeps registered memory out of children. Before anything is registered, once per process.
const char* ForkSafety() {
  static std::once_flag once;
  static const char* how = "no";
  std::call_once(once, [] {
    if (ibv_fork_init() != 0) return;
    how = ibv_is_fork_initialized() == IBV_FORK_UNNEEDED ? "kernel" : "library";
  });
  return how;
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  const auto runtime = Runtime::Create(env);
  DefineDeviceClasses(env, *runtime, exports);
  DefineConnectionClasses(env, *runtime, exports);
  exports.Set("abi", Abi(env));
  exports.Set("forkSafety", Napi::String::New(env, ForkSafety()));
  return exports;
}

}  // namespace
}  // namespace node_rdma_cm

using node_rdma_cm::Init;
NODE_API_MODULE(node_rdma_cm, Init)
