import { describe, expect, it } from 'vitest';
import { WHOLE } from '../common/byte-range.js';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { pattern, TestFile, testCache } from './testing.js';

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

describe('reading', () => {
  it('brings what the backing store has, in one call for a run of pages', async () => {
    const t = testCache();
    const content = pattern(10 * PAGE_BYTES, 1);
    const file = TestFile.open(t, 7, content);
    const read = await t.clock.until(file.read(0, 4 * PAGE_BYTES));
    expect(same(read, content.subarray(0, 4 * PAGE_BYTES))).toBe(true);
    expect(t.backing.reads[0]!.pieces).toEqual([{ offsetBytes: 0, lengthBytes: 4 * PAGE_BYTES, poolOffsetBytes: 0 }]);
  });

  it('makes a hit of the next read of the same bytes', async () => {
    const t = testCache();
    const content = pattern(PAGE_BYTES, 1);
    const file = TestFile.open(t, 7, content);
    await t.clock.until(file.read(0, 100));
    expect(file.hitRead(50, 100)).toEqual(content.slice(50, 150));
  });

  it('shares one fill between two readers', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    await t.clock.until(Promise.all([file.read(0, 100), file.read(200, 100)]));
    expect(t.backing.reads.length).toBe(1);
  });

  it('hands the error of a fill to the reader, and the next reader tries again', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    t.backing.beforeRead = async () => {
      throw new FsError('deviceError', { op: 'test' });
    };
    await expect(t.clock.until(file.read(0, 100))).rejects.toMatchObject({ code: 'EIO' });
    t.backing.beforeRead = async () => undefined;
    expect((await t.clock.until(file.read(0, 100))).length).toBe(100);
    expect(t.cache.usage().pagesUsed).toBe(1);
  });

  it('a damaged sector costs nobody its neighbours, and a write over it mends it', async () => {
    const t = testCache();
    const content = pattern(PAGE_BYTES, 1);
    const file = TestFile.open(t, 7, content);
    const damaged = { start: SECTOR_BYTES, end: 2 * SECTOR_BYTES };
    t.backing.beforeRead = async (pieces) => {
      for (const { offsetBytes, lengthBytes } of pieces)
        if (offsetBytes < damaged.end && damaged.start < offsetBytes + lengthBytes)
          throw new FsError('checksumMismatch', { op: 'test' });
    };
    const readSector = (sector: number): Promise<Uint8Array> =>
      t.clock.until(file.read(sector * SECTOR_BYTES, SECTOR_BYTES));
    // The first finds no page, the others one that lacks sectors.
    for (const sector of [0, 2, 1, 3, 0]) {
      const start = sector * SECTOR_BYTES;
      if (sector === 1) await expect(readSector(sector)).rejects.toMatchObject({ reason: 'checksumMismatch' });
      else expect(Buffer.compare(await readSector(sector), content.subarray(start, start + SECTOR_BYTES))).toBe(0);
    }
    const good = pattern(SECTOR_BYTES, 9);
    await t.clock.until(file.write(damaged.start, good));
    expect(Buffer.compare(await readSector(1), good)).toBe(0);
    expect(Buffer.compare(await readSector(2), content.subarray(2 * SECTOR_BYTES, 3 * SECTOR_BYTES))).toBe(0);
  });

  it('lets an aborted reader go while the fill goes on for others', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    const gate = deferred<void>();
    t.backing.beforeRead = () => gate.promise;
    const abort = new AbortController();
    const first = file.read(0, 100, abort.signal);
    const second = file.read(0, 100);
    await t.clock.settle();
    abort.abort();
    await expect(t.clock.until(first)).rejects.toMatchObject({ code: 'ABORT_ERR' });
    gate.resolve();
    expect((await t.clock.until(second)).length).toBe(100);
    expect(t.backing.reads.length).toBe(1);
  });

  it('reads more than the pool holds, piece by piece', async () => {
    const t = testCache({ pages: 16 });
    const content = pattern(40 * PAGE_BYTES, 3);
    const file = TestFile.open(t, 7, content);
    expect(same(await t.clock.until(file.read(5, 39 * PAGE_BYTES)), content.subarray(5, 5 + 39 * PAGE_BYTES))).toBe(
      true,
    );
  });

  it('makes valid only the sectors that tokens cover (I2)', async () => {
    const t = testCache();
    t.tokens.strict = true;
    const content = pattern(PAGE_BYTES, 1);
    const file = TestFile.open(t, 7, content);
    await t.clock.until(file.read(0, 100));
    // Another node changes the rest of the page, under its own token.
    t.backing.bytesOf(file.ino).fill(9, SECTOR_BYTES, PAGE_BYTES);
    expect(file.hitRead(SECTOR_BYTES, 10)).toBeLessThan(0);
    expect((await t.clock.until(file.read(SECTOR_BYTES, 10)))[0]).toBe(9);
  });
});

describe('writing', () => {
  it('of part of a sector reads nothing while it can be kept as one run of bytes', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(4 * PAGE_BYTES, 1));
    await t.clock.until(file.write(100, pattern(50, 2)));
    await t.clock.until(file.write(150, pattern(9000, 3)));
    expect(t.backing.reads.length).toBe(0);
    expect(file.hitRead(100, 50)).toEqual(pattern(50, 2));
    await t.clock.until(file.file.flush());
    const disk = t.backing.bytesOf(file.ino);
    const expected = pattern(4 * PAGE_BYTES, 1);
    expected.set(pattern(50, 2), 100);
    expected.set(pattern(9000, 3), 150);
    expect(same(disk.subarray(0, expected.length), expected)).toBe(true);
  });

  it('that fails in its second piece tells the backing store when the first stays behind the end of file', async () => {
    const t = testCache({ pages: 16, settings: { pieceBytes: 2 * PAGE_BYTES, waitersMax: 100 } });
    const file = TestFile.open(t, 7);
    const other = TestFile.open(t, 8, pattern(40 * PAGE_BYTES, 1));
    // Two runs of bytes in one sector: the second can be taken in only when the sector has been read.
    const second = 2 * PAGE_BYTES;
    await t.clock.until(file.write(second + 100, pattern(10, 1)));
    file.file.setState({ sizeBytes: 0, mtimeNs: 1n, ctimeNs: 1n });
    const gate = deferred<void>();
    const readers: Promise<unknown>[] = [];
    t.backing.beforeRead = async () => {
      if (t.backing.reads.at(-1)!.ino !== file.ino) return gate.promise;
      // Until this fails others have asked for all the room there is: the zeros come too late.
      for (let i = 0; i < 16; i++) readers.push(other.read(2 * i * PAGE_BYTES, 2 * PAGE_BYTES).catch(() => undefined));
      await t.clock.settle();
      throw new FsError('deviceError', { op: 'test', object: 'a sector' });
    };
    const written = file.write(0, pattern(second + 50, 2));
    await expect(t.clock.until(written)).rejects.toMatchObject({ reason: 'deviceError' });
    expect(t.backing.leftBehind).toEqual([7]);
    gate.resolve();
    await t.clock.until(Promise.all(readers));
  });

  it('at the end of file needs no read, not even to be written out', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(10_000, 2)));
    await t.clock.until(file.file.flush());
    expect(t.backing.reads.length).toBe(0);
    expect(same(t.backing.bytesOf(file.ino).subarray(0, 10_000), pattern(10_000, 2))).toBe(true);
    expect(t.backing.bytesOf(file.ino)[10_000]).toBe(0);
  });

  it('of two separate runs in one page fills before the second, and keeps the first', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    await t.clock.until(file.write(100, pattern(50, 2)));
    await t.clock.until(file.write(300, pattern(50, 3)));
    const expected = pattern(PAGE_BYTES, 1);
    expected.set(pattern(50, 2), 100);
    expected.set(pattern(50, 3), 300);
    expect(same(await t.clock.until(file.read(0, PAGE_BYTES)), expected)).toBe(true);
  });

  it('reserves space before anything is dirty, and fails when there is none', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    t.backing.beforeReserve = async () => {
      throw new FsError('noSpace', { op: 'test' });
    };
    await expect(t.clock.until(file.write(0, pattern(10, 1)))).rejects.toMatchObject({ code: 'ENOSPC' });
    expect(file.file.dirty).toBe(false);
    expect(file.size).toBe(0);
  });

  it('prepares the pages in front of a sequential writer, so that its next writes are hits', async () => {
    const t = testCache({ pages: 512 });
    const file = TestFile.open(t, 7);
    const chunk = pattern(SECTOR_BYTES, 1);
    await t.clock.until(file.write(0, chunk));
    await t.clock.until(file.write(SECTOR_BYTES, chunk));
    await t.clock.settle();
    let hits = 0;
    for (let i = 2; i < 100; i++) {
      if (file.hitWrite(i * SECTOR_BYTES, chunk) > 0) hits++;
      else await t.clock.until(file.write(i * SECTOR_BYTES, chunk));
    }
    expect(hits).toBeGreaterThan(95);
    await t.clock.until(file.file.flush());
    for (let i = 0; i < 100; i++)
      expect(same(t.backing.bytesOf(file.ino).subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES), chunk)).toBe(true);
  });

  it('of more than the pool holds goes through, and is seen whole', async () => {
    const t = testCache({ pages: 16 });
    const file = TestFile.open(t, 7);
    const content = pattern(40 * PAGE_BYTES + 77, 3);
    await t.clock.until(file.write(33, content));
    expect(same(await t.clock.until(file.read(33, content.length)), content)).toBe(true);
  });

  it('waits for room when too much is dirty, in order, and goes on when write-behind has made some', async () => {
    const t = testCache({ settings: { dirtyPagesMax: 4 } });
    const file = TestFile.open(t, 7);
    const gate = deferred<void>();
    t.backing.beforeWrite = () => gate.promise;
    const done: number[] = [];
    const writes = [0, 1, 2, 3, 4, 5, 6].map((i) =>
      file.write(i * PAGE_BYTES, pattern(PAGE_BYTES, i)).then(() => done.push(i)),
    );
    await t.clock.advance(1000);
    expect(done).toEqual([0, 1, 2, 3]);
    expect(t.cache.usage().dirtyPages).toBe(4);
    gate.resolve();
    await t.clock.until(Promise.all(writes));
    expect(done).toEqual([0, 1, 2, 3, 4, 5, 6]);
  });

  it('that finds no room until its deadline fails with the reason of the write-outs', async () => {
    const t = testCache({ settings: { dirtyPagesMax: 2 } });
    const file = TestFile.open(t, 7);
    t.backing.beforeWrite = async () => {
      throw new FsError('deviceError', { op: 'test' });
    };
    await t.clock.until(file.write(0, pattern(2 * PAGE_BYTES, 1)));
    const error = await t.clock.until(file.write(2 * PAGE_BYTES, pattern(10, 1))).catch((e: unknown) => e);
    expect(error).toMatchObject({ code: 'ETIMEDOUT', cause: { code: 'EIO' } });
  });
});

describe('write-behind', () => {
  it('writes what has been dirty for long enough', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(100, 1)));
    await t.clock.advance(4000);
    expect(t.backing.writes.length).toBe(0);
    await t.clock.advance(2000);
    expect(t.backing.writes.length).toBe(1);
    expect(file.file.dirty).toBe(false);
  });

  it('finds what hits made dirty', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    await t.clock.until(file.file.flush());
    expect(file.hitWrite(10, pattern(20, 5))).toBe(20);
    expect(file.file.dirty).toBe(true);
    await t.clock.advance(7000);
    expect(same(t.backing.bytesOf(file.ino).subarray(10, 30), pattern(20, 5))).toBe(true);
  });

  it('writes whole dirty blocks at once, few in flight', async () => {
    const t = testCache({ pages: 2048, fileBytes: 16 << 20 });
    const file = TestFile.open(t, 7);
    t.backing.beforeWrite = () => new Promise((resolve) => t.clock.after(10, resolve));
    for (let i = 0; i < 10; i++) await t.clock.until(file.write(i * BLOCK_BYTES, pattern(BLOCK_BYTES, i)));
    await t.clock.advance(200);
    expect(t.backing.writes.length).toBe(10);
    expect(t.backing.writesInFlightMax).toBeLessThanOrEqual(4);
    expect(file.file.dirty).toBe(false);
  });

  it('reports its errors at the next flush, once, and loses nothing (I10)', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    t.backing.beforeWrite = async () => {
      throw new FsError('deviceError', { op: 'test' });
    };
    await t.clock.until(file.write(0, pattern(100, 1)));
    await t.clock.advance(6000);
    expect(file.file.dirty).toBe(true);
    t.backing.beforeWrite = async () => undefined;
    await expect(t.clock.until(file.file.flush())).rejects.toMatchObject({ code: 'EIO' });
    await t.clock.until(file.file.flush());
    expect(same(t.backing.bytesOf(file.ino).subarray(0, 100), pattern(100, 1))).toBe(true);
  });

  it('keeps bytes stable while they are written: hits miss, writers wait (S2)', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    const gate = deferred<void>();
    t.backing.beforeWrite = () => gate.promise;
    const flush = file.file.flush();
    await t.clock.settle();
    expect(file.hitWrite(0, pattern(10, 9))).toBeLessThan(0);
    const write = file.write(0, pattern(10, 9));
    await t.clock.advance(100);
    expect(file.hitRead(0, 10)).toEqual(pattern(10, 1));
    gate.resolve();
    await t.clock.until(Promise.all([flush, write]));
    expect(file.file.dirty).toBe(true);
    await t.clock.until(file.file.flush());
    expect(same(t.backing.bytesOf(file.ino).subarray(0, 10), pattern(10, 9))).toBe(true);
  });

  it('never writes what was discarded young', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(3 * PAGE_BYTES, 1)));
    await t.clock.until(file.file.discard(WHOLE));
    await t.clock.advance(20_000);
    expect(t.backing.writes.length).toBe(0);
    expect(t.cache.usage()).toMatchObject({ dirtyPages: 0, pagesUsed: 0 });
  });
});

describe('revoking', () => {
  it('writes every dirty byte first, hits’ included, and leaves no page to read (I2, I3)', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(2 * PAGE_BYTES, 1)));
    expect(file.hitWrite(5, pattern(7, 8))).toBe(7);
    await t.clock.until(t.tokens.revoke(7, WHOLE));
    const expected = pattern(2 * PAGE_BYTES, 1);
    expected.set(pattern(7, 8), 5);
    expect(same(t.backing.bytesOf(file.ino).subarray(0, expected.length), expected)).toBe(true);
    expect(file.hitRead(0, 10)).toBeLessThan(0);
    expect(t.cache.usage().pagesUsed).toBe(0);
  });

  it('to shared keeps clean pages readable, and lets no write hit through', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    await t.clock.until(t.tokens.revoke(7, WHOLE, TokenMode.shared));
    await t.clock.until(file.read(0, 10));
    expect(file.hitRead(0, 10)).toEqual(pattern(10, 1));
    expect(file.hitWrite(0, pattern(1, 1))).toBeLessThan(0);
    expect(t.backing.reads.length).toBe(0);
  });

  it('of part of a page keeps the other sectors, dirty or not', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    await t.clock.until(t.tokens.revoke(7, { start: SECTOR_BYTES, end: 2 * SECTOR_BYTES }));
    file.file.publish();
    expect(file.hitRead(0, 10)).toEqual(pattern(10, 1));
    expect(file.hitRead(SECTOR_BYTES, 10)).toBeLessThan(0);
    t.backing.bytesOf(file.ino).fill(9, SECTOR_BYTES, 2 * SECTOR_BYTES);
    expect((await t.clock.until(file.read(SECTOR_BYTES, 10)))[0]).toBe(9);
  });

  it('waits for a fill in flight, and drops what it brought', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(64 * PAGE_BYTES, 1));
    await t.clock.until(file.read(PAGE_BYTES * 32, 10));
    const gate = deferred<void>();
    t.backing.beforeRead = () => gate.promise;
    file.file.hint('willNeed', { start: 0, end: 4 * PAGE_BYTES });
    let revoked = false;
    const revoke = t.tokens.revoke(7, { start: 0, end: 16 * PAGE_BYTES }).then(() => (revoked = true));
    await t.clock.advance(50);
    expect(revoked).toBe(false);
    gate.resolve();
    await t.clock.until(revoke);
    expect(t.cache.usage().pagesUsed).toBe(1);
  });

  it('I2: a sector that it takes while a merge waits for a spare slot does not come back with that merge', async () => {
    const t = testCache({ settings: { sparePages: 1 } });
    const [file, other] = [7, 8].map((ino) => TestFile.open(t, ino, pattern(PAGE_BYTES, ino))) as [TestFile, TestFile];
    // Pages with one sector: whatever else is read of them goes through a spare slot.
    for (const each of [file, other]) await t.clock.until(each.write(0, pattern(SECTOR_BYTES, 1)));
    const gate = deferred<void>();
    t.backing.beforeRead = () => gate.promise;
    const holdsTheSpare = other.read(SECTOR_BYTES, 10);
    await t.clock.advance(1);
    t.backing.beforeRead = async () => undefined;
    // Pins its own sector, and would bring the others of the page that are held.
    const waits = file.read(SECTOR_BYTES, 10);
    await t.clock.advance(1);
    const fourth = { start: 3 * SECTOR_BYTES, end: 4 * SECTOR_BYTES };
    await t.clock.until(t.tokens.revoke(7, fourth));
    gate.resolve();
    await t.clock.until(Promise.all([holdsTheSpare, waits]));
    // Another node writes it, and this one gets it back.
    t.backing.bytesOf(file.ino).fill(9, fourth.start, fourth.end);
    expect(file.hitRead(fourth.start, 10)).toBeLessThan(0);
    expect([...new Set(await t.clock.until(file.read(fourth.start, SECTOR_BYTES)))]).toEqual([9]);
  });

  it('runs the owner’s hook after hits have ended and before the flush, and lets it change pages', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(PAGE_BYTES, 1)));
    t.cache.setRevokeHook(file.ino, async () => {
      expect(file.hitRead(0, 1)).toBeLessThan(0);
      await file.file.withBytes({ start: 0, end: 4 }, 'exclusive', (view) => {
        view.bytes(0, 4).fill(77);
        view.changed(0, 4);
      });
    });
    await t.clock.until(t.tokens.revoke(7, WHOLE));
    expect([...t.backing.bytesOf(file.ino).subarray(0, 5)]).toEqual([77, 77, 77, 77, pattern(5, 1)[4]]);
  });

  it('tries a failing write-out again until it succeeds: the token is not given up before (I3)', async () => {
    const t = testCache();
    const file = TestFile.open(t, 7);
    await t.clock.until(file.write(0, pattern(10, 1)));
    let failures = 3;
    t.backing.beforeWrite = async () => {
      if (failures-- > 0) throw new FsError('nsdUnavailable', { op: 'test' });
    };
    await t.clock.until(t.tokens.revoke(7, WHOLE));
    expect(same(t.backing.bytesOf(file.ino).subarray(0, 10), pattern(10, 1))).toBe(true);
  });
});
