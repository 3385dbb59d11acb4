import { constants } from 'node:fs';
import { expect } from 'vitest';
import { alice, bob, everyType, pathRules, type Rule, rule } from '../testing/posix-rules.js';

const { O_RDONLY, O_RDWR, O_WRONLY } = constants;

export const truncateRules: readonly Rule[] = [
  rule('truncate makes a file shorter or longer, with zeros behind', async ({ act, look }) => {
    await look.create('file');
    for (const size of [1_234_567, 567, 0, 4096, 3]) {
      expect(await act.truncate('file', size)).toBe('ok');
      expect(await look.stat('file')).toMatchObject({ size });
    }
    await look.write('file', 'text');
    expect(await act.truncate('file', 2)).toBe('ok');
    expect(await act.truncate('file', 4)).toBe('ok');
    expect(await look.read('file')).toBe('te\0\0');
    expect(await act.ftruncate('file', O_RDWR, 1)).toBe('ok');
    expect(await look.read('file')).toBe('t');
  }),
  rule('truncate that changes the size moves mtime and ctime', async ({ act, look, moved }) => {
    await look.create('file');
    expect(await moved('file', () => act.truncate('file', 123))).toBe('mc');
    expect(await moved('file', () => act.truncate('file', 0))).toBe('mc');
    expect(await moved('file', () => act.ftruncate('file', O_WRONLY, 7))).toBe('mc');
    expect(await moved('file', () => act.ftruncate('file', O_WRONLY, 7))).toBe('mc');
    const refused = async () => expect(await act.as(bob).truncate('file', 1)).toBe('EACCES');
    expect(await moved('file', refused)).toBe('');
  }),
  rule('truncate goes through links', async ({ act, look }) => {
    await look.create('file');
    await look.symlink('file', 'link');
    expect(await act.truncate('link', 5)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ size: 5 });
    await look.symlink('none', 'dangling');
    expect(await act.truncate('dangling', 5)).toBe('ENOENT');
  }),
  rule('truncate: EACCES without the right to write', async ({ act, look }) => {
    await look.create('file', 0o444);
    await look.chown('file', 65_534, 65_534);
    expect(await act.as(alice).truncate('file', 1)).toBe('EACCES');
    expect(await act.as(bob).truncate('file', 1)).toBe('EACCES');
    await look.chmod('file', 0o246);
    expect(await act.as(alice).truncate('file', 1)).toBe('ok');
    expect(await act.as(bob).truncate('file', 2)).toBe('ok');
    expect(await act.as({ uid: 65_533, gid: 65_534 }).truncate('file', 3)).toBe('EACCES');
  }),
  rule('truncate: EISDIR for directories, EINVAL for what has no size', async ({ act, look }) => {
    await everyType(look);
    expect(await act.truncate('directory', 0)).toBe('EISDIR');
    for (const path of ['fifo', 'character', 'block', 'socket']) expect(await act.truncate(path, 0)).toBe('EINVAL');
    expect(await act.ftruncate('file', O_RDONLY, 0)).toBe('EINVAL');
    expect(await act.truncate('file/', 0)).toBe('ENOTDIR');
  }),
  rule('truncate: EFBIG beyond what a file can be', async ({ act, look }) => {
    await look.create('file');
    expect(await act.truncate('file', Number.MAX_SAFE_INTEGER)).toBe('EFBIG');
    expect(await look.stat('file')).toMatchObject({ size: 0 });
  }),
  ...pathRules('truncate', { onExisting: true, call: (calls, path) => calls.truncate(path, 1) }),
];
