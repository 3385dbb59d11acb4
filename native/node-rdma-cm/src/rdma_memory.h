// Protection domains, memory regions, memory windows of type 2.
//
// Invariants: a region's memory is the device's from Register until Close (or the destructor) has returned, no longer;
// a window that may be bound holds its region. Fault model: registration refused (limit on locked memory, access that
// the device lacks), deregistration refused while windows are bound.
#ifndef NODE_RDMA_CM_RDMA_MEMORY_H_
#define NODE_RDMA_CM_RDMA_MEMORY_H_

#include <functional>
#include <memory>

#include "rdma_device.h"

namespace node_rdma_cm {

class ProtectionDomain {
 public:
  explicit ProtectionDomain(std::shared_ptr<DeviceContext> device);
  ~ProtectionDomain();
  ProtectionDomain(const ProtectionDomain&) = delete;
  ProtectionDomain& operator=(const ProtectionDomain&) = delete;
  ibv_pd* pd() const { return pd_; }
  const std::shared_ptr<DeviceContext>& device() const { return device_; }

 private:
  const Counted counted_{Live().domains};
  const std::shared_ptr<DeviceContext> device_;
  ibv_pd* pd_;
};

class MemoryRegion : public std::enable_shared_from_this<MemoryRegion> {
 public:
  MemoryRegion(std::shared_ptr<ProtectionDomain> domain, uint8_t* base, size_t length_bytes, uint32_t access);
  ~MemoryRegion();
  MemoryRegion(const MemoryRegion&) = delete;
  MemoryRegion& operator=(const MemoryRegion&) = delete;

  // Throws while windows are bound on it (or whatever else the device says); may be called again then.
  void Close();
  bool closed() const { return mr_ == nullptr; }
  ibv_mr* mr() const { return mr_; }
  uint8_t* base() const { return base_; }
  size_t length_bytes() const { return length_bytes_; }
  // What remote addresses and a bind's address count from.
  uint64_t address() const { return zero_based_ ? 0 : reinterpret_cast<uintptr_t>(base_); }
  uint32_t slot() const { return slot_; }
  const ProtectionDomain* domain() const { return domain_.get(); }
  bool Contains(double offset, double length) const {
    return offset >= 0 && length > 0 && offset + length <= static_cast<double>(length_bytes_);
  }

  // Whatever keeps the memory in place.
  std::shared_ptr<void> memory;
  // Whether the memory still belongs to the buffer that was registered: asked before the processor reads it (inline).
  std::function<bool()> memory_is_there;

 private:
  const Counted counted_{Live().regions};
  const std::shared_ptr<ProtectionDomain> domain_;
  uint8_t* const base_;
  const size_t length_bytes_;
  const bool zero_based_;
  ibv_mr* mr_;
  uint32_t slot_ = 0;
};

class MemoryWindow {
 public:
  explicit MemoryWindow(std::shared_ptr<ProtectionDomain> domain);
  ~MemoryWindow();
  MemoryWindow(const MemoryWindow&) = delete;
  MemoryWindow& operator=(const MemoryWindow&) = delete;

  void Close();
  ibv_mw* mw() const { return mw_; }
  uint32_t slot() const { return slot_; }
  const ProtectionDomain* domain() const { return domain_.get(); }
  // After a bind was posted.
  void BoundTo(std::shared_ptr<MemoryRegion> region, uint32_t key) {
    region_ = std::move(region);
    mw_->rkey = key;
  }

 private:
  const Counted counted_{Live().windows};
  const std::shared_ptr<ProtectionDomain> domain_;
  std::shared_ptr<MemoryRegion> region_;
  ibv_mw* mw_;
  uint32_t slot_ = 0;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RDMA_MEMORY_H_
