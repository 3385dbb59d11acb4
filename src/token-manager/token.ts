import type { ByteRange } from '../common/byte-range.js';

/**
 * The vocabulary of tokens, shared by server, client, wire and everyone who asks for one.
 *
 * Objects. `data`: an inode, ranges are its bytes. `status`: a segment of the inode file, ranges are that file's bytes, one
 * sector per inode (so neighbours are asked for and given up in runs); see `statusObject` and `statusRange`. `open`: the same
 * segments and sectors; what the bytes of an inode's sector stand for is in src/fs/open-tokens.ts. `lock`: an inode; who holds it
 * decides about its locks (src/token-manager/locks).
 */
export const TokenClass = { status: 0, open: 1, lock: 2, data: 3 } as const;
export type TokenClass = (typeof TokenClass)[keyof typeof TokenClass];

/** Ordered by strength. `concurrentWrite` of status: nodes that write one file side by side, see StatusNote. */
export const TokenMode = { none: 0, shared: 1, concurrentWrite: 2, exclusive: 3 } as const;
export type TokenMode = (typeof TokenMode)[keyof typeof TokenMode];

/** An inode number (data, lock) or a segment number (status, open), with the file system's number before it: see file-system-scope.ts. */
export type TokenObject = number;

/** Inodes per status object, and per sector of the inode allocation map. */
export const INODES_PER_SEGMENT = 4096;

/** What one file system's inode numbers can be; the next one's objects begin behind it. */
export const OBJECTS_PER_FILE_SYSTEM = 2 ** 40;
export const SEGMENTS_PER_FILE_SYSTEM = OBJECTS_PER_FILE_SYSTEM / INODES_PER_SEGMENT;

export interface TokenItem {
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly mode: TokenMode;
  /** What the operation can't do without; rounded out to sectors. */
  readonly required: ByteRange;
  /** What the operation would like to have, contains `required`; the grant is contained in it. */
  readonly desired: ByteRange;
}

/** Held for as long as an operation runs: a revoke of any of it waits for `release`. */
export interface TokenPins {
  release(): void;
}

/** A revocation, as the holder's cache sees it. */
export interface Revocation {
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly range: ByteRange;
  /** What is kept of the range: shared (flush what is dirty, keep it clean) or none (flush, then drop). */
  readonly keep: TokenMode;
}

/**
 * What a node that gives up concurrent-write status says of an inode that it has written to meanwhile: nobody else knows it. The token server gathers
 * these (greatest size, latest times) and hands them to whoever is granted the status exclusively next. They count only as long as the inode's
 * sector has the version that the writers began with: any later version has them in it.
 */
export interface StatusNote {
  /** The inode's sector, in the status object. */
  readonly offsetBytes: number;
  readonly version: number;
  readonly sizeBytes: number;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
}

/** Classes whose objects are segments of the inode file. */
export const isBySegment = (tokenClass: TokenClass): boolean =>
  tokenClass === TokenClass.status || tokenClass === TokenClass.open;

/** The total order in which an operation takes its tokens (T4): class, object, offset. */
export function compareItems(a: TokenItem, b: TokenItem): number {
  return a.class - b.class || a.object - b.object || a.required.start - b.required.start;
}
