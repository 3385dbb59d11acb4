import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type ByteRange, range } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { RANGE_END } from '../common/units.js';
import { MESSAGE_BODY_BYTES_MAX } from '../fabric/fabric.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import {
  decodeExpel,
  decodeListReply,
  decodeListRequest,
  decodeToClient,
  decodeToServer,
  encodeExpel,
  encodeListReply,
  encodeListRequest,
  encodeToClient,
  encodeToServer,
  type RequestPart,
  type ToClientItem,
  type ToServerItem,
} from './token-messages.js';

const id = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const object = fc.integer({ min: 0, max: 2 ** 51 - 1 });
const tokenClass = fc.constantFrom(...Object.values(TokenClass));
const mode = fc.constantFrom(TokenMode.shared, TokenMode.concurrentWrite, TokenMode.exclusive);
const keep = fc.constantFrom(...Object.values(TokenMode));
const bytes: fc.Arbitrary<ByteRange> = fc
  .tuple(fc.integer({ min: 0, max: RANGE_END - 1 }), fc.integer({ min: 1, max: 2 ** 40 }))
  .map(([start, length]) => range(start, Math.min(RANGE_END, start + length)));
const pair = fc.tuple(bytes, bytes).map(([a, b]) => ({
  required: a,
  desired: range(Math.min(a.start, b.start), Math.max(a.end, b.end)),
}));
const parts: fc.Arbitrary<RequestPart[]> = fc
  .array(fc.record({ mode, gap: fc.nat(1000), length: fc.integer({ min: 1, max: 1000 }) }), {
    minLength: 1,
    maxLength: 32,
  })
  .map((list) => {
    let at = 0;
    return list.map((p) => {
      const required = range(at + p.gap, at + p.gap + p.length);
      at = required.end;
      return { mode: p.mode, required, desired: range(0, RANGE_END) };
    });
  });
const statement = { class: tokenClass, object, asOfSeq: id, mode: keep, ranges: fc.array(bytes, { maxLength: 64 }) };
const anEpoch = id.map(epoch);
const u32 = fc.nat(0xffffffff);

const time = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const note = fc.record({
  kind: fc.constant('note' as const),
  object,
  note: fc.record({
    offsetBytes: fc.nat(4095).map((index) => index * 4096),
    version: fc.nat(2 ** 31 - 2),
    sizeBytes: fc.integer({ min: 0, max: RANGE_END }),
    mtimeNs: time,
    ctimeNs: time,
  }),
});
const toServer = fc.oneof(
  fc.record({
    kind: fc.constant('request' as const),
    requestId: id,
    class: tokenClass,
    object,
    parts,
    nowait: fc.boolean(),
    prompt: fc.boolean(),
    deadlineMs: u32,
  }),
  fc.record({ kind: fc.constant('cancel' as const), requestId: id }),
  fc.record({ kind: fc.constant('release' as const), ...statement }),
  fc.record({ kind: fc.constant('answer' as const), revokeId: id, ...statement }),
  fc.record({ kind: fc.constant('claim' as const), class: tokenClass, object, mode, range: bytes, seq: id }),
  fc.record({ kind: fc.constant('claimEnd' as const), epoch: anEpoch, askedEpoch: anEpoch, listFingerprint: u32 }),
  note,
) as fc.Arbitrary<ToServerItem>;

const blocker = fc.record({ node: fc.nat(65535).map(nodeId), mode: keep, range: bytes, sinceMs: u32 });
const toClient = fc.oneof(
  fc.record({
    kind: fc.constant('grant' as const),
    requestId: id,
    seq: id,
    class: tokenClass,
    object,
    parts: fc.array(fc.record({ mode, range: bytes }), { minLength: 1, maxLength: 32 }),
  }),
  fc
    .tuple(
      fc.record({
        revokeId: id,
        class: tokenClass,
        object,
        keep,
        prompt: fc.boolean(),
        requester: fc.nat(65535).map(nodeId),
        upToSeq: id,
      }),
      pair,
    )
    .map(([item, ranges]) => ({ kind: 'revoke' as const, ...item, ...ranges })),
  fc.record({
    kind: fc.constant('refusal' as const),
    requestId: id,
    reason: fc.constantFrom('tokenDeadline' as const, 'staleEpoch' as const),
    epoch: anEpoch,
    blockers: fc.array(blocker, { maxLength: 16 }),
  }),
  fc.record({ kind: fc.constant('ask' as const), epoch: anEpoch }),
  fc.record({
    kind: fc.constant('contradiction' as const),
    class: tokenClass,
    object,
    mode,
    range: bytes,
    other: fc.nat(65535).map(nodeId),
  }),
  note,
) as fc.Arbitrary<ToClientItem>;
const header = { epoch: epoch(3), toIncarnation: incarnation(9) };

describe('token messages', () => {
  it('what is encoded is decoded, item by item, in order', () => {
    fc.assert(
      fc.property(fc.array(toServer, { maxLength: 20 }), id, (items, seenSeq) => {
        const sent = { ...header, seenSeq, items };
        expect(encodeToServer(sent).map(decodeToServer)).toEqual([sent]);
      }),
    );
    fc.assert(
      fc.property(fc.array(toClient, { maxLength: 20 }), (items) => {
        const sent = { ...header, items };
        expect(encodeToClient(sent).map(decodeToClient)).toEqual([sent]);
      }),
    );
  });

  it('more items than a body holds travel in several bodies, none too long, in order', () => {
    const claim = { kind: 'claim', class: 3, mode: 3, range: range(0, 4096), seq: 0 } as const;
    const items = Array.from({ length: 20_000 }, (_, i) => ({ ...claim, object: i }));
    const bodies = encodeToServer({ ...header, seenSeq: 1, items });
    expect(bodies.length).toBeGreaterThan(1);
    for (const body of bodies) expect(body.length).toBeLessThanOrEqual(MESSAGE_BODY_BYTES_MAX);
    expect(bodies.flatMap((body) => decodeToServer(body).items)).toEqual(items);
  });

  it('whatever arrives is decoded completely or refused as badFrame', () => {
    const decoders = [decodeToServer, decodeToClient, decodeListRequest, decodeListReply, decodeExpel];
    const refusesOrDecodes = (body: Uint8Array): void => {
      for (const decode of decoders) {
        try {
          decode(body);
        } catch (error) {
          if (!FsError.is(error) || error.reason !== 'badFrame') throw error;
        }
      }
    };
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), refusesOrDecodes), fuzzRuns(2000, 2));
    // Nearly right ones: a byte changed, an end cut off.
    const damaged = fc.tuple(fc.array(toServer, { minLength: 1, maxLength: 4 }), fc.nat(), fc.nat(255), fc.nat(20));
    fc.assert(
      fc.property(damaged, ([items, at, value, cut]) => {
        const body = encodeToServer({ ...header, seenSeq: 1, items })[0]!.slice();
        body[at % body.length] = value;
        refusesOrDecodes(body.subarray(0, body.length - (cut % body.length)));
      }),
      fuzzRuns(1000, 2),
    );
  });

  it('tools: lists and fates of nodes survive the wire', () => {
    const by = { nodeId: nodeId(4), incarnation: incarnation(2) };
    const held = [
      { by, class: TokenClass.data, object: 7, mode: TokenMode.shared, range: range(0, RANGE_END), seq: 12 },
    ];
    expect(decodeListReply(encodeListReply(held))).toEqual(held);
    expect(decodeListRequest(encodeListRequest(10, 1e9))).toEqual({ skip: 10, limit: 4096 });
    for (const type of ['expelled', 'holdClosed', 'released'] as const) {
      expect(decodeExpel(encodeExpel({ type, ...by }))).toEqual({ type, ...by });
    }
  });
});
