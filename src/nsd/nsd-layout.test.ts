import fc from 'fast-check';
import { expect, test } from 'vitest';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { SECTOR_BYTES } from '../common/units.js';
import { checksumsJs } from './checksum-js.js';
import {
  DEVICE_SECTORS_MIN,
  decodeChecksumSector,
  decodeHeader,
  ENTRIES_PER_CHECKSUM_SECTOR,
  encodeChecksumSector,
  encodeHeader,
  geometryOfDevice,
  LOST_WORD,
  type NsdHeader,
  newEntries,
} from './nsd-layout.js';

/** Structures of an NSD's own: whatever is on the device, also with a checksum that fits. */
const DEVICE_BYTES = 1 << 26;
const header: NsdHeader = {
  uuid: '954c5c04-8385-44b7-a422-3aef856e66b3',
  fsUuid: null,
  clusterId: 'f32cd3b9-1429-42da-986d-9f18e0193612',
  failureGroup: 1,
  name: 'nsd-1',
  dataSectorCount: 16_000,
  intentSectorCount: 64,
  generation: 1,
  life: 4,
  wholeSince: 2,
  keeper: 'a54c5c04-8385-44b7-a422-3aef856e66b4',
  ended: true,
};
const place = { nsd: Uint8Array.from({ length: 16 }, (_, i) => i + 5), index: 3 };

/** Puts the checksum right at `fieldAt`, as whoever wrote nonsense on purpose would. */
function seal(bytes: Uint8Array, fieldAt: number): void {
  const out = new Uint32Array(1);
  bytes.fill(0, fieldAt, fieldAt + 4);
  checksumsJs.sectors(bytes, 0, 1, out, 0);
  new DataView(bytes.buffer).setUint32(fieldAt, out[0]!, true);
}
/** Where the checksum of an encoded sector is: the only field that moves when another byte does. */
function checksumAt(encode: (into: Uint8Array) => void, changedAt: number): number {
  const [one, two] = [new Uint8Array(SECTOR_BYTES), new Uint8Array(SECTOR_BYTES)];
  encode(one);
  two.set(one);
  two[changedAt] = two[changedAt]! ^ 1;
  for (let at = 0; at < 512; at += 4) {
    const trial = two.slice();
    seal(trial, at);
    trial[changedAt] = one[changedAt]!;
    seal(trial, at);
    if (Buffer.compare(trial, one) === 0) return at;
  }
  throw new Error('no checksum found');
}
const encodeGoodHeader = (into: Uint8Array): void => encodeHeader(header, checksumsJs, into, 0);
const hurt = fc.array(fc.record({ at: fc.nat(400), value: fc.nat(255) }), { minLength: 1, maxLength: 6 });
const sector = fc.uint8Array({ minLength: SECTOR_BYTES, maxLength: SECTOR_BYTES });

test("an NSD's header of any bytes is refused with a reason, or within the device", () => {
  const crcAt = checksumAt(encodeGoodHeader, 150);
  fc.assert(
    fc.property(fc.oneof({ weight: 1, arbitrary: sector }, { weight: 5, arbitrary: hurt }), (input) => {
      const bytes = new Uint8Array(SECTOR_BYTES);
      if (input instanceof Uint8Array) bytes.set(input);
      else {
        encodeGoodHeader(bytes);
        for (const { at, value } of input) bytes[at] = value;
        seal(bytes, crcAt);
      }
      const verdict = decodeHeader(bytes, 0, DEVICE_BYTES, checksumsJs);
      if (!verdict.ok) expect(verdict.why.length).toBeGreaterThan(0);
      else expect(verdict.header.dataSectorCount * SECTOR_BYTES).toBeLessThan(DEVICE_BYTES);
    }),
    fuzzRuns(300, 2),
  );
  const bytes = new Uint8Array(SECTOR_BYTES);
  encodeGoodHeader(bytes);
  expect(decodeHeader(bytes, 0, DEVICE_BYTES, checksumsJs)).toEqual({ ok: true, header });
});

test("an NSD's sector of checksums of any bytes has its pieces refused, or they are of their place", () => {
  fc.assert(
    fc.property(sector, (bytes) => {
      const { entries, lostPieces } = decodeChecksumSector(place, checksumsJs, bytes, 0);
      expect(lostPieces).toBe(8);
      for (let i = 1; i < entries.length; i += 2) expect(entries[i]).toBe(LOST_WORD);
    }),
    fuzzRuns(300, 2),
  );
});

test('a sector of checksums that is torn between blocks of 512 bytes has each of its entries old or new', () => {
  const words = fc.uint32Array({ minLength: 1008, maxLength: 1008 });
  const blocks = fc.array(fc.boolean(), { minLength: 8, maxLength: 8 });
  fc.assert(
    fc.property(words, words, blocks, (before, after, arrived) => {
      const [torn, whole] = [new Uint8Array(SECTOR_BYTES), new Uint8Array(SECTOR_BYTES)];
      encodeChecksumSector(place, before, checksumsJs, torn, 0);
      encodeChecksumSector(place, after, checksumsJs, whole, 0);
      for (const [i, came] of arrived.entries()) if (came) torn.set(whole.subarray(i * 512, i * 512 + 512), i * 512);
      const { entries, lostPieces } = decodeChecksumSector(place, checksumsJs, torn, 0);
      expect(lostPieces).toBe(0);
      for (let i = 0; i < 1008; i++) expect(entries[i]).toBe((arrived[Math.floor(i / 126)] ? after : before)[i]);
    }),
    { numRuns: 50 },
  );
});

test('any changed byte of a sector of checksums loses its piece and no other', () => {
  fc.assert(
    fc.property(fc.nat(SECTOR_BYTES - 1), fc.integer({ min: 1, max: 255 }), (at, mask) => {
      const bytes = new Uint8Array(SECTOR_BYTES);
      encodeChecksumSector(place, newEntries().fill(7), checksumsJs, bytes, 0);
      const good = bytes.slice();
      bytes[at]! ^= mask;
      const { entries, lostPieces } = decodeChecksumSector(place, checksumsJs, bytes, 0);
      expect(lostPieces).toBe(1);
      const piece = Math.floor(at / 512);
      for (let i = 0; i < 1008; i++)
        if (Math.floor(i / 126) !== piece) expect(entries[i]).toBe(7);
        else if (i % 2 === 1) expect(entries[i]).toBe(LOST_WORD);
      bytes[at]! ^= mask;
      expect(bytes).toEqual(good);
    }),
    fuzzRuns(100, 2),
  );
});

test('a sector of checksums of another place or another NSD is not believed', () => {
  const bytes = new Uint8Array(SECTOR_BYTES);
  encodeChecksumSector(place, newEntries(), checksumsJs, bytes, 0);
  expect(decodeChecksumSector(place, checksumsJs, bytes, 0).lostPieces).toBe(0);
  expect(decodeChecksumSector({ ...place, index: 4 }, checksumsJs, bytes, 0).lostPieces).toBe(8);
  const other = Uint8Array.from(place.nsd, (byte) => byte ^ 1);
  expect(decodeChecksumSector({ ...place, nsd: other }, checksumsJs, bytes, 0).lostPieces).toBe(8);
});

test('a device is divided without a sector left over or used twice, whatever its length', () => {
  fc.assert(
    fc.property(fc.integer({ min: DEVICE_SECTORS_MIN, max: 2 ** 40 }), (sectors) => {
      const g = geometryOfDevice(sectors * SECTOR_BYTES + 511);
      expect(g.headerCopy).toBe(sectors - 1);
      expect(g.checksumSectorCount * ENTRIES_PER_CHECKSUM_SECTOR).toBeGreaterThanOrEqual(g.dataSectorCount);
      expect(g.intentStart).toBe(1 + g.checksumSectorCount);
      expect(g.dataStart).toBe(g.intentStart + g.intentSectorCount);
      expect(g.headerCopy).toBe(g.dataStart + g.dataSectorCount);
    }),
    // One sector over behind a full checksum sector's.
    { examples: [[902592942416], [DEVICE_SECTORS_MIN + 505]] },
  );
});
