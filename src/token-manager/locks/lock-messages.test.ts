import fc from 'fast-check';
import { expect, it } from 'vitest';
import { FsError } from '../../common/errors.js';
import { epoch, incarnation, nodeId } from '../../common/ids.js';
import {
  decodeLockToClient,
  decodeLockToServer,
  encodeLockToClient,
  encodeLockToServer,
  type LockToServerItem,
} from './lock-messages.js';
import { LOCK_END, LockSpace, LockType } from './lock-table.js';

const owner = { node: nodeId(3), incarnation: incarnation(9), id: 12, pid: 4711, isProcess: true };
const header = { epoch: epoch(5), toIncarnation: incarnation(7) };
const at = { start: 3, end: LOCK_END };
const wish = { object: 77, space: LockSpace.ranges, owner, type: LockType.read, at } as const;
const piece = { object: 8, type: LockType.write, start: 0, end: 4 } as const;
const items: LockToServerItem[] = [
  { kind: 'lock', requestId: 1, ...wish, wait: true },
  { kind: 'test', requestId: 2, ...wish },
  {
    kind: 'reduce',
    requestId: 3,
    object: 77,
    space: LockSpace.whole,
    owner,
    at,
    pieces: [{ start: 3, end: 9, type: 1 }],
  },
  { kind: 'cancel', requestId: 4 },
  { kind: 'held', object: 77, space: LockSpace.ranges, lock: { owner, type: LockType.write, start: 1, end: 2 } },
  { kind: 'handover', object: 77 },
  { kind: 'alone', object: 78 },
  { kind: 'claimEnd', epoch: epoch(5), askedEpoch: epoch(4), listFingerprint: 99 },
  { kind: 'report', report: { owner, version: 6, waits: [{ ...piece, opId: 5, sinceMs: 17 }], holds: [piece] } },
  { kind: 'confirmed', checkId: 8, owner, holds: false },
];

it('what is encoded is decoded, item by item, in order', () => {
  const decoded = encodeLockToServer({ ...header, items }).flatMap((body) => decodeLockToServer(body).items);
  expect(decoded).toEqual(items);
});

it('many items travel in several bodies, none over its bound', () => {
  const held = items.filter(({ kind }) => kind === 'held');
  const many = Array.from({ length: 8192 }, () => held[0]!);
  const bodies = encodeLockToServer({ ...header, items: many });
  for (const body of bodies) expect(body.length).toBeLessThanOrEqual(256 * 1024);
  expect(bodies.flatMap((body) => decodeLockToServer(body).items)).toHaveLength(8192);
});

it('what is no message is refused, whole, and never believed', () => {
  const good = encodeLockToServer({ ...header, items })[0]!;
  const client = encodeLockToClient({
    ...header,
    items: [{ kind: 'refused', requestId: 1, blocker: { owner, type: LockType.read, start: 0, end: 1 } }],
  })[0]!;
  const refuses = (decode: (body: Uint8Array) => unknown, body: Uint8Array): void => {
    try {
      decode(body);
    } catch (error) {
      expect(FsError.is(error) && error.reason).toBe('badFrame');
    }
  };
  fc.assert(
    fc.property(fc.nat(good.length - 1), fc.integer({ min: 0, max: 255 }), fc.uint8Array(), (index, byte, noise) => {
      const spoilt = good.slice();
      spoilt[index] = byte;
      refuses(decodeLockToServer, spoilt);
      refuses(decodeLockToServer, good.subarray(0, index));
      refuses(decodeLockToClient, client.subarray(0, index % client.length));
      refuses(decodeLockToServer, noise);
      refuses(decodeLockToClient, noise);
    }),
  );
  expect(() => decodeLockToServer(good.subarray(0, good.length - 1))).toThrow(/EPROTO/);
  expect(() => decodeLockToClient(client.subarray(0, client.length - 1))).toThrow(/EPROTO/);
});
