import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SECTOR_BYTES } from '../common/units.js';
import { crc32c, crc32cJs, crc32cSectors } from './core.js';

const ascii = (text: string) => new Uint8Array(Buffer.from(text, 'latin1'));

describe.each([
  ['native', crc32c],
  ['JavaScript', crc32cJs],
])('CRC-32C, %s', (_, crc) => {
  it('gives the values of the standard (RFC 3720, B.4)', () => {
    expect(crc(ascii('123456789'))).toBe(0xe3069283);
    expect(crc(new Uint8Array(0))).toBe(0);
    expect(crc(new Uint8Array(32))).toBe(0x8a9136aa);
    expect(crc(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
    expect(crc(Uint8Array.from({ length: 32 }, (_byte, i) => i))).toBe(0x46dd794e);
    expect(crc(Uint8Array.from({ length: 32 }, (_byte, i) => 31 - i))).toBe(0x113fdb5c);
  });

  it('goes on from a seed', () => {
    expect(crc(ascii('6789'), crc(ascii('12345')))).toBe(0xe3069283);
  });
});

describe('CRC-32C', () => {
  it('is the same in both languages, at any alignment and from any seed', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 600 }),
        fc.nat({ max: 16 }),
        fc.nat({ max: 2 ** 32 - 1 }),
        (bytes, skip, seed) => {
          const view = bytes.subarray(skip);
          expect(crc32c(view, seed)).toBe(crc32cJs(view, seed));
        },
      ),
    );
  });

  it('is taken of many sectors in one call', () => {
    const bytes = Uint8Array.from({ length: 5 * SECTOR_BYTES + 7 }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
    const out = new Uint32Array(6);
    crc32cSectors(bytes, 7, 4, out, 1);
    const expected = [0, 1, 2, 3].map((i) =>
      crc32cJs(bytes.subarray(7 + i * SECTOR_BYTES, 7 + (i + 1) * SECTOR_BYTES)),
    );
    expect([...out]).toEqual([0, ...expected, 0]);
  });

  it('refuses ranges that leave the bytes or the output', () => {
    const bytes = new Uint8Array(2 * SECTOR_BYTES);
    const out = new Uint32Array(2);
    for (const [offset, count, index] of [
      [0, 3, 0],
      [1, 2, 0],
      [-1, 1, 0],
      [2 * SECTOR_BYTES + 1, 0, 0],
      [0, 2, 1],
      [0, 1, 3],
      [0.5, 1, 0],
    ] as const) {
      expect(() => crc32cSectors(bytes, offset, count, out, index)).toThrow(RangeError);
    }
    expect(() => crc32c('text' as never)).toThrow(TypeError);
    expect(() => crc32c(bytes, -1)).toThrow(RangeError);
    expect(() => crc32cSectors(bytes, 0, 1, bytes as never, 0)).toThrow(TypeError);
  });
});
