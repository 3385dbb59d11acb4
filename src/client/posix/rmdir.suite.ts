import { expect } from 'vitest';
import { alice, bob, everyType, pathRules, type Rule, rule } from '../testing/posix-rules.js';

export const rmdirRules: readonly Rule[] = [
  rule(
    'rmdir removes an empty directory; its parent has a link less, and mtime and ctime move',
    async ({ act, look, moved }) => {
      await look.mkdir('d');
      await look.mkdir('d/a');
      expect(await look.lstat('d')).toMatchObject({ nlink: 3 });
      expect(await moved('d', async () => expect(await act.rmdir('d/a')).toBe('ok'))).toBe('mc');
      expect(await look.lstat('d')).toMatchObject({ nlink: 2 });
      expect(await look.readdir('d')).toEqual([]);
      expect(await act.rmdir('d/a')).toBe('ENOENT');
      expect(await act.rmdir('d/')).toBe('ok');
    },
  ),
  rule('rmdir: ENOTEMPTY, whatever is in it', async ({ act, look, moved }) => {
    await everyType(look);
    for (const path of ['file', 'directory', 'fifo', 'socket', 'link', 'dangling']) {
      await look.mkdir('full');
      await look.rename(path, 'full/x');
      expect(await moved('full', async () => expect(await act.rmdir('full')).toBe('ENOTEMPTY'))).toBe('');
      await look.rename('full/x', path);
      expect(await act.rmdir('full')).toBe('ok');
    }
  }),
  rule('rmdir: ENOTDIR for everything else, links to directories too', async ({ act, look }) => {
    await everyType(look);
    await look.symlink('directory', 'to-directory');
    for (const path of [
      'file',
      'fifo',
      'character',
      'socket',
      'link',
      'dangling',
      'to-directory',
      'to-directory/',
      'file/',
    ])
      expect(await act.rmdir(path)).toBe('ENOTDIR');
  }),
  rule('rmdir: EINVAL for . and ENOTEMPTY for ..', async ({ act, look }) => {
    await look.mkdir('d');
    await look.mkdir('d/e');
    expect(await act.rmdir('d/e/.')).toBe('EINVAL');
    expect(await act.rmdir('d/e/..')).toBe('ENOTEMPTY');
    expect(await act.rmdir('.')).toBe('EINVAL');
  }),
  rule('rmdir: EACCES in a directory that may not be written to', async ({ act, look }) => {
    await look.mkdir('d', 0o755);
    await look.chown('d', 65_534, 65_534);
    await look.mkdir('d/a', 0o777);
    expect(await act.as(bob).rmdir('d/a')).toBe('EACCES');
    await look.chmod('d', 0o555);
    expect(await act.as(alice).rmdir('d/a')).toBe('EACCES');
    await look.chmod('d', 0o755);
    expect(await act.as(alice).rmdir('d/a')).toBe('ok');
  }),
  rule('rmdir in a sticky directory is for owners', async ({ act, look }) => {
    await look.mkdir('sticky');
    await look.chmod('sticky', 0o1777);
    for (const [directory, target, answer] of [
      [65_534, 65_533, 'ok'],
      [0, 65_534, 'ok'],
      [65_533, 65_534, 'ok'],
      [0, 65_533, 'EPERM'],
      [65_533, 65_533, 'EPERM'],
    ] as const) {
      await look.chown('sticky', directory, directory);
      await look.mkdir('sticky/x', 0o777);
      await look.chown('sticky/x', target, target);
      expect(await act.as(alice).rmdir('sticky/x')).toBe(answer);
      if (answer === 'EPERM') expect(await act.rmdir('sticky/x')).toBe('ok');
    }
  }),
  ...pathRules('rmdir', {
    onExisting: true,
    ofLink: true,
    // What is there is a file.
    call: async (calls, path) => {
      const answer = await calls.rmdir(path);
      return answer === 'ENOTDIR' && (await calls.as({ uid: 0 }).access(path, 0)) === 'ok' ? 'ok' : answer;
    },
  }),
];
