/**
 * Who holds what: the token server's table.
 *
 * Owns: for each object its pieces (member, mode, range, sequence). Most objects have one holder of the whole: those are one
 * 32-byte record in typed arrays, chained from a map of objects; an object that grows beyond SMALL_PIECES_MAX pieces is moved
 * to range maps (one for exclusive holders, who can't overlap, and one per member for the others), so that finding conflicts
 * takes a binary search whatever the number of ranges. One million ranges take less than 100 MB (bench/token.bench.ts).
 * Invariants: the pieces of one member in one object are disjoint, and merged as RangeMap says; exclusive pieces overlap no
 * other member's (the caller asks `collect` before it assigns). Fault model: none; callers have checked the arguments.
 */
import { invariant } from '../common/assert.js';
import { covers, join, meet } from './compatibility.js';
import { type FlatPieces, merged, RangeMap, STRIDE } from './range-map.js';
import { type TokenClass, TokenMode, type TokenObject } from './token.js';

/** A small integer that stands for one incarnation of one node. */
export type MemberIndex = number;
/** Class and object in one number: exact below 2^51 objects. */
export type ObjectKey = number;

export const OBJECT_MAX = 2 ** 51 - 1;
export const objectKey = (tokenClass: TokenClass, object: TokenObject): ObjectKey => object * 4 + tokenClass;
export const classOfKey = (key: ObjectKey): TokenClass => (key % 4) as TokenClass;
export const objectOfKey = (key: ObjectKey): TokenObject => Math.floor(key / 4);

/** Numbers per hit of `collect`: member, mode, start, end, seq. */
export const HIT_STRIDE = 5;
/** Beyond this many pieces an object is indexed by range maps; at a quarter of it, it becomes a chain again. */
const SMALL_PIECES_MAX = 8;
const NIL = -1;

interface LargeObject {
  readonly exclusive: RangeMap;
  /** Shared and concurrent-write pieces, by member. */
  readonly others: Map<MemberIndex, RangeMap>;
}

export class HolderTable {
  /** Head of the chain (>= 0), or -2 - index of a large object. */
  readonly #objects = new Map<ObjectKey, number>();
  readonly #large: (LargeObject | undefined)[] = [];
  readonly #largeFree: number[] = [];
  #start = new Float64Array(64);
  #end = new Float64Array(64);
  #seq = new Float64Array(64);
  /** member * 4 + mode. */
  #who = new Uint32Array(64);
  #link = new Int32Array(64);
  #free = NIL;
  #used = 0;
  #pieces = 0;

  /** Count of ranges held, over all objects. */
  get size(): number {
    return this.#pieces;
  }
  get objectCount(): number {
    return this.#objects.size;
  }
  keys(): IterableIterator<ObjectKey> {
    return this.#objects.keys();
  }
  has(key: ObjectKey): boolean {
    return this.#objects.has(key);
  }

  /** Appends every piece that overlaps [start, end), unclipped only in `seq`'s sense: bounds are clipped to the range. */
  collect(key: ObjectKey, start: number, end: number, into: number[]): void {
    const head = this.#objects.get(key);
    if (head === undefined) return;
    if (head >= 0) {
      for (let i = head; i !== NIL; i = this.#link[i]!) {
        const from = this.#start[i]!;
        const to = this.#end[i]!;
        if (from >= end || to <= start) continue;
        const who = this.#who[i]!;
        into.push(who >>> 2, who & 3, Math.max(from, start), Math.min(to, end), this.#seq[i]!);
      }
      return;
    }
    const large = this.#large[-2 - head]!;
    const pieces: FlatPieces = [];
    large.exclusive.collect(start, end, pieces);
    for (let i = 0; i < pieces.length; i += STRIDE) {
      into.push(pieces[i + 2]!, TokenMode.exclusive, pieces[i]!, pieces[i + 1]!, pieces[i + 3]!);
    }
    for (const [member, map] of large.others) {
      pieces.length = 0;
      map.collect(start, end, pieces);
      for (let i = 0; i < pieces.length; i += STRIDE) {
        into.push(member, pieces[i + 2]!, pieces[i]!, pieces[i + 1]!, pieces[i + 3]!);
      }
    }
  }

  /** Gives the member at least `mode` on all of the range; what was stronger stays so. All of it carries the new sequence. */
  assign(
    key: ObjectKey,
    member: MemberIndex,
    start: number,
    end: number,
    mode: TokenMode,
    seq: number,
    settledSeq: number,
  ): void {
    if (!this.#objects.has(key)) {
      this.#objects.set(key, this.#add(NIL, member, mode, start, end, seq));
      return;
    }
    const own = this.#ownPieces(key, member, start, end);
    const list: FlatPieces = [];
    let reached = start;
    for (let i = 0; i < own.length; i += STRIDE) {
      const held = own[i + 2]! as TokenMode;
      if (own[i]! > reached) list.push(reached, own[i]!, mode, seq);
      list.push(own[i]!, own[i + 1]!, join(held, mode), seq);
      reached = own[i + 1]!;
    }
    if (reached < end) list.push(reached, end, mode, seq);
    this.#replaceOwn(key, member, own, start, end, list, settledSeq);
  }

  /**
   * The member holds at most `keep` on the range, as it was when it had seen the grants up to `asOfSeq`; pieces granted
   * later stay (T2). Returns whether such a piece was met.
   */
  lower(
    key: ObjectKey,
    member: MemberIndex,
    start: number,
    end: number,
    keep: TokenMode,
    asOfSeq: number,
    settledSeq: number,
  ): { changed: boolean; stale: boolean } {
    const result = { changed: false, stale: false };
    if (!this.#objects.has(key)) return result;
    const own = this.#ownPieces(key, member, start, end);
    const list: FlatPieces = [];
    for (let i = 0; i < own.length; i += STRIDE) {
      const mode = own[i + 2]! as TokenMode;
      const seq = own[i + 3]!;
      if (seq > asOfSeq) {
        result.stale ||= !covers(keep, mode);
        list.push(own[i]!, own[i + 1]!, mode, seq);
      } else if (covers(keep, mode)) {
        list.push(own[i]!, own[i + 1]!, mode, seq);
      } else {
        result.changed = true;
        const left = meet(mode, keep);
        if (left !== TokenMode.none) list.push(own[i]!, own[i + 1]!, left, seq);
      }
    }
    if (result.changed) this.#replaceOwn(key, member, own, start, end, list, settledSeq);
    return result;
  }

  /** Everything that the member holds, of one object. */
  dropFrom(key: ObjectKey, member: MemberIndex): boolean {
    return this.lower(key, member, 0, Number.MAX_SAFE_INTEGER, TokenMode.none, Number.MAX_SAFE_INTEGER, 0).changed;
  }

  dropObject(key: ObjectKey): void {
    const head = this.#objects.get(key);
    if (head === undefined) return;
    if (head >= 0) this.#removeChain(head);
    else this.#dropLarge(-2 - head);
    this.#objects.delete(key);
  }

  /** The member's pieces that overlap the range, clipped to it, ascending. */
  #ownPieces(key: ObjectKey, member: MemberIndex, start: number, end: number): FlatPieces {
    const own: FlatPieces = [];
    const head = this.#objects.get(key)!;
    if (head >= 0) {
      for (let i = head; i !== NIL; i = this.#link[i]!) {
        const who = this.#who[i]!;
        if (who >>> 2 !== member) continue;
        const from = Math.max(this.#start[i]!, start);
        const to = Math.min(this.#end[i]!, end);
        if (from < to) insertAscending(own, from, to, who & 3, this.#seq[i]!);
      }
      return own;
    }
    const large = this.#large[-2 - head]!;
    large.others.get(member)?.collect(start, end, own);
    const exclusive: FlatPieces = [];
    large.exclusive.collect(start, end, exclusive);
    for (let i = 0; i < exclusive.length; i += STRIDE) {
      if (exclusive[i + 2] !== member) continue;
      insertAscending(own, exclusive[i]!, exclusive[i + 1]!, TokenMode.exclusive, exclusive[i + 3]!);
    }
    return own;
  }

  #replaceOwn(
    key: ObjectKey,
    member: MemberIndex,
    own: FlatPieces,
    start: number,
    end: number,
    list: FlatPieces,
    settledSeq: number,
  ): void {
    const head = this.#objects.get(key)!;
    if (head < 0) {
      this.#replaceLarge(key, head, member, own, list, settledSeq);
      return;
    }
    // The whole chain of this member is rebuilt: it has at most SMALL_PIECES_MAX pieces.
    const mine: FlatPieces = [];
    let kept = NIL;
    let count = 0;
    for (let i = head; i !== NIL; ) {
      const following = this.#link[i]!;
      const who = this.#who[i]!;
      if (who >>> 2 === member) {
        const from = this.#start[i]!;
        const to = this.#end[i]!;
        if (from < start) insertAscending(mine, from, Math.min(to, start), who & 3, this.#seq[i]!);
        if (to > end) insertAscending(mine, Math.max(from, end), to, who & 3, this.#seq[i]!);
        this.#release(i);
      } else {
        this.#link[i] = kept;
        kept = i;
        count++;
      }
      i = following;
    }
    for (let i = 0; i < list.length; i += STRIDE)
      insertAscending(mine, list[i]!, list[i + 1]!, list[i + 2]!, list[i + 3]!);
    const pieces = merged(mine, settledSeq);
    for (let i = pieces.length - STRIDE; i >= 0; i -= STRIDE) {
      kept = this.#add(kept, member, pieces[i + 2]! as TokenMode, pieces[i]!, pieces[i + 1]!, pieces[i + 3]!);
      count++;
    }
    if (kept === NIL) this.#objects.delete(key);
    else {
      this.#objects.set(key, kept);
      if (count > SMALL_PIECES_MAX) this.#enlarge(key, kept);
    }
  }

  #replaceLarge(
    key: ObjectKey,
    head: number,
    member: MemberIndex,
    own: FlatPieces,
    list: FlatPieces,
    settledSeq: number,
  ): void {
    const large = this.#large[-2 - head]!;
    let others = large.others.get(member);
    const sizeOf = (): number => large.exclusive.size + (others?.size ?? 0);
    let before = sizeOf();
    for (let i = 0; i < own.length; i += STRIDE) {
      const map = own[i + 2] === TokenMode.exclusive ? large.exclusive : others!;
      map.replace(own[i]!, own[i + 1]!, [], settledSeq);
    }
    for (let i = 0; i < list.length; i += STRIDE) {
      const exclusive = list[i + 2] === TokenMode.exclusive;
      if (!exclusive && others === undefined) {
        others = new RangeMap();
        large.others.set(member, others);
      }
      const map = exclusive ? large.exclusive : others!;
      map.replace(
        list[i]!,
        list[i + 1]!,
        [list[i]!, list[i + 1]!, exclusive ? member : list[i + 2]!, list[i + 3]!],
        settledSeq,
      );
    }
    if (others?.size === 0) large.others.delete(member);
    this.#pieces += sizeOf() - before;
    before = large.exclusive.size;
    if (before > SMALL_PIECES_MAX / 4) return;
    for (const map of large.others.values()) before += map.size;
    if (before <= SMALL_PIECES_MAX / 4) this.#shrink(key, -2 - head);
  }

  #enlarge(key: ObjectKey, head: number): void {
    const large: LargeObject = { exclusive: new RangeMap(), others: new Map() };
    for (let i = head; i !== NIL; i = this.#link[i]!) {
      const member = this.#who[i]! >>> 2;
      const mode = this.#who[i]! & 3;
      let map = large.exclusive;
      if (mode !== TokenMode.exclusive) {
        map = large.others.get(member) ?? new RangeMap();
        large.others.set(member, map);
      }
      const tag = mode === TokenMode.exclusive ? member : mode;
      map.replace(this.#start[i]!, this.#end[i]!, [this.#start[i]!, this.#end[i]!, tag, this.#seq[i]!]);
    }
    this.#removeChain(head);
    const index = this.#largeFree.pop() ?? this.#large.length;
    this.#large[index] = large;
    this.#objects.set(key, -2 - index);
    this.#pieces += large.exclusive.size;
    for (const map of large.others.values()) this.#pieces += map.size;
  }

  #shrink(key: ObjectKey, index: number): void {
    const hits: number[] = [];
    this.collect(key, 0, Number.MAX_SAFE_INTEGER, hits);
    this.#dropLarge(index);
    let head = NIL;
    for (let i = 0; i < hits.length; i += HIT_STRIDE) {
      head = this.#add(head, hits[i]!, hits[i + 1]! as TokenMode, hits[i + 2]!, hits[i + 3]!, hits[i + 4]!);
    }
    if (head === NIL) this.#objects.delete(key);
    else this.#objects.set(key, head);
  }

  #dropLarge(index: number): void {
    const large = this.#large[index]!;
    this.#pieces -= large.exclusive.size;
    for (const map of large.others.values()) this.#pieces -= map.size;
    this.#large[index] = undefined;
    this.#largeFree.push(index);
  }

  #removeChain(head: number): void {
    for (let i = head; i !== NIL; ) {
      const following = this.#link[i]!;
      this.#release(i);
      i = following;
    }
  }

  /** A new record in front of the chain `next`; returns its index. */
  #add(next: number, member: MemberIndex, mode: TokenMode, start: number, end: number, seq: number): number {
    let i = this.#free;
    if (i !== NIL) this.#free = this.#link[i]!;
    else {
      if (this.#used === this.#start.length) this.#grow();
      i = this.#used++;
    }
    this.#start[i] = start;
    this.#end[i] = end;
    this.#seq[i] = seq;
    this.#who[i] = member * 4 + mode;
    this.#link[i] = next;
    this.#pieces++;
    return i;
  }

  #release(i: number): void {
    this.#link[i] = this.#free;
    this.#free = i;
    this.#pieces--;
  }

  #grow(): void {
    // Half as much again: doubling would take the table over its budget just after each step.
    const capacity = Math.ceil(this.#start.length * 1.5);
    invariant(capacity < 2 ** 31, 'token table beyond 2^31 ranges');
    const enlarge = <A extends Float64Array | Uint32Array | Int32Array>(to: A, from: A): A => {
      to.set(from);
      return to;
    };
    this.#start = enlarge(new Float64Array(capacity), this.#start);
    this.#end = enlarge(new Float64Array(capacity), this.#end);
    this.#seq = enlarge(new Float64Array(capacity), this.#seq);
    this.#who = enlarge(new Uint32Array(capacity), this.#who);
    this.#link = enlarge(new Int32Array(capacity), this.#link);
  }
}

/** Insertion into a short ascending list. */
function insertAscending(list: FlatPieces, start: number, end: number, tag: number, seq: number): void {
  let i = list.length;
  while (i > 0 && list[i - STRIDE]! > start) i -= STRIDE;
  if (i === list.length) list.push(start, end, tag, seq);
  else list.splice(i, 0, start, end, tag, seq);
}
