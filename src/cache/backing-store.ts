import type { ByteRange } from '../common/byte-range.js';
import type { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';

/** Whole sectors of a file and where they are in the page pool. */
export interface FilePiece {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly poolOffsetBytes: number;
}

export interface FileWrite {
  readonly ino: InodeNumber;
  readonly pieces: readonly FilePiece[];
}

/** Where pages come from and go to: implemented by the file system, which knows blocks; called by the cache, which doesn't. */
export interface BackingStore {
  /** Fills every piece: device bytes, or zeros for holes and behind the end of file. */
  read(ino: InodeNumber, pieces: readonly FilePiece[], signal?: AbortSignal): Promise<void>;
  /**
   * Before pages of the range become dirty: space for them is allocated, so that write-out can't fail for want of it and
   * needs no token (T5). Called with no page pinned; the implementation may itself use the file's pages (a small file that
   * outgrows its inode), so the cache must not hold anything of the file that would wait for it.
   * `ahead`: for no operation, so that nobody holds the file's tokens meanwhile; what can't be had at once is refused with `busy`.
   * @throws {FsError} noSpace; busy
   */
  reserve(ino: InodeNumber, range: ByteRange, options?: { readonly ahead: boolean }): Promise<void>;
  /** True when `reserve` of the range would do nothing: the hot path skips the promise. */
  isReserved(ino: InodeNumber, range: ByteRange): boolean;
  /**
   * Writes dirty sectors out: allocates, transfers; the pool's bytes are stable until it resolves (S2). Takes no token (T5).
   * Then the inode, in memory, knows where they are.
   */
  write(ino: InodeNumber, pieces: readonly FilePiece[]): Promise<void>;
  /** The same for several files, each once, in as few transfers as may be; what becomes of each is told by itself. */
  writeTogether(writes: readonly FileWrite[]): readonly Promise<void>[];
  /**
   * Before the data token of a range leaves, or is lowered; its pages are clean. What was written out and is not where others look for it comes there (T6),
   * and all of it is durable when it resolves. False: some of it was lost, and may be dirty again. Takes no token (T5).
   */
  makeDurable(ino: InodeNumber, range: ByteRange): Promise<boolean>;
  /** What a write put behind the end of file could not be made zeros again: it must be before the file grows. Under the write's own tokens. */
  leftBehindEnd(ino: InodeNumber): void;
  /** Bytes that were written, and can't be kept: who has the file open is told (I10). */
  lost(ino: InodeNumber, range: ByteRange, cause: FsError): void;
}
