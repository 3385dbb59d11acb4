// Another thread of the pool's tests: changes a byte that it is told of, keeps the view, and leaves as it is told.
import { createRequire } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';

const core = createRequire(import.meta.url)(workerData.addonPath);
const pool = core.openPool(workerData.poolId);
const view = new Uint8Array(pool.buffer);
const map = workerData.mapId === undefined ? undefined : core.openCacheMap(workerData.mapId);
view[workerData.index] = view[workerData.index] + 1;
parentPort.postMessage({ length: view.length, map: map?.slotCount });
if (workerData.leave === 'exit') process.exit(0);
if (workerData.leave === 'stay') parentPort.on('message', () => parentPort.close());
if (workerData.leave === 'hits') for (;;) map.read(workerData.entry, 0, view);
