import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { SeededRandom } from '../common/random.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { FRAME_AT, FRAME_HEADER_BYTES, FrameKind } from '../protocol/frame.js';
import { MessageType } from '../protocol/message-types.js';
import { Handshake, Refusal } from './handshake.js';
import type { Transport } from './link.js';
import { MemoryNetwork, type MemoryPolicy, type Verdict } from './memory-link.js';
import { VerbsNetwork, type VerbsVerdict } from './memory-verbs.js';
import { RdmaTransport } from './rdma-transport.js';
import { UNIT_AT, UNIT_HEADER_BYTES, UnitKind } from './rdma-wire.js';
import { failure, TEST_KEY, type TestNode, type TestNodeOptions, testNode, VirtualClock } from './test-support.js';

const open: TestNode[] = [];
afterEach(async () => {
  for (const node of open.splice(0)) await node.fabric.close();
});

const T = MessageType;
const text = (value: string) => Buffer.from(value);
const str = (value: Uint8Array) => Buffer.from(value).toString();
const ok = { timeoutMs: 600_000 };

/** The policies of memory links over verbs: asked about each frame of a unit. */
function verbsNetwork(clock: VirtualClock, policy: MemoryPolicy = () => ({ delayMs: 0 })): VerbsNetwork {
  let index = 0;
  return new VerbsNetwork(clock, ({ op, from, to, connection, bytes, lengthBytes }): VerbsVerdict => {
    if (op === 'bind' || op === 'invalidate') return { delayMs: 0 };
    const unit = op === 'send' ? bytes[UNIT_AT.kind] : 0;
    const kind =
      op === 'connect'
        ? 'connect'
        : unit === UnitKind.record
          ? 'record'
          : unit === UnitKind.frames || unit === UnitKind.part || unit === UnitKind.credit
            ? 'frame'
            : 'transfer';
    const ask = (frameKind: number): Verdict =>
      policy({ connection, from, to, kind, frameKind, index: index++, lengthBytes });
    const verdicts = unit === UnitKind.frames ? frameKinds(bytes).map(ask) : [ask(0)];
    let delayMs = 0;
    for (const verdict of verdicts) {
      if (verdict === 'cut') return { status: 'retryExceeded' };
      delayMs = Math.max(delayMs, verdict.delayMs);
    }
    return delayMs === Number.POSITIVE_INFINITY ? 'lost' : { delayMs };
  });
}

/** Of the frames in a unit. */
function frameKinds(unit: Uint8Array): number[] {
  const view = new DataView(unit.buffer, unit.byteOffset, unit.byteLength);
  const kinds: number[] = [];
  for (let at = UNIT_HEADER_BYTES; at < unit.length; ) {
    kinds.push(unit[at + FRAME_AT.kind]!);
    at += FRAME_HEADER_BYTES + view.getUint32(at + FRAME_AT.bodyBytes, true);
  }
  return kinds;
}

/** What sessions and the fabric promise, over links in memory or over RDMA links on verbs in memory. */
export function sessionSuite(carrier: 'memory' | 'rdma'): void {
  class World {
    readonly clock = new VirtualClock();
    readonly network: MemoryNetwork | VerbsNetwork;
    readonly addresses = new Map([1, 2, 3].map((id) => [id, { host: `node-${id}`, port: 1 }] as const));

    constructor(policy?: MemoryPolicy) {
      this.network = carrier === 'memory' ? new MemoryNetwork(this.clock, policy) : verbsNetwork(this.clock, policy);
    }

    async node(id: number, options: Partial<TestNodeOptions> = {}): Promise<TestNode> {
      const random = new SeededRandom(id * 1000 + (options.incarnation ?? 1));
      const made = testNode({
        node: id,
        clock: this.clock,
        addresses: this.addresses,
        randomBytes: (count) => Uint8Array.from({ length: count }, () => Math.floor(random.next() * 256)),
        transport: (pool, counters) => this.transport(`node-${id}`, pool, { ...options, node: id }, counters),
        ...options,
      });
      open.push(made);
      await made.fabric.listen({ host: `node-${id}`, port: 1 });
      return made;
    }

    transport(
      host: string,
      pool: PagePool,
      options: { readonly node?: number; readonly incarnation?: number; readonly clusterId?: string } = {},
      counters = new Counters(),
    ): Transport {
      if (this.network instanceof MemoryNetwork) return this.network.transport(host, pool);
      return new RdmaTransport({
        self: { nodeId: nodeId(options.node ?? 9), incarnation: incarnation(options.incarnation ?? 1) },
        clusterId: options.clusterId ?? 'test-cluster',
        pool,
        port: this.network.port(host, pool),
        clock: this.clock,
        counters,
        logger: silentLogger,
      });
    }

    run(untilMs: number, done?: () => boolean) {
      return this.clock.run(this.clock.nowMs() + untilMs, done);
    }

    /** Runs the world until the promise settles. */
    async finish<T>(promise: Promise<T>, untilMs = 600_000): Promise<T> {
      let over = false;
      const mark = () => {
        over = true;
      };
      promise.then(mark, mark);
      await this.run(untilMs, () => over);
      if (!over) throw new Error('nothing left to happen, and no result');
      return promise;
    }
  }

  test('whatever is cut and however long things take, messages arrive once and in order and requests run once', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 0, max: 250 }), { maxLength: 14 }),
        fc.integer({ min: 0, max: 0xffff }),
        fc.integer({ min: 1, max: 40 }),
        fc.boolean(),
        async (cuts, seed, count, bothDial) => {
          const random = new SeededRandom(seed);
          const cutAt = new Set(cuts);
          let crossings = 0;
          const world = new World(() =>
            cutAt.has(crossings++) ? 'cut' : { delayMs: random.next() < 0.5 ? 0 : random.next() * 20 },
          );
          if (!bothDial) world.addresses.delete(1);
          const nodes = [await world.node(1, { limits: { creditMessages: 7 } }), await world.node(2)] as const;
          const seen: string[][] = [[], []];
          const executed: string[][] = [[], []];
          const answers: Promise<string>[] = [];
          nodes.forEach(({ fabric }, i) => {
            fabric.handleMessages(T.tokenToClient, ({ body }) => {
              seen[i]!.push(str(body));
            });
            fabric.handleRequests(T.ping, async ({ body }) => {
              const asked = str(body);
              executed[i]!.push(asked);
              seen[i]!.push(asked);
              if (asked.endsWith('3')) await new Promise<void>((resolve) => world.clock.after(15, resolve));
              return text(`re ${asked}`);
            });
          });
          const expected: string[][] = [[], []];
          for (let i = 0; i < count; i++) {
            for (const from of bothDial ? [0, 1] : [0]) {
              const to = nodes[from]!.fabric.peer(nodeId(2 - from));
              to.send(T.tokenToClient, text(`m${i}`));
              expected[1 - from]!.push(`m${i}`, `r${i}`);
              answers.push(to.request(T.ping, text(`r${i}`), ok).then(str));
            }
            if (i % 5 === 4) await world.run(random.next() * 30);
          }
          const got = await world.finish(Promise.all(answers));
          await world.run(60_000, () => seen.every((list, i) => list.length === expected[i]!.length));
          expect(seen).toEqual(expected);
          expect(got.sort()).toEqual(
            expected
              .flat()
              .filter((entry) => entry.startsWith('r'))
              .map((entry) => `re ${entry}`)
              .sort(),
          );
          for (const list of executed) expect(new Set(list).size).toBe(list.length);
          for (const { fabric, counters } of nodes) {
            await fabric.close();
            for (const [name, value] of Object.entries(counters.snapshot())) {
              if (name.startsWith('fabric.refused') && !name.endsWith('simultaneous'))
                expect([name, value]).toEqual([name, 0]);
            }
          }
        },
      ),
      { numRuns: Number(process.env['HOLDFAST_PROPERTY_RUNS'] ?? 150) },
    );
  });

  test('after both sides dialled at once one connection is left, and it is used', async () => {
    const world = new World(() => ({ delayMs: 3 }));
    const [one, two] = [await world.node(1), await world.node(2)];
    for (const { fabric } of [one, two]) fabric.handleRequests(T.ping, ({ body }) => body);
    const both = Promise.all([
      one.fabric.peer(nodeId(2)).request(T.ping, text('a'), ok),
      two.fabric.peer(nodeId(1)).request(T.ping, text('b'), ok),
    ]);
    await world.finish(both);
    await world.run(10_000);
    expect(world.network.connectionCount).toBe(1);
    expect(one.fabric.peer(nodeId(2)).connected && two.fabric.peer(nodeId(1)).connected).toBe(true);
  });

  test('transfers survive cuts: bytes land whole, and a message sent after them finds them', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 5, max: 60 }), { maxLength: 5 }), async (cuts) => {
        const cutAt = new Set(cuts);
        let crossings = 0;
        const world = new World(() => (cutAt.has(crossings++) ? 'cut' : { delayMs: crossings % 3 }));
        const [one, two] = [await world.node(1), await world.node(2)];
        const size = 700_000;
        one.pool.bytes.fill(1, 0, size);
        const into = two.fabric.expose(nodeId(1), [{ offsetBytes: 10, lengthBytes: size }], 'write');
        const from = two.fabric.expose(nodeId(1), [{ offsetBytes: 10, lengthBytes: size }], 'read');
        let found = -1;
        two.fabric.handleMessages(T.tokenToServer, () => {
          found = two.pool.bytes.subarray(10, 10 + size).indexOf(0);
          two.pool.bytes.fill(2, 10, 10 + size);
        });
        two.fabric.handleRequests(T.ping, ({ body }) => body);
        const peer = one.fabric.peer(nodeId(2));
        await world.finish(peer.writeRemote(into.remote, 0, [{ offsetBytes: 0, lengthBytes: size }]));
        peer.send(T.tokenToServer, text('landed'));
        await world.finish(peer.request(T.ping, text('handled'), ok));
        expect(found).toBe(-1);
        await world.finish(into.close());
        const late = failure(peer.writeRemote(into.remote, 0, [{ offsetBytes: 0, lengthBytes: size }]));
        expect((await world.finish(late)).reason).toBe('wrongKeyWindow');
        expect(two.pool.bytes.subarray(10, 10 + size).every((byte) => byte === 2)).toBe(true);
        await world.finish(peer.readRemote(from.remote, 0, [{ offsetBytes: 1_000_000, lengthBytes: size }]));
        expect(one.pool.bytes.subarray(1_000_000, 1_000_000 + size).every((byte) => byte === 2)).toBe(true);
        for (const { fabric } of [one, two]) await fabric.close();
      }),
      { numRuns: 15 },
    );
  });

  test('a transfer to a peer that stays away fails at its deadline, and touches nothing afterwards', async () => {
    const world = new World();
    const [one, two] = [await world.node(1, { limits: { transferTimeoutMs: 400 } }), await world.node(2)];
    const window = two.fabric.expose(nodeId(1), [{ offsetBytes: 0, lengthBytes: 4096 }], 'read');
    world.network.setReachable('node-1', 'node-2', false);
    const moved = failure(
      one.fabric.peer(nodeId(2)).readRemote(window.remote, 0, [{ offsetBytes: 0, lengthBytes: 4096 }]),
    );
    expect((await world.finish(moved)).reason).toBe('deadlinePassed');
    two.pool.bytes.fill(4);
    world.network.setReachable('node-1', 'node-2', true);
    await world.run(10_000);
    expect(one.pool.bytes.every((byte) => byte === 0)).toBe(true);
  });

  test('a link on which nothing is acknowledged any more is given up and replaced', async () => {
    let stalling = false;
    const world = new World(({ kind }) => ({ delayMs: stalling && kind === 'frame' ? Number.POSITIVE_INFINITY : 1 }));
    const [one, two] = [await world.node(1), await world.node(2)];
    two.fabric.handleRequests(T.ping, ({ body }) => body);
    const peer = one.fabric.peer(nodeId(2));
    await world.finish(peer.request(T.ping, text('x'), ok));
    stalling = true;
    const asked = peer.request(T.ping, text('y'), ok);
    await world.run(100);
    stalling = false;
    expect(str(await world.finish(asked))).toBe('y');
    // Whichever side misses an acknowledgement first.
    const noticed = [one, two].map(({ counters }) => counters.get('fabric.linkStalled'));
    expect(noticed[0]! + noticed[1]!).toBe(1);
  });

  describe('deadlines, aborts and bounds', () => {
    test('a request that nobody answers fails at its deadline', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      two.fabric.handleRequests(T.ping, () => new Promise(() => undefined));
      const error = await world.finish(
        failure(one.fabric.peer(nodeId(2)).request(T.ping, text('x'), { timeoutMs: 500 })),
      );
      expect(error.reason).toBe('deadlinePassed');
      expect(world.clock.nowMs()).toBeGreaterThanOrEqual(500);
    });

    test('a request to a node that can not be reached fails at its deadline, not before', async () => {
      const world = new World();
      const one = await world.node(1);
      const error = await world.finish(
        failure(one.fabric.peer(nodeId(3)).request(T.ping, text('x'), { timeoutMs: 300 })),
      );
      expect(error.reason).toBe('deadlinePassed');
    });

    test('the shorter of two deadlines passes first although it was asked for later', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      two.fabric.handleRequests(T.ping, () => new Promise(() => undefined));
      const order: string[] = [];
      const ask = (name: string, timeoutMs: number) =>
        failure(one.fabric.peer(nodeId(2)).request(T.ping, text(name), { timeoutMs })).then(() => order.push(name));
      await world.finish(Promise.all([ask('long', 900), ask('short', 100), ask('middle', 500)]));
      expect(order).toEqual(['short', 'middle', 'long']);
    });

    test('an aborted request fails at once, and its late reply is counted and dropped', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      let answer!: (value: Uint8Array) => void;
      two.fabric.handleRequests(T.ping, () => new Promise((resolve) => (answer = resolve)));
      const abort = new AbortController();
      const asked = failure(one.fabric.peer(nodeId(2)).request(T.ping, text('x'), { ...ok, signal: abort.signal }));
      await world.run(50, () => answer !== undefined);
      abort.abort();
      expect((await asked).reason).toBe('aborted');
      answer(text('late'));
      await world.run(1000);
      expect(one.counters.get('fabric.lateReplies')).toBe(1);
      const before = one.fabric.peer(nodeId(2)).request(T.ping, text('x'), { ...ok, signal: abort.signal });
      expect((await failure(before)).reason).toBe('aborted');
    });

    test('a full queue refuses messages and requests, and takes them again when there is room', async () => {
      const world = new World();
      const [one, two] = [await world.node(1, { limits: { queueMessagesMax: 10 } }), await world.node(2)];
      const got: string[] = [];
      two.fabric.handleMessages(T.tokenToClient, ({ body }) => {
        got.push(str(body));
      });
      const peer = one.fabric.peer(nodeId(2));
      for (let i = 0; i < 10; i++) peer.send(T.tokenToClient, text(`${i}`));
      expect(() => peer.send(T.tokenToClient, text('10'))).toThrow(/EAGAIN/);
      expect((await failure(peer.request(T.ping, text('x'), ok))).reason).toBe('queueFull');
      expect(one.counters.get('fabric.queueFull')).toBe(2);
      await world.run(1000);
      peer.send(T.tokenToClient, text('10'));
      await world.run(1000);
      expect(got).toEqual(['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '10']);
    });

    test('never more messages are under way than the receiver gave credit for', async () => {
      let inFlight = 0;
      let most = 0;
      const world = new World(({ kind, frameKind, from }) => {
        if (kind === 'frame' && frameKind === FrameKind.message && from === 'node-1') most = Math.max(most, ++inFlight);
        return { delayMs: 5 };
      });
      const [one, two] = [await world.node(1), await world.node(2, { limits: { creditMessages: 4 } })];
      let got = 0;
      two.fabric.handleMessages(T.tokenToClient, () => {
        got++;
        inFlight--;
      });
      for (let i = 0; i < 100; i++) one.fabric.peer(nodeId(2)).send(T.tokenToClient, text(`${i}`));
      await world.run(60_000, () => got === 100);
      expect(got).toBe(100);
      expect(most).toBe(4);
      expect(one.counters.get('fabric.creditStalls')).toBeGreaterThan(0);
    });

    test('a node that executes too many requests refuses the next one instead of holding up the stream', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2, { limits: { requestsExecutingMax: 2 } })];
      const release: (() => void)[] = [];
      two.fabric.handleRequests(T.ping, ({ body }) => {
        const reply = body.slice();
        return new Promise((resolve) => release.push(() => resolve(reply)));
      });
      const peer = one.fabric.peer(nodeId(2));
      const [a, b] = [peer.request(T.ping, text('a'), ok), peer.request(T.ping, text('b'), ok)];
      const refused = await world.finish(failure(peer.request(T.ping, text('c'), ok)));
      expect(refused.reason).toBe('queueFull');
      for (const go of release) go();
      expect((await world.finish(Promise.all([a, b]))).map(str)).toEqual(['a', 'b']);
    });

    test('a body or a reply beyond the limit is refused, and nothing else suffers', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      two.fabric.handleRequests(T.ping, ({ body }) => new Uint8Array(Number(str(body))));
      const peer = one.fabric.peer(nodeId(2));
      expect((await failure(peer.request(T.ping, new Uint8Array(256 * 1024 + 1), ok))).reason).toBe('tooLarge');
      expect((await world.finish(failure(peer.request(T.ping, text('300000'), ok)))).reason).toBe('tooLarge');
      expect((await world.finish(peer.request(T.ping, text('262144'), ok))).length).toBe(262144);
    });
  });

  describe('errors and handlers', () => {
    test("a handler's error reaches the requester with its reason, object and detail", async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      two.fabric.handleRequests(T.ping, () => {
        throw new FsError('noSpace', { op: 'nsd.write', object: 'nsd 4', detail: 'full to the brim' });
      });
      const error = await world.finish(failure(one.fabric.peer(nodeId(2)).request(T.ping, text(''), ok)));
      expect([error.reason, error.op, error.object, error.detail]).toEqual([
        'noSpace',
        'nsd.write',
        'nsd 4',
        'full to the brim',
      ]);
    });

    test('a request of a type without a handler is answered notSupported', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      const error = await world.finish(failure(one.fabric.peer(nodeId(2)).request(T.nsdInfo, text(''), ok)));
      expect(error.reason).toBe('notSupported');
      expect(two.counters.get('fabric.refusedType')).toBe(1);
    });

    test('a message handler that throws is counted, and the next message is handled', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      const got: string[] = [];
      two.fabric.handleMessages(T.tokenToClient, ({ body }) => {
        got.push(str(body));
        if (got.length === 1) throw new Error('clumsy');
      });
      for (const body of ['a', 'b']) one.fabric.peer(nodeId(2)).send(T.tokenToClient, text(body));
      await world.run(1000);
      expect(got).toEqual(['a', 'b']);
      expect(two.counters.get('fabric.handlerErrors')).toBe(1);
    });

    test('messages carry the epoch of when they were sent, and the epoch only moves up', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      const epochs: number[] = [];
      two.fabric.handleMessages(T.tokenToClient, (message) => {
        epochs.push(message.epoch);
      });
      for (const value of [3, 7, 5]) {
        one.fabric.setEpoch(epoch(value));
        one.fabric.peer(nodeId(2)).send(T.tokenToClient, text(''));
      }
      await world.run(1000);
      expect(epochs).toEqual([3, 7, 7]);
    });
  });

  describe('incarnations and fences', () => {
    test('a peer that comes back as a new incarnation gets a new session, and what the old one owed fails', async () => {
      const world = new World();
      const one = await world.node(1);
      const changes: string[] = [];
      one.fabric.onPeerChange((peer, change) => changes.push(`${peer.nodeId}.${peer.incarnation} ${change}`));
      const first = await world.node(2);
      first.fabric.handleRequests(T.ping, () => new Promise(() => undefined));
      const asked = failure(one.fabric.peer(nodeId(2)).request(T.ping, text('x'), ok));
      await world.run(100);
      await first.fabric.close();
      const second = await world.node(2, { incarnation: 2 });
      second.fabric.handleRequests(T.ping, () => text('second life'));
      expect((await world.finish(asked)).reason).toBe('fenced');
      expect(str(await world.finish(one.fabric.peer(nodeId(2)).request(T.ping, text('y'), ok)))).toBe('second life');
      expect(changes).toEqual(['2.1 met', '2.2 replaced']);
    });

    test('who leaves answers until it closes, and does not knock at those that have shut it out', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      two.fabric.handleRequests(T.ping, ({ body }) => body);
      two.fabric.handleRequests(T.nsdInfo, () => new Promise(() => undefined));
      one.fabric.handleRequests(T.nsdInfo, () => new Promise(() => undefined));
      expect(str(await world.finish(one.fabric.peer(nodeId(2)).request(T.ping, text('x'), ok)))).toBe('x');
      two.fabric.leave();
      expect(str(await world.finish(one.fabric.peer(nodeId(2)).request(T.ping, text('y'), ok)))).toBe('y');
      // What is still asked for would have the link dialled again.
      const owed = failure(two.fabric.peer(nodeId(1)).request(T.nsdInfo, text('z'), { timeoutMs: 20_000 }));
      await world.run(100);
      one.fabric.forget(nodeId(2), incarnation(1));
      expect((await world.finish(owed)).code).not.toBe('');
      expect(one.counters.get('fabric.refusedHandshake.fenced')).toBe(0);
      expect(two.counters.get('fabric.handshakeRefused.fenced')).toBe(0);
    });

    test('a forgotten incarnation is refused in both directions from then on, a newer one is welcome', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      two.fabric.handleRequests(T.ping, () => new Promise(() => undefined));
      const changes: string[] = [];
      one.fabric.onPeerChange((peer, change) => changes.push(`${peer.incarnation} ${change}`));
      const asked = failure(one.fabric.peer(nodeId(2)).request(T.ping, text('x'), ok));
      await world.run(100);
      one.fabric.forget(nodeId(2), incarnation(1));
      expect((await asked).reason).toBe('fenced');
      const fromFenced = await world.finish(failure(two.fabric.peer(nodeId(1)).request(T.ping, text('x'), ok)));
      expect(fromFenced.reason).toBe('fenced');
      expect((await world.finish(failure(one.fabric.peer(nodeId(2)).request(T.ping, text('x'), ok)))).reason).toBe(
        'fenced',
      );
      expect(one.counters.get('fabric.refusedHandshake.fenced')).toBeGreaterThan(0);
      expect(two.counters.get('fabric.handshakeRefused.fenced')).toBeGreaterThan(0);
      await two.fabric.close();
      const again = await world.node(2, { incarnation: 2 });
      again.fabric.handleRequests(T.ping, ({ body }) => body);
      expect(str(await world.finish(one.fabric.peer(nodeId(2)).request(T.ping, text('new'), ok)))).toBe('new');
      expect(changes).toEqual(['1 met', '1 forgotten', '2 met']);
    });

    test('two processes with one identity: the second is refused', async () => {
      const world = new World();
      const one = await world.node(1);
      one.fabric.handleRequests(T.ping, ({ body }) => body);
      const real = await world.node(2);
      await world.finish(real.fabric.peer(nodeId(1)).request(T.ping, text('x'), ok));
      const twin = testNode({
        node: 2,
        clock: world.clock,
        addresses: world.addresses,
        transport: (pool) => world.transport('twin', pool, { node: 2 }),
      });
      open.push(twin);
      const error = await world.finish(failure(twin.fabric.peer(nodeId(1)).request(T.ping, text('x'), ok)));
      expect(error.reason).toBe('identityTaken');
      expect(one.counters.get('fabric.refusedHandshake.identityTaken')).toBe(1);
    });

    test('closing fails what is pending and what is asked later', async () => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2)];
      two.fabric.handleRequests(T.ping, () => new Promise(() => undefined));
      const peer = one.fabric.peer(nodeId(2));
      const asked = failure(peer.request(T.ping, text('x'), ok));
      await world.run(100);
      await one.fabric.close();
      expect((await asked).reason).toBe('closed');
      expect((await failure(peer.request(T.ping, text('x'), ok))).reason).toBe('closed');
      expect(() => peer.send(T.ping, text('x'))).toThrow(/ESHUTDOWN/);
      expect((await failure(one.fabric.peer(nodeId(3)).request(T.ping, text('x'), ok))).reason).toBe('closed');
    });
  });

  describe('handshakes', () => {
    const cases: [string, Partial<TestNodeOptions>, string, string][] = [
      ['another key', { clusterKey: Buffer.from('some other key of a good length') }, 'wrongKey', 'EACCES'],
      ['another cluster', { clusterId: 'elsewhere' }, 'wrongCluster', 'ECONNREFUSED'],
      ['another version', { handshakeVersion: 2 }, 'wrongVersion', 'EPROTONOSUPPORT'],
    ];
    test.each(cases)('a node with %s is refused, and both sides can tell why', async (_, options, name, code) => {
      const world = new World();
      const [one, two] = [await world.node(1), await world.node(2, options)];
      const error = await world.finish(failure(two.fabric.peer(nodeId(1)).request(T.ping, text('x'), ok)));
      expect(error.code).toBe(code);
      await world.run(100);
      const counted = (node: TestNode) =>
        node.counters.get(`fabric.refusedHandshake.${name}`) + node.counters.get(`fabric.handshakeRefused.${name}`);
      expect(counted(one)).toBe(1);
      expect(counted(two)).toBe(1);
      expect(one.fabric.peer(nodeId(2)).connected).toBe(false);
    });

    test('a node that answers at the wrong address is refused', async () => {
      const world = new World();
      const [one] = [await world.node(1), await world.node(2)];
      world.addresses.set(3, { host: 'node-2', port: 1 });
      const error = await world.finish(failure(one.fabric.peer(nodeId(3)).request(T.ping, text('x'), ok)));
      expect(error.reason).toBe('identityTaken');
    });

    test('a recorded handshake played again is refused: the nonces are fresh', () => {
      const side = (role: 'dialer' | 'acceptor', node: number) =>
        new Handshake({
          role,
          self: { nodeId: nodeId(node), incarnation: incarnation(1) },
          clusterId: 'c',
          clusterKey: TEST_KEY,
          instance: new Uint8Array(8),
          randomBytes,
          admit: () => null,
        });
      const play = (acceptor: Handshake, record: Uint8Array) => acceptor.onRecord(record);
      const [dialer, acceptor] = [side('dialer', 2), side('acceptor', 1)];
      const recorded: Uint8Array[] = [];
      let toAcceptor = dialer.start();
      let last: ReturnType<Handshake['onRecord']> | undefined;
      while (toAcceptor.length > 0) {
        recorded.push(...toAcceptor);
        const answers = toAcceptor.flatMap((record) => {
          last = play(acceptor, record);
          return last.send;
        });
        toAcceptor = answers.flatMap((record) => dialer.onRecord(record).send);
      }
      expect(last?.is).toBe('done');
      const victim = side('acceptor', 1);
      const steps = recorded.map((record) => play(victim, record));
      expect(steps.at(-1)).toMatchObject({ is: 'refused', refusal: Refusal.wrongKey, by: 'us' });
    });

    test('a connection that never says a word is closed at the deadline', async () => {
      const world = new World();
      const one = await world.node(1);
      const transport = world.transport('mute', heapPagePool(4096));
      const link = await world.finish(transport.dial({ host: 'node-1', port: 1 }, new AbortController().signal));
      let closed = false;
      link.events = { ...link.events, onClosed: () => (closed = true) };
      await world.run(20_000, () => closed);
      expect(closed).toBe(true);
      expect(one.counters.get('fabric.refusedHandshake.deadline')).toBe(1);
    });
  });
}
