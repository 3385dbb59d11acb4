import { describe, expect, it } from 'vitest';
import { deferred } from '../common/deferred.js';
import { PAGE_BYTES } from '../common/units.js';
import { pattern, TestFile, testCache } from './testing.js';

const pageAt = (i: number): number => i * PAGE_BYTES;

describe('eviction', () => {
  it('makes room for new pages, clean ones only', async () => {
    const t = testCache({ pages: 32 });
    const content = pattern(100 * PAGE_BYTES, 1);
    const file = TestFile.open(t, 7, content);
    for (let i = 0; i < 100; i += 3) await t.clock.until(file.read(pageAt(i), 3 * PAGE_BYTES));
    expect(t.counters.get('cache.evictions')).toBeGreaterThan(60);
    const { pagesUsed, pages } = t.cache.usage();
    expect(pagesUsed).toBeLessThanOrEqual(pages);
  });

  it('keeps the hot set when a file larger than the pool is read once', async () => {
    const t = testCache({ pages: 128, fileBytes: 1000 * PAGE_BYTES });
    const hot = TestFile.open(t, 7, pattern(20 * PAGE_BYTES, 1));
    const scanned = TestFile.open(t, 8, pattern(800 * PAGE_BYTES, 2));
    for (const file of [hot, scanned]) file.file.hint('random', { start: 0, end: pageAt(800) });
    const touchHot = async (): Promise<void> => {
      for (let i = 0; i < 20; i++) await t.clock.until(hot.readAsApplication(pageAt(i), 100));
    };
    // Wanted again and again, with other things in between: that is what hot means.
    await touchHot();
    for (let i = 0; i < 120; i++) await t.clock.until(scanned.readAsApplication(pageAt(i), 100));
    await touchHot();
    const before = t.backing.reads.filter((read) => read.ino === 7).length;
    for (let i = 120; i < 800; i++) {
      await t.clock.until(scanned.readAsApplication(pageAt(i), 100));
      if (i % 40 === 0) await touchHot();
    }
    await touchHot();
    expect(t.backing.reads.filter((read) => read.ino === 7).length).toBe(before);
  });

  it('never takes a page that a hit has pinned', async () => {
    const t = testCache({ pages: 16 });
    const file = TestFile.open(t, 7, pattern(100 * PAGE_BYTES, 1));
    file.file.hint('random', { start: 0, end: pageAt(100) });
    await t.clock.until(file.read(0, 10));
    const slot = 0 as Parameters<typeof t.map.tryPinShared>[0];
    expect(t.map.tryPinShared(slot)).toBe(true);
    for (let i = 1; i < 60; i++) await t.clock.until(file.read(pageAt(i), 10));
    expect(file.hitRead(0, 10)).toEqual(pattern(10, 1));
    t.map.unpinShared(slot);
    for (let i = 1; i < 60; i++) await t.clock.until(file.read(pageAt(i), 10));
    expect(file.hitRead(0, 10)).toBeLessThan(0);
  });

  it('lets those who need a page wait in line while everything is dirty, and hurries the write-outs', async () => {
    const t = testCache({ pages: 16, settings: { dirtyPagesMax: 13, metadataPages: 2, sparePages: 1 } });
    const file = TestFile.open(t, 7);
    const other = TestFile.open(t, 8, pattern(20 * PAGE_BYTES, 2));
    other.file.hint('random', { start: 0, end: pageAt(20) });
    const gate = deferred<void>();
    t.backing.beforeWrite = () => gate.promise;
    for (let i = 0; i < 13; i++) await t.clock.until(file.write(pageAt(i), pattern(PAGE_BYTES, i)));
    const order: number[] = [];
    const reads = [0, 1, 2, 3].map((i) => other.read(pageAt(i), 10).then(() => order.push(i)));
    await t.clock.advance(100);
    expect(order).toEqual([]);
    gate.resolve();
    await t.clock.until(Promise.all(reads));
    expect(order).toEqual([0, 1, 2, 3]);
  });

  it('ends the wait of who needs a page at its deadline, with the reason', async () => {
    const t = testCache({ pages: 16, settings: { dirtyPagesMax: 13, metadataPages: 2, sparePages: 1 } });
    const file = TestFile.open(t, 7);
    t.backing.beforeWrite = () => new Promise(() => undefined);
    for (let i = 0; i < 13; i++) await t.clock.until(file.write(pageAt(i), pattern(PAGE_BYTES, i)));
    const other = TestFile.open(t, 8, pattern(PAGE_BYTES, 2));
    await expect(t.clock.until(other.read(0, 10))).rejects.toMatchObject({ code: 'ETIMEDOUT' });
    // Metadata has pages that data leaves alone.
    const metadata = other.file.withBytes({ start: 0, end: 10 }, 'shared', (view) => view.bytes(0, 10).slice());
    expect(await t.clock.until(metadata)).toEqual(pattern(10, 2));
  });

  it('lets go of idle files when the table of entries is nearly full', async () => {
    const t = testCache({ pages: 64, entries: 8 });
    for (let ino = 10; ino < 40; ino++) {
      const file = TestFile.open(t, ino, pattern(100, ino));
      expect(file.file.entry).not.toBeNull();
      await t.clock.until(file.read(0, 100));
      expect(file.hitRead(0, 100)).toEqual(pattern(100, ino));
      file.file.detach();
      await t.clock.settle();
    }
    expect(t.cache.usage().pagesUsed).toBeLessThan(9);
  });

  it('works without an entry when all of them are in use, through the engine', async () => {
    const t = testCache({ pages: 64, entries: 2 });
    const files = [1, 2, 3].map((ino) => TestFile.open(t, ino, pattern(300, ino)));
    const last = files[2]!;
    expect(last.file.entry).toBeNull();
    await t.clock.until(last.write(10, pattern(500, 9)));
    expect(last.size).toBe(510);
    expect((await t.clock.until(last.read(10, 500))).length).toBe(500);
    expect(last.hitRead(0, 10)).toBeLessThan(0);
    // A place becomes free: the next handle brings the entry, and the pages with it.
    files[0]!.file.detach();
    await t.clock.settle();
    const again = t.cache.attach(last.ino, { sizeBytes: 0, mtimeNs: 0n, ctimeNs: 0n });
    expect(again.entry).not.toBeNull();
    expect(again.state.sizeBytes).toBe(510);
    again.setStatusMode(3);
    await t.clock.until(last.read(0, 1));
    expect(last.hitRead(10, 500)).toEqual(pattern(500, 9));
  });

  it('keeps a detached file’s pages until they are wanted elsewhere, and forgets it with the last', async () => {
    const t = testCache({ pages: 32 });
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    await t.clock.until(file.read(0, 10));
    file.file.detach();
    expect(t.cache.get(file.ino)).toBeDefined();
    await t.clock.until(t.tokens.revoke(7, { start: 0, end: 2 ** 40 }));
    expect(t.cache.get(file.ino)).toBeUndefined();
  });
});
