import { type Attributes, FileType, type FsStatistics } from '../../fs/file-system-api.js';

/**
 * Encoding the bodies of answers, into memory that is used again for the next one: what is in a ReplyWriter is good until its next
 * `clear`. Invariant: exactly the bytes that the kernel's struct has; every reserved field is 0.
 */
const MODE_OF_TYPE: Readonly<Record<FileType, number>> = {
  [FileType.regular]: 0o100000,
  [FileType.directory]: 0o040000,
  [FileType.symlink]: 0o120000,
  [FileType.fifo]: 0o010000,
  [FileType.characterDevice]: 0o020000,
  [FileType.blockDevice]: 0o060000,
  [FileType.socket]: 0o140000,
};
/** DT_* of a listing are the same bits, further down. */
export const direntType = (type: FileType): number => MODE_OF_TYPE[type] >>> 12;
export const modeOf = (attributes: Attributes): number => MODE_OF_TYPE[attributes.type] | attributes.mode;

const BILLION = 1_000_000_000n;
const encoder = new TextEncoder();
const align8 = (bytes: number): number => (bytes + 7) & ~7;
const DIRENT_HEAD_BYTES = 24;
const ENTRY_BYTES = 128;
const STATX_BASIC_AND_BTIME = 0xfff;

/** How long the kernel may keep what it is told. */
export interface Validity {
  readonly entrySeconds: number;
  readonly attributeSeconds: number;
}

export interface LockFound {
  readonly type: 'read' | 'write' | 'unlock';
  readonly offset: number;
  readonly length: number | null;
  readonly pid: number;
}

export class ReplyWriter {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(readonly capacityBytes: number) {
    this.bytes = new Uint8Array(capacityBytes);
    this.#view = new DataView(this.bytes.buffer);
  }

  get lengthBytes(): number {
    return this.#at;
  }
  clear(): this {
    this.#at = 0;
    return this;
  }

  #u32(value: number): void {
    this.#view.setUint32(this.#at, value, true);
    this.#at += 4;
  }
  #u64(value: number): void {
    this.#view.setUint32(this.#at, value >>> 0, true);
    this.#view.setUint32(this.#at + 4, Math.floor(value / 2 ** 32), true);
    this.#at += 8;
  }
  #seconds(timeNs: bigint): void {
    // Rounded down, as the nanoseconds beside them are counted up.
    const down = timeNs / BILLION - (timeNs % BILLION < 0n ? 1n : 0n);
    this.#view.setBigInt64(this.#at, down, true);
    this.#at += 8;
  }
  #nanoseconds(timeNs: bigint): void {
    this.#u32(Number(((timeNs % BILLION) + BILLION) % BILLION));
  }

  /** struct fuse_attr */
  #attributes(a: Attributes, blockBytes: number): void {
    this.#u64(a.ino);
    this.#u64(a.sizeBytes);
    this.#u64(Math.ceil(a.allocatedBytes / 512));
    this.#seconds(a.atimeNs);
    this.#seconds(a.mtimeNs);
    this.#seconds(a.ctimeNs);
    this.#nanoseconds(a.atimeNs);
    this.#nanoseconds(a.mtimeNs);
    this.#nanoseconds(a.ctimeNs);
    this.#u32(modeOf(a));
    this.#u32(a.nlink);
    this.#u32(a.uid);
    this.#u32(a.gid);
    this.#u32(a.rdev);
    this.#u32(blockBytes);
    this.#u32(0);
  }

  attr(attributes: Attributes, validSeconds: number, blockBytes: number): this {
    this.#u64(validSeconds);
    this.#u32(0);
    this.#u32(0);
    this.#attributes(attributes, blockBytes);
    return this;
  }

  /** What the reader is taught of a node: the answer to GETATTR, and the time of birth behind it. */
  known(attributes: Attributes, validSeconds: number, blockBytes: number): this {
    this.attr(attributes, validSeconds, blockBytes);
    this.#seconds(attributes.birthtimeNs);
    this.#nanoseconds(attributes.birthtimeNs);
    this.#u32(0);
    return this;
  }

  entry(node: number, attributes: Attributes, valid: Validity, blockBytes: number): this {
    this.#u64(node);
    this.#u64(0);
    this.#u64(valid.entrySeconds);
    this.#u64(valid.attributeSeconds);
    this.#u32(0);
    this.#u32(0);
    this.#attributes(attributes, blockBytes);
    return this;
  }
  /** No such name, for so long. (For no time at all: ENOENT.) */
  noEntry(validSeconds: number): this {
    this.#zeros(ENTRY_BYTES);
    this.#view.setUint32(this.#at - ENTRY_BYTES + 16, validSeconds, true);
    return this;
  }
  #zeros(count: number): void {
    this.bytes.fill(0, this.#at, this.#at + count);
    this.#at += count;
  }

  /** struct fuse_statx_out: attributes with the time of birth. */
  statx(a: Attributes, validSeconds: number, blockBytes: number): this {
    this.#u64(validSeconds);
    this.#u32(0);
    this.#u32(0);
    this.#zeros(16);
    const start = this.#at;
    this.#u32(STATX_BASIC_AND_BTIME);
    this.#u32(blockBytes);
    this.#u64(0);
    this.#u32(a.nlink);
    this.#u32(a.uid);
    this.#u32(a.gid);
    this.#u32(modeOf(a) & 0xffff);
    this.#u64(a.ino);
    this.#u64(a.sizeBytes);
    this.#u64(Math.ceil(a.allocatedBytes / 512));
    this.#u64(0);
    for (const time of [a.atimeNs, a.birthtimeNs, a.ctimeNs, a.mtimeNs]) {
      this.#seconds(time);
      this.#nanoseconds(time);
      this.#u32(0);
    }
    this.#u32((a.rdev >>> 8) & 0xfff);
    this.#u32((a.rdev & 0xff) | ((a.rdev >>> 12) & 0xfff00));
    this.#zeros(start + 256 - this.#at);
    return this;
  }

  open(handle: number, flags: number): this {
    this.#u64(handle);
    this.#u32(flags);
    this.#u32(0);
    return this;
  }

  /** A count of bytes: WRITE, sizes of attributes, copies. */
  count(value: number): this {
    this.#u32(value);
    this.#u32(0);
    return this;
  }
  /** An offset (LSEEK), or a copy's count of 64 bits. */
  offset(value: number): this {
    this.#u64(value);
    return this;
  }

  statfs(s: FsStatistics): this {
    const blocks = (bytes: number): number => Math.floor(bytes / s.subBlockBytes);
    this.#u64(blocks(s.totalBytes));
    this.#u64(blocks(s.freeBytes));
    this.#u64(blocks(s.freeBytes));
    this.#u64(s.totalInodes);
    this.#u64(s.freeInodes);
    this.#u32(s.subBlockBytes);
    this.#u32(s.nameBytesMax);
    this.#u32(s.subBlockBytes);
    this.#zeros(28);
    return this;
  }

  lock(found: LockFound): this {
    this.#u64(found.offset);
    if (found.length === null) {
      this.#u32(0xffffffff);
      this.#u32(0x7fffffff);
    } else {
      this.#u64(found.offset + found.length - 1);
    }
    this.#u32(found.type === 'read' ? 0 : found.type === 'write' ? 1 : 2);
    this.#u32(Math.max(0, found.pid));
    return this;
  }

  raw(bytes: Uint8Array): this {
    this.bytes.set(bytes, this.#at);
    this.#at += bytes.length;
    return this;
  }
  text(value: string): this {
    return this.raw(encoder.encode(value));
  }

  /**
   * An entry of a listing, if it fits into `limitBytes`; `next` is the offset at which a listing goes on behind it.
   */
  dirent(limitBytes: number, name: string, ino: number, type: FileType, next: number): boolean {
    const encoded = encoder.encode(name);
    if (this.#at + align8(DIRENT_HEAD_BYTES + encoded.length) > Math.min(limitBytes, this.capacityBytes)) return false;
    this.#dirent(encoded, ino, type, next);
    return true;
  }
  /** With what a LOOKUP would answer; `node` 0: without, the name counts as not looked up. */
  direntPlus(
    limitBytes: number,
    name: string,
    ino: number,
    type: FileType,
    next: number,
    looked: { node: number; attributes: Attributes; valid: Validity; blockBytes: number } | null,
  ): boolean {
    const encoded = encoder.encode(name);
    const bytes = ENTRY_BYTES + align8(DIRENT_HEAD_BYTES + encoded.length);
    if (this.#at + bytes > Math.min(limitBytes, this.capacityBytes)) return false;
    if (looked === null) this.#zeros(ENTRY_BYTES);
    else this.entry(looked.node, looked.attributes, looked.valid, looked.blockBytes);
    this.#dirent(encoded, ino, type, next);
    return true;
  }
  #dirent(encoded: Uint8Array, ino: number, type: FileType, next: number): void {
    this.#u64(ino);
    this.#u64(next);
    this.#u32(encoded.length);
    this.#u32(direntType(type));
    this.raw(encoded);
    this.#zeros(align8(encoded.length) - encoded.length);
  }
}
