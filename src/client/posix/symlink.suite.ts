import { constants } from 'node:fs';
import { expect } from 'vitest';
import { alice, everyType, PATH_MAX, pathRules, type Rule, rule, TYPES } from '../testing/posix-rules.js';

export const symlinkRules: readonly Rule[] = [
  rule('symlink makes a link with every permission, that belongs to its maker', async ({ act, look }) => {
    expect(await act.as({ ...alice, umask: 0o077 }).symlink('some/where', 'x')).toBe('ok');
    expect(await look.lstat('x')).toMatchObject({
      type: constants.S_IFLNK,
      mode: 0o777,
      uid: 65_534,
      gid: 65_534,
      nlink: 1,
      size: 10,
    });
    expect(await look.readlink('x')).toBe('some/where');
  }),
  rule('symlink moves mtime and ctime of the directory', async ({ act, look, moved }) => {
    await look.mkdir('d');
    expect(await moved('d', () => act.symlink('x', 'd/link'))).toBe('mc');
    expect(await moved('d', async () => expect(await act.symlink('x', 'd/link')).toBe('EEXIST'))).toBe('');
  }),
  rule('symlink: what is made through a link is made where it leads', async ({ act, look }) => {
    await look.mkdir('d');
    expect(await act.symlink('d', 'link')).toBe('ok');
    expect(await look.create('link/x')).toBe('ok');
    expect(await act.readdir('d')).toEqual(['x']);
    expect(await look.unlink('link')).toBe('ok');
    expect(await act.readdir('d')).toEqual(['x']);
  }),
  rule(`symlink: targets of ${PATH_MAX - 1} bytes, and ENAMETOOLONG for longer ones`, async ({ act, look }) => {
    for (const length of [1, 60, 1024, 3456, 3457, PATH_MAX - 1]) {
      const target = 't'.repeat(length);
      expect(await act.symlink(target, `link${length}`)).toBe('ok');
      expect(await look.readlink(`link${length}`)).toBe(target);
      expect(await look.lstat(`link${length}`)).toMatchObject({ size: length });
    }
    expect(await act.symlink('t'.repeat(PATH_MAX), 'x')).toBe('ENAMETOOLONG');
    const dots = './'.repeat(1900);
    await look.create('there');
    expect(await act.symlink(`${dots}there`, 'long')).toBe('ok');
    expect((await look.stat('long')).ino).toBe((await look.stat('there')).ino);
    expect(await act.unlink('long')).toBe('ok');
  }),
  rule('symlink: EEXIST whatever has the name, ENOENT with a slash behind it', async ({ act, look }) => {
    await everyType(look);
    for (const path of [...TYPES, 'dangling', '.', 'directory/']) expect(await act.symlink('x', path)).toBe('EEXIST');
    expect(await act.symlink('x', 'new/')).toBe('ENOENT');
  }),
  rule('symlink: EACCES in a directory that may not be written to', async ({ act, look }) => {
    await look.mkdir('d', 0o755);
    expect(await act.as(alice).symlink('x', 'd/link')).toBe('EACCES');
  }),
  rule('readlink: EINVAL for everything else', async ({ act, look }) => {
    await everyType(look);
    for (const path of ['file', 'directory', 'fifo', 'character', 'socket'])
      await expect(act.readlink(path)).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(act.readlink('none')).rejects.toMatchObject({ code: 'ENOENT' });
  }),
  ...pathRules('symlink', { onExisting: false, call: (calls, path) => calls.symlink('anything', path) }),
];
