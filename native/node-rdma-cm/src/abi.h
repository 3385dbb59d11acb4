// What JavaScript and C++ agree on: the layout of the arenas, the numbers and the names in them. This is the only place
// where they are written down; the addon hands them to lib/native.ts as `abi`.
//
// Send arena of a queue pair: `maxSend` records, written by JavaScript from index 0 on, read by one native call. A
// record is a WorkRequest followed by `maxSendSegments` Segments. Receive arenas alike, with ReceiveRequest.
// Completion arena of a completion queue: `batchMax` Completions, written before the callback (or by `poll`), read by
// JavaScript before it returns.
// State of a queue pair: four words, written by native code only.
#ifndef NODE_RDMA_CM_ABI_H_
#define NODE_RDMA_CM_ABI_H_

#include <cstddef>
#include <cstdint>

namespace node_rdma_cm {

enum Operation : uint32_t {
  kSend,
  kSendWithImmediate,
  kSendWithInvalidate,
  kWrite,
  kWriteWithImmediate,
  kRead,
  kCompareAndSwap,
  kFetchAndAdd,
  kBindWindow,
  kInvalidateLocal,
  kOperationCount,
  // In completions only.
  kReceive = kOperationCount,
  kReceiveWriteWithImmediate,
};
inline constexpr const char* kOperationNames[] = {
    "send",    "sendWithImmediate",        "sendWithInvalidate", "write",      "writeWithImmediate",
    "read",    "compareAndSwap",           "fetchAndAdd",        "bindWindow", "invalidateLocal",
    "receive", "receiveWriteWithImmediate"};
static_assert(sizeof(kOperationNames) / sizeof(kOperationNames[0]) == kReceiveWriteWithImmediate + 1);

enum RequestFlags : uint32_t { kSignalled = 1, kFence = 2, kSolicited = 4, kInline = 8 };

// The bits of ibv_access_flags.
enum AccessFlags : uint32_t {
  kLocalWrite = 1,
  kRemoteWrite = 2,
  kRemoteRead = 4,
  kRemoteAtomic = 8,
  kWindowBind = 16,
  kZeroBased = 32,
  kRelaxedOrdering = 1u << 20,
  kAccessAll = kLocalWrite | kRemoteWrite | kRemoteRead | kRemoteAtomic | kWindowBind | kZeroBased | kRelaxedOrdering
};

struct WorkRequest {
  uint32_t operation;
  uint32_t flags;
  double id;
  double remote_address;
  // Of a bind: the window's new key. Of an invalidation, here or there: the key to end.
  uint32_t remote_key;
  uint32_t immediate;
  uint64_t compare_add;
  uint64_t swap;
  uint32_t window;
  uint32_t region;
  double bind_offset;
  double bind_length;
  uint32_t bind_access;
  uint32_t segment_count;
};
static_assert(sizeof(WorkRequest) == 80);

struct ReceiveRequest {
  double id;
  uint32_t segment_count;
  uint32_t reserved;
};
static_assert(sizeof(ReceiveRequest) == 16);

struct Segment {
  uint32_t region;
  uint32_t length;
  double offset;
};
static_assert(sizeof(Segment) == 16);

enum CompletionFlags : uint32_t { kHasImmediate = 1, kHasInvalidatedKey = 2 };

struct Completion {
  double id;
  uint32_t status;
  uint32_t operation;
  // The handle of the queue pair, unique in the process.
  uint32_t queue_pair;
  uint32_t length;
  uint32_t flags;
  uint32_t immediate;
  uint32_t invalidated_key;
  uint32_t vendor_error;
};
static_assert(sizeof(Completion) == 40);

// By the number of ibv_wc_status.
inline constexpr const char* kStatusNames[] = {"success",
                                               "localLengthError",
                                               "localQueuePairOperationError",
                                               "localEecOperationError",
                                               "localProtectionError",
                                               "flushed",
                                               "windowBindError",
                                               "badResponseError",
                                               "localAccessError",
                                               "remoteInvalidRequestError",
                                               "remoteAccessError",
                                               "remoteOperationError",
                                               "retryExceeded",
                                               "receiverNotReadyRetryExceeded",
                                               "localRddViolationError",
                                               "remoteInvalidRdRequest",
                                               "remoteAborted",
                                               "invalidEecNumber",
                                               "invalidEecState",
                                               "fatalError",
                                               "responseTimeout",
                                               "generalError",
                                               "tagMatchingError",
                                               "tagMatchingRendezvousIncomplete"};

enum Phase : uint32_t { kInitialized = 0, kConnected = 1, kError = 2 };

struct QueuePairState {
  uint32_t sends_outstanding;
  uint32_t receives_outstanding;
  uint32_t phase;
  uint32_t reserved;
};

// By the number of rdma_cm_event_type.
inline constexpr const char* kCmEventNames[] = {"addressResolved", "addressError",    "routeResolved", "routeError",
                                                "connectRequest",  "connectResponse", "connectError",  "unreachable",
                                                "rejected",        "established",     "disconnected",  "deviceRemoval",
                                                "multicastJoin",   "multicastError",  "addressChange", "timewaitExit"};

// By the number of ibv_event_type.
inline constexpr const char* kAsyncEventNames[] = {"completionQueueError",
                                                   "queuePairFatal",
                                                   "queuePairRequestError",
                                                   "queuePairAccessError",
                                                   "communicationEstablished",
                                                   "sendQueueDrained",
                                                   "pathMigrated",
                                                   "pathMigrationError",
                                                   "deviceFatal",
                                                   "portActive",
                                                   "portError",
                                                   "lidChange",
                                                   "pkeyChange",
                                                   "subnetManagerChange",
                                                   "sharedReceiveQueueError",
                                                   "sharedReceiveQueueLimitReached",
                                                   "lastWorkRequestReached",
                                                   "clientReregister",
                                                   "gidChange",
                                                   "workQueueFatal"};

constexpr uint32_t kSegmentsMax = 64;
constexpr uint32_t kQueueMax = 65536;
// Addresses, offsets and lengths are doubles on their way; beyond this they would not be integers.
constexpr double kBytesMax = 9007199254740991.0;

}  // namespace node_rdma_cm

#endif  // NODE_RDMA_CM_ABI_H_
