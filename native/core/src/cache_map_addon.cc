// The cache map's boundary to JavaScript.
//
// A map is an object of functions; each carries its Binding as callback data, so that a hit needs no unwrapping of
// `this`. The Binding belongs to one environment and lives until the last of its functions was collected, or the
// environment ends: a call after close(), or on a function torn from its object, finds a closed map and throws.
#include "cache_map_addon.h"

#include <cstring>
#include <exception>

#include "cache_map.h"
#include "napi_args.h"

namespace holdfast {
namespace {

struct Binding {
  std::shared_ptr<CacheMap> map;
  bool owner;
  uint32_t functions = 0;
};

void dropFunction(napi_env, void* data, void*) {
  auto* binding = static_cast<Binding*>(data);
  if (--binding->functions > 0) return;
  if (binding->owner && binding->map) CacheMap::close(binding->map->id());
  delete binding;
}

// The arguments of one call; `map` is null, and an error is pending, when the map was closed.
template <size_t kCount>
struct Call {
  napi_value argv[kCount == 0 ? 1 : kCount];
  Binding* binding = nullptr;
  CacheMap* map = nullptr;

  Call(napi_env env, napi_callback_info info) {
    size_t count = kCount;
    void* data = nullptr;
    if (napi_get_cb_info(env, info, &count, argv, nullptr, &data) != napi_ok) return;
    binding = static_cast<Binding*>(data);
    map = binding->map.get();
    if (map == nullptr) napi_throw_error(env, "ERR_HOLDFAST_CLOSED", "the cache map was closed");
  }
};

bool getEntry(napi_env env, napi_value value, uint64_t* entry) {
  // Any number that isn't an entry's is merely stale.
  double number;
  if (!getNumber(env, value, "entry", &number)) return false;
  *entry = number >= 0 && number <= kSafeIntegerMax ? static_cast<uint64_t>(number) : 0;
  if (static_cast<double>(*entry) != number) *entry = 0;
  return true;
}

bool getSlot(napi_env env, napi_value value, const CacheMap& map, uint32_t* slot) {
  int64_t number;
  if (!getInteger(env, value, "slot", 0, int64_t{map.slotCount()} - 1, &number)) return false;
  *slot = static_cast<uint32_t>(number);
  return true;
}

bool getMode(napi_env env, napi_value value, uint32_t* mode) {
  int64_t number;
  if (!getInteger(env, value, "mode", kModeNone, kModeExclusive, &number)) return false;
  *mode = static_cast<uint32_t>(number);
  return true;
}

// Four arguments: validMask, dirtyMask, partialStart, partialEnd.
bool getContent(napi_env env, const napi_value* argv, PageContent* content) {
  int64_t numbers[4];
  static constexpr const char* kNames[4] = {"validMask", "dirtyMask", "partialStart", "partialEnd"};
  for (int i = 0; i < 4; i++) {
    if (!getInteger(env, argv[i], kNames[i], 0, i < 2 ? kAllSectors : kPageBytes, &numbers[i])) return false;
  }
  *content = {static_cast<uint32_t>(numbers[0]), static_cast<uint32_t>(numbers[1]), static_cast<uint32_t>(numbers[2]),
              static_cast<uint32_t>(numbers[3])};
  if (content->isSound()) return true;
  throwRange(env, "content", "dirty only where it is valid, with a partial range that is 0, 0 or start < end");
  return false;
}

// Three arguments: sizeBytes, mtimeNs, ctimeNs.
bool getState(napi_env env, const napi_value* argv, EntryState* state) {
  *state = {};
  return getInteger(env, argv[0], "sizeBytes", 0, kRangeEnd, &state->sizeBytes) &&
         getInt64(env, argv[1], "mtimeNs", &state->mtimeNs) && getInt64(env, argv[2], "ctimeNs", &state->ctimeNs);
}

napi_value faultValue(napi_env env, Fault fault) { return toInt32(env, static_cast<int32_t>(fault)); }

// Hits.

napi_value Read(napi_env env, napi_callback_info info) {
  Call<3> call(env, info);
  uint64_t entry;
  int64_t offset;
  uint8_t* target;
  size_t length;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry) ||
      !getInteger(env, call.argv[1], "offsetBytes", 0, INT64_MAX, &offset) ||
      !getBytes(env, call.argv[2], "target", &target, &length)) {
    return nullptr;
  }
  return toInt32(env, call.map->read(entry, offset, target, length));
}

napi_value Write(napi_env env, napi_callback_info info) {
  Call<4> call(env, info);
  uint64_t entry;
  int64_t offset;
  uint8_t* source;
  size_t length;
  int64_t wallNs;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry) ||
      !getInteger(env, call.argv[1], "offsetBytes", -1, INT64_MAX, &offset) ||
      !getBytes(env, call.argv[2], "source", &source, &length) || !getInt64(env, call.argv[3], "wallNs", &wallNs)) {
    return nullptr;
  }
  return toInt32(env, call.map->write(entry, offset, source, length, wallNs));
}

// The engine.

napi_value SetLeaseDeadline(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  double deadlineMs;
  if (call.map == nullptr || !getNumber(env, call.argv[0], "deadlineMs", &deadlineMs)) return nullptr;
  if (std::isnan(deadlineMs)) {
    throwRange(env, "deadlineMs", "a time, not NaN");
    return nullptr;
  }
  call.map->setLeaseDeadline(deadlineMs);
  return nullptr;
}

napi_value OpenEntry(napi_env env, napi_callback_info info) {
  Call<3> call(env, info);
  EntryState state;
  if (call.map == nullptr || !getState(env, call.argv, &state)) return nullptr;
  return toNumber(env, static_cast<double>(call.map->openEntry(state)));
}

napi_value CloseEntry(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  uint64_t entry;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry)) return nullptr;
  return faultValue(env, call.map->closeEntry(entry));
}

napi_value SetStatusMode(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  uint64_t entry;
  uint32_t mode;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry) || !getMode(env, call.argv[1], &mode)) return nullptr;
  return faultValue(env, call.map->setStatusMode(entry, mode));
}

// Into the caller's Float64Array of four: size, changes, and the bit patterns of mtime and ctime.
napi_value GetEntryState(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  uint64_t entry;
  void* out;
  size_t length;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry) ||
      !getTypedArray(env, call.argv[1], "out", napi_float64_array, "a Float64Array", &out, &length)) {
    return nullptr;
  }
  if (length < 4) {
    throwRange(env, "out", "at least 4 elements long");
    return nullptr;
  }
  EntryState state;
  const Fault fault = call.map->entryState(entry, &state);
  if (fault == Fault::kNone) {
    auto* numbers = static_cast<double*>(out);
    numbers[0] = static_cast<double>(state.sizeBytes);
    numbers[1] = static_cast<double>(state.changes);
    std::memcpy(numbers + 2, &state.mtimeNs, sizeof state.mtimeNs);
    std::memcpy(numbers + 3, &state.ctimeNs, sizeof state.ctimeNs);
  }
  return faultValue(env, fault);
}

napi_value SetEntryState(napi_env env, napi_callback_info info) {
  Call<4> call(env, info);
  uint64_t entry;
  EntryState state;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry) || !getState(env, call.argv + 1, &state))
    return nullptr;
  return faultValue(env, call.map->setEntryState(entry, state));
}

napi_value NoteWrite(napi_env env, napi_callback_info info) {
  Call<3> call(env, info);
  uint64_t entry;
  int64_t end;
  int64_t wallNs;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry) ||
      !getInteger(env, call.argv[1], "endBytes", 0, kRangeEnd, &end) ||
      !getInt64(env, call.argv[2], "wallNs", &wallNs)) {
    return nullptr;
  }
  return faultValue(env, call.map->noteWrite(entry, end, wallNs));
}

// From a Float64Array of triples: start, end, mode.
napi_value SetCoverage(napi_env env, napi_callback_info info) {
  Call<3> call(env, info);
  uint64_t entry;
  void* data;
  size_t length;
  int64_t count;
  if (call.map == nullptr || !getEntry(env, call.argv[0], &entry) ||
      !getTypedArray(env, call.argv[1], "ranges", napi_float64_array, "a Float64Array", &data, &length) ||
      !getInteger(env, call.argv[2], "count", 0, kCoverageRangesMax, &count)) {
    return nullptr;
  }
  if (length < static_cast<size_t>(count) * 3) {
    throwRange(env, "ranges", "as long as count says");
    return nullptr;
  }
  const auto* numbers = static_cast<const double*>(data);
  CoverageRange ranges[kCoverageRangesMax];
  for (int64_t i = 0; i < count; i++) {
    const double start = numbers[i * 3];
    const double end = numbers[i * 3 + 1];
    const double mode = numbers[i * 3 + 2];
    if (!(start >= 0 && start <= end && end <= kSafeIntegerMax && mode >= kModeNone && mode <= kModeExclusive)) {
      throwRange(env, "ranges", "0 <= start <= end with a token mode");
      return nullptr;
    }
    ranges[i] = {static_cast<uint64_t>(start), static_cast<uint64_t>(end), static_cast<uint32_t>(mode)};
  }
  return faultValue(env, call.map->setCoverage(entry, ranges, static_cast<uint32_t>(count)));
}

napi_value Install(napi_env env, napi_callback_info info) {
  Call<8> call(env, info);
  uint32_t slot;
  uint64_t entry;
  int64_t page;
  PageContent content;
  bool writable;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot) || !getEntry(env, call.argv[1], &entry) ||
      !getInteger(env, call.argv[2], "pageIndex", 0, kRangeEnd / kPageBytes, &page) ||
      !getContent(env, call.argv + 3, &content) || !getBoolean(env, call.argv[7], "writable", &writable)) {
    return nullptr;
  }
  return faultValue(env, call.map->install(slot, entry, static_cast<uint64_t>(page), content, writable));
}

napi_value SetWritable(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  uint32_t slot;
  bool writable;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot) ||
      !getBoolean(env, call.argv[1], "writable", &writable)) {
    return nullptr;
  }
  return faultValue(env, call.map->setWritable(slot, writable));
}

// PageContent::pack as a double; -1 when the slot is free.
napi_value Content(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  uint32_t slot;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot)) return nullptr;
  PageContent content;
  const Fault fault = call.map->content(slot, &content);
  return toNumber(env, fault == Fault::kNone ? static_cast<double>(content.pack()) : -1);
}

napi_value SetContent(napi_env env, napi_callback_info info) {
  Call<5> call(env, info);
  uint32_t slot;
  PageContent content;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot) ||
      !getContent(env, call.argv + 1, &content)) {
    return nullptr;
  }
  return faultValue(env, call.map->setContent(slot, content));
}

// 1 when no pin is left, 0 when some are, -1 when the slot is free.
napi_value CloseSlot(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  uint32_t slot;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot)) return nullptr;
  bool quiet = false;
  const Fault fault = call.map->close(slot, &quiet);
  return toInt32(env, fault != Fault::kNone ? -1 : quiet ? 1 : 0);
}

template <Fault (CacheMap::*kMethod)(uint32_t)>
napi_value SlotFault(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  uint32_t slot;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot)) return nullptr;
  return faultValue(env, (call.map->*kMethod)(slot));
}

template <bool (CacheMap::*kMethod)(uint32_t)>
napi_value SlotBoolean(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  uint32_t slot;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot)) return nullptr;
  return toBoolean(env, (call.map->*kMethod)(slot));
}

// Into the caller's Uint32Array; returns how many.
napi_value TakeDirtied(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  void* out;
  size_t length;
  int64_t max;
  if (call.map == nullptr ||
      !getTypedArray(env, call.argv[0], "out", napi_uint32_array, "a Uint32Array", &out, &length) ||
      !getInteger(env, call.argv[1], "max", 0, static_cast<int64_t>(length), &max)) {
    return nullptr;
  }
  return toInt32(env,
                 static_cast<int32_t>(call.map->takeDirtied(static_cast<uint32_t*>(out), static_cast<uint32_t>(max))));
}

napi_value AddDirtyCredits(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  int64_t add;
  // Far more than there can be slots, and far from where the sum would overflow.
  constexpr int64_t kCreditsMax = int64_t{1} << 40;
  if (call.map == nullptr || !getInteger(env, call.argv[0], "add", -kCreditsMax, kCreditsMax, &add)) return nullptr;
  return toNumber(env, static_cast<double>(call.map->addDirtyCredits(add)));
}

napi_value TakeReferences(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  uint32_t slot;
  if (call.map == nullptr || !getSlot(env, call.argv[0], *call.map, &slot)) return nullptr;
  return toInt32(env, static_cast<int32_t>(call.map->takeReferences(slot)));
}

// Into the caller's Float64Array: readHits, writeHits, readBytes, writeBytes, then the misses by reason.
napi_value GetStatistics(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  void* out;
  size_t length;
  if (call.map == nullptr ||
      !getTypedArray(env, call.argv[0], "out", napi_float64_array, "a Float64Array", &out, &length)) {
    return nullptr;
  }
  if (length < 4 + kMissReasons) {
    throwRange(env, "out", "long enough for every counter");
    return nullptr;
  }
  const Statistics sum = call.map->statistics();
  auto* numbers = static_cast<double*>(out);
  numbers[0] = static_cast<double>(sum.readHits);
  numbers[1] = static_cast<double>(sum.writeHits);
  numbers[2] = static_cast<double>(sum.readBytes);
  numbers[3] = static_cast<double>(sum.writeBytes);
  for (uint32_t i = 0; i < kMissReasons; i++) numbers[4 + i] = static_cast<double>(sum.misses[i]);
  return nullptr;
}

// Closing twice is allowed.
napi_value CloseMap(napi_env env, napi_callback_info info) {
  size_t count = 0;
  void* data = nullptr;
  if (napi_get_cb_info(env, info, &count, nullptr, nullptr, &data) != napi_ok) return nullptr;
  auto* binding = static_cast<Binding*>(data);
  if (binding->owner && binding->map) CacheMap::close(binding->map->id());
  binding->map.reset();
  return nullptr;
}

napi_value bind(napi_env env, std::shared_ptr<CacheMap> map, bool owner) {
  static constexpr struct {
    const char* name;
    napi_callback callback;
  } kFunctions[] = {
      {"read", Read},
      {"write", Write},
      {"setLeaseDeadline", SetLeaseDeadline},
      {"openEntry", OpenEntry},
      {"closeEntry", CloseEntry},
      {"setStatusMode", SetStatusMode},
      {"entryState", GetEntryState},
      {"setEntryState", SetEntryState},
      {"noteWrite", NoteWrite},
      {"setCoverage", SetCoverage},
      {"install", Install},
      {"setWritable", SetWritable},
      {"remove", SlotFault<&CacheMap::remove>},
      {"content", Content},
      {"setContent", SetContent},
      {"closeSlot", CloseSlot},
      {"reopen", SlotFault<&CacheMap::reopen>},
      {"tryPinShared", SlotBoolean<&CacheMap::tryPinShared>},
      {"tryPinExclusive", SlotBoolean<&CacheMap::tryPinExclusive>},
      {"unpinShared", SlotFault<&CacheMap::unpinShared>},
      {"unpinExclusive", SlotFault<&CacheMap::unpinExclusive>},
      {"takeDirtied", TakeDirtied},
      {"addDirtyCredits", AddDirtyCredits},
      {"takeReferences", TakeReferences},
      {"statistics", GetStatistics},
      {"close", CloseMap},
  };
  napi_value object = nullptr;
  if (napi_create_object(env, &object) != napi_ok) return nullptr;
  napi_set_named_property(env, object, "id", toNumber(env, map->id()));
  napi_set_named_property(env, object, "slotCount", toNumber(env, map->slotCount()));
  napi_set_named_property(env, object, "entryCountMax", toNumber(env, map->entryCountMax()));
  auto* binding = new Binding{std::move(map), owner};
  binding->functions = 1;  // while this function builds
  for (const auto& [name, callback] : kFunctions) {
    napi_value function = addFunction(env, object, name, callback, binding);
    if (function != nullptr && napi_add_finalizer(env, function, binding, dropFunction, nullptr, nullptr) == napi_ok) {
      binding->functions++;
    }
  }
  dropFunction(env, binding, nullptr);
  return object;
}

napi_value CreateCacheMap(napi_env env, napi_callback_info info) {
  napi_value argv[3];
  size_t count = 3;
  int64_t poolId;
  int64_t slotCount;
  int64_t entryCountMax;
  if (napi_get_cb_info(env, info, &count, argv, nullptr, nullptr) != napi_ok ||
      !getInteger(env, argv[0], "poolId", 0, UINT32_MAX, &poolId)) {
    return nullptr;
  }
  std::shared_ptr<PagePool> pool = PagePool::find(static_cast<uint32_t>(poolId));
  if (!pool) {
    throwRange(env, "poolId", "the id of an open page pool");
    return nullptr;
  }
  if (!getInteger(env, argv[1], "slotCount", 1, static_cast<int64_t>(pool->lengthBytes() / kPageBytes), &slotCount) ||
      !getInteger(env, argv[2], "entryCountMax", 1, kEntryCountLimit, &entryCountMax)) {
    return nullptr;
  }
  try {
    return bind(
        env, CacheMap::create(std::move(pool), static_cast<uint32_t>(slotCount), static_cast<uint32_t>(entryCountMax)),
        true);
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, error.what());
    return nullptr;
  }
}

napi_value OpenCacheMap(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  size_t count = 1;
  int64_t id;
  if (napi_get_cb_info(env, info, &count, argv, nullptr, nullptr) != napi_ok ||
      !getInteger(env, argv[0], "id", 0, UINT32_MAX, &id)) {
    return nullptr;
  }
  std::shared_ptr<CacheMap> map = CacheMap::find(static_cast<uint32_t>(id));
  if (!map) {
    throwRange(env, "id", "the id of an open cache map");
    return nullptr;
  }
  return bind(env, std::move(map), false);
}

}  // namespace

void addCacheMapFunctions(napi_env env, napi_value exports) {
  addFunction(env, exports, "createCacheMap", CreateCacheMap, nullptr);
  addFunction(env, exports, "openCacheMap", OpenCacheMap, nullptr);
}

}  // namespace holdfast
