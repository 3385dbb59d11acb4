import { describe, expect, it } from 'vitest';
import { below, SeededRandom } from '../common/random.js';
import { BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { pattern, type TestCache, TestFile, testCache } from './testing.js';

const FILE_BYTES = 32 * BLOCK_BYTES;

/** A device that takes 5 ms for each request, many at a time. */
function opened(pages = 4096): { t: TestCache; file: TestFile } {
  const t = testCache({ pages, fileBytes: FILE_BYTES });
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
    expect(t.counters.get('cache.readAheadPages') * PAGE_BYTES).toBeGreaterThanOrEqual(7 * BLOCK_BYTES);
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
