import { expect } from 'vitest';
import type { Calls } from '../testing/posix-calls.js';
import { alice, bob, everyType, ownRule, type Rule, rule, TYPES } from '../testing/posix-rules.js';

const bytes = (text: string): Uint8Array => Buffer.from(text);
const value = async (calls: Calls, path: string, name: string): Promise<string> => {
  try {
    return Buffer.from(await calls.getxattr(path, name)).toString('utf8');
  } catch (error) {
    return (error as { code: string }).code;
  }
};
const ours = async (calls: Calls, path: string): Promise<string[]> =>
  (await calls.listxattr(path)).filter((name) => !name.startsWith('security.selinux'));

export const xattrRules: readonly Rule[] = [
  rule(
    'setxattr, getxattr, listxattr and removexattr agree, and a change moves the ctime',
    async ({ act, look, moved }) => {
      await look.create('file');
      expect(await value(act, 'file', 'user.a')).toBe('ENODATA');
      expect(
        await moved('file', async () => expect(await act.setxattr('file', 'user.a', bytes('one'))).toBe('ok')),
      ).toBe('c');
      expect(await act.setxattr('file', 'user.empty', bytes(''))).toBe('ok');
      expect(await act.setxattr('file', 'user.A', bytes('other case'))).toBe('ok');
      expect(await ours(look, 'file')).toEqual(['user.A', 'user.a', 'user.empty']);
      expect(await value(look, 'file', 'user.a')).toBe('one');
      expect(await value(look, 'file', 'user.empty')).toBe('');
      expect(await act.setxattr('file', 'user.a', bytes('two'))).toBe('ok');
      expect(await value(look, 'file', 'user.a')).toBe('two');
      expect(await moved('file', async () => expect(await act.removexattr('file', 'user.a')).toBe('ok'))).toBe('c');
      expect(await act.removexattr('file', 'user.a')).toBe('ENODATA');
      expect(await ours(look, 'file')).toEqual(['user.A', 'user.empty']);
      await look.rename('file', 'elsewhere');
      expect(await value(act, 'elsewhere', 'user.A')).toBe('other case');
    },
  ),
  rule('setxattr: create and replace say what must be there', async ({ act, look }) => {
    await look.create('file');
    expect(await act.setxattr('file', 'user.a', bytes('1'), 'replace')).toBe('ENODATA');
    expect(await act.setxattr('file', 'user.a', bytes('1'), 'create')).toBe('ok');
    expect(await act.setxattr('file', 'user.a', bytes('2'), 'create')).toBe('EEXIST');
    expect(await act.setxattr('file', 'user.a', bytes('3'), 'replace')).toBe('ok');
    expect(await value(look, 'file', 'user.a')).toBe('3');
  }),
  rule('attributes: names and values have limits', async ({ act, look }) => {
    await look.create('file');
    const longest = `user.${'n'.repeat(250)}`;
    expect(await act.setxattr('file', longest, bytes('x'))).toBe('ok');
    expect(await value(look, 'file', longest)).toBe('x');
    expect(await act.setxattr('file', `${longest}x`, bytes('x'))).toBe('ERANGE');
    expect(await act.setxattr('file', 'user.', bytes('x'))).toBe('EINVAL');
    expect(await act.setxattr('file', 'user', bytes('x'))).toBe('ENOTSUP');
    expect(await act.setxattr('file', 'other.x', bytes('x'))).toBe('ENOTSUP');
    expect(await act.setxattr('file', 'system.x', bytes('x'))).toBe('ENOTSUP');
    expect(await act.setxattr('file', 'user.big', new Uint8Array(65_537))).toBe('E2BIG');
    expect(await act.setxattr('none', 'user.x', bytes('x'))).toBe('ENOENT');
    expect(await value(act, 'none', 'user.x')).toBe('ENOENT');
  }),
  ownRule('attributes of 64 KiB and many of them are kept, and give their space back', async ({ act, look }) => {
    await look.create('file');
    const big = Buffer.alloc(65_536, 7);
    expect(await act.setxattr('file', 'user.big', big)).toBe('ok');
    expect(await act.setxattr('file', 'user.small', bytes('s'))).toBe('ok');
    expect(Buffer.compare(await look.getxattr('file', 'user.big'), big)).toBe(0);
    expect(await value(look, 'file', 'user.small')).toBe('s');
    for (let i = 0; i < 14; i++) expect(await act.setxattr('file', `user.big${i}`, big)).toBe('ok');
    expect(await act.setxattr('file', 'user.more', big)).toBe('ENOSPC');
    expect(await look.listxattr('file')).toHaveLength(16);
    for (let i = 0; i < 14; i++) expect(await look.removexattr('file', `user.big${i}`)).toBe('ok');
    expect(Buffer.compare(await act.getxattr('file', 'user.big'), big)).toBe(0);
    expect(await act.removexattr('file', 'user.big')).toBe('ok');
    expect(await look.listxattr('file')).toEqual(['user.small']);
    expect(await act.setxattr('file', 'user.big', big)).toBe('ok');
    expect(await look.unlink('file')).toBe('ok');
  }),
  ownRule('many small attributes set by two at the same time are all there', async ({ act, look }) => {
    await look.create('file');
    const names = Array.from({ length: 60 }, (_, i) => `user.number-${String(i).padStart(2, '0')}`);
    await Promise.all(names.map((name, i) => (i % 2 === 0 ? act : look).setxattr('file', name, bytes(`value ${i}`))));
    expect(await look.listxattr('file')).toEqual(names);
    for (const [i, name] of names.entries()) expect(await value(act, 'file', name)).toBe(`value ${i}`);
  }),
  rule('user attributes are for files and directories', async ({ act, look }) => {
    await everyType(look);
    for (const path of TYPES) {
      const allowed = path === 'file' || path === 'directory';
      expect(await act.setxattr(path, 'user.a', bytes('x'))).toBe(allowed ? 'ok' : 'EPERM');
      expect(await value(look, path, 'user.a')).toBe(allowed ? 'x' : 'ENODATA');
      expect(await act.setxattr(path, 'trusted.a', bytes('y'))).toBe('ok');
      expect(await value(look, path, 'trusted.a')).toBe('y');
    }
  }),
  rule('user attributes follow the permissions of what they are on', async ({ act, look }) => {
    await look.create('file');
    await look.chown('file', 65_534, 65_534);
    await look.setxattr('file', 'user.a', bytes('x'));
    await look.chmod('file', 0o604);
    expect(await act.as(bob).setxattr('file', 'user.a', bytes('y'))).toBe('EACCES');
    expect(await act.as(bob).removexattr('file', 'user.a')).toBe('EACCES');
    expect(await value(act.as(bob), 'file', 'user.a')).toBe('x');
    await look.chmod('file', 0o602);
    expect(await value(act.as(bob), 'file', 'user.a')).toBe('EACCES');
    expect(await act.as(bob).setxattr('file', 'user.a', bytes('y'))).toBe('ok');
    expect(await act.as(bob).listxattr('file')).toContain('user.a');
    expect(await value(act.as(alice), 'file', 'user.a')).toBe('y');
  }),
  rule("user attributes of a sticky directory are its owner's to change", async ({ act, look }) => {
    await look.mkdir('d');
    await look.chown('d', 65_534, 65_534);
    await look.chmod('d', 0o1777);
    expect(await act.as(bob).setxattr('d', 'user.a', bytes('x'))).toBe('EPERM');
    expect(await act.as(alice).setxattr('d', 'user.a', bytes('x'))).toBe('ok');
    expect(await value(act.as(bob), 'd', 'user.a')).toBe('x');
    await look.chmod('d', 0o777);
    expect(await act.as(bob).setxattr('d', 'user.a', bytes('y'))).toBe('ok');
  }),
  rule(
    "trusted attributes are root's, and nobody else hears of them; security ones only root changes",
    async ({ act, look }) => {
      await look.create('file', 0o666);
      await look.chown('file', 65_534, 65_534);
      expect(await act.as(alice).setxattr('file', 'trusted.a', bytes('x'))).toBe('EPERM');
      expect(await act.setxattr('file', 'trusted.a', bytes('x'))).toBe('ok');
      expect(await value(look.as(alice), 'file', 'trusted.a')).toBe('ENODATA');
      expect(await ours(look.as(alice), 'file')).toEqual([]);
      expect(await ours(look, 'file')).toEqual(['trusted.a']);
      expect(await act.as(alice).removexattr('file', 'trusted.a')).toBe('EPERM');
      expect(await act.as(alice).setxattr('file', 'security.test', bytes('x'))).toBe('EPERM');
      expect(await act.setxattr('file', 'security.test', bytes('x'))).toBe('ok');
      expect(await value(look.as(bob), 'file', 'security.test')).toBe('x');
    },
  ),
];
