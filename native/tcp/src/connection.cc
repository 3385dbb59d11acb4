#include "connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace holdfast {

namespace {

// Room for the largest ordinary frame and then some; pages that no traffic reaches are never touched.
constexpr size_t kBufferBytes = 320 * 1024;
// One recv when no large frame is under way: what stays in the second-level cache.
constexpr size_t kReceiveBytes = 64 * 1024;
// Read beyond the end of a chunk: its successor's header and a few messages, not its data, which would then be copied.
constexpr size_t kTailBytes = 4096;
constexpr size_t kScratchBytes = 64 * 1024;
constexpr int kIovMax = 64;
// Bytes per turn of the loop and direction, so that one connection can't keep the others (and JS) waiting.
constexpr size_t kTurnBytes = 1 << 20;
// What may wait for a peer that doesn't read: beyond it the peer is at fault. Sessions bound their own share by
// credits.
constexpr size_t kMessageLaneBytesMax = 128u << 20;
constexpr size_t kBulkLaneMax = 65536;

// Where refused bytes go. Shared: nobody reads it, and the loop's thread has one each.
thread_local uint8_t scratch[kScratchBytes];

}  // namespace

Connection::Connection(Engine* engine, uint32_t id, int fd, bool connecting)
    : engine_(engine), id_(id), fd_(fd), connecting_(connecting) {
  poll_.data = this;
}

bool Connection::Start() {
  if (uv_poll_init(engine_->loop, &poll_, fd_) != 0) return false;
  poll_open_ = true;
  engine_->HandleOpened();
  const int on = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd_, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  // A host that vanished answers nothing: give up on it well before anyone's patience ends.
  const unsigned user_timeout_ms = 15000;
  const int idle_s = 10, interval_s = 2, count = 3;
  setsockopt(fd_, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms);
  setsockopt(fd_, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd_, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(fd_, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  buffer_ = engine_->sink->NewReceiveBuffer(id_, kBufferBytes);
  if (buffer_ == nullptr) return false;
  SetEvents(connecting_ ? UV_WRITABLE : UV_READABLE);
  return true;
}

void Connection::SetEvents(int events) {
  if (events == events_ || closed_) return;
  events_ = events;
  uv_poll_start(&poll_, events, PollCallback);
}

void Connection::PollCallback(uv_poll_t* handle, int status, int events) {
  auto* self = static_cast<Connection*>(handle->data);
  if (self->closed_) return;
  if (self->broken_ != LinkEnd::kClosedHere) return self->Fail(self->broken_, self->broken_error_);
  if (self->connecting_) return self->OnConnectable();
  if (status < 0) events = UV_READABLE;  // let recv say what is wrong
  if (self->reparse_) {
    self->reparse_ = false;
    self->ConsumeAndDeliver();
    if (self->closed_) return;
  }
  if (events & UV_WRITABLE) {
    if (!self->Pump()) return self->Fail(self->broken_, self->broken_error_);
  }
  if (events & UV_READABLE) self->OnReadable();
}

void Connection::CloseCallback(uv_handle_t* handle) {
  auto* self = static_cast<Connection*>(handle->data);
  Engine* engine = self->engine_;
  delete self;
  engine->HandleClosed();
}

void Connection::Close() {
  if (closed_) return;
  closed_ = true;
  framing_ = false;
  landing_ = Landing{};
  reads_.clear();
  bulk_lane_.clear();
  out_ = OutChunk{};
  message_lane_ = {};
  engine_->Forget(id_);
  // A batch that is being delivered is still looked at by JS, which holds the buffer itself.
  engine_->sink->DropReceiveBuffer(id_);
  if (poll_open_) {
    uv_poll_stop(&poll_);
    uv_close(reinterpret_cast<uv_handle_t*>(&poll_), CloseCallback);
    close(fd_);
    fd_ = -1;
  } else {
    close(fd_);
    delete this;  // only from a Start that failed: there is no close callback to do it
  }
}

void Connection::Fail(LinkEnd end, int error) {
  if (closed_) return;
  Close();
  engine_->sink->OnClosed(id_, end, error);
}

void Connection::OnConnectable() {
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error == EINPROGRESS) return;
  connecting_ = false;
  if (error != 0) {
    Close();
    engine_->sink->OnConnected(id_, error);
    return;
  }
  SetEvents(UV_READABLE);
  engine_->sink->OnConnected(id_, 0);
}

void Connection::StartFrames(uint32_t peer) {
  peer_ = peer;
  framing_ = true;
  // Frames may have come with the last record. From inside OnRecord they are parsed at once; otherwise the loop does
  // it.
  if (filled_ > parsed_) {
    reparse_ = true;
    SetEvents(UV_READABLE | UV_WRITABLE);
  }
}

bool Connection::SendRecord(const uint8_t* record) {
  if (closed_) return false;
  message_lane_.insert(message_lane_.end(), record, record + kHandshakeRecordBytes);
  return Pump();
}

// --- receiving ---

void Connection::OnReadable() {
  size_t turn = 0;
  while (!closed_ && turn < kTurnBytes) {
    iovec iov[kIovMax + 1];
    int count = 0;
    size_t wanted = 0;
    if (landing_.active) {
      size_t index = landing_.target_index, offset = landing_.target_offset;
      if (landing_.discard) {
        wanted = std::min(landing_.remaining, kScratchBytes);
        iov[count++] = {scratch, wanted};
      } else {
        while (count < kIovMax && wanted < landing_.remaining) {
          const Segment& segment = landing_.target[index++];
          const size_t take = std::min(segment.length - offset, landing_.remaining - wanted);
          iov[count++] = {segment.base + offset, take};
          wanted += take;
          offset = 0;
        }
      }
      if (wanted == landing_.remaining) {
        iov[count++] = {buffer_, kTailBytes};
        wanted += kTailBytes;
      }
    } else {
      size_t limit = kReceiveBytes;
      if (framing_ && filled_ >= kHeaderBytes) {
        // A large frame is under way: ask for the rest of it in one go.
        const size_t whole = kHeaderBytes + Load32(buffer_ + kAtBodyBytes);
        if (whole > filled_) limit = std::max(limit, whole - filled_);
      }
      wanted = std::min(limit, kBufferBytes - filled_);
      iov[count++] = {buffer_ + filled_, wanted};
    }
    const ssize_t got = readv(fd_, iov, count);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) break;
      return Fail(LinkEnd::kSocketError, errno);
    }
    if (got == 0) return Fail(LinkEnd::kClosedByPeer, 0);
    turn += static_cast<size_t>(got);
    engine_->stats.bytes_received += static_cast<uint64_t>(got);
    size_t rest = static_cast<size_t>(got);
    if (landing_.active) {
      const size_t landed = std::min(rest, landing_.remaining);
      AdvanceLanding(landed);
      rest -= landed;
      if (landing_.remaining == 0 && !FinishLanding()) return Fail(broken_, broken_error_);
    }
    filled_ += rest;
    ConsumeAndDeliver();
    if (static_cast<size_t>(got) < wanted) break;
  }
  if (!closed_ && !Pump()) Fail(broken_, broken_error_);
}

void Connection::ConsumeAndDeliver() {
  while (!closed_ && !framing_ && filled_ - parsed_ >= kHandshakeRecordBytes) {
    const uint8_t* record = buffer_ + parsed_;
    parsed_ += kHandshakeRecordBytes;
    engine_->sink->OnRecord(id_, record);
  }
  bool trusted = true;
  while (!closed_ && framing_ && trusted) {
    trusted = Parse();
    const bool again = frame_count_ == engine_->offsets_max || completion_count_ == engine_->completions_max;
    if (frame_count_ + completion_count_ > 0) {
      const uint32_t frames = frame_count_, completions = completion_count_;
      frame_count_ = completion_count_ = 0;
      engine_->sink->OnBatch(id_, frames, completions);
    }
    if (!again) break;
  }
  if (closed_) return;
  if (!trusted) return Fail(broken_, broken_error_);
  // Only an unfinished frame is left: it moves to the front.
  if (parsed_ > 0) {
    memmove(buffer_, buffer_ + parsed_, filled_ - parsed_);
    filled_ -= parsed_;
    parsed_ = 0;
  }
}

bool Connection::Parse() {
  const auto refuse = [this](LinkEnd end) {
    broken_ = end;
    return false;
  };
  while (filled_ - parsed_ >= kHeaderBytes) {
    if (frame_count_ == engine_->offsets_max || completion_count_ == engine_->completions_max) return true;
    const uint8_t* header = buffer_ + parsed_;
    const size_t available = filled_ - parsed_;
    const LinkEnd verdict = JudgeHeader(header);
    if (verdict != LinkEnd::kClosedHere) return refuse(verdict);
    const uint8_t kind = header[kAtKind];
    const size_t body = Load32(header + kAtBodyBytes);
    if (kind == kWrite || kind == kReadData) {
      if (available < kHeaderBytes + kPrefixBytes) return true;
      const uint8_t* prefix = header + kHeaderBytes;
      if (Load32(prefix + kAtLength) != body - kPrefixBytes) return refuse(LinkEnd::kBadLength);
      BeginLanding(header, prefix);
      parsed_ += kHeaderBytes + kPrefixBytes;
      // What came along already is copied; everything after it is received in place.
      size_t here = std::min(filled_ - parsed_, landing_.remaining);
      while (here > 0) {
        size_t take = here;
        if (landing_.discard) {
          take = std::min(take, kScratchBytes);
          memcpy(scratch, buffer_ + parsed_, take);
        } else {
          const Segment& segment = landing_.target[landing_.target_index];
          take = std::min(take, segment.length - landing_.target_offset);
          memcpy(segment.base + landing_.target_offset, buffer_ + parsed_, take);
        }
        AdvanceLanding(take);
        parsed_ += take;
        here -= take;
      }
      if (landing_.remaining > 0) return true;  // the buffer is used up
      if (!FinishLanding()) return false;
      continue;
    }
    if (available < kHeaderBytes + body) return true;
    if (~CrcUpdate(CrcHeader(header), header + kHeaderBytes, body) != Load32(header + kAtCrc)) {
      return refuse(LinkEnd::kBadChecksum);
    }
    if (kind == kReadRequest) {
      if (!AnswerRead(header, header + kHeaderBytes)) return false;
    } else if (kind == kTransferDone) {
      const uint64_t transfer = Load64(header + kAtRequestSequence);
      reads_.erase(transfer);
      Complete(transfer, static_cast<TransferStatus>(Load16(header + kAtMessageType)));
    } else {
      engine_->offsets[frame_count_++] = static_cast<uint32_t>(parsed_);
    }
    parsed_ += kHeaderBytes + body;
  }
  return true;
}

void Connection::BeginLanding(const uint8_t* header, const uint8_t* prefix) {
  landing_.active = true;
  landing_.kind = static_cast<FrameKind>(header[kAtKind]);
  landing_.transfer = Load64(header + kAtRequestSequence);
  landing_.length = landing_.remaining = Load32(prefix + kAtLength);
  landing_.last = (Load32(prefix + kAtFlags) & kFlagLast) != 0;
  landing_.unchecked = (Load32(prefix + kAtFlags) & kFlagDataUnchecked) != 0;
  landing_.crc = CrcUpdate(CrcHeader(header), prefix, kPrefixBytes);
  landing_.expected_crc = Load32(header + kAtCrc);
  landing_.status = TransferStatus::kLanded;
  landing_.discard = true;
  landing_.window = 0;
  landing_.target.clear();
  landing_.target_index = landing_.target_offset = 0;
  const uint64_t offset = Load64(prefix + kAtOffset);
  if (landing_.kind == kWrite) {
    const WindowKey key{Load64(prefix + kAtWindowId), Load64(prefix + kAtWindowSecret)};
    const MemoryWindow* window = nullptr;
    landing_.status = engine_->windows.Find(key, peer_, WindowAccess::kWrite, offset, landing_.length, &window);
    if (landing_.status != TransferStatus::kLanded) {
      ++engine_->stats.windows_refused;
      return;
    }
    landing_.window = key.id;
    landing_.target = Slice(window->segments, offset, landing_.length);
    landing_.discard = false;
    return;
  }
  const auto read = reads_.find(landing_.transfer);
  if (read == reads_.end()) return;  // called off meanwhile
  // Pieces come in order; one that doesn't continue where the last ended is not ours to place.
  if (offset != read->second.received || landing_.length > read->second.length - offset) {
    landing_.status = TransferStatus::kOutOfBounds;
    return;
  }
  landing_.target = Slice(read->second.segments, offset, landing_.length);
  landing_.discard = false;
}

void Connection::AdvanceLanding(size_t bytes) {
  landing_.remaining -= bytes;
  if (landing_.discard) {
    engine_->stats.transfer_bytes_discarded += bytes;
    if (!landing_.unchecked) landing_.crc = CrcUpdate(landing_.crc, scratch, bytes);
    return;
  }
  engine_->stats.transfer_bytes_landed += bytes;
  while (bytes > 0) {
    const Segment& segment = landing_.target[landing_.target_index];
    const size_t take = std::min(bytes, segment.length - landing_.target_offset);
    if (!landing_.unchecked) landing_.crc = CrcUpdate(landing_.crc, segment.base + landing_.target_offset, take);
    landing_.target_offset += take;
    bytes -= take;
    if (landing_.target_offset == segment.length) {
      ++landing_.target_index;
      landing_.target_offset = 0;
    }
  }
}

bool Connection::FinishLanding() {
  landing_.active = false;
  if (~landing_.crc != landing_.expected_crc) {
    broken_ = LinkEnd::kBadChecksum;
    return false;
  }
  if (landing_.kind == kWrite) {
    if (landing_.status != TransferStatus::kLanded || landing_.last) {
      SendTransferDone(landing_.transfer, landing_.status);
    }
    return true;
  }
  if (landing_.status != TransferStatus::kLanded) {
    broken_ = LinkEnd::kBadTransfer;
    return false;
  }
  const auto read = reads_.find(landing_.transfer);
  if (read == reads_.end()) return true;
  read->second.received += landing_.length;
  if (!landing_.last) return true;
  if (read->second.received != read->second.length) {
    broken_ = LinkEnd::kBadTransfer;
    return false;
  }
  reads_.erase(read);
  Complete(landing_.transfer, TransferStatus::kLanded);
  return true;
}

void Connection::Complete(uint64_t transfer, TransferStatus status) {
  // The batch has room: Parse checks before every frame, and one frame completes one transfer. The one that ends a
  // landing outside of Parse comes first in its batch.
  engine_->completions[2 * completion_count_] = static_cast<uint32_t>(transfer);
  engine_->completions[2 * completion_count_ + 1] = static_cast<uint32_t>(status);
  ++completion_count_;
}

bool Connection::AnswerRead(const uint8_t* header, const uint8_t* prefix) {
  const uint64_t transfer = Load64(header + kAtRequestSequence);
  const WindowKey key{Load64(prefix + kAtWindowId), Load64(prefix + kAtWindowSecret)};
  const uint64_t offset = Load64(prefix + kAtOffset);
  const uint64_t length = Load32(prefix + kAtLength);
  const MemoryWindow* window = nullptr;
  TransferStatus status = engine_->windows.Find(key, peer_, WindowAccess::kRead, offset, length, &window);
  if (status == TransferStatus::kLanded && length == 0) status = TransferStatus::kOutOfBounds;
  if (status != TransferStatus::kLanded) {
    ++engine_->stats.windows_refused;
    SendTransferDone(transfer, status);
    return true;
  }
  if (bulk_lane_.size() >= kBulkLaneMax) {
    broken_ = LinkEnd::kBacklogFull;
    return false;
  }
  auto answer = std::make_unique<Outgoing>();
  answer->kind = kReadData;
  answer->transfer = transfer;
  answer->key = {0, 0};
  answer->window_offset = 0;
  answer->local_window = key.id;
  answer->unchecked = (Load32(prefix + kAtFlags) & kFlagDataUnchecked) != 0;
  answer->segments = Slice(window->segments, offset, length);
  answer->length = length;
  bulk_lane_.push_back(std::move(answer));
  return true;
}

// --- sending ---

void Connection::SendTransferDone(uint64_t transfer, TransferStatus status) {
  uint8_t header[kHeaderBytes];
  WriteLinkHeader(header, kTransferDone, 0, transfer, static_cast<uint16_t>(status));
  Store32(header + kAtCrc, ~CrcHeader(header));
  message_lane_.insert(message_lane_.end(), header, header + kHeaderBytes);
}

bool Connection::Send(uint8_t* frames, size_t length) {
  for (size_t at = 0; at < length;) {
    if (length - at < kHeaderBytes) return false;
    uint8_t* header = frames + at;
    const size_t body = Load32(header + kAtBodyBytes);
    if (length - at - kHeaderBytes < body) return false;
    Store32(header + kAtCrc, ~CrcUpdate(CrcHeader(header), header + kHeaderBytes, body));
    at += kHeaderBytes + body;
  }
  if (closed_ || broken_ != LinkEnd::kClosedHere) return true;
  size_t sent = 0;
  if (message_lane_.empty() && !out_.begun) {
    const ssize_t got = ::send(fd_, frames, length, MSG_NOSIGNAL);
    if (got >= 0) {
      sent = static_cast<size_t>(got);
      engine_->stats.bytes_sent += sent;
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
      broken_ = LinkEnd::kSocketError;
      broken_error_ = errno;
      SetEvents(UV_READABLE | UV_WRITABLE);  // wakes the loop, which tells
      return true;
    }
  }
  if (sent < length) {
    if (message_lane_.size() - message_lane_sent_ + length > kMessageLaneBytesMax) {
      broken_ = LinkEnd::kBacklogFull;
      SetEvents(UV_READABLE | UV_WRITABLE);
      return true;
    }
    message_lane_.insert(message_lane_.end(), frames + sent, frames + length);
    SetEvents(UV_READABLE | UV_WRITABLE);
  }
  return true;
}

void Connection::Write(uint32_t transfer, WindowKey key, uint64_t offset, std::vector<Segment> local, bool unchecked) {
  auto out = std::make_unique<Outgoing>();
  out->kind = kWrite;
  out->transfer = transfer;
  out->key = key;
  out->window_offset = offset;
  out->unchecked = unchecked;
  for (const Segment& segment : local) out->length += segment.length;
  out->segments = std::move(local);
  bulk_lane_.push_back(std::move(out));
}

void Connection::Read(uint32_t transfer, WindowKey key, uint64_t offset, std::vector<Segment> local, bool unchecked) {
  PendingRead read{std::move(local), 0};
  for (const Segment& segment : read.segments) read.length += segment.length;
  uint8_t frame[kHeaderBytes + kPrefixBytes];
  WriteLinkHeader(frame, kReadRequest, kPrefixBytes, transfer, 0);
  uint8_t* prefix = frame + kHeaderBytes;
  Store64(prefix + kAtWindowId, key.id);
  Store64(prefix + kAtWindowSecret, key.secret);
  Store64(prefix + kAtOffset, offset);
  Store32(prefix + kAtLength, static_cast<uint32_t>(read.length));
  Store32(prefix + kAtFlags, unchecked ? kFlagDataUnchecked : 0);
  Store32(frame + kAtCrc, ~CrcUpdate(CrcHeader(frame), prefix, kPrefixBytes));
  message_lane_.insert(message_lane_.end(), frame, frame + sizeof frame);
  reads_.emplace(transfer, std::move(read));
}

void Connection::Cancel(uint32_t transfer) {
  if (reads_.erase(transfer) > 0 && landing_.active && landing_.kind == kReadData && landing_.transfer == transfer) {
    // The bytes so far went into the checksum; the rest goes nowhere.
    landing_.discard = true;
    landing_.target.clear();
  }
  for (auto it = bulk_lane_.begin(); it != bulk_lane_.end(); ++it) {
    if ((*it)->kind != kWrite || (*it)->transfer != transfer) continue;
    if (it == bulk_lane_.begin()) DetachChunk();
    bulk_lane_.erase(it);
    return;
  }
}

void Connection::WindowClosed(uint64_t window) {
  if (landing_.active && landing_.kind == kWrite && !landing_.discard && landing_.window == window) {
    landing_.discard = true;
    landing_.status = TransferStatus::kWindowUnknown;
    landing_.target.clear();
  }
  for (size_t i = 0; i < bulk_lane_.size();) {
    if (bulk_lane_[i]->kind != kReadData || bulk_lane_[i]->local_window != window) {
      ++i;
      continue;
    }
    const uint64_t transfer = bulk_lane_[i]->transfer;
    if (i == 0) DetachChunk();
    bulk_lane_.erase(bulk_lane_.begin() + static_cast<std::ptrdiff_t>(i));
    SendTransferDone(transfer, TransferStatus::kWindowUnknown);
    SetEvents(UV_READABLE | UV_WRITABLE);
  }
}

// The chunk under way belongs to the first transfer of the lane. If some of it is on the wire the frame has to be
// finished, from a copy, since the pool is about to be used for something else; otherwise it is taken back.
void Connection::DetachChunk() {
  if (!out_.active) return;
  if (!out_.begun) {
    out_.active = false;
    return;
  }
  size_t left = 0;
  for (size_t i = out_.part_index; i < out_.parts.size(); ++i) left += out_.parts[i].length;
  left -= out_.part_offset;
  std::vector<uint8_t> copy;
  copy.reserve(left);
  size_t offset = out_.part_offset;
  for (size_t i = out_.part_index; i < out_.parts.size(); ++i) {
    copy.insert(copy.end(), out_.parts[i].base + offset, out_.parts[i].base + out_.parts[i].length);
    offset = 0;
  }
  out_.detached = std::move(copy);
  out_.parts.assign(1, {out_.detached.data(), out_.detached.size()});
  out_.part_index = out_.part_offset = 0;
  out_.data_length = 0;  // no longer accounted to a transfer
}

void Connection::StartChunk() {
  Outgoing& transfer = *bulk_lane_.front();
  const uint64_t length = std::min<uint64_t>(kChunkBytes, transfer.length - transfer.sent);
  const bool last = transfer.sent + length == transfer.length;
  WriteLinkHeader(out_.header, transfer.kind, kPrefixBytes + length, transfer.transfer, 0);
  uint8_t* prefix = out_.header + kHeaderBytes;
  Store64(prefix + kAtWindowId, transfer.key.id);
  Store64(prefix + kAtWindowSecret, transfer.key.secret);
  Store64(prefix + kAtOffset, transfer.window_offset + transfer.sent);
  Store32(prefix + kAtLength, static_cast<uint32_t>(length));
  Store32(prefix + kAtFlags, (last ? kFlagLast : 0) | (transfer.unchecked ? kFlagDataUnchecked : 0));
  out_.parts = Slice(transfer.segments, transfer.sent, length);
  uint32_t crc = CrcUpdate(CrcHeader(out_.header), prefix, kPrefixBytes);
  if (!transfer.unchecked) {
    for (const Segment& part : out_.parts) crc = CrcUpdate(crc, part.base, part.length);
  }
  Store32(out_.header + kAtCrc, ~crc);
  out_.parts.insert(out_.parts.begin(), {out_.header, sizeof out_.header});
  out_.part_index = out_.part_offset = 0;
  out_.data_length = length;
  out_.active = true;
  out_.begun = false;
}

bool Connection::Pump() {
  if (closed_) return true;
  if (broken_ != LinkEnd::kClosedHere) return false;
  size_t turn = 0;
  for (;;) {
    if (!out_.active && !bulk_lane_.empty() && turn < kTurnBytes) StartChunk();
    iovec iov[kIovMax];
    int count = 0;
    size_t total = 0;
    const auto add_chunk = [&] {
      size_t offset = out_.part_offset;
      for (size_t i = out_.part_index; i < out_.parts.size() && count < kIovMax; ++i) {
        iov[count++] = {out_.parts[i].base + offset, out_.parts[i].length - offset};
        total += out_.parts[i].length - offset;
        offset = 0;
      }
    };
    const bool chunk_first = out_.active && out_.begun;
    if (chunk_first) {
      add_chunk();
    } else {
      if (message_lane_.size() > message_lane_sent_) {
        iov[count++] = {message_lane_.data() + message_lane_sent_, message_lane_.size() - message_lane_sent_};
        total += iov[0].iov_len;
      }
      if (out_.active) add_chunk();
    }
    if (count == 0) {
      SetEvents(bulk_lane_.empty() ? UV_READABLE : UV_READABLE | UV_WRITABLE);
      return true;
    }
    msghdr message{};
    message.msg_iov = iov;
    message.msg_iovlen = static_cast<size_t>(count);
    const ssize_t got = sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) {
        SetEvents(UV_READABLE | UV_WRITABLE);
        return true;
      }
      broken_ = LinkEnd::kSocketError;
      broken_error_ = errno;
      return false;
    }
    engine_->stats.bytes_sent += static_cast<uint64_t>(got);
    turn += static_cast<size_t>(got);
    Wrote(static_cast<size_t>(got));
    if (static_cast<size_t>(got) < total) {
      SetEvents(UV_READABLE | UV_WRITABLE);
      return true;
    }
  }
}

void Connection::Wrote(size_t bytes) {
  const auto write_messages = [&] {
    const size_t take = std::min(bytes, message_lane_.size() - message_lane_sent_);
    message_lane_sent_ += take;
    bytes -= take;
    if (message_lane_sent_ == message_lane_.size()) {
      message_lane_.clear();
      message_lane_sent_ = 0;
    } else if (message_lane_sent_ > (1u << 20)) {
      message_lane_.erase(message_lane_.begin(),
                          message_lane_.begin() + static_cast<std::ptrdiff_t>(message_lane_sent_));
      message_lane_sent_ = 0;
    }
  };
  if (!(out_.active && out_.begun)) write_messages();
  if (bytes == 0 || !out_.active) return;
  out_.begun = true;
  while (bytes > 0) {
    const size_t take = std::min(bytes, out_.parts[out_.part_index].length - out_.part_offset);
    out_.part_offset += take;
    bytes -= take;
    if (out_.part_offset < out_.parts[out_.part_index].length) break;
    out_.part_offset = 0;
    ++out_.part_index;
  }
  if (out_.part_index < out_.parts.size()) return;
  out_.active = out_.begun = false;
  out_.detached.clear();
  if (out_.data_length == 0) return;
  Outgoing& transfer = *bulk_lane_.front();
  transfer.sent += out_.data_length;
  if (transfer.sent == transfer.length) bulk_lane_.pop_front();
}

bool Connection::Flush() {
  if (closed_) return true;
  if (message_lane_.empty() && bulk_lane_.empty() && !out_.active) return true;
  if (Pump()) return true;
  SetEvents(UV_READABLE | UV_WRITABLE);
  return false;
}

}  // namespace holdfast
