import { constants } from 'node:fs';
import { expect } from 'vitest';
import { alice, creationRules, pathRules, type Rule, rule } from '../testing/posix-rules.js';

const { S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFREG, S_IFSOCK } = constants;

export const mknodRules: readonly Rule[] = [
  ...creationRules('mkfifo', S_IFIFO, (calls, path, mode) => calls.mkfifo(path, mode)),
  ...creationRules('mknod of a fifo', S_IFIFO, (calls, path, mode) => calls.mknod(path, S_IFIFO | mode)),
  ...creationRules('mknod of a socket', S_IFSOCK, (calls, path, mode) => calls.mknod(path, S_IFSOCK | mode)),
  ...creationRules('mknod of a file', S_IFREG, (calls, path, mode) => calls.mknod(path, S_IFREG | mode)),
  rule('mknod makes devices for root, with the number of the device', async ({ act, look }) => {
    for (const [type, path] of [
      [S_IFCHR, 'character'],
      [S_IFBLK, 'block'],
    ] as const)
      for (const rdev of [0x0101, 0xfe12_34fd, 0xffff_ffff]) {
        expect(await act.mknod(`${path}-${rdev}`, type | 0o751, rdev)).toBe('ok');
        expect(await look.lstat(`${path}-${rdev}`)).toMatchObject({ type, mode: 0o751, nlink: 1, size: 0 });
      }
    expect(await look.lstat('character-257')).toMatchObject({ rdev: 0x0101 });
    expect(await look.lstat('block-257')).toMatchObject({ rdev: 0x0101 });
    expect(await act.mknod('bare', 0o644)).toBe('ok');
    expect(await look.lstat('bare')).toMatchObject({ type: S_IFREG, mode: 0o644 });
  }),
  rule('mknod: EPERM for devices when not root, and for directories', async ({ act, look }) => {
    expect(await act.as(alice).mknod('x', S_IFCHR | 0o666, 0x0101)).toBe('EPERM');
    expect(await act.as(alice).mknod('x', S_IFBLK | 0o666, 0x0101)).toBe('EPERM');
    expect(await act.mknod('x', S_IFDIR | 0o755)).toBe('EPERM');
    expect(await act.as(alice).mknod('fifo', S_IFIFO | 0o666)).toBe('ok');
    expect(await act.as(alice).mknod('socket', S_IFSOCK | 0o666)).toBe('ok');
    expect(await act.as(alice).mknod('none/x', S_IFCHR | 0o666, 0x0101)).toBe('ENOENT');
    expect(await act.as(alice).mknod('fifo', S_IFCHR | 0o666, 0x0101)).toBe('EEXIST');
    await look.mkdir('d', 0o755);
    expect(await act.as(alice).mknod('d/x', S_IFCHR | 0o666, 0x0101)).toBe('EACCES');
  }),
  rule('mknod and mkfifo: ENOENT for a new name with a slash behind it', async ({ act }) => {
    expect(await act.mknod('x/', S_IFIFO | 0o644)).toBe('ENOENT');
    expect(await act.mkfifo('x/', 0o644)).toBe('ENOENT');
  }),
  ...pathRules('mkfifo', { onExisting: false, call: (calls, path) => calls.mkfifo(path) }),
  ...pathRules('mknod', { onExisting: false, call: (calls, path) => calls.mknod(path, S_IFSOCK | 0o644) }),
];
