import fc from 'fast-check';
import { expect, test } from 'vitest';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { SECTOR_BYTES } from '../common/units.js';
import { checksumsJs } from './checksum-js.js';
import {
  decodeChecksumSector,
  decodeHeader,
  encodeChecksumSector,
  encodeHeader,
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
  generation: 1,
};
const uuidPrefix = new Uint8Array(8).fill(5);

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
const encodeGoodEntries = (into: Uint8Array): void =>
  encodeChecksumSector({ uuidPrefix, index: 3, generation: 1, entries: newEntries() }, checksumsJs, into, 0);

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

test("an NSD's sector of checksums of any bytes is refused, or is of its place", () => {
  const crcAt = checksumAt(encodeGoodEntries, 100);
  fc.assert(
    fc.property(fc.oneof({ weight: 1, arbitrary: sector }, { weight: 5, arbitrary: hurt }), (input) => {
      const bytes = new Uint8Array(SECTOR_BYTES);
      if (input instanceof Uint8Array) bytes.set(input);
      else {
        encodeGoodEntries(bytes);
        for (const { at, value } of input) bytes[at] = value;
        seal(bytes, crcAt);
      }
      const decoded = decodeChecksumSector(bytes, 0, uuidPrefix, 3, checksumsJs);
      if (decoded === null) return;
      expect(decoded.generation).toBeGreaterThanOrEqual(1);
      expect(bytes.subarray(8, 16)).toEqual(uuidPrefix);
    }),
    fuzzRuns(300, 2),
  );
});
