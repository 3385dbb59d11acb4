import { constants } from 'node:fs';
import { expect } from 'vitest';
import { type Acl, AclTag, encodeAcl } from '../../fs/acl.js';
import type { Calls } from '../testing/posix-calls.js';
import { alice, bob, everyType, inGroups, ownRule, type Rule, rule } from '../testing/posix-rules.js';

const { O_CREAT, O_RDONLY, O_RDWR, O_WRONLY } = constants;
const ACCESS = 'system.posix_acl_access';
const DEFAULT = 'system.posix_acl_default';

/** 'u::rwx,u:1:r,g::r,g:2:rw,m::rwx,o::' */
function acl(text: string): Uint8Array {
  const tags = {
    u: [AclTag.owner, AclTag.user],
    g: [AclTag.group, AclTag.namedGroup],
    m: [AclTag.mask],
    o: [AclTag.others],
  };
  const entries = text.split(',').map((entry) => {
    const [kind, id, letters] = entry.split(':') as [keyof typeof tags, string, string];
    const permissions = [...letters].reduce((sum, letter) => sum | { r: 4, w: 2, x: 1 }[letter as 'r' | 'w' | 'x'], 0);
    const tag = tags[kind][id === '' ? 0 : 1] ?? tags[kind][0];
    return { tag, permissions, id: id === '' ? 0 : Number(id) };
  });
  return encodeAcl(entries as Acl);
}
const hex = (value: Uint8Array): string => Buffer.from(value).toString('hex');
const list = async (calls: Calls, path: string, name: string): Promise<string> => {
  try {
    return hex(await calls.getxattr(path, name));
  } catch (error) {
    return (error as { code: string }).code;
  }
};
const user = (uid: number, gid = uid, ...groups: number[]) => ({ uid, gid, groups });

export const aclRules: readonly Rule[] = [
  rule('an access list lets in who is named, as far as its mask goes', async ({ act, look }) => {
    await look.create('file');
    await look.chown('file', 65_534, 65_534);
    const value = acl('u::rw,u:1000:rw,u:1001:r,u:1002:,g::r,g:2000:rw,g:2001:,m::rw,o::r');
    expect(await act.setxattr('file', ACCESS, value)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o664 });
    expect(await list(look, 'file', ACCESS)).toBe(hex(value));
    const may: readonly (readonly [Parameters<Calls['as']>[0], string])[] = [
      [alice, 'rw'],
      [user(1000), 'rw'],
      [user(1001), 'r'],
      [user(1001, 2000), 'r'],
      [user(1002), ''],
      [user(1002, 65_534), ''],
      [user(1003), 'r'],
      [user(1003, 65_534), 'r'],
      [user(1003, 2000), 'rw'],
      [user(1003, 1003, 2000), 'rw'],
      [user(1003, 2001), ''],
      [user(1003, 2001, 2000), 'rw'],
      [user(1003, 2001, 65_534), 'r'],
    ];
    for (const [who, rights] of may) {
      expect([who, 'r', await look.as(who).open('file', O_RDONLY)]).toEqual([
        who,
        'r',
        rights.includes('r') ? 'ok' : 'EACCES',
      ]);
      expect([who, 'w', await look.as(who).open('file', O_WRONLY)]).toEqual([
        who,
        'w',
        rights.includes('w') ? 'ok' : 'EACCES',
      ]);
      expect([who, 'rw', await look.as(who).open('file', O_RDWR)]).toEqual([
        who,
        'rw',
        rights === 'rw' ? 'ok' : 'EACCES',
      ]);
    }
    expect(await act.open('file', O_RDWR)).toBe('ok');
  }),
  rule('chmod sets the mask of an access list, and leaves the group in it alone', async ({ act, look }) => {
    await look.create('file');
    await look.chown('file', 65_534, 65_534);
    await look.setxattr('file', ACCESS, acl('u::rw,u:1000:rw,g::r,m::rw,o::'));
    expect(await act.as(alice).chmod('file', 0o640)).toBe('ok');
    expect(await list(look, 'file', ACCESS)).toBe(hex(acl('u::rw,u:1000:rw,g::r,m::r,o::')));
    expect(await look.as(user(1000)).open('file', O_WRONLY)).toBe('EACCES');
    expect(await look.as(user(1000)).open('file', O_RDONLY)).toBe('ok');
    expect(await act.as(alice).chmod('file', 0o765)).toBe('ok');
    expect(await list(look, 'file', ACCESS)).toBe(hex(acl('u::rwx,u:1000:rw,g::r,m::rw,o::rx')));
    expect(await look.as(user(1000)).open('file', O_RDWR)).toBe('ok');
    expect(await look.as(user(1001, 65_534)).open('file', O_WRONLY)).toBe('EACCES');
    // With a mask of nothing only the mode is asked.
    expect(await act.as(alice).chmod('file', 0o704)).toBe('ok');
    expect(await look.as(user(1000)).open('file', O_RDONLY)).toBe('ok');
  }),
  rule('a list that says no more than a mode becomes the mode', async ({ act, look, moved }) => {
    await look.create('file', 0o600);
    expect(await moved('file', () => act.setxattr('file', ACCESS, acl('u::rwx,g::rx,o::r')))).toBe('c');
    expect(await look.stat('file')).toMatchObject({ mode: 0o754 });
    expect(await list(look, 'file', ACCESS)).toBe('ENODATA');
    await act.setxattr('file', ACCESS, acl('u::rwx,g::rx,m::w,o::r'));
    expect(await look.stat('file')).toMatchObject({ mode: 0o724 });
    expect(await list(look, 'file', ACCESS)).toBe(hex(acl('u::rwx,g::rx,m::w,o::r')));
    expect(await look.listxattr('file')).toContain(ACCESS);
    expect(await act.removexattr('file', ACCESS)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o724 });
    expect(await look.listxattr('file')).not.toContain(ACCESS);
  }),
  rule('lists that are none are refused', async ({ act, look }) => {
    await look.create('file');
    await look.mkdir('d');
    for (const wrong of [
      'u::rwx',
      'u::rwx,g::r',
      'u::rwx,u:1:r,g::r,o::',
      'u::r,u::r,g::r,o::',
      'g::r,u::r,o::r',
      'u::r,g::r,o::,m::',
    ])
      expect([wrong, await act.setxattr('file', ACCESS, acl(wrong))]).toEqual([wrong, 'EINVAL']);
    expect(await act.setxattr('d', DEFAULT, acl('u::rwx'))).toBe('EINVAL');
    expect(await act.setxattr('file', ACCESS, Buffer.from([2, 0, 0]))).toBe('EINVAL');
    expect(await act.setxattr('file', ACCESS, Buffer.from([1, 0, 0, 0, 1, 0, 7, 0, 0, 0, 0, 0]))).toBe('ENOTSUP');
    expect(await act.setxattr('file', ACCESS, Buffer.from([2, 0, 0, 0, 64, 0, 7, 0, 0, 0, 0, 0]))).toBe('EINVAL');
    expect(await look.stat('file')).toMatchObject({ mode: 0o644 });
  }),
  rule('lists are for the owner to set, default ones on directories', async ({ act, look }) => {
    await everyType(look);
    const value = acl('u::rwx,u:1000:r,g::r,m::r,o::');
    await look.chown('file', 65_534, 65_534);
    expect(await act.as(bob).setxattr('file', ACCESS, value)).toBe('EPERM');
    expect(await act.as(alice).setxattr('file', ACCESS, value)).toBe('ok');
    expect(await list(look.as(bob), 'file', ACCESS)).toBe(hex(value));
    expect(await act.as(bob).removexattr('file', ACCESS)).toBe('EPERM');
    expect(await act.setxattr('file', DEFAULT, value)).toBe('EACCES');
    expect(await list(act, 'file', DEFAULT)).toBe('ENODATA');
    expect(await act.setxattr('link', ACCESS, value)).toBe('ENOTSUP');
    for (const path of ['fifo', 'character', 'socket', 'directory']) {
      expect(await act.setxattr(path, ACCESS, value)).toBe('ok');
      expect(await list(look, path, ACCESS)).toBe(hex(value));
    }
    expect(await act.setxattr('directory', DEFAULT, value)).toBe('ok');
    expect(await list(look, 'directory', DEFAULT)).toBe(hex(value));
    expect(await act.removexattr('directory', DEFAULT)).toBe('ok');
  }),
  rule('setting a list takes the setgid bit from who is not of the group', async ({ act, look }) => {
    await look.create('file');
    await look.chown('file', 65_534, 65_533);
    await look.chmod('file', 0o2755);
    const value = acl('u::rwx,u:1000:r,g::r,m::rx,o::');
    expect(await act.as(inGroups(alice, 65_533)).setxattr('file', ACCESS, value)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o2750 });
    expect(await act.as(alice).setxattr('file', ACCESS, value)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ mode: 0o750 });
  }),
  rule('lists of directories decide who searches, lists and changes them', async ({ act, look }) => {
    await look.mkdir('d', 0o700);
    await look.create('d/file', 0o666);
    expect(await look.as(alice).open('d/file', O_RDONLY)).toBe('EACCES');
    await act.setxattr('d', ACCESS, acl('u::rwx,u:65534:x,g::,m::rwx,o::'));
    expect(await look.as(alice).open('d/file', O_RDONLY)).toBe('ok');
    expect(await look.as(bob).open('d/file', O_RDONLY)).toBe('EACCES');
    expect(await look.as(alice).create('d/new')).toBe('EACCES');
    expect(await look.as(alice).access('d', 4)).toBe('EACCES');
    await act.setxattr('d', ACCESS, acl('u::rwx,u:65534:wx,g::,m::rwx,o::'));
    expect(await look.as(alice).create('d/new')).toBe('ok');
    await act.chmod('d', 0o750);
    expect(await look.as(alice).create('d/other')).toBe('EACCES');
  }),
  rule('a default list is what new files get, and the umask takes nothing of it', async ({ act, look }) => {
    await look.mkdir('d', 0o777);
    await look.chmod('d', 0o777);
    const value = acl('u::rwx,u:1000:rw,g::rx,m::rwx,o::rx');
    await look.setxattr('d', DEFAULT, value);
    const strict = act.as({ ...alice, umask: 0o077 });
    expect(await strict.open('d/file', O_CREAT | O_WRONLY, 0o666)).toBe('ok');
    expect(await look.stat('d/file')).toMatchObject({ mode: 0o664 });
    expect(await list(look, 'd/file', ACCESS)).toBe(hex(acl('u::rw,u:1000:rw,g::rx,m::rw,o::r')));
    expect(await list(look, 'd/file', DEFAULT)).toBe('ENODATA');
    expect(await look.as(user(1000)).open('d/file', O_RDWR)).toBe('ok');
    expect(await strict.mkdir('d/sub', 0o750)).toBe('ok');
    expect(await look.stat('d/sub')).toMatchObject({ mode: 0o750 });
    expect(await list(look, 'd/sub', ACCESS)).toBe(hex(acl('u::rwx,u:1000:rw,g::rx,m::rx,o::')));
    expect(await list(look, 'd/sub', DEFAULT)).toBe(hex(value));
    expect(await strict.mkfifo('d/fifo', 0o622)).toBe('ok');
    expect(await list(look, 'd/fifo', ACCESS)).toBe(hex(acl('u::rw,u:1000:rw,g::rx,m::w,o::')));
    expect(await strict.symlink('x', 'd/link')).toBe('ok');
    expect(await look.lstat('d/link')).toMatchObject({ mode: 0o777 });
    expect(await list(look, 'd/link', ACCESS)).toBe('ENOTSUP');
    // Without a mask it is a mode for what is made.
    await look.setxattr('d', DEFAULT, acl('u::rwx,g::r,o::'));
    expect(await strict.open('d/plain', O_CREAT | O_WRONLY, 0o666)).toBe('ok');
    expect(await look.stat('d/plain')).toMatchObject({ mode: 0o640 });
    expect(await list(look, 'd/plain', ACCESS)).toBe('ENODATA');
    await look.removexattr('d', DEFAULT);
    expect(await strict.open('d/last', O_CREAT | O_WRONLY, 0o666)).toBe('ok');
    expect(await look.stat('d/last')).toMatchObject({ mode: 0o600 });
  }),
  ownRule('lists too long for an inode are enforced and inherited all the same', async ({ act, look }) => {
    const names = Array.from({ length: 200 }, (_, i) => `u:${5000 + i}:rwx`).join(',');
    const value = acl(`u::rwx,${names},g::,m::rwx,o::`);
    await look.mkdir('d', 0o700);
    expect(await act.setxattr('d', ACCESS, value)).toBe('ok');
    expect(await act.setxattr('d', DEFAULT, value)).toBe('ok');
    expect(await look.as(user(5123)).open('d/file', O_CREAT | O_WRONLY, 0o666)).toBe('ok');
    expect(await act.as(user(5124)).open('d/file', O_RDWR)).toBe('ok');
    expect(await act.as(user(6000)).open('d/file', O_RDONLY)).toBe('EACCES');
    expect(await look.as(user(5001)).mkdir('d/sub', 0o777)).toBe('ok');
    expect(await act.as(user(5002)).create('d/sub/x')).toBe('ok');
    expect(await list(look, 'd/sub', DEFAULT)).toBe(hex(value));
    expect(await act.chmod('d', 0o700)).toBe('ok');
    expect(await look.as(user(5123)).open('d/file', O_RDONLY)).toBe('EACCES');
    expect(await look.as(user(5123)).open('d/another', O_CREAT | O_WRONLY)).toBe('EACCES');
  }),
];
