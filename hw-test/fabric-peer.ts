import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { Counters } from '../src/common/counters.js';
import { incarnation, nodeId } from '../src/common/ids.js';
import { silentLogger } from '../src/common/logger.js';
import { FabricNode } from '../src/fabric/fabric-node.js';
import { LadderTransport } from '../src/fabric/ladder-transport.js';
import type { TransportAddress } from '../src/fabric/link.js';
import { openRdmaPort } from '../src/fabric/rdma-verbs.js';
import { RungTest } from '../src/fabric/rung-test.js';
import { TcpTransport } from '../src/fabric/tcp-link.js';
import { realClock } from '../src/fabric/test-support.js';
import { crc32c, createPagePool } from '../src/native/core.js';
import type { PagePool } from '../src/native/page-pool.js';
import { MessageType } from '../src/protocol/message-types.js';

/**
 * A node of the hardware tests of the fabric: ladder, pool, and a few requests by which a test looks at it. Run by itself it is
 * node 2: it tells its address through the share and serves until it is told to stop.
 */
const POOL_BYTES = 8 << 20;
const SCRATCH = { offsetBytes: 4 << 20, lengthBytes: 1 << 20 };

export interface HardwareNode {
  readonly fabric: FabricNode;
  readonly ladder: LadderTransport;
  readonly counters: Counters;
  readonly pool: PagePool;
  readonly bytes: Uint8Array;
  readonly rungTest: RungTest;
  readonly address: TransportAddress;
  close(): Promise<void>;
}

export async function hardwareNode(id: number, addresses: Map<number, TransportAddress>): Promise<HardwareNode> {
  const pool = createPagePool(POOL_BYTES);
  const counters = new Counters();
  const self = { nodeId: nodeId(id), incarnation: incarnation(1) };
  const host = process.env['HOLDFAST_HW_ADDRESS'] ?? '127.0.0.1';
  const device = process.env['HOLDFAST_HW_RDMA'] ?? null;
  const ladder = await LadderTransport.create({
    self,
    clusterId: 'hw-test',
    pool,
    clock: realClock,
    counters,
    logger: silentLogger,
    tcp: new TcpTransport(pool, counters),
    mode: 'auto',
    openPort: (memory) => openRdmaPort(memory, { device }),
    // Emulation on a busy host: no reason to fall back by itself.
    timing: { probeMs: 500, dialMs: 20_000 },
  });
  const fabric = new FabricNode({
    self,
    clusterId: 'hw-test',
    clusterKey: Buffer.from('the key of the hardware tests, 32b'),
    clock: realClock,
    logger: silentLogger,
    counters,
    transport: ladder,
    pool,
    handshakeTimeoutMs: 30_000,
    resolveAddress: async (node) => addresses.get(node) ?? null,
  });
  fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const rungTest = new RungTest(fabric, pool, SCRATCH, realClock);
  const address = await fabric.listen({ host, port: 0 });
  addresses.set(id, address);
  return {
    fabric,
    ladder,
    counters,
    pool,
    bytes: pool.bytes,
    rungTest,
    address,
    close: async () => {
      await fabric.close();
      pool.close();
    },
  };
}

/** The requests of a test, JSON in and out. */
export type PeerCall =
  | { readonly do: 'fill'; readonly seed: number }
  | { readonly do: 'expose'; readonly offset: number; readonly length: number; readonly access: 'read' | 'write' }
  | { readonly do: 'close'; readonly name: string }
  | { readonly do: 'crc'; readonly offset: number; readonly length: number }
  | { readonly do: 'state' }
  | { readonly do: 'stop' };

export function fillPool(bytes: Uint8Array, seed: number): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 7 + (i >> 9) + seed) & 0xff;
}

export function serve(node: HardwareNode, stop: () => void): void {
  const windows = new Map<string, { close(): Promise<void> }>();
  let executed = 0;
  const answer = async (call: PeerCall): Promise<unknown> => {
    switch (call.do) {
      case 'fill':
        return fillPool(node.bytes, call.seed);
      case 'expose': {
        const segment = { offsetBytes: call.offset, lengthBytes: call.length };
        const window = node.fabric.expose(nodeId(1), [segment], call.access);
        const name = Buffer.from(window.remote).toString('hex');
        windows.set(name, window);
        return { name };
      }
      case 'close':
        await windows.get(call.name)?.close();
        return windows.delete(call.name);
      case 'crc':
        return crc32c(node.bytes.subarray(call.offset, call.offset + call.length));
      case 'state':
        return { executed, counters: node.counters.snapshot(), peers: node.fabric.peers() };
      case 'stop':
        setTimeout(stop, 200);
    }
    return null;
  };
  node.fabric.handleRequests(MessageType.clientCall, async ({ body }) => {
    const call = JSON.parse(Buffer.from(body).toString()) as PeerCall;
    return Buffer.from(JSON.stringify((await answer(call)) ?? null));
  });
  // Counted, to see that nothing is done twice.
  node.fabric.handleRequests(MessageType.nsdInfo, ({ body }) => {
    executed++;
    return body;
  });
}

export const addressFile = (id: number): string =>
  path.join(process.env['HOLDFAST_HW_SHARE'] ?? '/tmp', 'exchange', `fabric-${id}.json`);

/** Whole or not at all: others wait for it. */
export function publish(id: number, address: TransportAddress): void {
  const file = addressFile(id);
  writeFileSync(`${file}.new`, JSON.stringify(address));
  renameSync(`${file}.new`, file);
}

export async function published(id: number, deadlineMs: number): Promise<TransportAddress> {
  for (;;) {
    try {
      return JSON.parse(readFileSync(addressFile(id), 'utf8')) as TransportAddress;
    } catch (error) {
      if (performance.now() > deadlineMs) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

if (process.argv[1]?.endsWith('fabric-peer.js') === true) {
  const addresses = new Map<number, TransportAddress>();
  const node = await hardwareNode(2, addresses);
  serve(node, () => {
    void node.close().then(() => {
      process.stdout.write('1 passed, 0 failed\n');
      process.exit(0);
    });
  });
  publish(2, node.address);
  addresses.set(1, await published(1, performance.now() + 240_000));
}
