import { expect } from 'vitest';
import { alice, bob, everyType, inGroups, pathRules, type Rule, rule } from '../testing/posix-rules.js';

export const chmodRules: readonly Rule[] = [
  rule('chmod changes the mode of every type of file, and its ctime only', async ({ act, look, moved }) => {
    await everyType(look);
    for (const path of ['file', 'directory', 'fifo', 'character', 'block', 'socket']) {
      expect(await moved(path, async () => expect(await act.chmod(path, 0o111)).toBe('ok'))).toBe('c');
      expect(await look.stat(path)).toMatchObject({ mode: 0o111 });
      for (const mode of [0o7777, 0o1640, 0]) {
        expect(await act.chmod(path, mode)).toBe('ok');
        expect(await look.stat(path)).toMatchObject({ mode });
      }
    }
  }),
  rule('chmod through a link changes what the link names', async ({ act, look, moved }) => {
    await look.create('file');
    await look.symlink('file', 'link');
    expect(await moved('link', () => act.chmod('link', 0o321))).not.toMatch(/[mc]/);
    expect(await look.lstat('file')).toMatchObject({ mode: 0o321 });
    expect(await look.lstat('link')).toMatchObject({ mode: 0o777 });
  }),
  rule('fchmod does the same through a handle', async ({ act, look, moved }) => {
    await look.create('file');
    expect(await moved('file', () => act.fchmod('file', 0o4751))).toBe('c');
    expect(await look.stat('file')).toMatchObject({ mode: 0o4751 });
  }),
  rule('chmod: EPERM for everyone but the owner and root, and nothing moves', async ({ act, look, moved }) => {
    await everyType(look);
    for (const path of ['file', 'directory', 'fifo', 'character', 'block', 'socket']) {
      await look.chown(path, 65_534, 65_534);
      expect(await act.as(alice).chmod(path, 0o642)).toBe('ok');
      expect(await look.stat(path)).toMatchObject({ mode: 0o642 });
      const others = async () => {
        expect(await act.as(bob).chmod(path, 0o641)).toBe('EPERM');
        expect(await act.as({ uid: 65_533, gid: 65_534 }).chmod(path, 0o641)).toBe('EPERM');
      };
      expect(await moved(path, others)).toBe('');
      expect(await look.stat(path)).toMatchObject({ mode: 0o642 });
      expect(await act.chmod(path, 0o640)).toBe('ok');
    }
  }),
  rule('chmod by an owner who is not of the group takes the setgid bit away', async ({ act, look }) => {
    await look.create('file');
    await look.mkdir('directory');
    for (const path of ['file', 'directory']) {
      await look.chown(path, 65_534, 65_533);
      expect(await act.as(alice).chmod(path, 0o2755)).toBe('ok');
      expect(await look.stat(path)).toMatchObject({ mode: 0o755 });
      expect(await act.as(inGroups(alice, 65_533)).chmod(path, 0o2755)).toBe('ok');
      expect(await look.stat(path)).toMatchObject({ mode: 0o2755 });
      expect(await act.chmod(path, 0o2770)).toBe('ok');
      expect(await look.stat(path)).toMatchObject({ mode: 0o2770 });
    }
  }),
  rule('chmod: the owner may set the sticky bit of a file', async ({ act, look }) => {
    await look.create('file');
    await look.chown('file', 65_534, 65_534);
    expect(await act.as(alice).chmod('file', 0o1644)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o1644 });
  }),
  rule('a write by somebody without privilege takes setuid and setgid away', async ({ act, look }) => {
    await look.create('file');
    await look.chmod('file', 0o6777);
    expect(await act.as(bob).write('file', 'x')).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o777, size: 1 });
    await look.chmod('file', 0o4777);
    expect(await act.as(bob).write('file', 'x')).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o777 });
    await look.chown('file', 65_534, 65_534);
    await look.chmod('file', 0o6777);
    expect(await act.as(alice).write('file', 'x')).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o777 });
    // Without execution by the group it is no setgid file; but who is not of the group keeps nothing.
    await look.chmod('file', 0o2766);
    expect(await act.as(alice).write('file', 'x')).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o2766 });
    expect(await act.as(bob).write('file', 'x')).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o766 });
    await look.chmod('file', 0o6777);
    expect(await act.write('file', 'x')).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o6777 });
    expect(await act.as(bob).truncate('file', 0)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o777 });
  }),
  rule('permissions hold from the moment that chmod returns', async ({ act, look }) => {
    await look.create('file', 0o644);
    await look.chown('file', 65_534, 65_534);
    expect(await look.as(bob).open('file', 0)).toBe('ok');
    expect(await act.as(alice).chmod('file', 0o600)).toBe('ok');
    expect(await look.as(bob).open('file', 0)).toBe('EACCES');
    expect(await act.as(alice).chmod('file', 0o604)).toBe('ok');
    expect(await look.as(bob).open('file', 0)).toBe('ok');
    // The owner's bits are the owner's, fewer or not.
    expect(await act.as(alice).chmod('file', 0o077)).toBe('ok');
    expect(await look.as(alice).open('file', 0)).toBe('EACCES');
    expect(await look.as({ uid: 65_533, gid: 65_534 }).open('file', 0)).toBe('ok');
    expect(await look.as(inGroups(bob, 65_534)).open('file', 0)).toBe('ok');
    expect(await act.as(alice).chmod('file', 0o707)).toBe('ok');
    expect(await look.as(inGroups(bob, 65_534)).open('file', 0)).toBe('EACCES');
  }),
  ...pathRules('chmod', { onExisting: true, call: (calls, path) => calls.chmod(path, 0o755) }),
];
