import { constants } from 'node:os';
import { HEADER_BYTES, NAME_BYTES_MAX, Opcode } from './protocol.js';

/**
 * Decoding requests. Invariant: whatever the bytes are, `decode` gives a request whose fields can be believed in kind and range, or a
 * refusal with an errno; it never throws, and never reads behind the request.
 *
 * Integers of 64 bits become numbers. Offsets and lengths that no file reaches (above 2^53 - 1) are refused with the errno that the
 * call has for them; handles and node ids are ours, so a larger one is not. Names are UTF-8, one component, at most 255 bytes.
 * What a request's bytes hold in bulk (`data`, `value`) is a view of its slot, good until it is answered.
 */
const { EBADF, EFBIG, EILSEQ, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOSYS, ENXIO } = constants.errno;

export interface Header {
  readonly opcode: number;
  readonly node: number;
  readonly uid: number;
  readonly gid: number;
  /** 0: the kernel's own doing. */
  readonly pid: number;
}

const READ_LOCK_OWNER = 2;

type Time = bigint | 'now';

export interface AttributeWishes {
  readonly mode: number | undefined;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
  readonly size: number | undefined;
  readonly atimeNs: Time | undefined;
  readonly mtimeNs: Time | undefined;
  readonly ctimeNs: bigint | undefined;
}

export interface LockWish {
  readonly handle: number;
  readonly owner: bigint;
  readonly type: 'read' | 'write' | 'unlock';
  readonly offset: number;
  /** null: to the end of the file, however long. */
  readonly length: number | null;
  readonly pid: number;
  readonly flock: boolean;
}

export type Request = { readonly header: Header } & (
  | { readonly op: 'refused'; readonly errno: number }
  | { readonly op: 'lookup' | 'unlink' | 'rmdir'; readonly name: string }
  | { readonly op: 'removexattr'; readonly name: string }
  | { readonly op: 'getattr'; readonly handle: number | null }
  | { readonly op: 'statx'; readonly handle: number | null; readonly mask: number }
  | {
      readonly op: 'setattr';
      readonly handle: number | null;
      readonly wishes: AttributeWishes;
      readonly killSetId: boolean;
    }
  | { readonly op: 'readlink' | 'statfs' | 'syncfs' }
  | { readonly op: 'symlink'; readonly name: string; readonly target: string }
  | {
      readonly op: 'mknod';
      readonly name: string;
      readonly mode: number;
      readonly rdev: number;
      readonly umask: number;
    }
  | { readonly op: 'mkdir'; readonly name: string; readonly mode: number; readonly umask: number }
  | {
      readonly op: 'rename';
      readonly name: string;
      readonly toDirectory: number;
      readonly toName: string;
      readonly flags: number;
    }
  | { readonly op: 'link'; readonly existing: number; readonly name: string }
  | { readonly op: 'open' | 'opendir'; readonly flags: number; readonly killSetId: boolean }
  | {
      readonly op: 'create';
      readonly name: string;
      readonly flags: number;
      readonly mode: number;
      readonly umask: number;
    }
  | { readonly op: 'tmpfile'; readonly flags: number; readonly mode: number; readonly umask: number }
  | {
      readonly op: 'read';
      readonly handle: number;
      readonly offset: number;
      readonly size: number;
      readonly flags: number;
      /** Into the kernel's pages. */
      readonly cached: boolean;
    }
  | { readonly op: 'readdir' | 'readdirplus'; readonly handle: number; readonly offset: number; readonly size: number }
  | {
      readonly op: 'write';
      readonly handle: number;
      readonly offset: number;
      readonly data: Uint8Array;
      readonly writeFlags: number;
      readonly flags: number;
    }
  | {
      readonly op: 'release' | 'releasedir';
      readonly handle: number;
      readonly flags: number;
      readonly flockUnlock: boolean;
      readonly owner: bigint;
    }
  | { readonly op: 'flush'; readonly handle: number; readonly owner: bigint }
  | { readonly op: 'fsync' | 'fsyncdir'; readonly handle: number; readonly dataOnly: boolean }
  | {
      readonly op: 'setxattr';
      readonly name: string;
      readonly value: Uint8Array;
      readonly flags: number;
      readonly killSetGid: boolean;
    }
  | { readonly op: 'getxattr'; readonly name: string; readonly size: number }
  | { readonly op: 'listxattr'; readonly size: number }
  | ({ readonly op: 'getlk' } & LockWish)
  | ({ readonly op: 'setlk'; readonly wait: boolean } & LockWish)
  | { readonly op: 'access'; readonly mask: number }
  | {
      readonly op: 'fallocate';
      readonly handle: number;
      readonly offset: number;
      readonly length: number;
      readonly mode: number;
    }
  | { readonly op: 'lseek'; readonly handle: number; readonly offset: number; readonly whence: number }
  | {
      readonly op: 'copyFileRange';
      readonly handle: number;
      readonly offset: number;
      readonly toNode: number;
      readonly toHandle: number;
      readonly toOffset: number;
      readonly length: number;
      readonly flags: number;
      /** Its answer has a count of 64 bits. */
      readonly wide: boolean;
    }
);
export type RequestOp = Request['op'];

class Refusal {
  constructor(readonly errno: number) {}
}

const strict = new TextDecoder('utf-8', { fatal: true });

/** One request's bytes, with a place that moves on. Reads behind the end are refusals. */
class Reader {
  #at: number;
  constructor(
    readonly view: DataView,
    readonly bytes: Buffer,
    start: number,
    readonly end: number,
  ) {
    this.#at = start;
  }
  #take(count: number): number {
    const at = this.#at;
    if (count > this.end - at) throw new Refusal(EIO);
    this.#at = at + count;
    return at;
  }
  u32(): number {
    return this.view.getUint32(this.#take(4), true);
  }
  skip(count: number): void {
    this.#take(count);
  }
  /** Above 2^53 - 1 it isn't exact, but still above. */
  u64(): number {
    const at = this.#take(8);
    return this.view.getUint32(at + 4, true) * 2 ** 32 + this.view.getUint32(at, true);
  }
  big(): bigint {
    return this.view.getBigUint64(this.#take(8), true);
  }
  handle(): number {
    return within(this.u64(), EBADF);
  }
  node(): number {
    return within(this.u64(), constants.errno.ESTALE);
  }
  #string(bytesMax: number): string {
    const start = this.#at;
    const stop = this.bytes.indexOf(0, start);
    if (stop < 0 || stop >= this.end) throw new Refusal(EIO);
    this.#at = stop + 1;
    if (stop - start > bytesMax) throw new Refusal(ENAMETOOLONG);
    const text = this.bytes.toString('utf8', start, stop);
    if (text.includes('\ufffd')) {
      try {
        strict.decode(this.bytes.subarray(start, stop));
      } catch {
        throw new Refusal(EILSEQ);
      }
    }
    return text;
  }
  /** A component of a path. */
  name(): string {
    const name = this.#string(NAME_BYTES_MAX);
    if (name === '') throw new Refusal(ENOENT);
    if (name === '.' || name === '..' || name.includes('/')) throw new Refusal(EINVAL);
    return name;
  }
  xattrName(): string {
    const name = this.#string(NAME_BYTES_MAX);
    if (name === '') throw new Refusal(EINVAL);
    return name;
  }
  path(): string {
    const path = this.#string(4095);
    if (path === '') throw new Refusal(ENOENT);
    return path;
  }
  ignoredName(): void {
    this.#string(4096);
  }
  data(lengthBytes: number): Uint8Array {
    const at = this.#take(lengthBytes);
    return this.bytes.subarray(at, at + lengthBytes);
  }
  finish(): void {
    if (this.#at !== this.end) throw new Refusal(EIO);
  }
}

function within(value: number, errno: number): number {
  if (value > Number.MAX_SAFE_INTEGER) throw new Refusal(errno);
  return value;
}

/** Memory that requests lie in, and its two views. */
export class RequestMemory {
  readonly view: DataView;
  readonly bytes: Buffer;
  constructor(memory: ArrayBuffer) {
    this.view = new DataView(memory);
    this.bytes = Buffer.from(memory);
  }

  decode(offset: number, lengthBytes: number): Request {
    const { view } = this;
    if (lengthBytes < HEADER_BYTES) {
      return { header: { opcode: 0, node: 0, uid: 0, gid: 0, pid: 0 }, op: 'refused', errno: EIO };
    }
    const header: Header = {
      opcode: view.getUint32(offset + 4, true),
      node: view.getUint32(offset + 20, true) * 2 ** 32 + view.getUint32(offset + 16, true),
      uid: view.getUint32(offset + 24, true),
      gid: view.getUint32(offset + 28, true),
      pid: view.getUint32(offset + 32, true),
    };
    try {
      if (view.getUint32(offset, true) !== lengthBytes || view.getUint16(offset + 36, true) !== 0)
        throw new Refusal(EIO);
      within(header.node, constants.errno.ESTALE);
      const reader = new Reader(view, this.bytes, offset + HEADER_BYTES, offset + lengthBytes);
      const request = decodeBody(header, reader);
      reader.finish();
      return request;
    } catch (error) {
      if (error instanceof Refusal) return { header, op: 'refused', errno: error.errno };
      throw error;
    }
  }
}

function decodeBody(header: Header, r: Reader): Request {
  switch (header.opcode) {
    case Opcode.lookup:
      return { header, op: 'lookup', name: r.name() };
    case Opcode.unlink:
      return { header, op: 'unlink', name: r.name() };
    case Opcode.rmdir:
      return { header, op: 'rmdir', name: r.name() };
    case Opcode.removexattr:
      return { header, op: 'removexattr', name: r.xattrName() };
    case Opcode.getattr: {
      const flags = r.u32();
      r.skip(4);
      const handle = r.u64();
      return { header, op: 'getattr', handle: (flags & 1) === 0 ? null : within(handle, EBADF) };
    }
    case Opcode.statx: {
      const flags = r.u32();
      r.skip(4);
      const handle = r.u64();
      r.skip(4);
      return { header, op: 'statx', handle: (flags & 1) === 0 ? null : within(handle, EBADF), mask: r.u32() };
    }
    case Opcode.setattr:
      return decodeSetattr(header, r);
    case Opcode.readlink:
      return { header, op: 'readlink' };
    case Opcode.statfs:
      return { header, op: 'statfs' };
    case Opcode.syncfs:
      r.skip(8);
      return { header, op: 'syncfs' };
    case Opcode.symlink: {
      const name = r.name();
      return { header, op: 'symlink', name, target: r.path() };
    }
    case Opcode.mknod: {
      const mode = r.u32();
      const rdev = r.u32();
      const umask = r.u32();
      r.skip(4);
      return { header, op: 'mknod', mode, rdev, umask, name: r.name() };
    }
    case Opcode.mkdir: {
      const mode = r.u32();
      const umask = r.u32();
      return { header, op: 'mkdir', mode, umask, name: r.name() };
    }
    case Opcode.rename: {
      const toDirectory = r.node();
      const name = r.name();
      return { header, op: 'rename', toDirectory, name, toName: r.name(), flags: 0 };
    }
    case Opcode.rename2: {
      const toDirectory = r.node();
      const flags = r.u32();
      r.skip(4);
      const name = r.name();
      return { header, op: 'rename', toDirectory, name, toName: r.name(), flags };
    }
    case Opcode.link: {
      const existing = r.node();
      return { header, op: 'link', existing, name: r.name() };
    }
    case Opcode.open:
    case Opcode.opendir: {
      const flags = r.u32();
      const killSetId = (r.u32() & 1) !== 0;
      return { header, op: header.opcode === Opcode.open ? 'open' : 'opendir', flags, killSetId };
    }
    case Opcode.create:
    case Opcode.tmpfile: {
      const flags = r.u32();
      const mode = r.u32();
      const umask = r.u32();
      r.skip(4);
      if (header.opcode === Opcode.create) return { header, op: 'create', flags, mode, umask, name: r.name() };
      r.ignoredName();
      return { header, op: 'tmpfile', flags, mode, umask };
    }
    case Opcode.read: {
      const handle = r.handle();
      const offset = r.u64();
      const size = r.u32();
      // Only what goes straight to a program names the owner of its locks; what fills the kernel's pages is nobody's.
      const cached = (r.u32() & READ_LOCK_OWNER) === 0;
      r.skip(8);
      const flags = r.u32();
      r.skip(4);
      // There is nothing there, whatever the file.
      return { header, op: 'read', handle, offset: Math.min(offset, Number.MAX_SAFE_INTEGER), size, flags, cached };
    }
    case Opcode.readdir:
    case Opcode.readdirplus: {
      const handle = r.handle();
      const offset = within(r.u64(), EINVAL);
      const size = r.u32();
      r.skip(20);
      return { header, op: header.opcode === Opcode.readdir ? 'readdir' : 'readdirplus', handle, offset, size };
    }
    case Opcode.write: {
      const handle = r.handle();
      const offset = r.u64();
      const size = r.u32();
      const writeFlags = r.u32();
      r.skip(8);
      const flags = r.u32();
      r.skip(4);
      within(offset + size, EFBIG);
      return { header, op: 'write', handle, offset, writeFlags, flags, data: r.data(size) };
    }
    case Opcode.release:
    case Opcode.releasedir: {
      const handle = r.handle();
      const flags = r.u32();
      const flockUnlock = (r.u32() & 2) !== 0;
      const op = header.opcode === Opcode.release ? 'release' : 'releasedir';
      return { header, op, handle, flags, flockUnlock, owner: r.big() };
    }
    case Opcode.flush: {
      const handle = r.handle();
      r.skip(8);
      return { header, op: 'flush', handle, owner: r.big() };
    }
    case Opcode.fsync:
    case Opcode.fsyncdir: {
      const handle = r.handle();
      const dataOnly = (r.u32() & 1) !== 0;
      r.skip(4);
      return { header, op: header.opcode === Opcode.fsync ? 'fsync' : 'fsyncdir', handle, dataOnly };
    }
    case Opcode.setxattr: {
      const size = r.u32();
      const flags = r.u32();
      const killSetGid = (r.u32() & 1) !== 0;
      r.skip(4);
      const name = r.xattrName();
      return { header, op: 'setxattr', flags, killSetGid, name, value: r.data(size) };
    }
    case Opcode.getxattr: {
      const size = r.u32();
      r.skip(4);
      return { header, op: 'getxattr', size, name: r.xattrName() };
    }
    case Opcode.listxattr: {
      const size = r.u32();
      r.skip(4);
      return { header, op: 'listxattr', size };
    }
    case Opcode.getlk:
      return { header, op: 'getlk', ...decodeLock(r) };
    case Opcode.setlk:
    case Opcode.setlkw:
      return { header, op: 'setlk', wait: header.opcode === Opcode.setlkw, ...decodeLock(r) };
    case Opcode.access: {
      const mask = r.u32();
      r.skip(4);
      if (mask > 7) throw new Refusal(EINVAL);
      return { header, op: 'access', mask };
    }
    case Opcode.fallocate: {
      const handle = r.handle();
      const offset = r.u64();
      const length = r.u64();
      const mode = r.u32();
      r.skip(4);
      within(offset + length, EFBIG);
      return { header, op: 'fallocate', handle, offset, length, mode };
    }
    case Opcode.lseek: {
      const handle = r.handle();
      const offset = within(r.u64(), ENXIO);
      const whence = r.u32();
      r.skip(4);
      return { header, op: 'lseek', handle, offset, whence };
    }
    case Opcode.copyFileRange:
    case Opcode.copyFileRange64: {
      const handle = r.handle();
      const offset = Math.min(r.u64(), Number.MAX_SAFE_INTEGER);
      const toNode = r.node();
      const toHandle = r.handle();
      const toOffset = within(r.u64(), EFBIG);
      const length = Math.min(r.u64(), Number.MAX_SAFE_INTEGER - toOffset);
      const flags = r.u64();
      if (flags !== 0) throw new Refusal(EINVAL);
      const wide = header.opcode === Opcode.copyFileRange64;
      return { header, op: 'copyFileRange', handle, offset, toNode, toHandle, toOffset, length, flags, wide };
    }
    default:
      throw new Refusal(ENOSYS);
  }
}

const Valid = {
  mode: 1 << 0,
  uid: 1 << 1,
  gid: 1 << 2,
  size: 1 << 3,
  atime: 1 << 4,
  mtime: 1 << 5,
  handle: 1 << 6,
  atimeNow: 1 << 7,
  mtimeNow: 1 << 8,
  ctime: 1 << 10,
  killSetId: 1 << 11,
} as const;

function decodeSetattr(header: Header, r: Reader): Request {
  const valid = r.u32();
  r.skip(4);
  const handle = r.u64();
  const size = r.u64();
  r.skip(8);
  const seconds = [r.big(), r.big(), r.big()] as const;
  const nanoseconds = [r.u32(), r.u32(), r.u32()] as const;
  const mode = r.u32();
  r.skip(4);
  const uid = r.u32();
  const gid = r.u32();
  r.skip(4);
  const has = (bit: number): boolean => (valid & bit) !== 0;
  const time = (index: 0 | 1 | 2): bigint => {
    if (nanoseconds[index] >= 1e9) throw new Refusal(EINVAL);
    return BigInt.asIntN(64, seconds[index]) * 1_000_000_000n + BigInt(nanoseconds[index]);
  };
  return {
    header,
    op: 'setattr',
    handle: has(Valid.handle) ? within(handle, EBADF) : null,
    killSetId: has(Valid.killSetId),
    wishes: {
      mode: has(Valid.mode) ? mode & 0o7777 : undefined,
      uid: has(Valid.uid) ? uid : undefined,
      gid: has(Valid.gid) ? gid : undefined,
      size: has(Valid.size) ? within(size, EFBIG) : undefined,
      atimeNs: has(Valid.atimeNow) ? 'now' : has(Valid.atime) ? time(0) : undefined,
      mtimeNs: has(Valid.mtimeNow) ? 'now' : has(Valid.mtime) ? time(1) : undefined,
      ctimeNs: has(Valid.ctime) ? time(2) : undefined,
    },
  };
}

const LOCK_TYPES = ['read', 'write', 'unlock'] as const;

function decodeLock(r: Reader): LockWish {
  const handle = r.handle();
  const owner = r.big();
  const start = r.u64();
  const last = r.u64();
  const type = LOCK_TYPES[r.u32()];
  const pid = r.u32();
  const flock = (r.u32() & 1) !== 0;
  r.skip(4);
  if (type === undefined || last < start) throw new Refusal(EINVAL);
  const offset = within(start, constants.errno.EOVERFLOW);
  return { handle, owner, type, offset, pid, flock, length: last >= Number.MAX_SAFE_INTEGER ? null : last - start + 1 };
}
