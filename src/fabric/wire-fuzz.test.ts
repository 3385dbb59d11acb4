import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FsError, REASONS } from '../common/errors.js';
import { incarnation, nodeId } from '../common/ids.js';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { Handshake, type HandshakeStep } from './handshake.js';
import { HANDSHAKE_RECORD_BYTES } from './link.js';
import {
  encodeGreeting,
  encodeName,
  type Greeting,
  judgeGreeting,
  judgeUnit,
  NAME_RUNS_MAX,
  RDMA_VERSION,
  RECEIVES_MAX,
  RECEIVES_MIN,
  readKeys,
  readRejection,
  UNIT_BYTES_MAX,
  UNIT_BYTES_MIN,
  UNIT_HEADER_BYTES,
  UnitKind,
  writeUnitHeader,
} from './rdma-wire.js';
import { decodeError, encodeError } from './wire-errors.js';

/** What comes before a session is there, and what comes beside its frames: whoever sends it has proved nothing yet. */
const anyBytes = (maxLength: number): fc.Arbitrary<Uint8Array> => fc.uint8Array({ maxLength });
const damage = fc.array(fc.record({ at: fc.nat(), value: fc.nat(255) }), { maxLength: 4 });
const damaged = (good: Uint8Array, hurt: readonly { at: number; value: number }[]): Uint8Array => {
  const bytes = good.slice();
  for (const { at, value } of hurt) bytes[at % bytes.length] = value;
  return bytes;
};

const side = (role: 'dialer' | 'acceptor'): Handshake =>
  new Handshake({
    role,
    self: { nodeId: nodeId(role === 'dialer' ? 1 : 2), incarnation: incarnation(1) },
    clusterId: 'fuzz',
    clusterKey: Buffer.from('the key of this test cluster'),
    instance: new Uint8Array(8).fill(role === 'dialer' ? 1 : 2),
    randomBytes: (count) => new Uint8Array(count).fill(role === 'dialer' ? 3 : 4),
    admit: () => null,
  });

test('a handshake with records of any bytes, or good ones damaged, is never done over a hello that was changed', () => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof({ weight: 3, arbitrary: damage }, fc.uint8Array({ maxLength: 2 * HANDSHAKE_RECORD_BYTES })), {
        minLength: 5,
        maxLength: 5,
      }),
      (hurts) => {
        const sides = [side('dialer'), side('acceptor')] as const;
        const queue: { to: 0 | 1; record: Uint8Array }[] = sides[0].start().map((record) => ({ to: 1, record }));
        const over = [false, false];
        const done = [false, false];
        let changed = false;
        let helloChanged = false;
        for (let turn = 0; queue.length > 0; turn++) {
          const { to, record } = queue.shift()!;
          const hurt = hurts[turn] ?? [];
          const arrived = hurt instanceof Uint8Array ? hurt : damaged(record, hurt);
          changed ||= Buffer.compare(arrived, record) !== 0;
          // The first two are the hellos, which the proofs cover.
          if (turn === 1) helloChanged = changed;
          const step: HandshakeStep = sides[to].onRecord(arrived);
          over[to] ||= step.is !== 'going';
          done[to] ||= step.is === 'done';
          for (const send of step.send) if (!over[1 - to]) queue.push({ to: (1 - to) as 0 | 1, record: send });
        }
        if (!changed) expect(done).toEqual([true, true]);
        if (helloChanged) expect(done).toEqual([false, false]);
      },
    ),
    fuzzRuns(300, 4),
  );
});

const cluster = new Uint8Array(8).fill(9);
const good: Greeting = {
  version: RDMA_VERSION,
  cluster,
  nodeId: 5,
  incarnation: 1,
  linkNumber: 7,
  receives: 64,
  unitBytesMax: 4096,
  windows: true,
  nonce: new Uint8Array(16).fill(1),
};

test('private data of any bytes are rejected, or within their limits', () => {
  fc.assert(
    fc.property(fc.oneof(anyBytes(200), damage), (input) => {
      const bytes = input instanceof Uint8Array ? input : damaged(encodeGreeting(good), input);
      const judged = judgeGreeting(bytes, cluster, RDMA_VERSION);
      if (typeof judged !== 'number') {
        expect(judged.nodeId >= 1 && judged.nodeId <= 0xffff && judged.incarnation >= 1).toBe(true);
        expect(judged.receives >= RECEIVES_MIN && judged.receives <= RECEIVES_MAX).toBe(true);
        expect(judged.unitBytesMax >= UNIT_BYTES_MIN && judged.unitBytesMax <= UNIT_BYTES_MAX).toBe(true);
      }
      const rejection = readRejection(bytes);
      expect(rejection === null || (rejection >= 1 && rejection <= 5)).toBe(true);
    }),
    fuzzRuns(500, 4),
  );
});

test("headers of units and windows' names of any bytes are refused, or say what arrived", () => {
  const name = encodeName(new Uint8Array(16), { linkNumber: 3, runs: [{ address: 4096, lengthBytes: 4096, key: 8 }] });
  fc.assert(
    fc.property(fc.oneof(anyBytes(1200), damage), (input) => {
      const bytes = input instanceof Uint8Array ? input : damaged(name, input);
      const keys = readKeys(bytes);
      if (keys !== null) expect(keys.runs.length >= 1 && keys.runs.length <= NAME_RUNS_MAX).toBe(true);
      const unit = new Uint8Array(Math.max(UNIT_HEADER_BYTES, bytes.length));
      const view = new DataView(unit.buffer);
      if (input instanceof Uint8Array) unit.set(bytes);
      else {
        writeUnitHeader(view, 0, UnitKind.frames, 0, 1, 64);
        unit.set(damaged(unit, input));
      }
      const judged = judgeUnit(view, 0, input instanceof Uint8Array ? bytes.length : UNIT_HEADER_BYTES);
      if (judged === null) expect(view.getUint8(3)).toBeGreaterThan(0);
    }),
    fuzzRuns(500, 4),
  );
});

test("a peer's error of any bytes is an error that can be shown", () => {
  const text = fc.oneof(fc.string({ maxLength: 20 }), fc.string({ minLength: 5000, maxLength: 6000 }));
  const value = fc.oneof(text, fc.jsonValue(), fc.constant(undefined));
  const record = fc.record({ reason: fc.oneof(fc.nat(900), value), op: value, object: value, detail: value });
  fc.assert(
    fc.property(fc.oneof(anyBytes(200), fc.json().map(Buffer.from), record), (input) => {
      const body = input instanceof Uint8Array ? input : Buffer.from(JSON.stringify(input));
      const error = decodeError(body);
      expect(FsError.is(error) && error.reason in REASONS).toBe(true);
      for (const shown of [error.object, error.detail]) expect(['string', 'undefined']).toContain(typeof shown);
      expect(error.message.length).toBeLessThan(3 * 4096 + 200);
    }),
    fuzzRuns(500, 4),
  );
  const sent = new FsError('noSpace', { op: 'write', object: 'inode 7', detail: 'it is full' });
  expect(decodeError(encodeError(sent))).toMatchObject({ reason: 'noSpace', op: 'write', object: 'inode 7' });
});
