import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import type { OpenFile } from './file-system-api.js';
import { ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDONLY, O_RDWR, O_WRONLY } = constants;
const MIB = 1 << 20;

const freed = (...nodes: TestNode[]): number =>
  nodes.reduce((sum, node) => sum + node.counters.get('fs.inodesFreed'), 0);

async function until(volume: TestVolume, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 1000 && !condition(); i++) await volume.clock.advance(10);
  expect(condition()).toBe(true);
}

async function put(node: TestNode, path: string, bytes: Buffer): Promise<void> {
  const file = await node.fs.open(path, O_CREAT | O_WRONLY, 0o644, ROOT);
  await file.write(0, bytes);
  await file.close();
}
async function first(file: OpenFile): Promise<number> {
  const byte = Buffer.alloc(1);
  return (await file.read(0, byte)) === 0 ? -1 : byte[0]!;
}

async function three(): Promise<{ volume: TestVolume; nodes: [TestNode, TestNode, TestNode] }> {
  const volume = await TestVolume.create();
  return { volume, nodes: [await volume.mount(1), await volume.mount(2), await volume.mount(3)] };
}
async function end(volume: TestVolume, nodes: readonly TestNode[]): Promise<void> {
  for (const node of nodes) await node.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: 0, lostSubBlocks: 0 });
}

test('a file that another node removes is read and written until its last close anywhere, then freed once', async () => {
  const { volume, nodes } = await three();
  const [one, two, other] = nodes;
  await put(one, '/f', Buffer.alloc(3 * MIB, 7));
  const reader = await two.fs.open('/f', O_RDONLY, 0, ROOT);
  const writer = await other.fs.open('/f', O_RDWR, 0, ROOT);
  await one.fs.unlink('/f', ROOT);
  await expect(one.fs.stat('/f', ROOT)).rejects.toMatchObject({ code: 'ENOENT' });
  await expect(two.fs.open('/f', O_RDONLY, 0, ROOT)).rejects.toMatchObject({ code: 'ENOENT' });
  await put(two, '/f', Buffer.from('another'));
  await writer.write(0, Buffer.from([9]));
  expect(await first(reader)).toBe(9);
  expect((await reader.stat()).nlink).toBe(0);
  await reader.close();
  await volume.clock.advance(10_000);
  expect(freed(...nodes)).toBe(0);
  await writer.write(2 * MIB, Buffer.from([5]));
  expect(await first(writer)).toBe(9);
  await writer.close();
  await until(volume, () => freed(...nodes) === 1);
  await end(volume, nodes);
  expect(freed(...nodes)).toBe(1);
});

test('a file over which another node renames stays whole for those who have it open', async () => {
  const { volume, nodes } = await three();
  const [one, two] = nodes;
  await put(one, '/new', Buffer.from([2]));
  await put(one, '/old', Buffer.from([1]));
  const file = await two.fs.open('/old', O_RDWR, 0, ROOT);
  await one.fs.rename('/new', '/old', ROOT);
  expect(await first(file)).toBe(1);
  const now = await two.fs.open('/old', O_RDONLY, 0, ROOT);
  expect(await first(now)).toBe(2);
  await now.close();
  expect(freed(...nodes)).toBe(0);
  await file.close();
  await until(volume, () => freed(...nodes) === 1);
  await end(volume, nodes);
});

test('when the node that removed it leaves first, the last that closes it frees it', async () => {
  const { volume, nodes } = await three();
  const [one, two, other] = nodes;
  await put(one, '/f', Buffer.alloc(MIB, 7));
  const files = [await two.fs.open('/f', O_RDWR, 0, ROOT), await other.fs.open('/f', O_RDWR, 0, ROOT)] as const;
  await one.fs.unlink('/f', ROOT);
  await one.fs.unmount();
  expect(await first(files[0])).toBe(7);
  await files[0].close();
  expect(await first(files[1])).toBe(7);
  expect(freed(...nodes)).toBe(0);
  await files[1].close();
  await until(volume, () => freed(...nodes) === 1);
  await end(volume, [two, other]);
});

test('a dead opener falls, and the file is freed', async () => {
  const { volume, nodes } = await three();
  const [one, two, other] = nodes;
  await put(one, '/f', Buffer.alloc(MIB, 7));
  await two.fs.open('/f', O_RDONLY, 0, ROOT);
  await one.fs.unlink('/f', ROOT);
  await volume.clock.advance(1000);
  expect(freed(...nodes)).toBe(0);
  await volume.bury(two);
  await until(volume, () => freed(...nodes) === 1);
  await end(volume, [one, other]);
});

test('a directory that is open elsewhere can be removed', async () => {
  const { volume, nodes } = await three();
  const [one, two] = nodes;
  await one.fs.mkdir('/d', 0o755, ROOT);
  const directory = await two.fs.open('/d', O_RDONLY, 0, ROOT);
  await one.fs.rmdir('/d', ROOT);
  expect((await directory.stat()).nlink).toBe(0);
  await directory.close();
  await until(volume, () => freed(...nodes) === 1);
  await end(volume, nodes);
});

test('open tokens cost no request of their own: the first opening asks once for everything, later ones for nothing', async () => {
  const { volume, nodes } = await three();
  const [one, two] = nodes;
  for (let i = 0; i < 8; i++) await put(one, `/f${i}`, Buffer.from([i]));
  await two.fs.stat('/f0', ROOT);
  for (let i = 1; i < 8; i++) {
    const before = two.tokens.requests;
    await (await two.fs.open(`/f${i}`, O_RDONLY, 0, ROOT)).close();
    // And once the data tokens of the run, ahead of use.
    expect(two.tokens.requests - before).toBeLessThanOrEqual(i === 2 ? 2 : 1);
  }
  await (await two.fs.open('/f0', O_RDONLY, 0, ROOT)).close();
  const warm = two.tokens.requests;
  for (let round = 0; round < 100; round++)
    for (let i = 0; i < 8; i++) await (await two.fs.open(`/f${i}`, O_RDONLY, 0, ROOT)).close();
  expect(two.tokens.requests).toBe(warm);
  // Whoever made them alone removes them alone.
  await one.fs.mkdir('/own', 0o755, ROOT);
  await put(one, '/own/first', Buffer.from([1]));
  const own = one.tokens.requests;
  for (let i = 0; i < 50; i++) await put(one, `/own/${i}`, Buffer.from([i]));
  for (let i = 0; i < 50; i++) await one.fs.unlink(`/own/${i}`, ROOT);
  expect(one.tokens.requests).toBe(own);
  await end(volume, nodes);
});

test('share modes: what one handle denies, none on any node gets; those who deny the same stand together', async () => {
  const { volume, nodes } = await three();
  const [one, two] = nodes;
  let path = '/f';
  await put(one, path, Buffer.from([1]));
  const open = (node: TestNode, flags: number, deny?: 'read' | 'write' | 'readwrite'): Promise<OpenFile> =>
    node.fs.open(path, flags, 0, ROOT, { deny });
  const busy = { code: 'EBUSY' };
  // Matrix: who has it, who comes, whether both may.
  const cases = [
    [O_RDONLY, undefined, O_RDONLY, undefined, true],
    [O_RDONLY, 'write', O_RDONLY, undefined, true],
    [O_RDONLY, 'write', O_RDONLY, 'write', true],
    [O_RDONLY, 'write', O_RDWR, undefined, false],
    [O_RDWR, undefined, O_RDONLY, 'write', false],
    [O_RDWR, 'write', O_RDONLY, undefined, true],
    [O_RDWR, 'write', O_RDONLY, 'write', false],
    [O_WRONLY, undefined, O_WRONLY, 'read', true],
    [O_WRONLY, 'read', O_RDONLY, undefined, false],
    [O_RDONLY, undefined, O_RDONLY, 'readwrite', false],
    [O_RDWR, 'readwrite', O_WRONLY, undefined, false],
  ] as const;
  for (const [flags, deny, otherFlags, otherDeny, together] of cases) {
    for (const other of [one, two]) {
      path += 'f';
      await put(one, path, Buffer.from([1]));
      const first = await open(one, flags, deny);
      if (together) await (await open(other, otherFlags, otherDeny)).close();
      else await expect(open(other, otherFlags, otherDeny)).rejects.toMatchObject(busy);
      await first.close();
      await (await open(other, otherFlags, otherDeny)).close();
    }
  }
  // Truncation is a write; removing is not.
  path = '/f';
  const keeps = await open(one, O_RDONLY, 'write');
  await expect(two.fs.truncate('/f', 0, ROOT)).rejects.toMatchObject(busy);
  await expect(one.fs.truncate('/f', 0, ROOT)).rejects.toMatchObject(busy);
  // Who waits gets it when it is closed.
  const waits = two.fs.open('/f', O_WRONLY, 0, ROOT, { busyTimeoutMs: 60_000 });
  let got = false;
  void waits.then(() => {
    got = true;
  });
  await volume.clock.advance(1000);
  expect(got).toBe(false);
  await keeps.close();
  await until(volume, () => got);
  await (await waits).close();
  // Who may not write may not keep others from it.
  const nobody = { uid: 1000, gid: 1000, groups: [], umask: 0 };
  await expect(two.fs.open('/f', O_RDONLY, 0, nobody, { deny: 'write' })).rejects.toMatchObject({ code: 'EACCES' });
  await end(volume, nodes);
});
