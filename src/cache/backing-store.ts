import type { ByteRange } from '../common/byte-range.js';
import type { InodeNumber } from '../common/ids.js';

/** Whole sectors of a file and where they are in the page pool. */
export interface FilePiece {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly poolOffsetBytes: number;
}

/** Where pages come from and go to: implemented by the file system, which knows blocks; called by the cache, which doesn't. */
export interface BackingStore {
  /** Fills every piece: device bytes, or zeros for holes and behind the end of file. */
  read(ino: InodeNumber, pieces: readonly FilePiece[], signal?: AbortSignal): Promise<void>;
  /**
   * Before pages of the range become dirty: space for them is set aside, so that write-out can't fail for want of it (T5),
   * and everything write-out will need is held until they are clean.
   * @throws {FsError} noSpace
   */
  reserve(ino: InodeNumber, range: ByteRange): Promise<void>;
  /** Gives back what was reserved for pages that were dropped without being written (deleted young, truncated). */
  unreserve(ino: InodeNumber, range: ByteRange): void;
  /**
   * Writes dirty sectors out: allocates, transfers; the pool's bytes are stable until it resolves (S2). Takes no token (T5).
   * Then the inode, in memory, knows where they are.
   */
  write(ino: InodeNumber, pieces: readonly FilePiece[]): Promise<void>;
}
