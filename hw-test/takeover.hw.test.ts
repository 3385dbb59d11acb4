/**
 * One namespace, two NSD servers, each with a subsystem of its own over RDMA: guest 1 has the target and server B (node 1), guest 2 is server A (node 2).
 * Guest 1 drives. Rule S4 at real devices: A lets go when it is asked; a frozen A is shut out at the target, and what it held back doesn't land.
 */
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, readlinkSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import { openClient } from '../src/cli/target.js';
import type { FileSystemClient } from '../src/client/file-system-client.js';
import { type GuestDaemon, startDaemon, startStore } from './guest/cluster.js';
import { hardware } from './guest/environment.js';
import { cutPower, publish, receive } from './guest/exchange.js';
import { tool } from './guest/tools.js';

const { guest, nvme, address, peer } = hardware();
const NQN = 'nqn.2026-01.org.holdfast:takeover';
const hostOf = (node: number): string => `${NQN}-host-${node}`;
const subsystemOf = (node: number): string => `${NQN}-for-${node}`;
const TARGET = guest === 1 ? address : peer;
const LEASE = '30s';
/** What a step may take under emulation; every one ends by itself long before. */
const STEP_MS = 120_000;
const TEST_MS = 480_000;
const BLOCK = 256 * 1024;
const BLOCKS = 16;
/** A place in the namespace that no file has got to, for a write that comes late. */
const SPARE_AT = 200 << 20;
const SPARE_BYTES = 4096;
const directory = mkdtempSync(path.join(tmpdir(), 'takeover-'));

const holdfast = (...args: string[]): Promise<string> =>
  tool(process.execPath, ['dist/src/cli/main.js', ...args], STEP_MS);

async function attach(): Promise<string> {
  const args = ['nsd', 'attach', subsystemOf(guest), '--host', hostOf(guest), '--address', TARGET, '--lease', LEASE];
  const { device } = JSON.parse(await holdfast(...args, '--json')) as { device: string };
  return device;
}

async function startServer(device: string): Promise<GuestDaemon> {
  return startDaemon('takeover', directory, {
    leaseTtl: LEASE,
    // Frozen, node 2 keeps nobody from a token.
    tokenServer: guest === 1,
    nsds: [
      {
        name: 'shared',
        path: device,
        shared: true,
        format: guest === 2,
        target: { node: 1, subsystem: subsystemOf(guest) },
      },
    ],
  });
}

async function until(what: string, there: () => Promise<boolean> | boolean): Promise<void> {
  const endMs = performance.now() + STEP_MS;
  while (!(await there())) {
    if (performance.now() > endMs) throw new Error(`not within ${STEP_MS} ms: ${what}`);
    await pause(50);
  }
}

const servedBy = async ({ admin }: GuestDaemon): Promise<number | null> => (await admin.call('nsds', {}))[0]!.serving;

/** Whether a process has a namespace open, by either of its devices. */
function holdsNamespace(pid: number): boolean {
  const folder = `/proc/${pid}/fd`;
  return readdirSync(folder).some((fd) => {
    try {
      return /^\/dev\/(nvme|ng)\d+n\d+$/.test(readlinkSync(path.join(folder, fd)));
    } catch {
      return false;
    }
  });
}

/** What the target's namespace has there. */
async function spare(): Promise<Buffer> {
  const copy = path.join(directory, 'spare');
  const place = [`bs=${SPARE_BYTES}`, 'count=1', `skip=${SPARE_AT / SPARE_BYTES}`];
  await tool('dd', [`if=${nvme[0]}`, `of=${copy}`, 'iflag=direct', ...place]);
  return readFileSync(copy);
}

async function writeAll(client: FileSystemClient, value: number): Promise<void> {
  const file = await client.open('/f', 'r+');
  for (let block = 0; block < BLOCKS; block++) await file.write(Buffer.alloc(BLOCK, value), 0, BLOCK, block * BLOCK);
  await file.sync();
  await file.close();
}

/** From the NSD, not from a cache. */
async function readAll(daemon: GuestDaemon, client: FileSystemClient): Promise<Buffer> {
  await daemon.admin.call('unmount', {});
  return client.readFile('/f');
}

if (guest === 2) {
  test('server A: serves, lets go, is frozen and shut out, and knows it when it is back', {
    timeout: 3 * TEST_MS,
  }, async () => {
    await receive('exported', STEP_MS);
    const device = await attach();
    const daemon = await startServer(device);
    const pid = daemon.process.pid!;
    // Another way for a late write, without a daemon that could think better of it.
    const late = openSync(device, 'rs+');
    expect(await servedBy(daemon)).toBe(2);
    expect(holdsNamespace(pid)).toBe(true);
    publish('a.serves');

    await receive('moved', TEST_MS);
    await until('A has closed the device', () => !holdsNamespace(pid));
    publish('a.closed');
    await receive('moved.back', TEST_MS);
    expect(holdsNamespace(pid)).toBe(true);

    await receive('freeze', TEST_MS);
    daemon.process.kill('SIGSTOP');
    await until('A is stopped', () => /^State:\s+T/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')));
    publish('frozen');
    await receive('resume', TEST_MS);
    expect(() => writeSync(late, Buffer.alloc(SPARE_BYTES, 0xee), 0, SPARE_BYTES, SPARE_AT)).toThrow();
    closeSync(late);
    daemon.process.kill('SIGCONT');
    await until('A knows that B serves', async () => (await servedBy(daemon)) === 1);
    await until('A has closed the device', () => !holdsNamespace(pid));
    expect(daemon.process.exitCode).toBeNull();
    expect(readFileSync(daemon.log, 'utf8')).toContain('the last flush of an NSD failed');
    publish('a.resumed', { log: readFileSync(daemon.log, 'utf8').split('\n').slice(-40) });
    await receive('never', TEST_MS);
  });
} else {
  let stopStore: () => Promise<void> = async () => undefined;
  let daemon: GuestDaemon;
  let client: FileSystemClient;
  afterAll(async () => {
    await client?.close().catch(() => undefined);
    await daemon?.stop();
    await stopStore();
  });

  test('two servers have a path to one namespace, and the first serves it', { timeout: TEST_MS }, async () => {
    const device = nvme[0];
    if (device === undefined) throw new Error('no namespace may be written to here: name some with --nvme');
    stopStore = await startStore('takeover', directory);
    for (const node of [1, 2])
      await holdfast(
        'nsd',
        'export',
        device,
        '--subsystem',
        subsystemOf(node),
        '--host',
        hostOf(node),
        '--address',
        address,
      );
    publish('exported');
    await receive('a.serves', STEP_MS);
    daemon = await startServer(await attach());
    expect(await servedBy(daemon)).toBe(2);
    expect(holdsNamespace(daemon.process.pid!)).toBe(false);
    await daemon.admin.call('createFileSystem', { name: 'takeover' });
    client = await openClient(daemon.socket, 0);
    await client.writeFile('/f', Buffer.alloc(BLOCK * BLOCKS, 1));
    expect((await readAll(daemon, client)).every((byte) => byte === 1)).toBe(true);
  });

  test('a server that is well lets go when it is asked, while a client writes; and back again', {
    timeout: TEST_MS,
  }, async () => {
    let going = true;
    let rounds = 0;
    const writer = (async () => {
      while (going) await writeAll(client, 10 + (rounds++ % 50));
    })();
    await holdfast('nsd', 'takeover', 'shared', '--to', '1', '--socket', daemon.socket);
    expect(await servedBy(daemon)).toBe(1);
    publish('moved');
    await receive('a.closed', STEP_MS);
    await holdfast('nsd', 'takeover', 'shared', '--to', '2', '--socket', daemon.socket);
    expect(await servedBy(daemon)).toBe(2);
    publish('moved.back');
    going = false;
    await writer;
    const last = 10 + ((rounds - 1) % 50);
    expect((await readAll(daemon, client)).every((byte) => byte === last)).toBe(true);
    expect((await daemon.admin.call('counters', {}))['nsd.shutOuts'] ?? 0).toBe(0);
  });

  test('a frozen server is shut out at the target; what it held back does not land when it is back', {
    timeout: TEST_MS,
  }, async () => {
    const requests = async (): Promise<number> => (await daemon.admin.call('counters', {}))['nsd.requests'] ?? 0;
    const before = await requests();
    // Under way when it freezes, and sent to it while it is frozen.
    const first = writeAll(client, 200);
    publish('freeze');
    await receive('frozen', STEP_MS);
    const second = writeAll(client, 200);
    await until('writes wait for A', async () => (await requests()) > before);
    await holdfast('nsd', 'takeover', 'shared', '--to', '1', '--socket', daemon.socket);
    expect((await daemon.admin.call('counters', {}))['nsd.shutOuts']).toBe(1);
    expect(await servedBy(daemon)).toBe(1);
    await Promise.all([first, second]);
    await writeAll(client, 201);
    expect((await readAll(daemon, client)).every((byte) => byte === 201)).toBe(true);

    const kept = await spare();
    publish('resume');
    const { log } = await receive<{ log: string[] }>('a.resumed', STEP_MS);
    expect((await spare()).equals(kept)).toBe(true);
    console.log(log.join('\n'));
    expect(await servedBy(daemon)).toBe(1);
    const bytes = await readAll(daemon, client);
    expect(bytes.length).toBe(BLOCK * BLOCKS);
    expect(bytes.every((byte) => byte === 201)).toBe(true);
    await writeAll(client, 202);
    expect((await readAll(daemon, client)).every((byte) => byte === 202)).toBe(true);
  });

  test('a guest that loses its power is reported by the other within its deadline', { timeout: TEST_MS }, async () => {
    await cutPower(2);
    await until(
      'node 2 is gone from the view',
      async () => !(await daemon.admin.call('nodes', {})).some((n) => n.nodeId === 2),
    );
    expect(await servedBy(daemon)).toBe(1);
    await writeAll(client, 203);
    expect((await readAll(daemon, client)).every((byte) => byte === 203)).toBe(true);
  });
}
