import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { nodeId } from '../src/common/ids.js';
import type { TransportAddress } from '../src/fabric/link.js';
import { crc32c } from '../src/native/core.js';
import { MessageType } from '../src/protocol/message-types.js';
import {
  addressFile,
  fillPool,
  type HardwareNode,
  hardwareNode,
  type PeerCall,
  publish,
  published,
} from './fabric-peer.js';
import { cutPower } from './guest/exchange.js';
import { RdmaDevice } from './guest/rdma-device.js';

/** Node 1 is here; node 2 is another process of this guest, or of the other guest when there are two. */
const twoGuests = process.env['HOLDFAST_HW_GUESTS'] === '2';
const device = new RdmaDevice(process.env['HOLDFAST_HW_RDMA'] ?? 'rxe0', process.env['HOLDFAST_HW_NETDEV'] ?? 'eth0');
const timeoutMs = 60_000;
const MIB = 1 << 20;
const addresses = new Map<number, TransportAddress>();
let one: HardwareNode;
/** Node 2, where there is one guest. */
let two: ChildProcess | null = null;

beforeAll(async () => {
  mkdirSync(path.dirname(addressFile(1)), { recursive: true });
  one = await hardwareNode(1, addresses);
  publish(1, one.address);
  if (!twoGuests) {
    const project = process.env['HOLDFAST_HW_PROJECT'] ?? process.cwd();
    two = fork(path.join(project, 'dist/hw-test/fabric-peer.js'), { execArgv: [] });
  }
  addresses.set(2, await published(2, performance.now() + 100_000));
});
afterAll(async () => {
  await one.close();
  // It may not have been told to stop. Whoever lives on holds what the files after this one need.
  if (two !== null && two.exitCode === null && two.kill('SIGKILL')) await once(two, 'exit');
  await device.restore();
});

const peer = () => one.fabric.peer(nodeId(2));
async function call<T>(request: PeerCall): Promise<T> {
  const reply = await peer().request(MessageType.clientCall, Buffer.from(JSON.stringify(request)), { timeoutMs });
  return JSON.parse(Buffer.from(reply).toString()) as T;
}
interface PeerState {
  readonly executed: number;
  readonly counters: Record<string, number>;
  readonly peers: { readonly nodeId: number; readonly transport: string | null; readonly reason: string }[];
}
const transport = () => one.fabric.peers().find((status) => status.nodeId === 2)?.transport ?? null;

async function until(what: string, condition: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > deadlineMs)
      throw new Error(`not in ${timeoutMs} ms: ${what}; peers: ${JSON.stringify(one.fabric.peers())}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** As what a test is about: a busy host can make a link fall back for a while. */
async function overVerbs(): Promise<void> {
  await peer().request(MessageType.ping, new Uint8Array(1), { timeoutMs });
  await until('RDMA', () => transport() === 'rdma');
}

test('messages of all sizes go over verbs', async () => {
  await overVerbs();
  for (const size of [1, 64, 5000, 70_000, 262_144]) {
    const body = Buffer.alloc(size, size & 0xff);
    const reply = await peer().request(MessageType.ping, body, { timeoutMs });
    expect(body.equals(Buffer.from(reply))).toBe(true);
  }
  expect(transport()).toBe('rdma');
});

test('bulk both ways is one-sided: right to the byte, copied nowhere, and the other side moves none of it', async () => {
  await overVerbs();
  const before = await call<PeerState>({ do: 'state' });
  const mine = one.counters.snapshot();
  fillPool(one.bytes, 1);
  await call({ do: 'fill', seed: 9 });
  const into = await call<{ name: string }>({ do: 'expose', offset: 0, length: MIB, access: 'write' });
  const from = await call<{ name: string }>({ do: 'expose', offset: 2 * MIB, length: MIB, access: 'read' });
  await peer().writeRemote(Buffer.from(into.name, 'hex'), 0, [{ offsetBytes: 100, lengthBytes: MIB }]);
  expect(await call<number>({ do: 'crc', offset: 0, length: MIB })).toBe(crc32c(one.bytes.subarray(100, 100 + MIB)));
  await peer().readRemote(Buffer.from(from.name, 'hex'), 0, [
    { offsetBytes: 2 * MIB, lengthBytes: 500_000 },
    { offsetBytes: 5 * MIB, lengthBytes: MIB - 500_000 },
  ]);
  const read = Buffer.concat([
    one.bytes.subarray(2 * MIB, 2 * MIB + 500_000),
    one.bytes.subarray(5 * MIB, 6 * MIB - 500_000),
  ]);
  expect(crc32c(read)).toBe(await call<number>({ do: 'crc', offset: 2 * MIB, length: MIB }));
  for (const { name } of [into, from]) await call({ do: 'close', name });
  const after = await call<PeerState>({ do: 'state' });
  const grown = (name: string) => one.counters.get(name) - (mine[name] ?? 0);
  expect([grown('fabric.rdma.bytesWritten'), grown('fabric.rdma.bytesRead')]).toEqual([MIB, MIB]);
  expect([grown('fabric.rdma.bytesCopied'), grown('fabric.tcp.bytesWritten'), grown('fabric.tcp.bytesRead')]).toEqual([
    0, 0, 0,
  ]);
  for (const name of ['bytesWritten', 'bytesRead', 'bytesCopied']) {
    const key = `fabric.rdma.${name}`;
    expect([key, (after.counters[key] ?? 0) - (before.counters[key] ?? 0)]).toEqual([key, 0]);
  }
});

test('the device goes during I/O and comes back: no error, TCP in between, RDMA after, nothing done twice', async () => {
  onTestFinished(() => device.restore());
  const started = (await call<PeerState>({ do: 'state' })).executed;
  const { name } = await call<{ name: string }>({ do: 'expose', offset: 0, length: MIB, access: 'write' });
  const window = Buffer.from(name, 'hex');
  let running = true;
  let asked = 0;
  const seen = new Set<string>();
  const traffic = Promise.all(
    Array.from({ length: 4 }, async () => {
      while (running) {
        const body = Buffer.from(`request ${asked++}`);
        const reply = await peer().request(MessageType.nsdInfo, body, { timeoutMs });
        expect(body.equals(Buffer.from(reply))).toBe(true);
        await peer().writeRemote(window, 0, [{ offsetBytes: 0, lengthBytes: MIB / 4 }]);
        seen.add(transport() ?? 'none');
      }
    }),
  );
  // What goes wrong in it says more than that something is not there in time.
  const during = (step: Promise<void>): Promise<unknown> => Promise.race([step, traffic]);
  try {
    await during(until('traffic over RDMA', () => seen.has('rdma')));
    await during(device.remove());
    seen.clear();
    await during(until('traffic over TCP', () => seen.has('tcp')));
    await device.add();
    await during(until('a link over RDMA again', () => transport() === 'rdma'));
    seen.clear();
    await during(until('traffic over RDMA again', () => seen.has('rdma')));
  } finally {
    running = false;
  }
  await traffic;
  const state = await call<PeerState>({ do: 'state' });
  expect(state.executed - started).toBe(asked);
  expect(await call<number>({ do: 'crc', offset: 0, length: MIB / 4 })).toBe(crc32c(one.bytes.subarray(0, MIB / 4)));
  await call({ do: 'close', name });
  // As long as its steps may take together, so that the one that hangs says so.
}, 480_000);

test('each rung is measured', async () => {
  const results = await one.rungTest.run(2, ['rdma', 'tcp']);
  for (const result of results) {
    expect(result.error).toBe(null);
    expect(result.readBytesPerSecond).toBeGreaterThan(0);
    expect(result.writeBytesPerSecond).toBeGreaterThan(0);
    process.stdout.write(`${JSON.stringify(result)}\n`);
  }
});

test('a node whose power goes is reported by the deadline, and this one lives on', async () => {
  if (!twoGuests) {
    await call({ do: 'stop' });
  } else {
    const into = await call<{ name: string }>({ do: 'expose', offset: 0, length: MIB, access: 'write' });
    const window = Buffer.from(into.name, 'hex');
    const transfers = (async () => {
      for (;;) await peer().writeRemote(window, 0, [{ offsetBytes: 0, lengthBytes: MIB }]);
    })();
    transfers.catch(() => undefined);
    await cutPower(2);
  }
  await until('the end of the link', () => !one.fabric.peer(nodeId(2)).connected);
  const error = await peer()
    .request(MessageType.ping, Buffer.from('anybody?'), { timeoutMs: 2000 })
    .then(
      () => null,
      (thrown: unknown) => thrown,
    );
  expect(error).toMatchObject({ code: 'ETIMEDOUT' });
}, 120_000);
