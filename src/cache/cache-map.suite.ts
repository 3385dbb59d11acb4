import { beforeEach, describe, expect, it } from 'vitest';
import { InvariantError } from '../common/assert.js';
import { inodeNumber } from '../common/ids.js';
import { PAGE_BYTES, RANGE_END, SECTOR_BYTES } from '../common/units.js';
import type { PagePool } from '../native/page-pool.js';
import { TokenMode } from '../token-manager/token.js';
import {
  type CacheMap,
  COVERAGE_RANGES_MAX,
  type EntryId,
  HIT_PAGES_MAX,
  Miss,
  Referenced,
  type SlotContent,
  type SlotId,
} from './cache-map.js';

/**
 * What every cache map does, as sentences. Run on the native map and on its twin: `make` gives a map of `slotCount` slots over a
 * pool of that many pages, with a lease that holds until the test changes it.
 */
export interface MapUnderTest {
  readonly map: CacheMap;
  readonly pool: PagePool;
  /** What the map's clock says, in milliseconds. */
  nowMs(): number;
}

export const ALL_VALID: SlotContent = { validMask: 15, dirtyMask: 0, partialStart: 0, partialEnd: 0 };
export const NOTHING_VALID: SlotContent = { validMask: 0, dirtyMask: 0, partialStart: 0, partialEnd: 0 };
export const ZERO_STATE = { sizeBytes: 0, mtimeNs: 0n, ctimeNs: 0n };
export const slotId = (index: number): SlotId => index as SlotId;
export const WHOLE_EXCLUSIVE = [{ start: 0, end: RANGE_END, mode: TokenMode.exclusive }] as const;

const INO = inodeNumber(17);
const SLOTS = 96;
const pattern = (length: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 17 + (i >> 8)) & 0xff);

export function cacheMapSuite(name: string, make: (slotCount: number, entryCountMax: number) => MapUnderTest): void {
  describe(`${name}: cache map`, () => {
    let map: CacheMap;
    let pool: PagePool;
    let nowMs: () => number;

    beforeEach(() => {
      ({ map, pool, nowMs } = make(SLOTS, 4));
      map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    });

    const open = (sizeBytes = 0): EntryId => map.openEntry(INO, { ...ZERO_STATE, sizeBytes })!;
    /** An entry with everything that hits need, and slots 0..pages-1 as its pages 0..pages-1. */
    const ready = (sizeBytes: number, pages: number, content: SlotContent = ALL_VALID): EntryId => {
      const entry = open(sizeBytes);
      map.setStatusMode(entry, TokenMode.exclusive);
      map.setCoverage(entry, WHOLE_EXCLUSIVE);
      for (let i = 0; i < pages; i++) map.install(slotId(i), entry, i, content, true);
      map.addDirtyCredits(pages);
      return entry;
    };
    const readOf = (entry: EntryId, offset: number, length: number): Uint8Array | Miss => {
      const target = new Uint8Array(length);
      const result = map.read(entry, offset, target);
      return result < 0 ? (result as Miss) : target.subarray(0, result);
    };

    describe('a read hit', () => {
      it('copies bytes across pages, in order', () => {
        const entry = ready(3 * PAGE_BYTES, 0);
        // Pages in slots that are not neighbours.
        for (const [page, slot] of [5, 1, 3].entries()) {
          map.install(slotId(slot), entry, page, ALL_VALID, false);
          pool.bytes.set(pattern(PAGE_BYTES, page), slot * PAGE_BYTES);
        }
        const got = readOf(entry, 100, 2 * PAGE_BYTES);
        const all = new Uint8Array(3 * PAGE_BYTES);
        for (let page = 0; page < 3; page++) all.set(pattern(PAGE_BYTES, page), page * PAGE_BYTES);
        expect(got).toEqual(all.subarray(100, 100 + 2 * PAGE_BYTES));
      });

      it('ends at the end of file, and gives 0 behind it', () => {
        const entry = ready(5000, 1);
        expect(readOf(entry, 4000, 4096)).toHaveLength(1000);
        expect(map.read(entry, 5000, new Uint8Array(10))).toBe(0);
        expect(map.read(entry, 2 ** 53 - 1, new Uint8Array(10))).toBe(0);
        expect(map.read(entry, 0, new Uint8Array(0))).toBe(0);
      });

      it('needs a lease that has not run out (I2)', () => {
        const entry = ready(100, 1);
        map.setLeaseDeadline(nowMs() - 1);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.lease);
        expect(map.write(entry, 0, new Uint8Array(10), 1n)).toBe(Miss.lease);
        map.setLeaseDeadline(nowMs() + 1e9);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(10);
      });

      it('needs the status token at least shared', () => {
        const entry = ready(100, 1);
        map.setStatusMode(entry, TokenMode.none);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.status);
        map.setStatusMode(entry, TokenMode.shared);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(10);
      });

      it('needs data tokens over every byte, of one range or of several that join (I2)', () => {
        const entry = ready(PAGE_BYTES, 1);
        const shared = TokenMode.shared;
        map.setCoverage(entry, []);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.coverage);
        map.setCoverage(entry, [
          { start: 8192, end: 12288, mode: TokenMode.exclusive },
          { start: 0, end: 8192, mode: shared },
        ]);
        expect(map.read(entry, 0, new Uint8Array(12288))).toBe(12288);
        expect(map.read(entry, 0, new Uint8Array(12289))).toBe(Miss.coverage);
        map.setCoverage(entry, [
          { start: 0, end: 4096, mode: shared },
          { start: 8192, end: 16384, mode: shared },
        ]);
        expect(map.read(entry, 4000, new Uint8Array(5000))).toBe(Miss.coverage);
      });

      it('uses the first eight published ranges, and no more', () => {
        const entry = ready(PAGE_BYTES * 20, 12);
        map.setCoverage(
          entry,
          Array.from({ length: COVERAGE_RANGES_MAX + 1 }, (_, i) => ({
            start: i * PAGE_BYTES,
            end: (i + 1) * PAGE_BYTES,
            mode: TokenMode.shared,
          })),
        );
        expect(map.read(entry, 7 * PAGE_BYTES, new Uint8Array(10))).toBe(10);
        expect(map.read(entry, 8 * PAGE_BYTES, new Uint8Array(10))).toBe(Miss.coverage);
      });

      it('misses a page that is not there, or whose sectors are not valid', () => {
        const entry = ready(4 * PAGE_BYTES, 0);
        map.install(slotId(0), entry, 1, { ...ALL_VALID, validMask: 0b0101 }, false);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.absent);
        expect(map.read(entry, PAGE_BYTES, new Uint8Array(SECTOR_BYTES))).toBe(SECTOR_BYTES);
        expect(map.read(entry, PAGE_BYTES, new Uint8Array(SECTOR_BYTES + 1))).toBe(Miss.absent);
        expect(map.read(entry, PAGE_BYTES + 2 * SECTOR_BYTES, new Uint8Array(SECTOR_BYTES))).toBe(SECTOR_BYTES);
        // The part of the page behind the end of file needs not be valid.
        map.setEntryState(entry, { ...ZERO_STATE, sizeBytes: PAGE_BYTES + 100 });
        expect(map.read(entry, PAGE_BYTES, new Uint8Array(PAGE_BYTES))).toBe(100);
      });

      it('reads the bytes of a partial range, and none beside it', () => {
        const entry = ready(PAGE_BYTES, 0);
        map.install(slotId(0), entry, 0, { ...NOTHING_VALID, partialStart: 100, partialEnd: 200 }, false);
        expect(map.read(entry, 100, new Uint8Array(100))).toBe(100);
        expect(map.read(entry, 99, new Uint8Array(10))).toBe(Miss.absent);
        expect(map.read(entry, 195, new Uint8Array(10))).toBe(Miss.absent);
      });

      it('pins a bounded number of pages', () => {
        const entry = ready(RANGE_END, HIT_PAGES_MAX + 1);
        expect(map.read(entry, 0, new Uint8Array(HIT_PAGES_MAX * PAGE_BYTES))).toBe(HIT_PAGES_MAX * PAGE_BYTES);
        expect(map.read(entry, 1, new Uint8Array(HIT_PAGES_MAX * PAGE_BYTES))).toBe(Miss.limit);
        const source = new Uint8Array(HIT_PAGES_MAX * PAGE_BYTES);
        expect(map.write(entry, 1, source, 1n)).toBe(Miss.limit);
      });

      it('leaves a mark for the eviction policy, once per look', () => {
        const entry = ready(PAGE_BYTES, 2);
        map.read(entry, 0, new Uint8Array(10));
        map.read(entry, 0, new Uint8Array(10));
        expect(map.takeReferences(slotId(0))).toBe(Referenced.byRead);
        expect(map.takeReferences(slotId(0))).toBe(0);
        map.write(entry, 0, new Uint8Array(10), 1n);
        map.read(entry, 0, new Uint8Array(10));
        expect(map.takeReferences(slotId(0))).toBe(Referenced.byRead | Referenced.byWrite);
        expect(map.takeReferences(slotId(1))).toBe(0);
      });
    });

    describe('a write hit', () => {
      it('puts bytes into the pool, dirties sectors, sets times, and is seen by reads', () => {
        const entry = ready(3 * PAGE_BYTES, 3);
        const bytes = pattern(PAGE_BYTES + 200);
        expect(map.write(entry, PAGE_BYTES - 100, bytes, 77n)).toBe(bytes.length);
        expect(readOf(entry, PAGE_BYTES - 100, bytes.length)).toEqual(bytes);
        expect(pool.bytes.subarray(PAGE_BYTES - 100, 2 * PAGE_BYTES + 100)).toEqual(bytes);
        expect([0, 1, 2].map((i) => map.content(slotId(i)).dirtyMask)).toEqual([0b1000, 0b1111, 0b0001]);
        expect(map.entryState(entry)).toEqual({ sizeBytes: 3 * PAGE_BYTES, mtimeNs: 77n, ctimeNs: 77n, changes: 1 });
      });

      it('grows the file, never shrinks it', () => {
        const entry = ready(10, 2);
        map.write(entry, PAGE_BYTES, pattern(50), 1n);
        expect(map.entryState(entry).sizeBytes).toBe(PAGE_BYTES + 50);
        map.write(entry, 0, pattern(50), 2n);
        expect(map.entryState(entry)).toMatchObject({ sizeBytes: PAGE_BYTES + 50, changes: 2 });
      });

      it('appends at the end of file', () => {
        const entry = ready(PAGE_BYTES - 3, 2);
        expect(map.write(entry, -1, pattern(10, 1), 1n)).toBe(10);
        expect(map.write(entry, -1, pattern(10, 2), 1n)).toBe(10);
        expect(map.entryState(entry).sizeBytes).toBe(PAGE_BYTES + 17);
        expect(readOf(entry, PAGE_BYTES - 3, 20)).toEqual(Uint8Array.from([...pattern(10, 1), ...pattern(10, 2)]));
      });

      it('changes nothing when it writes nothing', () => {
        const entry = ready(100, 1);
        expect(map.write(entry, 0, new Uint8Array(0), 9n)).toBe(0);
        expect(map.entryState(entry)).toMatchObject({ mtimeNs: 0n, changes: 0 });
      });

      it('needs the status token exclusive or shared for writing', () => {
        const entry = ready(100, 1);
        for (const mode of [TokenMode.none, TokenMode.shared]) {
          map.setStatusMode(entry, mode);
          expect(map.write(entry, 0, new Uint8Array(10), 1n)).toBe(Miss.status);
        }
      });

      it('beside other writers: knows its own size as a lower bound only', () => {
        const entry = ready(100, 1);
        map.setStatusMode(entry, TokenMode.concurrentWrite);
        expect(map.read(entry, 0, new Uint8Array(100))).toBe(100);
        expect(map.read(entry, 0, new Uint8Array(101))).toBe(Miss.status);
        expect(map.read(entry, 100, new Uint8Array(1))).toBe(Miss.status);
        expect(map.write(entry, 90, new Uint8Array(20), 5n)).toBe(20);
        expect(map.entryState(entry)).toMatchObject({ sizeBytes: 110, mtimeNs: 5n });
        expect(map.read(entry, 0, new Uint8Array(110))).toBe(110);
        // Where the end is, others may know better.
        expect(map.write(entry, -1, new Uint8Array(10), 6n)).toBe(Miss.status);
      });

      it('needs data tokens in exclusive mode over the sectors that it touches (I2, T6)', () => {
        const entry = ready(PAGE_BYTES, 1);
        map.setCoverage(entry, [{ start: 0, end: RANGE_END, mode: TokenMode.shared }]);
        expect(map.write(entry, 0, new Uint8Array(10), 1n)).toBe(Miss.coverage);
        map.setCoverage(entry, [{ start: 100, end: 8192, mode: TokenMode.exclusive }]);
        expect(map.write(entry, 200, new Uint8Array(10), 1n)).toBe(Miss.coverage);
        expect(map.write(entry, 5000, new Uint8Array(10), 1n)).toBe(10);
        expect(map.write(entry, RANGE_END - 5, new Uint8Array(10), 1n)).toBe(Miss.coverage);
      });

      it('needs pages prepared for writing', () => {
        const entry = ready(2 * PAGE_BYTES, 2);
        map.setWritable(slotId(1), false);
        expect(map.write(entry, PAGE_BYTES - 5, new Uint8Array(10), 1n)).toBe(Miss.absent);
        expect(map.write(entry, 5 * PAGE_BYTES, new Uint8Array(10), 1n)).toBe(Miss.absent);
        expect(map.content(slotId(0)).dirtyMask).toBe(0);
        map.setWritable(slotId(1), true);
        expect(map.write(entry, PAGE_BYTES - 5, new Uint8Array(10), 1n)).toBe(10);
      });

      it('spends one credit for each page that it turns dirty, all or none', () => {
        const entry = ready(3 * PAGE_BYTES, 3);
        map.addDirtyCredits(-2);
        expect(map.write(entry, PAGE_BYTES - 5, new Uint8Array(10), 1n)).toBe(Miss.credits);
        expect(map.write(entry, 0, new Uint8Array(10), 1n)).toBe(10);
        expect(map.addDirtyCredits(0)).toBe(0);
        // Dirty already: free of charge.
        expect(map.write(entry, 0, new Uint8Array(10), 1n)).toBe(10);
        expect(map.write(entry, PAGE_BYTES, new Uint8Array(10), 1n)).toBe(Miss.credits);
        expect(map.addDirtyCredits(-5)).toBe(0);
        expect(map.addDirtyCredits(2)).toBe(2);
        expect(map.write(entry, PAGE_BYTES, new Uint8Array(10), 1n)).toBe(10);
      });

      it('makes whole sectors valid, however little was there before', () => {
        const entry = ready(PAGE_BYTES, 1, NOTHING_VALID);
        expect(map.write(entry, SECTOR_BYTES, pattern(2 * SECTOR_BYTES), 1n)).toBe(2 * SECTOR_BYTES);
        expect(map.content(slotId(0))).toEqual({ validMask: 6, dirtyMask: 6, partialStart: 0, partialEnd: 0 });
      });

      it('keeps bytes of a sector that is not valid as a partial range, which grows until the sector is whole', () => {
        const entry = ready(PAGE_BYTES, 1, NOTHING_VALID);
        const write = (start: number, end: number) => map.write(entry, start, new Uint8Array(end - start), 1n);
        expect(write(100, 200)).toBe(100);
        expect(map.content(slotId(0))).toEqual({ validMask: 0, dirtyMask: 0, partialStart: 100, partialEnd: 200 });
        expect(write(200, 5000)).toBe(4800);
        expect(map.content(slotId(0))).toEqual({ validMask: 0, dirtyMask: 0, partialStart: 100, partialEnd: 5000 });
        expect(write(50, 150)).toBe(100);
        expect(map.content(slotId(0)).partialStart).toBe(50);
        expect(write(0, 50)).toBe(50);
        expect(map.content(slotId(0))).toEqual({ validMask: 1, dirtyMask: 1, partialStart: 4096, partialEnd: 5000 });
        expect(write(5000, 8192)).toBe(3192);
        expect(map.content(slotId(0))).toEqual({ validMask: 3, dirtyMask: 3, partialStart: 0, partialEnd: 0 });
      });

      it('misses when it would need a second partial range', () => {
        const entry = ready(PAGE_BYTES, 1, NOTHING_VALID);
        expect(map.write(entry, 100, new Uint8Array(100), 1n)).toBe(100);
        expect(map.write(entry, 300, new Uint8Array(100), 1n)).toBe(Miss.absent);
        expect(map.write(entry, 9000, new Uint8Array(100), 1n)).toBe(Miss.absent);
        // What fits into masks is no second one.
        expect(map.write(entry, 8192, new Uint8Array(4096), 1n)).toBe(4096);
        expect(map.content(slotId(0))).toEqual({ validMask: 4, dirtyMask: 4, partialStart: 100, partialEnd: 200 });
      });

      it('tells the engine once about each page that it turned dirty', () => {
        const entry = ready(3 * PAGE_BYTES, 3);
        map.write(entry, 2 * PAGE_BYTES, new Uint8Array(10), 1n);
        map.write(entry, 0, new Uint8Array(10), 1n);
        map.write(entry, 0, new Uint8Array(10), 1n);
        expect(map.takeDirtied(1)).toEqual([2]);
        expect(map.takeDirtied(10)).toEqual([0]);
        expect(map.takeDirtied(10)).toEqual([]);
        // Clean again, then dirty again.
        map.close(slotId(0));
        map.setContent(slotId(0), ALL_VALID);
        map.reopen(slotId(0));
        map.write(entry, 0, new Uint8Array(10), 1n);
        expect(map.takeDirtied(10)).toEqual([0]);
      });

      it('is forgotten by the list of dirtied pages when its page is removed', () => {
        const entry = ready(3 * PAGE_BYTES, 3);
        map.write(entry, 0, new Uint8Array(2 * PAGE_BYTES), 1n);
        map.close(slotId(0));
        map.remove(slotId(0));
        expect(map.takeDirtied(10)).toEqual([1]);
        map.install(slotId(0), entry, 9, ALL_VALID, true);
        expect(map.takeDirtied(10)).toEqual([]);
      });
    });

    describe('a slot', () => {
      it('gives no pins while it is closed, and says when the last one is gone', () => {
        const entry = ready(PAGE_BYTES, 1);
        expect(map.tryPinShared(slotId(0))).toBe(true);
        expect(map.tryPinShared(slotId(0))).toBe(true);
        expect(map.close(slotId(0))).toBe(false);
        expect(map.tryPinShared(slotId(0))).toBe(false);
        expect(map.tryPinExclusive(slotId(0))).toBe(false);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.busy);
        map.unpinShared(slotId(0));
        expect(map.close(slotId(0))).toBe(false);
        map.unpinShared(slotId(0));
        expect(map.close(slotId(0))).toBe(true);
        map.reopen(slotId(0));
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(10);
      });

      it('is read beside shared pins, written beside none, and neither beside an exclusive one', () => {
        const entry = ready(PAGE_BYTES, 1);
        map.tryPinShared(slotId(0));
        expect(map.tryPinExclusive(slotId(0))).toBe(false);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(10);
        expect(map.write(entry, 0, new Uint8Array(10), 1n)).toBe(Miss.busy);
        map.unpinShared(slotId(0));
        expect(map.tryPinExclusive(slotId(0))).toBe(true);
        expect(map.tryPinShared(slotId(0))).toBe(false);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.busy);
        expect(map.close(slotId(0))).toBe(false);
        map.unpinExclusive(slotId(0));
        expect(map.close(slotId(0))).toBe(true);
      });

      it('leaves no pin behind after a hit that missed at a later page', () => {
        const entry = ready(3 * PAGE_BYTES, 3);
        map.close(slotId(2));
        expect(map.read(entry, 0, new Uint8Array(3 * PAGE_BYTES))).toBe(Miss.busy);
        expect(map.write(entry, 0, new Uint8Array(3 * PAGE_BYTES), 1n)).toBe(Miss.busy);
        expect(map.close(slotId(0))).toBe(true);
        expect(map.close(slotId(1))).toBe(true);
      });

      it('is free after it was removed, and can be another page', () => {
        const entry = ready(3 * PAGE_BYTES, 1);
        map.close(slotId(0));
        map.remove(slotId(0));
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.absent);
        expect(map.tryPinShared(slotId(0))).toBe(false);
        map.install(slotId(0), entry, 2, ALL_VALID, false);
        expect(map.read(entry, 2 * PAGE_BYTES, new Uint8Array(10))).toBe(10);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(Miss.absent);
        map.tryPinExclusive(slotId(0));
        map.remove(slotId(0));
        map.install(slotId(0), entry, 0, ALL_VALID, false);
        expect(map.read(entry, 0, new Uint8Array(10))).toBe(10);
      });

      it('is found after any number of others came and went', () => {
        const entry = ready(RANGE_END, 0);
        const pageOf = new Map<number, number>();
        let random = 7;
        for (let step = 0; step < 4000; step++) {
          random = (Math.imul(random, 1103515245) + 12345) >>> 0;
          const slot = (random >>> 8) % SLOTS;
          if (pageOf.has(slot)) {
            map.close(slotId(slot));
            map.remove(slotId(slot));
            pageOf.delete(slot);
          } else {
            map.install(slotId(slot), entry, step * 1000, ALL_VALID, false);
            pageOf.set(slot, step * 1000);
          }
        }
        for (const page of pageOf.values()) expect(map.read(entry, page * PAGE_BYTES, new Uint8Array(1))).toBe(1);
        expect(pageOf.size).toBeGreaterThan(SLOTS / 4);
      });

      it('holds its engine to the rules', () => {
        const entry = ready(PAGE_BYTES, 1);
        expect(() => map.install(slotId(0), entry, 5, ALL_VALID, true)).toThrow(InvariantError);
        expect(() => map.install(slotId(1), entry, 0, ALL_VALID, true)).toThrow(InvariantError);
        expect(() => map.remove(slotId(0))).toThrow(InvariantError);
        expect(() => map.setContent(slotId(0), ALL_VALID)).toThrow(InvariantError);
        expect(() => map.unpinShared(slotId(0))).toThrow(InvariantError);
        expect(() => map.unpinExclusive(slotId(0))).toThrow(InvariantError);
        for (const onFree of [
          () => map.remove(slotId(1)),
          () => map.content(slotId(1)),
          () => map.close(slotId(1)),
          () => map.reopen(slotId(1)),
          () => map.setWritable(slotId(1), true),
        ]) {
          expect(onFree).toThrow(InvariantError);
        }
      });
    });

    describe('an entry', () => {
      it('is stale once it was closed, also when its place is used again', () => {
        const first = ready(PAGE_BYTES, 1);
        expect(() => map.closeEntry(first)).toThrow(InvariantError);
        map.close(slotId(0));
        map.remove(slotId(0));
        map.closeEntry(first);
        expect(map.read(first, 0, new Uint8Array(10))).toBe(Miss.stale);
        const second = ready(PAGE_BYTES, 1);
        expect(second).not.toBe(first);
        expect(map.read(first, 0, new Uint8Array(10))).toBe(Miss.stale);
        expect(map.write(first, 0, new Uint8Array(10), 1n)).toBe(Miss.stale);
        expect(map.read(second, 0, new Uint8Array(10))).toBe(10);
        expect(() => map.entryState(first)).toThrow(InvariantError);
      });

      it('starts without tokens and without changes', () => {
        const first = ready(PAGE_BYTES, 0);
        map.closeEntry(first);
        const second = open(5);
        expect(map.entryState(second)).toEqual({ sizeBytes: 5, mtimeNs: 0n, ctimeNs: 0n, changes: 0 });
        expect(map.read(second, 0, new Uint8Array(1))).toBe(Miss.status);
        map.setStatusMode(second, TokenMode.exclusive);
        map.install(slotId(0), second, 0, ALL_VALID, true);
        expect(map.read(second, 0, new Uint8Array(1))).toBe(Miss.coverage);
      });

      it('is refused when the table is full', () => {
        const entries = [open(), open(), open(), open()];
        expect(new Set(entries).size).toBe(4);
        expect(map.openEntry(INO, ZERO_STATE)).toBeNull();
        map.closeEntry(entries[2]!);
        expect(map.openEntry(INO, ZERO_STATE)).not.toBeNull();
      });

      it('keeps the pages of two files apart', () => {
        const a = ready(PAGE_BYTES, 1);
        const b = open(PAGE_BYTES);
        map.setStatusMode(b, TokenMode.shared);
        map.setCoverage(b, [{ start: 0, end: RANGE_END, mode: TokenMode.shared }]);
        map.install(slotId(1), b, 0, ALL_VALID, false);
        pool.bytes.set(pattern(8, 5), PAGE_BYTES);
        expect(readOf(b, 0, 8)).toEqual(pattern(8, 5));
        expect(readOf(a, 0, 8)).toEqual(new Uint8Array(8));
      });

      it('takes size and times from the engine, to the last bit', () => {
        const entry = open();
        const state = { sizeBytes: RANGE_END, mtimeNs: -(2n ** 63n), ctimeNs: 2n ** 63n - 1n };
        map.setEntryState(entry, state);
        expect(map.entryState(entry)).toEqual({ ...state, changes: 0 });
      });

      it('only grows by a write that the engine notes', () => {
        const entry = open(1000);
        map.noteWrite(entry, 500, 7n);
        expect(map.entryState(entry)).toEqual({ sizeBytes: 1000, mtimeNs: 7n, ctimeNs: 7n, changes: 1 });
        map.noteWrite(entry, 1500, 8n);
        expect(map.entryState(entry)).toEqual({ sizeBytes: 1500, mtimeNs: 8n, ctimeNs: 8n, changes: 2 });
      });
    });

    it('counts hits, bytes, and misses by reason', () => {
      const entry = ready(PAGE_BYTES, 1);
      map.read(entry, 0, new Uint8Array(100));
      map.write(entry, 0, new Uint8Array(50), 1n);
      map.read((entry + 1) as EntryId, 0, new Uint8Array(1));
      map.close(slotId(0));
      map.read(entry, 0, new Uint8Array(1));
      const none = { lease: 0, stale: 0, status: 0, coverage: 0, absent: 0, busy: 0, credits: 0, limit: 0 };
      expect(map.stats()).toEqual({
        readHits: 1,
        writeHits: 1,
        readBytes: 100,
        writeBytes: 50,
        misses: { ...none, stale: 1, busy: 1 },
      });
    });

    it('refuses wrong arguments with words, and goes on', () => {
      const entry = ready(PAGE_BYTES, 1);
      const wrong = (value: unknown) => value as never;
      const bytes = new Uint8Array(8);
      const typeErrors = [
        () => map.read(wrong(null), 0, bytes),
        () => map.read(wrong('1'), 0, bytes),
        () => map.read(entry, wrong('0'), bytes),
        () => map.read(entry, wrong(undefined), bytes),
        () => map.read(entry, 0, wrong([1, 2])),
        () => map.read(entry, 0, wrong(new Uint32Array(4))),
        () => map.read(entry, 0, wrong(new DataView(new ArrayBuffer(8)))),
        () => map.read(entry, 0, wrong(new ArrayBuffer(8))),
        () => map.write(entry, 0, bytes, wrong(5)),
        () => map.write(entry, 0, wrong(undefined), 5n),
        () => map.openEntry(INO, { ...ZERO_STATE, mtimeNs: wrong(0) }),
        () => map.setLeaseDeadline(wrong('soon')),
      ];
      const rangeErrors = [
        () => map.read(entry, -1, bytes),
        () => map.read(entry, 0.5, bytes),
        () => map.read(entry, Number.NaN, bytes),
        () => map.read(entry, Number.POSITIVE_INFINITY, bytes),
        () => map.read(entry, 2 ** 53, bytes),
        () => map.write(entry, -2, bytes, 1n),
        () => map.write(entry, 0, bytes, 2n ** 63n),
        () => map.content(slotId(SLOTS)),
        () => map.close(slotId(-1)),
        () => map.tryPinShared(slotId(1.5)),
        () => map.install(slotId(1), entry, -1, ALL_VALID, true),
        () => map.install(slotId(1), entry, 1, { ...ALL_VALID, validMask: 16 }, true),
        () => map.install(slotId(1), entry, 1, { ...NOTHING_VALID, dirtyMask: 1 }, true),
        () => map.install(slotId(1), entry, 1, { ...NOTHING_VALID, partialStart: 9, partialEnd: 9 }, true),
        () => map.install(slotId(1), entry, 1, { ...NOTHING_VALID, partialEnd: PAGE_BYTES + 1 }, true),
        () => map.openEntry(INO, { ...ZERO_STATE, sizeBytes: -1 }),
        () => map.setLeaseDeadline(Number.NaN),
        () => map.addDirtyCredits(Number.NaN),
        () => map.setStatusMode(entry, wrong(4)),
        () => map.setCoverage(entry, [{ start: 5, end: 4, mode: TokenMode.shared }]),
      ];
      for (const call of typeErrors) expect(call).toThrow(TypeError);
      for (const call of rangeErrors) expect(call).toThrow(RangeError);
      for (const stale of [0, -5, 1.5, entry + 0.5, 2 ** 60, Number.NaN, Number.POSITIVE_INFINITY]) {
        expect(map.read(stale as EntryId, 0, bytes)).toBe(Miss.stale);
      }
      expect(map.read(entry, 0, bytes)).toBe(8);
    });

    it('takes any Uint8Array: a Buffer, a view, one over the pool itself', () => {
      const entry = ready(PAGE_BYTES, 1);
      const source = Buffer.from('holdfast');
      expect(map.write(entry, 0, source, 1n)).toBe(8);
      expect(map.write(entry, 4, pool.bytes.subarray(0, 8), 1n)).toBe(8);
      const room = new Uint8Array(20);
      expect(map.read(entry, 0, room.subarray(3, 15))).toBe(12);
      expect(Buffer.from(room.subarray(3, 15)).toString()).toBe('holdholdfast');
      expect(map.read(entry, 0, pool.bytes.subarray(100, 112))).toBe(12);
      expect(Buffer.from(pool.bytes.subarray(100, 112)).toString()).toBe('holdholdfast');
    });
  });
}
