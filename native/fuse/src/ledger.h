// The ledger: what must outlive the daemon, in a memfd that the guard and a later daemon map.
//
// Layout: one header page, then three arrays, each at a page boundary. All integers are the machine's own (it never
// leaves the machine).
//   header    magic, version, capacities, what INIT agreed on (`agreed` is set last)
//   in flight one record per slot: written by the reader before anybody sees the request, `unique` last, cleared after
//             the answer
//   nodes     one record per node id's place: written before the answer that lets the kernel know the node
//   handles   written by JavaScript (src/mount/handle-table.ts); here only its place and size
//
// Invariant: a record is valid when its state word says so, and that word is stored last (release) and cleared first.
// Fault model: the writer may die between any two stores. Who maps a ledger of others believes nothing but what
// `Ledger::Map` checked.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "descriptor.h"

namespace holdfast {

constexpr uint64_t kLedgerMagic = 0x31474c4553554648ull;  // "HFUSELG1"
constexpr uint32_t kLedgerVersion = 1;
constexpr size_t kLedgerPageBytes = 4096;
constexpr uint32_t kNodeCapacityMax = 1u << 26;
constexpr uint32_t kHandleCapacityMax = 1u << 22;

struct LedgerHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t slot_capacity;
  uint32_t node_capacity;
  uint32_t handle_capacity;
  uint64_t handles_offset;
  std::atomic<uint32_t> agreed;
  uint32_t minor;
  uint64_t flags;
  uint32_t max_write;
  uint32_t max_readahead;
  // Places of nodes below this have been used; those behind it were never touched (and take no memory).
  std::atomic<uint32_t> places_used;
  // The same of handles; JavaScript's.
  std::atomic<uint32_t> handles_used;
};
static_assert(sizeof(LedgerHeader) <= kLedgerPageBytes);

struct alignas(64) InFlightRecord {
  std::atomic<uint64_t> unique;  // 0: free
  uint64_t node;
  uint32_t opcode;
  uint32_t pid;
};

struct alignas(32) NodeRecord {
  std::atomic<uint64_t> inode;
  uint64_t inode_generation;
  std::atomic<uint64_t> lookups;
  std::atomic<uint32_t> generation;  // of the place: the upper part of the node id
  std::atomic<uint32_t> live;
};

// What they hold is said where they are written.
constexpr size_t kHandleRecordBytes = 64;

class Ledger {
 public:
  // Throws std::system_error.
  static std::shared_ptr<Ledger> Create(uint32_t slots, uint32_t nodes, uint32_t handles);
  // A ledger somebody else made; the descriptor is duplicated. Throws std::system_error, or std::runtime_error with
  // what does not fit.
  static std::shared_ptr<Ledger> Map(int fd);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  LedgerHeader& header() const { return *reinterpret_cast<LedgerHeader*>(bytes_); }
  InFlightRecord& in_flight(uint32_t slot) const { return in_flight_[slot]; }
  NodeRecord& node(uint32_t place) const { return nodes_[place]; }
  uint8_t* bytes() const { return bytes_; }
  size_t length() const { return length_; }
  int fd() const { return fd_.get(); }

 private:
  Ledger(Descriptor fd, uint8_t* bytes, size_t length);

  Descriptor fd_;
  uint8_t* bytes_;
  size_t length_;
  InFlightRecord* in_flight_ = nullptr;
  NodeRecord* nodes_ = nullptr;
};

}  // namespace holdfast
