import { once } from 'node:events';
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { inodeNumber } from '../common/ids.js';
import { SeededRandom } from '../common/random.js';
import { PAGE_BYTES } from '../common/units.js';
import { coreAddonPath, createPagePool } from '../native/core.js';
import { TokenMode } from '../token-manager/token.js';
import { type EntryId, HIT_PAGES_MAX, Miss, type SlotId } from './cache-map.js';
import { ALL_VALID, slotId, WHOLE_EXCLUSIVE, ZERO_STATE } from './cache-map.suite.js';
import { NativeCacheMap } from './cache-map-native.js';
import { isDirty } from './slot-content.js';

/**
 * Application threads hit while the engine's thread takes pages away, moves them, cleans them, and withdraws tokens. What is
 * counted: torn reads (none, ever), bytes that change while nobody may change them (none), hits, credits, dirtied pages.
 */
interface WorkerResult {
  readonly role: string;
  readonly hits: number;
  readonly hitBytes: number;
  readonly misses: readonly number[];
  readonly torn: number;
  readonly records: number;
  readonly id: number;
}

const PAGES = 5;
const SLOTS = 12;
const CREDITS = 100;
/** Straddles four pages, at odd places. */
const OFFSET = PAGE_BYTES - 1236;
const LENGTH = 3 * PAGE_BYTES + 524;
const ROUNDS = 2000;

class Threads {
  /** Told to stop; threads that are ready; told to go; for each thread whether it waits for what it did to be seen. */
  readonly #control = new Int32Array(new SharedArrayBuffer(64));
  readonly #running: { readonly role: string; readonly result: Promise<WorkerResult> }[] = [];
  constructor(
    readonly map: NativeCacheMap,
    readonly entry: EntryId,
    readonly offsetBytes: number,
    readonly lengthBytes: number,
  ) {}

  /** One thread for each role; returns when all of them run. */
  async start(...roles: string[]): Promise<void> {
    for (const [id, role] of roles.entries()) {
      const worker = new Worker(new URL('./cache-map-stress.worker.mjs', import.meta.url), {
        workerData: {
          addonPath: coreAddonPath(),
          mapId: this.map.id,
          entry: this.entry,
          role,
          id: id + 1,
          offsetBytes: this.offsetBytes,
          lengthBytes: this.lengthBytes,
          control: this.#control.buffer,
        },
      });
      // `once` rejects when the worker emits an error.
      const result = once(worker, 'message').then(([message]) => message as WorkerResult);
      this.#running.push({ role, result });
    }
    const failed = Promise.all(this.#running.map(({ result }) => result));
    while (Atomics.load(this.#control, 1) < roles.length) await Promise.race([nextTurn(), failed]);
    Atomics.store(this.#control, 2, 1);
    Atomics.notify(this.#control, 2);
  }

  /** Threads, by their place among the roles, that have done something and wait for it to be seen. */
  waiting(): number[] {
    return this.#running.map((_, i) => i).filter((i) => Atomics.load(this.#control, 3 + i) === 1);
  }
  seen(thread: number): void {
    Atomics.store(this.#control, 3 + thread, 0);
    Atomics.notify(this.#control, 3 + thread);
  }

  /** Until the threads of this role are done by themselves. */
  async finished(role: string): Promise<void> {
    await Promise.all(this.#running.filter((thread) => thread.role === role).map(({ result }) => result));
  }

  async stop(): Promise<WorkerResult[]> {
    Atomics.store(this.#control, 0, 1);
    return Promise.all(this.#running.map(({ result }) => result));
  }
}

async function closeQuietly(map: NativeCacheMap, slot: SlotId): Promise<void> {
  while (!map.close(slot)) await nextTurn();
}

describe('the native cache map under threads', () => {
  it('never shows a torn read, nor changes what it took away (I2)', async () => {
    const pool = createPagePool(SLOTS * PAGE_BYTES);
    const map = NativeCacheMap.create(pool, 4);
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    map.addDirtyCredits(CREDITS);
    const entry = map.openEntry(inodeNumber(9), { ...ZERO_STATE, sizeBytes: PAGES * PAGE_BYTES })!;
    map.setStatusMode(entry, TokenMode.exclusive);
    map.setCoverage(entry, WHOLE_EXCLUSIVE);
    const slotOfPage = Array.from({ length: PAGES }, (_, page) => slotId(page));
    for (const [page, slot] of slotOfPage.entries()) map.install(slot, entry, page, ALL_VALID, true);
    const regionNow = (): Uint8Array => {
      const whole = Buffer.concat(
        slotOfPage.map((slot) => pool.bytes.subarray(slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES)),
      );
      return Uint8Array.prototype.slice.call(whole, OFFSET, OFFSET + LENGTH);
    };

    const threads = new Threads(map, entry, OFFSET, LENGTH);
    await threads.start('writer', 'reader', 'writer', 'reader');

    const random = new SeededRandom(4711);
    const faults: string[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const page = Math.floor(random.next() * PAGES);
      const slot = slotOfPage[page]!;
      const kind = round % 5;
      if (kind === 0) {
        // Evicted, and installed elsewhere with the same bytes.
        await closeQuietly(map, slot);
        const content = map.content(slot);
        const free = Array.from({ length: SLOTS }, (_, i) => slotId(i)).find((s) => !slotOfPage.includes(s))!;
        pool.bytes.copyWithin(free * PAGE_BYTES, slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES);
        map.remove(slot);
        map.install(free, entry, page, content, true);
        slotOfPage[page] = free;
      } else if (kind === 1) {
        // A revoke of data: coverage first, then the slots; from there on nothing changes.
        map.setCoverage(entry, round % 2 === 0 ? [] : [{ start: 0, end: OFFSET, mode: TokenMode.exclusive }]);
        for (const each of slotOfPage) await closeQuietly(map, each);
        const before = regionNow();
        if (new Set(new Uint32Array(before.buffer)).size !== 1) faults.push(`round ${round}: half a write`);
        for (const each of slotOfPage) map.reopen(each);
        for (let turn = 0; turn < 3; turn++) await nextTurn();
        if (Buffer.compare(before, regionNow()) !== 0) faults.push(`round ${round}: changed without a token`);
        map.setCoverage(entry, WHOLE_EXCLUSIVE);
      } else if (kind === 2) {
        // A revoke of status to shared: writes are over when it returns, reads go on.
        map.setStatusMode(entry, round % 2 === 0 ? TokenMode.shared : TokenMode.none);
        const changes = map.entryState(entry).changes;
        const before = regionNow();
        for (let turn = 0; turn < 3; turn++) await nextTurn();
        if (map.entryState(entry).changes !== changes) faults.push(`round ${round}: written without status`);
        if (Buffer.compare(before, regionNow()) !== 0) faults.push(`round ${round}: bytes without status`);
        map.setStatusMode(entry, TokenMode.exclusive);
      } else if (kind === 3) {
        // Write-behind: what became dirty is made clean, and its credit comes back.
        for (const dirtied of map.takeDirtied(SLOTS)) {
          if (!slotOfPage.includes(dirtied)) continue;
          await closeQuietly(map, dirtied);
          const { validMask, dirtyMask } = map.content(dirtied);
          if (dirtyMask !== 0) map.addDirtyCredits(1);
          map.setContent(dirtied, { ...ALL_VALID, validMask });
          map.reopen(dirtied);
        }
      } else {
        // The engine's own write.
        if (map.tryPinExclusive(slot)) {
          await nextTurn();
          map.unpinExclusive(slot);
        }
      }
      // Time in which hits are possible.
      for (let turn = 0; turn < 5; turn++) await nextTurn();
    }
    const results = await threads.stop();

    expect(faults).toEqual([]);
    expect(results.map((result) => result.torn)).toEqual([0, 0, 0, 0]);
    const sum = (of: (result: WorkerResult) => number, role: string) =>
      results.filter((result) => result.role === role).reduce((total, result) => total + of(result), 0);
    expect(sum((r) => r.hits, 'reader')).toBeGreaterThan(0);
    expect(sum((r) => r.hits, 'writer')).toBeGreaterThan(0);
    const stats = map.stats();
    expect(stats.readHits).toBe(sum((r) => r.hits, 'reader'));
    expect(stats.readBytes).toBe(sum((r) => r.hitBytes, 'reader'));
    expect(stats.writeHits).toBe(sum((r) => r.hits, 'writer'));
    expect(stats.writeBytes).toBe(sum((r) => r.hitBytes, 'writer'));
    for (const [name, reason] of Object.entries(Miss)) {
      const missed = results.reduce((total, result) => total + result.misses[-reason - 1]!, 0);
      expect(stats.misses[name], name).toBe(missed);
    }
    expect(map.entryState(entry).changes).toBe(stats.writeHits);
    // Every pin was given back, and every dirty page holds exactly one credit.
    expect(slotOfPage.map((slot) => map.close(slot))).toEqual(slotOfPage.map(() => true));
    const dirty = slotOfPage.filter((slot) => isDirty(map.content(slot))).length;
    expect(map.addDirtyCredits(0) + dirty).toBe(CREDITS);
    for (const slot of slotOfPage) map.remove(slot);
    map.closeEntry(entry);
    map.dispose();
    pool.close();
  });

  it('returns from lowering the status mode only when no write relies on it any more', async () => {
    const pool = createPagePool(HIT_PAGES_MAX * PAGE_BYTES);
    const map = NativeCacheMap.create(pool, 1);
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    map.addDirtyCredits(HIT_PAGES_MAX);
    const entry = map.openEntry(inodeNumber(9), { ...ZERO_STATE, sizeBytes: pool.lengthBytes })!;
    map.setStatusMode(entry, TokenMode.exclusive);
    map.setCoverage(entry, WHOLE_EXCLUSIVE);
    for (let page = 0; page < HIT_PAGES_MAX; page++) map.install(slotId(page), entry, page, ALL_VALID, true);
    // Writes so long that one of them nearly always runs.
    const threads = new Threads(map, entry, 0, pool.lengthBytes);
    await threads.start('writer');
    const last = new Uint32Array(pool.buffer, pool.lengthBytes - 4, 1);
    const first = new Uint32Array(pool.buffer, 0, 1);
    const halves: number[] = [];
    for (let round = 0; round < 200; round++) {
      map.setStatusMode(entry, TokenMode.shared);
      if (first[0] !== last[0]) halves.push(round);
      map.setStatusMode(entry, TokenMode.exclusive);
      await delay(1);
    }
    const [writer] = await threads.stop();
    expect(halves).toEqual([]);
    expect(writer!.hits).toBeGreaterThan(0);
    map.dispose();
    pool.close();
  });

  it('never takes a page for another one that had the slot before', async () => {
    const pool = createPagePool(PAGE_BYTES);
    const map = NativeCacheMap.create(pool, 1);
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    const entry = map.openEntry(inodeNumber(9), { ...ZERO_STATE, sizeBytes: 2 * PAGE_BYTES })!;
    map.setStatusMode(entry, TokenMode.shared);
    map.setCoverage(entry, WHOLE_EXCLUSIVE);
    const threads = new Threads(map, entry, 0, 64);
    await threads.start('watcher', 'watcher', 'watcher', 'watcher');
    const slot = slotId(0);
    // Until every watcher has had its chance, however busy the machine is.
    for (let turn = 0; turn < 200_000 || map.stats().readHits === 0; turn++) {
      if (turn % 1000 === 0) await nextTurn();
      pool.bytes.fill(turn % 2 === 0 ? 1 : 2, 0, 64);
      map.install(slot, entry, turn % 2, ALL_VALID, false);
      while (!map.close(slot)) await nextTurn();
      map.remove(slot);
    }
    const results = await threads.stop();
    expect(results.map((result) => result.torn)).toEqual([0, 0, 0, 0]);
    expect(map.stats().readHits).toBeGreaterThan(0);
    map.dispose();
    pool.close();
  });

  it('places concurrent appends one behind the other, whole', async () => {
    const pages = 400;
    const recordBytes = 100;
    const pool = createPagePool(pages * PAGE_BYTES);
    const map = NativeCacheMap.create(pool, 1);
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    map.addDirtyCredits(pages);
    const entry = map.openEntry(inodeNumber(9), ZERO_STATE)!;
    map.setStatusMode(entry, TokenMode.exclusive);
    map.setCoverage(entry, WHOLE_EXCLUSIVE);
    for (let page = 0; page < pages; page++) map.install(slotId(page), entry, page, ALL_VALID, true);
    const threads = new Threads(map, entry, 0, recordBytes);
    await threads.start('appender', 'appender', 'appender', 'follower');
    await threads.finished('appender');
    const results = await threads.stop();

    const appenders = results.filter((result) => result.role === 'appender');
    const records = appenders.reduce((total, result) => total + result.records, 0);
    expect(records).toBe(Math.floor((pages * PAGE_BYTES) / recordBytes));
    expect(map.entryState(entry)).toMatchObject({ sizeBytes: records * recordBytes, changes: records });
    expect(results.map((result) => result.torn)).toEqual([0, 0, 0, 0]);
    const words = new Uint32Array(pool.buffer, 0, (records * recordBytes) / 4);
    const next = new Map(appenders.map((result) => [result.id, 1]));
    for (let record = 0; record < records; record++) {
      const [id, ...numbers] = words.subarray((record * recordBytes) / 4, ((record + 1) * recordBytes) / 4);
      const expected = next.get(id!)!;
      if (numbers.some((number) => number !== expected)) throw new Error(`record ${record} of thread ${id} is torn`);
      next.set(id!, expected + 1);
    }
    expect(appenders.map((result) => next.get(result.id)! - 1)).toEqual(appenders.map((result) => result.records));
    expect(map.takeDirtied(pages)).toHaveLength(Math.ceil((records * recordBytes) / PAGE_BYTES));
    map.dispose();
    pool.close();
  });

  it('finds every page whose write is over, whatever another thread is about (I8)', async () => {
    const [threadCount, pagesEach] = [5, 64];
    const pages = threadCount * pagesEach;
    const pool = createPagePool(pages * PAGE_BYTES);
    const map = NativeCacheMap.create(pool, 1);
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    map.addDirtyCredits(pages);
    const entry = map.openEntry(inodeNumber(9), { ...ZERO_STATE, sizeBytes: pool.lengthBytes })!;
    map.setStatusMode(entry, TokenMode.exclusive);
    map.setCoverage(entry, WHOLE_EXCLUSIVE);
    for (let page = 0; page < pages; page++) map.install(slotId(page), entry, page, ALL_VALID, true);
    const threads = new Threads(map, entry, 0, 8);
    await threads.start(...Array.from({ length: threadCount }, () => 'dirtier'));
    const found = new Set<SlotId>();
    const missed: number[] = [];
    for (let rounds = 0; rounds < 10_000; ) {
      const waiting = threads.waiting();
      for (const slot of map.takeDirtied(pages)) found.add(slot);
      for (const thread of waiting) {
        for (let page = thread * pagesEach; page < (thread + 1) * pagesEach; page++) {
          const slot = slotId(page);
          if (!found.delete(slot)) missed.push(page);
          while (!map.close(slot)) await nextTurn();
          map.setContent(slot, ALL_VALID);
          map.reopen(slot);
          map.addDirtyCredits(1);
        }
        threads.seen(thread);
        rounds++;
      }
      if (waiting.length === 0) await nextTurn();
    }
    await threads.stop();
    expect(missed).toEqual([]);
    map.dispose();
    pool.close();
  });
});
