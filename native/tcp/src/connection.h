// One TCP connection: handshake records first, then frames, with bulk received straight into the page pool.
//
// Receiving: small frames collect in the receive buffer and go to the sink in batches, named by their offsets. The data
// of write and readData frames is read by readv into the segments they name; the buffer gets only what lies beyond
// them. Sending: two lanes. Messages (whole frames, copied only if the socket is full) go first; bulk goes chunk by
// chunk from the pool, so a message waits for one chunk at most. A frame once begun is finished before anything else.
//
// Invariants: target_ and out_chunk_ point into the pool only while the window or local segments behind them are open:
// WindowClosed and Cancel take them away at once. After Close nothing is called back but the uv close callback.
// Fault model: the other side may send any bytes; a frame that can't be believed ends the connection with its reason.
#pragma once

#include <sys/uio.h>
#include <uv.h>

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine.h"

namespace holdfast {

class Connection {
 public:
  Connection(Engine* engine, uint32_t id, int fd, bool connecting);

  uint32_t id() const { return id_; }
  bool Start();
  void StartFrames(uint32_t peer);
  bool SendRecord(const uint8_t* record);
  // Whole frames without their checksums, which are filled in here. False: the bytes are not a run of whole frames.
  // A socket found broken is told by the loop; broken() knows at once.
  bool Send(uint8_t* frames, size_t length);
  // `unchecked`: the frames' checksums leave the data out.
  void Write(uint32_t transfer, WindowKey key, uint64_t offset, std::vector<Segment> local, bool unchecked);
  void Read(uint32_t transfer, WindowKey key, uint64_t offset, std::vector<Segment> local, bool unchecked);
  void Cancel(uint32_t transfer);
  void WindowClosed(uint64_t window);
  // Sends what waits. False when the connection is beyond use; the owner then closes it.
  bool Flush();
  void Close();

  LinkEnd broken() const { return broken_; }

 private:
  // An outgoing one-sided transfer: our write, or our answer to a read.
  struct Outgoing {
    FrameKind kind;
    uint64_t transfer;
    WindowKey key;              // of the peer's window; zero in readData
    uint64_t window_offset;     // readData: zero
    uint64_t local_window = 0;  // readData: our window, whose closing stops it
    bool unchecked = false;
    std::vector<Segment> segments;
    uint64_t length = 0;
    uint64_t sent = 0;
  };
  struct PendingRead {
    std::vector<Segment> segments;
    uint64_t length;
    uint64_t received = 0;
  };
  // The chunk whose data is arriving.
  struct Landing {
    bool active = false;
    bool discard = false;
    FrameKind kind = kWrite;
    bool last = false;
    bool unchecked = false;
    TransferStatus status = TransferStatus::kLanded;
    uint64_t transfer = 0;
    uint64_t window = 0;
    size_t length = 0;
    size_t remaining = 0;
    uint32_t crc = 0;
    uint32_t expected_crc = 0;
    std::vector<Segment> target;
    size_t target_index = 0;
    size_t target_offset = 0;
  };
  // The chunk that is being sent.
  struct OutChunk {
    bool active = false;
    uint8_t header[kHeaderBytes + kPrefixBytes];
    std::vector<uint8_t> detached;  // bytes copied out of the pool when it had to be let go of mid-frame
    std::vector<Segment> parts;
    size_t part_index = 0;
    size_t part_offset = 0;
    size_t data_length = 0;
    bool begun = false;
  };

  static void PollCallback(uv_poll_t* handle, int status, int events);
  static void CloseCallback(uv_handle_t* handle);

  void OnConnectable();
  void OnReadable();
  void ConsumeAndDeliver();
  // Stops at an incomplete frame or a full batch; false when the connection was failed.
  bool Parse();
  void BeginLanding(const uint8_t* header, const uint8_t* prefix);
  void AdvanceLanding(size_t bytes);
  bool FinishLanding();
  bool AnswerRead(const uint8_t* header, const uint8_t* prefix);
  void SendTransferDone(uint64_t transfer, TransferStatus status);
  void Complete(uint64_t transfer, TransferStatus status);
  void StartChunk();
  void DetachChunk();
  bool Pump();
  void Wrote(size_t bytes);
  void SetEvents(int events);
  void Fail(LinkEnd end, int error);

  Engine* const engine_;
  const uint32_t id_;
  int fd_;
  uv_poll_t poll_;
  bool poll_open_ = false;
  bool closed_ = false;
  bool connecting_;
  bool framing_ = false;
  bool reparse_ = false;
  int events_ = 0;
  uint32_t peer_ = 0;
  // A failure found while JS was calling in: told to it from the loop, never from inside its own call.
  LinkEnd broken_ = LinkEnd::kClosedHere;
  int broken_error_ = 0;

  uint8_t* buffer_ = nullptr;
  size_t parsed_ = 0;  // bytes of the buffer already dealt with
  size_t filled_ = 0;
  uint32_t frame_count_ = 0;
  uint32_t completion_count_ = 0;
  Landing landing_;
  std::unordered_map<uint64_t, PendingRead> reads_;

  std::vector<uint8_t> message_lane_;
  size_t message_lane_sent_ = 0;
  std::deque<std::unique_ptr<Outgoing>> bulk_lane_;
  OutChunk out_;
};

}  // namespace holdfast
