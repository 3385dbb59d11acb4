import { expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { inodeNumber } from '../common/ids.js';
import { PAGE_BYTES } from '../common/units.js';
import { pattern, TestFile, testCache } from './testing.js';

const PAGES_PER_TRANSFER = 64;

test('small files go out together, a block at most in one write', async () => {
  const t = testCache({ pages: 1024, entries: 128, fileBytes: 2 * PAGE_BYTES });
  const files = Array.from({ length: 100 }, (_, index) => TestFile.open(t, 10 + index));
  for (const file of files) await t.clock.until(file.write(0, pattern(2 * PAGE_BYTES, file.ino)));
  await t.clock.until(t.cache.flushTogether(files.map(({ ino }) => inodeNumber(ino))));
  expect(t.cache.usage().dirtyPages).toBe(0);
  expect(t.backing.together.reduce((sum, count) => sum + count, 0)).toBe(100);
  expect(Math.max(...t.backing.together)).toBe(PAGES_PER_TRANSFER / 2);
  expect(t.backing.together.length).toBe(4);
  for (const file of files)
    expect(
      Buffer.compare(t.backing.bytesOf(file.ino).subarray(0, 2 * PAGE_BYTES), pattern(2 * PAGE_BYTES, file.ino)),
    ).toBe(0);
});

test('one that fails is dirty still, is told of at its next flush, and is written then; the others are clean', async () => {
  const t = testCache();
  const files = [1, 2, 3].map((ino) => TestFile.open(t, ino));
  for (const file of files) await t.clock.until(file.write(0, pattern(PAGE_BYTES, file.ino)));
  let calls = 0;
  t.backing.beforeWrite = async () => {
    if (++calls === 2) throw new FsError('deviceError', { op: 'test' });
  };
  await t.clock.until(t.cache.flushTogether(files.map(({ ino }) => inodeNumber(ino))));
  expect(t.backing.together).toEqual([3]);
  expect(files.map(({ file }) => file.dirty)).toEqual([false, true, false]);
  await t.clock.until(files[1]!.file.flush());
  expect(t.cache.usage().dirtyPages).toBe(0);
  expect(Buffer.compare(t.backing.bytesOf(files[1]!.ino).subarray(0, PAGE_BYTES), pattern(PAGE_BYTES, 2))).toBe(0);
});

test('I10: what failed in the background beside others that did not is told to whoever flushes that file', async () => {
  const t = testCache();
  const files = [1, 2, 3].map((ino) => TestFile.open(t, ino));
  for (const file of files) await t.clock.until(file.write(0, pattern(PAGE_BYTES, file.ino)));
  let calls = 0;
  t.backing.beforeWrite = async () => {
    if (++calls === 2) throw new FsError('deviceError', { op: 'test' });
  };
  await t.clock.advance(6_000);
  expect(t.backing.together[0]).toBe(3);
  await t.clock.until(files[0]!.file.flush());
  await expect(t.clock.until(files[1]!.file.flush())).rejects.toMatchObject({ code: 'EIO' });
  await t.clock.until(files[1]!.file.flush());
  expect(t.cache.usage().dirtyPages).toBe(0);
});

test('S2: pages are stable while others of the same write are still on their way', async () => {
  const t = testCache();
  const files = [1, 2].map((ino) => TestFile.open(t, ino));
  for (const file of files) await t.clock.until(file.write(0, pattern(PAGE_BYTES, file.ino)));
  const flushed = t.cache.flushTogether(files.map(({ ino }) => inodeNumber(ino)));
  // FakeBacking compares the bytes before and after each write.
  const written = files[0]!.write(0, pattern(PAGE_BYTES, 99));
  await t.clock.until(Promise.all([flushed, written]));
  await t.clock.until(files[0]!.file.flush());
  expect(Buffer.compare(t.backing.bytesOf(files[0]!.ino).subarray(0, PAGE_BYTES), pattern(PAGE_BYTES, 99))).toBe(0);
});
