import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FsError } from '../common/errors.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
import { SECTOR_VERSION_MAX } from '../common/sector-version.js';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { SECTOR_BYTES } from '../common/units.js';
import { DEFAULT_RDMA_SETTINGS } from '../fabric/rdma-settings.js';
import * as messages from '../protocol/nsd-messages.js';
import { decodeNsdMove } from '../protocol/nsd-serving-messages.js';

describe('what travels in messages', () => {
  it('is what a fabric over RDMA would not bind a window for either: above it every byte goes one-sided', () => {
    expect(messages.NSD_INLINE_BYTES_MAX).toBe(DEFAULT_RDMA_SETTINGS.oneSidedAboveBytes);
  });
});

const uuid = fc.uuid();
const extents = (max: number, countMax: number): fc.Arbitrary<messages.SectorExtent[]> =>
  fc.array(
    fc.record({ sector: fc.nat({ max: 2 ** 40 }), sectorCount: fc.integer({ min: 1, max: Math.max(1, countMax) }) }),
    { minLength: 1, maxLength: max },
  );
const words = (length: number): fc.Arbitrary<Uint32Array> => fc.uint32Array({ minLength: length, maxLength: length });
const windowName = fc.uint8Array({ minLength: 1, maxLength: 256 });

const writeRequest: fc.Arbitrary<messages.NsdWriteRequest> = extents(8, 16).chain((list) => {
  const count = messages.sectorsOf(list);
  const inline = count * SECTOR_BYTES <= messages.NSD_INLINE_BYTES_MAX;
  const data = inline
    ? fc.option(fc.uint8Array({ minLength: count * SECTOR_BYTES, maxLength: count * SECTOR_BYTES }))
    : fc.constant(null);
  const parts = { nsd: uuid, extents: fc.constant(list), crcs: words(count), name: windowName, data };
  const versions = fc.option(fc.uint32Array({ minLength: count, maxLength: count, min: 1, max: SECTOR_VERSION_MAX }));
  const said = { logged: fc.boolean(), exposed: fc.boolean(), selfChecking: fc.boolean(), durable: fc.boolean() };
  return fc.record({ ...parts, versions, ...said }).map(({ name, ...r }) => ({
    ...r,
    versions: r.selfChecking ? null : r.versions,
    window: r.data === null ? name : null,
  }));
});

const decoders: Record<string, (body: Uint8Array) => unknown> = {
  nsdRead: messages.decodeNsdRead,
  'nsdRead reply': (body) => messages.decodeNsdReadReply(body, 2, true),
  nsdWrite: messages.decodeNsdWrite,
  'nsdWrite reply': (body) => messages.decodeNsdWriteReply(body, 3),
  nsdVersions: messages.decodeNsdVersions,
  'nsdVersions reply': (body) => messages.decodeNsdVersionsReply(body, 3),
  nsdLife: messages.decodeNsdLife,
  nsdName: messages.decodeNsdName,
  nsdDiscard: messages.decodeNsdDiscard,
  nsdInfo: messages.decodeNsdInfoReply,
  nsdFence: messages.decodeNsdFence,
  'move of an NSD': decodeNsdMove,
};

describe('messages between NSD clients and servers', () => {
  it('decode to what was encoded', () => {
    fc.assert(
      fc.property(writeRequest, (request) => {
        expect(messages.decodeNsdWrite(messages.encodeNsdWrite(request))).toEqual(request);
      }),
      { numRuns: 50 },
    );
    fc.assert(
      fc.property(uuid, extents(20, 100), windowName, (nsd, list, window) => {
        const request = { nsd, extents: list, window };
        expect(messages.decodeNsdRead(messages.encodeNsdRead(request))).toEqual(request);
        expect(messages.decodeNsdDiscard(messages.encodeNsdDiscard({ nsd, extents: list }))).toEqual({
          nsd,
          extents: list,
        });
        expect(messages.decodeNsdVersions(messages.encodeNsdVersions({ nsd, extents: list }))).toEqual({
          nsd,
          extents: list,
        });
      }),
    );
    fc.assert(
      fc.property(fc.nat(65535), fc.maxSafeNat(), fc.maxSafeNat(), (node, upTo, at) => {
        const order = { node: nodeId(node), upTo: incarnation(upTo), epoch: epoch(at) };
        expect(messages.decodeNsdFence(messages.encodeNsdFence(order))).toEqual(order);
      }),
    );
    fc.assert(
      fc.property(words(2), words(2), fc.uint8Array({ minLength: 8192, maxLength: 8192 }), (crcs, versions, data) => {
        const reply = { crcs, versions, data, life: 7, wholeSince: 5 };
        expect(messages.decodeNsdReadReply(messages.encodeNsdReadReply(reply), 2, true)).toEqual(reply);
        const bare = { ...reply, data: null };
        expect(messages.decodeNsdReadReply(messages.encodeNsdReadReply(bare), 2, false)).toEqual(bare);
      }),
      { numRuns: 20 },
    );
  });

  for (const [name, decode] of Object.entries(decoders)) {
    it(`are refused with badFrame, never anything else, when a ${name} is any bytes`, () => {
      const check = (body: Uint8Array): void => {
        try {
          decode(body);
        } catch (error) {
          if (!FsError.is(error) || error.reason !== 'badFrame') throw error;
        }
      };
      fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), check), fuzzRuns(500, Object.keys(decoders).length * 2));
    });
  }

  it('are refused when a byte of a good one is changed into nonsense, or it is cut or extended', () => {
    fc.assert(
      fc.property(writeRequest, fc.nat(), fc.nat(255), fc.nat(), (request, at, value, cutAt) => {
        const good = messages.encodeNsdWrite(request).slice();
        expect(() => messages.decodeNsdWrite(good.subarray(0, cutAt % good.length))).toThrow(FsError);
        expect(() => messages.decodeNsdWrite(Uint8Array.from([...good, 0]))).toThrow(FsError);
        good[at % good.length] = value;
        try {
          const decoded = messages.decodeNsdWrite(good);
          const count = messages.sectorsOf(decoded.extents);
          expect(decoded.crcs.length).toBe(count);
          if (decoded.versions !== null) expect(decoded.versions.length).toBe(count);
          expect(decoded.data === null).toBe(decoded.window !== null);
          if (decoded.data !== null) expect(decoded.data.length).toBe(count * SECTOR_BYTES);
        } catch (error) {
          if (!FsError.is(error)) throw error;
        }
      }),
      fuzzRuns(60, 2),
    );
  });

  it('are refused when a reply is about another number of sectors than was asked for', () => {
    const reply = { crcs: new Uint32Array(3), versions: new Uint32Array(3), data: null, life: 2, wholeSince: 2 };
    const body = messages.encodeNsdReadReply(reply);
    expect(() => messages.decodeNsdReadReply(body, 2, false)).toThrow(/3 checksums for 2 sectors/);
    expect(() => messages.decodeNsdReadReply(body, 3, true)).toThrow(/another way/);
    expect(() =>
      messages.decodeNsdWriteReply(
        messages.encodeNsdWriteReply({ versions: new Uint32Array(1), life: 1, wholeSince: 1 }),
        2,
      ),
    ).toThrow();
    const words = messages.encodeNsdVersionsReply({ words: Uint32Array.of(0, 0xffffffff) });
    expect(messages.decodeNsdVersionsReply(words, 2).words).toEqual(Uint32Array.of(0, 0xffffffff));
    expect(() => messages.decodeNsdVersionsReply(words, 3)).toThrow(/2 versions for 3 sectors/);
  });

  it('are refused when a write names versions that no write has, too few of them, or says what nobody knows', () => {
    const write = (versions: Uint32Array): Uint8Array =>
      messages.encodeNsdWrite({
        nsd: '11111111-2222-4333-8444-555555555555',
        extents: [{ sector: 3, sectorCount: 2 }],
        crcs: new Uint32Array(2),
        versions,
        logged: true,
        exposed: false,
        selfChecking: false,
        durable: false,
        window: new Uint8Array([1]),
        data: null,
      });
    expect(messages.decodeNsdWrite(write(Uint32Array.of(1, SECTOR_VERSION_MAX))).logged).toBe(true);
    for (const bad of [0, SECTOR_VERSION_MAX + 1, 0x80000001])
      expect(() => messages.decodeNsdWrite(write(Uint32Array.of(1, bad)))).toThrow(/no write has/);
    expect(() => messages.decodeNsdWrite(write(Uint32Array.of(1)))).toThrow(/1 versions for 2 sectors/);
    const flagsAt = 16 + 4 + 16 + 4 + 8;
    const body = write(Uint32Array.of(1, 2)).slice();
    expect(body[flagsAt]).toBe(3);
    // Versions of what checks itself, and a flag that there isn't.
    for (const flags of [7, 35]) {
      body[flagsAt] = flags;
      expect(() => messages.decodeNsdWrite(body)).toThrow(new RegExp(`flags ${flags}`));
    }
  });

  it('ask for the versions of no more sectors than a reply may name', () => {
    const ask = (sectorCount: number): Uint8Array =>
      messages.encodeNsdVersions({
        nsd: '11111111-2222-4333-8444-555555555555',
        extents: [{ sector: 0, sectorCount }],
      });
    expect(messages.decodeNsdVersions(ask(messages.NSD_VERSIONS_SECTORS_MAX)).extents).toHaveLength(1);
    expect(() => messages.decodeNsdVersions(ask(messages.NSD_VERSIONS_SECTORS_MAX + 1))).toThrow(/more than/);
  });
});
