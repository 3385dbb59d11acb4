import { describe, expect, it } from 'vitest';
import { below, SeededRandom } from '../common/random.js';
import { BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import type { PageCacheSettings } from './page-cache-settings.js';
import { pattern, type TestCache, TestFile, testCache } from './testing.js';

const FILE_BYTES = 32 * BLOCK_BYTES;

/** A device that takes 5 ms for each request, many at a time. */
function opened(pages = 4096, settings: Partial<PageCacheSettings> = {}): { t: TestCache; file: TestFile } {
  const t = testCache({ pages, fileBytes: FILE_BYTES, settings });
  t.backing.bytesOf(TestFile.open(t, 3).ino).set(pattern(FILE_BYTES, 1));
  t.backing.beforeRead = () => new Promise((resolve) => t.clock.after(5, resolve));
  return { t, file: TestFile.open(t, 7, pattern(FILE_BYTES, 1)) };
}

/** How long the reads take in all, when the application thinks for `thinkMs` after each. */
async function readAll(t: TestCache, file: TestFile, offsets: number[], length: number, thinkMs: number) {
  let waitedMs = 0;
  let stalls = 0;
  let hits = 0;
  for (const offset of offsets) {
    const before = t.clock.nowMs();
    const { hit, bytes } = await t.clock.until(file.readAsApplication(offset, length));
    expect(bytes.length).toBe(length);
    const tookMs = t.clock.nowMs() - before;
    waitedMs += tookMs;
    if (tookMs > 0) stalls++;
    if (hit) hits++;
    await t.clock.advance(thinkMs);
  }
  return { waitedMs, stalls, hits };
}

const forward = (count: number, step: number): number[] => Array.from({ length: count }, (_, i) => i * step);

describe('read-ahead', () => {
  it('keeps a sequential reader of megabytes from waiting once it is under way', async () => {
    const { t, file } = opened();
    const { stalls, hits } = await readAll(t, file, forward(32, BLOCK_BYTES), BLOCK_BYTES, 4);
    expect(stalls).toBeLessThanOrEqual(2);
    expect(hits).toBeGreaterThan(20);
    expect(t.counters.get('cache.readAheadWastedPages')).toBe(0);
    expect(t.counters.get('cache.fillBytes')).toBe(FILE_BYTES);
  });

  it('keeps a sequential reader of small pieces from waiting, mostly by hits', async () => {
    const { t, file } = opened();
    const { stalls, hits } = await readAll(t, file, forward(2000, SECTOR_BYTES), SECTOR_BYTES, 0.2);
    expect(stalls).toBeLessThanOrEqual(4);
    expect(hits).toBeGreaterThan(1950);
  });

  /** The furthest that was fetched in front of the reader's position. */
  async function reach(t: TestCache, file: TestFile, offsets: number[], thinkMs: number): Promise<number> {
    let furthest = 0;
    for (const offset of offsets) {
      await t.clock.until(file.readAsApplication(offset, BLOCK_BYTES));
      const fetched = t.backing.reads.flatMap(({ pieces }) => pieces.map((p) => p.offsetBytes + p.lengthBytes));
      furthest = Math.max(furthest, Math.max(...fetched) - (offset + BLOCK_BYTES));
      await t.clock.advance(thinkMs);
    }
    return furthest;
  }

  it('reaches as far as its setting lets it in front of a reader that is faster than the device, and no further', async () => {
    const { t, file } = opened(4096, { readAheadMaxBytes: 6 * BLOCK_BYTES });
    expect(await reach(t, file, forward(24, BLOCK_BYTES), 0)).toBe(6 * BLOCK_BYTES);
    const more = opened(4096, { readAheadMaxBytes: 64 * BLOCK_BYTES });
    // An eighth of the pool, whatever the setting.
    expect(await reach(more.t, more.file, forward(24, BLOCK_BYTES), 0)).toBeLessThanOrEqual(8 * BLOCK_BYTES);
  });

  it('keeps a small window in front of a reader that is slower than the device', async () => {
    const { t, file } = opened();
    // The first two reads find nothing there yet.
    expect(await reach(t, file, forward(24, BLOCK_BYTES), 50)).toBeLessThanOrEqual(4 * BLOCK_BYTES);
    expect(t.counters.get('cache.readAheadWastedPages')).toBe(0);
  });

  it('asks for whole blocks, and lets each be used when it has come', async () => {
    const { t, file } = opened();
    t.backing.beforeRead = (pieces) => {
      const late = pieces.some((piece) => piece.offsetBytes >= 5 * BLOCK_BYTES && piece.offsetBytes < 6 * BLOCK_BYTES);
      return new Promise((resolve) => t.clock.after(late ? 1000 : 5, resolve));
    };
    file.file.hint('sequential', { start: 0, end: FILE_BYTES });
    await t.clock.until(file.read(0, BLOCK_BYTES));
    await t.clock.advance(10);
    for (const block of [1, 2, 3, 4, 6]) expect(file.hitRead(block * BLOCK_BYTES, PAGE_BYTES)).not.toBeTypeOf('number');
    expect(file.hitRead(5 * BLOCK_BYTES, PAGE_BYTES)).toBeTypeOf('number');
    for (const { pieces } of t.backing.reads) {
      const blocks = new Set(pieces.map((piece) => Math.floor(piece.offsetBytes / BLOCK_BYTES)));
      expect(blocks.size).toBe(1);
    }
  });

  it('needs no visit of a reader that says how far its hits have come', async () => {
    const { t, file } = opened();
    let visits = 0;
    for (let at = 0; at < FILE_BYTES; at += BLOCK_BYTES) {
      const { hit } = await t.clock.until(file.readAsApplication(at, BLOCK_BYTES));
      if (!hit && at >= 4 * BLOCK_BYTES) visits++;
      if (at % (2 * BLOCK_BYTES) === BLOCK_BYTES)
        file.file.hint('passed', { start: at - BLOCK_BYTES, end: at + BLOCK_BYTES });
      await t.clock.advance(10);
    }
    expect(visits).toBeLessThanOrEqual(1);
    expect(t.counters.get('cache.fillBytes')).toBe(FILE_BYTES);
  });

  it('brings pages for a hit to copy from', async () => {
    const { t, file } = opened();
    const range = { start: 3 * PAGE_BYTES, end: 9 * PAGE_BYTES };
    await t.clock.until(file.pinned(range, TokenMode.shared, () => file.file.bring(range.start, 6 * PAGE_BYTES)));
    expect(t.counters.get('cache.readBytes')).toBe(0);
    expect(file.hitRead(range.start, 6 * PAGE_BYTES)).toEqual(pattern(FILE_BYTES, 1).subarray(range.start, range.end));
  });

  it('sees a reader that goes backwards', async () => {
    const { t, file } = opened();
    const offsets = forward(64, 128 * 1024).map((at) => FILE_BYTES - at - 128 * 1024);
    const { stalls } = await readAll(t, file, offsets, 128 * 1024, 4);
    expect(stalls).toBeLessThanOrEqual(6);
  });

  it('sees a reader with a stride, and fetches the records only', async () => {
    const { t, file } = opened();
    const { stalls } = await readAll(t, file, forward(100, 300_000), PAGE_BYTES, 4);
    expect(stalls).toBeLessThanOrEqual(8);
    expect(t.counters.get('cache.fillBytes')).toBeLessThan(100 * 3 * PAGE_BYTES);
  });

  it('keeps several streams of one file apart', async () => {
    const { t, file } = opened();
    const offsets = forward(30, 128 * 1024).flatMap((at) => [at, at + 8 * BLOCK_BYTES, at + 16 * BLOCK_BYTES]);
    const { stalls } = await readAll(t, file, offsets, 128 * 1024, 3);
    expect(stalls).toBeLessThanOrEqual(12);
  });

  it('fetches nearly nothing in vain for random reads', async () => {
    const { t, file } = opened();
    const random = new SeededRandom(5);
    const offsets = Array.from({ length: 500 }, () => below(random, FILE_BYTES / SECTOR_BYTES) * SECTOR_BYTES);
    await readAll(t, file, offsets, SECTOR_BYTES, 0);
    expect(t.counters.get('cache.readAheadPages')).toBeLessThan(50);
  });

  it('does nothing when told that reads are random, and all it can when told that they are sequential', async () => {
    const { t, file } = opened();
    file.file.hint('random', { start: 0, end: FILE_BYTES });
    await readAll(t, file, forward(10, PAGE_BYTES), PAGE_BYTES, 1);
    expect(t.counters.get('cache.readAheadPages')).toBe(0);
    file.file.hint('sequential', { start: 0, end: FILE_BYTES });
    await readAll(t, file, [BLOCK_BYTES], PAGE_BYTES, 1);
    expect(t.counters.get('cache.readAheadPages') * PAGE_BYTES).toBeGreaterThanOrEqual(7 * BLOCK_BYTES - PAGE_BYTES);
  });

  it('counts what was fetched and thrown away unused as waste', async () => {
    const { t, file } = opened(64);
    await t.clock.until(file.read(0, PAGE_BYTES));
    await t.clock.advance(20);
    expect(t.counters.get('cache.readAheadPages')).toBeGreaterThan(0);
    await t.clock.until(t.tokens.revoke(7, { start: 0, end: FILE_BYTES }));
    expect(t.counters.get('cache.readAheadWastedPages')).toBe(t.counters.get('cache.readAheadPages'));
  });

  it('asks for the token in the background where none is held, and gives up when the file is revoked', async () => {
    const { t, file } = opened();
    t.tokens.strict = true;
    await readAll(t, file, forward(4, BLOCK_BYTES), BLOCK_BYTES, 30);
    expect(t.counters.get('cache.readAheadTokens')).toBeGreaterThan(0);
    const { stalls } = await readAll(
      t,
      file,
      forward(20, BLOCK_BYTES).map((at) => at + 4 * BLOCK_BYTES),
      BLOCK_BYTES,
      30,
    );
    expect(stalls).toBeLessThanOrEqual(2);
    await t.clock.until(t.tokens.revoke(7, { start: 0, end: FILE_BYTES }));
    expect(t.cache.usage().pagesUsed).toBe(0);
  });

  it('reads nothing behind the end of file', async () => {
    const t = testCache({ pages: 512 });
    const file = TestFile.open(t, 7, pattern(5 * PAGE_BYTES + 10, 1));
    await t.clock.until(file.read(0, 100));
    await t.clock.settle();
    expect(t.cache.usage().pagesUsed).toBe(6);
  });
});
