/**
 * A daemon whose NSD is a namespace in trouble: write protected, shrunk, vanished. Errors name it and are counted, nothing that was acknowledged is
 * lost, the daemon stays. The namespace is attached over NVMe-oF TCP, so that its target can do these things to it.
 */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { NvmeDevice, setFeaturesCommand, timeoutsBelow } from 'napi-nvme';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openClient } from '../src/cli/target.js';
import type { FileSystemClient } from '../src/client/file-system-client.js';
import { type GuestDaemon, startDaemon, startStore } from './guest/cluster.js';
import { type Attached, attach, LoopDevice } from './nvme-targets.js';

const NAME = 'trouble';
const MIB = 1 << 20;
const SIZE_BYTES = 64 * MIB;
const BLOCKS = 8;
const STEP_MS = 120_000;
const TEST_MS = 300_000;
/** NVMe 1.4, 5.21.1.29: namespace write protection; 1 = until it is taken back. */
const WRITE_PROTECT = 0x84;

const directory = fs.mkdtempSync(path.join(tmpdir(), 'trouble-'));
const undo: (() => unknown)[] = [];
let backing: LoopDevice;
let attached: Attached;
let daemon: GuestDaemon;
let client: FileSystemClient;

afterAll(async () => {
  await client?.close().catch(() => undefined);
  await daemon?.stop();
  for (const step of undo.reverse()) await step();
}, TEST_MS);

beforeAll(async () => {
  undo.push(await startStore(NAME, directory));
  backing = new LoopDevice(SIZE_BYTES, 4096);
  undo.push(() => backing.close());
  attached = await attach('tcp', backing.path, { timeouts: timeoutsBelow(30_000) });
  undo.push(() => attached.detach());
  await start(attached.namespace.blockPath);
  await daemon.admin.call('createFileSystem', { name: NAME });
  client = await openClient(daemon.socket, 0);
}, TEST_MS);

async function start(device: string): Promise<void> {
  const sound = { name: 'sound', path: path.join(directory, 'sound'), size: SIZE_BYTES };
  daemon = await startDaemon(NAME, directory, { nsds: [sound, { name: 'troubled', path: device }] });
}

async function until(what: string, there: () => Promise<boolean>): Promise<void> {
  const endMs = performance.now() + STEP_MS;
  while (!(await there())) {
    if (performance.now() > endMs) throw new Error(`not within ${STEP_MS} ms: ${what}`);
    await pause(50);
  }
}
const counted = async (name: string): Promise<number> => (await daemon.admin.call('counters', {}))[name] ?? 0;
const blocksOf = (value: number): Buffer => Buffer.alloc(BLOCKS * MIB, value);
/** Both NSDs have blocks of it. */
async function write(file: string, value: number): Promise<void> {
  const handle = await client.open(file, 'w+');
  try {
    await handle.write(blocksOf(value), 0, BLOCKS * MIB, 0);
    await handle.sync();
  } finally {
    await handle.close().catch(() => undefined);
  }
}
/** From the NSDs, not from a cache. */
async function read(file: string): Promise<Buffer> {
  await daemon.admin.call('unmount', {});
  return client.readFile(file);
}
const target = (attribute: string): string =>
  `/sys/kernel/config/nvmet/subsystems/${attached.nqn}/namespaces/1/${attribute}`;

test('becomes write protected: fsync says so, reads go on, and what was written reaches it when that is over', {
  timeout: TEST_MS,
}, async () => {
  await write('/kept', 1);
  const own = await NvmeDevice.open(attached.namespace.genericPath!);
  const handle = await client.open('/later', 'w+');
  await handle.sync();
  await own.send(setFeaturesCommand(WRITE_PROTECT, 1, 1));
  await handle.write(blocksOf(2), 0, BLOCKS * MIB, 0);
  await expect(handle.sync()).rejects.toMatchObject({ code: 'EROFS', reason: 'readOnly' });
  expect(await counted('nsd.failed.readOnly')).toBeGreaterThan(0);
  expect((await client.readFile('/kept')).equals(blocksOf(1))).toBe(true);
  await own.send(setFeaturesCommand(WRITE_PROTECT, 1, 0));
  await own.close();
  // It repeats what write-behind met meanwhile.
  await until('it is written', () =>
    handle.sync().then(
      () => true,
      () => false,
    ),
  );
  await handle.close();
  expect((await read('/later')).equals(blocksOf(2))).toBe(true);
});

test('shrinks: reads of what it had there end short, naming the device; as large as before it has everything', {
  timeout: TEST_MS,
}, async () => {
  await daemon.admin.call('unmount', {});
  const before = fs.readFileSync(backing.file);
  const resize = (lengthBytes: number): void => {
    backing.resize(lengthBytes);
    fs.writeFileSync(target('revalidate_size'), '1');
  };
  const own = await NvmeDevice.open(attached.namespace.genericPath!, { readOnly: true });
  const sizeBytes = async (): Promise<number> => (await own.identifyNamespace()).sizeBytes;
  resize(2 * MIB);
  await until('it is smaller', async () => (await sizeBytes()) === 2 * MIB);
  const short = await client.readFile('/later').then(
    () => null,
    (error: unknown) => error,
  );
  console.log(String(short));
  expect(short).toMatchObject({
    code: 'EIO',
    message: expect.stringContaining(attached.namespace.blockPath) as string,
  });
  expect(await counted('nsd.failed.shortIo')).toBeGreaterThan(0);
  expect(daemon.process.exitCode).toBeNull();
  resize(SIZE_BYTES);
  const descriptor = fs.openSync(backing.file, 'r+');
  fs.writeSync(descriptor, before, 0, before.length, 0);
  fs.closeSync(descriptor);
  await until('it is as large as before', async () => (await sizeBytes()) === SIZE_BYTES);
  await own.close();
  expect((await read('/later')).equals(blocksOf(2))).toBe(true);
  await write('/after', 3);
  expect((await read('/after')).equals(blocksOf(3))).toBe(true);
});

test('vanishes: EIO for what lies on it, the daemon stays; when it is back everything that was synced is there', {
  timeout: TEST_MS,
}, async () => {
  fs.writeFileSync(target('enable'), '0');
  await daemon.admin.call('unmount', {}).catch(() => undefined);
  await expect(client.readFile('/after')).rejects.toMatchObject({ code: 'EIO' });
  expect(await counted('nsd.failed.deviceError')).toBeGreaterThan(0);
  expect(daemon.process.exitCode).toBeNull();
  expect((await daemon.admin.call('status', {})).phase).toBe('member');
  await client.close().catch(() => undefined);
  await daemon.stop();
  fs.writeFileSync(target('enable'), '1');
  await attached.detach();
  attached = await attach('tcp', backing.path, { timeouts: timeoutsBelow(30_000) });
  await start(attached.namespace.blockPath);
  client = await openClient(daemon.socket, 0);
  for (const [file, value] of [
    ['/kept', 1],
    ['/later', 2],
    ['/after', 3],
  ] as const)
    expect((await client.readFile(file)).equals(blocksOf(value))).toBe(true);
});
