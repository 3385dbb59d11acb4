import { once } from 'node:events';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { expect, it } from 'vitest';
import { WHOLE } from '../common/byte-range.js';
import type { Clock } from '../common/clock.js';
import { below, SeededRandom } from '../common/random.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { coreAddonPath, createPagePool } from '../native/core.js';
import { TokenMode } from '../token-manager/token.js';
import { NativeCacheMap } from './cache-map-native.js';
import { TestFile, testCacheOver } from './testing.js';

/**
 * The page cache over the native map, with application threads that hit all the while. Every write, theirs and the engine's, gives
 * the whole region one stamp; so a region with two stamps, in a read, in a hit, or on the device when the token has left, is a fault.
 * That bytes are stable while they are written is checked by the backing store (S2).
 */
const realClock: Clock = {
  nowMs: () => performance.now(),
  wallNs: () => 1n,
  after: (delayMs, fire) => {
    if (delayMs === 0) {
      const immediate = setImmediate(fire);
      return { cancel: () => clearImmediate(immediate) };
    }
    const timer = setTimeout(fire, delayMs);
    return { cancel: () => clearTimeout(timer) };
  },
};

/** Straddles four pages, at odd places that are whole words. */
const OFFSET = PAGE_BYTES - 1236;
const LENGTH = 3 * PAGE_BYTES + 524;
const REGION = { start: OFFSET, end: OFFSET + LENGTH };
const ROUNDS = 400;

it('never tears an operation while threads hit and the engine reads, writes, flushes, evicts and is revoked', async () => {
  const pool = createPagePool(32 * PAGE_BYTES);
  const map = NativeCacheMap.create(pool, 4);
  const t = testCacheOver(realClock, pool, map, { fileBytes: 8 * PAGE_BYTES, settings: { dirtyPagesMax: 8 } });
  t.backing.beforeWrite = () => nextTurn();
  t.backing.beforeRead = () => nextTurn();
  const file = TestFile.open(t, 9, 8 * PAGE_BYTES);
  await t.backing.reserve(file.ino, { start: 0, end: 8 * PAGE_BYTES });
  await file.write(OFFSET, new Uint8Array(LENGTH));
  await file.read(0, 8 * PAGE_BYTES);

  const control = new Int32Array(new SharedArrayBuffer(12));
  const results = ['writer', 'reader'].map((role, id) => {
    const worker = new Worker(new URL('./cache-map-stress.worker.mjs', import.meta.url), {
      workerData: {
        addonPath: coreAddonPath(),
        mapId: map.id,
        entry: file.file.entry,
        role,
        id: id + 1,
        offsetBytes: OFFSET,
        lengthBytes: LENGTH,
        control: control.buffer,
      },
    });
    return once(worker, 'message').then(([message]) => message as { hits: number; torn: number });
  });
  const failed = Promise.all(results);
  while (Atomics.load(control, 1) < 2) await Promise.race([nextTurn(), failed]);
  Atomics.store(control, 2, 1);
  Atomics.notify(control, 2);

  const random = new SeededRandom(7);
  const stamps = (bytes: Uint8Array): number => {
    const words = new Uint32Array(bytes.slice().buffer);
    return new Set(words).size;
  };
  const region = new Uint32Array(LENGTH / 4);
  for (let round = 1; round <= ROUNDS; round++) {
    const choice = below(random, 8);
    if (choice <= 1) await file.write(OFFSET, new Uint8Array(region.fill(round * 8).buffer));
    else if (choice <= 3) expect(stamps(await file.read(OFFSET, LENGTH))).toBe(1);
    else if (choice === 4) await file.file.flush();
    else if (choice === 5) {
      file.file.hint('dontNeed', { start: 0, end: 8 * PAGE_BYTES });
      await nextTurn();
    } else if (choice === 6) await t.tokens.revoke(file.ino, WHOLE, TokenMode.shared);
    else {
      await t.tokens.revoke(file.ino, WHOLE, TokenMode.none, () => {
        expect(file.hitRead(OFFSET, SECTOR_BYTES)).toBeLessThan(0);
        expect(stamps(t.backing.bytesOf(file.ino).subarray(REGION.start, REGION.end))).toBe(1);
      });
    }
    // Threads get their hits in.
    if (choice > 5) await file.write(OFFSET, new Uint8Array(region.fill(round * 8).buffer));
    for (let turn = below(random, 4); turn > 0; turn--) await nextTurn();
  }

  Atomics.store(control, 0, 1);
  const [writer, reader] = await failed;
  expect(reader!.torn).toBe(0);
  expect(writer!.hits).toBeGreaterThan(0);
  await t.tokens.revoke(file.ino, WHOLE);
  expect(stamps(t.backing.bytesOf(file.ino).subarray(REGION.start, REGION.end))).toBe(1);
  expect(t.cache.usage()).toMatchObject({ pagesUsed: 0, dirtyPages: 0 });
  await t.cache.close();
  map.dispose();
});
