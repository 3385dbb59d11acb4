import { constants } from 'node:fs';
import * as nodeFs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FileHandle } from './file-handle.js';
import { OP_SCHEMAS } from './op-schemas.js';
import { directRig, type Rig, socketRig } from './testing/harness.js';
import { workerRig } from './testing/worker-rig.js';

/** What the library has beyond node:fs, over every transport; and that it lacks nothing that node has, but for what docs/library.md names. */
const LACKING = new Set(['watch', 'glob', 'lchmod', 'mkdtempDisposable']);
const LACKING_OF_HANDLES = new Set(['constructor', 'getAsyncId', 'readableWebStream', 'pull', 'pullSync', 'writer']);

for (const transport of ['direct', 'socket', 'worker'] as const)
  describe(`beyond node:fs, over the ${transport} transport`, () => {
    let rig: Rig;
    beforeAll(async () => {
      rig = await { direct: directRig, socket: socketRig, worker: workerRig }[transport]();
    });
    afterAll(() => rig.close());

    it('makes special files, and refuses what mknod does not make', async () => {
      const { client } = rig;
      await client.mkfifo('/fifo', '600');
      expect((await client.stat('/fifo')).isFIFO()).toBe(true);
      await client.mknod('/null', constants.S_IFCHR | 0o666, 0x0103);
      const device = await client.stat('/null');
      expect([device.isCharacterDevice(), device.rdev]).toEqual([true, 0x0103]);
      await expect(client.mknod('/x', constants.S_IFLNK | 0o777)).rejects.toMatchObject({
        code: 'ERR_INVALID_ARG_VALUE',
      });
      await expect(client.mknod('/x', constants.S_IFBLK, 2 ** 32)).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' });
      await expect(client.mkfifo('/fifo')).rejects.toMatchObject({ code: 'EEXIST', syscall: 'mkfifo', path: '/fifo' });
    });

    it('renames without replacing', async () => {
      const { client } = rig;
      await client.writeFile('/a', '1');
      await client.writeFile('/b', '2');
      await expect(client.rename('/a', '/b', { noReplace: true })).rejects.toMatchObject({
        code: 'EEXIST',
        path: '/a',
        dest: '/b',
      });
      await client.rename('/a', '/c', { noReplace: true });
      expect(await client.readFile('/c', 'utf8')).toBe('1');
      const wrong = client.rename('/b', '/c', { exchange: 'yes' as unknown as boolean });
      await expect(wrong).rejects.toMatchObject({ code: 'ERR_INVALID_ARG_TYPE' });
    });

    it('sets times in nanoseconds, now, or not at all', async () => {
      const { client } = rig;
      await client.writeFile('/times', '');
      const at = 1_600_000_000_123_456_789n;
      await client.utimes('/times', at, 'now');
      const first = await client.stat('/times', { bigint: true });
      expect(first.atimeNs).toBe(at);
      expect(first.mtimeNs).toBeGreaterThan(at);
      await client.utimes('/times', 'omit', 5n);
      await using handle = await client.open('/times', 'r+');
      await handle.utimes('omit', 'omit');
      expect(await client.stat('/times', { bigint: true })).toMatchObject({ atimeNs: at, mtimeNs: 5n });
      await expect(client.utimes('/times', 2n ** 63n, 1)).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' });
    });

    it('declares files shared-write', async () => {
      const { client } = rig;
      await client.writeFile('/shared', '');
      expect(await client.isSharedWrite('/shared')).toBe(false);
      await client.setSharedWrite('/shared', true);
      expect(await client.isSharedWrite('/shared')).toBe(true);
      await client.setSharedWrite('/shared', false);
      expect(await client.isSharedWrite('/shared')).toBe(false);
      await expect(client.setSharedWrite('/shared', 1 as unknown as boolean)).rejects.toMatchObject({
        code: 'ERR_INVALID_ARG_TYPE',
      });
    });

    it('tells where the bytes of a file are', async () => {
      const { client } = rig;
      await client.writeFile('/located', 'text');
      const [only, ...more] = await client.locate('/located', { offset: 1 });
      expect(only).toMatchObject({ offset: 1, length: 3 });
      expect(more).toEqual([]);
      expect(await client.locate('/located', { offset: 4 })).toEqual([]);
      await expect(client.locate('/not-there')).rejects.toMatchObject({ code: 'ENOENT', path: '/not-there' });
    });

    it('copies ranges between its handles, in the engine', async () => {
      const { client } = rig;
      await client.writeFile('/copy-from', 'abcdef');
      await using from = await client.open('/copy-from', 'r');
      await using to = await client.open('/copy-to', 'w');
      expect(await from.copyRange(2, to, 1, 100)).toBe(4);
      expect(await client.readFile('/copy-to', 'latin1')).toBe('\0cdef');
      expect(await from.copyRange(6, to, 0, 1)).toBe(0);
      await expect(from.copyRange(0, {} as FileHandle, 0, 1)).rejects.toMatchObject({ code: 'ERR_INVALID_ARG_TYPE' });
      await to.close();
      await expect(from.copyRange(0, to, 0, 1)).rejects.toMatchObject({ code: 'EBADF' });
    });

    it('names a file that is open', async () => {
      const { client } = rig;
      await client.writeFile('/old', 'text');
      await using handle = await client.open('/old', 'r');
      await handle.link('/new');
      expect(await client.readFile('/new', 'utf8')).toBe('text');
      const wanted = { code: 'EEXIST', syscall: 'link', dest: '/new' };
      await expect(handle.link('/new')).rejects.toMatchObject(wanted);
      expect(client.constants.O_TMPFILE).toBe(0o20200000);
      expect(client.constants.O_RDWR).toBe(constants.O_RDWR);
    });

    it('gives space to a range of a file, takes it away, and finds what is left', async () => {
      const { client } = rig;
      await client.writeFile('/space', 'abcdef');
      await using handle = await client.open('/space', 'r+');
      await handle.fallocate(2, 2, { mode: 'punchHole' });
      await handle.fallocate(0, 10);
      await handle.fallocate(0, 100, { keepSize: true });
      expect(await client.readFile('/space', 'latin1')).toBe('ab\0\0ef\0\0\0\0');
      expect(await handle.seek(1, 'data')).toBe(1);
      expect(await handle.seek(1, 'hole')).toBe(10);
      await expect(handle.seek(10, 'data')).rejects.toMatchObject({ code: 'ENXIO', syscall: 'lseek' });
      await expect(handle.fallocate(0, 1, { mode: 'insertRange' })).rejects.toMatchObject({ code: 'ENOTSUP' });
      await expect(handle.fallocate(0, 1, { mode: 'dig' as 'punchHole' })).rejects.toMatchObject({
        code: 'ERR_INVALID_ARG_VALUE',
      });
      await expect(handle.seek(0, 'end' as 'data')).rejects.toMatchObject({ code: 'ERR_INVALID_ARG_VALUE' });
    });

    it('has extended attributes of paths, links and handles', async () => {
      const { client } = rig;
      await client.writeFile('/attributed', '');
      await client.symlink('/attributed', '/to-it');
      await client.setxattr('/to-it', 'user.a', 'one', { create: true });
      await client.lsetxattr('/to-it', 'trusted.l', 'link');
      const value = Buffer.from([0, 255, 10]);
      await using handle = await client.open('/attributed', 'r');
      const setting = handle.setxattr('user.b', value);
      value.fill(9);
      await setting;
      expect(await client.getxattr('/attributed', 'user.b')).toEqual(Buffer.from([0, 255, 10]));
      expect((await handle.getxattr('user.a')).toString()).toBe('one');
      expect((await handle.listxattr()).sort()).toEqual(['user.a', 'user.b']);
      expect(await client.llistxattr('/to-it')).toEqual(['trusted.l']);
      expect((await client.lgetxattr('/to-it', 'trusted.l')).toString()).toBe('link');
      const wanted = { code: 'ENODATA', syscall: 'getxattr', path: '/attributed' };
      await expect(client.getxattr('/attributed', 'user.none')).rejects.toMatchObject(wanted);
      await expect(client.setxattr('/attributed', 'user.a', '', { create: true })).rejects.toMatchObject({
        code: 'EEXIST',
      });
      await handle.removexattr('user.a');
      await client.lremovexattr('/to-it', 'trusted.l');
      await client.removexattr('/attributed', 'user.b');
      expect(await client.listxattr('/attributed')).toEqual([]);
      await expect(client.getxattr('/attributed', `user.${'x'.repeat(251)}`)).rejects.toMatchObject({ code: 'ERANGE' });
      await expect(client.setxattr('/attributed', 'user.x', 5 as unknown as string)).rejects.toMatchObject({
        code: 'ERR_INVALID_ARG_TYPE',
      });
    });
  });

it('the library has every call of node:fs/promises and of its handles, but for those that it names', async () => {
  const { client, close } = directRig();
  const missing = Object.keys(nodeFs).filter((name) => name !== 'default' && !LACKING.has(name) && !(name in client));
  expect(missing).toEqual([]);
  const handle = await nodeFs.open(tmpdir());
  const methods = Object.getOwnPropertyNames(Object.getPrototypeOf(handle));
  await handle.close();
  const ours = await client.open('/', 'r');
  expect(methods.filter((name) => !LACKING_OF_HANDLES.has(name) && !(name in ours))).toEqual([]);
  expect(ours).toBeInstanceOf(FileHandle);
  await ours.close();
  await close();
});

it('the wire refuses what these calls can not mean', () => {
  const refused = (op: keyof typeof OP_SCHEMAS, args: unknown) =>
    expect(OP_SCHEMAS[op].safeParse(args).success).toBe(false);
  refused('mknod', { path: '/x', type: 8, mode: 0, rdev: 0 });
  refused('mknod', { path: '/x', type: 3, mode: 0o10000, rdev: 0 });
  refused('mknod', { path: '/x', type: 3, mode: 0, rdev: -1 });
  refused('rename', { from: '/x', to: '/y', noReplace: 1 });
  refused('setAttributes', { path: '/x', changes: { atimeNs: 'later' }, follow: true });
  refused('setAttributes', { path: '/x', changes: { uid: -2 }, follow: true });
  refused('getXattr', { path: '/x', name: 'n'.repeat(256) });
  refused('setXattr', { handle: 0, name: 'user.x' });
  refused('allocate', { handle: 1, mode: 'dig', offset: 0, length: 1, keepSize: false });
  refused('seek', { handle: 1, offset: -1, what: 'data' });
  refused('listXattrs', { path: 'relative' });
});
