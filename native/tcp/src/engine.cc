#include "engine.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "connection.h"

namespace holdfast {

// A listening socket. Accepts a bounded number per turn. When the process is out of descriptors it spends a spare one
// to accept and drop: otherwise the pending connection would keep the loop spinning.
class Listener {
 public:
  Listener(Engine* engine, uint32_t id, int fd) : engine_(engine), id_(id), fd_(fd) { poll_.data = this; }

  bool Start() {
    if (uv_poll_init(engine_->loop, &poll_, fd_) != 0) return false;
    engine_->HandleOpened();
    spare_fd_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
    uv_poll_start(&poll_, UV_READABLE,
                  [](uv_poll_t* handle, int, int) { static_cast<Listener*>(handle->data)->OnReadable(); });
    return true;
  }

  void Close() {
    closed_ = true;
    uv_poll_stop(&poll_);
    uv_close(reinterpret_cast<uv_handle_t*>(&poll_), [](uv_handle_t* handle) {
      auto* self = static_cast<Listener*>(handle->data);
      Engine* engine = self->engine_;
      delete self;
      engine->HandleClosed();
    });
    close(fd_);
    if (spare_fd_ >= 0) close(spare_fd_);
  }

 private:
  void OnReadable() {
    for (int i = 0; i < 16 && !closed_; ++i) {
      const int fd = accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) {
        if (errno != EMFILE && errno != ENFILE) return;
        ++engine_->stats.accept_failures;
        if (spare_fd_ < 0) return;
        close(spare_fd_);
        const int victim = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
        if (victim >= 0) close(victim);
        spare_fd_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
        continue;
      }
      Connection* connection = engine_->Adopt(fd, false);
      if (connection != nullptr) engine_->sink->OnAccept(id_, connection->id());
    }
  }

  Engine* const engine_;
  const uint32_t id_;
  const int fd_;
  int spare_fd_ = -1;
  bool closed_ = false;
  uv_poll_t poll_;
};

namespace {

// Addresses only: names are looked up by the caller, off the loop.
bool ParseAddress(const char* host, int port, sockaddr_storage* out, socklen_t* length) {
  memset(out, 0, sizeof *out);
  auto* v4 = reinterpret_cast<sockaddr_in*>(out);
  if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    *length = sizeof *v4;
    return true;
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(out);
  if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    *length = sizeof *v6;
    return true;
  }
  return false;
}

}  // namespace

Engine::Engine(uv_loop_t* loop, EventSink* sink, Segment pool, uint32_t* offsets, size_t offsets_max,
               uint32_t* completions, size_t completions_max)
    : loop(loop),
      sink(sink),
      pool(pool),
      offsets(offsets),
      offsets_max(offsets_max),
      completions(completions),
      completions_max(completions_max) {}

Engine::~Engine() = default;

int Engine::Listen(const char* host, int port, int backlog, uint32_t* id, int* bound_port) {
  sockaddr_storage address;
  socklen_t length;
  if (!ParseAddress(host, port, &address, &length)) return -EINVAL;
  const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(fd, backlog) != 0) {
    const int error = errno;
    close(fd);
    return -error;
  }
  length = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  *bound_port = ntohs(address.ss_family == AF_INET ? reinterpret_cast<sockaddr_in*>(&address)->sin_port
                                                   : reinterpret_cast<sockaddr_in6*>(&address)->sin6_port);
  *id = next_id_++;
  auto* listener = new Listener(this, *id, fd);
  if (!listener->Start()) {
    delete listener;
    close(fd);
    return -EIO;
  }
  listeners_.emplace(*id, listener);
  return 0;
}

bool Engine::CloseListener(uint32_t id) {
  const auto it = listeners_.find(id);
  if (it == listeners_.end()) return false;
  Listener* listener = it->second;
  listeners_.erase(it);
  listener->Close();
  return true;
}

int Engine::Dial(const char* host, int port, uint32_t* id) {
  sockaddr_storage address;
  socklen_t length;
  if (!ParseAddress(host, port, &address, &length)) return -EINVAL;
  const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 && errno != EINPROGRESS) {
    const int error = errno;
    close(fd);
    return -error;
  }
  Connection* connection = Adopt(fd, true);
  if (connection == nullptr) return -EIO;
  *id = connection->id();
  return 0;
}

Connection* Engine::Adopt(int fd, bool connecting) {
  auto* connection = new Connection(this, next_id_++, fd, connecting);
  connections_.emplace(connection->id(), connection);
  if (connection->Start()) return connection;
  connection->Close();
  return nullptr;
}

Connection* Engine::Find(uint32_t id) const {
  const auto it = connections_.find(id);
  return it == connections_.end() ? nullptr : it->second;
}

void Engine::Forget(uint32_t connection) { connections_.erase(connection); }

WindowKey Engine::OpenWindow(uint32_t peer, WindowAccess access, std::vector<Segment> segments) {
  return windows.Open(peer, access, std::move(segments));
}

bool Engine::CloseWindow(uint64_t id) {
  if (!windows.Close(id)) return false;
  for (const auto& [connection_id, connection] : connections_) connection->WindowClosed(id);
  return true;
}

void Engine::Destroy() {
  if (destroyed_) return;
  destroyed_ = true;
  while (!listeners_.empty()) CloseListener(listeners_.begin()->first);
  while (!connections_.empty()) connections_.begin()->second->Close();
  if (handles_ == 0) sink->OnAllClosed();
}

void Engine::HandleClosed() {
  if (--handles_ == 0 && destroyed_) sink->OnAllClosed();
}

}  // namespace holdfast
