import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FsError } from '../common/errors.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
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
  return fc.record({ nsd: uuid, extents: fc.constant(list), crcs: words(count), name: windowName, data }).map((r) => ({
    nsd: r.nsd,
    extents: r.extents,
    crcs: r.crcs,
    data: r.data,
    window: r.data === null ? r.name : null,
  }));
});

const decoders: Record<string, (body: Uint8Array) => unknown> = {
  nsdRead: messages.decodeNsdRead,
  'nsdRead reply': (body) => messages.decodeNsdReadReply(body, 2, true),
  nsdWrite: messages.decodeNsdWrite,
  'nsdWrite reply': (body) => messages.decodeNsdWriteReply(body, 3),
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
        const reply = { crcs, versions, data };
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
    const reply = { crcs: new Uint32Array(3), versions: new Uint32Array(3), data: null };
    const body = messages.encodeNsdReadReply(reply);
    expect(() => messages.decodeNsdReadReply(body, 2, false)).toThrow(/3 checksums for 2 sectors/);
    expect(() => messages.decodeNsdReadReply(body, 3, true)).toThrow(/another way/);
    expect(() =>
      messages.decodeNsdWriteReply(messages.encodeNsdWriteReply({ versions: new Uint32Array(1) }), 2),
    ).toThrow();
  });
});
