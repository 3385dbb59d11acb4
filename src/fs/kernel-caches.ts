import type { ByteRange } from '../common/byte-range.js';
import type { InodeNumber } from '../common/ids.js';

/**
 * What a kernel keeps of this file system, where it is mounted (mount/): one more place where bytes live, under the same rule as all others (I2).
 *
 * Each call returns null when there is nothing to wait for. None of them may be waited for while `contents` of an inode is owned or shared: it may wait for
 * READs that need it.
 */
export interface KernelCaches {
  /**
   * Bytes of a file are about to change here; their tokens are pinned. Resolves when the kernel has none of them; it gets none until what it resolved with
   * is called. `held`: the data token around it, exclusive. `kernelTruncates`: OpOptions'.
   */
  changing(ino: InodeNumber, range: ByteRange, held: ByteRange, kernelTruncates: boolean): Promise<() => void> | null;
  /** It has the file open, or had: what is changed there goes by `changing`. */
  watches(ino: InodeNumber): boolean;
  /** It keeps some of a file, or may do so without another word: then the file is not written side by side with other nodes. */
  keeps(ino: InodeNumber): boolean;
  /** A data token leaves, or comes down to shared. Nothing of it is pinned. Needs no token (T5). */
  dataLeaves(ino: InodeNumber, range: ByteRange, keepsShared: boolean): Promise<() => void> | null;
  /** The same of the status of these inodes; what it resolves with is called when it has left. [first, end) */
  statusLeaves(first: number, end: number, keepsShared: boolean): Promise<() => void> | null;
  /** Attributes, or names in it, have changed here or may change elsewhere. */
  changed(ino: InodeNumber): void;
}
