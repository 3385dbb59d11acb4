import { afterEach, describe, expect, it } from 'vitest';
import { Counters } from '../common/counters.js';
import { FsError, type Reason } from '../common/errors.js';
import { epoch, incarnation, type NodeId, type NsdIndex, nodeId, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { SegmentArena } from '../native/buffer-arena.js';
import { crc32cJs } from '../native/crc32c-js.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import { encodeNsdRead, encodeNsdWrite } from '../protocol/nsd-messages.js';
import { checksumsJs } from './checksum-js.js';
import { FaultDevice } from './fault-device.js';
import type { SectorIo } from './nsd-api.js';
import { NsdClient, type NsdLocation } from './nsd-client.js';
import { NsdServer } from './nsd-server.js';
import { NsdStore, type NsdStoreParts } from './nsd-store.js';
import {
  deviceBytesFor,
  ManualClock,
  mustAllocate,
  RamDevice,
  type TestFabric,
  TestNetwork,
  testMemory,
  turn,
  until,
} from './testing.js';

const UUID = '11111111-2222-4333-8444-555555555555';
const NSD = nsdIndex(0);
const SECTORS = 4000;

interface ServerNode {
  readonly id: NodeId;
  readonly fabric: TestFabric;
  readonly pool: PagePool;
  readonly arena: SegmentArena;
  readonly stagingBytes: number;
  readonly server: NsdServer;
  readonly device: FaultDevice;
  readonly store: NsdStore;
  readonly ram: RamDevice;
  readonly parts: NsdStoreParts;
}
interface ClientNode {
  readonly fabric: TestFabric;
  readonly pool: PagePool;
  readonly arena: SegmentArena;
  readonly client: NsdClient;
  readonly counters: Counters;
}
interface Cluster {
  readonly network: TestNetwork;
  readonly clock: ManualClock;
  readonly servers: ServerNode[];
  readonly client: ClientNode;
  location: NsdLocation | null;
}

let cluster: Cluster;

async function serverNode(
  network: TestNetwork,
  id: number,
  stagingBytes: number,
  shared?: RamDevice,
): Promise<ServerNode> {
  const { pool, arena: all } = testMemory(24 << 20);
  const ram = new RamDevice(deviceBytesFor(SECTORS), pool);
  if (shared !== undefined) ram.bytes.set(shared.bytes);
  const device = new FaultDevice(ram, pool, mustAllocate(all, 1));
  const parts = { device, pool, checksums: checksumsJs, staging: mustAllocate(all, 16) };
  await NsdStore.format(parts, { uuid: UUID, clusterId: 'c', failureGroup: 1, name: 'n' });
  const store = await NsdStore.open(parts);
  const fabric = network.node(id, pool);
  const arena = new SegmentArena(mustAllocate(all, stagingBytes / SECTOR_BYTES));
  const server = new NsdServer({ fabric, pool, arena, checksums: checksumsJs });
  server.export(store, epoch(1));
  return { id: nodeId(id), fabric, pool, arena, stagingBytes, server, device, store, ram, parts };
}

function clientNode(c: Pick<Cluster, 'network' | 'clock'>, id: number, locate: () => NsdLocation | null): ClientNode {
  const { pool, arena } = testMemory(24 << 20);
  const fabric = c.network.node(id, pool);
  const counters = new Counters();
  const client = new NsdClient({
    fabric,
    pool,
    checksums: checksumsJs,
    clock: c.clock,
    locate: (nsd: NsdIndex) => (nsd === NSD ? locate() : null),
    counters,
  });
  return { fabric, pool, arena, client, counters };
}

async function start(options: { servers?: number; stagingBytes?: number } = {}): Promise<Cluster> {
  const network = new TestNetwork();
  const clock = new ManualClock();
  const servers: ServerNode[] = [];
  for (let i = 0; i < (options.servers ?? 1); i++)
    servers.push(await serverNode(network, i + 1, options.stagingBytes ?? 4 << 20));
  const location: NsdLocation = { uuid: UUID, servers: servers.map((server) => server.id) };
  const made: Cluster = {
    network,
    clock,
    servers,
    location,
    client: clientNode({ network, clock }, 9, () => made.location),
  };
  cluster = made;
  return made;
}

/** Whatever a test did: no window stays open, no staging space stays taken. */
afterEach(async () => {
  await until(() => cluster.network.windows.size === 0);
  await until(() => cluster.servers.every((server) => server.arena.freeBytes === server.stagingBytes));
});

function fill(pool: PagePool, memory: PoolSegment, value: number): void {
  for (let at = 0; at < memory.lengthBytes; at += SECTOR_BYTES)
    new Uint32Array(pool.buffer, memory.offsetBytes + at, SECTOR_BYTES / 4).fill(value + at / SECTOR_BYTES);
}
function values(pool: PagePool, memory: PoolSegment): number[] {
  return Array.from(
    { length: memory.lengthBytes / SECTOR_BYTES },
    (_, i) => new Uint32Array(pool.buffer, memory.offsetBytes + i * SECTOR_BYTES, 1)[0]!,
  );
}
const counting = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);
const io = (sector: number, memory: PoolSegment): SectorIo => ({ nsd: NSD, sector, memory });

async function writeValues(c: ClientNode, sector: number, count: number, value: number): Promise<void> {
  const memory = mustAllocate(c.arena, count);
  fill(c.pool, memory, value);
  try {
    await c.client.write([io(sector, memory)]);
  } finally {
    c.arena.free(memory);
  }
}
async function readValues(c: ClientNode, sector: number, count: number): Promise<number[]> {
  const memory = mustAllocate(c.arena, count);
  try {
    await c.client.read([io(sector, memory)]);
    return values(c.pool, memory);
  } finally {
    c.arena.free(memory);
  }
}
const reasonOf = async (work: Promise<unknown>): Promise<Reason | 'none'> =>
  work.then(
    () => 'none' as const,
    (error: unknown) => {
      if (FsError.is(error)) return error.reason;
      throw error;
    },
  );

describe('an NSD over the fabric', () => {
  it('carries small requests inside the message, without a window', async () => {
    const { client, network } = await start();
    await writeValues(client, 5, 4, 100);
    expect(await readValues(client, 4, 4)).toEqual([0, 100, 101, 102]);
    expect(network.windowsOpened).toBe(0);
  });

  it('writes and flushes with one request', async () => {
    const { client, servers } = await start();
    const memory = mustAllocate(client.arena, 2);
    fill(client.pool, memory, 7);
    const flushes = servers[0]!.device.operations.flush;
    await client.client.write([io(3, memory)], { flush: 'log' });
    expect(client.counters.get('nsd.requests')).toBe(1);
    expect(client.counters.get('nsd.flushes.log')).toBe(1);
    expect(servers[0]!.device.operations.flush - flushes).toBe(1);
    client.arena.free(memory);
    expect(await readValues(client, 3, 2)).toEqual([7, 8]);
  });

  it('carries large requests through one window each, both ways', async () => {
    const { client, network } = await start();
    await writeValues(client, 10, 700, 1000);
    expect(network.windowsOpened).toBe(1);
    expect(await readValues(client, 9, 702)).toEqual([0, ...counting(1000, 700), 0]);
    expect(network.windowsOpened).toBe(2);
  });

  it('gathers scattered sectors and scattered memory into one request, in order', async () => {
    const { client } = await start();
    const [a, gap, b, c] = [2, 1, 3, 4].map((count) => mustAllocate(client.arena, count)) as [
      PoolSegment,
      PoolSegment,
      PoolSegment,
      PoolSegment,
    ];
    client.arena.free(gap);
    fill(client.pool, a, 10);
    fill(client.pool, b, 20);
    fill(client.pool, c, 30);
    await client.client.write([io(100, a), io(50, b), io(53, c)]);
    expect(client.counters.get('nsd.requests')).toBe(1);
    expect(await readValues(client, 50, 7)).toEqual([20, 21, 22, 30, 31, 32, 33]);
    for (const one of [a, b, c]) fill(client.pool, one, 7777);
    await client.client.read([io(53, c), io(100, a), io(50, b)]);
    expect([...values(client.pool, a), ...values(client.pool, b), ...values(client.pool, c)]).toEqual([
      10, 11, 20, 21, 22, 30, 31, 32, 33,
    ]);
  });

  it('splits what is more than a window, or more than 64 pieces of memory', async () => {
    const { client } = await start();
    await writeValues(client, 0, 2500, 1);
    expect(client.counters.get('nsd.requests')).toBe(2);
    expect(await readValues(client, 0, 2500)).toEqual(counting(1, 2500));
    const pieces = Array.from({ length: 140 }, () => mustAllocate(client.arena, 1));
    const scattered = pieces.filter((_, i) => i % 2 === 0);
    const before = client.counters.get('nsd.requests');
    await client.client.read(scattered.map((memory, i) => io(i, memory)));
    expect(client.counters.get('nsd.requests') - before).toBe(2);
    expect(scattered.flatMap((memory) => values(client.pool, memory))).toEqual(counting(1, 70));
  });

  it('serves more than its staging space holds, piece after piece', async () => {
    const { client } = await start({ stagingBytes: 1 << 20 });
    await Promise.all([0, 1, 2].map((i) => writeValues(client, i * 1000, 1000, i * 5000)));
    const all = await Promise.all([0, 1, 2].map((i) => readValues(client, i * 1000, 1000)));
    expect(all).toEqual([0, 1, 2].map((i) => counting(i * 5000, 1000)));
  });

  it('goes straight to the device, without message, copy or window, where the server is this node', async () => {
    const { servers, network, clock } = await start();
    const { fabric, pool, server, store } = servers[0]!;
    const counters = new Counters();
    const location = { uuid: UUID, servers: [nodeId(1)] };
    const parts = { fabric, pool, checksums: checksumsJs, clock, counters, locate: () => location };
    const client = new NsdClient({ ...parts, localStore: (uuid) => server.store(uuid) });
    const memory = { offsetBytes: 20 << 20, lengthBytes: 16 * SECTOR_BYTES };
    const half = { offsetBytes: memory.offsetBytes, lengthBytes: 8 * SECTOR_BYTES };
    const rest = { offsetBytes: memory.offsetBytes + half.lengthBytes, lengthBytes: 8 * SECTOR_BYTES };
    fill(pool, memory, 60);
    await client.write([io(40, half), io(70, rest)]);
    fill(pool, memory, 1);
    await client.read([io(70, half), io(40, rest)]);
    expect(values(pool, memory)).toEqual([...counting(68, 8), ...counting(60, 8)]);
    await client.flush([NSD]);
    await client.discard([{ nsd: NSD, sector: 40, sectorCount: 1 }]);
    await client.read([io(40, half)]);
    expect(values(pool, half)[0]).toBe(0);
    expect((await client.info(NSD)).dataSectorCount).toBe(store.dataSectorCount);
    expect(counters.get('nsd.requests')).toBe(0);
    expect(network.windowsOpened).toBe(0);
  });

  it('flushes the device, discards, and tells about the NSD', async () => {
    const { client, servers } = await start();
    await writeValues(client, 5, 2, 1);
    const before = servers[0]!.device.operations.flush;
    await client.client.flush([NSD, NSD]);
    expect(servers[0]!.device.operations.flush - before).toBe(1);
    await client.client.discard([{ nsd: NSD, sector: 6, sectorCount: 1 }]);
    expect(await readValues(client, 5, 2)).toEqual([1, 0]);
    expect(await client.client.info(NSD)).toEqual({
      nsd: UUID,
      fsUuid: null,
      name: 'n',
      failureGroup: 1,
      dataSectorCount: SECTORS,
      generation: 2,
    });
  });
});

describe('bytes that change on the way', () => {
  for (const [way, count] of [
    ['through a window', 40],
    ['inside the message', 2],
  ] as const) {
    it(`are noticed and fetched again: ${way}`, async () => {
      const { client, network } = await start();
      await writeValues(client, 0, count, 1);
      let flips = 1;
      const flip = (bytes: Uint8Array): void => {
        if (flips-- > 0) bytes[bytes.length - 100]! ^= 4;
      };
      network.onTransfer = flip;
      network.onReply = (body, type) => {
        if (type === MessageType.nsdRead && count === 2) flip(body);
        return body;
      };
      expect(await readValues(client, 0, count)).toEqual(counting(1, count));
      expect(client.counters.get('nsd.changedOnTheWay')).toBe(1);
      expect(flips).toBeLessThan(0);
    });
  }

  it('never reach a device, nor a reader, however often it happens', async () => {
    const { client, network, servers } = await start();
    await writeValues(client, 0, 40, 1);
    network.onTransfer = (bytes) => {
      bytes[9]! ^= 1;
    };
    expect(await reasonOf(writeValues(client, 0, 40, 500))).toBe('badChecksum');
    expect(await reasonOf(readValues(client, 0, 40))).toBe('badChecksum');
    expect(servers[0]!.server.counters.get('nsd.refused.badChecksum')).toBe(3);
    network.onTransfer = () => undefined;
    expect(await readValues(client, 0, 40)).toEqual(counting(1, 40));
  });

  it('on the device itself are reported once and not retried on the same copy', async () => {
    const { client, servers } = await start();
    await writeValues(client, 0, 40, 1);
    const { device, store } = servers[0]!;
    await device.corrupt((store.geometry.dataStart + 7) * SECTOR_BYTES);
    const memory = mustAllocate(client.arena, 40);
    await expect(client.client.read([io(0, memory)])).rejects.toMatchObject({
      reason: 'checksumMismatch',
      object: `nsd ${UUID} sector 7`,
    });
    expect(client.counters.get('nsd.retries')).toBe(0);
  });
});

describe('a failing server', () => {
  it('answers device errors, a full device and short reads with their own reason', async () => {
    const { client, servers } = await start();
    const { device } = servers[0]!;
    await writeValues(client, 0, 40, 1);
    device.inject({ operation: 'read', kind: 'eio', times: 1 });
    expect(await reasonOf(readValues(client, 0, 40))).toBe('deviceError');
    device.inject({ operation: 'read', kind: 'short', times: 1 });
    expect(await reasonOf(readValues(client, 0, 40))).toBe('shortIo');
    device.inject({ operation: 'write', kind: 'enospc', times: 1 });
    expect(await reasonOf(writeValues(client, 0, 40, 9))).toBe('noSpace');
    device.inject({ operation: 'flush', kind: 'eio', times: 1 });
    expect(await reasonOf(client.client.flush([NSD]))).toBe('deviceError');
    expect(await readValues(client, 0, 40)).toEqual(counting(1, 40));
  });

  it('is passed over for the next one in the list, with a fresh window', async () => {
    const { client, servers, network } = await start({ servers: 2 });
    servers[0]!.server.unexport(UUID);
    await writeValues(client, 0, 40, 1);
    expect(network.windowsOpened).toBe(2);
    expect(client.counters.get('nsd.retries')).toBe(1);
    network.onRequest = (_from, to) => {
      if (to === nodeId(1)) throw new FsError('unreachable', { op: 'test' });
    };
    expect(await readValues(client, 0, 40)).toEqual(counting(1, 40));
  });

  it('is tried again until the deadline, then the last reason is told', async () => {
    const { client, clock, network } = await start();
    let attempts = 0;
    network.onRequest = () => {
      attempts++;
      throw new FsError('connectionLost', { op: 'test', detail: 'cable pulled' });
    };
    const memory = mustAllocate(client.arena, 1);
    const outcome = client.client.read([io(0, memory)], { timeoutMs: 1000 }).catch((error: unknown) => error);
    let over = false;
    void outcome.then(() => {
      over = true;
    });
    while (!over) {
      await until(() => over || clock.pending > 0);
      clock.advance(100);
      await turn();
    }
    expect(await outcome).toMatchObject({ reason: 'deadlinePassed', code: 'ETIMEDOUT', message: /cable pulled/ });
    expect(attempts).toBeGreaterThan(2);
  });

  it('found by a new view of the cluster is used from the next attempt on', async () => {
    const c = await start({ servers: 2 });
    c.servers[0]!.server.unexport(UUID);
    c.location = { uuid: UUID, servers: [nodeId(1)] };
    const writing = writeValues(c.client, 0, 1, 5);
    await until(() => c.clock.pending > 0);
    c.location = { uuid: UUID, servers: [nodeId(2)] };
    c.clock.advance(1000);
    await writing;
    const second = c.servers[1]!;
    const memory = mustAllocate(second.arena, 1);
    await second.store.read(0, memory);
    expect(values(second.pool, memory)).toEqual([5]);
    second.arena.free(memory);
  });

  it('is not waited for when no server has a path to the NSD, or there is no such NSD', async () => {
    const c = await start();
    c.location = { uuid: UUID, servers: [] };
    expect(await reasonOf(readValues(c.client, 0, 1))).toBe('nsdUnavailable');
    const memory = mustAllocate(c.client.arena, 1);
    expect(await reasonOf(c.client.client.read([{ nsd: nsdIndex(5), sector: 0, memory }]))).toBe('nsdUnavailable');
  });

  it('that hangs is left by an abort, and the window is closed before the caller hears of it', async () => {
    const { client, servers, network } = await start();
    const stall = servers[0]!.device.inject({ operation: 'write', kind: 'stall' });
    const controller = new AbortController();
    const memory = mustAllocate(client.arena, 40);
    const outcome = reasonOf(client.client.write([io(0, memory)], { signal: controller.signal }));
    await until(() => stall.stalledCount > 0);
    expect(network.windows.size).toBe(1);
    controller.abort();
    expect(await outcome).toBe('aborted');
    expect(network.windows.size).toBe(0);
    stall.release();
  });

  it('sees no more requests at once than the client may have in flight', async () => {
    const { client, network } = await start();
    const limited = new NsdClient({
      fabric: client.fabric,
      pool: client.pool,
      checksums: checksumsJs,
      clock: cluster.clock,
      locate: () => cluster.location,
      requestsMax: 2,
    });
    let now = 0;
    let most = 0;
    network.onRequest = () => {
      most = Math.max(most, ++now);
    };
    network.onReply = (body) => {
      now--;
      return body;
    };
    const memory = mustAllocate(client.arena, 10);
    await Promise.all(
      counting(0, 10).map((i) =>
        limited.read([io(i, { offsetBytes: memory.offsetBytes + i * SECTOR_BYTES, lengthBytes: SECTOR_BYTES })]),
      ),
    );
    expect(most).toBe(2);
  });
});

describe('a request that can not be right', () => {
  it('is refused when it names sectors that are not there, and has no effect', async () => {
    const { client, servers } = await start();
    expect(await reasonOf(readValues(client, SECTORS - 1, 2))).toBe('outOfRange');
    const memory = mustAllocate(client.arena, 40);
    const half = { offsetBytes: memory.offsetBytes, lengthBytes: 20 * SECTOR_BYTES };
    const rest = { offsetBytes: memory.offsetBytes + 20 * SECTOR_BYTES, lengthBytes: 20 * SECTOR_BYTES };
    expect(await reasonOf(client.client.write([io(0, half), io(SECTORS - 10, rest)]))).toBe('outOfRange');
    expect(await reasonOf(client.client.discard([{ nsd: NSD, sector: SECTORS, sectorCount: 1 }]))).toBe('outOfRange');
    expect(await readValues(client, 0, 20)).toEqual(new Array(20).fill(0));
    expect(servers[0]!.server.counters.get('nsd.refused.outOfRange')).toBe(3);
  });

  it('is refused by the client when its memory is not whole sectors of the pool', async () => {
    const { client } = await start();
    for (const memory of [
      { offsetBytes: 100, lengthBytes: SECTOR_BYTES },
      { offsetBytes: 0, lengthBytes: 100 },
      { offsetBytes: 0, lengthBytes: 0 },
      { offsetBytes: 24 << 20, lengthBytes: SECTOR_BYTES },
    ])
      expect(await reasonOf(client.client.read([io(0, memory)]))).toBe('invalidArgument');
    expect(await reasonOf(client.client.read([io(-1, { offsetBytes: 0, lengthBytes: SECTOR_BYTES })]))).toBe(
      'outOfRange',
    );
  });

  it('is refused when a window is too short, gone, or another one’s', async () => {
    const { client } = await start();
    const peer = client.fabric.peer(nodeId(1));
    const memory = mustAllocate(client.arena, 4);
    const extents = [{ sector: 0, sectorCount: 8 }];
    const short = client.fabric.expose(nodeId(1), [memory], 'write');
    const ask = (window: Uint8Array): Promise<Reason | 'none'> =>
      reasonOf(peer.request(MessageType.nsdRead, encodeNsdRead({ nsd: UUID, extents, window }), { timeoutMs: 1 }));
    expect(await ask(short.remote)).toBe('outOfRange');
    await short.close();
    expect(await ask(short.remote)).toBe('wrongKeyWindow');
    const crcs = new Uint32Array(8).fill(crc32cJs(new Uint8Array(SECTOR_BYTES)));
    const body = encodeNsdWrite({
      nsd: UUID,
      extents,
      crcs,
      versions: null,
      logged: false,
      exposed: false,
      selfChecking: false,
      durable: false,
      window: short.remote,
      data: null,
    });
    expect(await reasonOf(peer.request(MessageType.nsdWrite, body, { timeoutMs: 1 }))).toBe('wrongKeyWindow');
  });

  it('is refused when it is not a request at all', async () => {
    const { client, servers } = await start();
    const peer = client.fabric.peer(nodeId(1));
    const types = ['nsdRead', 'nsdWrite', 'nsdFlush', 'nsdFence', 'nsdVersions'] as const;
    for (const type of types.map((name) => MessageType[name]))
      expect(await reasonOf(peer.request(type, new Uint8Array(7), { timeoutMs: 1 }))).toBe('badFrame');
    expect(servers[0]!.server.counters.get('nsd.refused.badFrame')).toBe(types.length);
  });

  it('is refused when it is for an NSD that is not served here', async () => {
    const { client } = await start();
    const body = encodeNsdRead({
      nsd: '99999999-2222-4333-8444-555555555555',
      extents: [{ sector: 0, sectorCount: 1 }],
      window: null,
    });
    const asked = client.fabric.peer(nodeId(1)).request(MessageType.nsdRead, body, { timeoutMs: 1 });
    expect(await reasonOf(asked)).toBe('nsdUnavailable');
  });
});

describe('a fence (F1)', () => {
  const order = (
    upTo = 1,
  ): { node: NodeId; upTo: ReturnType<typeof incarnation>; epoch: ReturnType<typeof epoch> } => ({
    node: nodeId(9),
    upTo: incarnation(upTo),
    epoch: epoch(2),
  });

  it('is acknowledged only when the writes under way are drained, and nothing of the fenced node reaches a device after', async () => {
    const c = await start();
    const { device } = c.servers[0]!;
    const other = clientNode(c, 8, () => c.location);
    other.fabric.setEpoch(epoch(2));
    const stall = device.inject({ operation: 'write', kind: 'stall' });
    const writing = writeValues(c.client, 0, 1, 1);
    await until(() => stall.stalledCount === 1);
    let acknowledged = false;
    const fencing = other.client.fence(nodeId(1), order(), { timeoutMs: 1000 }).then(() => {
      acknowledged = true;
    });
    for (let i = 0; i < 20; i++) await turn();
    expect(acknowledged).toBe(false);
    stall.release();
    await writing;
    await fencing;
    const writes = device.operations.write;
    expect(await reasonOf(writeValues(c.client, 0, 1, 2))).toBe('fenced');
    expect(await reasonOf(readValues(c.client, 0, 1))).toBe('fenced');
    expect(await reasonOf(c.client.client.discard([{ nsd: NSD, sector: 0, sectorCount: 1 }]))).toBe('fenced');
    expect(await reasonOf(c.client.client.flush([NSD]))).toBe('fenced');
    expect(device.operations.write).toBe(writes);
    expect(await readValues(other, 0, 1)).toEqual([1]);
    expect(c.servers[0]!.server.counters.get('nsd.refused.fenced')).toBe(4);
  });

  it('does not wait for a write that still waits for bytes of the dead node, and refuses it when they come', async () => {
    const c = await start();
    const { device, server } = c.servers[0]!;
    let goOn = (): void => undefined;
    let waiting = false;
    c.network.onTransfer = () =>
      new Promise<void>((resolve) => {
        waiting = true;
        goOn = resolve;
      });
    const outcome = reasonOf(writeValues(c.client, 0, 40, 1));
    await until(() => waiting);
    await server.fence(nodeId(9), incarnation(1), epoch(2));
    const writes = device.operations.write;
    goOn();
    expect(await outcome).toBe('fenced');
    expect(device.operations.write).toBe(writes);
  });

  it('lets the next incarnation in, at the new epoch', async () => {
    const c = await start();
    await c.servers[0]!.server.fence(nodeId(9), incarnation(1), epoch(2));
    c.client.fabric.self = { nodeId: nodeId(9), incarnation: incarnation(2) };
    c.client.fabric.setEpoch(epoch(2));
    await writeValues(c.client, 0, 1, 3);
    expect(await readValues(c.client, 0, 1)).toEqual([3]);
  });

  it('refuses requests of an older epoch until their sender has caught up', async () => {
    const c = await start();
    const other = clientNode(c, 8, () => c.location);
    await c.servers[0]!.server.fence(nodeId(9), incarnation(1), epoch(2));
    const reading = readValues(other, 0, 1);
    await until(() => c.clock.pending > 0);
    expect(c.servers[0]!.server.counters.get('nsd.refused.staleEpoch')).toBe(1);
    other.fabric.setEpoch(epoch(2));
    c.clock.advance(1000);
    expect(await reading).toEqual([0]);
  });

  it('can be given twice, and not by a fenced node nor by one of an overtaken epoch', async () => {
    const c = await start();
    const other = clientNode(c, 8, () => c.location);
    other.fabric.setEpoch(epoch(2));
    const give = (client: NsdClient): Promise<Reason | 'none'> =>
      reasonOf(client.fence(nodeId(1), order(), { timeoutMs: 1000 }));
    expect(await give(other.client)).toBe('none');
    expect(await give(other.client)).toBe('none');
    other.fabric.setEpoch(epoch(1));
    expect(await give(other.client)).toBe('staleEpoch');
    expect(await give(c.client.client)).toBe('fenced');
  });

  it('of several nodes that are expelled at once come in any order', async () => {
    const c = await start();
    const [other, third] = [8, 7].map((id) => clientNode(c, id, () => c.location));
    other!.fabric.setEpoch(epoch(3));
    const give = (node: number, at: number): Promise<Reason | 'none'> =>
      reasonOf(
        other!.client.fence(
          nodeId(1),
          { node: nodeId(node), upTo: incarnation(1), epoch: epoch(at) },
          { timeoutMs: 1000 },
        ),
      );
    expect(await give(9, 3)).toBe('none');
    expect(await give(7, 2)).toBe('none');
    for (const { fabric } of [c.client, third!]) fabric.setEpoch(epoch(3));
    expect(await reasonOf(writeValues(c.client, 0, 1, 2))).toBe('fenced');
    expect(await reasonOf(writeValues(third!, 0, 1, 2))).toBe('fenced');
  });
});

describe('writes that a server may have lost with its life', () => {
  it('are noticed by whoever had written to it, at the next write or flush, and not when it ended in good order', async () => {
    const { client, servers } = await start();
    const one = servers[0]!;
    const again = async (): Promise<void> => {
      one.server.unexport(UUID);
      one.server.export(await NsdStore.open(one.parts), epoch(1));
    };
    await writeValues(client, 5, 1, 1);
    expect(client.client.lossesOf(NSD)).toBe(0);
    await again();
    await client.client.flush([NSD]);
    expect(client.client.lossesOf(NSD)).toBe(1);
    await client.client.flush([NSD]);
    expect(client.client.lossesOf(NSD)).toBe(1);
    await again();
    await writeValues(client, 700, 600, 1);
    expect(client.client.lossesOf(NSD)).toBe(2);
    await again();
    await client.client.discard([{ nsd: NSD, sector: 5, sectorCount: 1 }]);
    expect(client.client.lossesOf(NSD)).toBe(3);
    await one.server.store(UUID)!.close();
    one.ram.closed = false;
    await again();
    await client.client.flush([NSD]);
    expect(client.client.lossesOf(NSD)).toBe(3);
  });
});

/** The same through messages and on the node that serves the NSD itself. */
describe.each(['remote', 'local'] as const)('versions of sectors, %s', (where) => {
  async function client(): Promise<ClientNode> {
    const { client: remote, servers, network, clock } = await start();
    if (where === 'remote') return remote;
    const { pool, arena, store, fabric } = servers[0]!;
    // Room beside what the server has of its pool.
    const counters = new Counters();
    const location = { uuid: UUID, servers: [nodeId(1)] };
    const parts = { fabric, pool, checksums: checksumsJs, clock, counters };
    void network;
    return {
      fabric,
      pool,
      arena,
      counters,
      client: new NsdClient({ ...parts, locate: () => location, localStore: () => store }),
    };
  }
  const versionsOf = async (c: ClientNode, sector: number, count: number): Promise<number[]> => {
    const memory = mustAllocate(c.arena, count);
    const versions = new Uint32Array(count);
    await c.client.read([{ ...io(sector, memory), versions }]);
    c.arena.free(memory);
    return [...versions];
  };
  const writeAs = async (c: ClientNode, sector: number, value: number, versions: number[]): Promise<void> => {
    const memory = mustAllocate(c.arena, versions.length);
    fill(c.pool, memory, value);
    try {
      await c.client.write([{ ...io(sector, memory), versions: Uint32Array.from(versions), logged: true }]);
    } finally {
      c.arena.free(memory);
    }
  };

  it('come with a read, each beside its io, whatever the size', async () => {
    const c = await client();
    await writeValues(c, 5, 2, 1);
    await writeValues(c, 6, 1, 1);
    expect(await versionsOf(c, 4, 4)).toEqual([0, 1, 2, 0]);
    await writeValues(c, 100, 600, 1);
    expect(await versionsOf(c, 99, 602)).toEqual([0, ...new Array<number>(600).fill(1), 0]);
    const memory = mustAllocate(c.arena, 3);
    const one = new Uint32Array(1);
    const two = new Uint32Array(1);
    const part = (i: number) => ({ offsetBytes: memory.offsetBytes + i * SECTOR_BYTES, lengthBytes: SECTOR_BYTES });
    await c.client.read([{ ...io(6, part(0)), versions: one }, io(5, part(1)), { ...io(4, part(2)), versions: two }]);
    expect([one[0], two[0]]).toEqual([2, 0]);
    c.arena.free(memory);
  });

  it('are set by a write that names them, the same one twice too, and counted on by one that does not', async () => {
    const c = await client();
    await writeAs(c, 5, 10, [7, 9]);
    await writeAs(c, 5, 10, [7, 9]);
    expect(await versionsOf(c, 5, 2)).toEqual([7, 9]);
    await writeValues(c, 5, 1, 20);
    expect(await versionsOf(c, 5, 2)).toEqual([8, 9]);
    expect(await readValues(c, 5, 2)).toEqual([20, 11]);
  });

  it('refuse a late write of the past as a whole, before any of it is written (L2)', async () => {
    const c = await client();
    const count = 600;
    const all = (version: number): number[] => new Array<number>(count).fill(version);
    await writeAs(c, 0, 1000, all(5));
    const late = all(6);
    late[count - 1] = 4;
    expect(await reasonOf(writeAs(c, 0, 5000, late))).toBe('staleVersion');
    expect(await readValues(c, 0, count)).toEqual(counting(1000, count));
    expect(await versionsOf(c, 0, count)).toEqual(all(5));
  });

  it('compare across the wrap from 2^31-2 to 1', async () => {
    const c = await client();
    await writeAs(c, 3, 1, [2 ** 30]);
    await writeAs(c, 3, 2, [2 ** 31 - 2]);
    await writeValues(c, 3, 1, 3);
    expect(await versionsOf(c, 3, 1)).toEqual([1]);
    expect(await reasonOf(writeAs(c, 3, 4, [2 ** 31 - 2]))).toBe('staleVersion');
    await writeAs(c, 3, 5, [2]);
    expect(await readValues(c, 3, 1)).toEqual([5]);
  });

  it('refuse what was on its way when the sector was discarded, and take what came after', async () => {
    const c = await client();
    await writeAs(c, 3, 1, [4]);
    await c.client.discard([{ nsd: NSD, sector: 3, sectorCount: 1 }]);
    expect(await reasonOf(writeAs(c, 3, 2, [5]))).toBe('staleVersion');
    expect(await readValues(c, 3, 1)).toEqual([0]);
    await writeAs(c, 3, 3, [6]);
    expect(await readValues(c, 3, 1)).toEqual([3]);
  });

  it('are told of many sectors without their bytes, in the order asked, holes and all', async () => {
    const c = await client();
    await writeAs(c, 10, 1, [3, 4, 5]);
    await c.client.discard([{ nsd: NSD, sector: 11, sectorCount: 1 }]);
    const before = cluster.servers[0]!.device.operations.read;
    const extent = (sector: number, sectorCount: number) => ({ nsd: NSD, sector, sectorCount });
    const told = await c.client.versions([extent(12, 1), extent(9, 3), extent(0, 3000), extent(10, 1)]);
    expect([...told.versions.subarray(0, 4)]).toEqual([5, 0, 3, 5]);
    expect([...told.zeros.subarray(0, 4)]).toEqual([0, 1, 0, 1]);
    expect(told.versions.length).toBe(3005);
    expect([...told.versions.subarray(4 + 10, 4 + 13)]).toEqual([3, 5, 5]);
    expect([told.versions.at(-1), told.zeros.at(-1)]).toEqual([3, 0]);
    // Checksum sectors at most.
    expect(cluster.servers[0]!.device.operations.read - before).toBeLessThanOrEqual(6);
    const many = await c.client.versions(Array.from({ length: 20_000 }, (_, i) => extent(i % 3000, 1)));
    expect(many.versions.length).toBe(20_000);
    expect(many.versions[18_010]).toBe(3);
    expect(await c.client.versions([])).toEqual({ versions: new Uint32Array(0), zeros: new Uint8Array(0) });
    expect(await reasonOf(c.client.versions([extent(3999, 2)]))).toBe('outOfRange');
    expect(await reasonOf(c.client.versions([extent(1, 0)]))).toBe('outOfRange');
  });

  it('of another number than there are sectors, or that no write has, are refused', async () => {
    const c = await client();
    expect(await reasonOf(writeAs(c, 3, 1, [0]))).toBe(where === 'remote' ? 'badFrame' : 'invalidArgument');
    const memory = mustAllocate(c.arena, 2);
    const wrong = { ...io(3, memory), versions: new Uint32Array(1) };
    expect(await reasonOf(c.client.write([wrong]))).toBe('invalidArgument');
    expect(await reasonOf(c.client.read([wrong]))).toBe('invalidArgument');
    c.arena.free(memory);
    expect(await readValues(c, 3, 1)).toEqual([0]);
  });
});
