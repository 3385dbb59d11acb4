import { constants } from 'node:fs';
import { expect } from 'vitest';
import type { Credentials } from '../../fs/file-system-api.js';
import type { Calls } from './posix-calls.js';

/**
 * What a rule of POSIX is to the suites in ../posix: a sentence, and a program that shows it. `act` makes the call that the rule is about; `look`
 * prepares and observes, on another node where there are two.
 */
export interface RuleContext {
  readonly act: Calls;
  readonly look: Calls;
  /** The directory of this rule, for paths whose length counts. */
  readonly dir: string;
  /** Which of a file's times (of the link itself, if it is one) an action moves, in the order a, m, c: 'mc'. */
  moved(path: string, action: () => Promise<unknown>): Promise<string>;
}
export interface Rule {
  readonly name: string;
  readonly run: (t: RuleContext) => Promise<void>;
  /** Not asked of a local directory, which has other limits. */
  readonly ownLimits?: boolean;
  /** Asked of a local directory where its file system can do all of fallocate. */
  readonly ofSpace?: boolean;
}
export const rule = (name: string, run: Rule['run']): Rule => ({ name, run });
export const spaceRule = (name: string, run: Rule['run']): Rule => ({ name, run, ofSpace: true });
/** A rule with numbers of ours in it. */
export const ownRule = (name: string, run: Rule['run']): Rule => ({ name, run, ownLimits: true });

export const alice: Partial<Credentials> = { uid: 65_534, gid: 65_534 };
export const bob: Partial<Credentials> = { uid: 65_533, gid: 65_533 };
export const inGroups = (user: Partial<Credentials>, ...groups: number[]): Partial<Credentials> => ({
  ...user,
  groups,
});

export const NAME_MAX = 255;
export const PATH_MAX = 4096;
export const longestName = 'n'.repeat(NAME_MAX);

/** A path below the rule's directory that is `bytes` long as a whole, of names that are not too long. It ends in a name of its own. */
export function pathOf(t: RuleContext, bytes: number): string {
  let path = '';
  const room = bytes - t.dir.length - 1;
  while (room - path.length > 250) path += './'.repeat(100);
  return path + 'p'.repeat(room - path.length);
}

interface PathCall {
  /** What the call is made on exists before; else it makes it. */
  readonly onExisting: boolean;
  /** A link as the last component is the thing itself: no loop there. */
  readonly ofLink?: boolean;
  readonly call: (calls: Calls, path: string) => Promise<string>;
}

/** What every call says of a path that leads nowhere, or where nobody may go. */
export function pathRules(name: string, { onExisting, ofLink, call }: PathCall): Rule[] {
  return [
    rule(`${name}: ENOTDIR when a component of the path is not a directory`, async ({ act, look }) => {
      await look.create('file');
      await look.mkfifo('fifo');
      for (const component of ['file', 'fifo']) {
        expect(await call(act, `${component}/x`)).toBe('ENOTDIR');
        expect(await call(act, `${component}/x/y`)).toBe('ENOTDIR');
      }
      await look.symlink('file', 'link');
      expect(await call(act, 'link/x')).toBe('ENOTDIR');
    }),
    rule(`${name}: names of ${NAME_MAX} bytes, and ENAMETOOLONG for longer ones`, async ({ act, look }) => {
      if (onExisting) await look.create(longestName);
      expect(await call(act, longestName)).toBe('ok');
      expect(await call(act, `${longestName}x`)).toBe('ENAMETOOLONG');
      expect(await call(act, `${longestName}x/y`)).toBe('ENAMETOOLONG');
      expect(await call(act, 'é'.repeat(128))).toBe('ENAMETOOLONG');
      // Nobody gets as far as the long name.
      expect(await call(act, `none/${longestName}x`)).toBe('ENOENT');
    }),
    rule(`${name}: paths of ${PATH_MAX - 1} bytes, and ENAMETOOLONG for longer ones`, async (t) => {
      const path = pathOf(t, PATH_MAX - 1);
      if (onExisting) await t.look.create(path);
      expect(await call(t.act, path)).toBe('ok');
      expect(await call(t.act, pathOf(t, PATH_MAX))).toBe('ENAMETOOLONG');
    }),
    rule(`${name}: ENOENT when a component of the path does not exist`, async ({ act, look }) => {
      expect(await call(act, 'none/x')).toBe('ENOENT');
      await look.symlink('none', 'dangling');
      expect(await call(act, 'dangling/x')).toBe('ENOENT');
      if (onExisting) expect(await call(act, 'none')).toBe('ENOENT');
    }),
    rule(`${name}: EACCES when a component of the path may not be searched`, async ({ act, look }) => {
      await look.mkdir('closed', 0o755);
      await look.mkdir('closed/in', 0o777);
      await look.chown('closed', 65_534, 65_534);
      if (onExisting) {
        await look.create('closed/in/x', 0o666);
        await look.chown('closed/in/x', 65_534, 65_534);
      }
      await look.chmod('closed', 0o644);
      expect(await call(act.as(alice), 'closed/in/x')).toBe('EACCES');
      expect(await call(act.as(bob), 'closed/in/x')).toBe('EACCES');
      await look.chmod('closed', 0o755);
      expect(await call(act.as(alice), 'closed/in/x')).toBe('ok');
    }),
    rule(`${name}: ELOOP when the path leads in circles`, async ({ act, look }) => {
      await look.symlink('there', 'here');
      await look.symlink('here', 'there');
      expect(await call(act, 'here/x')).toBe('ELOOP');
      if (onExisting && ofLink !== true) expect(await call(act, 'here')).toBe('ELOOP');
    }),
    rule(`${name}: 40 links on the way are followed, 41 are not`, async ({ act, look }) => {
      await look.mkdir('link0');
      if (onExisting) await look.create('link0/x');
      for (let i = 1; i <= 41; i++) await look.symlink(`link${i - 1}`, `link${i}`);
      expect(await call(act, 'link41/x')).toBe('ELOOP');
      expect(await call(act, 'link40/x')).toBe('ok');
    }),
  ];
}

/** What new files have: whom they belong to, their mode, and what their making does to times. */
export function creationRules(
  name: string,
  type: number,
  make: (calls: Calls, path: string, mode: number) => Promise<string>,
): Rule[] {
  const isDirectory = type === constants.S_IFDIR;
  return [
    rule(
      `${name}: the mode is what was asked for without the umask, and the rest of the bits`,
      async ({ act, look }) => {
        expect(await make(act, 'plain', 0o755)).toBe('ok');
        expect(await look.lstat('plain')).toMatchObject({ type, mode: 0o755, uid: 0, gid: 0 });
        expect(await make(act, 'few', 0o151)).toBe('ok');
        expect(await look.lstat('few')).toMatchObject({ type, mode: 0o151 });
        expect(await make(act.as({ ...ROOT, umask: 0o077 }), 'own', 0o151)).toBe('ok');
        expect(await look.lstat('own')).toMatchObject({ mode: 0o100 });
        expect(await make(act.as({ ...ROOT, umask: 0o070 }), 'nogroup', 0o345)).toBe('ok');
        expect(await look.lstat('nogroup')).toMatchObject({ mode: 0o305 });
        expect(await make(act.as({ ...ROOT, umask: 0o501 }), 'odd', 0o345)).toBe('ok');
        expect(await look.lstat('odd')).toMatchObject({ mode: 0o244 });
        expect(await make(act, 'sticky', 0o1755)).toBe('ok');
        expect(await look.lstat('sticky')).toMatchObject({ mode: 0o1755 });
        expect(await make(act, 'setid', 0o6755)).toBe('ok');
        expect(await look.lstat('setid')).toMatchObject({ mode: isDirectory ? 0o755 : 0o6755 });
      },
    ),
    rule(`${name}: it belongs to its maker's effective ids`, async ({ act, look }) => {
      await look.mkdir('d', 0o755);
      await look.chown('d', 65_535 - 1, 65_534);
      expect(await make(act.as(alice), 'd/a', 0o644)).toBe('ok');
      expect(await look.lstat('d/a')).toMatchObject({ uid: 65_534, gid: 65_534 });
      expect(await make(act.as({ uid: 65_534, gid: 65_533 }), 'd/b', 0o644)).toBe('ok');
      expect(await look.lstat('d/b')).toMatchObject({ uid: 65_534, gid: 65_533 });
      await look.chmod('d', 0o777);
      expect(await make(act.as(bob), 'd/c', 0o644)).toBe('ok');
      expect(await look.lstat('d/c')).toMatchObject({ uid: 65_533, gid: 65_533 });
    }),
    rule(`${name}: in a setgid directory the group is the directory's`, async ({ act, look }) => {
      await look.mkdir('d');
      await look.chown('d', 0, 1234);
      await look.chmod('d', 0o2777);
      expect(await make(act.as(alice), 'd/a', 0o755)).toBe('ok');
      expect(await look.lstat('d/a')).toMatchObject({ uid: 65_534, gid: 1234, mode: isDirectory ? 0o2755 : 0o755 });
      expect(await make(act.as(alice), 'd/b', 0o2755)).toBe('ok');
      // Nobody makes files that run with a group's rights unless he is of it.
      expect(await look.lstat('d/b')).toMatchObject({ gid: 1234, mode: isDirectory ? 0o2755 : 0o755 });
      expect(await make(act.as(inGroups(alice, 1234)), 'd/c', 0o2755)).toBe('ok');
      expect(await look.lstat('d/c')).toMatchObject({ gid: 1234, mode: 0o2755 });
      expect(await make(act.as(alice), 'd/e', 0o2745)).toBe('ok');
      expect(await look.lstat('d/e')).toMatchObject({ gid: 1234, mode: 0o2745 });
    }),
    rule(
      `${name}: its times are those of its making, and its directory's mtime and ctime move`,
      async ({ act, look, moved }) => {
        await look.mkdir('d');
        expect(await moved('d', () => make(act, 'd/a', 0o755))).toBe('mc');
        const directory = await look.lstat('d');
        const made = await look.lstat('d/a');
        expect(made.ctime).toBe(made.mtime);
        expect(made.atime).toBe(made.mtime);
        expect(directory.ctime).toBe(directory.mtime);
      },
    ),
    rule(
      `${name}: EACCES in a directory that may not be written to, and nothing moves`,
      async ({ act, look, moved }) => {
        await look.mkdir('d', 0o555);
        await look.chown('d', 65_534, 65_534);
        expect(await moved('d', async () => expect(await make(act.as(alice), 'd/a', 0o644)).toBe('EACCES'))).toBe('');
        expect(await make(act.as(bob), 'd/a', 0o644)).toBe('EACCES');
        await look.chmod('d', 0o755);
        expect(await make(act.as(alice), 'd/a', 0o644)).toBe('ok');
        expect(await make(act.as(bob), 'd/b', 0o644)).toBe('EACCES');
      },
    ),
    rule(`${name}: EEXIST when the name is there, whatever it is`, async ({ act, look, moved }) => {
      await everyType(look);
      for (const present of [...TYPES, 'dangling'])
        expect(await moved(present, async () => expect(await make(act, present, 0o644)).toBe('EEXIST'))).toBe('');
      for (const dots of ['.', '..', 'directory/.', 'directory/..'])
        expect(await make(act, dots, 0o755)).toBe('EEXIST');
    }),
  ];
}
const ROOT: Partial<Credentials> = { uid: 0, gid: 0 };

export const TYPES = ['file', 'directory', 'fifo', 'character', 'block', 'socket', 'link'] as const;
/** One of each, named by what it is; the link leads to the file; and one that leads nowhere, `dangling`. */
export async function everyType(calls: Calls, names: readonly string[] = [...TYPES, 'dangling']): Promise<void> {
  const { S_IFBLK, S_IFCHR, S_IFSOCK } = constants;
  const make: Record<string, () => Promise<string>> = {
    file: () => calls.create('file'),
    directory: () => calls.mkdir('directory'),
    fifo: () => calls.mkfifo('fifo'),
    character: () => calls.mknod('character', S_IFCHR | 0o644, 0x0102),
    block: () => calls.mknod('block', S_IFBLK | 0o644, 0x0102),
    socket: () => calls.mknod('socket', S_IFSOCK | 0o644),
    link: () => calls.symlink('file', 'link'),
    dangling: () => calls.symlink('none', 'dangling'),
  };
  for (const name of names) expect(await make[name]!()).toBe('ok');
}
