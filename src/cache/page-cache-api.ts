import type { ByteRange } from '../common/byte-range.js';
import type { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import type { TokenItem, TokenMode } from '../token-manager/token.js';
import type { EntryId, EntryState } from './cache-map.js';
import type { LeaveHook } from './revoke.js';

/**
 * The page cache: coherent pages of files, directories and every other object that has a data token. It owns the data class
 * of tokens on this node (builds requests, serves revocations), the slots, write-behind, read-ahead and eviction. It knows
 * nothing of blocks (BackingStore) nor of attributes beyond size and times in the entry (status tokens are the file system's).
 *
 * Every method that touches pages needs the tokens pinned by the caller: `dataItem` builds the request, so that the file
 * system asks for status and data together, in one message.
 */
export interface PageCacheApi {
  /** Counted: the entry exists from the first attach to the last detach, and while pages are cached. */
  attach(ino: InodeNumber, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): CachedFile;
  /** The attached or still cached file, or undefined. */
  get(ino: InodeNumber): CachedFile | undefined;
  /**
   * For system objects whose owner must do something before their token leaves (an allocation region stops being allocated
   * from): awaited after pins are gone and before pages are flushed and dropped. Needs no token (T5).
   */
  setRevokeHook(ino: InodeNumber, hook: (range: ByteRange, keep: TokenMode) => Promise<void>): void;
  /** Told of every token that leaves, before anything else is done about it. */
  setRevokeListener(listener: (ino: InodeNumber) => void): void;
  /** What has to be done elsewhere before a token may leave; null: nothing any more. */
  setLeaveHook(hook: LeaveHook | null): void;
  /**
   * What is dirty of these files, written out in few transfers as far as that can be done at once: ahead of a flush of each, which waits for the rest. Those that
   * failed, with their errors; nobody else tells of these.
   */
  flushTogether(inos: readonly InodeNumber[]): Promise<ReadonlyMap<InodeNumber, FsError>>;
  /** Everything dirty on this node, written out (not flushed on the devices). */
  flushAll(): Promise<void>;
  /** Pages in use, dirty, limits: for status and back-pressure. */
  usage(): { pages: number; pagesUsed: number; dirtyPages: number; dirtyPagesMax: number };
  /** Fenced (F3): everything is dropped, dirty or not; returns what was lost. */
  dropEverything(): { ino: InodeNumber; range: ByteRange }[];
  close(): Promise<void>;
}

export interface CachedFile {
  readonly ino: InodeNumber;
  /** For hits from application threads; null while the map has no room for the entry (everything works, through the engine). */
  readonly entry: EntryId | null;
  readonly state: EntryState;
  setState(state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): void;
  /**
   * A write through the engine, from its `onCopied`: size at least `endBytes`, both times `wallNs`, as a write hit does it. Unlike reading
   * `state` and setting it, it undoes no growth by hits.
   */
  noteWrite(endBytes: number, wallNs: bigint): void;
  /** Status mode as hits may rely on it; lowering waits for running hits. Called by the owner of status tokens. */
  setStatusMode(mode: TokenMode): void;
  /** Other nodes may be writing behind what `state` says is the end: nothing there is taken for zeros. */
  setSizeIsFloor(isFloor: boolean): void;
  detach(): void;

  /** The data token request for an operation on the range: required is the range, desired what the access pattern foresees. */
  dataItem(range: ByteRange, mode: TokenMode): TokenItem;

  /**
   * Copies out; the range lies before the end of file. Shared data token pinned by the caller. Fetches what is missing, feeds
   * the access pattern, starts read-ahead (within what is held, asking for more beyond it).
   */
  read(offsetBytes: number, target: Uint8Array, options?: { signal?: AbortSignal | undefined }): Promise<void>;
  /** The same without the copy: the pages are there when it resolves, for a hit, if nobody takes them away in between. */
  bring(offsetBytes: number, lengthBytes: number, options?: { signal?: AbortSignal | undefined }): Promise<void>;
  /**
   * Copies in and marks dirty; atomic against other reads and writes on this node. Exclusive data token (and status) pinned.
   * Waits for room when too much is dirty. Doesn't change size or times: the caller does, in the same synchronous turn in
   * which the promise resolves, through `onCopied`.
   */
  write(
    offsetBytes: number,
    source: Uint8Array,
    options: { signal?: AbortSignal | undefined; onCopied: () => void },
  ): Promise<void>;
  /**
   * Metadata: pages of the range valid, pinned and handed to `use` synchronously as views of their bytes. Exclusive mode may
   * change bytes; the ranges it returns become dirty. Beyond what was ever written, bytes are zeros.
   */
  withBytes<T>(
    range: ByteRange,
    mode: 'shared' | 'exclusive',
    use: (view: PageView) => T,
    options?: { signal?: AbortSignal | undefined },
  ): Promise<T>;
  /** The same without waiting when everything is cached, else undefined: the hot path of metadata. */
  tryWithBytes<T>(range: ByteRange, mode: 'shared' | 'exclusive', use: (view: PageView) => T): { value: T } | undefined;

  /** Dirty bytes of the range written out; resolves when the devices have them (not flushed). Errors of earlier write-behind included (I10). */
  flush(range?: ByteRange): Promise<void>;
  /**
   * What was written of the range has been lost below: dirty again, where it is still here. Returns the rest of the range, in sectors. Exclusive tokens
   * held, space reserved.
   */
  rewrite(range: ByteRange): Promise<ByteRange[]>;
  /** Drops pages, dirty ones too, without writing; gives reservations back. For truncate and the last unlink. */
  discard(range: ByteRange): Promise<void>;
  /** The tail of the last page behind a new, smaller size becomes zeros. Exclusive token pinned. */
  zero(range: ByteRange): Promise<void>;
  readonly dirty: boolean;
  /** Published to hits from now on: what of data tokens is held (after an operation, after a grant). */
  publish(): void;
  /** `passed`: hits have gone through the range, and will say so again after as much once more. */
  hint(kind: 'willNeed' | 'dontNeed' | 'sequential' | 'random' | 'normal' | 'passed', range: ByteRange): void;
}

/** Bytes of a range that may cross pages. Offsets are the file's. */
export interface PageView {
  /** A view of [offset, offset + length), which must not cross a page (PAGE_BYTES). */
  bytes(offsetBytes: number, lengthBytes: number): Uint8Array;
  /** In exclusive mode: these bytes were changed. Must not cross a page. */
  changed(offsetBytes: number, lengthBytes: number): void;
}
