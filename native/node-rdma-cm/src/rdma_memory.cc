#include "rdma_memory.h"

#include <errno.h>

#include "abi.h"

namespace node_rdma_cm {

static_assert(uint32_t{kLocalWrite} == IBV_ACCESS_LOCAL_WRITE + 0u);
static_assert(uint32_t{kRemoteWrite} == IBV_ACCESS_REMOTE_WRITE + 0u);
static_assert(uint32_t{kRemoteRead} == IBV_ACCESS_REMOTE_READ + 0u);
static_assert(uint32_t{kRemoteAtomic} == IBV_ACCESS_REMOTE_ATOMIC + 0u);
static_assert(uint32_t{kWindowBind} == IBV_ACCESS_MW_BIND + 0u);
static_assert(uint32_t{kZeroBased} == IBV_ACCESS_ZERO_BASED + 0u);
static_assert(uint32_t{kRelaxedOrdering} == IBV_ACCESS_RELAXED_ORDERING + 0u);

ProtectionDomain::ProtectionDomain(std::shared_ptr<DeviceContext> device)
    : device_(std::move(device)), pd_(ibv_alloc_pd(device_->context())) {
  if (pd_ == nullptr) throw VerbsError{errno, "ibv_alloc_pd", "no protection domain"};
}

ProtectionDomain::~ProtectionDomain() { ibv_dealloc_pd(pd_); }

MemoryRegion::MemoryRegion(std::shared_ptr<ProtectionDomain> domain, uint8_t* base, size_t length_bytes,
                           uint32_t access)
    : domain_(std::move(domain)), base_(base), length_bytes_(length_bytes), zero_based_((access & kZeroBased) != 0) {
  mr_ = zero_based_ ? ibv_reg_mr_iova(domain_->pd(), base, length_bytes, 0, static_cast<int>(access & ~kZeroBased))
                    : ibv_reg_mr(domain_->pd(), base, length_bytes, static_cast<int>(access));
  if (mr_ == nullptr) throw VerbsError{errno, "ibv_reg_mr", "the memory can't be registered"};
  slot_ = domain_->device()->regions.Add(this);
}

MemoryRegion::~MemoryRegion() {
  if (mr_ == nullptr) return;
  domain_->device()->regions.Remove(slot_);
  ibv_dereg_mr(mr_);
}

void MemoryRegion::Close() {
  if (mr_ == nullptr) return;
  const int error = ibv_dereg_mr(mr_);
  // Devices differ in what they call it.
  if (error == EBUSY || error == EINVAL) throw VerbsError{EBUSY, "ibv_dereg_mr", "memory windows are bound on it"};
  if (error != 0) throw VerbsError{error, "ibv_dereg_mr", "the memory can't be deregistered"};
  mr_ = nullptr;
  domain_->device()->regions.Remove(slot_);
}

MemoryWindow::MemoryWindow(std::shared_ptr<ProtectionDomain> domain) : domain_(std::move(domain)) {
  const unsigned flags = domain_->device()->attributes().orig_attr.device_cap_flags;
  if ((flags & (IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B)) == 0)
    throw VerbsError{EOPNOTSUPP, "ibv_alloc_mw", "the device has no memory windows of type 2"};
  mw_ = ibv_alloc_mw(domain_->pd(), IBV_MW_TYPE_2);
  if (mw_ == nullptr) throw VerbsError{errno, "ibv_alloc_mw", "no memory window"};
  slot_ = domain_->device()->windows.Add(this);
}

MemoryWindow::~MemoryWindow() {
  if (mw_ == nullptr) return;
  domain_->device()->windows.Remove(slot_);
  ibv_dealloc_mw(mw_);
}

void MemoryWindow::Close() {
  if (mw_ == nullptr) return;
  const int error = ibv_dealloc_mw(mw_);
  if (error != 0) throw VerbsError{error, "ibv_dealloc_mw", "the window can't be ended"};
  mw_ = nullptr;
  domain_->device()->windows.Remove(slot_);
  region_.reset();
}

}  // namespace node_rdma_cm
