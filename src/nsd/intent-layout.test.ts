import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { SECTOR_BYTES } from '../common/units.js';
import { checksumsJs } from './checksum-js.js';
import { decodeIntentSector, encodeIntentSector, INTENTS_PER_SECTOR, type Intent } from './intent-layout.js';
import { decide } from './intent-recovery.js';
import { HOLE_FLAG, LOST_WORD, selfChecksum } from './nsd-layout.js';

const NSD = Uint8Array.from({ length: 16 }, (_, i) => i + 1);
const PLACE = { slot: 3, slotCount: 8, dataSectorCount: 2 ** 40 };
const word = fc.nat(2 ** 32 - 1);
const intent: fc.Arbitrary<Intent> = fc.record({
  sector: fc.nat({ max: 2 ** 40 - 1 }),
  oldCrc: word,
  oldWord: word,
  newCrc: word,
  newWord: word,
});

describe('a sector of intents', () => {
  it('is decoded to what was encoded, in its slot of its NSD only', () => {
    const sectors = fc.record({
      number: fc.nat(2 ** 30).map((n) => n * 8 + 3),
      behind: fc.nat(3),
      intents: fc.array(intent, { maxLength: INTENTS_PER_SECTOR }),
    });
    fc.assert(
      fc.property(sectors, ({ number, behind, intents }) => {
        const bytes = new Uint8Array(SECTOR_BYTES);
        const sector = { number, oldest: number + 1 - behind, intents };
        encodeIntentSector(NSD, sector, checksumsJs, bytes, 0);
        expect(decodeIntentSector(NSD, PLACE, checksumsJs, bytes, 0)).toEqual(sector);
        expect(decodeIntentSector(NSD, { ...PLACE, slot: 4 }, checksumsJs, bytes, 0)).toBe(null);
        expect(
          decodeIntentSector(
            NSD.map((byte) => byte ^ 1),
            PLACE,
            checksumsJs,
            bytes,
            0,
          ),
        ).toBe(null);
      }),
      { numRuns: 30 },
    );
  });

  it('of any bytes is refused or lies within the NSD, also under a checksum that fits', () => {
    const hurt = fc.array(fc.record({ at: fc.nat(120), value: fc.nat(255) }), { maxLength: 6 });
    fc.assert(
      fc.property(hurt, fc.boolean(), (changes, sealed) => {
        const bytes = new Uint8Array(SECTOR_BYTES);
        const intents = [{ sector: 7, oldCrc: 1, oldWord: 1, newCrc: 2, newWord: 2 }];
        encodeIntentSector(NSD, { number: 11, oldest: 9, intents }, checksumsJs, bytes, 0);
        for (const { at, value } of changes) bytes[at] = value;
        if (sealed) new DataView(bytes.buffer).setUint32(4, selfChecksum(checksumsJs, bytes, 0, 4), true);
        const found = decodeIntentSector(NSD, { ...PLACE, dataSectorCount: 100 }, checksumsJs, bytes, 0);
        if (found === null) return;
        expect(found.number % 8).toBe(3);
        expect(found.oldest).toBeLessThanOrEqual(found.number + 1);
        for (const { sector } of found.intents) expect(sector).toBeLessThan(100);
      }),
      fuzzRuns(300, 2),
    );
  });
});

describe('an intent that is found at the opening', () => {
  const OLD = { crc: 11, word: 5 };
  const NEW = { crc: 22, word: 6 };
  const of = (old: { crc: number; word: number }): Intent => ({
    sector: 0,
    oldCrc: old.crc,
    oldWord: old.word,
    newCrc: NEW.crc,
    newWord: NEW.word,
  });
  it.each([
    ['the new state when the bytes are the new ones', of(OLD), OLD, NEW.crc, { entry: NEW, torn: false }],
    ['the old state when they are the old ones', of(OLD), NEW, OLD.crc, { entry: OLD, torn: false }],
    ['neither when they are torn: the mismatch stays', of(OLD), OLD, 99, { entry: null, torn: true }],
    [
      'the state that the bytes show where the checksum is lost',
      of(OLD),
      { crc: 0, word: LOST_WORD },
      11,
      { entry: OLD, torn: false },
    ],
    ['nothing when the sector was written since', of(OLD), { crc: 33, word: 7 }, OLD.crc, { entry: null, torn: false }],
    [
      'nothing when it was discarded since',
      of(OLD),
      { crc: 0, word: (6 | HOLE_FLAG) >>> 0 },
      NEW.crc,
      { entry: null, torn: false },
    ],
    [
      'the hole that it was unless the new bytes are there',
      of({ crc: 0, word: (5 | HOLE_FLAG) >>> 0 }),
      { crc: 33, word: 4 },
      33,
      { entry: { crc: 0, word: (5 | HOLE_FLAG) >>> 0 }, torn: false },
    ],
  ])('gives %s', (_, one, entry, found, verdict) => {
    expect(decide([one], entry, found)).toEqual(verdict);
  });

  const MIDDLE = { crc: 77, word: 6 };
  const HOLE = { crc: 0, word: (3 | HOLE_FLAG) >>> 0 };
  const LAST = { crc: 88, word: 7 };
  const chain = (first: { crc: number; word: number }): Intent[] => [
    { sector: 9, oldCrc: first.crc, oldWord: first.word, newCrc: MIDDLE.crc, newWord: MIDDLE.word },
    { sector: 9, oldCrc: MIDDLE.crc, oldWord: MIDDLE.word, newCrc: LAST.crc, newWord: LAST.word },
  ];
  it.each([
    ['the bytes of before both, which are there as no flush had covered the write between', OLD, LAST, OLD.crc, OLD],
    ['the bytes between', OLD, OLD, MIDDLE.crc, MIDDLE],
    ['the newest bytes', HOLE, HOLE, LAST.crc, LAST],
    ['the hole of before both, while that is what is known of it', HOLE, HOLE, 1, HOLE],
  ])('of two writes over the same sector gives %s', (_, first, entry, found, wanted) => {
    expect(decide(chain(first), entry, found)).toEqual({ entry: wanted, torn: false });
  });
  it('does not make a hole of bytes that a flush may have covered, when the write over them is torn', () => {
    expect(decide(chain(HOLE), MIDDLE, 1)).toEqual({ entry: null, torn: true });
  });
});
