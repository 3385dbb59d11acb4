import { afterEach, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { incarnation, nodeId } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import type { PagePool } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import { LadderTransport } from './ladder-transport.js';
import type { TransportAddress } from './link.js';
import { MemoryNetwork } from './memory-link.js';
import { type MemoryVerbs, VerbsNetwork } from './memory-verbs.js';
import { RungTest } from './rung-test.js';
import { type TestNode, testNode, VirtualClock } from './test-support.js';

/** The ladder over links in memory (for TCP) and verbs in memory, in virtual time. */
const nodes: TestNode[] = [];
afterEach(async () => {
  for (const node of nodes.splice(0)) await node.fabric.close();
});

const T = MessageType;
const ok = { timeoutMs: 600_000 };
const text = (value: string) => Buffer.from(value);
const str = (value: Uint8Array) => Buffer.from(value).toString();

interface LadderNode extends TestNode {
  readonly ladder: LadderTransport;
  /** The device's present port; null: there is no device. */
  device: { present: boolean; ports: MemoryVerbs[] };
}

class World {
  readonly clock = new VirtualClock();
  readonly tcp = new MemoryNetwork(this.clock);
  readonly verbs = new VerbsNetwork(this.clock);
  readonly addresses = new Map<number, TransportAddress>();

  async node(
    id: number,
    options: { mode?: 'auto' | 'off' | 'required'; device?: boolean; windows?: boolean } = {},
  ): Promise<LadderNode> {
    const device = { present: options.device ?? true, ports: [] as MemoryVerbs[] };
    const host = `node-${id}`;
    const base = testNode({ node: 9, transport: (pool) => this.tcp.transport('unused', pool) });
    await base.fabric.close();
    const { pool, counters } = base;
    const ladder = await this.finish(
      LadderTransport.create({
        self: { nodeId: nodeId(id), incarnation: incarnation(1) },
        clusterId: 'test-cluster',
        pool,
        clock: this.clock,
        counters,
        logger: silentLogger,
        tcp: this.tcp.transport(host, pool),
        mode: options.mode ?? 'auto',
        openPort: (memory: PagePool) => {
          if (!device.present)
            throw new FsError('notSupported', { op: 'fabric.rdma', detail: 'there is no RDMA device' });
          const port = this.verbs.port(host, memory, { windows: options.windows ?? true });
          device.ports.push(port);
          return port;
        },
      }),
    );
    const made = testNode({ node: id, pool, clock: this.clock, addresses: this.addresses, transport: () => ladder });
    made.fabric.handleRequests(T.ping, ({ body }) => body);
    nodes.push(made);
    this.addresses.set(id, await this.finish(made.fabric.listen({ host, port: 1 })));
    return { ...made, counters, ladder, device };
  }

  async finish<R>(promise: Promise<R>, untilMs = 600_000): Promise<R> {
    let over = false;
    const mark = () => {
      over = true;
    };
    promise.then(mark, mark);
    await this.clock.run(this.clock.nowMs() + untilMs, () => over);
    if (!over) throw new Error('nothing left to happen, and no result');
    return promise;
  }

  run(forMs: number, done?: () => boolean) {
    return this.clock.run(this.clock.nowMs() + forMs, done);
  }

  ask(from: LadderNode, to: number, what: string): Promise<string> {
    return this.finish(from.fabric.peer(nodeId(to)).request(T.ping, text(what), ok)).then(str);
  }
}

const transportOf = (node: LadderNode, peer: number) =>
  node.fabric.peers().find((one) => one.nodeId === peer)?.transport ?? null;
const reasonOf = (node: LadderNode, peer: number) => node.fabric.peers().find((one) => one.nodeId === peer)!.reason;

/** Removes the device of a node as `rdma link delete` does. */
function unplug(node: LadderNode): void {
  node.device.present = false;
  for (const port of node.device.ports) if (!port.closed) port.remove();
}

test('two nodes with devices talk over verbs, and say so', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  expect(await world.ask(one, 2, 'hello')).toBe('hello');
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['rdma', 'rdma']);
  expect(reasonOf(one, 2)).toBe('device memory0');
  expect(one.ladder.local.reason).toBe('self-test passed');
});

test('a node without a device is talked to over TCP, and both say why', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2, { device: false })];
  expect(world.addresses.get(2)!.rdma).toBeUndefined();
  expect(await world.ask(one, 2, 'hello')).toBe('hello');
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['tcp', 'tcp']);
  expect(reasonOf(one, 2)).toBe('the peer has no RDMA');
  expect(reasonOf(two, 1)).toMatch(/there is no RDMA device/);
});

test('a device whose self-test fails is not used', async () => {
  const world = new World();
  world.verbs.policy = ({ op }) => (op === 'write' ? { status: 'remoteOperationError' } : { delayMs: 0 });
  const one = await world.node(1);
  expect(one.ladder.local.device).toBe(null);
  expect(one.ladder.local.reason).toMatch(/remoteOperationError/);
});

test('a device without windows carries messages, moves bulk in them, and says so', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2, { windows: false })];
  expect(two.ladder.local).toEqual({
    device: 'memory0',
    windows: false,
    reason: 'no memory windows: bulk goes in messages',
  });
  one.pool.bytes.fill(6, 0, 65_536);
  const local = [{ offsetBytes: 0, lengthBytes: 65_536 }];
  await world.ask(one, 2, 'up');
  const window = two.fabric.expose(nodeId(1), local, 'write');
  await world.finish(one.fabric.peer(nodeId(2)).writeRemote(window.remote, 0, local));
  expect(two.pool.bytes.subarray(0, 65_536).every((byte) => byte === 6)).toBe(true);
  expect([transportOf(one, 2), one.counters.get('fabric.rdma.bytesCopied')]).toEqual(['rdma', 65_536]);
  await world.finish(window.close());
});

test('switched off, no device is touched', async () => {
  const world = new World();
  const one = await world.node(1, { mode: 'off' });
  expect(one.device.ports).toEqual([]);
  expect(one.ladder.local.reason).toMatch(/configuration/);
});

test('required but not there, it does not start', async () => {
  const world = new World();
  await expect(world.node(1, { mode: 'required', device: false })).rejects.toThrow(/requires RDMA.*no RDMA device/);
});

test('a device that goes during I/O and comes back: TCP in between, RDMA after, no error and nothing done twice', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  const executed: string[] = [];
  two.fabric.handleRequests(T.nsdInfo, ({ body }) => {
    executed.push(str(body));
    return body;
  });
  for (let i = 0; i < one.pool.lengthBytes; i++) one.pool.bytes[i] = (i * 13 + (i >> 8)) & 0xff;
  const window = two.fabric.expose(nodeId(1), [{ offsetBytes: 0, lengthBytes: 1 << 20 }], 'write');
  const peer = one.fabric.peer(nodeId(2));
  const asked: string[] = [];
  const traffic = async (name: string, count: number) => {
    for (let i = 0; i < count; i++) {
      const what = `${name} ${i}`;
      asked.push(what);
      const answered = peer.request(T.nsdInfo, text(what), ok);
      const moved = peer.writeRemote(window.remote, (i % 4) << 18, [
        { offsetBytes: (i % 4) << 18, lengthBytes: 1 << 18 },
      ]);
      if (i === 2 && name === 'during') unplug(two);
      await world.finish(Promise.all([answered, moved]));
    }
  };
  await traffic('before', 4);
  expect(transportOf(one, 2)).toBe('rdma');
  two.pool.bytes.fill(0);
  await traffic('during', 8);
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['tcp', 'tcp']);
  expect(
    Buffer.from(two.pool.bytes.subarray(0, 1 << 20)).equals(Buffer.from(one.pool.bytes.subarray(0, 1 << 20))),
  ).toBe(true);
  expect(two.ladder.local.device).toBe(null);
  expect(two.counters.get('fabric.rdma.devicesLost')).toBe(1);

  two.device.present = true;
  await world.run(120_000, () => transportOf(one, 2) === 'rdma' && transportOf(two, 1) === 'rdma');
  two.pool.bytes.fill(0);
  await traffic('after', 4);
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['rdma', 'rdma']);
  expect(executed).toEqual(asked);
  expect(
    Buffer.from(two.pool.bytes.subarray(0, 1 << 20)).equals(Buffer.from(one.pool.bytes.subarray(0, 1 << 20))),
  ).toBe(true);
  await world.finish(window.close());
});

test('a peer whose RDMA links keep failing is served over TCP, and over RDMA again when they get on', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  expect(await world.ask(one, 2, 'a')).toBe('a');
  let broken = true;
  world.verbs.policy = ({ op, from }) =>
    broken && op === 'send' && from === 'node-1' ? { status: 'retryExceeded' } : { delayMs: 0 };
  expect(await world.ask(one, 2, 'b')).toBe('b');
  expect(await world.ask(one, 2, 'c')).toBe('c');
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['tcp', 'tcp']);
  expect(one.counters.get('fabric.rdma.fallbacks') + two.counters.get('fabric.rdma.fallbacks')).toBeGreaterThan(0);
  expect(reasonOf(one, 2) + reasonOf(two, 1)).toMatch(/RDMA failed \d+ times/);
  broken = false;
  await world.run(300_000, () => transportOf(one, 2) === 'rdma' && transportOf(two, 1) === 'rdma');
  expect(await world.ask(one, 2, 'd')).toBe('d');
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['rdma', 'rdma']);
});

test('one dial over RDMA that fails costs a while over TCP, no more', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  let refused = 0;
  world.verbs.policy = ({ op }) => (op === 'connect' && refused++ === 0 ? { status: 'retryExceeded' } : { delayMs: 0 });
  expect(await world.ask(one, 2, 'a')).toBe('a');
  await world.run(60_000, () => transportOf(one, 2) === 'rdma' && transportOf(two, 1) === 'rdma');
  expect(await world.ask(one, 2, 'b')).toBe('b');
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['rdma', 'rdma']);
});

test('devices that first appear while nodes run are told of, and used once the others know', async () => {
  const world = new World();
  const [one, two] = [await world.node(1, { device: false }), await world.node(2, { device: false })];
  for (const node of [one, two]) {
    const id = node.fabric.self.nodeId;
    node.ladder.onRdmaAddress = (rdma) => {
      world.addresses.set(id, { ...world.addresses.get(id)!, rdma });
      for (const other of [one, two]) if (other !== node) other.fabric.lookForBetter(id);
    };
  }
  expect(await world.ask(one, 2, 'a')).toBe('a');
  expect(transportOf(one, 2)).toBe('tcp');
  two.device.present = true;
  await world.run(10_000, () => world.addresses.get(2)!.rdma !== undefined);
  await world.run(10_000);
  expect(transportOf(one, 2)).toBe('tcp');
  one.device.present = true;
  await world.run(60_000, () => transportOf(one, 2) === 'rdma' && transportOf(two, 1) === 'rdma');
  expect(await world.ask(two, 1, 'b')).toBe('b');
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['rdma', 'rdma']);
});

test('links that the peer replaces, by whichever rung, are not held against RDMA', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  await world.ask(one, 2, 'up');
  for (const rung of ['rdma', 'rdma', 'rdma', 'tcp', 'rdma', 'rdma'] as const) {
    if (rung === 'tcp') await world.run(2000);
    await world.finish(one.fabric.relink(nodeId(2), rung));
    await world.ask(one, 2, rung);
  }
  await world.run(100);
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['rdma', 'rdma']);
  expect(one.counters.get('fabric.rdma.fallbacks') + two.counters.get('fabric.rdma.fallbacks')).toBe(0);
  // Nothing is owed from before: the next dial of the replaced side goes over RDMA.
  await world.finish(two.fabric.relink(nodeId(1), 'tcp'));
  await world.ask(two, 1, 'tcp');
  await world.finish(two.fabric.relink(nodeId(1), 'rdma'));
  expect(await world.ask(two, 1, 'rdma')).toBe('rdma');
});

test('a window opened on one rung is good on the other', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  await world.ask(one, 2, 'up');
  const window = two.fabric.expose(nodeId(1), [{ offsetBytes: 0, lengthBytes: 65_536 }], 'write');
  one.pool.bytes.fill(6, 0, 65_536);
  await world.finish(one.fabric.relink(nodeId(2), 'tcp'));
  await world.ask(one, 2, 'tcp');
  expect(transportOf(one, 2)).toBe('tcp');
  const peer = one.fabric.peer(nodeId(2));
  const local = [{ offsetBytes: 0, lengthBytes: 65_536 }];
  await world.finish(peer.writeRemote(window.remote, 0, local));
  expect(two.pool.bytes.subarray(0, 65_536).every((byte) => byte === 6)).toBe(true);
  await world.finish(one.fabric.relink(nodeId(2), 'rdma'));
  await world.ask(one, 2, 'rdma');
  expect(transportOf(one, 2)).toBe('rdma');
  one.pool.bytes.fill(8, 0, 65_536);
  await world.finish(peer.writeRemote(window.remote, 0, local));
  expect(two.pool.bytes.subarray(0, 65_536).every((byte) => byte === 8)).toBe(true);
  await world.finish(window.close());
  const late = await world.finish(peer.writeRemote(window.remote, 0, local).catch((error: unknown) => error));
  expect(late).toMatchObject({ reason: 'wrongKeyWindow' });
  expect(one.counters.get('fabric.rdma.keysAsked')).toBeGreaterThan(0);
});

test('a link that is held is not replaced by a better one until it is let go; then it is', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  await world.ask(one, 2, 'up');
  two.fabric.holdLink(nodeId(1), 'them');
  one.fabric.holdLink(nodeId(2), 'us');
  await world.finish(one.fabric.relink(nodeId(2), 'tcp'));
  await world.ask(one, 2, 'tcp');
  // Each side has word of something better now.
  one.ladder.onBetter?.(2);
  two.ladder.onBetter?.(1);
  await world.run(10_000);
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['tcp', 'tcp']);
  one.fabric.holdLink(nodeId(2), null);
  await world.run(10_000, () => transportOf(two, 1) === 'rdma');
  await world.ask(one, 2, 'rdma');
  expect([transportOf(one, 2), transportOf(two, 1)]).toEqual(['rdma', 'rdma']);
});

test('a link over a given rung comes before whatever is being dialled', async () => {
  const world = new World();
  const [one] = [await world.node(1), await world.node(2)];
  // That dial hangs.
  world.verbs.policy = () => 'lost';
  const asked = one.fabric.peer(nodeId(2)).request(T.ping, text('up'), ok);
  await world.run(10);
  expect(transportOf(one, 2)).toBe(null);
  await world.finish(one.fabric.relink(nodeId(2), 'tcp'));
  expect([str(await world.finish(asked)), transportOf(one, 2)]).toEqual(['up', 'tcp']);
});

test('a test of the rungs measures each of them, refuses a second one, and ends on the best', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  const [first, second] = [one, two].map(
    ({ fabric, pool }) => new RungTest(fabric, pool, { offsetBytes: 1 << 20, lengthBytes: 1 << 18 }, world.clock),
  ) as [RungTest, RungTest];
  const running = first.run(2, ['rdma', 'tcp']);
  await expect(first.run(2, ['tcp'])).rejects.toMatchObject({ code: 'EBUSY' });
  await world.run(60_000, () => one.fabric.traffic.messagesOut > 10);
  await expect(second.run(1, ['tcp'])).rejects.toMatchObject({ code: 'EBUSY' });
  const results = await world.finish(running);
  expect(results.map(({ transport, error }) => [transport, error])).toEqual([
    ['rdma', null],
    ['tcp', null],
  ]);
  for (const { transferBytes, readBytesPerSecond, writeBytesPerSecond } of results) {
    expect(transferBytes).toBe(1 << 18);
    expect(Math.min(readBytesPerSecond, writeBytesPerSecond)).toBeGreaterThan(0);
  }
  expect(transportOf(one, 2)).toBe('rdma');
  await expect(first.run(1, ['tcp'])).rejects.toMatchObject({ code: 'EINVAL' });
  // What a peer may not ask for.
  const asked = (what: number) =>
    world.finish(
      one.fabric
        .peer(nodeId(2))
        .request(T.fabricTest, Uint8Array.of(what), ok)
        .catch((error: unknown) => error),
    );
  expect(await asked(1)).toMatchObject({ code: 'EINVAL' });
  expect(await asked(9)).toMatchObject({ code: 'EINVAL' });
});

test('a peer that dies in the midst of a test of the rungs: each says so by its deadline, and another can be begun', async () => {
  const world = new World();
  const [one, two] = [await world.node(1), await world.node(2)];
  const [first] = [one, two].map(
    ({ fabric, pool }) => new RungTest(fabric, pool, { offsetBytes: 1 << 20, lengthBytes: 1 << 18 }, world.clock),
  ) as [RungTest];
  const running = first.run(2, ['rdma', 'tcp']);
  await world.run(60_000, () => one.fabric.traffic.transfersOut > 2);
  world.verbs.setReachable('node-1', 'node-2', false);
  world.tcp.setReachable('node-1', 'node-2', false);
  const startMs = world.clock.nowMs();
  const results = await world.finish(running);
  expect(results.map(({ transport, error }) => [transport, error === null])).toEqual([
    ['rdma', false],
    ['tcp', false],
  ]);
  // The transfer's deadline, and that of the goodbye, with what dialling takes.
  expect(world.clock.nowMs() - startMs).toBeLessThan(60_000);
  await expect(world.finish(first.run(2, ['tcp']))).rejects.toMatchObject({ code: 'ETIMEDOUT' });
});
