import { fork } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { BlockEngine } from 'napi-nvme';
import { epoch, nodeId, nsdIndex } from '../src/common/ids.js';
import { SECTOR_BYTES } from '../src/common/units.js';
import type { TransportAddress } from '../src/fabric/link.js';
import { realClock } from '../src/fabric/test-support.js';
import { SegmentArena } from '../src/native/buffer-arena.js';
import { crc32c, crc32cSectors } from '../src/native/core.js';
import { type BlockEngineDevice, PoolEngine } from '../src/nsd/block-engine-device.js';
import type { Checksums } from '../src/nsd/checksums.js';
import { NsdClient } from '../src/nsd/nsd-client.js';
import { NsdServer } from '../src/nsd/nsd-server.js';
import { NSD_STAGING_BYTES_MIN, NsdStore } from '../src/nsd/nsd-store.js';
import { MessageType } from '../src/protocol/message-types.js';
import { addressFile, type HardwareNode, hardwareNode, publish, published } from './fabric-peer.js';

/**
 * What a cold read through an NSD server over RDMA costs above the device itself, in message round trips of the same link: node 2, a process
 * of its own, serves an NVMe namespace, node 1 reads blocks that nobody has cached. All three are taken in turns; medians. Prints a
 * line for each block size and `N passed, N failed` against the goal. THE NAMESPACE IS OVERWRITTEN.
 *
 *     npm run hw-test -- --only cold-read
 */
const GOAL_ROUND_TRIPS = 2.5;
const BLOCKS = [4096, 16_384, 65_536];
const UUID = '5b0d3f6e-58a4-4a7c-9a53-6f0a3a2f7c11';
const NSD = nsdIndex(0);
const AREA_BYTES = 16 << 20;
const MIB = 1 << 20;
const ROUNDS = 9;
const PER_ROUND = 40;
const ROUND_MS_MAX = 3000;
/** Until what is often called is compiled. */
const WARM_UPS = 12;
const TIMEOUT_MS = 30_000;
/** The upper part of the pool, above what the fabric's own tests use. */
const LOCAL = { offsetBytes: 6 << 20, lengthBytes: MIB };

const checksums: Checksums = {
  sectors: (bytes, offsetBytes, sectorCount, out, outIndex) =>
    crc32cSectors(bytes, offsetBytes, sectorCount, out, outIndex),
  bytes: (bytes) => crc32c(bytes),
};

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

/** Of each, taken in turns: the load of the machine changes from moment to moment. */
async function mediansUs(...ways: readonly (() => Promise<unknown>)[]): Promise<number[]> {
  const times: number[][] = ways.map(() => []);
  const endMs = performance.now() + ROUND_MS_MAX;
  for (let i = 0; i < PER_ROUND && (performance.now() < endMs || i === 0); i++)
    for (const [way, one] of ways.entries()) {
      const startMs = performance.now();
      await one();
      times[way]!.push((performance.now() - startMs) * 1000);
    }
  return times.map(median);
}

/** A place in the area that was written, chosen anew for every read: neither side caches data. */
const place = (bytes: number): number => Math.floor(Math.random() * (AREA_BYTES / bytes)) * bytes;

async function serve(): Promise<void> {
  const namespace = (process.env['HOLDFAST_HW_NVME'] ?? '').split(',')[0] ?? '';
  if (namespace === '') throw new Error('no namespace may be written to here: name some with --nvme');
  const addresses = new Map<number, TransportAddress>();
  const node = await hardwareNode(2, addresses);
  const engine = new PoolEngine(new BlockEngine({ queueDepth: 32 }), node.pool);
  const device: BlockEngineDevice = await engine.open(namespace);
  const arena = new SegmentArena({ offsetBytes: 0, lengthBytes: 4 << 20 });
  const staging = arena.tryAllocate(NSD_STAGING_BYTES_MIN)!;
  const parts = { device, pool: node.pool, checksums, staging };
  await NsdStore.format(parts, { uuid: UUID, clusterId: 'hw-test', failureGroup: 1, name: 'cold-read' });
  const server = new NsdServer({ fabric: node.fabric, pool: node.pool, arena, checksums });
  server.export(await NsdStore.open(parts), epoch(0));
  // The device alone, as this process reaches it.
  node.fabric.handleRequests(MessageType.clientCall, async ({ body }) => {
    const bytes = new DataView(body.buffer, body.byteOffset, body.byteLength).getUint32(0, true);
    const memory = { offsetBytes: LOCAL.offsetBytes, lengthBytes: bytes };
    const answer = new Float64Array(1);
    [answer[0]] = (await mediansUs(() => device.read(MIB + place(bytes), memory))) as [number];
    return new Uint8Array(answer.buffer);
  });
  process.on('message', () => process.exit(0));
  publish(2, node.address);
  addresses.set(1, await published(1, performance.now() + 100_000));
}

async function measure(node: HardwareNode): Promise<boolean> {
  const peer = node.fabric.peer(nodeId(2));
  const client = new NsdClient({
    fabric: node.fabric,
    pool: node.pool,
    checksums,
    clock: realClock,
    locate: (nsd) => (nsd === NSD ? { uuid: UUID, servers: [nodeId(2)] } : null),
  });
  for (let at = 0; at < AREA_BYTES; at += MIB)
    await client.write([{ nsd: NSD, sector: at / SECTOR_BYTES, memory: LOCAL }]);
  const ping = () => peer.request(MessageType.ping, new Uint8Array(64), { timeoutMs: TIMEOUT_MS });
  const deviceUs = async (bytes: number): Promise<number> => {
    const body = new Uint8Array(4);
    new DataView(body.buffer).setUint32(0, bytes, true);
    const answer = await peer.request(MessageType.clientCall, body, { timeoutMs: TIMEOUT_MS });
    return new DataView(answer.buffer, answer.byteOffset).getFloat64(0, true);
  };
  const read = (bytes: number) => () =>
    client.read([
      {
        nsd: NSD,
        sector: place(bytes) / SECTOR_BYTES,
        memory: { offsetBytes: LOCAL.offsetBytes, lengthBytes: bytes },
      },
    ]);
  for (let warmUp = 0; warmUp < WARM_UPS; warmUp++) await mediansUs(ping, ...BLOCKS.map(read));
  let met = true;
  for (const bytes of BLOCKS) {
    const rounds: { read: number; device: number; trip: number }[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const device = await deviceUs(bytes);
      const [trip, whole] = (await mediansUs(ping, read(bytes))) as [number, number];
      rounds.push({ trip, device, read: whole });
    }
    const trips = median(rounds.map((round) => (round.read - round.device) / round.trip));
    const us = (of: 'read' | 'device' | 'trip') => Math.round(median(rounds.map((round) => round[of])));
    process.stdout.write(
      `cold read of ${bytes} bytes: p50 ${us('read')} µs = device ${us('device')} µs + ${trips.toFixed(2)} round trips of ${us('trip')} µs (goal ${GOAL_ROUND_TRIPS})\n`,
    );
    if (bytes === SECTOR_BYTES) met = trips <= GOAL_ROUND_TRIPS;
  }
  const link = node.fabric.peers().find((status) => status.nodeId === 2)?.transport;
  if (link !== 'rdma') throw new Error(`that was over ${link ?? 'nothing'}, not RDMA`);
  return met;
}

if (process.argv[2] === 'serve') await serve();
else {
  mkdirSync(path.dirname(addressFile(1)), { recursive: true });
  const addresses = new Map<number, TransportAddress>();
  const node = await hardwareNode(1, addresses);
  publish(1, node.address);
  const server = fork(fileURLToPath(import.meta.url), ['serve'], { execArgv: [] });
  server.on('exit', (status) => {
    process.stderr.write(`the server ended by itself, status ${status}\n`);
    process.exit(1);
  });
  addresses.set(2, await published(2, performance.now() + 100_000));
  const met = await measure(node);
  server.removeAllListeners('exit');
  server.send('end');
  process.stdout.write(met ? '1 passed, 0 failed\n' : '0 passed, 1 failed\n');
  process.exit(met ? 0 : 1);
}
