import { expect } from 'vitest';
import type { Calls } from '../testing/posix-calls.js';
import { alice, bob, everyType, pathRules, type Rule, rule, TYPES } from '../testing/posix-rules.js';

/** A file that a user owns, in a place that everybody may write to. */
async function owned(look: Calls, path: string, uid: number, kind: 'create' | 'mkdir' = 'create'): Promise<void> {
  await look[kind](path);
  await look.lchown(path, uid, uid);
}

let made = 0;

export const renameRules: readonly Rule[] = [
  rule('rename moves every type of file; its ctime moves, nothing else of it', async ({ act, look, moved }) => {
    await everyType(look);
    await look.mkdir('d');
    for (const path of TYPES) {
      const before = await look.lstat(path);
      expect(await act.rename(path, 'd/x')).toBe('ok');
      const after = await look.lstat('d/x');
      expect({ ...after, ctime: 0 }).toEqual({ ...before, ctime: 0 });
      expect(await act.rename('d/x', path)).toBe('ok');
      expect(await look.readdir('d')).toEqual([]);
      await look.link(path, 'd/second');
      if (path === 'directory') continue;
      expect(await moved('d/second', () => act.rename(path, 'other'))).toBe('c');
      expect(await act.rename('other', path)).toBe('ok');
      await look.unlink('d/second');
    }
  }),
  rule('rename moves mtime and ctime of both directories', async ({ act, look, moved }) => {
    await look.mkdir('a');
    await look.mkdir('b');
    await look.create('a/x');
    expect(await moved('a', () => act.rename('a/x', 'a/y'))).toBe('mc');
    expect(await moved('a', () => act.rename('a/y', 'b/y'))).toBe('mc');
    expect(await moved('b', () => act.rename('b/y', 'a/y'))).toBe('mc');
  }),
  rule('rename onto a file takes that file away', async ({ act, look }) => {
    await look.create('a');
    await look.create('b');
    await look.link('b', 'c');
    const { ino } = await look.lstat('a');
    expect(await act.rename('a', 'b')).toBe('ok');
    expect(await look.lstat('b')).toMatchObject({ ino, nlink: 1 });
    expect(await look.lstat('c')).toMatchObject({ nlink: 1 });
    expect(await look.readdir('.')).toEqual(['b', 'c']);
    await everyType(look);
    for (const path of ['file', 'fifo', 'character', 'socket', 'link', 'dangling']) {
      expect(await act.rename('b', path)).toBe('ok');
      expect(await look.lstat(path)).toMatchObject({ ino, nlink: 1 });
      await look.rename(path, 'b');
    }
  }),
  rule('rename onto what is replaced moves its ctime', async ({ act, look, moved }) => {
    await look.create('a');
    await look.create('b');
    await look.link('b', 'c');
    expect(await moved('c', () => act.rename('a', 'b'))).toBe('c');
  }),
  rule('rename between two names of one file does nothing', async ({ act, look, moved }) => {
    await look.create('a');
    await look.link('a', 'b');
    expect(await moved('.', async () => expect(await act.rename('a', 'b')).toBe('ok'))).toBe('');
    expect(await act.rename('a', 'a')).toBe('ok');
    expect(await look.readdir('.')).toEqual(['a', 'b']);
    expect(await look.lstat('a')).toMatchObject({ nlink: 2 });
  }),
  rule('rename of a directory carries link counts and .. along', async ({ act, look }) => {
    await look.mkdir('a');
    await look.mkdir('b');
    await look.mkdir('a/x');
    await look.create('a/x/in');
    expect(await act.rename('a/x', 'b/y')).toBe('ok');
    expect(await look.lstat('a')).toMatchObject({ nlink: 2 });
    expect(await look.lstat('b')).toMatchObject({ nlink: 3 });
    expect((await look.lstat('b/y/..')).ino).toBe((await look.lstat('b')).ino);
    expect(await look.readdir('b/y')).toEqual(['in']);
    await look.mkdir('a/empty');
    expect(await act.rename('b/y', 'a/empty')).toBe('ok');
    expect(await look.lstat('a')).toMatchObject({ nlink: 3 });
    expect(await look.lstat('b')).toMatchObject({ nlink: 2 });
    expect(await look.lstat('a/empty')).toMatchObject({ nlink: 2 });
  }),
  rule('rename: ENOTDIR, EISDIR and ENOTEMPTY as the two kinds meet', async ({ act, look, moved }) => {
    await everyType(look);
    await look.mkdir('full');
    await look.create('full/x');
    const refused = async () => {
      for (const path of ['file', 'fifo', 'socket', 'link', 'dangling'])
        expect(await act.rename('directory', path)).toBe('ENOTDIR');
      for (const path of ['file', 'fifo', 'socket', 'link']) {
        expect(await act.rename(path, 'directory')).toBe('EISDIR');
        expect(await act.rename(path, 'full')).toBe('EISDIR');
      }
      expect(await act.rename('directory', 'full')).toBe('ENOTEMPTY');
      expect(await act.rename('full/x', 'full')).toBe('ENOTEMPTY');
    };
    expect(await moved('.', refused)).toBe('');
    expect(await act.rename('full', 'directory')).toBe('ok');
    expect(await look.readdir('directory')).toEqual(['x']);
  }),
  rule('rename: EINVAL for a directory into itself', async ({ act, look }) => {
    await look.mkdir('a');
    await look.mkdir('a/b');
    await look.mkdir('a/b/c');
    expect(await act.rename('a', 'a/x')).toBe('EINVAL');
    expect(await act.rename('a', 'a/b/x')).toBe('EINVAL');
    expect(await act.rename('a', 'a/b/c')).toBe('EINVAL');
    expect(await act.rename('a/b/c', 'a')).toBe('ENOTEMPTY');
    expect(await act.rename('a/b/c', 'a/b')).toBe('ENOTEMPTY');
    expect(await act.rename('a/b', 'a/b')).toBe('ok');
  }),
  rule('rename: EBUSY for . and ..', async ({ act, look }) => {
    await look.mkdir('a');
    await look.mkdir('b');
    for (const dots of ['a/.', 'a/..', '.', '..']) {
      expect(await act.rename(dots, 'x')).toBe('EBUSY');
      expect(await act.rename('b', dots)).toBe('EBUSY');
      expect(await act.rename('none', dots)).toBe('EBUSY');
      expect(await act.rename('b', dots, 'noReplace')).toBe('EEXIST');
    }
  }),
  rule('rename: a slash behind a name means a directory, and no link to one', async ({ act, look }) => {
    await everyType(look);
    await look.symlink('directory', 'to-directory');
    expect(await act.rename('file/', 'x')).toBe('ENOTDIR');
    expect(await act.rename('file', 'x/')).toBe('ENOTDIR');
    expect(await act.rename('to-directory/', 'x')).toBe('ENOTDIR');
    expect(await act.rename('directory', 'to-directory/')).toBe('ENOTDIR');
    expect(await act.rename('none/', 'x')).toBe('ENOENT');
    expect(await act.rename('directory/', 'x/')).toBe('ok');
    expect(await look.readdir('x')).toEqual([]);
  }),
  rule('rename: EACCES where either directory may not be written to', async ({ act, look }) => {
    await look.mkdir('mine', 0o755);
    await look.mkdir('yours', 0o755);
    await look.chown('mine', 65_534, 65_534);
    await look.create('mine/x');
    expect(await act.as(alice).rename('mine/x', 'mine/y')).toBe('ok');
    expect(await act.as(alice).rename('mine/y', 'yours/y')).toBe('EACCES');
    expect(await act.as(bob).rename('mine/y', 'z')).toBe('EACCES');
    await look.chmod('mine', 0o555);
    expect(await act.as(alice).rename('mine/y', 'mine/x')).toBe('EACCES');
    expect(await act.as(alice).rename('mine/y', 'z')).toBe('EACCES');
    expect(await act.as(alice).rename('none', 'yours/x')).toBe('ENOENT');
  }),
  rule('rename of a directory to another one needs the right to write to it', async ({ act, look }) => {
    await look.mkdir('to', 0o777);
    await owned(look, 'd', 65_533, 'mkdir');
    expect(await act.as(alice).rename('d', 'e')).toBe('ok');
    expect(await act.as(alice).rename('e', 'to/e')).toBe('EACCES');
    await look.chmod('e', 0o777);
    expect(await act.as(alice).rename('e', 'to/e')).toBe('ok');
  }),
  rule('rename out of a sticky directory is for owners', async ({ act, look }) => {
    await look.mkdir('sticky');
    await look.chmod('sticky', 0o1777);
    for (const kind of ['create', 'mkdir'] as const)
      for (const [directory, file, who, answer] of [
        [65_534, 65_534, alice, 'ok'],
        [65_534, 65_533, alice, 'ok'],
        [0, 65_534, alice, 'ok'],
        [65_533, 0, alice, 'EPERM'],
        [0, 65_533, alice, 'EPERM'],
        [65_533, 65_533, alice, 'EPERM'],
        [65_533, 65_533, { uid: 0, gid: 0 }, 'ok'],
      ] as const) {
        await look.chown('sticky', directory, directory);
        await owned(look, 'sticky/x', file, kind);
        await look.chmod('sticky/x', 0o777);
        expect(await act.as(who).rename('sticky/x', 'sticky/y')).toBe(answer);
        if (answer === 'ok') await look.rename('sticky/y', 'sticky/x');
        expect(await act.as(who).rename('sticky/x', 'away')).toBe(answer);
        if (answer === 'ok') await look.rename('away', 'sticky/x');
        await look[kind === 'create' ? 'unlink' : 'rmdir']('sticky/x');
      }
  }),
  rule('rename onto a file in a sticky directory is for owners', async ({ act, look }) => {
    await look.mkdir('sticky');
    await look.chmod('sticky', 0o1777);
    for (const [directory, file, answer] of [
      [65_534, 65_533, 'ok'],
      [0, 65_534, 'ok'],
      [0, 65_533, 'EPERM'],
      [65_533, 0, 'EPERM'],
    ] as const) {
      await look.chown('sticky', directory, directory);
      await owned(look, 'sticky/x', file);
      await owned(look, 'mine', 65_534);
      expect(await act.as(alice).rename('mine', 'sticky/x', 'noReplace')).toBe('EEXIST');
      expect(await act.as(alice).rename('mine', 'sticky/x', 'exchange')).toBe(answer);
      if (answer === 'ok') await look.rename('sticky/x', 'mine', 'exchange');
      expect(await act.as(alice).rename('mine', 'sticky/x')).toBe(answer);
      await look.unlink('mine');
      await look.unlink('sticky/x');
    }
  }),
  rule('rename without replacing: EEXIST whatever is there, also the same file', async ({ act, look }) => {
    await everyType(look);
    await look.create('x');
    await look.link('x', 'twin');
    for (const path of [...TYPES, 'dangling', 'twin', 'x'])
      expect(await act.rename('x', path, 'noReplace')).toBe('EEXIST');
    expect(await act.rename('none', 'new', 'noReplace')).toBe('ENOENT');
    expect(await act.rename('x', 'new', 'noReplace')).toBe('ok');
    expect(await look.readdir('.')).toContain('new');
  }),
  rule('rename with exchange swaps files of any two types', async ({ act, look }) => {
    await everyType(look);
    await look.mkdir('in');
    await look.create('in/file');
    await look.mkdir('in/full');
    await look.create('in/full/x');
    for (const a of [...TYPES, 'dangling'])
      for (const b of ['in/file', 'in/full', 'fifo']) {
        const [before, other] = [await look.lstat(a), await look.lstat(b)];
        expect(await act.rename(a, b, 'exchange')).toBe('ok');
        expect((await look.lstat(a)).ino).toBe(other.ino);
        expect((await look.lstat(b)).ino).toBe(before.ino);
        expect(await act.rename(a, b, 'exchange')).toBe('ok');
      }
    expect(await act.rename('file', 'none', 'exchange')).toBe('ENOENT');
    expect(await act.rename('none', 'file', 'exchange')).toBe('ENOENT');
    expect(await act.rename('file', 'file', 'exchange')).toBe('ok');
    expect(await act.rename('in', 'in/full', 'exchange')).toBe('EINVAL');
    expect(await act.rename('in/full', 'in', 'exchange')).toBe('EINVAL');
    expect(await act.rename('in/file', 'in', 'exchange')).toBe('EINVAL');
    expect(await act.rename('file', 'directory/', 'exchange')).toBe('ok');
    expect(await act.rename('directory', 'file/', 'exchange')).toBe('ok');
  }),
  rule('rename with exchange carries link counts, .. and times along, both ways', async ({ act, look, moved }) => {
    for (const path of ['a', 'b', 'a/d', 'b/e', 'b/e/f']) await look.mkdir(path);
    await look.create('a/x');
    expect(await act.rename('a/x', 'b/e', 'exchange')).toBe('ok');
    expect(await look.lstat('a')).toMatchObject({ nlink: 4 });
    expect(await look.lstat('b')).toMatchObject({ nlink: 2 });
    expect((await look.lstat('a/x/..')).ino).toBe((await look.lstat('a')).ino);
    await look.rename('a/x', 'b/e', 'exchange');
    expect(await act.rename('a/d', 'b/e', 'exchange')).toBe('ok');
    expect(await look.lstat('a')).toMatchObject({ nlink: 3 });
    expect(await look.lstat('b')).toMatchObject({ nlink: 3 });
    expect((await look.lstat('a/d/..')).ino).toBe((await look.lstat('a')).ino);
    expect((await look.lstat('b/e/..')).ino).toBe((await look.lstat('b')).ino);
    expect(await look.readdir('a/d')).toEqual(['f']);
    for (const path of ['a', 'b']) expect(await moved(path, () => act.rename('a/d', 'b/e', 'exchange'))).toBe('mc');
    await look.link('a/x', 'a/x2');
    await look.create('b/y');
    expect(await moved('a/x2', () => act.rename('a/x', 'b/y', 'exchange'))).toBe('c');
    expect(await moved('a/x2', () => act.rename('a/x', 'b/y', 'exchange'))).toBe('c');
  }),
  rule('rename with exchange needs the rights of both moves', async ({ act, look }) => {
    await look.mkdir('one', 0o777);
    await look.mkdir('two', 0o777);
    await owned(look, 'one/mine', 65_534, 'mkdir');
    await owned(look, 'two/yours', 65_533, 'mkdir');
    expect(await act.as(alice).rename('one/mine', 'two/yours', 'exchange')).toBe('EACCES');
    await look.chmod('two/yours', 0o777);
    expect(await act.as(alice).rename('one/mine', 'two/yours', 'exchange')).toBe('ok');
    await look.chmod('two', 0o755);
    expect(await act.as(alice).rename('one/mine', 'two/yours', 'exchange')).toBe('EACCES');
  }),
  rule('rename is never seen half: the name is always there', async ({ act, look }) => {
    await look.create('x');
    let done = false;
    const changing = (async () => {
      for (let i = 0; i < 30; i++) {
        await act.create('new');
        await act.rename('new', 'x');
      }
      done = true;
    })();
    while (!done) {
      expect((await look.lstat('x')).nlink).toBeLessThanOrEqual(1);
      await new Promise((resolve) => setImmediate(resolve));
    }
    await changing;
  }),
  ...pathRules('rename, the old path', {
    onExisting: true,
    ofLink: true,
    call: (calls, path) => calls.rename(path, `new${made++}`),
  }),
  ...pathRules('rename, the new path', {
    onExisting: false,
    call: async (calls, path) => {
      const source = `source${made++}`;
      await calls.as({ uid: 0 }).create(source);
      return calls.rename(source, path);
    },
  }),
];
