import { describe, expect, it } from 'vitest';
import { sleep } from '../common/clock.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { pattern, TestFile, testCache } from './testing.js';

const FIRST = { start: 0, end: SECTOR_BYTES };
const SECOND = { start: SECTOR_BYTES, end: 2 * SECTOR_BYTES };

describe('a revoke of one sector of a page that a busy writer has', () => {
  it.each([
    ['the engine', false, TokenMode.none],
    ['hits', true, TokenMode.none],
    ['the engine, to shared', false, TokenMode.shared],
  ])('ends though another sector is written again and again, by %s', async (_, byHits, keep) => {
    const t = testCache();
    const file = TestFile.open(t, 7, pattern(PAGE_BYTES, 1));
    t.tokens.strict = true;
    t.backing.beforeWrite = () => sleep(t.clock, 1);
    await t.clock.until(file.write(SECOND.start, pattern(100, 2)));
    let over = false;
    let writes = 0;
    const writer = (async () => {
      while (!over && writes < 2000) {
        if (!byHits || file.hitWrite(writes % 100, pattern(50, writes)) < 0)
          await file.write(writes % 100, pattern(50, writes));
        await sleep(t.clock, 0.05);
        writes++;
      }
    })();
    await t.clock.until(file.write(0, pattern(10, 1)));
    const revoke = t.tokens.revoke(7, SECOND, keep).then(() => {
      over = true;
    });
    await t.clock.until(Promise.all([revoke, writer]));
    expect(writes).toBeLessThan(200);
    // What left with the token is in place, what stayed is not lost.
    expect(
      Buffer.compare(t.backing.bytesOf(file.ino).subarray(SECOND.start, SECOND.start + 100), pattern(100, 2)),
    ).toBe(0);
    const now = await t.clock.until(file.read(FIRST.start, 200));
    await t.clock.until(file.file.flush());
    expect(Buffer.compare(t.backing.bytesOf(file.ino).subarray(0, 200), now)).toBe(0);
  });
});
