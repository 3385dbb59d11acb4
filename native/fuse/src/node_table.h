// Node ids, and what the reader may answer by itself: attributes by node, names by (directory, name).
//
// A node id is an index into the ledger's places and, from bit 32 on, the generation of that place, which is raised
// when a node leaves it: an old id is never live again. The root is place 1, generation 0.
//
// Who calls what. The engine adds and removes nodes, puts in and takes out answers; readers count FORGETs and answer.
// Everything about a node happens under the mutex of its shard. An answer is *written to the device under the mutex*,
// so that after TakeBack no answer made of what it took is still to be sent (M4), and a node that was looked up by such
// an answer can't be removed in between.
// Invariants: what is here is covered by a status token (its owner puts it in and takes it out); it is used only while
// the lease's word is in the future (I2).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "fuse_wire.h"
#include "ledger.h"

namespace holdfast {

constexpr uint64_t kRootNode = 1;
// So that ids stay integers in JavaScript.
constexpr uint32_t kNodeGenerationMax = (1u << 20) - 1;

class NodeTable {
 public:
  // Writes one whole reply; called under a shard's mutex. False when the kernel didn't take it.
  using Send = std::function<bool(const void* body, size_t length, int32_t error)>;

  NodeTable(std::shared_ptr<Ledger> ledger, size_t attributes_max, size_t names_max);

  // The engine's.

  void SetRoot(uint64_t inode, uint64_t inode_generation);
  // 0 when every place is taken.
  uint64_t Add(uint64_t inode, uint64_t inode_generation);
  // Before the answer that tells the kernel of the node. False when it isn't live.
  bool LookedUp(uint64_t node, uint64_t count);
  // Frees its place if the kernel doesn't know it. False when it does, or it isn't live.
  bool Remove(uint64_t node);
  bool PutAttributes(uint64_t node, const KnownAttributes& attributes);
  bool PutName(uint64_t directory, std::string_view name, uint64_t child, uint64_t valid_seconds);
  // Attributes of a node and all names in it.
  void TakeBack(uint64_t node);
  void TakeBackAttributes(uint64_t node);
  void TakeBackName(uint64_t directory, std::string_view name);
  void SetLeaseDeadline(double deadline_ms) { lease_deadline_ms_.store(deadline_ms, std::memory_order_seq_cst); }

  // Readers'.

  bool IsLive(uint64_t node) const;
  // True when the kernel doesn't know the node any more: the engine is to be told, which removes it.
  bool Forget(uint64_t node, uint64_t count);
  // False: nothing was sent, ask the engine.
  bool AnswerGetattr(uint64_t node, const Send& send);
  bool AnswerStatx(uint64_t node, const Send& send);
  bool AnswerLookup(uint64_t directory, std::string_view name, const Send& send);

  uint32_t live_count() const { return live_count_.load(std::memory_order_relaxed); }

 private:
  struct Name {
    uint64_t child;
    uint64_t valid_seconds;
  };
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<uint64_t, KnownAttributes> attributes;
    std::unordered_map<uint64_t, std::map<std::string, Name, std::less<>>> names;
    size_t name_count = 0;
  };
  static constexpr size_t kShards = 16;

  Shard& shard(uint64_t node) { return shards_[(node ^ node >> 32) % kShards]; }
  // The place of a live node; null when the id is stale.
  NodeRecord* Find(uint64_t node) const;
  bool LeaseHolds() const;
  static void PushOut(Shard& shard, size_t names_max);

  const std::shared_ptr<Ledger> ledger_;
  const uint32_t capacity_;
  const size_t attributes_max_;  // per shard
  const size_t names_max_;
  std::array<Shard, kShards> shards_;
  std::atomic<double> lease_deadline_ms_{0};
  std::atomic<uint32_t> live_count_{0};

  std::mutex places_mutex_;
  std::deque<uint32_t> free_places_;
};

}  // namespace holdfast
