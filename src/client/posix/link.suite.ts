import { expect } from 'vitest';
import { alice, bob, everyType, pathRules, type Rule, rule, TYPES } from '../testing/posix-rules.js';

let made = 0;

export const linkRules: readonly Rule[] = [
  rule('link gives every type of file but directories a further name', async ({ act, look, moved }) => {
    await everyType(look);
    for (const path of TYPES) {
      if (path === 'directory') continue;
      await look.mkdir(`in-${path}`);
      const before = await look.lstat(path);
      expect(before.nlink).toBe(1);
      expect(await moved(path, async () => expect(await act.link(path, `in-${path}/x`)).toBe('ok'))).toBe('c');
      const { ino, type, mode } = before;
      expect(await look.lstat(`in-${path}/x`)).toMatchObject({ ino, type, mode, nlink: 2 });
      expect(await act.link(`in-${path}/x`, `in-${path}/y`)).toBe('ok');
      expect(await look.lstat(path)).toMatchObject({ nlink: 3 });
      expect(await look.unlink(path)).toBe('ok');
      expect(await look.lstat(`in-${path}/y`)).toMatchObject({ ino, nlink: 2 });
    }
  }),
  rule("link moves the directory's mtime and ctime; one that fails moves nothing", async ({ act, look, moved }) => {
    await look.create('file');
    await look.mkdir('d');
    expect(await moved('d', () => act.link('file', 'd/x'))).toBe('mc');
    expect(await moved('d', async () => expect(await act.link('file', 'd/x')).toBe('EEXIST'))).toBe('');
    expect(await moved('file', async () => expect(await act.link('file', 'd/x')).toBe('EEXIST'))).toBe('');
  }),
  rule('changes through one name are seen through the other', async ({ act, look }) => {
    await look.create('file');
    await look.link('file', 'other');
    expect(await act.write('other', 'both')).toBe('ok');
    expect(await look.read('file')).toBe('both');
    expect(await act.chmod('file', 0o600)).toBe('ok');
    expect(await look.stat('other')).toMatchObject({ mode: 0o600, size: 4 });
  }),
  rule('link: EPERM for a directory', async ({ act, look }) => {
    await look.mkdir('d');
    expect(await act.link('d', 'x')).toBe('EPERM');
    expect(await act.link('d', 'd/x')).toBe('EPERM');
    expect(await act.link('.', 'x')).toBe('EPERM');
    expect(await act.link('d', 'd')).toBe('EEXIST');
    expect(await look.lstat('d')).toMatchObject({ nlink: 2 });
  }),
  rule('link: EEXIST when the new name is there, whatever it is', async ({ act, look }) => {
    await everyType(look);
    await look.create('x');
    for (const path of [...TYPES, 'dangling', 'x', '.', '..']) expect(await act.link('x', path)).toBe('EEXIST');
  }),
  rule('link: ENOENT when there is no such file, or the new name ends in a slash', async ({ act, look }) => {
    expect(await act.link('none', 'x')).toBe('ENOENT');
    await look.create('file');
    expect(await act.link('file', 'x/')).toBe('ENOENT');
    expect(await act.link('file/', 'x')).toBe('ENOTDIR');
  }),
  rule('link: EACCES in a directory that may not be written to', async ({ act, look }) => {
    await look.mkdir('d', 0o755);
    await look.chown('d', 65_534, 65_534);
    await look.create('d/file', 0o666);
    await look.chown('d/file', 65_533, 65_533);
    expect(await act.as(bob).link('d/file', 'd/x')).toBe('EACCES');
    await look.chmod('d', 0o777);
    expect(await act.as(bob).link('d/file', 'd/x')).toBe('ok');
    await look.chown('d/file', 65_534, 65_534);
    await look.chmod('d', 0o555);
    expect(await act.as(alice).link('d/file', 'd/y')).toBe('EACCES');
  }),
  ...pathRules('link, the old path', {
    onExisting: true,
    ofLink: true,
    call: (calls, path) => calls.link(path, `new${made++}`),
  }),
  ...pathRules('link, the new path', {
    onExisting: false,
    call: async (calls, path) => {
      await calls.as({ uid: 0 }).create('source', 0o666);
      return calls.link('source', path);
    },
  }),
];
