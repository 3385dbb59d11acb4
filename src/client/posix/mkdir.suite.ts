import { constants } from 'node:fs';
import { expect } from 'vitest';
import { creationRules, pathRules, type Rule, rule } from '../testing/posix-rules.js';

export const mkdirRules: readonly Rule[] = [
  ...creationRules('mkdir', constants.S_IFDIR, (calls, path, mode) => calls.mkdir(path, mode)),
  rule('mkdir: the new directory is empty and has two links; its parent has one more', async ({ act, look }) => {
    await look.mkdir('d');
    expect(await act.mkdir('d/a')).toBe('ok');
    expect(await look.readdir('d/a')).toEqual([]);
    expect(await look.lstat('d/a')).toMatchObject({ nlink: 2 });
    expect(await look.lstat('d')).toMatchObject({ nlink: 3 });
    expect((await look.lstat('d/a/..')).ino).toBe((await look.lstat('d')).ino);
    expect((await look.lstat('d/a/.')).ino).toBe((await look.lstat('d/a')).ino);
  }),
  rule('mkdir: a slash may be behind the name, but not behind a link that leads nowhere', async ({ act, look }) => {
    expect(await act.mkdir('a/')).toBe('ok');
    expect(await look.lstat('a')).toMatchObject({ type: constants.S_IFDIR });
    await look.symlink('nothing', 'dangling');
    expect(await act.mkdir('dangling/')).toBe('EEXIST');
    expect(await act.mkdir('dangling')).toBe('EEXIST');
    await look.create('file');
    expect(await act.mkdir('file/')).toBe('EEXIST');
    expect(await look.readdir('.')).toEqual(['a', 'dangling', 'file']);
  }),
  rule('mkdir: ENOENT in a directory that was removed', async ({ act, look }) => {
    await look.mkdir('d');
    await look.rmdir('d');
    expect(await act.mkdir('d/x')).toBe('ENOENT');
  }),
  ...pathRules('mkdir', { onExisting: false, call: (calls, path) => calls.mkdir(path) }),
];
