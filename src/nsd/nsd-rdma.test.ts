import { afterEach, describe, expect, it } from 'vitest';
import { Counters } from '../common/counters.js';
import { epoch, incarnation, nodeId, nsdIndex } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { SECTOR_BYTES } from '../common/units.js';
import { LadderTransport } from '../fabric/ladder-transport.js';
import type { TransportAddress } from '../fabric/link.js';
import { MemoryNetwork } from '../fabric/memory-link.js';
import { VerbsNetwork, type VerbsStep, type VerbsVerdict } from '../fabric/memory-verbs.js';
import { UNIT_HEADER_BYTES } from '../fabric/rdma-wire.js';
import { type TestNode, testNode, VirtualClock } from '../fabric/test-support.js';
import { SegmentArena } from '../native/buffer-arena.js';
import { heapPagePool } from '../native/page-pool.js';
import { FRAME_HEADER_BYTES } from '../protocol/frame.js';
import { checksumsJs } from './checksum-js.js';
import { NsdClient } from './nsd-client.js';
import { NsdServer } from './nsd-server.js';
import { NsdStore } from './nsd-store.js';
import { deviceBytesFor, mustAllocate, RamDevice } from './testing.js';

/** An NSD over verbs in memory: what a read costs there, and what a connection that breaks in the midst of one leaves. */
const UUID = '11111111-2222-4333-8444-555555555555';
const NSD = nsdIndex(3);
const BARE_ACK_BYTES = UNIT_HEADER_BYTES + FRAME_HEADER_BYTES;
const nodes: TestNode[] = [];
afterEach(async () => {
  for (const node of nodes.splice(0)) await node.fabric.close();
});

class World {
  readonly clock = new VirtualClock();
  readonly verbs = new VerbsNetwork(this.clock);
  readonly tcp = new MemoryNetwork(this.clock);
  readonly addresses = new Map<number, TransportAddress>();
  readonly steps: string[] = [];
  verdict: (step: VerbsStep) => VerbsVerdict = () => ({ delayMs: 0 });
  client!: NsdClient;
  clientNode!: TestNode;
  serverArena!: SegmentArena;

  static async make(): Promise<World> {
    const world = new World();
    const server = await world.#node(1);
    world.clientNode = await world.#node(2);
    const arena = new SegmentArena({ offsetBytes: 0, lengthBytes: server.pool.lengthBytes });
    const device = new RamDevice(deviceBytesFor(600), server.pool);
    const parts = { device, pool: server.pool, checksums: checksumsJs, staging: mustAllocate(arena, 16) };
    await NsdStore.format(parts, { uuid: UUID, clusterId: 'test-cluster', failureGroup: 1, name: 'n' });
    world.serverArena = arena;
    const nsdServer = new NsdServer({ fabric: server.fabric, pool: server.pool, arena, checksums: checksumsJs });
    nsdServer.export(await NsdStore.open(parts), epoch(0));
    world.client = new NsdClient({
      fabric: world.clientNode.fabric,
      pool: world.clientNode.pool,
      checksums: checksumsJs,
      clock: world.clock,
      locate: (nsd) => (nsd === NSD ? { uuid: UUID, servers: [nodeId(1)] } : null),
    });
    world.verbs.policy = (step) => {
      // A message that acknowledges and says nothing more waits for nobody, and nobody for it.
      if (step.op !== 'send' || step.lengthBytes > BARE_ACK_BYTES) world.steps.push(`${step.from} ${step.op}`);
      return world.verdict(step);
    };
    return world;
  }

  async #node(id: number): Promise<TestNode> {
    const host = `node-${id}`;
    const pool = heapPagePool(8 << 20);
    const ladder = await this.finish(
      LadderTransport.create({
        self: { nodeId: nodeId(id), incarnation: incarnation(1) },
        clusterId: 'test-cluster',
        pool,
        clock: this.clock,
        counters: new Counters(),
        logger: silentLogger,
        tcp: this.tcp.transport(host, pool),
        mode: 'auto',
        openPort: (memory) => this.verbs.port(host, memory),
      }),
    );
    const { clock, addresses } = this;
    const made = testNode({ node: id, pool, clock, addresses, transport: () => ladder });
    nodes.push(made);
    addresses.set(id, await this.finish(made.fabric.listen({ host, port: 1 })));
    return made;
  }

  async finish<R>(promise: Promise<R>): Promise<R> {
    let over = false;
    const mark = () => {
      over = true;
    };
    promise.then(mark, mark);
    await this.clock.run(this.clock.nowMs() + 600_000, () => over);
    return promise;
  }

  /** Writes sectors and reads them back somewhere else; true: they are the same. */
  async readBack(count: number): Promise<boolean> {
    const from = { offsetBytes: 0, lengthBytes: count * SECTOR_BYTES };
    const to = { offsetBytes: 4 << 20, lengthBytes: count * SECTOR_BYTES };
    const { bytes } = this.clientNode.pool;
    for (let i = 0; i < from.lengthBytes; i++) bytes[i] = (i * 7 + (i >> 9)) & 0xff;
    await this.finish(this.client.write([{ nsd: NSD, sector: 50, memory: from }]));
    await this.clock.run(this.clock.nowMs() + 1000);
    this.steps.length = 0;
    await this.finish(this.client.read([{ nsd: NSD, sector: 50, memory: to }]));
    const read = Buffer.from(bytes.subarray(to.offsetBytes, to.offsetBytes + to.lengthBytes));
    return read.equals(Buffer.from(bytes.subarray(0, from.lengthBytes)));
  }
}

describe('an NSD over RDMA', () => {
  it('a read of one block is bind and request, write and reply, and the invalidate: the reply waits for no write', async () => {
    const world = await World.make();
    const freeBytes = world.serverArena.freeBytes;
    expect(await world.readBack(16)).toBe(true);
    expect(world.steps).toEqual(['node-2 bind', 'node-2 send', 'node-1 write', 'node-1 send', 'node-2 invalidate']);
    await world.clock.run(world.clock.nowMs() + 1000);
    expect(world.serverArena.freeBytes).toBe(freeBytes);
    expect(world.clientNode.fabric.traffic.transfersOut).toBe(0);
  });

  it('a read that fits into a message is request and reply', async () => {
    const world = await World.make();
    expect(await world.readBack(1)).toBe(true);
    expect(world.steps).toEqual(['node-2 send', 'node-1 send']);
  });

  it.each(['write', 'send'])(
    'S1: the connection breaks at the %s behind which the reply may go: what the reply promises is read again, not believed',
    async (op) => {
      const world = await World.make();
      const freeBytes = world.serverArena.freeBytes;
      let broken = 0;
      let armed = false;
      world.verdict = (step) => {
        if (step.from === 'node-1' && step.op === 'write') armed = true;
        if (!armed || broken > 0 || step.from !== 'node-1' || step.op !== op) return { delayMs: 0 };
        broken++;
        return { status: 'retryExceeded' };
      };
      expect(await world.readBack(16)).toBe(true);
      expect(broken).toBe(1);
      expect(world.client.counters.get('nsd.changedOnTheWay')).toBe(op === 'write' ? 1 : 0);
      await world.clock.run(world.clock.nowMs() + 60_000);
      expect(world.serverArena.freeBytes).toBe(freeBytes);
      // And on it goes.
      world.steps.length = 0;
      expect(await world.readBack(16)).toBe(true);
    },
  );
});
