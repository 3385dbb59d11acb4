/** Who may do what: the classic rules of POSIX, and root passes. */
import { FsError } from '../common/errors.js';
import { type Credentials, FileType } from './file-system-api.js';
import type { Inode } from './inode.js';

export const READ = 4;
export const WRITE = 2;
export const EXECUTE = 1;

export const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
export const S_ISVTX = 0o1000;

export const inGroup = (credentials: Credentials, gid: number): boolean =>
  credentials.gid === gid || credentials.groups.includes(gid);

export function mayAccess(inode: Inode, credentials: Credentials, mask: number): boolean {
  if (credentials.uid === 0) {
    // Root executes only what somebody may execute.
    return (mask & EXECUTE) === 0 || inode.isDirectory || (inode.mode & 0o111) !== 0;
  }
  let bits = inode.mode & 7;
  if (credentials.uid === inode.uid) bits = (inode.mode >> 6) & 7;
  else if (inGroup(credentials, inode.gid)) bits = (inode.mode >> 3) & 7;
  return (bits & mask) === mask;
}

export function checkAccess(inode: Inode, credentials: Credentials, mask: number, op: string, object: string): void {
  if (!mayAccess(inode, credentials, mask)) throw new FsError('accessDenied', { op, object });
}

export const isOwner = (inode: Inode, credentials: Credentials): boolean =>
  credentials.uid === 0 || credentials.uid === inode.uid;

/** In a sticky directory a name is taken away only by the owner of what it names, or of the directory. */
export function checkSticky(
  directory: Inode,
  target: Inode,
  credentials: Credentials,
  op: string,
  object: string,
): void {
  if ((directory.mode & S_ISVTX) === 0 || isOwner(directory, credentials) || isOwner(target, credentials)) return;
  throw new FsError('notPermitted', { op, object, detail: 'the directory is sticky' });
}

/** Mode and group of what is created in a directory: umask, and what a setgid directory hands down. */
export function inheritedMode(
  directory: Inode,
  type: FileType,
  mode: number,
  credentials: Credentials,
): { mode: number; gid: number } {
  let bits = type === FileType.symlink ? 0o777 : mode & 0o7777 & ~credentials.umask;
  if ((directory.mode & S_ISGID) === 0) return { mode: bits, gid: credentials.gid };
  if (type === FileType.directory) bits |= S_ISGID;
  return { mode: bits, gid: directory.gid };
}

/** What a write by an unprivileged program takes away: setuid, and setgid where it means execution. */
export const strippedOfSetId = (mode: number): number => mode & ~S_ISUID & ~((mode & 0o010) !== 0 ? S_ISGID : 0);
