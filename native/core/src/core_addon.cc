// core.node: the page pool, checksums, clocks, and (cache_map_addon.cc) the cache map. Typed in src/native/core.ts.
//
// Everything process-wide is reference-counted in the registries; what an environment holds (ArrayBuffers over pools,
// bindings of maps) is given back by finalizers, which run at the latest when the environment ends.
#include <cstring>
#include <exception>
#include <memory>

#include "cache_map.h"
#include "cache_map_addon.h"
#include "checksum.h"
#include "clocks.h"
#include "napi_args.h"
#include "page_pool.h"
#include "wakeful.h"

namespace holdfast {
namespace {

void dropPool(napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<PagePool>*>(hint); }

// { id, buffer, lengthBytes, hugePages }; the buffer keeps the pool mapped until it is collected.
napi_value poolObject(napi_env env, std::shared_ptr<PagePool> pool) {
  napi_value object = nullptr;
  napi_value buffer = nullptr;
  if (napi_create_object(env, &object) != napi_ok) return nullptr;
  napi_set_named_property(env, object, "id", toNumber(env, pool->id()));
  napi_set_named_property(env, object, "lengthBytes", toNumber(env, static_cast<double>(pool->lengthBytes())));
  napi_set_named_property(env, object, "hugePages", toNumber(env, static_cast<double>(pool->hugePages())));
  auto* reference = new std::shared_ptr<PagePool>(pool);
  if (napi_create_external_arraybuffer(env, pool->data(), pool->lengthBytes(), dropPool, reference, &buffer) !=
      napi_ok) {
    delete reference;
    napi_throw_error(env, nullptr, "this Node.js can't make an ArrayBuffer over native memory");
    return nullptr;
  }
  napi_set_named_property(env, object, "buffer", buffer);
  return object;
}

napi_value CreatePool(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  size_t count = 1;
  int64_t length;
  if (napi_get_cb_info(env, info, &count, argv, nullptr, nullptr) != napi_ok ||
      !getInteger(env, argv[0], "lengthBytes", 1, int64_t{1} << 46, &length)) {
    return nullptr;
  }
  try {
    std::shared_ptr<PagePool> pool = PagePool::create(static_cast<size_t>(length));
    const uint32_t id = pool->id();
    napi_value object = poolObject(env, std::move(pool));
    if (object == nullptr) PagePool::close(id);
    return object;
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, error.what());
    return nullptr;
  }
}

bool poolIdArgument(napi_env env, napi_callback_info info, uint32_t* id) {
  napi_value argv[1];
  size_t count = 1;
  int64_t number;
  if (napi_get_cb_info(env, info, &count, argv, nullptr, nullptr) != napi_ok ||
      !getInteger(env, argv[0], "id", 0, UINT32_MAX, &number)) {
    return false;
  }
  *id = static_cast<uint32_t>(number);
  return true;
}

napi_value OpenPool(napi_env env, napi_callback_info info) {
  uint32_t id;
  if (!poolIdArgument(env, info, &id)) return nullptr;
  std::shared_ptr<PagePool> pool = PagePool::find(id);
  if (!pool) {
    throwRange(env, "id", "the id of an open page pool");
    return nullptr;
  }
  return poolObject(env, std::move(pool));
}

napi_value ClosePool(napi_env env, napi_callback_info info) {
  uint32_t id;
  if (!poolIdArgument(env, info, &id)) return nullptr;
  return toBoolean(env, PagePool::close(id));
}

napi_value MappedPoolCount(napi_env env, napi_callback_info) { return toNumber(env, PagePool::mappedCount()); }

napi_value Crc32c(napi_env env, napi_callback_info info) {
  napi_value argv[2];
  size_t count = 2;
  uint8_t* data;
  size_t length;
  int64_t seed;
  if (napi_get_cb_info(env, info, &count, argv, nullptr, nullptr) != napi_ok ||
      !getBytes(env, argv[0], "bytes", &data, &length) || !getInteger(env, argv[1], "seed", 0, UINT32_MAX, &seed)) {
    return nullptr;
  }
  return toNumber(env, crc32c(data, length, static_cast<uint32_t>(seed)));
}

napi_value Crc32cSectors(napi_env env, napi_callback_info info) {
  napi_value argv[5];
  size_t count = 5;
  uint8_t* data;
  size_t length;
  int64_t offset;
  int64_t sectorCount;
  void* out;
  size_t outLength;
  int64_t outIndex;
  if (napi_get_cb_info(env, info, &count, argv, nullptr, nullptr) != napi_ok ||
      !getBytes(env, argv[0], "bytes", &data, &length) ||
      !getInteger(env, argv[1], "offsetBytes", 0, static_cast<int64_t>(length), &offset) ||
      !getInteger(env, argv[2], "sectorCount", 0, (static_cast<int64_t>(length) - offset) / int64_t{kSectorBytes},
                  &sectorCount) ||
      !getTypedArray(env, argv[3], "out", napi_uint32_array, "a Uint32Array", &out, &outLength) ||
      !getInteger(env, argv[4], "outIndex", 0, static_cast<int64_t>(outLength), &outIndex)) {
    return nullptr;
  }
  if (static_cast<int64_t>(outLength) - outIndex < sectorCount) {
    throwRange(env, "out", "long enough for a checksum per sector");
    return nullptr;
  }
  crc32cSectors(data + offset, static_cast<size_t>(sectorCount), static_cast<uint32_t*>(out) + outIndex);
  return nullptr;
}

napi_value BootTimeMs(napi_env env, napi_callback_info) { return toNumber(env, bootTimeMs()); }

napi_value WallClockNs(napi_env env, napi_callback_info) {
  napi_value result = nullptr;
  napi_create_bigint_int64(env, wallClockNs(), &result);
  return result;
}

void dropWakeful(void* wakeful) { static_cast<Wakeful*>(wakeful)->giveBack(); }

// stayAwake(forUs): one helper for each environment, which is a thread; it ends with it.
napi_value StayAwake(napi_env env, napi_callback_info info) {
  napi_value argv[1];
  size_t count = 1;
  int64_t forUs;
  void* data;
  if (napi_get_cb_info(env, info, &count, argv, nullptr, &data) != napi_ok ||
      !getInteger(env, argv[0], "forUs", 0, 10'000, &forUs)) {
    return nullptr;
  }
  try {
    static_cast<Wakeful*>(data)->stayAwake(static_cast<uint64_t>(forUs) * 1000u);
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, error.what());
  }
  return nullptr;
}

}  // namespace

napi_value initialize(napi_env env, napi_value exports) {
  addFunction(env, exports, "createPool", CreatePool, nullptr);
  addFunction(env, exports, "openPool", OpenPool, nullptr);
  addFunction(env, exports, "closePool", ClosePool, nullptr);
  addFunction(env, exports, "mappedPoolCount", MappedPoolCount, nullptr);
  addFunction(env, exports, "crc32c", Crc32c, nullptr);
  addFunction(env, exports, "crc32cSectors", Crc32cSectors, nullptr);
  addFunction(env, exports, "bootTimeMs", BootTimeMs, nullptr);
  addFunction(env, exports, "wallClockNs", WallClockNs, nullptr);
  addCacheMapFunctions(env, exports);
  auto* wakeful = Wakeful::take();
  addFunction(env, exports, "stayAwake", StayAwake, wakeful);
  napi_add_env_cleanup_hook(env, dropWakeful, wakeful);
  // What the two languages both know; the loader compares.
  napi_value constants = nullptr;
  napi_create_object(env, &constants);
  const auto constant = [env, constants](const char* name, double value) {
    napi_set_named_property(env, constants, name, toNumber(env, value));
  };
  constant("pageBytes", kPageBytes);
  constant("sectorBytes", kSectorBytes);
  constant("hitPagesMax", kHitPagesMax);
  constant("coverageRangesMax", kCoverageRangesMax);
  constant("missReasons", kMissReasons);
  constant("modeExclusive", kModeExclusive);
  napi_set_named_property(env, exports, "constants", constants);
  return exports;
}

}  // namespace holdfast

NAPI_MODULE_INIT() { return holdfast::initialize(env, exports); }
