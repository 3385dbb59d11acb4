// The device contexts that librdmacm opens for itself.
//
// It opens one on each device that an id leads to and keeps it for the life of the process: it looks for devices that
// went only when it meets one that it doesn't know, and gives nothing up while there is none at all. Drivers that can't
// take a device from its users (soft-RoCE) wait for that context for ever, so that `rdma link delete` hangs. So once a
// device is gone and no id of ours leads to it any more, the descriptors of that context are made descriptors of
// /dev/null: the kernel has its device back, and librdmacm, whose context stays as it was, closes these when it looks.
//
// Nobody says when it is gone. The kernel takes a device from the connection manager first, which tells every id, and
// from the verbs later: whoever closes his ids at that news, or closed them long ago, has nothing left that would hear
// of the verbs' end. So it is looked at every now and then, in every thread that has made a channel (Runtime).
//
// Invariant: a context's descriptors are only touched while they are what they were when an id led to it (another file
// may have their numbers by now). Fault model: devices go and come at any time; ids on many threads.
#ifndef NODE_RDMA_CM_RDMA_MANAGER_DEVICE_H_
#define NODE_RDMA_CM_RDMA_MANAGER_DEVICE_H_

#include <infiniband/verbs.h>

namespace node_rdma_cm {

// An id's hold on librdmacm's context, from when the manager has led it to a device.
class ManagerDevice {
 public:
  ManagerDevice() = default;
  ~ManagerDevice() { LetGo(); }
  ManagerDevice(const ManagerDevice&) = delete;
  ManagerDevice& operator=(const ManagerDevice&) = delete;

  // Any number of times; null is no device yet.
  void Hold(const ibv_context* context);
  // After the id was destroyed.
  void LetGo();
  // Gives the kernel what is left of devices that were removed.
  static void ReleaseRemoved();

 private:
  const ibv_context* held_ = nullptr;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RDMA_MANAGER_DEVICE_H_
