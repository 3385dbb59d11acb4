import { PAGE_BYTES } from '../common/units.js';
import { heapPagePool } from '../native/page-pool.js';
import { cacheMapSuite } from './cache-map.suite.js';
import { TwinCacheMap } from './cache-map-twin.js';

cacheMapSuite('TypeScript twin', (slotCount, entryCountMax) => {
  const pool = heapPagePool(slotCount * PAGE_BYTES);
  const nowMs = () => 1000;
  return { map: new TwinCacheMap(pool, { nowMs }, entryCountMax), pool, nowMs };
});
