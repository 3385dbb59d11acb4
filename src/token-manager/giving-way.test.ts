import { describe, expect, it } from 'vitest';
import { type ByteRange, range, WHOLE } from '../common/byte-range.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
import { RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { giveWay } from './client-object.js';
import { groupItems } from './group-items.js';
import { segmentOf, serverOf } from './placement.js';
import { INODES_PER_SEGMENT, TokenClass, type TokenItem, TokenMode } from './token.js';
import { type ClientEvent, TOKEN_CLIENT_DEFAULTS } from './token-client-events.js';
import { TokenClientMachine } from './token-client-machine.js';
import type { ToClientMessage, ToServerMessage } from './token-messages.js';
import { type ServerEvent, TOKEN_SERVER_DEFAULTS } from './token-server-events.js';
import { TokenServerMachine } from './token-server-machine.js';

const sectors = (from: number, to: number): ByteRange => range(from * SECTOR_BYTES, to * SECTOR_BYTES);
const toEnd = (from: number): ByteRange => range(from * SECTOR_BYTES, RANGE_END);

describe('T1: what a holder gives up', () => {
  const required = sectors(100, 101);
  it.each([
    ['idle: all that is desired', WHOLE, null, [], WHOLE],
    ['working before the requester: keeps what lies before him', WHOLE, sectors(5, 9), [], toEnd(100)],
    ['working behind the requester: keeps what lies from there on', WHOLE, sectors(200, 201), [], sectors(0, 200)],
    ['working where he wants to: only what he must', sectors(100, 150), sectors(100, 150), [], required],
    ['pins beyond the required range are kept', WHOLE, null, [sectors(40, 50), sectors(300, 301)], sectors(50, 300)],
    ['nothing desired beyond the required range', required, null, [], required],
  ] as const)('%s', (_, desired, working, inUse, given) => {
    expect(giveWay(required, desired, working, inUse)).toEqual(given);
  });
});

describe('T4: groups', () => {
  const item = (tokenClass: TokenClass, object: number, mode: TokenMode, r: ByteRange): TokenItem => ({
    class: tokenClass,
    object,
    mode,
    required: r,
    desired: r,
  });
  const { shared, exclusive } = TokenMode;

  it('are in the order of class and object, whatever the order of the items; one per object', () => {
    const groups = groupItems([
      item(TokenClass.data, 2, shared, sectors(0, 1)),
      item(TokenClass.status, 9, shared, sectors(4, 5)),
      item(TokenClass.data, 1, shared, sectors(0, 1)),
      item(TokenClass.status, 9, exclusive, sectors(1, 2)),
    ]);
    expect(groups.map((g) => [g.class, g.object, g.parts.length])).toEqual([
      [TokenClass.status, 9, 2],
      [TokenClass.data, 1, 1],
      [TokenClass.data, 2, 1],
    ]);
  });
  it('T1: ranges are rounded out to sectors; overlapping ones become one, in the stronger mode', () => {
    const [group] = groupItems([
      item(TokenClass.data, 1, shared, range(1, 5000)),
      item(TokenClass.data, 1, exclusive, range(5000, 9000)),
    ]);
    expect(group!.parts).toEqual([{ mode: exclusive, required: sectors(0, 3), desired: sectors(0, 3) }]);
  });
  it('of more parts than a request holds the nearest are merged', () => {
    const items = Array.from({ length: 40 }, (_, i) =>
      item(TokenClass.status, 0, shared, sectors(i * i * 2, i * i * 2 + 1)),
    );
    const [group] = groupItems(items);
    expect(group!.parts.length).toBe(32);
    expect(group!.parts[0]!.required).toEqual(sectors(0, 129));
  });
  it('an empty range, or a mode that the class has not, is an invalid argument', () => {
    expect(() => groupItems([item(TokenClass.data, 1, shared, range(5, 5))])).toThrow('EINVAL');
    expect(() => groupItems([item(TokenClass.data, 1, TokenMode.concurrentWrite, sectors(0, 1))])).toThrow('EINVAL');
  });
});

describe('T8: placement', () => {
  const servers = [1, 2, 3, 4].map((n) => ({ nodeId: nodeId(n), incarnation: incarnation(1) }));
  it("an inode's status and data tokens share a server", () => {
    for (let ino = 1; ino < 1e6; ino += 997) {
      const segment = Math.floor(ino / INODES_PER_SEGMENT);
      expect(segmentOf(TokenClass.data, ino)).toBe(segment);
      expect(serverOf(servers, TokenClass.data, ino)).toBe(serverOf(servers, TokenClass.status, segment));
    }
  });
  it('servers have equal shares, and when one goes only its share moves', () => {
    const shares = new Map<number, number>();
    for (let segment = 0; segment < 4000; segment++) {
      const { nodeId: at } = serverOf(servers, TokenClass.status, segment)!;
      shares.set(at, (shares.get(at) ?? 0) + 1);
      const { nodeId: then } = serverOf(servers.slice(0, 3), TokenClass.status, segment)!;
      if (at !== 4) expect(then).toBe(at);
    }
    for (const share of shares.values()) expect(Math.abs(share - 1000)).toBeLessThan(150);
  });
});

/** One server and some clients; everything is delivered at once and every handler is done at once. */
class Cluster {
  readonly server: TokenServerMachine;
  readonly clients: TokenClientMachine[] = [];
  readonly working: (ByteRange | null)[] = [];
  readonly revocations: number[] = [];
  readonly requests: number[] = [];
  readonly #queue: (() => void)[] = [];
  #opId = 0;

  constructor(count: number) {
    const self = { nodeId: nodeId(1000), incarnation: incarnation(1) };
    const nodes = Array.from({ length: count }, (_, i) => ({ nodeId: nodeId(i + 1), incarnation: incarnation(1) }));
    this.server = new TokenServerMachine({ self, settings: TOKEN_SERVER_DEFAULTS, fired: () => undefined });
    for (const [i, node] of nodes.entries()) {
      const client: TokenClientMachine = new TokenClientMachine({
        self: node,
        settings: TOKEN_CLIENT_DEFAULTS,
        fired: () => undefined,
        working: () => this.working[i] ?? null,
        writesConcurrently: () => true,
        onDrained: () => this.#queue.push(() => this.#client(i, { type: 'drained' })),
      });
      this.clients.push(client);
      this.working.push(null);
      this.revocations.push(0);
      this.requests.push(0);
      this.#client(i, { type: 'view', epoch: epoch(1), servers: [self] });
    }
    this.#serve({ type: 'view', view: { epoch: epoch(1), servers: [self], nodes } });
    this.settle();
  }

  settle(): void {
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) next();
  }

  #serve(event: ServerEvent): void {
    for (const effect of this.server.step(event, 0)) {
      if (effect.type !== 'send') throw new Error(effect.detail);
      this.#queue.push(() => this.#toClient(effect.to.nodeId - 1, effect.message));
    }
  }
  #toClient(i: number, message: ToClientMessage): void {
    this.#client(i, { type: 'message', from: { nodeId: nodeId(1000), incarnation: incarnation(1) }, message });
  }
  #toServer(i: number, message: ToServerMessage): void {
    for (const item of message.items) if (item.kind === 'request') this.requests[i]!++;
    this.#serve({ type: 'message', from: { nodeId: nodeId(i + 1), incarnation: incarnation(1) }, message });
  }
  #client(i: number, event: ClientEvent): void {
    for (const effect of this.clients[i]!.step(event, 0)) {
      if (effect.type === 'send') this.#queue.push(() => this.#toServer(i, effect.message));
      else if (effect.type === 'pinned') effect.pins.release();
      else if (effect.type === 'revoke') {
        this.revocations[i]!++;
        this.#queue.push(() => this.#client(i, { type: 'revokeDone', handle: effect.handle }));
      }
    }
  }

  /** A write as the cache asks for it: what it needs, and the file from there on. */
  write(i: number, at: ByteRange): void {
    this.working[i] = range(at.start, RANGE_END);
    const item = {
      class: TokenClass.data,
      object: 5,
      mode: TokenMode.exclusive,
      required: at,
      desired: range(at.start, RANGE_END),
    };
    const pins = this.clients[i]!.tryPin([item]);
    if (pins !== null) pins.release();
    else {
      const ops = [
        { opId: ++this.#opId, groups: groupItems([item]), deadlineAtMs: Number.POSITIVE_INFINITY, nowait: false },
      ];
      this.#client(i, { type: 'acquire', ops });
    }
    this.settle();
  }
}

describe('T1: sequential writers', () => {
  // In ascending, descending and mixed order of their first writes.
  it.each([
    ['ascending', [0, 1, 2, 3, 4, 5, 6, 7]],
    ['descending', [7, 6, 5, 4, 3, 2, 1, 0]],
    ['mixed', [3, 7, 0, 5, 1, 6, 2, 4]],
  ] as const)('8 on 8 segments split the file with at most 2 exchanges each (%s)', (_, order) => {
    const cluster = new Cluster(8);
    const segment = 1000;
    for (let step = 0; step < segment; step += 10) {
      for (const i of order) cluster.write(i, sectors(i * segment + step, i * segment + step + 10));
    }
    expect(Math.max(...cluster.requests)).toBeLessThanOrEqual(2);
    expect(Math.max(...cluster.revocations)).toBeLessThanOrEqual(3);
    expect(cluster.requests.reduce((a, b) => a + b)).toBeLessThanOrEqual(16);
  });
});
