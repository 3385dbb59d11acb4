/** `holdfast fabric test` as a user runs it: two daemons on this machine, over each rung, with a device that goes, and a peer that dies. */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import type { RungResult } from '../src/fabric/rung-test.js';
import { type GuestDaemon, startDaemon, startStore } from './guest/cluster.js';
import { hardware } from './guest/environment.js';
import { RdmaDevice } from './guest/rdma-device.js';

const CLUSTER = 'fabric-command';
const COMMAND_MS = 150_000;
const LONG_MS = 300_000;
const BACK_MS = 60_000;
const scratch = mkdtempSync(path.join(tmpdir(), 'fabric-command-'));
const { rdma, netdev, address } = hardware();
const device = new RdmaDevice(rdma, netdev);
const daemons: GuestDaemon[] = [];
const undo: (() => Promise<unknown>)[] = [];

interface Outcome {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Asks the daemon of node 1, or another. */
function holdfast(args: readonly string[], node = 1): Promise<Outcome> {
  return new Promise((resolve) => {
    const env = { ...process.env, HOLDFAST_SOCKET: daemons[node - 1]!.socket, NO_COLOR: '1' };
    const child = spawn(process.execPath, ['dist/src/cli/main.js', ...args], { env, timeout: COMMAND_MS });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      err += chunk.toString();
    });
    child.on('close', (code) => resolve({ code, out, err }));
  });
}

async function ok(args: readonly string[], node = 1): Promise<string> {
  const { code, out, err } = await holdfast(args, node);
  expect(`${code} ${err}`).toMatch(/^0 /);
  return out;
}

/** What the command asks its daemon, without the second that a process of it takes here. */
const measured = (peer: number): Promise<readonly RungResult[]> => daemons[0]!.admin.call('fabricTest', { node: peer });

/** Of node 1's link with node 2. */
async function transport(): Promise<string | null> {
  const { fabric } = await daemons[0]!.admin.call('status', {});
  return fabric.peers.find(({ nodeId }) => nodeId === 2)?.transport ?? null;
}

beforeAll(async () => {
  // Last, when nobody has it open.
  undo.push(() => device.restore());
  undo.push(await startStore(CLUSTER, scratch));
  const starting = [1, 2].map((nodeId) => {
    const config = { nodeId, name: `node-${nodeId}`, listen: { host: address, port: 7400 + nodeId }, nsds: [] };
    return startDaemon(CLUSTER, path.join(scratch, `${nodeId}`), config);
  });
  for (const started of await Promise.allSettled(starting)) {
    if (started.status === 'rejected') throw started.reason;
    daemons.push(started.value);
    undo.push(() => started.value.stop());
  }
}, LONG_MS);
afterAll(async () => {
  for (let step = undo.pop(); step !== undefined; step = undo.pop()) await step();
  rmSync(scratch, { recursive: true, force: true });
}, LONG_MS);

function expectMeasured(result: RungResult | undefined, transport: string): void {
  expect(result).toMatchObject({ transport, error: null, messageBytes: 64 });
  const { roundTripP50Us, roundTripP99Us, transferBytes, readBytesPerSecond, writeBytesPerSecond } = result!;
  expect(Math.min(roundTripP50Us, transferBytes, readBytesPerSecond, writeBytesPerSecond)).toBeGreaterThan(0);
  expect(roundTripP99Us).toBeGreaterThanOrEqual(roundTripP50Us);
}

test(
  'each rung has its line',
  async () => {
    // By the node with the higher number here, by the other one below.
    const lines = (await ok(['fabric', 'test', '1'], 2)).trimEnd().split('\n');
    console.log(lines.join('\n'));
    expect(lines[0]).toMatch(/^TRANSPORT +64 B p50 +p99 +READ +WRITE +OF/);
    expect(lines[1]).toMatch(/^rdma +\d+ µs +\d+ µs +[\d.]+ \w+\/s +[\d.]+ \w+\/s/);
    expect(lines[2]).toMatch(/^tcp +\d+ µs +\d+ µs +[\d.]+ \w+\/s +[\d.]+ \w+\/s/);
    expect(lines).toHaveLength(3);
    // It ended on the best there is, and status says why.
    expect(await ok(['status'])).toMatch(new RegExp(`rdma +device ${rdma}`));
  },
  LONG_MS,
);

test(
  'who can not be tested is named',
  async () => {
    const { code, out, err } = await holdfast(['fabric', 'test', '9']);
    expect([code === 0, out]).toEqual([false, '']);
    expect(err).toMatch(/no such node.*node 9/);
    await expect(measured(1)).rejects.toThrow(/this node/);
  },
  LONG_MS,
);

test(
  'without a device its rung says so, and the other is measured; once it is there again both are',
  async () => {
    onTestFinished(() => device.restore());
    await device.remove();
    const without = await measured(2);
    expect(without[0]).toMatchObject({ transport: 'rdma', roundTripP50Us: 0 });
    expect(without[0]!.error).toMatch(/not over RDMA|no RDMA|the device is gone/);
    expectMeasured(without[1], 'tcp');
    await device.add();
    const endMs = performance.now() + BACK_MS;
    while ((await transport()) !== 'rdma') {
      if (performance.now() > endMs) throw new Error(`no RDMA again: ${await ok(['status'])}`);
      await pause(50);
    }
    const [again] = await measured(2);
    expectMeasured(again, 'rdma');
  },
  LONG_MS,
);

test(
  'a peer that dies in the midst of it is reported on each rung by the deadline, and so is one that is dead',
  async () => {
    const { admin } = daemons[0]!;
    // It begins with a link for the first rung.
    const links = async () => (await admin.call('counters', {}))['fabric.linksAdopted'] ?? 0;
    const before = await links();
    const running = holdfast(['fabric', 'test', '2', '--json']);
    const endMs = performance.now() + BACK_MS;
    while ((await links()) === before) {
      if (performance.now() > endMs) throw new Error('the test does not begin');
      await pause(50);
    }
    daemons[1]!.process.kill('SIGKILL');
    await daemons[1]!.ended;
    const { code, out } = await running;
    expect(code).toBe(1);
    const results = JSON.parse(out) as readonly RungResult[];
    expect(results.map(({ transport }) => transport)).toEqual(['rdma', 'tcp']);
    for (const { error } of results) expect(error).toMatch(/ETIMEDOUT|ECONNRESET|EHOSTUNREACH/);
    await expect(measured(2)).rejects.toThrow(/no answer in time/);
  },
  LONG_MS,
);
