import type { ByteRange } from '../../common/byte-range.js';
import type { FileSystemNumber, InodeNumber } from '../../common/ids.js';
import { tokenObject } from '../file-system-scope.js';
import { TokenClass } from '../token.js';
import type { Lock, LockOwner, LockSpace, LockType } from './lock-table.js';

export interface LockWanted {
  /** An inode, or, before it is scoped, a token object. */
  readonly object: number;
  readonly space: LockSpace;
  readonly owner: LockOwner;
  readonly at: ByteRange;
}
export interface LockOptions {
  readonly signal?: AbortSignal | undefined;
  /** Absent: 30 s, and for one that waits none. */
  readonly timeoutMs?: number | undefined;
}

/** Locks of files, for the file system. */
export interface LockClientApi {
  /** Somebody on this node who holds locks. `isProcess`: one whose waits count for deadlocks. */
  newOwner(pid: number, isProcess: boolean): LockOwner;
  /** @throws {FsError} lockHeld (nobody waited), deadlock, noLocks, aborted, tokenDeadline, fenced. */
  lock(wanted: LockWanted, type: LockType, wait: boolean, options?: LockOptions): Promise<void>;
  unlock(wanted: LockWanted, options?: LockOptions): Promise<void>;
  /** Who would stand against it, or null. */
  test(wanted: LockWanted, type: LockType, options?: LockOptions): Promise<Lock | null>;
}

/** What the file system numbered so sees of the node's lock client. */
export function scopedLocks(locks: LockClientApi, fileSystem: FileSystemNumber): LockClientApi {
  const scoped = (wanted: LockWanted): LockWanted => ({
    ...wanted,
    object: tokenObject(TokenClass.lock, fileSystem, wanted.object as InodeNumber),
  });
  return {
    newOwner: (pid, isProcess) => locks.newOwner(pid, isProcess),
    lock: (wanted, type, wait, options) => locks.lock(scoped(wanted), type, wait, options),
    unlock: (wanted, options) => locks.unlock(scoped(wanted), options),
    test: (wanted, type, options) => locks.test(scoped(wanted), type, options),
  };
}
