/**
 * Who may do what: the classic rules of POSIX with access lists (acl.ts), and root passes. Where POSIX leaves room, as Linux has it; the suites in
 * src/client/posix/ are run against a local directory too.
 */
import { FsError } from '../common/errors.js';
import { aclAllows } from './acl.js';
import { type Credentials, FileType } from './file-system-api.js';
import type { Inode } from './inode.js';
import { XattrSpace } from './xattr-format.js';
import { aclOf } from './xattrs.js';

export const READ = 4;
export const WRITE = 2;
export const EXECUTE = 1;

export const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
export const S_ISVTX = 0o1000;
const S_IXGRP = 0o010;

export const inGroup = (credentials: Credentials, gid: number): boolean =>
  credentials.gid === gid || credentials.groups.includes(gid);

export function mayAccess(inode: Inode, credentials: Credentials, mask: number): boolean {
  if (credentials.checked) return true;
  if (credentials.uid === 0) {
    // Root executes only what somebody may execute.
    return (mask & EXECUTE) === 0 || inode.isDirectory || (inode.mode & 0o111) !== 0;
  }
  let bits = inode.mode & 7;
  if (credentials.uid === inode.uid) bits = (inode.mode >> 6) & 7;
  // Linux looks at no list whose mask allows nothing; what the mode then says is not the same for who is named in it.
  else if (inode.kept.length > 0 && (inode.mode & 0o070) !== 0) return mayByList(inode, credentials, mask);
  else if (inGroup(credentials, inode.gid)) bits = (inode.mode >> 3) & 7;
  return (bits & mask) === mask;
}

function mayByList(inode: Inode, credentials: Credentials, mask: number): boolean {
  const { mode, gid } = inode;
  const acl = aclOf(inode, XattrSpace.accessAcl);
  const member = (group: number): boolean => inGroup(credentials, group);
  if (acl !== null) return aclAllows(acl, mode, mask, (uid) => uid === credentials.uid, member, gid);
  return ((member(gid) ? mode >> 3 : mode) & mask) === mask;
}

export function checkAccess(inode: Inode, credentials: Credentials, mask: number, op: string, object: string): void {
  if (!mayAccess(inode, credentials, mask)) throw new FsError('accessDenied', { op, object });
}

export const isOwner = (inode: Inode, credentials: Credentials): boolean =>
  credentials.uid === 0 || credentials.checked === true || credentials.uid === inode.uid;

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

/** Whether somebody may have files of the group run with the group's rights. */
export const mayKeepSetgid = (gid: number, credentials: Credentials): boolean =>
  credentials.uid === 0 || credentials.checked === true || inGroup(credentials, gid);

/** Mode and group of what is created in a directory, without the umask: what a setgid directory hands down. */
export function inheritedMode(
  directory: Inode,
  type: FileType,
  mode: number,
  credentials: Credentials,
): { mode: number; gid: number } {
  const bits = type === FileType.symlink ? 0o777 : mode & 0o7777;
  if ((directory.mode & S_ISGID) === 0) return { mode: bits, gid: credentials.gid };
  const { gid } = directory;
  if (type === FileType.directory) return { mode: bits | S_ISGID, gid };
  const executable = (bits & (S_ISGID | S_IXGRP)) === (S_ISGID | S_IXGRP);
  return { mode: executable && !mayKeepSetgid(gid, credentials) ? bits & ~S_ISGID : bits, gid };
}

/** What setuid bits a change by somebody else takes away; setgid where it means execution, or where he is not of the group. */
function withoutSetId(inode: Inode, credentials: Credentials): number {
  const { mode, gid } = inode;
  const setgidGoes = (mode & S_IXGRP) !== 0 || !mayKeepSetgid(gid, credentials);
  return mode & ~S_ISUID & ~(setgidGoes ? S_ISGID : 0);
}

/** The mode after a chown, by root too; directories keep theirs. */
export const strippedByChown = (inode: Inode, credentials: Credentials): number =>
  inode.isDirectory ? inode.mode : withoutSetId(inode, credentials);

/** The mode after a write or a truncation: root's leave it as it is. */
export const strippedByWrite = (inode: Inode, credentials: Credentials): number =>
  credentials.uid === 0 ? inode.mode : withoutSetId(inode, credentials);
