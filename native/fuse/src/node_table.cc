#include "node_table.h"

#include <algorithm>
#include <cerrno>

#include "clocks.h"

namespace holdfast {
namespace {

constexpr uint32_t kFirstPlace = 2;
constexpr size_t kPlacesAtRest = 1024;

uint32_t PlaceOf(uint64_t node) { return static_cast<uint32_t>(node); }

fuse_entry_out EntryOf(uint64_t child, uint64_t valid_seconds, const fuse_attr_out& attributes) {
  fuse_entry_out entry{};
  entry.nodeid = child;
  entry.entry_valid = valid_seconds;
  entry.attr_valid = attributes.attr_valid;
  entry.attr_valid_nsec = attributes.attr_valid_nsec;
  entry.attr = attributes.attr;
  return entry;
}

StatxOut StatxOf(const KnownAttributes& known) {
  const fuse_attr& attr = known.out.attr;
  StatxOut out{};
  out.attr_valid = known.out.attr_valid;
  out.attr_valid_nsec = known.out.attr_valid_nsec;
  out.mask = kStatxMask;
  out.blksize = attr.blksize;
  out.nlink = attr.nlink;
  out.uid = attr.uid;
  out.gid = attr.gid;
  out.mode = static_cast<uint16_t>(attr.mode);
  out.ino = attr.ino;
  out.size = attr.size;
  out.blocks = attr.blocks;
  out.atime = {static_cast<int64_t>(attr.atime), attr.atimensec, 0};
  out.btime = {known.birth_seconds, known.birth_nanoseconds, 0};
  out.ctime = {static_cast<int64_t>(attr.ctime), attr.ctimensec, 0};
  out.mtime = {static_cast<int64_t>(attr.mtime), attr.mtimensec, 0};
  // The kernel's encoding of device numbers in 32 bits.
  out.rdev_major = attr.rdev >> 8 & 0xfff;
  out.rdev_minor = (attr.rdev & 0xff) | (attr.rdev >> 12 & 0xfff00);
  return out;
}

}  // namespace

NodeTable::NodeTable(std::shared_ptr<Ledger> ledger, size_t attributes_max, size_t names_max)
    : ledger_(std::move(ledger)),
      capacity_(ledger_->header().node_capacity),
      attributes_max_(std::max<size_t>(1, attributes_max / kShards)),
      names_max_(std::max<size_t>(1, names_max / kShards)) {
  LedgerHeader& header = ledger_->header();
  if (header.places_used.load(std::memory_order_acquire) < kFirstPlace) {
    ledger_->node(kRootNode).live.store(1, std::memory_order_release);
    header.places_used.store(kFirstPlace, std::memory_order_release);
  }
  // Of an earlier daemon: what is live stays, what is free can be used.
  const uint32_t used = std::min(header.places_used.load(std::memory_order_acquire), capacity_);
  for (uint32_t place = kFirstPlace; place < used; ++place) {
    const NodeRecord& record = ledger_->node(place);
    if (record.live.load(std::memory_order_acquire) != 0) {
      live_count_.fetch_add(1, std::memory_order_relaxed);
    } else if (record.generation.load(std::memory_order_relaxed) <= kNodeGenerationMax) {
      free_places_.push_back(place);
    }
  }
}

NodeRecord* NodeTable::Find(uint64_t node) const {
  const uint32_t place = PlaceOf(node);
  if (place == 0 || place >= capacity_) return nullptr;
  NodeRecord& record = ledger_->node(place);
  if (record.live.load(std::memory_order_acquire) == 0) return nullptr;
  return record.generation.load(std::memory_order_relaxed) == node >> 32 ? &record : nullptr;
}

bool NodeTable::LeaseHolds() const { return bootTimeMs() < lease_deadline_ms_.load(std::memory_order_acquire); }

void NodeTable::SetRoot(uint64_t inode, uint64_t inode_generation) {
  NodeRecord& record = ledger_->node(kRootNode);
  record.inode_generation = inode_generation;
  record.inode.store(inode, std::memory_order_release);
}

uint64_t NodeTable::Add(uint64_t inode, uint64_t inode_generation) {
  uint32_t place;
  {
    std::lock_guard lock(places_mutex_);
    LedgerHeader& header = ledger_->header();
    const uint32_t used = header.places_used.load(std::memory_order_relaxed);
    // Places rest a while before they are used again: their generations are few.
    if (used < capacity_ && free_places_.size() < kPlacesAtRest) {
      place = used;
      header.places_used.store(used + 1, std::memory_order_release);
    } else if (!free_places_.empty()) {
      place = free_places_.front();
      free_places_.pop_front();
    } else {
      return 0;
    }
  }
  NodeRecord& record = ledger_->node(place);
  record.inode.store(inode, std::memory_order_relaxed);
  record.inode_generation = inode_generation;
  record.lookups.store(0, std::memory_order_relaxed);
  record.live.store(1, std::memory_order_release);
  live_count_.fetch_add(1, std::memory_order_relaxed);
  return uint64_t{record.generation.load(std::memory_order_relaxed)} << 32 | place;
}

bool NodeTable::LookedUp(uint64_t node, uint64_t count) {
  Shard& its = shard(node);
  std::lock_guard lock(its.mutex);
  NodeRecord* record = Find(node);
  if (record == nullptr) return false;
  record->lookups.fetch_add(count, std::memory_order_relaxed);
  return true;
}

bool NodeTable::Forget(uint64_t node, uint64_t count) {
  if (node == kRootNode) return false;
  Shard& its = shard(node);
  std::lock_guard lock(its.mutex);
  NodeRecord* record = Find(node);
  if (record == nullptr) return false;
  const uint64_t before = record->lookups.load(std::memory_order_relaxed);
  const uint64_t after = before > count ? before - count : 0;
  record->lookups.store(after, std::memory_order_relaxed);
  return after == 0;
}

bool NodeTable::Remove(uint64_t node) {
  if (node == kRootNode) return false;
  {
    Shard& its = shard(node);
    std::lock_guard lock(its.mutex);
    NodeRecord* record = Find(node);
    if (record == nullptr || record->lookups.load(std::memory_order_relaxed) != 0) return false;
    its.attributes.erase(node);
    const auto names = its.names.find(node);
    if (names != its.names.end()) {
      its.name_count -= names->second.size();
      its.names.erase(names);
    }
    record->live.store(0, std::memory_order_release);
    const uint32_t next = record->generation.fetch_add(1, std::memory_order_relaxed) + 1;
    live_count_.fetch_sub(1, std::memory_order_relaxed);
    // A place whose generations are used up is not used any more.
    if (next > kNodeGenerationMax) return true;
  }
  std::lock_guard lock(places_mutex_);
  free_places_.push_back(PlaceOf(node));
  return true;
}

bool NodeTable::IsLive(uint64_t node) const { return Find(node) != nullptr; }

void NodeTable::PushOut(Shard& shard, size_t names_max) {
  while (shard.name_count >= names_max) {
    auto directory = shard.names.begin();
    directory->second.erase(directory->second.begin());
    shard.name_count--;
    if (directory->second.empty()) shard.names.erase(directory);
  }
}

bool NodeTable::PutAttributes(uint64_t node, const KnownAttributes& attributes) {
  Shard& its = shard(node);
  std::lock_guard lock(its.mutex);
  if (!IsLive(node)) return false;
  const auto found = its.attributes.find(node);
  if (found != its.attributes.end()) {
    found->second = attributes;
    return true;
  }
  if (its.attributes.size() >= attributes_max_) its.attributes.erase(its.attributes.begin());
  its.attributes.emplace(node, attributes);
  return true;
}

bool NodeTable::PutName(uint64_t directory, std::string_view name, uint64_t child, uint64_t valid_seconds) {
  Shard& its = shard(directory);
  std::lock_guard lock(its.mutex);
  if (!IsLive(directory)) return false;
  const auto names = its.names.find(directory);
  if (names != its.names.end()) {
    const auto found = names->second.find(name);
    if (found != names->second.end()) {
      found->second = Name{child, valid_seconds};
      return true;
    }
  }
  PushOut(its, names_max_);
  its.names[directory].emplace(std::string(name), Name{child, valid_seconds});
  its.name_count++;
  return true;
}

void NodeTable::TakeBack(uint64_t node) {
  Shard& its = shard(node);
  std::lock_guard lock(its.mutex);
  its.attributes.erase(node);
  const auto names = its.names.find(node);
  if (names == its.names.end()) return;
  its.name_count -= names->second.size();
  its.names.erase(names);
}

void NodeTable::TakeBackAttributes(uint64_t node) {
  Shard& its = shard(node);
  std::lock_guard lock(its.mutex);
  its.attributes.erase(node);
}

void NodeTable::TakeBackName(uint64_t directory, std::string_view name) {
  Shard& its = shard(directory);
  std::lock_guard lock(its.mutex);
  const auto names = its.names.find(directory);
  if (names == its.names.end()) return;
  const auto found = names->second.find(name);
  if (found == names->second.end()) return;
  names->second.erase(found);
  its.name_count--;
  if (names->second.empty()) its.names.erase(names);
}

bool NodeTable::AnswerGetattr(uint64_t node, const Send& send) {
  Shard& its = shard(node);
  std::lock_guard lock(its.mutex);
  const auto found = its.attributes.find(node);
  if (found == its.attributes.end() || !LeaseHolds()) return false;
  send(&found->second.out, sizeof found->second.out, 0);
  return true;
}

bool NodeTable::AnswerStatx(uint64_t node, const Send& send) {
  Shard& its = shard(node);
  std::lock_guard lock(its.mutex);
  const auto found = its.attributes.find(node);
  if (found == its.attributes.end() || !LeaseHolds()) return false;
  const StatxOut out = StatxOf(found->second);
  send(&out, sizeof out, 0);
  return true;
}

bool NodeTable::AnswerLookup(uint64_t directory, std::string_view name, const Send& send) {
  Shard& directorys = shard(directory);
  uint64_t child;
  {
    // The child's shard is known only from here; both are then taken together, in whichever order doesn't block.
    std::lock_guard lock(directorys.mutex);
    const auto names = directorys.names.find(directory);
    if (names == directorys.names.end()) return false;
    const auto found = names->second.find(name);
    if (found == names->second.end()) return false;
    child = found->second.child;
  }
  Shard& childs = shard(child);
  std::unique_lock first(directorys.mutex, std::defer_lock);
  std::unique_lock second(childs.mutex, std::defer_lock);
  if (&childs == &directorys) {
    first.lock();
  } else {
    std::lock(first, second);
  }
  const auto names = directorys.names.find(directory);
  if (names == directorys.names.end()) return false;
  const auto found = names->second.find(name);
  if (found == names->second.end() || found->second.child != child || !LeaseHolds()) return false;
  if (child == 0) {
    if (found->second.valid_seconds == 0) {
      send(nullptr, 0, -ENOENT);
      return true;
    }
    const fuse_entry_out entry = EntryOf(0, found->second.valid_seconds, fuse_attr_out{});
    send(&entry, sizeof entry, 0);
    return true;
  }
  const auto attributes = childs.attributes.find(child);
  NodeRecord* record = Find(child);
  if (attributes == childs.attributes.end() || record == nullptr) return false;
  record->lookups.fetch_add(1, std::memory_order_relaxed);
  const fuse_entry_out entry = EntryOf(child, found->second.valid_seconds, attributes->second.out);
  if (!send(&entry, sizeof entry, 0)) record->lookups.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

}  // namespace holdfast
