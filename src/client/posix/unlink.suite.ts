import { expect } from 'vitest';
import { alice, bob, everyType, pathRules, type Rule, rule, TYPES } from '../testing/posix-rules.js';

export const unlinkRules: readonly Rule[] = [
  rule('unlink removes every type of file but directories', async ({ act, look, moved }) => {
    await everyType(look);
    for (const path of [...TYPES, 'dangling']) {
      if (path === 'directory') continue;
      await look.mkdir('d');
      await look.rename(path, 'd/x');
      expect(await moved('d', async () => expect(await act.unlink('d/x')).toBe('ok'))).toBe('mc');
      await expect(look.lstat('d/x')).rejects.toMatchObject({ code: 'ENOENT' });
      expect(await act.unlink('d/x')).toBe('ENOENT');
      expect(await look.rmdir('d')).toBe('ok');
    }
  }),
  rule('unlink takes a link, not what it leads to', async ({ act, look }) => {
    await everyType(look, ['file', 'link']);
    expect(await act.unlink('link')).toBe('ok');
    expect(await look.readdir('.')).toEqual(['file']);
  }),
  rule('unlink of one of several names moves the ctime and counts down', async ({ act, look, moved }) => {
    await look.create('file');
    await look.link('file', 'other');
    expect(await moved('file', () => act.unlink('other'))).toBe('c');
    expect(await look.lstat('file')).toMatchObject({ nlink: 1 });
  }),
  rule('unlink: EISDIR for a directory, with links or without', async ({ act, look, moved }) => {
    await look.mkdir('d');
    expect(await moved('.', async () => expect(await act.unlink('d')).toBe('EISDIR'))).toBe('');
    expect(await act.unlink('d/')).toBe('EISDIR');
    expect(await act.unlink('.')).toBe('EISDIR');
    expect(await act.unlink('d/..')).toBe('EISDIR');
    await look.symlink('d', 'link');
    expect(await act.unlink('link/')).toBe('ENOTDIR');
    await look.create('file');
    expect(await act.unlink('file/')).toBe('ENOTDIR');
    expect(await act.unlink('none/')).toBe('ENOENT');
  }),
  rule('unlink: EACCES in a directory that may not be written to, whatever the file', async ({ act, look, moved }) => {
    await look.mkdir('d', 0o755);
    await look.chown('d', 65_534, 65_534);
    await look.create('d/x', 0o666);
    expect(await moved('d', async () => expect(await act.as(bob).unlink('d/x')).toBe('EACCES'))).toBe('');
    await look.chmod('d', 0o555);
    expect(await act.as(alice).unlink('d/x')).toBe('EACCES');
    await look.mkdir('d/e');
    expect(await act.as(alice).unlink('d/e')).toBe('EACCES');
    await look.chmod('d', 0o755);
    expect(await act.as(alice).unlink('d/x')).toBe('ok');
  }),
  rule('unlink in a sticky directory is for owners', async ({ act, look }) => {
    await look.mkdir('sticky');
    await look.chmod('sticky', 0o1777);
    for (const type of TYPES)
      for (const [directory, file, answer] of [
        [65_534, 65_534, 'ok'],
        [65_534, 65_533, 'ok'],
        [65_533, 65_534, 'ok'],
        [0, 65_533, 'EPERM'],
        [65_533, 0, 'EPERM'],
      ] as const) {
        if (type === 'directory') continue;
        await look.chown('sticky', directory, directory);
        await everyType(look, [type]);
        await look.rename(type, 'sticky/x');
        await look.lchown('sticky/x', file, file);
        expect(await act.as(alice).unlink('sticky/x')).toBe(answer);
        if (answer === 'EPERM') expect(await act.unlink('sticky/x')).toBe('ok');
      }
  }),
  ...pathRules('unlink', { onExisting: true, ofLink: true, call: (calls, path) => calls.unlink(path) }),
];
