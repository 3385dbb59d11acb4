import fc from 'fast-check';
import { expect, it } from 'vitest';
import { isSectorVersion, isVersionBefore, nextSectorVersion, SECTOR_VERSION_MAX } from './sector-version.js';

const version = fc.integer({ min: 1, max: SECTOR_VERSION_MAX });

it('a version comes before its successors, across the wrap too, and never after itself', () => {
  expect(nextSectorVersion(SECTOR_VERSION_MAX)).toBe(1);
  expect(isVersionBefore(SECTOR_VERSION_MAX, 1)).toBe(true);
  expect(isVersionBefore(1, SECTOR_VERSION_MAX)).toBe(false);
  fc.assert(
    fc.property(version, fc.integer({ min: 1, max: SECTOR_VERSION_MAX / 2 - 1 }), (from, steps) => {
      const to = ((from - 1 + steps) % SECTOR_VERSION_MAX) + 1;
      expect(isVersionBefore(from, to)).toBe(true);
      expect(isVersionBefore(to, from)).toBe(false);
      expect(isVersionBefore(from, from)).toBe(false);
      expect(isVersionBefore(from, nextSectorVersion(from))).toBe(true);
    }),
  );
});

it('never written comes before every version', () => {
  fc.assert(
    fc.property(version, (one) => {
      expect(isVersionBefore(0, one)).toBe(true);
      expect(isVersionBefore(one, 0)).toBe(false);
    }),
  );
  expect([0, 1, 1.5, -1, SECTOR_VERSION_MAX, SECTOR_VERSION_MAX + 1].map(isSectorVersion)).toEqual([
    false,
    true,
    false,
    false,
    true,
    false,
  ]);
});
