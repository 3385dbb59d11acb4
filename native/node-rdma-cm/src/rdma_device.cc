#include "rdma_device.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>

#include "rdma_manager_device.h"
#include "rdma_queue_pair.h"

namespace node_rdma_cm {
namespace {

struct DeviceList {
  DeviceList() : entries(ibv_get_device_list(&count)) {
    if (entries == nullptr) throw VerbsError{errno == 0 ? ENOSYS : errno, "ibv_get_device_list", "no list of devices"};
  }
  ~DeviceList() { ibv_free_device_list(entries); }
  DeviceList(const DeviceList&) = delete;
  DeviceList& operator=(const DeviceList&) = delete;
  int count = 0;
  ibv_device** entries;
};

const char* TransportName(ibv_transport_type type) {
  switch (type) {
    case IBV_TRANSPORT_IB:
      return "infiniband";
    case IBV_TRANSPORT_IWARP:
      return "iwarp";
    case IBV_TRANSPORT_USNIC:
    case IBV_TRANSPORT_USNIC_UDP:
      return "usnic";
    default:
      return "unspecified";
  }
}

const char* GidTypeName(uint32_t type) {
  switch (type) {
    case IBV_GID_TYPE_ROCE_V1:
      return "roceV1";
    case IBV_GID_TYPE_ROCE_V2:
      return "roceV2";
    default:
      return "ib";
  }
}

}  // namespace

LiveCounts& Live() {
  // Never destroyed: worker threads may still run finalizers while the process exits.
  static auto* counts = new LiveCounts();
  return *counts;
}

std::vector<DeviceName> ListDevices() {
  const DeviceList list;
  std::vector<DeviceName> names;
  for (int i = 0; i < list.count; i++) {
    char guid[17];
    std::snprintf(guid, sizeof guid, "%016" PRIx64, be64toh(ibv_get_device_guid(list.entries[i])));
    names.push_back({ibv_get_device_name(list.entries[i]), guid, ibv_node_type_str(list.entries[i]->node_type),
                     TransportName(list.entries[i]->transport_type)});
  }
  return names;
}

std::shared_ptr<DeviceContext> DeviceContext::Open(const std::string& name) {
  const DeviceList list;
  for (int i = 0; i < list.count; i++) {
    if (name != ibv_get_device_name(list.entries[i])) continue;
    ibv_context* context = ibv_open_device(list.entries[i]);
    if (context == nullptr) throw VerbsError{errno == 0 ? ENODEV : errno, "ibv_open_device", "can't be opened"};
    return std::shared_ptr<DeviceContext>(new DeviceContext(context, name));
  }
  throw VerbsError{ENODEV, "ibv_open_device", "there is no such device"};
}

DeviceContext::DeviceContext(ibv_context* context, std::string name) : context_(context), name_(std::move(name)) {
  const int error = ibv_query_device_ex(context_, nullptr, &attributes_);
  if (error != 0) {
    ibv_close_device(context_);
    throw VerbsError{error, "ibv_query_device_ex", "the device doesn't tell its limits"};
  }
  fcntl(context_->async_fd, F_SETFL, fcntl(context_->async_fd, F_GETFL) | O_NONBLOCK);
}

DeviceContext::~DeviceContext() {
  ibv_close_device(context_);
  ManagerDevice::ReleaseRemoved();
}

std::vector<Port> DeviceContext::Ports() const {
  std::vector<Port> ports;
  for (uint32_t number = 1; number <= attributes_.phys_port_cnt_ex; number++) {
    Port port = {number, {}, {}};
    const int error = ibv_query_port(context_, static_cast<uint8_t>(number), &port.attributes);
    if (error != 0) throw VerbsError{error, "ibv_query_port", "the port doesn't answer"};
    ports.push_back(std::move(port));
  }
  ibv_gid_entry entries[256];
  const ssize_t count = ibv_query_gid_table(context_, entries, 256, 0);
  for (ssize_t i = 0; i < count; i++) {
    const ibv_gid_entry& entry = entries[i];
    if (entry.port_num < 1 || entry.port_num > ports.size()) continue;
    char text[INET6_ADDRSTRLEN] = "";
    inet_ntop(AF_INET6, entry.gid.raw, text, sizeof text);
    char netdev[IF_NAMESIZE] = "";
    if (entry.ndev_ifindex != 0) if_indextoname(entry.ndev_ifindex, netdev);
    ports[entry.port_num - 1].gids.push_back({entry.gid_index, text, GidTypeName(entry.gid_type), netdev});
  }
  return ports;
}

bool DeviceContext::NextAsyncEvent(AsyncEvent* out) {
  ibv_async_event event;
  if (ibv_get_async_event(context_, &event) != 0) return false;
  *out = {event.event_type, 0, 0};
  switch (event.event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED: {
      const auto found = queue_pairs.find(event.element.qp->qp_num);
      if (found != queue_pairs.end()) out->queue_pair = found->second->handle();
      break;
    }
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_PORT_ERR:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_GID_CHANGE:
    case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
      out->port = static_cast<uint32_t>(event.element.port_num);
      break;
    default:
      break;
  }
  // At once: destroying what an event is about waits until it was acknowledged.
  ibv_ack_async_event(&event);
  return true;
}

}  // namespace node_rdma_cm
