import { constants } from 'node:fs';
import { expect } from 'vitest';
import { alice, bob, creationRules, everyType, inGroups, pathRules, type Rule, rule } from '../testing/posix-rules.js';

const { O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = constants;
const NEW = O_CREAT | O_EXCL | O_WRONLY;

export const openRules: readonly Rule[] = [
  ...creationRules('open with O_CREAT', constants.S_IFREG, (calls, path, mode) => calls.open(path, NEW, mode)),
  rule(
    'open with O_CREAT of a file that is there changes nothing of it, nor of the directory',
    async ({ act, look, moved }) => {
      await look.mkdir('d');
      await look.create('d/file', 0o640);
      await look.write('d/file', 'text');
      const open = async () => expect(await act.open('d/file', O_CREAT | O_RDWR, 0o600)).toBe('ok');
      expect(await moved('d', open)).toBe('');
      expect(await moved('d/file', open)).toBe('');
      expect(await look.stat('d/file')).toMatchObject({ mode: 0o640, size: 4 });
    },
  ),
  rule('open with O_TRUNC makes a file empty and moves its mtime and ctime', async ({ act, look, moved }) => {
    await look.create('file');
    await look.write('file', 'text');
    expect(await moved('file', () => act.open('file', O_TRUNC | O_WRONLY))).toBe('mc');
    expect(await look.stat('file')).toMatchObject({ size: 0 });
    expect(await moved('file', () => act.open('file', O_TRUNC | O_WRONLY))).toBe('mc');
    expect(await moved('file', () => act.open('file', O_WRONLY | O_APPEND))).toBe('');
  }),
  rule('open: a file may be made that its maker may not open again', async ({ act, look }) => {
    expect(await act.as(alice).open('file', NEW, 0)).toBe('ok');
    expect(await look.as(alice).open('file', O_RDONLY)).toBe('EACCES');
  }),
  rule('open: EEXIST for O_EXCL, also on a link that leads nowhere', async ({ act, look }) => {
    await everyType(look);
    for (const path of ['file', 'directory', 'fifo', 'character', 'socket', 'link', 'dangling'])
      expect(await act.open(path, NEW)).toBe('EEXIST');
    expect(await act.open('dangling', O_CREAT | O_WRONLY)).toBe('ok');
    expect(await look.readdir('.')).toContain('none');
  }),
  rule('open: of many who make a file with O_EXCL, one does', async ({ act, look }) => {
    const done = await Promise.all(Array.from({ length: 16 }, (_, i) => (i % 2 === 0 ? act : look).open('file', NEW)));
    expect(done.sort()).toEqual([...Array.from({ length: 15 }, () => 'EEXIST'), 'ok']);
  }),
  rule('open: each of owner, group and others has bits of its own', async ({ act, look }) => {
    const everyone = { alice, fellow: { uid: 65_533, gid: 65_534 }, member: inGroups(bob, 65_534), bob };
    const wanted = { read: O_RDONLY, write: O_WRONLY, both: O_RDWR };
    const may = { read: 4, write: 2, both: 6 };
    await look.create('file');
    await look.chown('file', 65_534, 65_534);
    for (const bits of [0, 1, 2, 4, 6, 7])
      for (const shift of [0, 3, 6]) {
        await look.chmod('file', bits << shift);
        for (const [who, user] of Object.entries(everyone))
          for (const [how, flags] of Object.entries(wanted)) {
            const own = { alice: 6, fellow: 3, member: 3, bob: 0 }[who]!;
            const need = may[how as keyof typeof may];
            const allowed = own === shift && (bits & need) === need;
            expect([who, how, bits << shift, await act.as(user).open('file', flags)]).toEqual([
              who,
              how,
              bits << shift,
              allowed ? 'ok' : 'EACCES',
            ]);
          }
      }
    expect(await act.open('file', O_RDWR)).toBe('ok');
  }),
  rule('open: directories are for reading, and need to be readable', async ({ act, look }) => {
    await look.mkdir('d', 0o311);
    await look.chown('d', 65_534, 65_534);
    expect(await act.as(alice).open('d', O_RDONLY)).toBe('EACCES');
    await look.chmod('d', 0o400);
    expect(await act.as(alice).open('d', O_RDONLY)).toBe('ok');
    for (const flags of [O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC, O_WRONLY | O_TRUNC])
      expect(await act.open('d', flags)).toBe('EISDIR');
    expect(await act.open('d', O_CREAT | O_RDONLY)).toBe('EISDIR');
    expect(await act.open('.', O_CREAT | O_RDONLY)).toBe('EISDIR');
    expect(await act.as(bob).open('d', O_WRONLY)).toBe('EISDIR');
  }),
  rule('open with O_TRUNC needs the right to write, even for reading', async ({ act, look }) => {
    await look.create('file', 0o444);
    await look.chown('file', 65_534, 65_534);
    expect(await act.as(alice).open('file', O_RDONLY | O_TRUNC)).toBe('EACCES');
    expect(await act.as(bob).open('file', O_RDONLY | O_TRUNC)).toBe('EACCES');
    await look.chmod('file', 0o644);
    await look.write('file', 'text');
    expect(await act.as(alice).open('file', O_RDONLY | O_TRUNC)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ size: 0 });
  }),
  rule('open: O_DIRECTORY opens directories alone, O_NOFOLLOW no link', async ({ act, look }) => {
    await everyType(look);
    await look.symlink('directory', 'to-directory');
    expect(await act.open('directory', O_DIRECTORY)).toBe('ok');
    expect(await act.open('to-directory', O_DIRECTORY)).toBe('ok');
    for (const path of ['file', 'link', 'fifo', 'socket']) expect(await act.open(path, O_DIRECTORY)).toBe('ENOTDIR');
    expect(await act.open('none', O_DIRECTORY)).toBe('ENOENT');
    expect(await act.open('link', O_NOFOLLOW)).toBe('ELOOP');
    expect(await act.open('dangling', O_NOFOLLOW)).toBe('ELOOP');
    expect(await act.open('link', O_CREAT | O_NOFOLLOW)).toBe('ELOOP');
    expect(await act.open('to-directory', O_NOFOLLOW | O_DIRECTORY)).toBe('ENOTDIR');
    expect(await act.open('file', O_NOFOLLOW)).toBe('ok');
    expect(await act.open('file', O_CREAT | O_DIRECTORY)).toBe('EINVAL');
  }),
  rule('open: a slash behind the name means a directory', async ({ act, look }) => {
    await everyType(look);
    await look.symlink('directory', 'to-directory');
    expect(await act.open('directory/', O_RDONLY)).toBe('ok');
    expect(await act.open('to-directory/', O_NOFOLLOW)).toBe('ok');
    expect(await act.open('file/', O_RDONLY)).toBe('ENOTDIR');
    expect(await act.open('link/', O_RDONLY)).toBe('ENOTDIR');
    expect(await act.open('file/.', O_RDONLY)).toBe('ENOTDIR');
    expect(await act.open('new/', O_RDONLY)).toBe('ENOENT');
    for (const path of ['new/', 'file/', 'directory/', 'link/'])
      expect(await act.open(path, O_CREAT | O_WRONLY)).toBe('EISDIR');
  }),
  rule('open with O_TMPFILE makes a file that no directory shows, until it is linked', async ({ act, look, moved }) => {
    await look.mkdir('d');
    expect(await moved('d', async () => expect(await act.nameless('d', O_RDWR, 0o644, null)).toBe('ok'))).toBe('');
    expect(await moved('d', () => act.as({ umask: 0o022 }).nameless('d', O_WRONLY, 0o666, 'd/file'))).toBe('mc');
    expect(await look.stat('d/file')).toMatchObject({ nlink: 1, size: 0, mode: 0o644, uid: 0, gid: 0 });
    expect(await act.nameless('d', O_RDWR, 0o644, 'd/file')).toBe('EEXIST');
    expect(await look.readdir('d')).toEqual(['file']);
    expect(await look.link('d/file', 'other')).toBe('ok');
    expect(await act.unlink('d/file')).toBe('ok');
    expect(await look.stat('other')).toMatchObject({ nlink: 1 });
  }),
  rule('open with O_TMPFILE: the maker and the directory decide whose it is', async ({ act, look }) => {
    await look.mkdir('d', 0o2777);
    await look.mkdir('e');
    await look.chown('d', 65_534, 1234);
    await look.chmod('d', 0o2777);
    expect(await act.as(bob).nameless('d', O_RDWR, 0o600, 'd/file')).toBe('ok');
    expect(await look.stat('d/file')).toMatchObject({ uid: 65_533, gid: 1234 });
    await look.chmod('d', 0o755);
    expect(await act.as(bob).nameless('d', O_RDWR, 0o600, null)).toBe('EACCES');
    expect(await act.as(alice).nameless('d', O_RDWR, 0o600, 'e/file')).toBe('EACCES');
  }),
  rule('open with O_TMPFILE: for writing, in a directory; O_EXCL keeps it nameless', async ({ act, look }) => {
    await everyType(look);
    expect(await act.nameless('directory', O_RDONLY, 0o600, null)).toBe('EINVAL');
    expect(await act.nameless('directory', O_CREAT | O_RDWR, 0o600, null)).toBe('EINVAL');
    expect(await act.nameless('file', O_RDWR, 0o600, null)).toBe('ENOTDIR');
    expect(await act.nameless('none', O_RDWR, 0o600, null)).toBe('ENOENT');
    expect(await act.nameless('directory', O_EXCL | O_RDWR, 0o600, null)).toBe('ok');
    expect(await act.nameless('directory', O_EXCL | O_RDWR, 0o600, 'new')).toBe('ENOENT');
  }),
  rule('open: ENXIO for sockets, and for fifos that nobody reads', async ({ act, look }) => {
    await everyType(look);
    expect(await act.open('socket', O_RDONLY)).toBe('ENXIO');
    expect(await act.open('socket', O_WRONLY)).toBe('ENXIO');
    expect(await act.open('fifo', O_WRONLY)).toBe('ENXIO');
    await look.chmod('socket', 0o600);
    expect(await act.as(bob).open('socket', O_RDONLY)).toBe('EACCES');
  }),
  rule('access asks about each right', async ({ act, look }) => {
    await look.create('file', 0o640);
    await look.chown('file', 65_534, 65_534);
    expect(await act.as(alice).access('file', 6)).toBe('ok');
    expect(await act.as(alice).access('file', 1)).toBe('EACCES');
    expect(await act.as(inGroups(bob, 65_534)).access('file', 4)).toBe('ok');
    expect(await act.as(inGroups(bob, 65_534)).access('file', 2)).toBe('EACCES');
    expect(await act.as(bob).access('file', 0)).toBe('ok');
    expect(await act.as(bob).access('file', 4)).toBe('EACCES');
    expect(await act.access('file', 6)).toBe('ok');
    expect(await act.access('file', 1)).toBe('EACCES');
    expect(await act.access('none', 0)).toBe('ENOENT');
    await look.mkdir('d', 0);
    expect(await act.access('d', 7)).toBe('ok');
  }),
  ...pathRules('open', { onExisting: true, call: (calls, path) => calls.open(path, O_RDONLY) }),
  ...pathRules('open with O_CREAT', { onExisting: false, call: (calls, path) => calls.open(path, NEW) }),
];
