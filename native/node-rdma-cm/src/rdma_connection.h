// The connection manager: an event channel and the ids on it.
//
// The queue pair is not librdmacm's: it is made on a device context of our own (whose lifetime we know) and taken
// through its states here, with the attributes that the manager gives for the id; the manager carries the handshake.
// Invariants: an event is acknowledged as soon as it is copied, so destroying an id never waits for us; an id holds its
// channel. Fault model: any event at any time, for ids that are gone (dropped); requests nobody takes (destroyed, which
// refuses them).
#ifndef NODE_RDMA_CM_RDMA_CONNECTION_H_
#define NODE_RDMA_CM_RDMA_CONNECTION_H_

#include <rdma/rdma_cma.h>

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "rdma_manager_device.h"
#include "rdma_queue_pair.h"

namespace node_rdma_cm {

class ConnectionId;

struct CmEvent {
  uint32_t type;
  int status;
  // Handle of the id that it is for.
  uint32_t id;
  // Of a connection request.
  std::shared_ptr<ConnectionId> new_id;
  std::vector<uint8_t> private_data;
  uint8_t responder_resources;
  uint8_t initiator_depth;
  uint8_t retry_count;
  uint8_t rnr_retry_count;
};

class EventChannel : public std::enable_shared_from_this<EventChannel> {
 public:
  EventChannel();
  ~EventChannel();
  EventChannel(const EventChannel&) = delete;
  EventChannel& operator=(const EventChannel&) = delete;

  int fd() const { return channel_->fd; }
  rdma_event_channel* channel() const { return channel_; }
  std::shared_ptr<ConnectionId> CreateId();
  // False when there is none.
  bool NextEvent(CmEvent* out);
  // Called when an id came or went.
  std::function<void()> changed;
  uint32_t id_count() const { return static_cast<uint32_t>(ids_.size()); }

 private:
  friend class ConnectionId;
  const Counted counted_{Live().channels};
  rdma_event_channel* channel_;
  std::unordered_map<uint32_t, ConnectionId*> ids_;
};

struct Address {
  // 4, 6, or 0 for none.
  int version;
  std::string host;
  uint16_t port;
};

class ConnectionId {
 public:
  ConnectionId(std::shared_ptr<EventChannel> channel, rdma_cm_id* id);
  ~ConnectionId() { Close(); }
  ConnectionId(const ConnectionId&) = delete;
  ConnectionId& operator=(const ConnectionId&) = delete;

  uint32_t handle() const { return handle_; }
  const std::shared_ptr<EventChannel>& channel() const { return channel_; }
  bool closed() const { return id_ == nullptr; }
  // Empty before the address is resolved.
  std::string device_name() const;
  uint32_t port_number() const { return id_ == nullptr ? 0 : id_->port_num; }
  Address local_address() const;
  Address remote_address() const;

  void SetOption(int option, const void* value, size_t length_bytes);
  void Bind(const std::string& host, uint16_t port);
  void ResolveAddress(const std::string& source_host, const std::string& host, uint16_t port, int timeout_ms);
  void ResolveRoute(int timeout_ms);
  void Listen(int backlog);
  std::shared_ptr<QueuePair> CreateQueuePair(std::shared_ptr<ProtectionDomain> domain,
                                             std::shared_ptr<CompletionQueue> send_queue,
                                             std::shared_ptr<CompletionQueue> receive_queue,
                                             std::shared_ptr<SharedReceiveQueue> shared, const QueuePairSizes& sizes);
  void Connect(std::shared_ptr<QueuePair> queue_pair, ConnectParameters parameters);
  void Accept(std::shared_ptr<QueuePair> queue_pair, ConnectParameters parameters);
  void Reject(const std::vector<uint8_t>& private_data);
  void Disconnect();
  void Close();

 private:
  friend class EventChannel;
  rdma_cm_id* Live() const;
  void HoldDevice() { device_.Hold(id_->verbs); }
  // The peer accepted, and has so many resources for our reads. 0 or an errno.
  int Establish(uint8_t initiator_depth_max);

  const Counted counted_{node_rdma_cm::Live().ids};
  const std::shared_ptr<EventChannel> channel_;
  ManagerDevice device_;
  rdma_cm_id* id_;
  const uint32_t handle_;
  std::shared_ptr<QueuePair> queue_pair_;
  ConnectParameters parameters_;
  // Of a connection request: what the peer has resources for.
  uint8_t initiator_depth_max_ = 255;
};

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_RDMA_CONNECTION_H_
