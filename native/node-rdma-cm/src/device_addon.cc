// Device, ProtectionDomain, MemoryRegion, MemoryWindow, SharedReceiveQueue, CompletionQueue.
#include "device_addon.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "rdma_queue_pair.h"

namespace node_rdma_cm {
namespace {

const char* Name(uint32_t number, const char* const* names, size_t count) {
  return number < count ? names[number] : "unknown";
}

int MtuBytes(ibv_mtu mtu) { return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128 << mtu : 0; }

const char* AtomicsName(ibv_atomic_cap capability) {
  return capability == IBV_ATOMIC_GLOB ? "global" : capability == IBV_ATOMIC_HCA ? "device" : "none";
}

}  // namespace

// Device

Napi::Function DeviceObject::Define(Napi::Env env) {
  return DefineClass(
      env, "Device",
      {InstanceAccessor("name", &DeviceObject::GetName, nullptr),
       InstanceAccessor("limits", &DeviceObject::Limits, nullptr), InstanceMethod("ports", &DeviceObject::Ports),
       InstanceMethod("createProtectionDomain", &DeviceObject::CreateProtectionDomain),
       InstanceMethod("createCompletionQueue", &DeviceObject::CreateCompletionQueue),
       InstanceMethod("close", &DeviceObject::Close)});
}

DeviceObject::DeviceObject(const Napi::CallbackInfo& info) : Wrapped(info) {
  if (!extra_.IsFunction()) throw Napi::TypeError::New(info.Env(), "a listener is wanted");
  listener_ = Napi::Persistent(extra_.As<Napi::Function>());
  watch_ = DescriptorWatch::Start(runtime_->loop, core_->async_fd(), core_, [this] { OnAsyncEvents(); });
  if (watch_ == nullptr) throw MakeError(info.Env(), {EBADF, "uv_poll_init", "the loop can't watch the device"});
  runtime_->Track(watch_);
}

DeviceObject::~DeviceObject() {
  if (watch_ != nullptr) watch_->Close();
}

void DeviceObject::End() {
  if (watch_ != nullptr) watch_->Close();
  watch_.reset();
  core_.reset();
}

void DeviceObject::OnAsyncEvents() {
  const Napi::Env env = Env();
  const Napi::HandleScope scope(env);
  const std::shared_ptr<DeviceContext> device = core_;
  AsyncEvent event;
  while (core_ != nullptr && device->NextAsyncEvent(&event)) {
    try {
      Napi::Object made = Napi::Object::New(env);
      Set(made, "type", Name(event.type, kAsyncEventNames, std::size(kAsyncEventNames)));
      if (event.queue_pair != 0) Set(made, "queuePair", event.queue_pair);
      if (event.port != 0) Set(made, "port", event.port);
      CallListener(env, listener_, {made});
    } catch (const Napi::Error&) {
      return;  // The worker is being terminated.
    }
  }
}

Napi::Value DeviceObject::GetName(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), core(info.Env())->name());
}

Napi::Value DeviceObject::Limits(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const ibv_device_attr& a = core(env)->attributes().orig_attr;
  Napi::Object limits = Napi::Object::New(env);
  Set(limits, "firmwareVersion", std::string(a.fw_ver, strnlen(a.fw_ver, sizeof a.fw_ver)));
  Set(limits, "vendorId", a.vendor_id);
  Set(limits, "maxRegionBytes", std::min(static_cast<double>(a.max_mr_size), kBytesMax));
  Set(limits, "maxQueuePairs", a.max_qp);
  Set(limits, "maxWorkRequests", std::min<int>(a.max_qp_wr, kQueueMax));
  Set(limits, "maxSegments", std::min<int>(a.max_sge, kSegmentsMax));
  Set(limits, "maxSegmentsRead", a.max_sge_rd == 0 ? a.max_sge : std::min(a.max_sge_rd, a.max_sge));
  Set(limits, "maxCompletionQueues", a.max_cq);
  Set(limits, "maxCompletionQueueDepth", a.max_cqe);
  Set(limits, "maxRegions", a.max_mr);
  Set(limits, "maxWindows", a.max_mw);
  Set(limits, "maxProtectionDomains", a.max_pd);
  Set(limits, "maxSharedReceiveQueues", a.max_srq);
  Set(limits, "maxSharedReceiveQueueWorkRequests", std::min<int>(a.max_srq_wr, kQueueMax));
  Set(limits, "maxResponderResources", a.max_qp_rd_atom);
  Set(limits, "maxInitiatorDepth", a.max_qp_init_rd_atom);
  Set(limits, "atomics", AtomicsName(a.atomic_cap));
  limits.Set("windowsType2", Napi::Boolean::New(env, (a.device_cap_flags & (IBV_DEVICE_MEM_WINDOW_TYPE_2A |
                                                                            IBV_DEVICE_MEM_WINDOW_TYPE_2B)) != 0));
  Set(limits, "physicalPorts", a.phys_port_cnt);
  return limits;
}

Napi::Value DeviceObject::Ports(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  static constexpr const char* kStates[] = {"noPort", "down", "init", "armed", "active", "activeDefer"};
  const std::vector<Port> ports = Verbs(env, [&] { return core(env)->Ports(); });
  Napi::Array list = Napi::Array::New(env);
  for (const Port& port : ports) {
    const ibv_port_attr& a = port.attributes;
    Napi::Object made = Napi::Object::New(env);
    Set(made, "number", port.number);
    Set(made, "state", Name(a.state, kStates, std::size(kStates)));
    Set(made, "linkLayer",
        a.link_layer == IBV_LINK_LAYER_ETHERNET     ? "ethernet"
        : a.link_layer == IBV_LINK_LAYER_INFINIBAND ? "infiniband"
                                                    : "unspecified");
    Set(made, "activeMtuBytes", MtuBytes(a.active_mtu));
    Set(made, "maxMtuBytes", MtuBytes(a.max_mtu));
    Set(made, "lid", a.lid);
    Set(made, "maxMessageBytes", a.max_msg_sz);
    Set(made, "activeSpeed", a.active_speed);
    Set(made, "activeWidth", a.active_width);
    Napi::Array gids = Napi::Array::New(env);
    for (const Gid& gid : port.gids) {
      Napi::Object entry = Napi::Object::New(env);
      Set(entry, "index", gid.index);
      Set(entry, "gid", gid.gid);
      Set(entry, "type", gid.type);
      entry.Set("netdev", gid.netdev.empty() ? env.Null() : Napi::String::New(env, gid.netdev));
      gids.Set(gids.Length(), entry);
    }
    made.Set("gids", gids);
    list.Set(list.Length(), made);
  }
  return list;
}

Napi::Value DeviceObject::CreateProtectionDomain(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& device = core(env);
  return ProtectionDomainObject::Make(env, Verbs(env, [&] { return std::make_shared<ProtectionDomain>(device); }));
}

// createCompletionQueue(depth, batchMax, spinUsMax or -1: not watched, listener)
Napi::Value DeviceObject::CreateCompletionQueue(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& device = core(env);
  const uint32_t depth = Number(info, 0, 1, 1u << 24);
  Number(info, 1, 1, 4096);
  const double spin_us = Number(env, info[2], -1, 1000);
  if (!info[3].IsFunction()) throw Napi::TypeError::New(env, "a listener is wanted");
  Napi::Array extra = Napi::Array::New(env);
  for (uint32_t i = 1; i < 4; i++) extra.Set(i - 1, info[i]);
  return CompletionQueueObject::Make(
      env, Verbs(env, [&] { return std::make_shared<CompletionQueue>(device, depth, spin_us >= 0); }), extra);
}

Napi::Value DeviceObject::Close(const Napi::CallbackInfo& info) {
  const bool was_open = core_ != nullptr;
  End();
  return Napi::Boolean::New(info.Env(), was_open);
}

// ProtectionDomain

Napi::Function ProtectionDomainObject::Define(Napi::Env env) {
  return DefineClass(env, "ProtectionDomain",
                     {InstanceMethod("registerMemory", &ProtectionDomainObject::RegisterMemory),
                      InstanceMethod("allocateWindow", &ProtectionDomainObject::AllocateWindow),
                      InstanceMethod("createSharedReceiveQueue", &ProtectionDomainObject::CreateSharedReceiveQueue),
                      InstanceMethod("close", &ProtectionDomainObject::Close)});
}

// registerMemory(buffer, offsetBytes, lengthBytes, access)
Napi::Value ProtectionDomainObject::RegisterMemory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& domain = core(env);
  if (!info[0].IsArrayBuffer()) throw Napi::TypeError::New(env, "an ArrayBuffer is wanted");
  auto buffer = info[0].As<Napi::ArrayBuffer>();
  const double offset = Number(env, info[1], 0, kBytesMax);
  const double length = Number(env, info[2], 1, kBytesMax);
  const uint32_t access = Number(info, 3, 0, kAccessAll);
  if (buffer.IsDetached() || offset + length > static_cast<double>(buffer.ByteLength()))
    throw Napi::RangeError::New(env, "the buffer is detached, or smaller");
  auto* base = static_cast<uint8_t*>(buffer.Data()) + static_cast<size_t>(offset);
  auto region =
      Verbs(env, [&] { return std::make_shared<MemoryRegion>(domain, base, static_cast<size_t>(length), access); });
  // Held as long as the device has the memory.
  auto held = std::make_shared<Napi::Reference<Napi::ArrayBuffer>>(Napi::Persistent(buffer));
  region->memory = held;
  region->memory_is_there = [env, held = held.get()] {
    const Napi::HandleScope scope(env);
    return !held->Value().IsDetached();
  };
  return MemoryRegionObject::Make(env, std::move(region));
}

Napi::Value ProtectionDomainObject::AllocateWindow(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& domain = core(env);
  return MemoryWindowObject::Make(env, Verbs(env, [&] { return std::make_shared<MemoryWindow>(domain); }));
}

Napi::Value ProtectionDomainObject::CreateSharedReceiveQueue(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto& domain = core(env);
  const uint32_t max_receive = Number(info, 0, 1, kQueueMax);
  const uint32_t max_segments = Number(info, 1, 1, kSegmentsMax);
  return SharedReceiveQueueObject::Make(
      env, Verbs(env, [&] { return std::make_shared<SharedReceiveQueue>(domain, max_receive, max_segments); }));
}

Napi::Value ProtectionDomainObject::Close(const Napi::CallbackInfo& info) {
  const bool was_open = core_ != nullptr;
  core_.reset();
  return Napi::Boolean::New(info.Env(), was_open);
}

// MemoryRegion

Napi::Function MemoryRegionObject::Define(Napi::Env env) {
  return DefineClass(env, "MemoryRegion",
                     {InstanceAccessor("slot", &MemoryRegionObject::Slot, nullptr),
                      InstanceAccessor("address", &MemoryRegionObject::Address, nullptr),
                      InstanceAccessor("localKey", &MemoryRegionObject::LocalKey, nullptr),
                      InstanceAccessor("remoteKey", &MemoryRegionObject::RemoteKey, nullptr),
                      InstanceMethod("close", &MemoryRegionObject::Close)});
}

void MemoryRegionObject::End() {
  if (core_ == nullptr) return;
  try {
    core_->Close();
  } catch (const VerbsError&) {
    // A window that is not ours to end any more; the region ends with the process.
  }
}

Napi::Value MemoryRegionObject::Slot(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->slot());
}
Napi::Value MemoryRegionObject::Address(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(core(info.Env())->address()));
}
Napi::Value MemoryRegionObject::LocalKey(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->mr()->lkey);
}
Napi::Value MemoryRegionObject::RemoteKey(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->mr()->rkey);
}

Napi::Value MemoryRegionObject::Close(const Napi::CallbackInfo& info) {
  const bool was_open = core_ != nullptr;
  if (was_open) {
    Verbs(info.Env(), [&] { core_->Close(); });
    // A window that was bound on it may hold the region still; the memory is free.
    core_->memory_is_there = nullptr;
    core_->memory.reset();
    core_.reset();
  }
  return Napi::Boolean::New(info.Env(), was_open);
}

// MemoryWindow

Napi::Function MemoryWindowObject::Define(Napi::Env env) {
  return DefineClass(env, "MemoryWindow",
                     {InstanceAccessor("slot", &MemoryWindowObject::Slot, nullptr),
                      InstanceAccessor("key", &MemoryWindowObject::Key, nullptr),
                      InstanceMethod("close", &MemoryWindowObject::Close)});
}

void MemoryWindowObject::End() {
  if (core_ == nullptr) return;
  try {
    core_->Close();
  } catch (const VerbsError&) {
    // The device is gone; so is the window.
  }
}

Napi::Value MemoryWindowObject::Slot(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->slot());
}
Napi::Value MemoryWindowObject::Key(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->mw()->rkey);
}
Napi::Value MemoryWindowObject::Close(const Napi::CallbackInfo& info) {
  const bool was_open = core_ != nullptr;
  if (was_open) {
    Verbs(info.Env(), [&] { core_->Close(); });
    core_.reset();
  }
  return Napi::Boolean::New(info.Env(), was_open);
}

// SharedReceiveQueue

Napi::Function SharedReceiveQueueObject::Define(Napi::Env env) {
  return DefineClass(env, "SharedReceiveQueue",
                     {InstanceAccessor("receives", &SharedReceiveQueueObject::Receives, nullptr),
                      InstanceAccessor("maxReceive", &SharedReceiveQueueObject::MaxReceive, nullptr),
                      InstanceAccessor("maxSegments", &SharedReceiveQueueObject::MaxSegments, nullptr),
                      InstanceAccessor("outstanding", &SharedReceiveQueueObject::Outstanding, nullptr),
                      InstanceMethod("postReceives", &SharedReceiveQueueObject::PostReceives),
                      InstanceMethod("armLimit", &SharedReceiveQueueObject::ArmLimit),
                      InstanceMethod("close", &SharedReceiveQueueObject::Close)});
}

Napi::Value SharedReceiveQueueObject::Receives(const Napi::CallbackInfo& info) {
  const auto& queue = core(info.Env());
  return Arena(info.Env(), queue->slots().arena());
}
Napi::Value SharedReceiveQueueObject::MaxReceive(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->slots().max_receive());
}
Napi::Value SharedReceiveQueueObject::MaxSegments(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->slots().max_segments());
}
Napi::Value SharedReceiveQueueObject::Outstanding(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->slots().outstanding());
}
Napi::Value SharedReceiveQueueObject::PostReceives(const Napi::CallbackInfo& info) {
  const auto& queue = core(info.Env());
  const uint32_t count = Number(info, 0, 0, queue->slots().max_receive());
  return Napi::Number::New(info.Env(), Verbs(info.Env(), [&] { return queue->Post(count); }));
}
Napi::Value SharedReceiveQueueObject::ArmLimit(const Napi::CallbackInfo& info) {
  const auto& queue = core(info.Env());
  const uint32_t count = Number(info, 0, 1, kQueueMax);
  Verbs(info.Env(), [&] { queue->ArmLimit(count); });
  return info.Env().Undefined();
}
Napi::Value SharedReceiveQueueObject::Close(const Napi::CallbackInfo& info) {
  const bool was_open = core_ != nullptr;
  core_.reset();
  return Napi::Boolean::New(info.Env(), was_open);
}

// CompletionQueue

Napi::Function CompletionQueueObject::Define(Napi::Env env) {
  return DefineClass(env, "CompletionQueue",
                     {InstanceAccessor("completions", &CompletionQueueObject::Completions, nullptr),
                      InstanceAccessor("depth", &CompletionQueueObject::Depth, nullptr),
                      InstanceMethod("poll", &CompletionQueueObject::Poll),
                      InstanceMethod("setReferenced", &CompletionQueueObject::SetReferenced),
                      InstanceMethod("close", &CompletionQueueObject::Close)});
}

CompletionQueueObject::CompletionQueueObject(const Napi::CallbackInfo& info) : Wrapped(info) {
  const auto extra = extra_.As<Napi::Array>();
  const double spin_us = Number(info.Env(), extra.Get(1u), -1, 1000);
  batch_ = std::make_shared<std::vector<Completion>>(
      static_cast<size_t>(Number(info.Env(), extra.Get(uint32_t{0}), 1, 4096)));
  listener_ = Napi::Persistent(extra.Get(2u).As<Napi::Function>());
  if (spin_us < 0) return;
  watch_ = CompletionWatch::Start(runtime_->loop, core_, batch_, static_cast<uint32_t>(spin_us),
                                  [this](uint32_t count, uint32_t errors) {
                                    const Napi::HandleScope scope(Env());
                                    napi_value arguments[2];
                                    if (napi_create_uint32(Env(), count, &arguments[0]) != napi_ok ||
                                        napi_create_uint32(Env(), errors, &arguments[1]) != napi_ok)
                                      return;
                                    CallListener(Env(), listener_, {arguments[0], arguments[1]});
                                  });
  if (watch_ == nullptr) throw MakeError(info.Env(), {EBADF, "uv_poll_init", "the loop can't watch the queue"});
  runtime_->Track(watch_);
  core_->changed = [weak = std::weak_ptr<CompletionWatch>(watch_)] {
    if (const auto watch = weak.lock()) watch->Changed();
  };
}

CompletionQueueObject::~CompletionQueueObject() {
  if (watch_ != nullptr) watch_->Close();
}

void CompletionQueueObject::End() {
  if (watch_ != nullptr) watch_->Close();
  watch_.reset();
  core_.reset();
}

Napi::Value CompletionQueueObject::Completions(const Napi::CallbackInfo& info) {
  return Arena(info.Env(), batch_->data(), batch_->size() * sizeof(Completion), batch_);
}
Napi::Value CompletionQueueObject::Depth(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core(info.Env())->depth());
}

// poll(maxWaitUs) -> count + errors * 65536
Napi::Value CompletionQueueObject::Poll(const Napi::CallbackInfo& info) {
  const auto& queue = core(info.Env());
  const double wait_us = Number(info.Env(), info[0], 0, 6e7);
  uint32_t errors = 0;
  const uint32_t count = queue->PollFor(batch_->data(), static_cast<uint32_t>(batch_->size()), &errors,
                                        static_cast<uint64_t>(wait_us) * 1000);
  return Napi::Number::New(info.Env(), count + errors * 65536.0);
}

Napi::Value CompletionQueueObject::SetReferenced(const Napi::CallbackInfo& info) {
  if (watch_ != nullptr) watch_->SetReferenced(info[0].ToBoolean());
  return info.Env().Undefined();
}

Napi::Value CompletionQueueObject::Close(const Napi::CallbackInfo& info) {
  const bool was_open = core_ != nullptr;
  End();
  return Napi::Boolean::New(info.Env(), was_open);
}

// The module's functions

namespace {

Napi::Value ListDevicesFunction(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::vector<DeviceName> names = Verbs(env, [] { return ListDevices(); });
  Napi::Array list = Napi::Array::New(env);
  for (const DeviceName& name : names) {
    Napi::Object made = Napi::Object::New(env);
    Set(made, "name", name.name);
    Set(made, "nodeGuid", name.guid);
    Set(made, "nodeType", name.node_type);
    Set(made, "transport", name.transport);
    list.Set(list.Length(), made);
  }
  return list;
}

// openDevice(name, listener)
Napi::Value OpenDevice(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string name = String(info, 0);
  if (!info[1].IsFunction()) throw Napi::TypeError::New(env, "a listener is wanted");
  return DeviceObject::Make(env, Verbs(env, [&] { return DeviceContext::Open(name); }), info[1]);
}

// allocate(lengthBytes) -> ArrayBuffer at a page's boundary, all zeros. Not for children: a fork would make its pages
// copy-on-write, and ours could be the copy.
Napi::Value Allocate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto length = static_cast<size_t>(Number(env, info[0], 1, kBytesMax));
  void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw MakeError(env, {errno, "mmap", std::to_string(length) + " bytes can't be had"});
  madvise(memory, length, MADV_DONTFORK);
  return Napi::ArrayBuffer::New(env, memory, length, [length](Napi::Env, void* data) { munmap(data, length); });
}

Napi::Value LiveObjects(const Napi::CallbackInfo& info) {
  const LiveCounts& live = Live();
  Napi::Object counts = Napi::Object::New(info.Env());
  Set(counts, "devices", live.devices);
  Set(counts, "protectionDomains", live.domains);
  Set(counts, "memoryRegions", live.regions);
  Set(counts, "memoryWindows", live.windows);
  Set(counts, "sharedReceiveQueues", live.receive_queues);
  Set(counts, "completionQueues", live.completion_queues);
  Set(counts, "queuePairs", live.queue_pairs);
  Set(counts, "eventChannels", live.channels);
  Set(counts, "connectionIds", live.ids);
  return counts;
}

}  // namespace

void DefineDeviceClasses(Napi::Env env, Runtime& runtime, Napi::Object exports) {
  const auto keep = [&](Kind kind, const Napi::Function& constructor) {
    runtime.constructors[static_cast<size_t>(kind)] = Napi::Persistent(constructor);
  };
  keep(Kind::kDevice, DeviceObject::Define(env));
  keep(Kind::kProtectionDomain, ProtectionDomainObject::Define(env));
  keep(Kind::kMemoryRegion, MemoryRegionObject::Define(env));
  keep(Kind::kMemoryWindow, MemoryWindowObject::Define(env));
  keep(Kind::kSharedReceiveQueue, SharedReceiveQueueObject::Define(env));
  keep(Kind::kCompletionQueue, CompletionQueueObject::Define(env));
  exports.Set("listDevices", Napi::Function::New(env, ListDevicesFunction, "listDevices"));
  exports.Set("openDevice", Napi::Function::New(env, OpenDevice, "openDevice"));
  exports.Set("allocate", Napi::Function::New(env, Allocate, "allocate"));
  exports.Set("liveObjects", Napi::Function::New(env, LiveObjects, "liveObjects"));
}

}  // namespace node_rdma_cm
