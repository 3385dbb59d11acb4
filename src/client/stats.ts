import { constants } from 'node:fs';
import type { Attributes, FileType } from '../fs/file-system-api.js';
import type { OpResult } from './ops.js';

/** What stat answers, compatible with fs.Stats, fs.BigIntStats and fs.StatFs. */
const TYPE_BITS: Readonly<Record<FileType, number>> = {
  1: constants.S_IFREG,
  2: constants.S_IFDIR,
  3: constants.S_IFLNK,
  4: constants.S_IFIFO,
  5: constants.S_IFCHR,
  6: constants.S_IFBLK,
  7: constants.S_IFSOCK,
};
/** What st_dev and st_blksize say: one file system, one striping block. */
const DEVICE = 0x4846;
const PREFERRED_IO_BYTES = 1 << 20;
/** Unit of `blocks`, by POSIX. */
const STAT_BLOCK_BYTES = 512;

abstract class TypeTests {
  abstract readonly mode: number | bigint;
  #is(bits: number): boolean {
    return (Number(this.mode) & constants.S_IFMT) === bits;
  }
  isFile(): boolean {
    return this.#is(constants.S_IFREG);
  }
  isDirectory(): boolean {
    return this.#is(constants.S_IFDIR);
  }
  isSymbolicLink(): boolean {
    return this.#is(constants.S_IFLNK);
  }
  isFIFO(): boolean {
    return this.#is(constants.S_IFIFO);
  }
  isCharacterDevice(): boolean {
    return this.#is(constants.S_IFCHR);
  }
  isBlockDevice(): boolean {
    return this.#is(constants.S_IFBLK);
  }
  isSocket(): boolean {
    return this.#is(constants.S_IFSOCK);
  }
}

/** Milliseconds with a fraction, from the parts: a double has no room for nanoseconds since 1970. */
const toMs = (ns: bigint): number => Number(ns / 1_000_000n) + Number(ns % 1_000_000n) / 1e6;

/** The four times, in milliseconds: of what is told more than once they are computed once. */
export interface StatTimes {
  readonly atimeMs: number;
  readonly mtimeMs: number;
  readonly ctimeMs: number;
  readonly birthtimeMs: number;
}
export const statTimes = (a: Attributes): StatTimes => ({
  atimeMs: toMs(a.atimeNs),
  mtimeMs: toMs(a.mtimeNs),
  ctimeMs: toMs(a.ctimeNs),
  birthtimeMs: toMs(a.birthtimeNs),
});

export class Stats extends TypeTests {
  readonly dev: number;
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly rdev: number;
  readonly blksize: number;
  readonly ino: number;
  readonly size: number;
  readonly blocks: number;
  readonly atimeMs: number;
  readonly mtimeMs: number;
  readonly ctimeMs: number;
  readonly birthtimeMs: number;
  #dates: { -readonly [of in keyof StatTimes]?: Date } | null = null;

  constructor(a: Attributes, times: StatTimes = statTimes(a)) {
    super();
    this.dev = DEVICE;
    this.mode = TYPE_BITS[a.type] | a.mode;
    this.nlink = a.nlink;
    this.uid = a.uid;
    this.gid = a.gid;
    this.rdev = a.rdev;
    this.blksize = PREFERRED_IO_BYTES;
    this.ino = a.ino;
    this.size = a.sizeBytes;
    this.blocks = Math.ceil(a.allocatedBytes / STAT_BLOCK_BYTES);
    this.atimeMs = times.atimeMs;
    this.mtimeMs = times.mtimeMs;
    this.ctimeMs = times.ctimeMs;
    this.birthtimeMs = times.birthtimeMs;
  }

  // As node has them since 22: made when they are asked for. Most who call stat never look at them, and they are half of what it would make.
  get atime(): Date {
    return this.#date('atimeMs');
  }
  get mtime(): Date {
    return this.#date('mtimeMs');
  }
  get ctime(): Date {
    return this.#date('ctimeMs');
  }
  get birthtime(): Date {
    return this.#date('birthtimeMs');
  }
  #date(of: keyof StatTimes): Date {
    this.#dates ??= {};
    return (this.#dates[of] ??= new Date(Math.round(this[of])));
  }
}

export class BigIntStats extends TypeTests {
  readonly dev = BigInt(DEVICE);
  readonly mode: bigint;
  readonly nlink: bigint;
  readonly uid: bigint;
  readonly gid: bigint;
  readonly rdev: bigint;
  readonly blksize = BigInt(PREFERRED_IO_BYTES);
  readonly ino: bigint;
  readonly size: bigint;
  readonly blocks: bigint;
  readonly atimeMs: bigint;
  readonly mtimeMs: bigint;
  readonly ctimeMs: bigint;
  readonly birthtimeMs: bigint;
  readonly atimeNs: bigint;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  readonly birthtimeNs: bigint;
  readonly atime: Date;
  readonly mtime: Date;
  readonly ctime: Date;
  readonly birthtime: Date;

  constructor(a: Attributes) {
    super();
    this.mode = BigInt(TYPE_BITS[a.type] | a.mode);
    this.nlink = BigInt(a.nlink);
    this.uid = BigInt(a.uid);
    this.gid = BigInt(a.gid);
    this.rdev = BigInt(a.rdev);
    this.ino = BigInt(a.ino);
    this.size = BigInt(a.sizeBytes);
    this.blocks = BigInt(Math.ceil(a.allocatedBytes / STAT_BLOCK_BYTES));
    this.atimeNs = a.atimeNs;
    this.mtimeNs = a.mtimeNs;
    this.ctimeNs = a.ctimeNs;
    this.birthtimeNs = a.birthtimeNs;
    this.atimeMs = a.atimeNs / 1_000_000n;
    this.mtimeMs = a.mtimeNs / 1_000_000n;
    this.ctimeMs = a.ctimeNs / 1_000_000n;
    this.birthtimeMs = a.birthtimeNs / 1_000_000n;
    this.atime = new Date(Number(this.atimeMs));
    this.mtime = new Date(Number(this.mtimeMs));
    this.ctime = new Date(Number(this.ctimeMs));
    this.birthtime = new Date(Number(this.birthtimeMs));
  }
}

export interface StatFs<N = number> {
  readonly type: N;
  readonly bsize: N;
  /** Beyond node's: the unit of what is counted, and the longest name, as statvfs has them. */
  readonly frsize: N;
  readonly namemax: N;
  readonly blocks: N;
  readonly bfree: N;
  readonly bavail: N;
  readonly files: N;
  readonly ffree: N;
}

export function toStatFs<N>(s: OpResult<'statfs'>, convert: (value: number) => N): StatFs<N> {
  const unit = s.subBlockBytes;
  return {
    type: convert(DEVICE),
    bsize: convert(unit),
    frsize: convert(unit),
    namemax: convert(s.nameBytesMax),
    blocks: convert(Math.floor(s.totalBytes / unit)),
    bfree: convert(Math.floor(s.freeBytes / unit)),
    bavail: convert(Math.floor(s.freeBytes / unit)),
    files: convert(s.totalInodes),
    ffree: convert(s.freeInodes),
  };
}
