/**
 * How fast the fabric is over loopback TCP, against the best one can do without it, measured in the same run:
 *   1. a 64-byte request, one at a time, against a bare framed ping-pong over node:net between two processes;
 *   2. 64 requests under way, in messages per second (a request and its reply are two);
 *   3. one-sided writes of 1 MiB into the other process's page pool, against iperf3.
 * Run: npx tsc -b && node dist/bench/fabric.bench.js. Ratios are the result; absolute figures are the machine's.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process';
import net from 'node:net';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { nodeId } from '../src/common/ids.js';
import type { Fabric } from '../src/fabric/fabric.js';
import type { TransportAddress } from '../src/fabric/link.js';
import { testNode } from '../src/fabric/test-support.js';
import { heapPagePool } from '../src/native/page-pool.js';
import { MessageType } from '../src/protocol/message-types.js';

const SECONDS = Number(process.env['HOLDFAST_BENCH_SECONDS'] ?? 2);
const ROUNDS = Number(process.env['HOLDFAST_BENCH_ROUNDS'] ?? 3);
const FRAME_BYTES = 64 + 48;
const MIB = 1 << 20;
const POOL_BYTES = 64 * MIB;
const self = fileURLToPath(import.meta.url);

interface Ready {
  readonly port: number;
  readonly window?: string;
}

// --- the other process ---

function serveNet(): void {
  const server = net.createServer((socket) => {
    socket.setNoDelay(true);
    const serve = framed((frame) => socket.write(frame));
    socket.on('data', serve);
  });
  server.listen(0, '127.0.0.1', () => process.send!({ port: (server.address() as net.AddressInfo).port }));
}

async function serveFabric(): Promise<void> {
  const { fabric } = testNode({ node: 2, pool: heapPagePool(POOL_BYTES) });
  fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const { port } = await fabric.listen({ host: '127.0.0.1', port: 0 });
  const window = fabric.expose(nodeId(1), [{ offsetBytes: 0, lengthBytes: 8 * MIB }], 'write');
  process.send!({ port, window: Buffer.from(window.remote).toString('hex') });
}

/** Length-prefixed frames out of a stream, as any protocol over node:net has to do it. */
function framed(onFrame: (frame: Buffer) => void): (chunk: Buffer) => void {
  let rest: Buffer | null = null;
  return (chunk) => {
    let data = rest === null ? chunk : Buffer.concat([rest, chunk]);
    while (data.length >= 4 && data.length >= data.readUInt32LE(0)) {
      const length = data.readUInt32LE(0);
      onFrame(data.subarray(0, length));
      data = data.subarray(length);
    }
    rest = data.length > 0 ? data : null;
  };
}

// --- this process ---

async function withServer<T>(mode: string, run: (ready: Ready) => Promise<T>): Promise<T> {
  const child: ChildProcess = fork(self, [mode]);
  try {
    const ready = await new Promise<Ready>((resolve, reject) => {
      child.once('message', (message) => resolve(message as Ready));
      child.once('exit', () => reject(new Error(`the ${mode} process ended`)));
    });
    return await run(ready);
  } finally {
    child.removeAllListeners('exit');
    child.kill();
  }
}

const netPingPong = () =>
  withServer('net', async ({ port }) => {
    const socket = net.connect(port, '127.0.0.1');
    socket.setNoDelay(true);
    await new Promise((resolve) => socket.once('connect', resolve));
    const frame = Buffer.alloc(FRAME_BYTES);
    frame.writeUInt32LE(FRAME_BYTES, 0);
    const start = performance.now();
    const until = start + SECONDS * 1000;
    let trips = 0;
    await new Promise<void>((resolve) => {
      socket.on(
        'data',
        framed(() => {
          trips++;
          if (performance.now() < until) socket.write(frame);
          else resolve();
        }),
      );
      socket.write(frame);
    });
    socket.destroy();
    return trips / ((performance.now() - start) / 1000);
  });

const withFabric = <T>(run: (fabric: Fabric, ready: Ready) => Promise<T>): Promise<T> =>
  withServer('fabric', async (ready) => {
    const addresses = new Map<number, TransportAddress>([[2, { host: '127.0.0.1', port: ready.port }]]);
    const { fabric } = testNode({ node: 1, addresses, pool: heapPagePool(POOL_BYTES) });
    try {
      await fabric.peer(nodeId(2)).request(MessageType.ping, new Uint8Array(1), { timeoutMs: 5000 });
      return await run(fabric, ready);
    } finally {
      await fabric.close();
    }
  });

const requests = (depth: number) =>
  withFabric(async (fabric) => {
    const peer = fabric.peer(nodeId(2));
    const body = new Uint8Array(64);
    const options = { timeoutMs: 60_000 };
    const start = performance.now();
    const until = start + SECONDS * 1000;
    let trips = 0;
    const lane = async () => {
      for (;;) {
        await peer.request(MessageType.ping, body, options);
        trips++;
        if ((trips & 63) === 0 || depth === 1) if (performance.now() >= until) return;
      }
    };
    const lanes: Promise<void>[] = [];
    for (let i = 0; i < depth; i++) lanes.push(lane());
    await Promise.race(lanes);
    const perSecond = trips / ((performance.now() - start) / 1000);
    await fabric.close();
    await Promise.allSettled(lanes);
    return perSecond;
  });

const bulk = (depth: number) =>
  withFabric(async (fabric, ready) => {
    const peer = fabric.peer(nodeId(2));
    const window = Buffer.from(ready.window!, 'hex');
    const start = performance.now();
    const until = start + SECONDS * 1000;
    let moved = 0;
    const lane = async (index: number) => {
      while (performance.now() < until) {
        // 64 pages, as a cache would name them: scattered, here on one side only.
        const pages = Array.from({ length: 64 }, (_, page) => ({
          offsetBytes: (page * 8 + index) * 16384,
          lengthBytes: 16384,
        }));
        await peer.writeRemote(window, index * MIB, pages);
        moved += MIB;
      }
    };
    await Promise.all(Array.from({ length: depth }, (_, index) => lane(index)));
    return moved / ((performance.now() - start) / 1000);
  });

async function iperf(): Promise<number | null> {
  const port = 20_000 + (process.pid % 20_000);
  try {
    const server = spawn('iperf3', ['-s', '-1', '-B', '127.0.0.1', '-p', String(port), '--forceflush'], {
      stdio: 'pipe',
    });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.stdout.on('data', (text) => {
        if (String(text).includes('listening')) resolve();
      });
    });
    const client = spawn('iperf3', ['-c', '127.0.0.1', '-p', String(port), '-t', String(SECONDS), '-J'], {
      stdio: 'pipe',
    });
    let out = '';
    client.stdout.on('data', (text) => {
      out += String(text);
    });
    await new Promise((resolve) => client.once('close', resolve));
    server.kill();
    const report = JSON.parse(out) as { end: { sum_received: { bits_per_second: number } } };
    return report.end.sum_received.bits_per_second / 8;
  } catch {
    return null;
  }
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

/** Alternating, so that whatever else the machine does strikes both. */
async function compare(ours: () => Promise<number>, theirs: () => Promise<number | null>) {
  const ratios: number[] = [];
  const figures: number[] = [];
  const baselines: number[] = [];
  for (let i = 0; i < ROUNDS; i++) {
    const baseline = await theirs();
    const figure = await ours();
    figures.push(figure);
    if (baseline === null) continue;
    baselines.push(baseline);
    ratios.push(figure / baseline);
  }
  return {
    figure: median(figures),
    baseline: baselines.length === 0 ? null : median(baselines),
    ratio: ratios.length === 0 ? null : median(ratios),
  };
}

const show = (name: string, text: string) => process.stdout.write(`${name.padEnd(44)} ${text}\n`);

async function main(): Promise<void> {
  const only = process.argv[2];
  if (only === undefined || only === 'depth1') {
    const one = await compare(() => requests(1), netPingPong);
    show(
      '64 B request, one at a time',
      `${one.figure.toFixed(0)} /s, node:net ping-pong ${one.baseline?.toFixed(0)} /s, ratio ${one.ratio?.toFixed(2)} (goal 0.9)`,
    );
  }
  if (only === undefined || only === 'depth64') {
    const many: number[] = [];
    for (let i = 0; i < ROUNDS; i++) many.push(await requests(64));
    show(
      '64 B requests, 64 under way',
      `${(2 * median(many)).toFixed(0)} messages/s, ${median(many).toFixed(0)} requests/s (goal 1000000 messages/s)`,
    );
  }
  if (only === undefined || only === 'bulk') {
    const transfer = await compare(() => bulk(4), iperf);
    const against =
      transfer.baseline === null ? 'no iperf3 here' : `iperf3 ${(transfer.baseline / 1e9).toFixed(2)} GB/s`;
    show(
      '1 MiB writeRemote, 4 under way',
      `${(transfer.figure / 1e9).toFixed(2)} GB/s, ${against}, ratio ${transfer.ratio?.toFixed(2)} (goal 0.8)`,
    );
  }
}

if (process.argv[2] === 'net') serveNet();
else if (process.argv[2] === 'fabric') await serveFabric();
else {
  await main();
  process.exit(0);
}
