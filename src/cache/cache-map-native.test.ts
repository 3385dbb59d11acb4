import { PAGE_BYTES } from '../common/units.js';
import { bootTimeMs, createPagePool } from '../native/core.js';
import { cacheMapSuite } from './cache-map.suite.js';
import { NativeCacheMap } from './cache-map-native.js';

cacheMapSuite('native', (slotCount, entryCountMax) => {
  const pool = createPagePool(slotCount * PAGE_BYTES);
  return { map: NativeCacheMap.create(pool, entryCountMax), pool, nowMs: bootTimeMs };
});
