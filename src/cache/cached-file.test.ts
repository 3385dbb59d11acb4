import { describe, expect, it } from 'vitest';
import { WHOLE } from '../common/byte-range.js';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { BLOCK_BYTES, PAGE_BYTES, RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import type { SlotId } from './cache-map.js';
import { pattern, TestFile, testCache } from './testing.js';

const slot = (n: number): SlotId => n as SlotId;

describe('bytes for metadata', () => {
  it('are handed out at once when they are cached, else after a read', async () => {
    const t = testCache();
    const { file } = TestFile.open(t, 7, pattern(2 * PAGE_BYTES, 1));
    const range = { start: 100, end: 200 };
    expect(file.tryWithBytes(range, 'shared', () => 1)).toBeUndefined();
    const first = await t.clock.until(file.withBytes(range, 'shared', (view) => view.bytes(100, 100).slice()));
    expect(first).toEqual(pattern(2 * PAGE_BYTES, 1).slice(100, 200));
    expect(file.tryWithBytes(range, 'shared', (view) => view.bytes(100, 1)[0])?.value).toBe(first[0]);
    expect(t.backing.reads.length).toBe(1);
  });

  it('become dirty where they were changed, and nowhere else', async () => {
    const t = testCache();
    const { file, ino } = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    t.backing.reserve(ino, { start: 0, end: PAGE_BYTES });
    await t.clock.until(
      file.withBytes({ start: 0, end: PAGE_BYTES }, 'exclusive', (view) => {
        view.bytes(SECTOR_BYTES + 5, 2).fill(0);
        view.changed(SECTOR_BYTES + 5, 2);
      }),
    );
    await t.clock.until(file.flush());
    expect(t.backing.writes.map((w) => w.pieces.map((p) => [p.offsetBytes, p.lengthBytes]))).toEqual([
      [[SECTOR_BYTES, SECTOR_BYTES]],
    ]);
  });

  it('cross pages, each view in one', async () => {
    const t = testCache();
    const { file } = TestFile.open(t, 7, pattern(3 * PAGE_BYTES, 1));
    const sum = await t.clock.until(
      file.withBytes({ start: PAGE_BYTES - 1, end: PAGE_BYTES + 1 }, 'shared', (view) => {
        expect(() => view.bytes(PAGE_BYTES - 1, 2)).toThrow();
        return view.bytes(PAGE_BYTES - 1, 1)[0]! + view.bytes(PAGE_BYTES, 1)[0]!;
      }),
    );
    expect(sum).toBe(pattern(3 * PAGE_BYTES, 1)[PAGE_BYTES - 1]! + pattern(3 * PAGE_BYTES, 1)[PAGE_BYTES]!);
  });

  it('are out of reach once the callback has returned or thrown, and the pages are free again', async () => {
    const t = testCache();
    const { file } = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    const view = await t.clock.until(file.withBytes({ start: 0, end: 1 }, 'shared', (v) => v));
    expect(() => view.bytes(0, 1)).toThrow();
    expect(() =>
      file.tryWithBytes({ start: 0, end: 1 }, 'exclusive', () => {
        throw new Error('mine');
      }),
    ).toThrow('mine');
    expect(file.tryWithBytes({ start: 0, end: 1 }, 'exclusive', () => 5)?.value).toBe(5);
  });

  it('wait for a write-out of their page to end before they change', async () => {
    const t = testCache();
    const { file, ino } = TestFile.open(t, 7);
    t.backing.reserve(ino, { start: 0, end: PAGE_BYTES });
    const set = (value: number) =>
      file.withBytes({ start: 0, end: 1 }, 'exclusive', (view) => {
        view.bytes(0, 1)[0] = value;
        view.changed(0, 1);
      });
    await t.clock.until(set(1));
    const gate = deferred<void>();
    t.backing.beforeWrite = () => gate.promise;
    const flush = file.flush();
    await t.clock.settle();
    expect(file.tryWithBytes({ start: 0, end: 1 }, 'exclusive', () => 1)).toBeUndefined();
    expect(file.tryWithBytes({ start: 0, end: 1 }, 'shared', (view) => view.bytes(0, 1)[0])?.value).toBe(1);
    const second = set(2);
    await t.clock.settle();
    gate.resolve();
    await t.clock.until(Promise.all([flush, second]));
    await t.clock.until(file.flush());
    expect(t.backing.bytesOf(ino)[0]).toBe(2);
  });
});

describe('an operation that meets a hit of another thread', () => {
  it('waits for the pin, turn by turn, and lets no new hit in before it', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(2 * PAGE_BYTES, 1));
    await t.clock.until(file.read(0, 2 * PAGE_BYTES));
    expect(t.map.tryPinShared(slot(1))).toBe(true);
    let written = false;
    const write = file.write(PAGE_BYTES - 5, pattern(10, 9)).then(() => (written = true));
    await t.clock.advance(10);
    expect(written).toBe(false);
    expect(file.hitRead(0, 10)).toBeLessThan(0);
    t.map.unpinShared(slot(1));
    await t.clock.until(write);
    expect(file.hitRead(PAGE_BYTES - 5, 10)).toEqual(pattern(10, 9));
  });

  it('a revoke waits for it too, and drops the page then', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    await t.clock.until(file.read(0, 100));
    expect(t.map.tryPinShared(slot(0))).toBe(true);
    let revoked = false;
    const revoke = t.tokens.revoke(7, WHOLE).then(() => (revoked = true));
    await t.clock.advance(10);
    expect(revoked).toBe(false);
    t.map.unpinShared(slot(0));
    await t.clock.until(revoke);
    expect(t.cache.usage().pagesUsed).toBe(0);
  });

  it('a read waits for a hit that writes, and keeps what it has pinned', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(2 * PAGE_BYTES, 1));
    await t.clock.until(file.read(0, 2 * PAGE_BYTES));
    expect(t.map.tryPinExclusive(slot(1))).toBe(true);
    const read = file.read(0, 2 * PAGE_BYTES);
    await t.clock.advance(10);
    expect(t.map.tryPinExclusive(slot(0))).toBe(false);
    t.map.unpinExclusive(slot(1));
    expect(await t.clock.until(read)).toEqual(pattern(2 * PAGE_BYTES, 1));
  });
});

describe('what is asked of tokens (T1)', () => {
  it('is the whole file for its first user, sectors for what is required', () => {
    const t = testCache();
    const { file } = TestFile.open(t, 7);
    const item = file.dataItem({ start: 5000, end: 5001 }, TokenMode.exclusive);
    expect(item.required).toEqual({ start: SECTOR_BYTES, end: 2 * SECTOR_BYTES });
    expect(item.desired).toEqual(WHOLE);
  });

  it('is the rest of the file for who goes through it, and the block around for who jumps about', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    for (let i = 0; i < 3; i++) await t.clock.until(file.write(i * PAGE_BYTES, pattern(PAGE_BYTES, 1)));
    const next = { start: 3 * PAGE_BYTES, end: 4 * PAGE_BYTES };
    expect(file.file.dataItem(next, TokenMode.exclusive).desired).toEqual({ start: next.start, end: RANGE_END });
    const elsewhere = { start: 5 * BLOCK_BYTES + 10, end: 5 * BLOCK_BYTES + 20 };
    expect(file.file.dataItem(elsewhere, TokenMode.shared).desired).toEqual({
      start: 5 * BLOCK_BYTES,
      end: 6 * BLOCK_BYTES,
    });
  });

  it('tells a sequential writer’s place and what it is about to write, until it has been idle', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    for (let i = 0; i < 3; i++) await t.clock.until(file.write(i * PAGE_BYTES, pattern(PAGE_BYTES, 1)));
    await t.clock.settle();
    const working = t.tokens.handler!.working(7)!;
    expect(working.start).toBeLessThanOrEqual(3 * PAGE_BYTES);
    expect(working.end).toBeGreaterThan(4 * PAGE_BYTES);
    expect(working.end).toBeLessThan(4 * BLOCK_BYTES);
    await t.clock.advance(5000);
    expect(t.tokens.handler!.working(7)).toBeNull();
    // A write hit shows that it isn't idle, though the engine took no part in it.
    expect(file.hitWrite(3 * PAGE_BYTES, pattern(10, 1))).toBe(10);
    expect(t.tokens.handler!.working(7)).not.toBeNull();
  });
});

describe('zero and discard', () => {
  it('of the tail of the last page reads it if need be, and writes zeros only where there were none', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    t.backing.reserve(file.ino, { start: 0, end: PAGE_BYTES });
    await t.clock.until(file.truncate(100));
    await t.clock.until(file.file.flush());
    const disk = t.backing.bytesOf(file.ino);
    expect(disk.slice(0, 100)).toEqual(pattern(PAGE_BYTES, 1).slice(0, 100));
    expect(disk.subarray(100, PAGE_BYTES).every((byte) => byte === 0)).toBe(true);
    const writes = t.backing.writes.length;
    await t.clock.until(file.file.zero({ start: 100, end: SECTOR_BYTES }));
    expect(file.file.dirty).toBe(false);
    expect(t.backing.writes.length).toBe(writes);
  });

  it('waits for a write-out in flight, and leaves nothing dirty behind', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    const gate = deferred<void>();
    t.backing.beforeWrite = () => gate.promise;
    const flush = file.file.flush();
    await t.clock.settle();
    let discarded = false;
    const discard = file.file.discard(WHOLE).then(() => (discarded = true));
    await t.clock.advance(50);
    expect(discarded).toBe(false);
    gate.resolve();
    await t.clock.until(Promise.all([flush, discard]));
    expect(t.cache.usage()).toMatchObject({ pagesUsed: 0, dirtyPages: 0 });
  });

  it('in the middle of a run of bytes keeps what lies on both sides', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    const before = pattern(PAGE_BYTES, 1);
    await t.clock.until(file.write(100, pattern(12_000, 2)));
    await t.clock.until(
      file.pinned(WHOLE, TokenMode.exclusive, () => file.file.discard({ start: SECTOR_BYTES, end: 2 * SECTOR_BYTES })),
    );
    before.set(pattern(12_000, 2), 100);
    before.set(pattern(PAGE_BYTES, 1).subarray(SECTOR_BYTES, 2 * SECTOR_BYTES), SECTOR_BYTES);
    expect(Buffer.compare(await t.clock.until(file.read(0, PAGE_BYTES)), before)).toBe(0);
  });
});

describe('the end of it', () => {
  it('fenced: everything is dropped, what was dirty is named, operations under way fail (F3)', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(2 * SECTOR_BYTES, 1)));
    await t.clock.until(file.write(PAGE_BYTES + 10, pattern(5, 1)));
    const gate = deferred<void>();
    t.backing.beforeRead = () => gate.promise;
    file.file.noteWrite(20 * PAGE_BYTES, 1n);
    const read = file.read(10 * PAGE_BYTES, 10).catch((error: unknown) => error);
    await t.clock.settle();
    expect(t.cache.dropEverything()).toEqual([
      { ino: 7, range: { start: 0, end: 2 * SECTOR_BYTES } },
      { ino: 7, range: { start: PAGE_BYTES + 10, end: PAGE_BYTES + 15 } },
    ]);
    expect(file.hitRead(0, 1)).toBeLessThan(0);
    gate.resolve();
    expect(await t.clock.until(read)).toMatchObject({ code: 'ESTALE' });
    expect(t.cache.usage()).toMatchObject({ pagesUsed: 0, dirtyPages: 0 });
    await t.clock.advance(20_000);
    expect(t.backing.writes.length).toBe(0);
  });

  it('fenced in the midst of a write-out: the slot is free only when the transfer has ended (S3)', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    const gate = deferred<void>();
    t.backing.beforeWrite = () => gate.promise;
    const flush = file.file.flush().catch((error: unknown) => error);
    await t.clock.settle();
    t.cache.dropEverything();
    expect(t.cache.usage().pagesUsed).toBe(1);
    gate.resolve();
    expect(await t.clock.until(flush)).toMatchObject({ code: 'ESTALE' });
    await t.clock.settle();
    expect(t.cache.usage().pagesUsed).toBe(0);
  });

  it('closed: what is dirty is written first, then every call is refused', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    await t.clock.until(t.cache.close());
    expect(t.backing.bytesOf(file.ino).slice(0, 10)).toEqual(pattern(10, 1));
    const refused = file.file.read(0, new Uint8Array(1)).catch((error: unknown) => error);
    expect(await t.clock.until(refused)).toMatchObject({ code: 'ESHUTDOWN' });
  });

  it('flushAll writes every file, and says when one failed', async () => {
    const t = testCache();
    const files = [1, 2, 3].map((ino) => TestFile.open(t, ino));
    for (const file of files) await t.clock.until(file.write(0, pattern(100, file.ino)));
    let calls = 0;
    t.backing.beforeWrite = async () => {
      if (++calls === 2) throw new FsError('deviceError', { op: 'test' });
    };
    await expect(t.clock.until(t.cache.flushAll())).rejects.toMatchObject({ code: 'EIO' });
    expect(t.cache.usage().dirtyPages).toBe(1);
    await t.clock.until(t.cache.flushAll());
    expect(t.cache.usage().dirtyPages).toBe(0);
  });
});
