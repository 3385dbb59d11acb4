import { describe, expect, it } from 'vitest';
import { range } from '../common/byte-range.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { conflicts, covers, join, keepBeside, modeExists } from './compatibility.js';
import { listFingerprint } from './placement.js';
import { TokenClass, TokenMode } from './token.js';
import type { ToServerItem } from './token-messages.js';
import { type ServerEffect, TOKEN_SERVER_DEFAULTS } from './token-server-events.js';
import { TokenServerMachine } from './token-server-machine.js';

const { none, shared, concurrentWrite, exclusive } = TokenMode;

/** docs/token-protocol.md, Compatibility. */
const MATRIX: [TokenMode, TokenMode, 'together' | 'conflict', TokenMode][] = [
  [none, exclusive, 'together', exclusive],
  [shared, none, 'together', none],
  [shared, shared, 'together', shared],
  [shared, concurrentWrite, 'conflict', shared],
  [shared, exclusive, 'conflict', shared],
  [concurrentWrite, shared, 'conflict', none],
  [concurrentWrite, concurrentWrite, 'together', concurrentWrite],
  [concurrentWrite, exclusive, 'conflict', concurrentWrite],
  [exclusive, shared, 'conflict', none],
  [exclusive, concurrentWrite, 'conflict', none],
  [exclusive, exclusive, 'conflict', none],
];

describe('modes', () => {
  it.each(MATRIX)('wanted %i beside held %i: %s', (wanted, held, verdict) => {
    expect(conflicts(wanted, held)).toBe(verdict === 'conflict');
    expect(conflicts(held, wanted)).toBe(verdict === 'conflict');
  });
  it('a holder keeps nothing that conflicts with what is wanted', () => {
    for (const [wanted, held] of MATRIX) expect(conflicts(wanted, keepBeside(wanted, held))).toBe(false);
    expect(keepBeside(shared, exclusive)).toBe(shared);
    expect(keepBeside(exclusive, shared)).toBe(none);
    // Nor what it doesn't hold.
    expect(keepBeside(shared, concurrentWrite)).toBe(none);
    expect(keepBeside(concurrentWrite, exclusive)).toBe(concurrentWrite);
  });
  it('exclusive covers every mode, others only themselves; two modes on one node join to one that covers both', () => {
    for (const a of [none, shared, concurrentWrite, exclusive]) {
      for (const b of [none, shared, concurrentWrite, exclusive]) {
        expect(covers(join(a, b), a) && covers(join(a, b), b)).toBe(true);
      }
    }
    expect(join(shared, concurrentWrite)).toBe(exclusive);
  });
  it('concurrent-write exists for status and open only', () => {
    const has = Object.values(TokenClass).filter((c) => modeExists(c, concurrentWrite));
    expect(has).toEqual([TokenClass.status, TokenClass.open]);
  });
});

describe('class x mode x overlap, as the server grants it', () => {
  const SERVER = { nodeId: nodeId(1), incarnation: incarnation(1) };
  const [A, B] = [2, 3].map((n) => ({ nodeId: nodeId(n), incarnation: incarnation(1) }));
  const message = (items: ToServerItem[]) => ({
    epoch: epoch(1),
    toIncarnation: SERVER.incarnation,
    seenSeq: 0,
    items,
  });

  function settled(): TokenServerMachine {
    const server = new TokenServerMachine({ self: SERVER, settings: TOKEN_SERVER_DEFAULTS, fired: () => undefined });
    server.step({ type: 'view', view: { epoch: epoch(1), servers: [SERVER], nodes: [A!, B!] } }, 0);
    const fingerprint = listFingerprint([SERVER]);
    for (const from of [A!, B!]) {
      const end = { kind: 'claimEnd', epoch: epoch(1), askedEpoch: epoch(1), listFingerprint: fingerprint } as const;
      server.step({ type: 'message', from, message: message([end]) }, 0);
    }
    return server;
  }
  const request = (tokenClass: TokenClass, mode: TokenMode, from: number, to: number): ToServerItem => {
    const required = range(from * SECTOR_BYTES, to * SECTOR_BYTES);
    const parts = [{ mode, required, desired: required }];
    return {
      kind: 'request',
      requestId: 1,
      class: tokenClass,
      object: 5,
      parts,
      nowait: true,
      prompt: false,
      deadlineMs: 0,
    };
  };
  const outcome = (effects: ServerEffect[]): string => {
    const [effect] = effects;
    const item = effect?.type === 'send' ? effect.message.items[0] : undefined;
    return item?.kind === 'refusal' ? item.reason : (item?.kind ?? 'nothing');
  };

  for (const [className, tokenClass] of Object.entries(TokenClass)) {
    for (const held of [shared, exclusive]) {
      for (const wanted of [shared, exclusive]) {
        for (const [overlap, from, to] of [
          ['the same', 0, 4],
          ['an inner', 1, 2],
          ['an overlapping', 3, 9],
          ['a touching', 4, 5],
          ['a disjoint', 8, 9],
        ] as const) {
          const conflict = conflicts(wanted, held) && from < 4;
          it(`${className}: mode ${wanted} of ${overlap} range beside mode ${held} is ${conflict ? 'refused' : 'granted'}`, () => {
            const server = settled();
            server.step({ type: 'message', from: A!, message: message([request(tokenClass, held, 0, 4)]) }, 0);
            const effects = server.step(
              { type: 'message', from: B!, message: message([request(tokenClass, wanted, from, to)]) },
              0,
            );
            expect(outcome(effects)).toBe(conflict ? 'tokenRefused' : 'grant');
          });
        }
      }
    }
  }

  it('concurrent-write exists for status and open tokens only', () => {
    const server = settled();
    const ask = (tokenClass: TokenClass): string => {
      const items = [request(tokenClass, concurrentWrite, 0, 1)];
      return outcome(server.step({ type: 'message', from: A!, message: message(items) }, 0));
    };
    expect([ask(TokenClass.status), ask(TokenClass.data)]).toEqual(['grant', 'invalidArgument']);
  });
});
