import { expect } from 'vitest';
import { alice, bob, everyType, pathRules, type Rule, rule, TYPES } from '../testing/posix-rules.js';

const ATIME = 1_900_000_000_123_456_789n;
const MTIME = 1_950_000_000_987_654_321n;

export const utimensatRules: readonly Rule[] = [
  rule(
    'utimensat sets times of every type of file, to the nanosecond, and moves the ctime',
    async ({ act, look, moved }) => {
      await everyType(look);
      for (const path of TYPES) {
        const call = path === 'link' ? 'lutimes' : 'utimes';
        expect(await moved(path, async () => expect(await act[call](path, ATIME, MTIME)).toBe('ok'))).toBe('amc');
        expect(await look.lstat(path)).toMatchObject({ atime: ATIME, mtime: MTIME });
      }
      expect(await look.lstat('file')).toMatchObject({ atime: ATIME, mtime: MTIME });
    },
  ),
  rule('utimensat follows a link unless told not to', async ({ act, look }) => {
    await everyType(look, ['file', 'link', 'dangling']);
    expect(await act.utimes('link', 1n, 2n)).toBe('ok');
    expect(await look.lstat('file')).toMatchObject({ atime: 1n, mtime: 2n });
    expect(await act.lutimes('link', 3n, 4n)).toBe('ok');
    expect(await look.lstat('link')).toMatchObject({ atime: 3n, mtime: 4n });
    expect(await look.lstat('file')).toMatchObject({ atime: 1n, mtime: 2n });
    expect(await act.utimes('dangling', 3n, 4n)).toBe('ENOENT');
    expect(await act.lutimes('dangling', 3n, 4n)).toBe('ok');
  }),
  rule('utimensat: now is the time of the call, omit leaves one alone', async ({ act, look, moved }) => {
    await look.create('file');
    await look.utimes('file', 1n, 2n);
    expect(await moved('file', () => act.utimes('file', 'now', 'now'))).toBe('amc');
    const now = await look.stat('file');
    expect(now.atime).toBe(now.mtime);
    expect(now.ctime).toBe(now.mtime);
    expect(await moved('file', () => act.utimes('file', 7n, 'omit'))).toBe('ac');
    expect(await moved('file', () => act.utimes('file', 'omit', 8n))).toBe('mc');
    expect(await moved('file', () => act.utimes('file', 'omit', 'omit'))).toBe('');
    expect(await look.stat('file')).toMatchObject({ atime: 7n, mtime: 8n });
    expect(await moved('file', () => act.utimes('file', 'now', 'omit'))).toBe('ac');
    expect(await moved('file', () => act.utimes('file', 'omit', 'now'))).toBe('mc');
  }),
  rule('utimensat: both now is for the owner and whoever may write, else EACCES', async ({ act, look, moved }) => {
    await look.create('file', 0o444);
    await look.chown('file', 65_534, 65_534);
    expect(await act.as(alice).utimes('file', 'now', 'now')).toBe('ok');
    expect(await moved('file', async () => expect(await act.as(bob).utimes('file', 'now', 'now')).toBe('EACCES'))).toBe(
      '',
    );
    await look.chmod('file', 0o446);
    expect(await act.as(bob).utimes('file', 'now', 'now')).toBe('ok');
    expect(await act.utimes('file', 'now', 'now')).toBe('ok');
  }),
  rule('utimensat: everything else is for the owner, else EPERM', async ({ act, look, moved }) => {
    await look.create('file', 0o666);
    await look.chown('file', 65_534, 65_534);
    const refused = async () => {
      for (const [atime, mtime] of [
        [1n, 2n],
        ['now', 2n],
        [1n, 'now'],
        ['omit', 2n],
        [1n, 'omit'],
        ['now', 'omit'],
        ['omit', 'now'],
      ] as const)
        expect(await act.as(bob).utimes('file', atime, mtime)).toBe('EPERM');
      expect(await act.as(bob).utimes('file', 'omit', 'omit')).toBe('ok');
    };
    expect(await moved('file', refused)).toBe('');
    expect(await act.as(alice).utimes('file', 'omit', 2n)).toBe('ok');
    expect(await act.as(alice).utimes('file', 1n, 2n)).toBe('ok');
    expect(await act.utimes('file', 5n, 6n)).toBe('ok');
  }),
  rule('utimensat: times before 1970 and after 2038', async ({ act, look }) => {
    await look.create('file');
    expect(await act.utimes('file', -1_000_000_001n, 4_294_967_296_000_000_001n)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ atime: -1_000_000_001n, mtime: 4_294_967_296_000_000_001n });
  }),
  ...pathRules('utimensat', { onExisting: true, call: (calls, path) => calls.utimes(path, 1n, 2n) }),
];
