/**
 * The locks of one kind on one file, as Linux has them: fcntl's on byte ranges, or flock's, whose range is the whole file.
 *
 * Invariants: an owner's locks don't overlap, and those of one type don't touch (they are one); locks of different owners overlap only
 * if both read. Pure, no fault model: arguments were checked before.
 */
import { type ByteRange, overlaps } from '../../common/byte-range.js';
import type { Incarnation, NodeId } from '../../common/ids.js';

export const LockType = { read: 1, write: 2 } as const;
export type LockType = (typeof LockType)[keyof typeof LockType];

/** A lock that ends here goes to the end of the file, however long that becomes. */
export const LOCK_END = Number.MAX_SAFE_INTEGER;
/** Beyond it ENOLCK. */
export const LOCKS_PER_FILE_MAX = 8192;

export interface LockOwner {
  readonly node: NodeId;
  readonly incarnation: Incarnation;
  /** Chosen by the node, unique in its life. */
  readonly id: number;
  /** For whoever asks who is in the way. */
  readonly pid: number;
  /** A process: its waits count for deadlocks. Handles (flock, open file descriptions) are nobody's in particular. */
  readonly isProcess: boolean;
}
export interface Lock extends ByteRange {
  readonly owner: LockOwner;
  readonly type: LockType;
}
/** What an owner has of a range. */
export interface LockPiece extends ByteRange {
  readonly type: LockType;
}

export const sameOwner = (a: LockOwner, b: LockOwner): boolean =>
  a.id === b.id && a.node === b.node && a.incarnation === b.incarnation;

export const excludes = (a: LockType, b: LockType): boolean => a === LockType.write || b === LockType.write;

export class LockTable {
  #locks: Lock[] = [];

  get size(): number {
    return this.#locks.length;
  }
  all(): readonly Lock[] {
    return this.#locks;
  }

  /** The first lock of somebody else that stands against it. */
  conflict(owner: LockOwner, type: LockType, at: ByteRange): Lock | null {
    let first: Lock | null = null;
    for (const lock of this.#locks) {
      if (!overlaps(lock, at) || !excludes(type, lock.type) || sameOwner(lock.owner, owner)) continue;
      if (first === null || lock.start < first.start) first = lock;
    }
    return first;
  }

  /** What the owner has there, clipped, ascending. */
  pieces(owner: LockOwner, at: ByteRange): LockPiece[] {
    return this.#locks
      .filter((lock) => sameOwner(lock.owner, owner) && overlaps(lock, at))
      .map(({ start, end, type }) => ({ start: Math.max(start, at.start), end: Math.min(end, at.end), type }))
      .sort((a, b) => a.start - b.start);
  }

  /** The owner has in the range what the pieces say, whatever it had: splits and merges. */
  assign(owner: LockOwner, at: ByteRange, pieces: readonly LockPiece[]): void {
    const own: LockPiece[] = [];
    const rest: Lock[] = [];
    for (const lock of this.#locks) {
      if (!sameOwner(lock.owner, owner)) {
        rest.push(lock);
        continue;
      }
      const { start, end, type } = lock;
      if (start < at.start) own.push({ start, end: Math.min(end, at.start), type });
      if (end > at.end) own.push({ start: Math.max(start, at.end), end, type });
    }
    own.push(...pieces);
    own.sort((a, b) => a.start - b.start);
    for (let i = 0; i < own.length; ) {
      const { start, type } = own[i]!;
      let { end } = own[i]!;
      for (i++; i < own.length && own[i]!.type === type && own[i]!.start === end; i++) end = own[i]!.end;
      rest.push({ owner, type, start, end });
    }
    this.#locks = rest;
  }

  set(owner: LockOwner, type: LockType, at: ByteRange): void {
    this.assign(owner, at, [{ start: at.start, end: at.end, type }]);
  }

  dropWhere(drops: (owner: LockOwner) => boolean): boolean {
    const before = this.#locks.length;
    this.#locks = this.#locks.filter((lock) => !drops(lock.owner));
    return this.#locks.length < before;
  }
}

/** Two sets that know nothing of each other, as on Linux. */
export const LockSpace = { ranges: 0, whole: 1 } as const;
export type LockSpace = (typeof LockSpace)[keyof typeof LockSpace];

export interface LockWish {
  readonly space: LockSpace;
  readonly owner: LockOwner;
  readonly type: LockType;
  readonly at: ByteRange;
}

export type Outcome = 'granted' | 'full' | { readonly blocker: Lock };

/** Both sets of one file, and how a lock is taken. */
export class FileLocks {
  readonly spaces: readonly [LockTable, LockTable] = [new LockTable(), new LockTable()];

  get size(): number {
    return this.spaces[0].size + this.spaces[1].size;
  }

  /**
   * Takes the lock, if nobody's stands against it. flock(2): a conversion first gives up what there was, so that it is gone when the new
   * one has to wait or is refused. @returns also whether something was given up that others may wait for.
   */
  take({ space, owner, type, at }: LockWish): { readonly outcome: Outcome; readonly gaveUp: boolean } {
    const table = this.spaces[space];
    const had = table.pieces(owner, at);
    if (space === LockSpace.whole && had.length > 0) {
      if (had[0]!.type === type) return { outcome: 'granted', gaveUp: false };
      table.assign(owner, at, []);
    }
    const converted = space === LockSpace.whole && had.length > 0;
    const blocker = table.conflict(owner, type, at);
    if (blocker !== null) return { outcome: { blocker }, gaveUp: converted };
    // A lock in the middle of one of the other type makes two more of it.
    if (table.size + 2 > LOCKS_PER_FILE_MAX) return { outcome: 'full', gaveUp: converted };
    table.set(owner, type, at);
    const weaker = type === LockType.read && had.some((piece) => piece.type === LockType.write);
    return { outcome: 'granted', gaveUp: converted || weaker };
  }

  dropWhere(drops: (owner: LockOwner) => boolean): boolean {
    const ranges = this.spaces[0].dropWhere(drops);
    return this.spaces[1].dropWhere(drops) || ranges;
  }
}
