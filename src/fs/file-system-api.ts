import type { EntryId } from '../cache/cache-map.js';
import type { InodeNumber } from '../common/ids.js';
import type { LockOwner } from '../token-manager/locks/lock-table.js';

/** Who asks. Root (uid 0) passes every check of permissions. */
export interface Credentials {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly umask: number;
  /** Whom `access` asks about, where a program runs with another's rights; absent: the same as uid and gid. */
  readonly realUid?: number | undefined;
  readonly realGid?: number | undefined;
  /** Whoever passes it on has checked what they may do: a kernel, which knows all their groups. They are still the owner of what they make. */
  readonly checked?: true;
}
export const ROOT: Credentials = { uid: 0, gid: 0, groups: [], umask: 0o022 };

export const FileType = {
  regular: 1,
  directory: 2,
  symlink: 3,
  fifo: 4,
  characterDevice: 5,
  blockDevice: 6,
  socket: 7,
} as const;
export type FileType = (typeof FileType)[keyof typeof FileType];

export interface Attributes {
  readonly ino: InodeNumber;
  readonly generation: number;
  readonly type: FileType;
  /** Permission bits with setuid, setgid, sticky: 0o7777. */
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly rdev: number;
  readonly sizeBytes: number;
  /** What is allocated and reserved. */
  readonly allocatedBytes: number;
  readonly atimeNs: bigint;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  readonly birthtimeNs: bigint;
}

export interface DirectoryEntry {
  readonly name: string;
  readonly ino: InodeNumber;
  readonly type: FileType;
}

export interface FsStatistics {
  readonly blockBytes: number;
  readonly subBlockBytes: number;
  readonly totalBytes: number;
  readonly freeBytes: number;
  readonly totalInodes: number;
  readonly freeInodes: number;
  readonly nameBytesMax: number;
}

/** An open file on this node. All offsets and lengths are bytes. */
export interface OpenFile extends XattrCalls<[]> {
  readonly ino: InodeNumber;
  readonly flags: number; // node:fs constants O_*
  readonly deny?: Deny | undefined;
  /** For hits through the cache map, or null. */
  readonly entry: EntryId | null;
  /** When it was opened: whether a read would move its atime. Hits are to tell of the first one then (`accessed`). */
  readonly atimeDue: boolean;
  /** Bytes copied; 0 at the end of file. */
  read(offsetBytes: number, target: Uint8Array, options?: OpOptions): Promise<number>;
  /** A read without the copy: afterwards a hit finds the bytes, if nobody takes them away in between. Bytes there are. */
  bring(offsetBytes: number, lengthBytes: number, options?: OpOptions): Promise<number>;
  /** `offsetBytes` null, or O_APPEND: at the end of file, atomically. Resolves with where it was written. */
  write(
    offsetBytes: number | null,
    source: Uint8Array,
    options?: OpOptions,
  ): Promise<{ offsetBytes: number; lengthBytes: number }>;
  truncate(sizeBytes: number, options?: OpOptions): Promise<void>;
  /** fallocate(2): space for a range, or none, or zeros. @throws {FsError} noSpace, with the file's size as it was. */
  allocate(mode: AllocateMode, offsetBytes: number, lengthBytes: number, options?: AllocateOptions): Promise<void>;
  /** The first data, or hole, from an offset on (SEEK_DATA, SEEK_HOLE); behind the last byte is a hole. @throws {FsError} noData. */
  seek(offsetBytes: number, what: 'data' | 'hole', options?: OpOptions): Promise<number>;
  /** copy_file_range: to another open file, or elsewhere in this one. Bytes copied, fewer at the end of file. */
  copyRange(
    offsetBytes: number,
    target: OpenFile,
    targetOffsetBytes: number,
    lengthBytes: number,
    options?: OpOptions,
  ): Promise<number>;
  stat(options?: OpOptions): Promise<Attributes>;
  setAttributes(changes: AttributeChanges, credentials: Credentials, options?: OpOptions): Promise<Attributes>;
  /** dataOnly: fdatasync. Durable on the devices (their flush included) when it resolves. */
  sync(dataOnly: boolean, options?: OpOptions): Promise<void>;
  /**
   * `passed`: hits have gone through the range, and will say so again after as much once more. `accessed`: a hit has read, the first since it was
   * opened.
   */
  hint(
    kind: 'willNeed' | 'dontNeed' | 'sequential' | 'random' | 'normal' | 'passed' | 'accessed',
    offsetBytes: number,
    lengthBytes: number,
  ): void;
  /** A further name for it, or the first of one that was opened with O_TMPFILE (and without O_EXCL). */
  link(path: string, credentials: Credentials, options?: OpOptions): Promise<void>;
  /** Absent: this file system has no locks. */
  readonly locks?: FileLocking;
  close(): Promise<void>;
}

/**
 * allocate: space for every byte, which keep what they are. punchHole: zeros, and the space of whole blocks and of the file's end is given
 * back. zeroRange: zeros that have space. The last two move bytes, which no file of ours can: ENOTSUP.
 */
export type AllocateMode = 'allocate' | 'punchHole' | 'zeroRange' | 'collapseRange' | 'insertRange';
export interface AllocateOptions extends OpOptions {
  /** The file doesn't become longer; punchHole never makes it so. */
  readonly keepSize?: boolean | undefined;
}

/** open(2)'s, which node's constants don't have: a file without a name in the directory named. */
export const O_TMPFILE = 0o20200000;
export const isNameless = (flags: number): boolean => (flags & O_TMPFILE) === O_TMPFILE;

/** As uid or gid: a chown that leaves it as it is. */
export const UNCHANGED_ID = -1;

/** Whose lock: a process's (fcntl), this handle's (open file descriptions), or this handle's on the whole file (flock). */
export interface LockRequest {
  readonly kind: 'process' | 'handle' | 'flock';
  /** Who asks; of a handle's locks only its pid is of interest. */
  readonly process: LockOwner;
  readonly offsetBytes: number;
  /** 0: to the end of the file. */
  readonly lengthBytes: number;
}
export interface FileLock {
  readonly type: 'read' | 'write';
  readonly offsetBytes: number;
  /** 0: to the end of the file. */
  readonly lengthBytes: number;
  /** -1 when it is no process's. */
  readonly pid: number;
  readonly node: number;
}
/** Locks through an open file, as fcntl and flock have them, over all nodes. */
export interface FileLocking {
  /** Somebody whose locks are his own, on all files: a client process. */
  newProcess(pid: number): LockOwner;
  /** @throws {FsError} lockHeld, deadlock, noLocks, badHandle, aborted. */
  lock(request: LockRequest, type: 'read' | 'write', wait: boolean, options?: OpOptions): Promise<void>;
  unlock(request: LockRequest, options?: OpOptions): Promise<void>;
  /** Who would stand against it. */
  test(request: LockRequest, type: 'read' | 'write', options?: OpOptions): Promise<FileLock | null>;
  /** A process closes one of its handles of this file: its locks on it go, whichever handle it took them through. */
  release(process: LockOwner): Promise<void>;
}

/** A stretch of a file, at most a block long, and where it is; holes and what is kept in the inode are nowhere. */
export interface LocatedRange {
  readonly kind: 'data' | 'hole' | 'inline';
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Its name, where that is known. */
  readonly nsd: string | null;
  readonly nsdUuid: string | null;
  /** Who serves it; null: nobody, for now. */
  readonly node: number | null;
  /** On the NSD, of its first byte; counted from the first data sector. */
  readonly sector: number | null;
}
export interface Located {
  readonly ranges: readonly LocatedRange[];
  /** Where the next answer begins; null: that was all. */
  readonly nextBytes: number | null;
}

export interface AttributeChanges {
  readonly mode?: number;
  /** Either of the two makes it a chown, with what a chown does to setuid bits and ctime, also when both are UNCHANGED_ID. */
  readonly uid?: number;
  readonly gid?: number;
  /** 'now' is the time of the change; both at once may be set by whoever may write, other times by the owner. */
  readonly atimeNs?: bigint | 'now';
  readonly mtimeNs?: bigint | 'now';
}
/** What others may not do to a file while it is open. */
export type Deny = 'read' | 'write' | 'readwrite';
export interface OpenOptions extends OpOptions {
  readonly deny?: Deny | undefined;
  /** How long to wait while others have it open, or deny it, before EBUSY. */
  readonly busyTimeoutMs?: number | undefined;
}
export interface OpOptions {
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
  /** Where a path begins that doesn't begin with '/' (openat(2) and its like): a directory that is known already. Absent: there are none. */
  readonly directory?: DirectoryRef | undefined;
  /** A kernel asks, which keeps what it reads of a file. */
  readonly fromKernel?: true;
  /** It drops its pages of what is cut by itself, and takes no word about them before it is answered. */
  readonly kernelTruncates?: true;
}
export interface DirectoryRef {
  readonly ino: InodeNumber;
  readonly generation: number;
}

export interface RenameOptions extends OpOptions {
  /** EEXIST when the new name is there. */
  readonly noReplace?: boolean | undefined;
  /** Both names stay, each with what the other had. */
  readonly exchange?: boolean | undefined;
  /** Where the new path begins; absent: where the old one does. */
  readonly toDirectory?: DirectoryRef | undefined;
}

export interface XattrSetOptions {
  /** EEXIST when the attribute is there. */
  readonly create?: boolean | undefined;
  /** ENODATA when it is not. */
  readonly replace?: boolean | undefined;
}

/**
 * Extended attributes of what a path or a handle names: spaces user., trusted., security., and the two lists of permissions system.posix_acl_access and
 * system.posix_acl_default. Names are whole ('user.comment').
 */
export interface XattrCalls<Where extends unknown[]> {
  getXattr(...args: [...Where, name: string, credentials: Credentials, options?: OpOptions]): Promise<Uint8Array>;
  listXattrs(...args: [...Where, credentials: Credentials, options?: OpOptions]): Promise<string[]>;
  /** Value null removes it. */
  setXattr(
    ...args: [
      ...Where,
      name: string,
      value: Uint8Array | null,
      credentials: Credentials,
      options?: XattrSetOptions & OpOptions,
    ]
  ): Promise<void>;
}

/** Attributes, and the stamps of all that they were made of (src/cache/stamps.ts); null: not to be remembered. */
export interface StampedAttributes {
  readonly attributes: Attributes;
  readonly stamps: readonly number[] | null;
}

/**
 * The file system of one node's engine. Paths are absolute, '/'-separated UTF-8, at most 4096 bytes, no NUL; symbolic links
 * are followed as POSIX says. Every method may throw FsError.
 */
export interface FileSystem extends XattrCalls<[path: string, followLinks: boolean]> {
  open(path: string, flags: number, mode: number, credentials: Credentials, options?: OpenOptions): Promise<OpenFile>;
  stat(path: string, credentials: Credentials, options?: OpOptions): Promise<Attributes>;
  lstat(path: string, credentials: Credentials, options?: OpOptions): Promise<Attributes>;
  /** Either of the two in one turn, when all of it is at hand; null: ask one of them. */
  tryStat?(path: string, follow: boolean, credentials: Credentials): StampedAttributes | null;
  access(path: string, mode: number, credentials: Credentials, options?: OpOptions): Promise<void>;
  mkdir(path: string, mode: number, credentials: Credentials, options?: OpOptions): Promise<void>;
  rmdir(path: string, credentials: Credentials, options?: OpOptions): Promise<void>;
  unlink(path: string, credentials: Credentials, options?: OpOptions): Promise<void>;
  /** A file of any type but a directory or a link, without opening it. `rdev`: of the two kinds of devices. */
  mknod(
    path: string,
    type: FileType,
    mode: number,
    rdev: number,
    credentials: Credentials,
    options?: OpOptions,
  ): Promise<void>;
  rename(from: string, to: string, credentials: Credentials, options?: RenameOptions): Promise<void>;
  link(existing: string, path: string, credentials: Credentials, options?: OpOptions): Promise<void>;
  symlink(target: string, path: string, credentials: Credentials, options?: OpOptions): Promise<void>;
  readlink(path: string, credentials: Credentials, options?: OpOptions): Promise<string>;
  realpath(path: string, credentials: Credentials, options?: OpOptions): Promise<string>;
  readdir(path: string, credentials: Credentials, options?: OpOptions): Promise<DirectoryEntry[]>;
  setAttributes(
    path: string,
    changes: AttributeChanges,
    followLinks: boolean,
    credentials: Credentials,
    options?: OpOptions,
  ): Promise<Attributes>;
  truncate(path: string, sizeBytes: number, credentials: Credentials, options?: OpOptions): Promise<void>;
  /** Declares a file served through its owner, or not any more; absent: tells. What is made in a directory is as the directory. */
  sharedWrite(path: string, on: boolean | undefined, credentials: Credentials, options?: OpOptions): Promise<boolean>;
  /** Which NSD, and which node, has which bytes of a file. */
  locate(
    path: string,
    offsetBytes: number,
    lengthBytes: number,
    credentials: Credentials,
    options?: OpOptions,
  ): Promise<Located>;
  statfs(options?: OpOptions): Promise<FsStatistics>;
  /** Everything dirty on this node, durable. */
  sync(): Promise<void>;
  /** Flushes, gives back tokens and regions. */
  unmount(): Promise<void>;
}
