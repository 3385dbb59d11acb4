import { constants } from 'node:fs';
import { beforeEach, describe, expect, test } from 'vitest';
import type { InodeNumber } from '../common/ids.js';
import { type Credentials, type FileSystem, FileType, ROOT } from './file-system-api.js';
import { decodeInode, encodeInode } from './inode-format.js';
import { LINK_COUNT_MAX } from './layout.js';
import type { MountedFileSystem } from './mounted-file-system.js';
import { Magic, sealSector, sectorFault } from './sector.js';
import { fsIdOf } from './superblock.js';
import { type TestNode, TestVolume, testChecksums } from './testing.js';

const { O_CREAT, O_RDWR, O_RDONLY, O_WRONLY, O_EXCL, O_NOFOLLOW, O_DIRECTORY, O_SYNC } = constants;
const alice: Credentials = { uid: 1000, gid: 1000, groups: [1000, 50], umask: 0o022 };
const bob: Credentials = { uid: 1001, gid: 1001, groups: [], umask: 0o077 };

let node: TestNode;
let fs: FileSystem;
beforeEach(async () => {
  node = await (await TestVolume.create()).mount();
  fs = node.fs;
  await fs.mkdir('/tmp', 0o777, ROOT);
  await fs.setAttributes('/tmp', { mode: 0o1777 }, true, ROOT);
});
const touch = async (path: string, credentials = ROOT, mode = 0o644): Promise<void> =>
  (await fs.open(path, O_CREAT | O_RDWR, mode, credentials)).close();
const code = (value: string) => ({ code: value });

describe('paths', () => {
  test('names and paths that are too long, empty or contain NUL are refused', async () => {
    await expect(touch(`/${'x'.repeat(256)}`)).rejects.toMatchObject(code('ENAMETOOLONG'));
    await touch(`/${'x'.repeat(255)}`);
    await expect(touch(`/${'é'.repeat(128)}`)).rejects.toMatchObject(code('ENAMETOOLONG'));
    await expect(fs.stat(`/${'a/'.repeat(2048)}`, ROOT)).rejects.toMatchObject(code('ENAMETOOLONG'));
    await expect(fs.stat('', ROOT)).rejects.toMatchObject(code('ENOENT'));
    await expect(fs.stat('/a\0b', ROOT)).rejects.toMatchObject(code('EINVAL'));
    await expect(fs.stat('relative', ROOT)).rejects.toMatchObject(code('EINVAL'));
  });

  test('dots, doubled and trailing slashes mean what POSIX says', async () => {
    await fs.mkdir('/d/', 0o755, ROOT);
    await touch('/d/f');
    expect((await fs.stat('//d/./../d//f', ROOT)).type).toBe(FileType.regular);
    expect((await fs.stat('/..', ROOT)).ino).toBe(2);
    await expect(fs.stat('/d/f/', ROOT)).rejects.toMatchObject(code('ENOTDIR'));
    await expect(fs.stat('/d/f/g', ROOT)).rejects.toMatchObject(code('ENOTDIR'));
    await expect(fs.open('/new/', O_CREAT | O_RDWR, 0o644, ROOT)).rejects.toMatchObject(code('EISDIR'));
    await expect(fs.rename('/d/f', '/g/', ROOT)).rejects.toMatchObject(code('ENOTDIR'));
    await expect(fs.rmdir('/d/.', ROOT)).rejects.toMatchObject(code('EINVAL'));
    await expect(fs.rmdir('/d/..', ROOT)).rejects.toMatchObject(code('ENOTEMPTY'));
    await expect(fs.rmdir('/', ROOT)).rejects.toMatchObject(code('EBUSY'));
    await expect(fs.mkdir('/', 0o755, ROOT)).rejects.toMatchObject(code('EEXIST'));
  });

  test('symbolic links are followed, relative to where they are, and loops end', async () => {
    await fs.mkdir('/d', 0o755, ROOT);
    await touch('/d/f');
    await fs.symlink('d', '/l', ROOT);
    await fs.symlink('../l/f', '/d/up', ROOT);
    await fs.symlink('/loop', '/loop', ROOT);
    expect((await fs.stat('/d/up', ROOT)).type).toBe(FileType.regular);
    expect((await fs.lstat('/d/up', ROOT)).type).toBe(FileType.symlink);
    expect(await fs.realpath('/l/up', ROOT)).toBe('/d/f');
    expect(await fs.readlink('/d/up', ROOT)).toBe('../l/f');
    await expect(fs.stat('/loop', ROOT)).rejects.toMatchObject(code('ELOOP'));
    await expect(fs.open('/l', O_RDONLY | O_NOFOLLOW, 0, ROOT)).rejects.toMatchObject(code('ELOOP'));
    await expect(fs.readlink('/d/f', ROOT)).rejects.toMatchObject(code('EINVAL'));
    await fs.symlink('made', '/dangling', ROOT);
    await expect(fs.open('/dangling', O_CREAT | O_EXCL | O_RDWR, 0o644, ROOT)).rejects.toMatchObject(code('EEXIST'));
    await touch('/dangling');
    expect((await fs.lstat('/made', ROOT)).type).toBe(FileType.regular);
  });
});

describe('permissions', () => {
  test('owner, group and others get their own bits, and root passes', async () => {
    await touch('/tmp/f', alice, 0o640);
    await expect(fs.open('/tmp/f', O_RDONLY, 0, bob)).rejects.toMatchObject(code('EACCES'));
    await fs.access('/tmp/f', 6, alice);
    await expect(fs.access('/tmp/f', 1, alice)).rejects.toMatchObject(code('EACCES'));
    await expect(fs.access('/tmp/f', 1, ROOT)).rejects.toMatchObject(code('EACCES'));
    await (await fs.open('/tmp/f', O_RDWR, 0, ROOT)).close();
    await expect(fs.mkdir('/no', 0o755, alice)).rejects.toMatchObject(code('EACCES'));
    await fs.mkdir('/tmp/private', 0o700, alice);
    await expect(fs.stat('/tmp/private/x', bob)).rejects.toMatchObject(code('EACCES'));
    await expect(fs.readdir('/tmp/private', bob)).rejects.toMatchObject(code('EACCES'));
  });

  test('umask and setgid directories decide what is created', async () => {
    await touch('/tmp/b', bob, 0o666);
    expect((await fs.stat('/tmp/b', ROOT)).mode).toBe(0o600);
    await fs.mkdir('/tmp/g', 0o777, alice);
    await fs.setAttributes('/tmp/g', { gid: 50 }, true, alice);
    await fs.setAttributes('/tmp/g', { mode: 0o2777 }, true, alice);
    await touch('/tmp/g/f', bob, 0o644);
    await fs.mkdir('/tmp/g/d', 0o755, bob);
    expect(await fs.stat('/tmp/g/f', ROOT)).toMatchObject({ uid: 1001, gid: 50 });
    expect(await fs.stat('/tmp/g/d', ROOT)).toMatchObject({ gid: 50, mode: 0o2700 });
  });

  test('in a sticky directory only owners remove and rename', async () => {
    await touch('/tmp/f', alice);
    await touch('/tmp/b', bob);
    await expect(fs.unlink('/tmp/f', bob)).rejects.toMatchObject(code('EPERM'));
    await expect(fs.rename('/tmp/f', '/tmp/g', bob)).rejects.toMatchObject(code('EPERM'));
    await expect(fs.rename('/tmp/b', '/tmp/f', bob)).rejects.toMatchObject(code('EPERM'));
    await fs.unlink('/tmp/f', alice);
  });

  test('chmod, chown and utimes are for the owner; a write takes setuid away', async () => {
    await touch('/tmp/f', alice, 0o755);
    await expect(fs.setAttributes('/tmp/f', { mode: 0o700 }, true, bob)).rejects.toMatchObject(code('EPERM'));
    await expect(fs.setAttributes('/tmp/f', { uid: 1001 }, true, alice)).rejects.toMatchObject(code('EPERM'));
    await expect(fs.setAttributes('/tmp/f', { gid: 7 }, true, alice)).rejects.toMatchObject(code('EPERM'));
    await fs.setAttributes('/tmp/f', { mode: 0o4755 }, true, alice);
    const file = await fs.open('/tmp/f', O_WRONLY, 0, alice);
    await file.write(0, Buffer.from('x'));
    await file.close();
    expect((await fs.stat('/tmp/f', ROOT)).mode).toBe(0o755);
    await fs.setAttributes('/tmp/f', { mode: 0o6755 }, true, ROOT);
    await fs.setAttributes('/tmp/f', { uid: 1001, gid: 1001 }, true, ROOT);
    expect(await fs.stat('/tmp/f', ROOT)).toMatchObject({ mode: 0o755, uid: 1001, gid: 1001 });
    await fs.setAttributes('/tmp/f', { atimeNs: 5n, mtimeNs: -7n }, true, bob);
    expect(await fs.stat('/tmp/f', ROOT)).toMatchObject({ atimeNs: 5n, mtimeNs: -7n });
  });
});

describe('handles', () => {
  test('access modes are kept to, and directories open for reading their attributes only', async () => {
    await touch('/f');
    const reader = await fs.open('/f', O_RDONLY, 0, ROOT);
    await expect(reader.write(0, Buffer.from('x'))).rejects.toMatchObject(code('EBADF'));
    await expect(reader.truncate(0)).rejects.toMatchObject(code('EINVAL'));
    await reader.close();
    await expect(reader.stat()).rejects.toMatchObject(code('EBADF'));
    const writer = await fs.open('/f', O_WRONLY, 0, ROOT);
    await expect(writer.read(0, Buffer.alloc(1))).rejects.toMatchObject(code('EBADF'));
    await expect(writer.write(2 ** 53 - 1, Buffer.from('x'))).rejects.toMatchObject(code('EFBIG'));
    await expect(writer.write(-1, Buffer.from('x'))).rejects.toMatchObject(code('EINVAL'));
    await writer.close();
    const directory = await fs.open('/tmp', O_RDONLY | O_DIRECTORY, 0, ROOT);
    await expect(directory.read(0, Buffer.alloc(1))).rejects.toMatchObject(code('EISDIR'));
    expect((await directory.stat()).type).toBe(FileType.directory);
    await directory.sync(false);
    await directory.close();
    await expect(fs.open('/tmp', O_RDWR, 0, ROOT)).rejects.toMatchObject(code('EISDIR'));
    await expect(fs.open('/f', O_DIRECTORY, 0, ROOT)).rejects.toMatchObject(code('ENOTDIR'));
  });

  test('write hits of an application thread grow the file, and are written out with it', async () => {
    const volume = await TestVolume.create();
    const first = await volume.mount(1);
    const file = await first.fs.open('/hits', O_CREAT | O_RDWR, 0o644, ROOT);
    for (let i = 0; i < 20; i++) await file.write(i * 16384, Buffer.alloc(16384, 1));
    let offset = 20 * 16384;
    let hits = 0;
    for (
      ;
      first.map.write(file.entry!, offset, Buffer.alloc(1000, 2), first.fs.superblock.birthtimeNs + 99n) > 0;
      hits++
    )
      offset += 1000;
    expect(hits).toBeGreaterThan(5);
    expect((await file.stat()).sizeBytes).toBe(offset);
    const second = await volume.mount(2);
    expect((await second.fs.stat('/hits', ROOT)).sizeBytes).toBe(offset);
    expect(first.map.write(file.entry!, 0, Buffer.alloc(10), 0n)).toBeLessThan(0);
    const content = Buffer.alloc(offset);
    const reader = await second.fs.open('/hits', O_RDONLY, 0, ROOT);
    expect(await reader.read(0, content)).toBe(offset);
    expect(content.subarray(20 * 16384).every((byte) => byte === 2)).toBe(true);
    await reader.close();
    await file.close();
    await first.fs.unmount();
    await second.fs.unmount();
  });

  test('a synchronous write is on the devices, its inode and its name in the log, when it resolves', async () => {
    const volume = await TestVolume.create();
    const node = await volume.mount(1);
    const { fs: dying } = node;
    const file = await dying.open('/f', O_CREAT | O_RDWR | O_SYNC, 0o644, ROOT);
    expect(file.entry).toBeNull();
    await file.write(0, Buffer.alloc(50_000, 9));
    // It dies here: nothing more is written.
    await volume.bury(node);
    const { fs: survivor } = await volume.mount(2);
    const content = Buffer.alloc(60_000);
    const reader = await survivor.open('/f', O_RDONLY, 0, ROOT);
    expect(await reader.read(0, content)).toBe(50_000);
    expect(content.subarray(0, 50_000).every((byte) => byte === 9)).toBe(true);
  });
});

test('small files live in their inodes and take no space', async () => {
  const file = await fs.open('/small', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.alloc(3000, 1));
  await fs.sync();
  expect((await file.stat()).allocatedBytes).toBe(0);
  await file.write(3000, Buffer.alloc(3000, 2));
  expect((await file.stat()).allocatedBytes).toBe(8192);
  await node.tokens.revokeAll();
  const content = Buffer.alloc(6001);
  expect(await file.read(0, content)).toBe(6000);
  expect(content[2999]).toBe(1);
  expect(content[3000]).toBe(2);
  await file.close();
});

test('link counts follow names, subdirectories and moves', async () => {
  await fs.mkdir('/a', 0o755, ROOT);
  await fs.mkdir('/b', 0o755, ROOT);
  await fs.mkdir('/a/sub', 0o755, ROOT);
  expect((await fs.stat('/a', ROOT)).nlink).toBe(3);
  await fs.rename('/a/sub', '/b/sub', ROOT);
  expect((await fs.stat('/a', ROOT)).nlink).toBe(2);
  expect((await fs.stat('/b', ROOT)).nlink).toBe(3);
  expect((await fs.stat('/b/sub/..', ROOT)).ino).toBe((await fs.stat('/b', ROOT)).ino);
  await expect(fs.rename('/b', '/b/sub/inside', ROOT)).rejects.toMatchObject(code('EINVAL'));
  await touch('/f');
  await fs.link('/f', '/g', ROOT);
  expect((await fs.stat('/g', ROOT)).nlink).toBe(2);
  await fs.rename('/f', '/g', ROOT);
  expect((await fs.stat('/f', ROOT)).nlink).toBe(2);
  await fs.unlink('/f', ROOT);
  expect((await fs.stat('/g', ROOT)).nlink).toBe(1);
});

test('access asks for whom a program runs, not with whose rights', async () => {
  await touch('/tmp/f', alice, 0o600);
  await fs.access('/tmp/f', 6, { ...bob, uid: 0, realUid: 1000, realGid: 1000 });
  await expect(fs.access('/tmp/f', 4, { ...ROOT, realUid: 1001, realGid: 1001 })).rejects.toMatchObject(code('EACCES'));
});

/** While nobody has it mounted. */
function setLinks({ nsds }: TestVolume, { superblock }: MountedFileSystem, inos: Iterable<InodeNumber>, nlink: number) {
  const { geometry } = superblock;
  const fsId = fsIdOf(superblock.fsUuid);
  for (const ino of inos)
    for (const device of nsds.devices)
      for (const sector of device.values()) {
        if (sectorFault(sector, { magic: Magic.inode, fsId, owner: ino, index: ino }, testChecksums) !== null) continue;
        const fields = decodeInode(ino, sector, fsId, geometry, testChecksums)!;
        encodeInode(ino, { ...fields, nlink }, sector, fsId);
        sealSector(sector, testChecksums);
      }
}

test('EMLINK: of what two nodes link at once an inode gets as many as it may have', async () => {
  const volume = await TestVolume.create();
  const before = await volume.mount(1);
  await before.fs.mkdir('/d', 0o755, ROOT);
  for (const path of ['/f', '/moved1', '/moved2']) {
    if (path === '/f') await (await before.fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT)).close();
    else await before.fs.mkdir(path, 0o755, ROOT);
  }
  const inos = [(await before.fs.stat('/f', ROOT)).ino, (await before.fs.stat('/d', ROOT)).ino];
  await before.fs.unmount();
  setLinks(volume, before.fs, inos, LINK_COUNT_MAX - 3);
  const nodes = [await volume.mount(1), await volume.mount(2)];
  const done = await Promise.allSettled(
    nodes.flatMap(({ fs }, i) => [
      ...[1, 2, 3].map((n) => fs.link('/f', `/link-${i}-${n}`, ROOT)),
      ...[1, 2].map((n) => fs.mkdir(`/d/sub-${i}-${n}`, 0o755, ROOT)),
      fs.rename(`/moved${i + 1}`, `/d/moved-${i}`, ROOT),
    ]),
  );
  const refused = done.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
  for (const error of refused) expect(error).toMatchObject(code('EMLINK'));
  expect(refused).toHaveLength(2 * 3);
  for (const { fs } of nodes)
    for (const path of ['/f', '/d']) expect((await fs.stat(path, ROOT)).nlink, path).toBe(LINK_COUNT_MAX);
  // One that goes on one node makes room for one on the other.
  const link = (await nodes[0]!.fs.readdir('/', ROOT)).find(({ name }) => name.startsWith('link-'))!;
  await nodes[0]!.fs.unlink(`/${link.name}`, ROOT);
  await nodes[1]!.fs.link('/f', '/again', ROOT);
  await expect(nodes[0]!.fs.link('/f', '/and-again', ROOT)).rejects.toMatchObject(code('EMLINK'));
});

test('EMLINK: an inode has so many links and no more', async () => {
  const volume = await TestVolume.create();
  const first = await volume.mount(1);
  for (const path of ['/d', '/e']) await first.fs.mkdir(path, 0o755, ROOT);
  for (const path of ['/f', '/d/file']) await (await first.fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT)).close();
  const full = new Set([(await first.fs.stat('/f', ROOT)).ino, (await first.fs.stat('/d', ROOT)).ino]);
  await first.fs.unmount();
  setLinks(volume, first.fs, full, LINK_COUNT_MAX);
  const { fs: again } = await volume.mount(2);
  const emlink = code('EMLINK');
  await expect(again.link('/f', '/g', ROOT)).rejects.toMatchObject(emlink);
  await expect(again.mkdir('/d/sub', 0o755, ROOT)).rejects.toMatchObject(emlink);
  await expect(again.rename('/e', '/d/e', ROOT)).rejects.toMatchObject(emlink);
  await expect(again.rename('/e', '/d/file', ROOT, { exchange: true })).rejects.toMatchObject(emlink);
  await expect(again.rename('/d/file', '/e', ROOT, { exchange: true })).rejects.toMatchObject(emlink);
  await again.unlink('/f', ROOT);
  await again.rename('/d/file', '/d/other', ROOT);
});
