import { describe, expect, it } from 'vitest';
import { FsError } from '../common/errors.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { pattern, TestFile, testCache } from './testing.js';

const CONTENT = pattern(PAGE_BYTES, 1);
/** The second sector of the file's only page doesn't verify; `reason` says how a read of it fails. */
function beside(reason: 'checksumMismatch' | 'nsdUnavailable') {
  const t = testCache();
  const file = TestFile.open(t, 7, CONTENT);
  t.tokens.strict = true;
  const state = { reason: reason as typeof reason | null };
  t.backing.beforeRead = async (pieces) => {
    for (const { offsetBytes, lengthBytes } of pieces)
      if (state.reason !== null && offsetBytes < 2 * SECTOR_BYTES && SECTOR_BYTES < offsetBytes + lengthBytes)
        throw new FsError(state.reason, { op: 'test' });
  };
  return { t, file, state };
}

describe('bytes written to a part of a damaged sector', () => {
  // From the first sector into the second, and from there into the third.
  it.each([
    [SECTOR_BYTES - 100, 300, { start: SECTOR_BYTES, end: SECTOR_BYTES + 200 }],
    [2 * SECTOR_BYTES - 50, 60, { start: 2 * SECTOR_BYTES - 50, end: 2 * SECTOR_BYTES }],
    [SECTOR_BYTES + 10, 20, { start: SECTOR_BYTES + 10, end: SECTOR_BYTES + 30 }],
  ])('at %i, %i of them, are told of as lost, and hold nobody up', async (from, length, lost) => {
    const { t, file } = beside('checksumMismatch');
    const bytes = pattern(length, 9);
    await t.clock.until(file.write(from, bytes));
    await t.clock.until(t.tokens.revoke(7, { start: 0, end: PAGE_BYTES }, TokenMode.none));
    expect(t.backing.losses).toEqual([{ ino: file.ino, range: lost, reason: 'checksumMismatch' }]);
    expect(t.cache.usage().dirtyPages).toBe(0);
    // What lies in good sectors is in place, and the bad one is as it was.
    const wanted = Buffer.from(CONTENT);
    for (let i = 0; i < length; i++) if (from + i < lost.start || from + i >= lost.end) wanted[from + i] = bytes[i]!;
    expect([...t.backing.bytesOf(file.ino).subarray(0, PAGE_BYTES)].findIndex((v, i) => v !== wanted[i])).toBe(-1);
    await expect(t.clock.until(file.read(SECTOR_BYTES, 10))).rejects.toMatchObject({ reason: 'checksumMismatch' });
  });

  it('are kept while the sector just can not be read, and written when it can', async () => {
    const { t, file, state } = beside('nsdUnavailable');
    const bytes = pattern(20, 9);
    await t.clock.until(file.write(SECTOR_BYTES + 10, bytes));
    await expect(t.clock.until(file.file.flush())).rejects.toMatchObject({ reason: 'nsdUnavailable' });
    expect(t.backing.losses).toEqual([]);
    state.reason = null;
    await t.clock.until(file.file.flush());
    const there = t.backing.bytesOf(file.ino).subarray(SECTOR_BYTES + 10, SECTOR_BYTES + 30);
    expect(Buffer.compare(there, bytes)).toBe(0);
  });

  it('are whole again when the rest of the sector is written before anybody wants them', async () => {
    const { t, file } = beside('checksumMismatch');
    await t.clock.until(file.write(SECTOR_BYTES + 10, pattern(20, 9)));
    const whole = pattern(SECTOR_BYTES, 5);
    await t.clock.until(file.write(SECTOR_BYTES, whole));
    await t.clock.until(file.file.flush());
    expect(t.backing.losses).toEqual([]);
    const there = t.backing.bytesOf(file.ino).subarray(SECTOR_BYTES, 2 * SECTOR_BYTES);
    expect(Buffer.compare(there, whole)).toBe(0);
  });
});
