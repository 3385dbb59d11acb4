import { constants } from 'node:fs';
import { beforeEach, expect, test } from 'vitest';
import { ROOT } from './file-system-api.js';
import { type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_NOATIME, O_RDONLY, O_RDWR } = constants;
const DAY_NS = 86_400_000_000_000n;

let volume: TestVolume;
let node: TestNode;
beforeEach(async () => {
  volume = await TestVolume.create();
  node = await volume.mount(1);
  const file = await node.fs.open('/file', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.alloc(10_000, 1));
  await file.close();
});
const read = async ({ fs }: TestNode, flags = O_RDONLY, who = ROOT): Promise<void> => {
  const file = await fs.open('/file', flags, 0, who);
  await file.read(0, Buffer.alloc(10));
  await file.close();
};
const atime = async ({ fs }: TestNode): Promise<bigint> => (await fs.stat('/file', ROOT)).atimeNs;

test('the first read after a change moves the atime, the next ones do not', async () => {
  const made = await atime(node);
  await read(node);
  const first = await atime(node);
  expect(first).toBeGreaterThan(made);
  await read(node);
  expect(await atime(node)).toBe(first);
  await node.fs.setAttributes('/file', { mode: 0o600 }, true, ROOT);
  await read(node);
  const second = await atime(node);
  expect(second).toBeGreaterThan(first);
  const { ctimeNs, mtimeNs } = await node.fs.stat('/file', ROOT);
  expect(second).toBeGreaterThan(ctimeNs);
  expect(second).toBeGreaterThan(mtimeNs);
});

test('an atime of yesterday moves, though nothing changed', async () => {
  const now = volume.clock.wallNs();
  await node.fs.setAttributes('/file', { atimeNs: now - DAY_NS * 2n, mtimeNs: now - DAY_NS * 3n }, true, ROOT);
  // The change itself was today: read once for that.
  await read(node);
  const today = await atime(node);
  expect(today).toBeGreaterThan(now);
});

test('directories have the time at which they were listed', async () => {
  await node.fs.mkdir('/d', 0o755, ROOT);
  const { atimeNs } = await node.fs.stat('/d', ROOT);
  await node.fs.readdir('/d', ROOT);
  const listed = (await node.fs.stat('/d', ROOT)).atimeNs;
  expect(listed).toBeGreaterThan(atimeNs);
  await node.fs.readdir('/d', ROOT);
  expect((await node.fs.stat('/d', ROOT)).atimeNs).toBe(listed);
});

test('O_NOATIME is for the owner, and moves nothing; nor does a read where the setting says so', async () => {
  const made = await atime(node);
  await read(node, O_RDONLY | O_NOATIME);
  expect(await atime(node)).toBe(made);
  const bob = { uid: 1001, gid: 1001, groups: [], umask: 0 };
  await expect(read(node, O_RDONLY | O_NOATIME, bob)).rejects.toMatchObject({ code: 'EPERM' });
  const careless = await volume.mount(2, { accessTimes: 'none' });
  await read(careless);
  expect(await atime(careless)).toBe(made);
});

test('a read under a shared token asks nobody; its time is seen here at once, and elsewhere when it is as old as a dirty inode may be', async () => {
  const reader = await volume.mount(2);
  const third = await volume.mount(3);
  const made = await atime(reader);
  await read(third);
  await read(reader);
  const requests = reader.tokens.requests;
  await read(reader);
  expect(reader.tokens.requests).toBe(requests);
  const here = await atime(reader);
  expect(here).toBeGreaterThan(made);
  expect(await atime(node)).toBe(made);
  for (let second = 0; second < 8; second++) await volume.clock.advance(1000);
  const everywhere = await atime(node);
  expect(everywhere).toBeGreaterThanOrEqual(here);
  expect(await atime(reader)).toBe(everywhere);
  expect(await atime(third)).toBe(everywhere);
});

test('a time set by hand counts, whatever was read before', async () => {
  const reader = await volume.mount(2);
  await atime(reader);
  await read(reader);
  await reader.fs.setAttributes('/file', { atimeNs: 5n }, true, ROOT);
  expect(await atime(node)).toBe(5n);
  for (let second = 0; second < 8; second++) await volume.clock.advance(1000);
  expect(await atime(node)).toBe(5n);
});

test('the first hit of a handle is what a hit tells of, when a read would move the atime', async () => {
  const made = await atime(node);
  const file = await node.fs.open('/file', O_RDONLY, 0, ROOT);
  expect(file.atimeDue).toBe(true);
  file.hint('accessed', 0, 0);
  expect(await atime(node)).toBeGreaterThan(made);
  await file.close();
  const again = await node.fs.open('/file', O_RDONLY, 0, ROOT);
  expect(again.atimeDue).toBe(false);
  await again.close();
});
