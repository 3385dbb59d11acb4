import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { inodeNumber } from '../common/ids.js';
import { PAGE_BYTES, RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { createPagePool } from '../native/core.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { TokenMode } from '../token-manager/token.js';
import { type CacheMap, type EntryId, Miss, type SlotContent, type SlotId } from './cache-map.js';
import { ZERO_STATE } from './cache-map.suite.js';
import { NativeCacheMap } from './cache-map-native.js';
import { TwinCacheMap } from './cache-map-twin.js';

/**
 * The native map and its twin, side by side: any sequence of calls, allowed or not, has the same results, the same kinds of
 * errors, and leaves the same bytes, contents, states and counts.
 */
const SLOTS = 6;
const PAGES = 4;
const ENTRIES = 2;

/** Calls see the maps only through this, so that both get the same. Returns what is compared. */
type Step = (map: CacheMap, entries: readonly EntryId[]) => unknown;

const slot = fc.integer({ min: 0, max: SLOTS - 1 }) as fc.Arbitrary<number> as fc.Arbitrary<SlotId>;
const which = fc.nat({ max: ENTRIES });
const page = fc.nat({ max: PAGES - 1 });
const mode = fc.constantFrom(...Object.values(TokenMode));
const writable = fc.boolean();
/** Offsets and lengths near the borders of sectors and pages, where the arithmetic is. */
const near = (max: number): fc.Arbitrary<number> =>
  fc
    .tuple(
      fc.nat({ max: Math.floor(max / SECTOR_BYTES) }),
      fc.integer({ min: -2, max: 2 }),
      fc.constantFrom(0, 0, 1000),
    )
    .map(([sector, delta, more]) => Math.max(0, Math.min(max, sector * SECTOR_BYTES + delta + more)));
const content: fc.Arbitrary<SlotContent> = fc
  .tuple(fc.nat({ max: 15 }), fc.nat({ max: 15 }), near(PAGE_BYTES), near(PAGE_BYTES), fc.boolean())
  .map(([validMask, dirty, a, b, partial]) => ({
    validMask,
    dirtyMask: dirty & validMask,
    partialStart: partial && a !== b ? Math.min(a, b) : 0,
    partialEnd: partial && a !== b ? Math.max(a, b) : 0,
  }));

const hits: fc.Arbitrary<Step>[] = [
  fc.tuple(which, near(PAGES * PAGE_BYTES), near(2 * PAGE_BYTES)).map(([e, offset, length]) => (map, entries) => {
    const target = new Uint8Array(length);
    const result = map.read(entries[e]!, offset, target);
    return [result, result > 0 ? Buffer.from(target).toString('latin1') : ''];
  }),
  fc.tuple(which, fc.oneof(near(PAGES * PAGE_BYTES), fc.constant(-1)), near(2 * PAGE_BYTES), fc.nat({ max: 255 })).map(
    ([e, offset, length, fill]) =>
      (map, entries) =>
        map.write(entries[e]!, offset, new Uint8Array(length).fill(fill), BigInt(fill)),
  ),
];

const engineCalls: fc.Arbitrary<Step>[] = [
  fc.tuple(slot, which, page, content, writable).map(
    ([s, e, p, c, w]) =>
      (map, entries) =>
        map.install(s, entries[e]!, p, c, w),
  ),
  slot.map((s) => (map) => map.close(s)),
  slot.map((s) => (map) => map.reopen(s)),
  slot.map((s) => (map) => map.remove(s)),
  slot.map((s) => (map) => map.tryPinShared(s)),
  slot.map((s) => (map) => map.tryPinExclusive(s)),
  slot.map((s) => (map) => map.unpinShared(s)),
  slot.map((s) => (map) => map.unpinExclusive(s)),
  slot.map((s) => (map) => map.takeReferences(s)),
  fc.tuple(slot, content).map(
    ([s, c]) =>
      (map) =>
        map.setContent(s, c),
  ),
  fc.tuple(slot, writable).map(
    ([s, w]) =>
      (map) =>
        map.setWritable(s, w),
  ),
  fc.tuple(which, mode).map(
    ([e, m]) =>
      (map, entries) =>
        map.setStatusMode(entries[e]!, m),
  ),
  fc
    .tuple(which, fc.array(fc.tuple(near(PAGES * PAGE_BYTES), near(PAGES * PAGE_BYTES), mode), { maxLength: 10 }))
    .map(([e, ranges]) => (map, entries) => {
      const coverage = ranges.map(([a, b, m]) => ({ start: Math.min(a, b), end: Math.max(a, b), mode: m }));
      map.setCoverage(entries[e]!, coverage);
    }),
  fc.tuple(which, near(PAGES * PAGE_BYTES)).map(
    ([e, sizeBytes]) =>
      (map, entries) =>
        map.setEntryState(entries[e]!, { ...ZERO_STATE, sizeBytes }),
  ),
  fc.tuple(which, near(PAGES * PAGE_BYTES)).map(
    ([e, end]) =>
      (map, entries) =>
        map.noteWrite(entries[e]!, end, 5n),
  ),
  fc.integer({ min: -4, max: 3 }).map((add) => (map) => map.addDirtyCredits(add)),
  fc.nat({ max: 3 }).map((max) => (map) => map.takeDirtied(max)),
  which.map((e) => (map, entries) => map.closeEntry(entries[e]!)),
  fc.boolean().map((holds) => (map) => map.setLeaseDeadline(holds ? Number.POSITIVE_INFINITY : 0)),
];
/** Opening is apart: its result is what the others use. */
const openEntry = 'open';
/** Lets everything be hit: without it, most random maps only miss. */
const grantAll =
  (credits: number): Step =>
  (map, entries) => {
    map.setLeaseDeadline(Number.POSITIVE_INFINITY);
    map.addDirtyCredits(-100);
    map.addDirtyCredits(credits);
    for (const entry of entries) {
      map.setStatusMode(entry, TokenMode.exclusive);
      map.setCoverage(entry, [{ start: 0, end: RANGE_END, mode: TokenMode.exclusive }]);
    }
  };
const step: fc.Arbitrary<Step | typeof openEntry> = fc.oneof(
  { arbitrary: fc.oneof(...hits), weight: 10 },
  { arbitrary: fc.oneof(...engineCalls), weight: 10 },
  { arbitrary: engineCalls[0]!, weight: 4 },
  { arbitrary: fc.nat({ max: 2 }).map(grantAll), weight: 3 },
  { arbitrary: fc.constant(openEntry), weight: 1 },
);

/** What the pages of the first entry are in the beginning. */
const start = fc.array(content, { minLength: PAGES, maxLength: PAGES });

function outcome(call: () => unknown): unknown {
  try {
    return call() ?? null;
  } catch (error) {
    return error instanceof Error ? `throws ${error.constructor.name}` : error;
  }
}

class Side {
  /** The last one is stale in the beginning. */
  readonly entries: EntryId[] = [0 as EntryId, 0 as EntryId, 0 as EntryId];
  opened = 0;
  constructor(
    readonly map: CacheMap,
    readonly pool: PagePool,
  ) {
    pool.bytes.fill(0);
  }
  run(next: Step | typeof openEntry): unknown {
    if (next !== openEntry) return outcome(() => next(this.map, this.entries));
    const entry = this.map.openEntry(inodeNumber(3), { ...ZERO_STATE, sizeBytes: 3 * PAGE_BYTES });
    if (entry !== null) this.entries[this.opened++ % this.entries.length] = entry;
    return entry;
  }
  remains(): unknown {
    return {
      contents: Array.from({ length: SLOTS }, (_, s) => outcome(() => this.map.content(s as SlotId))),
      states: this.entries.map((entry) => outcome(() => this.map.entryState(entry))),
      dirtied: this.map.takeDirtied(SLOTS),
      credits: this.map.addDirtyCredits(0),
      stats: this.map.stats(),
    };
  }
}

describe('the native cache map and its twin', () => {
  const nativePool = createPagePool(SLOTS * PAGE_BYTES);
  const heapPool = heapPagePool(SLOTS * PAGE_BYTES);
  afterAll(() => nativePool.close());

  it('agree on every sequence of calls', () => {
    const seen = { readHits: 0, writeHits: 0, misses: new Set<string>() };
    fc.assert(
      fc.property(start, fc.array(step, { minLength: 10, maxLength: 120, size: 'max' }), (contents, steps) => {
        const install: Step[] = contents.map(
          (c, i) => (map, entries) => map.install(i as SlotId, entries[0]!, i, c, i > 0),
        );
        const map = NativeCacheMap.create(nativePool, ENTRIES);
        const native = new Side(map, nativePool);
        const twin = new Side(new TwinCacheMap(heapPool, { nowMs: () => 1000 }, ENTRIES), heapPool);
        try {
          for (const next of [openEntry, openEntry, grantAll(PAGES - 2), ...install, ...steps] as const) {
            expect(native.run(next)).toEqual(twin.run(next));
          }
          expect(native.remains()).toEqual(twin.remains());
          expect(Buffer.compare(nativePool.bytes, heapPool.bytes)).toBe(0);
          const stats = map.stats();
          seen.readHits += stats.readHits;
          seen.writeHits += stats.writeHits;
          for (const [name, count] of Object.entries(stats.misses)) if (count > 0) seen.misses.add(name);
        } finally {
          map.dispose();
        }
      }),
      { numRuns: 300 },
    );
    // The generator reaches what it is meant to compare.
    expect(seen.readHits).toBeGreaterThan(0);
    expect(seen.writeHits).toBeGreaterThan(0);
    expect([...seen.misses].sort()).toEqual(
      Object.keys(Miss)
        .filter((name) => name !== 'limit')
        .sort(),
    );
  });
});
