import { expect, test } from 'vitest';
import { range } from '../common/byte-range.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { groupItems } from './group-items.js';
import { TokenClass, type TokenItem, TokenMode, type TokenObject } from './token.js';
import { type ClientEffect, type ClientEvent, TOKEN_CLIENT_DEFAULTS } from './token-client-events.js';
import { TokenClientMachine } from './token-client-machine.js';
import type { ToClientItem } from './token-messages.js';

const SERVER = { nodeId: nodeId(9), incarnation: incarnation(1) };
const SECTOR = range(0, SECTOR_BYTES);

test('I13: what others told of an inode is taken in before anybody uses it, whose tokens came earlier in the same message included', () => {
  const client = new TokenClientMachine({
    self: { nodeId: nodeId(1), incarnation: incarnation(1) },
    settings: TOKEN_CLIENT_DEFAULTS,
    fired: () => undefined,
    working: () => null,
    writesConcurrently: () => true,
    onDrained: () => undefined,
  });
  const step = (event: ClientEvent): ClientEffect[] => client.step(event, 0);
  const acquire = (opId: number, ...items: [TokenObject, TokenMode][]): ClientEffect[] => {
    const wanted = items.map(
      ([object, mode]): TokenItem => ({
        class: TokenClass.status,
        object,
        mode,
        required: SECTOR,
        desired: SECTOR,
      }),
    );
    const op = { opId, groups: groupItems(wanted), deadlineAtMs: Number.POSITIVE_INFINITY, nowait: false };
    return step({ type: 'acquire', ops: [op] });
  };
  const receive = (...items: ToClientItem[]): ClientEffect[] =>
    step({ type: 'message', from: SERVER, message: { epoch: epoch(1), toIncarnation: incarnation(1), items } });
  const grant = (requestId: number, object: TokenObject, mode: TokenMode): ToClientItem => ({
    kind: 'grant',
    requestId,
    seq: requestId,
    class: TokenClass.status,
    object,
    parts: [{ mode, range: SECTOR }],
  });

  step({ type: 'view', epoch: epoch(1), servers: [SERVER] });
  acquire(1, [5, TokenMode.concurrentWrite]);
  for (const effect of receive(grant(1, 5, TokenMode.concurrentWrite)))
    if (effect.type === 'pinned') effect.pins.release();
  acquire(2, [5, TokenMode.concurrentWrite], [6, TokenMode.shared]);
  acquire(3, [5, TokenMode.exclusive]);
  const note = { offsetBytes: 0, version: 2, sizeBytes: 36, mtimeNs: 0n, ctimeNs: 0n };
  const effects = receive(
    grant(2, 6, TokenMode.shared),
    { kind: 'note', object: 5, note },
    grant(3, 5, TokenMode.exclusive),
  );
  expect(effects.map((effect) => (effect.type === 'pinned' ? `pinned ${effect.opId}` : effect.type))).toEqual([
    'gathered',
    'pinned 2',
    'pinned 3',
  ]);
});
