import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { ALL_VALID, slotId, WHOLE_EXCLUSIVE, ZERO_STATE } from '../cache/cache-map.suite.js';
import { NativeCacheMap } from '../cache/cache-map-native.js';
import { inodeNumber } from '../common/ids.js';
import { PAGE_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { bootTimeMs, coreAddonPath, createPagePool, mappedPoolCount, openPagePool, wallClockNs } from './core.js';

const worker = (workerData: object): Worker =>
  new Worker(new URL('./core.worker.mjs', import.meta.url), {
    workerData: { addonPath: coreAddonPath(), index: 0, leave: 'end', ...workerData },
  });

/** Collects garbage until finalizers brought the count of mapped pools down, or it is clear that they won't. */
async function mappedAfterCollection(wanted: number): Promise<number> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let round = 0; round < 100 && mappedPoolCount() > wanted; round++) {
    collect();
    await delay(5);
  }
  return mappedPoolCount();
}

describe('the native page pool', () => {
  it('is zeros, of the length asked for, and says which pages it came on', () => {
    const pool = createPagePool(3 * PAGE_BYTES);
    expect(pool.lengthBytes).toBe(3 * PAGE_BYTES);
    expect(pool.buffer.byteLength).toBe(3 * PAGE_BYTES);
    expect(pool.bytes.every((byte) => byte === 0)).toBe(true);
    expect(['none', 'transparent', 'reserved']).toContain(pool.hugePages);
    pool.close();
  });

  it('is the same memory in every thread of the process', async () => {
    const pool = createPagePool(PAGE_BYTES);
    pool.bytes[0] = 41;
    const other = worker({ poolId: pool.id });
    // From the beginning: its message and its end may come in one turn.
    const ended = once(other, 'exit');
    const [message] = await once(other, 'message');
    expect(message.length).toBe(PAGE_BYTES);
    expect(pool.bytes[0]).toBe(42);
    const again = openPagePool(pool.id);
    again.bytes[1] = 7;
    expect(pool.bytes[1]).toBe(7);
    await ended;
    pool.close();
  });

  it('stays mapped for who has it open, and can not be opened any more, once its creator closed it', async () => {
    const pool = createPagePool(PAGE_BYTES);
    pool.bytes[0] = 1;
    pool.close();
    pool.close();
    expect(() => openPagePool(pool.id)).toThrow(RangeError);
    pool.bytes[1] = 2;
    expect([...pool.bytes.subarray(0, 2)]).toEqual([1, 2]);
  });

  it('is unmapped when it was closed and every thread has let go of it', async () => {
    const before = await mappedAfterCollection(0);
    let pool: ReturnType<typeof createPagePool> | undefined = createPagePool(PAGE_BYTES);
    const other = worker({ poolId: pool.id, leave: 'stay' });
    const ended = once(other, 'exit');
    await once(other, 'message');
    pool.close();
    pool = undefined;
    expect(await mappedAfterCollection(before)).toBe(before + 1);
    other.postMessage('leave');
    await ended;
    expect(await mappedAfterCollection(before)).toBe(before);
  });

  it('stays mapped under a cache map after its buffers are gone', async () => {
    const before = await mappedAfterCollection(0);
    const make = () => {
      const pool = createPagePool(PAGE_BYTES);
      const map = NativeCacheMap.create(pool, 1);
      pool.bytes[0] = 99;
      pool.close();
      return map;
    };
    const map = make();
    expect(await mappedAfterCollection(before)).toBe(before + 1);
    const entry = map.openEntry(inodeNumber(1), { ...ZERO_STATE, sizeBytes: 1 })!;
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    map.setStatusMode(entry, TokenMode.shared);
    map.setCoverage(entry, WHOLE_EXCLUSIVE);
    map.install(slotId(0), entry, 0, ALL_VALID, false);
    const target = new Uint8Array(1);
    expect(map.read(entry, 0, target)).toBe(1);
    expect(target[0]).toBe(99);
    map.dispose();
    expect(await mappedAfterCollection(before)).toBe(before);
  });

  it('refuses lengths and ids that make no sense', () => {
    for (const length of [0, -1, 1.5, Number.NaN, 2 ** 60]) expect(() => createPagePool(length)).toThrow(RangeError);
    expect(() => createPagePool('big' as never)).toThrow(TypeError);
    expect(() => createPagePool(2 ** 46)).toThrow(/mmap of the page pool/);
    expect(() => openPagePool(2 ** 32 - 1)).toThrow(RangeError);
    expect(() => openPagePool(-1)).toThrow(RangeError);
  });
});

describe('a thread that ends', () => {
  const mapUnderHits = () => {
    const pool = createPagePool(4 * PAGE_BYTES);
    const map = NativeCacheMap.create(pool, 2);
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    const entry = map.openEntry(inodeNumber(1), { ...ZERO_STATE, sizeBytes: PAGE_BYTES })!;
    map.setStatusMode(entry, TokenMode.shared);
    map.setCoverage(entry, WHOLE_EXCLUSIVE);
    map.install(slotId(0), entry, 0, ALL_VALID, false);
    return { pool, map, entry };
  };

  /** In a function of its own, so that no variable of the test keeps the pool from being collected. */
  const hitAndLeave = async (leave: string) => {
    const { pool, map, entry } = mapUnderHits();
    const other = worker({ poolId: pool.id, mapId: map.id, entry, leave, index: 5 });
    const [message] = await once(other, 'message');
    expect(message.map).toBe(4);
    await other.terminate();
    expect(pool.bytes[5]).toBe(1);
    expect(map.close(slotId(0))).toBe(true);
    map.setStatusMode(entry, TokenMode.none);
    map.remove(slotId(0));
    map.closeEntry(entry);
    map.dispose();
    pool.close();
  };

  it.each(['end', 'exit', 'stay', 'hits'])('leaves no pin and no memory behind (%s)', async (leave) => {
    const before = await mappedAfterCollection(0);
    await hitAndLeave(leave);
    expect(await mappedAfterCollection(before)).toBe(before);
  });

  it('goes on with a map whose creator closed it', async () => {
    const { pool, map, entry } = mapUnderHits();
    const opened = NativeCacheMap.open(map.id);
    map.dispose();
    map.dispose();
    expect(() => map.read(entry, 0, new Uint8Array(1))).toThrow(/closed/);
    expect(() => map.setLeaseDeadline(1)).toThrow(/closed/);
    expect(() => NativeCacheMap.open(map.id)).toThrow(RangeError);
    expect(opened.read(entry, 0, new Uint8Array(1))).toBe(1);
    opened.dispose();
    pool.close();
  });
});

describe('the clocks', () => {
  it('run forwards', () => {
    const first = bootTimeMs();
    expect(first).toBeGreaterThan(0);
    expect(bootTimeMs()).toBeGreaterThanOrEqual(first);
    expect(wallClockNs()).toBeGreaterThan(1_600_000_000n * 1_000_000_000n);
  });
});

describe('a processor that is kept awake', () => {
  const { stayAwake } = createRequire(import.meta.url)(coreAddonPath()) as { stayAwake(forUs: unknown): void };
  /** Scheduling policies of the threads that do it (proc(5), stat, field 41). */
  const policies = (): number[] =>
    readdirSync('/proc/self/task').flatMap((task) => {
      try {
        if (readFileSync(`/proc/self/task/${task}/comm`, 'utf8').trim() !== 'hf-wakeful') return [];
        const stat = readFileSync(`/proc/self/task/${task}/stat`, 'utf8');
        return [Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[38])];
      } catch {
        // It has ended meanwhile.
        return [];
      }
    });
  const SCHED_IDLE = 5;

  it('costs only time that nobody else wants, and one thread however often it is asked for', async () => {
    stayAwake(50);
    while (!policies().includes(SCHED_IDLE)) await new Promise((resolve) => setImmediate(resolve));
    for (let i = 0; i < 100; i++) stayAwake(i % 2 === 0 ? 20 : 0);
    expect(policies()).toEqual([SCHED_IDLE]);
  });

  it('for a bounded time', () => {
    for (const wrong of [-1, 10_001, 0.5, Number.NaN]) expect(() => stayAwake(wrong)).toThrow(RangeError);
    for (const wrong of ['1', undefined, null]) expect(() => stayAwake(wrong)).toThrow(TypeError);
  });
});
