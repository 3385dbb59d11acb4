import { afterEach, describe, expect, it } from 'vitest';
import type { ClusterView, Membership } from '../cluster/membership-api.js';
import { range, WHOLE } from '../common/byte-range.js';
import type { Clock } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { epoch, incarnation, type NodeId, nodeId } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import type { Fabric, MessageHandler, Peer, RequestHandler } from '../fabric/fabric.js';
import { MessageType } from '../protocol/message-types.js';
import { TokenClass, type TokenItem, TokenMode } from './token.js';
import { TokenClient } from './token-client.js';
import { decodeListReply, encodeExpel, encodeListRequest, encodeToClient } from './token-messages.js';
import { TokenServer } from './token-server.js';

/** Virtual time: `pass` runs what is due. */
class TestClock implements Clock {
  #now = 0;
  readonly #timers = new Set<{ at: number; fire: () => void }>();
  nowMs(): number {
    return this.#now;
  }
  wallNs(): bigint {
    return 0n;
  }
  after(delayMs: number, fire: () => void) {
    const timer = { at: this.#now + delayMs, fire };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }
  pass(ms: number): void {
    this.#now += ms;
    for (const timer of [...this.#timers]) {
      if (timer.at > this.#now || !this.#timers.delete(timer)) continue;
      timer.fire();
    }
  }
}

/** Messages in order, each in a turn of its own; `full` makes a node's queue refuse some. */
class TestNetwork {
  readonly handlers = new Map<string, MessageHandler>();
  readonly requests = new Map<string, RequestHandler>();
  readonly sent: { from: NodeId; to: NodeId; type: MessageType }[] = [];
  full = 0;

  fabric(id: NodeId): Fabric {
    const self = { nodeId: id, incarnation: incarnation(1) };
    const unused = (): never => {
      throw new Error('not used by tokens');
    };
    const peer = (to: NodeId): Peer => ({
      nodeId: to,
      connected: true,
      request: unused,
      writeRemote: unused,
      readRemote: unused,
      send: (type, body) => {
        if (this.full > 0) {
          this.full--;
          throw new FsError('queueFull', { op: 'send' });
        }
        this.sent.push({ from: id, to, type });
        const copy = body.slice();
        queueMicrotask(() =>
          this.handlers.get(`${to} ${type}`)?.({ from: self, epoch: epoch(1), body: copy, peer: peer(id) }),
        );
      },
    });
    return {
      self,
      epoch: epoch(1),
      setEpoch: unused,
      peer,
      handleRequests: (type, handler) => void this.requests.set(`${id} ${type}`, handler),
      handleMessages: (type, handler) => void this.handlers.set(`${id} ${type}`, handler),
      onPeerChange: unused,
      forget: unused,
      expose: unused,
      close: unused,
    };
  }

  async ask(to: NodeId, type: MessageType, body: Uint8Array): Promise<Uint8Array> {
    const from = { nodeId: nodeId(9), incarnation: incarnation(1) };
    const peer = this.fabric(from.nodeId).peer(to);
    return this.requests.get(`${to} ${type}`)!({ from, epoch: epoch(1), body, peer });
  }
}

const turns = async (): Promise<void> => {
  for (let i = 0; i < 200; i++) await Promise.resolve();
};

const NODES = [1, 2].map(nodeId);
const view: ClusterView = {
  clusterId: 'test',
  epoch: epoch(1),
  tokenServers: [NODES[0]!],
  nsds: new Map(),
  copies: new Map(),
  expelling: [],
  nodes: new Map(
    NODES.map((id) => [
      id,
      { nodeId: id, name: `n${id}`, incarnation: incarnation(1), address: null, tokenServer: id === NODES[0] },
    ]),
  ),
};
const membership: Membership = { view, onChange: () => () => undefined };

async function cluster() {
  const clock = new TestClock();
  const network = new TestNetwork();
  const counters = NODES.map(() => new Counters());
  const wiring = (i: number) => {
    return { fabric: network.fabric(NODES[i]!), membership, clock, counters: counters[i]!, logger: silentLogger };
  };
  const clients = NODES.map((_, i) => new TokenClient({ ...wiring(i), onBroken: (error) => broken.push(error) }));
  const broken: unknown[] = [];
  const server = new TokenServer(wiring(0));
  open.push(server, ...clients);
  await turns();
  network.sent.length = 0;
  return { clock, network, counters, clients: clients as [TokenClient, TokenClient], server, broken };
}
const open: { close(): void }[] = [];
afterEach(() => {
  for (const it of open.splice(0)) it.close();
});

const item = (object: number, mode: TokenMode, start = 0, end = 4096): TokenItem => ({
  class: TokenClass.data,
  object,
  mode,
  required: range(start, end),
  desired: WHOLE,
});

describe('token client and server over a fabric', () => {
  it('the second operation on a file costs no message', async () => {
    const { clients, network, counters } = await cluster();
    (await clients[1].acquire([item(7, TokenMode.exclusive)])).release();
    const before = network.sent.length;
    (await clients[1].acquire([item(7, TokenMode.exclusive, 8192, 9000)])).release();
    expect(clients[1].tryPin([item(7, TokenMode.shared)])).not.toBeNull();
    expect(network.sent.length).toBe(before);
    expect(counters[1]!.get('tokens.requestsSent')).toBe(1);
    expect(clients[1].heldRange(TokenClass.data, 7, 5, TokenMode.shared)).toEqual(WHOLE);
  });

  it('operations that start in one turn share a message', async () => {
    const { clients, network } = await cluster();
    await Promise.all([1, 2, 3].map((object) => clients[1].acquire([item(object, TokenMode.shared)])));
    expect(network.sent.map((s) => s.type)).toEqual([MessageType.tokenToServer, MessageType.tokenToClient]);
  });

  it('T4: what is asked for ahead is one message each way, held, not pinned, and called back in one message too', async () => {
    const { clients, network, counters } = await cluster();
    const items = [1, 2, 3].map((object) => item(object, TokenMode.exclusive));
    clients[1].ask(items);
    clients[1].ask(items);
    await turns();
    expect(network.sent.map((s) => s.type)).toEqual([MessageType.tokenToServer, MessageType.tokenToClient]);
    expect(counters[1]!.get('tokens.grants')).toBe(3);
    clients[1].ask(items);
    for (const one of items) clients[1].tryPin([one])!.release();
    await turns();
    expect(network.sent).toHaveLength(2);

    const revoked: number[] = [];
    clients[1].setRevokeHandler(TokenClass.data, {
      working: () => null,
      revoke: async ({ object }) => {
        await turns();
        revoked.push(object);
      },
    });
    network.sent.length = 0;
    clients[0].ask(items.map((one) => ({ ...one, mode: TokenMode.shared })));
    await turns();
    await turns();
    expect(revoked).toEqual([1, 2, 3]);
    for (const { object } of items) expect(clients[0].tryPin([item(object, TokenMode.shared)])).not.toBeNull();
    // Request, revoke, answer, grant: as many as for one.
    const { tokenToServer, tokenToClient } = MessageType;
    expect(network.sent.map((s) => s.type)).toEqual([tokenToServer, tokenToClient, tokenToServer, tokenToClient]);
  });

  it('a conflict calls the holder back: the handler flushes before the token moves', async () => {
    const { clients } = await cluster();
    const story: string[] = [];
    clients[0].setRevokeHandler(TokenClass.data, {
      working: () => null,
      revoke: async ({ range: r, keep }) => {
        await turns();
        story.push(`flushed ${r.end === WHOLE.end ? 'all' : 'some'}, keeps ${keep}`);
      },
    });
    const pins = await clients[0].acquire([item(7, TokenMode.exclusive)]);
    const wants = clients[1].acquire([item(7, TokenMode.shared)]).then((p) => {
      story.push('granted');
      return p;
    });
    await turns();
    expect(story).toEqual([]);
    expect(clients[0].tryPin([item(7, TokenMode.exclusive)])).toBeNull();
    pins.release();
    (await wants).release();
    expect(story).toEqual(['flushed all, keeps 1', 'granted']);
    expect(clients[0].heldRange(TokenClass.data, 7, 0, TokenMode.exclusive)).toBeNull();
    expect(clients[0].heldRange(TokenClass.data, 7, 0, TokenMode.shared)).toEqual(WHOLE);
  });

  it('T7: an operation that times out says who blocks it', async () => {
    const { clients, clock } = await cluster();
    await clients[0].acquire([item(7, TokenMode.exclusive)]);
    const wants = clients[1].acquire([item(7, TokenMode.shared)], { timeoutMs: 100 });
    const failure = wants.catch((error: unknown) => error);
    await turns();
    clock.pass(100);
    await turns();
    const error = await failure;
    expect(FsError.is(error) && [error.reason, error.code]).toEqual(['tokenDeadline', 'ETIMEDOUT']);
    expect((error as FsError).detail).toMatch(/node 1 has exclusive \[0, \d+\) for 100 ms/);
  });

  it('I12: an aborted operation fails at once; one aborted beforehand never starts', async () => {
    const { clients, network } = await cluster();
    await clients[0].acquire([item(7, TokenMode.exclusive)]);
    const abort = new AbortController();
    const wants = clients[1].acquire([item(7, TokenMode.shared)], { signal: abort.signal });
    await turns();
    abort.abort();
    await expect(wants).rejects.toMatchObject({ reason: 'aborted' });
    const before = network.sent.length;
    await expect(clients[1].acquire([item(8, TokenMode.shared)], { signal: abort.signal })).rejects.toMatchObject({
      reason: 'aborted',
    });
    expect(network.sent.length).toBe(before);
  });

  it('release gives back what is not pinned, after the handler has run', async () => {
    const { clients, server } = await cluster();
    const ranges: number[] = [];
    clients[1].setRevokeHandler(TokenClass.data, {
      working: () => null,
      revoke: async (r) => void ranges.push(r.range.start),
    });
    const pins = await clients[1].acquire([item(7, TokenMode.exclusive)]);
    await clients[1].release(TokenClass.data, 7, WHOLE);
    await turns();
    expect(ranges).toEqual([4096]);
    expect(server.machine.list(0, 10).map((h) => h.range)).toEqual([range(0, 4096)]);
    pins.release();
    await clients[1].release(TokenClass.data, 7, WHOLE);
    await turns();
    expect(server.machine.rangeCount).toBe(0);
  });

  it('a full queue delays messages but loses and reorders none', async () => {
    const { clients, network, clock, counters } = await cluster();
    network.full = 3;
    const all = [1, 2, 3].map((object) => clients[1].acquire([item(object, TokenMode.shared)]));
    for (let i = 0; i < 5; i++) {
      await turns();
      clock.pass(10);
    }
    await Promise.all(all);
    expect(counters[1]!.get('tokens.messagesHeldBack')).toBeGreaterThan(0);
  });

  it('F3: suspended, nothing is pinned and nothing given up; resumed, all goes on; fenced, everything fails', async () => {
    const { clients } = await cluster();
    (await clients[0].acquire([item(7, TokenMode.exclusive)])).release();
    clients[0].suspend();
    expect(clients[0].tryPin([item(7, TokenMode.shared)])).toBeNull();
    const mine = clients[0].acquire([item(8, TokenMode.shared)]);
    const theirs = clients[1].acquire([item(7, TokenMode.exclusive)]);
    await turns();
    clients[0].resume();
    (await mine).release();
    (await theirs).release();
    const late = clients[0].acquire([item(7, TokenMode.shared)]);
    clients[0].fence();
    await expect(late).rejects.toMatchObject({ reason: 'fenced' });
    await expect(clients[0].acquire([item(7, TokenMode.shared)])).rejects.toMatchObject({ reason: 'fenced' });
    expect(clients[0].tryPin([item(8, TokenMode.shared)])).toBeNull();
  });

  it('F7: a handler that fails keeps the token and tells the owner', async () => {
    const { clients, broken } = await cluster();
    (await clients[0].acquire([item(7, TokenMode.exclusive)])).release();
    clients[0].setRevokeHandler(TokenClass.data, {
      working: () => null,
      revoke: () => Promise.reject(new Error('lost')),
    });
    const wants = clients[1].acquire([item(7, TokenMode.shared)]);
    wants.catch(() => undefined);
    await turns();
    expect(broken).toHaveLength(1);
    expect(clients[0].heldRange(TokenClass.data, 7, 0, TokenMode.exclusive)).toBeNull();
    clients[1].close();
    await expect(wants).rejects.toMatchObject({ reason: 'closed' });
  });

  it('F7: told that another node holds what it holds, it counts that and tells the owner', async () => {
    const { network, counters, broken } = await cluster();
    const about = { class: TokenClass.data, object: 7, mode: TokenMode.exclusive, range: range(0, 4096) };
    const items = [{ kind: 'contradiction' as const, ...about, other: nodeId(9) }];
    const [body] = encodeToClient({ epoch: epoch(1), toIncarnation: incarnation(1), items });
    network.fabric(NODES[0]!).peer(NODES[1]!).send(MessageType.tokenToClient, body!);
    await turns();
    expect(counters[1]!.get('tokens.violations')).toBe(1);
    expect(broken).toMatchObject([{ name: 'InvariantError', message: expect.stringContaining('node 9') }]);
  });

  it('tools list the table; whoever fences tells of expulsions by message; nonsense is refused and counted', async () => {
    const { clients, network, counters } = await cluster();
    await clients[1].acquire([item(7, TokenMode.exclusive)]);
    const list = async () =>
      decodeListReply(await network.ask(NODES[0]!, MessageType.tokenList, encodeListRequest(0, 100)));
    expect(await list()).toMatchObject([{ by: { nodeId: 2, incarnation: 1 }, object: 7, mode: TokenMode.exclusive }]);
    const fate = encodeExpel({ type: 'expelled', nodeId: NODES[1]!, incarnation: incarnation(1) });
    await network.ask(NODES[0]!, MessageType.tokenExpel, fate);
    expect(await list()).toEqual([]);
    network
      .fabric(NODES[1]!)
      .peer(NODES[0]!)
      .send(MessageType.tokenToServer, new Uint8Array([9, 9]));
    await turns();
    expect(counters[0]!.get('tokens.badMessages')).toBe(1);
  });
});
