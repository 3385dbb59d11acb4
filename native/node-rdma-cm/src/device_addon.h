// The classes of a device and what is made on it, as JavaScript sees them (lib/native.ts).
#ifndef NODE_RDMA_CM_DEVICE_ADDON_H_
#define NODE_RDMA_CM_DEVICE_ADDON_H_

#include <memory>
#include <vector>

#include "abi.h"
#include "rdma_completion_queue.h"
#include "rdma_memory.h"
#include "rdma_receive_queue.h"
#include "runtime_addon.h"

namespace node_rdma_cm {

class DeviceObject : public Wrapped<DeviceObject, DeviceContext, Kind::kDevice> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit DeviceObject(const Napi::CallbackInfo& info);
  ~DeviceObject() override;
  void End() override;

 private:
  void OnAsyncEvents();
  Napi::Value GetName(const Napi::CallbackInfo& info);
  Napi::Value Limits(const Napi::CallbackInfo& info);
  Napi::Value Ports(const Napi::CallbackInfo& info);
  Napi::Value CreateProtectionDomain(const Napi::CallbackInfo& info);
  Napi::Value CreateCompletionQueue(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  Napi::FunctionReference listener_;
  std::shared_ptr<DescriptorWatch> watch_;
};

class ProtectionDomainObject : public Wrapped<ProtectionDomainObject, ProtectionDomain, Kind::kProtectionDomain> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit ProtectionDomainObject(const Napi::CallbackInfo& info) : Wrapped(info) {}
  void End() override { core_.reset(); }

 private:
  Napi::Value RegisterMemory(const Napi::CallbackInfo& info);
  Napi::Value AllocateWindow(const Napi::CallbackInfo& info);
  Napi::Value CreateSharedReceiveQueue(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
};

class MemoryRegionObject : public Wrapped<MemoryRegionObject, MemoryRegion, Kind::kMemoryRegion> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit MemoryRegionObject(const Napi::CallbackInfo& info) : Wrapped(info) {}
  void End() override;

 private:
  Napi::Value Slot(const Napi::CallbackInfo& info);
  Napi::Value Address(const Napi::CallbackInfo& info);
  Napi::Value LocalKey(const Napi::CallbackInfo& info);
  Napi::Value RemoteKey(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
};

class MemoryWindowObject : public Wrapped<MemoryWindowObject, MemoryWindow, Kind::kMemoryWindow> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit MemoryWindowObject(const Napi::CallbackInfo& info) : Wrapped(info) {}
  void End() override;

 private:
  Napi::Value Slot(const Napi::CallbackInfo& info);
  Napi::Value Key(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
};

class SharedReceiveQueueObject
    : public Wrapped<SharedReceiveQueueObject, SharedReceiveQueue, Kind::kSharedReceiveQueue> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit SharedReceiveQueueObject(const Napi::CallbackInfo& info) : Wrapped(info) {}
  void End() override { core_.reset(); }

 private:
  Napi::Value Receives(const Napi::CallbackInfo& info);
  Napi::Value MaxReceive(const Napi::CallbackInfo& info);
  Napi::Value MaxSegments(const Napi::CallbackInfo& info);
  Napi::Value Outstanding(const Napi::CallbackInfo& info);
  Napi::Value PostReceives(const Napi::CallbackInfo& info);
  Napi::Value ArmLimit(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
};

class CompletionQueueObject : public Wrapped<CompletionQueueObject, CompletionQueue, Kind::kCompletionQueue> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit CompletionQueueObject(const Napi::CallbackInfo& info);
  ~CompletionQueueObject() override;
  void End() override;

 private:
  Napi::Value Completions(const Napi::CallbackInfo& info);
  Napi::Value Depth(const Napi::CallbackInfo& info);
  Napi::Value Poll(const Napi::CallbackInfo& info);
  Napi::Value SetReferenced(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<std::vector<Completion>> batch_;
  Napi::FunctionReference listener_;
  // Null when only polled.
  std::shared_ptr<CompletionWatch> watch_;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_DEVICE_ADDON_H_
