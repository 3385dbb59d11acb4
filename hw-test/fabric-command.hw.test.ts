/** `holdfast fabric test` as a user runs it: two daemons on this machine, over each rung, with a device that goes, and a peer that dies. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readState } from '../src/daemon/dev-cluster.js';
import type { RungResult } from '../src/fabric/rung-test.js';
import { hardware } from './guest/environment.js';
import { tool } from './guest/tools.js';

const COMMAND_MS = 150_000;
const LONG_MS = 240_000;
const scratch = mkdtempSync(path.join(tmpdir(), 'fabric-command-'));
const dir = path.join(scratch, 'cluster');
const { rdma, netdev } = hardware();

interface Outcome {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

function holdfast(...args: readonly string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    const env = { ...process.env, HOLDFAST_DIR: dir, NO_COLOR: '1' };
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

async function ok(...args: readonly string[]): Promise<string> {
  const { code, out, err } = await holdfast(...args);
  expect(`${code} ${err}`).toMatch(/^0 /);
  return out;
}

beforeAll(async () => {
  await ok('dev', 'up', '--nodes', '2', '--nsd-size', '64MiB', '--page-pool', '96MiB');
}, LONG_MS);
afterAll(() => {
  spawnSync(process.execPath, ['dist/src/cli/main.js', 'dev', 'down', '--clean', '--dir', dir], {
    timeout: COMMAND_MS,
  });
  rmSync(scratch, { recursive: true, force: true });
}, LONG_MS);

function expectMeasured(result: RungResult | undefined, transport: string): void {
  expect(result).toMatchObject({ transport, error: null, messageBytes: 64 });
  const { roundTripP50Us, roundTripP99Us, transferBytes, readBytesPerSecond, writeBytesPerSecond } = result!;
  expect(Math.min(roundTripP50Us, transferBytes, readBytesPerSecond, writeBytesPerSecond)).toBeGreaterThan(0);
  expect(roundTripP99Us).toBeGreaterThanOrEqual(roundTripP50Us);
}

test(
  'each rung has its line, for people and for programs',
  async () => {
    const lines = (await ok('fabric', 'test', '2')).trimEnd().split('\n');
    console.log(lines.join('\n'));
    expect(lines[0]).toMatch(/^TRANSPORT +64 B p50 +p99 +READ +WRITE +OF/);
    expect(lines[1]).toMatch(/^rdma +\d+ µs +\d+ µs +[\d.]+ \w+\/s +[\d.]+ \w+\/s/);
    expect(lines[2]).toMatch(/^tcp +\d+ µs +\d+ µs +[\d.]+ \w+\/s +[\d.]+ \w+\/s/);
    const results = JSON.parse(await ok('fabric', 'test', '1', '--node', '2', '--json')) as RungResult[];
    expect(results).toHaveLength(2);
    expectMeasured(results[0], 'rdma');
    expectMeasured(results[1], 'tcp');
    // It ended on the best there is, and status says why.
    expect(await ok('status')).toMatch(new RegExp(`rdma.*${rdma}`));
  },
  LONG_MS,
);

test(
  'who can not be tested is named, with a status of its own',
  async () => {
    const failures = await Promise.all([
      holdfast('fabric', 'test', '9'),
      holdfast('fabric', 'test', '1'),
      holdfast('fabric', 'test', 'two'),
      holdfast('fabric', 'test', '2', '--node', '7'),
    ]);
    expect(failures.map(({ code }) => code === 0)).toEqual([false, false, false, false]);
    expect(failures.map(({ out }) => out)).toEqual(['', '', '', '']);
    expect(failures[0]!.err).toMatch(/node 9.*no such node/);
    expect(failures[1]!.err).toMatch(/this node/);
    expect(failures[2]!.err).toMatch(/whole number/);
    expect(failures[3]!.err).toMatch(/no node 7/);
  },
  LONG_MS,
);

test(
  'without a device its rung says so, and the other is measured; once it is there again both are',
  async () => {
    await tool('rdma', ['link', 'delete', rdma]);
    const without = JSON.parse(await ok('fabric', 'test', '2', '--json')) as RungResult[];
    expect(without[0]).toMatchObject({ transport: 'rdma', roundTripP50Us: 0 });
    expect(without[0]!.error).toMatch(/no RDMA|not over RDMA|the device is gone/);
    expectMeasured(without[1], 'tcp');
    await tool('rdma', ['link', 'add', rdma, 'type', 'rxe', 'netdev', netdev]);
    const endMs = performance.now() + 60_000;
    while (!/ rdma +device/.test(await ok('status'))) if (performance.now() > endMs) throw new Error('no RDMA again');
    expectMeasured((JSON.parse(await ok('fabric', 'test', '2', '--json')) as RungResult[])[0], 'rdma');
  },
  LONG_MS,
);

test(
  'a peer that died is reported within its deadline',
  async () => {
    process.kill(readState(dir)!.nodes[1]!.process!.pid, 'SIGKILL');
    const { code, out, err } = await holdfast('fabric', 'test', '2', '--json');
    expect([code === 0, out]).toEqual([false, '']);
    expect(err).toMatch(/ETIMEDOUT|no such node|ESTALE/);
  },
  LONG_MS,
);
