#include "rdma_connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace node_rdma_cm {
namespace {

uint32_t NextHandle() {
  static std::atomic<uint32_t> next{1};
  return next++;
}

sockaddr_storage ParseAddress(const std::string& host, uint16_t port) {
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  // Numbers only: it asks nobody. An IPv6 zone is understood.
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0 || found == nullptr)
    throw VerbsError{EINVAL, "getaddrinfo", "'" + host + "' is no address"};
  sockaddr_storage address = {};
  std::memcpy(&address, found->ai_addr, std::min<size_t>(found->ai_addrlen, sizeof address));
  freeaddrinfo(found);
  return address;
}

Address FormatAddress(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    return {4, text, ntohs(v4->sin_port)};
  }
  if (address->sa_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
    inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    return {6, text, ntohs(v6->sin6_port)};
  }
  return {0, "", 0};
}

void Check(int result, const char* call, const char* detail) {
  if (result != 0) throw VerbsError{errno, call, detail};
}

rdma_conn_param ManagerParameters(const QueuePair& queue_pair, const ConnectParameters& parameters) {
  rdma_conn_param out = {};
  out.private_data = parameters.private_data.data();
  out.private_data_len = static_cast<uint8_t>(parameters.private_data.size());
  out.responder_resources = parameters.responder_resources;
  out.initiator_depth = parameters.initiator_depth;
  out.retry_count = parameters.retry_count;
  out.rnr_retry_count = parameters.rnr_retry_count;
  out.srq = queue_pair.has_shared_receives() ? 1 : 0;
  out.qp_num = queue_pair.number();
  return out;
}

bool HasConnectionParameters(uint32_t type) {
  return type == RDMA_CM_EVENT_CONNECT_REQUEST || type == RDMA_CM_EVENT_CONNECT_RESPONSE ||
         type == RDMA_CM_EVENT_ESTABLISHED || type == RDMA_CM_EVENT_REJECTED || type == RDMA_CM_EVENT_DISCONNECTED;
}

}  // namespace

EventChannel::EventChannel() : channel_(rdma_create_event_channel()) {
  if (channel_ == nullptr) throw VerbsError{errno, "rdma_create_event_channel", "no event channel"};
  fcntl(channel_->fd, F_SETFL, fcntl(channel_->fd, F_GETFL) | O_NONBLOCK);
}

EventChannel::~EventChannel() {
  rdma_destroy_event_channel(channel_);
  ManagerDevice::ReleaseRemoved();
}

std::shared_ptr<ConnectionId> EventChannel::CreateId() {
  rdma_cm_id* id = nullptr;
  Check(rdma_create_id(channel_, &id, nullptr, RDMA_PS_TCP), "rdma_create_id", "no connection id");
  return std::make_shared<ConnectionId>(shared_from_this(), id);
}

bool EventChannel::NextEvent(CmEvent* out) {
  rdma_cm_event* event = nullptr;
  if (rdma_get_cm_event(channel_, &event) != 0) return false;
  *out = {};
  out->type = event->event;
  out->status = event->status;
  if (HasConnectionParameters(event->event)) {
    const rdma_conn_param& connection = event->param.conn;
    const auto* data = static_cast<const uint8_t*>(connection.private_data);
    if (data != nullptr) out->private_data.assign(data, data + connection.private_data_len);
    out->responder_resources = connection.responder_resources;
    out->initiator_depth = connection.initiator_depth;
    out->retry_count = connection.retry_count;
    out->rnr_retry_count = connection.rnr_retry_count;
  }
  rdma_cm_id* new_id = event->event == RDMA_CM_EVENT_CONNECT_REQUEST ? event->id : nullptr;
  const rdma_cm_id* target = new_id == nullptr ? event->id : event->listen_id;
  out->id = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(target->context));
  // At once: destroying an id waits for its events to be acknowledged.
  rdma_ack_cm_event(event);
  if (new_id != nullptr) {
    out->new_id = std::make_shared<ConnectionId>(shared_from_this(), new_id);
    out->new_id->initiator_depth_max_ = out->initiator_depth;
  }
  const auto found = ids_.find(out->id);
  if (found == ids_.end()) return true;
  found->second->HoldDevice();
  if (out->type == RDMA_CM_EVENT_CONNECT_RESPONSE) {
    const int error = found->second->Establish(out->initiator_depth);
    out->type = error == 0 ? RDMA_CM_EVENT_ESTABLISHED : RDMA_CM_EVENT_CONNECT_ERROR;
    if (error != 0) out->status = -error;
  }
  return true;
}

ConnectionId::ConnectionId(std::shared_ptr<EventChannel> channel, rdma_cm_id* id)
    : channel_(std::move(channel)), id_(id), handle_(NextHandle()) {
  id_->context = reinterpret_cast<void*>(static_cast<uintptr_t>(handle_));
  channel_->ids_[handle_] = this;
  HoldDevice();
  if (channel_->changed) channel_->changed();
}

rdma_cm_id* ConnectionId::Live() const {
  if (id_ == nullptr) throw VerbsError{EBADF, "connection", "it is closed"};
  return id_;
}

std::string ConnectionId::device_name() const {
  return id_ == nullptr || id_->verbs == nullptr ? "" : ibv_get_device_name(id_->verbs->device);
}

Address ConnectionId::local_address() const {
  return id_ == nullptr ? Address{0, "", 0} : FormatAddress(rdma_get_local_addr(id_));
}

Address ConnectionId::remote_address() const {
  return id_ == nullptr ? Address{0, "", 0} : FormatAddress(rdma_get_peer_addr(id_));
}

void ConnectionId::SetOption(int option, const void* value, size_t length_bytes) {
  // The library takes what it only reads without const.
  Check(rdma_set_option(Live(), RDMA_OPTION_ID, option, const_cast<void*>(value), length_bytes), "rdma_set_option",
        "the option can't be set");
}

void ConnectionId::Bind(const std::string& host, uint16_t port) {
  sockaddr_storage address = ParseAddress(host, port);
  Check(rdma_bind_addr(Live(), reinterpret_cast<sockaddr*>(&address)), "rdma_bind_addr", "the address can't be had");
  HoldDevice();
}

void ConnectionId::ResolveAddress(const std::string& source_host, const std::string& host, uint16_t port,
                                  int timeout_ms) {
  sockaddr_storage target = ParseAddress(host, port);
  sockaddr_storage source = {};
  if (!source_host.empty()) source = ParseAddress(source_host, 0);
  Check(rdma_resolve_addr(Live(), source_host.empty() ? nullptr : reinterpret_cast<sockaddr*>(&source),
                          reinterpret_cast<sockaddr*>(&target), timeout_ms),
        "rdma_resolve_addr", "no device leads there");
}

void ConnectionId::ResolveRoute(int timeout_ms) {
  Check(rdma_resolve_route(Live(), timeout_ms), "rdma_resolve_route", "no route leads there");
}

void ConnectionId::Listen(int backlog) { Check(rdma_listen(Live(), backlog), "rdma_listen", "it can't listen"); }

std::shared_ptr<QueuePair> ConnectionId::CreateQueuePair(std::shared_ptr<ProtectionDomain> domain,
                                                         std::shared_ptr<CompletionQueue> send_queue,
                                                         std::shared_ptr<CompletionQueue> receive_queue,
                                                         std::shared_ptr<SharedReceiveQueue> shared,
                                                         const QueuePairSizes& sizes) {
  rdma_cm_id* id = Live();
  if (device_name() != domain->device()->name())
    throw VerbsError{EINVAL, "ibv_create_qp", "the connection goes through another device, or none yet"};
  return std::make_shared<QueuePair>(id, std::move(domain), std::move(send_queue), std::move(receive_queue),
                                     std::move(shared), sizes);
}

void ConnectionId::Connect(std::shared_ptr<QueuePair> queue_pair, ConnectParameters parameters) {
  rdma_cm_id* id = Live();
  if (queue_pair->closed()) throw VerbsError{EBADF, "rdma_connect", "the queue pair is closed"};
  queue_pair_ = std::move(queue_pair);
  parameters_ = std::move(parameters);
  rdma_conn_param connection = ManagerParameters(*queue_pair_, parameters_);
  Check(rdma_connect(id, &connection), "rdma_connect", "the peer can't be asked");
}

int ConnectionId::Establish(uint8_t initiator_depth_max) {
  if (id_ == nullptr || queue_pair_ == nullptr) return ECANCELED;
  try {
    parameters_.initiator_depth = std::min(parameters_.initiator_depth, initiator_depth_max);
    queue_pair_->Connect(id_, parameters_);
    Check(rdma_establish(id_), "rdma_establish", "the peer can't be told");
    return 0;
  } catch (const VerbsError& error) {
    queue_pair_->MoveToError();
    // The peer waits for an answer.
    rdma_reject(id_, nullptr, 0);
    return error.error;
  }
}

void ConnectionId::Accept(std::shared_ptr<QueuePair> queue_pair, ConnectParameters parameters) {
  rdma_cm_id* id = Live();
  parameters.initiator_depth = std::min(parameters.initiator_depth, initiator_depth_max_);
  queue_pair->Connect(id, parameters);
  queue_pair_ = std::move(queue_pair);
  rdma_conn_param connection = ManagerParameters(*queue_pair_, parameters);
  Check(rdma_accept(id, &connection), "rdma_accept", "the peer can't be answered");
}

void ConnectionId::Reject(const std::vector<uint8_t>& private_data) {
  Check(rdma_reject(Live(), private_data.data(), static_cast<uint8_t>(private_data.size())), "rdma_reject",
        "the peer can't be answered");
}

void ConnectionId::Disconnect() {
  if (id_ == nullptr) return;
  if (queue_pair_ != nullptr) queue_pair_->MoveToError();
  if (rdma_disconnect(id_) == 0) return;
  // EINVAL when the connection is gone already, the others when the device is: nothing to end.
  if (errno != EINVAL && errno != ENXIO && errno != ENODEV)
    throw VerbsError{errno, "rdma_disconnect", "it can't be ended"};
}

void ConnectionId::Close() {
  if (id_ == nullptr) return;
  channel_->ids_.erase(handle_);
  if (channel_->changed) channel_->changed();
  if (queue_pair_ != nullptr) queue_pair_->MoveToError();
  rdma_destroy_id(id_);
  id_ = nullptr;
  device_.LetGo();
  queue_pair_.reset();
}

}  // namespace node_rdma_cm
