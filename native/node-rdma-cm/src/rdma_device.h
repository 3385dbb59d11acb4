// A device context of libibverbs and what is looked up through it: memory regions and windows by slot, queue pairs by
// number.
//
// Ownership: everything that verbs make on something holds a shared_ptr to it (queue pair -> completion queues and
// domain; region, window -> domain; domain, completion queue -> device), so that whatever is let go of first, verbs
// see the order that they want. Each object has besides a Close that ends it at once and may be called any number of
// times.
// Knows nothing of JavaScript; one thread per device context.
#ifndef NODE_RDMA_CM_RDMA_DEVICE_H_
#define NODE_RDMA_CM_RDMA_DEVICE_H_

#include <infiniband/verbs.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace node_rdma_cm {

// What a call of the libraries refused, with its errno.
struct VerbsError {
  int error;
  const char* call;
  std::string detail;
  // Of a batch: how many were handed over before.
  int posted = -1;
};

// Objects alive in this process, for leak tests.
struct LiveCounts {
  std::atomic<uint32_t> devices, domains, regions, windows, receive_queues, completion_queues, queue_pairs, channels,
      ids;
};
LiveCounts& Live();

class Counted {
 public:
  explicit Counted(std::atomic<uint32_t>& count) : count_(count) { count_++; }
  ~Counted() { count_--; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::atomic<uint32_t>& count_;
};

// Small numbers for objects, so that a request can name one and a wrong number is found out.
template <typename T>
class SlotTable {
 public:
  uint32_t Add(T* object) {
    if (free_.empty()) {
      objects_.push_back(object);
      return static_cast<uint32_t>(objects_.size() - 1);
    }
    const uint32_t slot = free_.back();
    free_.pop_back();
    objects_[slot] = object;
    return slot;
  }
  void Remove(uint32_t slot) {
    objects_[slot] = nullptr;
    free_.push_back(slot);
  }
  T* Find(uint32_t slot) const { return slot < objects_.size() ? objects_[slot] : nullptr; }

 private:
  std::vector<T*> objects_;
  std::vector<uint32_t> free_;
};

class MemoryRegion;
class MemoryWindow;
class QueuePair;

struct DeviceName {
  std::string name;
  std::string guid;
  std::string node_type;
  std::string transport;
};
// Throws ENOSYS where the kernel has no verbs.
std::vector<DeviceName> ListDevices();

struct Gid {
  uint32_t index;
  std::string gid;
  const char* type;
  std::string netdev;
};

struct Port {
  uint32_t number;
  ibv_port_attr attributes;
  std::vector<Gid> gids;
};

struct AsyncEvent {
  uint32_t type;
  // 0 = none.
  uint32_t queue_pair;
  uint32_t port;
};

class DeviceContext {
 public:
  // Throws ENODEV when there is none of that name.
  static std::shared_ptr<DeviceContext> Open(const std::string& name);
  ~DeviceContext();
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  ibv_context* context() const { return context_; }
  const ibv_device_attr_ex& attributes() const { return attributes_; }
  const std::string& name() const { return name_; }
  std::vector<Port> Ports() const;
  // Readable when there are asynchronous events.
  int async_fd() const { return context_->async_fd; }
  bool NextAsyncEvent(AsyncEvent* out);

  SlotTable<MemoryRegion> regions;
  SlotTable<MemoryWindow> windows;
  // By the device's number.
  std::unordered_map<uint32_t, QueuePair*> queue_pairs;

 private:
  DeviceContext(ibv_context* context, std::string name);

  const Counted counted_{Live().devices};
  ibv_context* context_;
  const std::string name_;
  ibv_device_attr_ex attributes_ = {};
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RDMA_DEVICE_H_
