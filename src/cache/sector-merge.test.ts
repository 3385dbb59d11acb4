import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { completeSectors, forgetBytes, partialMask, readsNeeded, splitsPartial } from './sector-merge.js';
import { EMPTY_CONTENT, isReadable, isSoundContent, withWrite } from './slot-content.js';

const span = fc
  .tuple(fc.nat(PAGE_BYTES - 1), fc.integer({ min: 1, max: PAGE_BYTES }))
  .map(([start, length]) => ({ start, end: Math.min(PAGE_BYTES, start + length) }));
/** What can come of an empty page by writes. */
const content = fc.array(span, { maxLength: 4 }).map((writes) => {
  let now = { ...EMPTY_CONTENT };
  for (const { start, end } of writes) now = withWrite(now, start, end) ?? now;
  return now;
});
const readableBytes = (c: typeof EMPTY_CONTENT): boolean[] =>
  Array.from({ length: PAGE_BYTES / 512 }, (_, i) => isReadable(c, i * 512, (i + 1) * 512));

describe('making sectors of a page whole', () => {
  it('brings exactly the bytes that were neither valid nor in the run, and leaves what was dirty dirty', () => {
    fc.assert(
      fc.property(content, fc.nat(15), (before, mask) => {
        const now = { ...before };
        const put: { start: number; end: number }[] = [];
        completeSectors(now, mask, (start, end) => put.push({ start, end }));
        expect(isSoundContent(now)).toBe(true);
        expect(now.validMask).toBe(before.validMask | mask);
        expect(before.dirtyMask & ~now.dirtyMask).toBe(0);
        for (const { start, end } of put) {
          const inRun = start < before.partialEnd && before.partialStart < end;
          const valid = (before.validMask & (1 << Math.floor(start / SECTOR_BYTES))) !== 0;
          expect(inRun || valid).toBe(false);
        }
        // Every sector that held bytes of the run is dirty, or still in it.
        const run = partialMask(before) & mask;
        expect(run & ~now.dirtyMask).toBe(0);
      }),
    );
  });

  it('needs no read for what the run has, nor behind the end of file', () => {
    const run = { validMask: 0, dirtyMask: 0, partialStart: 0, partialEnd: 100 };
    expect(readsNeeded(run, 100)).toBe(0);
    expect(readsNeeded(run, 101)).toBe(1);
    expect(readsNeeded({ ...run, partialStart: 10 }, 100)).toBe(1);
    expect(readsNeeded({ ...run, partialStart: SECTOR_BYTES + 10, partialEnd: SECTOR_BYTES + 20 }, 5)).toBe(0);
  });
});

describe('forgetting bytes of a page', () => {
  it('takes no byte outside of the range, and no whole sector in it stays', () => {
    fc.assert(
      fc.property(content, span, (before, { start, end }) => {
        fc.pre(!splitsPartial(before, start, end));
        const now = { ...before };
        forgetBytes(now, start, end);
        expect(isSoundContent(now)).toBe(true);
        const [was, is] = [readableBytes(before), readableBytes(now)];
        for (let i = 0; i < was.length; i++) {
          if ((i + 1) * 512 <= start || i * 512 >= end) expect(is[i]).toBe(was[i]);
          const sector = Math.floor((i * 512) / SECTOR_BYTES);
          if (start <= sector * SECTOR_BYTES && (sector + 1) * SECTOR_BYTES <= end) expect(is[i]).toBe(false);
        }
      }),
    );
  });
});
