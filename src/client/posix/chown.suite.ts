import { expect } from 'vitest';
import { alice, bob, everyType, inGroups, pathRules, type Rule, rule, TYPES } from '../testing/posix-rules.js';

const movable = TYPES.filter((type) => type !== 'link');

export const chownRules: readonly Rule[] = [
  rule(
    'chown by root changes owner and group of every type of file, and its ctime only',
    async ({ act, look, moved }) => {
      await everyType(look);
      for (const path of movable) {
        expect(await moved(path, async () => expect(await act.chown(path, 123, 456)).toBe('ok'))).toBe('c');
        expect(await look.stat(path)).toMatchObject({ uid: 123, gid: 456 });
        await act.chown(path, 0, -1);
        expect(await look.stat(path)).toMatchObject({ uid: 0, gid: 456 });
        await act.chown(path, -1, 0);
        expect(await look.stat(path)).toMatchObject({ uid: 0, gid: 0 });
      }
      await act.chown('file', 0xfffffffe, 0xfffffffe);
      expect(await look.stat('file')).toMatchObject({ uid: 0xfffffffe, gid: 0xfffffffe });
    },
  ),
  rule('chown goes through a link, lchown changes the link', async ({ act, look, moved }) => {
    await look.create('file');
    await look.symlink('file', 'link');
    expect(await moved('link', () => act.chown('link', 1, 2))).not.toMatch(/[mc]/);
    expect(await look.lstat('file')).toMatchObject({ uid: 1, gid: 2 });
    expect(await moved('link', () => act.lchown('link', 3, 4))).toBe('c');
    expect(await look.lstat('link')).toMatchObject({ uid: 3, gid: 4 });
    expect(await look.lstat('file')).toMatchObject({ uid: 1, gid: 2 });
  }),
  rule('fchown does the same through a handle', async ({ act, look, moved }) => {
    await look.create('file');
    expect(await moved('file', () => act.fchown('file', 5, 6))).toBe('c');
    expect(await look.stat('file')).toMatchObject({ uid: 5, gid: 6 });
  }),
  rule(
    'chown: the owner may give a file to a group that he is of, and to nobody else',
    async ({ act, look, moved }) => {
      await everyType(look);
      const member = act.as(inGroups(alice, 100, 200));
      for (const path of movable) {
        await look.chown(path, 65_534, 65_534);
        expect(await moved(path, async () => expect(await member.chown(path, -1, 200)).toBe('ok'))).toBe('c');
        expect(await look.stat(path)).toMatchObject({ uid: 65_534, gid: 200 });
        expect(await member.chown(path, 65_534, 65_534)).toBe('ok');
        const refused = async () => {
          expect(await member.chown(path, -1, 300)).toBe('EPERM');
          expect(await member.chown(path, 65_533, -1)).toBe('EPERM');
          expect(await member.chown(path, 0, 100)).toBe('EPERM');
          expect(await act.as(inGroups(bob, 200)).chown(path, -1, 200)).toBe('EPERM');
          expect(await act.as(bob).chown(path, 65_533, -1)).toBe('EPERM');
          expect(await act.as(bob).chown(path, 65_534, 65_534)).toBe('EPERM');
        };
        expect(await moved(path, refused)).toBe('');
        expect(await look.stat(path)).toMatchObject({ uid: 65_534, gid: 65_534 });
      }
    },
  ),
  rule('chown with -1 twice changes nothing but the ctime', async ({ act, look, moved }) => {
    await look.create('file');
    await look.mkdir('directory');
    for (const path of ['file', 'directory']) {
      await look.chown(path, 65_534, 65_533);
      expect(await moved(path, async () => expect(await act.as(alice).chown(path, -1, -1)).toBe('ok'))).toBe('c');
      expect(await moved(path, async () => expect(await act.as(bob).chown(path, -1, -1)).toBe('ok'))).toBe('c');
      expect(await look.stat(path)).toMatchObject({ uid: 65_534, gid: 65_533 });
    }
  }),
  rule('chown takes setuid, and setgid where it means execution, from files', async ({ act, look }) => {
    await look.create('file');
    for (const [mode, left] of [
      [0o6555, 0o555],
      [0o4555, 0o555],
      [0o2555, 0o555],
      [0o2545, 0o2545],
      [0o1555, 0o1555],
    ] as const) {
      await look.chmod('file', mode);
      expect(await act.chown('file', 65_534, 65_534)).toBe('ok');
      expect(await look.stat('file')).toMatchObject({ mode: left });
    }
    await look.chmod('file', 0o6555);
    expect(await act.as(alice).chown('file', -1, 65_534)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o555 });
    await look.chmod('file', 0o6555);
    expect(await act.as(bob).chown('file', -1, -1)).toBe('EPERM');
    expect(await act.as(alice).chown('file', -1, -1)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o555 });
    await look.chown('file', 65_534, 65_533);
    await look.chmod('file', 0o2545);
    expect(await act.as(alice).chown('file', -1, 65_534)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o545 });
  }),
  rule('chown leaves the setuid bits of a directory', async ({ act, look }) => {
    await look.mkdir('directory');
    await look.chmod('directory', 0o6755);
    expect(await act.chown('directory', 65_534, 65_534)).toBe('ok');
    expect(await look.stat('directory')).toMatchObject({ mode: 0o6755 });
    expect(await act.as(alice).chown('directory', -1, 65_534)).toBe('ok');
    expect(await look.stat('directory')).toMatchObject({ mode: 0o6755 });
  }),
  ...pathRules('chown', { onExisting: true, call: (calls, path) => calls.chown(path, -1, -1) }),
  ...pathRules('lchown', { onExisting: true, ofLink: true, call: (calls, path) => calls.lchown(path, -1, -1) }),
];
