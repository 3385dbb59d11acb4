import { Counters } from '../src/common/counters.js';
import { incarnation, nodeId } from '../src/common/ids.js';
import { silentLogger } from '../src/common/logger.js';
import { FabricNode } from '../src/fabric/fabric-node.js';
import type { TransportAddress } from '../src/fabric/link.js';
import { RdmaTransport } from '../src/fabric/rdma-transport.js';
import { openRdmaPort } from '../src/fabric/rdma-verbs.js';
import { realClock } from '../src/fabric/test-support.js';
import { createPagePool } from '../src/native/core.js';
import type { PagePool } from '../src/native/page-pool.js';
import { MessageType } from '../src/protocol/message-types.js';

/**
 * From which size on a window pays: the median time of a request that opens a window, has it written by the other side, and closes it,
 * once with keys bound for it and once with the bytes in messages; and of a request whose reply carries the bytes, without any window. What
 * `oneSidedAboveBytes` is set by. In a guest:
 *
 *     npm run hw-test -- --run 'node dist/hw-test/rdma-threshold.js'
 */
const SIZES = [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];
const ROUNDS = 120;
const ROUNDS_PER_SIZE = 3;
const ROUND_MS_MAX = 4000;

async function pair(oneSidedAboveBytes: number) {
  const addresses = new Map<number, TransportAddress>();
  const pools = new Map<number, PagePool>();
  const make = async (id: number) => {
    const pool = createPagePool(8 << 20);
    pools.set(id, pool);
    const self = { nodeId: nodeId(id), incarnation: incarnation(1) };
    const common = {
      self,
      clusterId: 'threshold',
      pool,
      clock: realClock,
      counters: new Counters(),
      logger: silentLogger,
    };
    const port = openRdmaPort(pool, { device: process.env['HOLDFAST_HW_RDMA'] ?? null });
    const fabric = new FabricNode({
      ...common,
      clusterKey: Buffer.alloc(32, 1),
      transport: new RdmaTransport({ ...common, port, settings: { oneSidedAboveBytes } }),
      resolveAddress: async (node) => addresses.get(node) ?? null,
    });
    addresses.set(id, await fabric.listen({ host: process.env['HOLDFAST_HW_ADDRESS'] ?? '127.0.0.1', port: 0 }));
    return fabric;
  };
  const [client, server] = [await make(1), await make(2)];
  const serverPool = pools.get(2)!;
  // As an NSD server: writes into the window that the request names, then answers; without one answers with the bytes.
  server.handleRequests(MessageType.nsdRead, async ({ body, peer }) => {
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    const lengthBytes = view.getUint32(0, true);
    if (body.length === 4) return serverPool.bytes.slice(0, lengthBytes);
    await peer.writeRemote(body.slice(4), 0, [{ offsetBytes: 0, lengthBytes }]);
    return new Uint8Array(8);
  });
  return { client, server, pool: pools.get(1)! };
}

function withWindow(client: FabricNode, lengthBytes: number) {
  return async (): Promise<void> => {
    const window = client.expose(nodeId(2), [{ offsetBytes: 0, lengthBytes }], 'write');
    const body = new Uint8Array(4 + window.remote.length);
    new DataView(body.buffer).setUint32(0, lengthBytes, true);
    body.set(window.remote, 4);
    await client.peer(nodeId(2)).request(MessageType.nsdRead, body, { timeoutMs: 30_000 });
    await window.close();
  };
}

function inReply({ client, pool }: { client: FabricNode; pool: PagePool }, lengthBytes: number) {
  return async (): Promise<void> => {
    const body = new Uint8Array(4);
    new DataView(body.buffer).setUint32(0, lengthBytes, true);
    pool.bytes.set(await client.peer(nodeId(2)).request(MessageType.nsdRead, body, { timeoutMs: 30_000 }), 0);
  };
}

async function medianUs(read: () => Promise<void>): Promise<number> {
  const timesUs: number[] = [];
  const endMs = performance.now() + ROUND_MS_MAX;
  for (let i = 0; i < ROUNDS && performance.now() < endMs; i++) {
    const startMs = performance.now();
    await read();
    timesUs.push((performance.now() - startMs) * 1000);
  }
  timesUs.sort((a, b) => a - b);
  return timesUs[timesUs.length >> 1]!;
}

const [bound, messages] = [await pair(0), await pair(1 << 20)];
const ways = (size: number) =>
  [withWindow(bound.client, size), withWindow(messages.client, size), inReply(messages, size)] as const;
for (const way of ways(4096)) await medianUs(way);
process.stdout.write(
  'bytes: one-sided | window, bytes in messages | bytes in the reply (µs; ratios of the first to the others)\n',
);
for (const size of SIZES) {
  const rounds: number[][] = [];
  for (let round = 0; round < ROUNDS_PER_SIZE; round++) {
    const times: number[] = [];
    for (const way of ways(size)) times.push(await medianUs(way));
    rounds.push(times);
  }
  const middle = (of: (times: number[]) => number) => rounds.map(of).sort((a, b) => a - b)[rounds.length >> 1]!;
  const us = [0, 1, 2].map((way) => Math.round(middle((times) => times[way]!)));
  const ratios = [1, 2].map((way) => middle((times) => times[0]! / times[way]!).toFixed(2));
  process.stdout.write(`${size}: ${us.join(' | ')} (${ratios.join(', ')})\n`);
}
for (const { client, server } of [bound, messages]) {
  await client.close();
  await server.close();
}
process.stdout.write('1 passed, 0 failed\n');
process.exit(0);
