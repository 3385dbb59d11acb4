/**
 * A map from disjoint byte ranges to (tag, sequence): what one node holds of one object, or who holds an object exclusively.
 *
 * Owns: the pieces, in ascending order, as flat quadruples `start, end, tag, seq` in chunks of bounded size. A plain array of
 * numbers is stored unboxed by the engine: 32 bytes a piece, found by binary search over chunks and then within one, changed
 * by copying one chunk. Invariants: pieces are not empty, do not overlap, and ascend; neighbours that touch and may be merged
 * (same tag; sequences equal, or both not above `settledSeq`) are merged where a change touches them, to the higher sequence.
 * Fault model: none; arguments come from code that has checked them.
 */

/** Numbers per piece: start, end, tag, seq. */
export const STRIDE = 4;
/** Pieces per chunk before it is split in two. */
const CHUNK_PIECES_MAX = 128;

/** As `settledSeq`: only pieces of equal sequence are merged. */
export const NEVER_SETTLED = Number.NEGATIVE_INFINITY;

/** Pieces as flat quadruples. */
export type FlatPieces = number[];

export class RangeMap {
  #chunks: FlatPieces[] = [];
  #size = 0;

  /** Count of pieces. */
  get size(): number {
    return this.#size;
  }

  /** Appends the pieces that overlap [start, end), clipped to it, to `into`. */
  collect(start: number, end: number, into: FlatPieces): void {
    for (let c = this.#chunkAt(start); c < this.#chunks.length; c++) {
      const chunk = this.#chunks[c]!;
      for (let i = lowerBound(chunk, start); i < chunk.length; i += STRIDE) {
        const from = chunk[i]!;
        if (from >= end) return;
        const to = chunk[i + 1]!;
        into.push(Math.max(from, start), Math.min(to, end), chunk[i + 2]!, chunk[i + 3]!);
      }
    }
  }

  /**
   * Replaces everything in [start, end) by `pieces` (ascending, inside the range; gaps stay empty). What sticks out of the
   * range on either side stays as it was.
   */
  replace(start: number, end: number, pieces: FlatPieces, settledSeq = NEVER_SETTLED): void {
    const chunks = this.#chunks;
    // One sector's breadth beyond the range on each side: a neighbour that only touches is found too, and may be merged.
    const first = this.#chunkAt(start - 1);
    if (first >= chunks.length) {
      if (pieces.length > 0) this.#splice(first, 0, first, 0, merged(pieces, settledSeq));
      return;
    }
    // One piece more on each side: neighbours that could not be merged when they came may be settled by now.
    const firstAt = Math.max(0, lowerBound(chunks[first]!, start - 1) - STRIDE);
    const list: FlatPieces = [];
    let last = first;
    let at = firstAt;
    let right: FlatPieces | undefined;
    let beyond: FlatPieces | undefined;
    for (;;) {
      const chunk = chunks[last]!;
      if (at >= chunk.length) {
        if (last + 1 === chunks.length) break;
        last++;
        at = 0;
        continue;
      }
      const from = chunk[at]!;
      const to = chunk[at + 1]!;
      if (from > end) {
        beyond = [from, to, chunk[at + 2]!, chunk[at + 3]!];
        at += STRIDE;
        break;
      }
      if (from < start) list.push(from, Math.min(to, start), chunk[at + 2]!, chunk[at + 3]!);
      if (to > end) right = [Math.max(from, end), to, chunk[at + 2]!, chunk[at + 3]!];
      at += STRIDE;
    }
    for (const value of pieces) list.push(value);
    if (right !== undefined) for (const value of right) list.push(value);
    if (beyond !== undefined) for (const value of beyond) list.push(value);
    this.#splice(first, firstAt, last, at, merged(list, settledSeq));
  }

  /** The longest run of touching pieces around `offset` whose tags have their bits in `tagMask`, or null. */
  spanAround(offset: number, tagMask: number): { start: number; end: number } | null {
    const first = this.#chunkAt(offset);
    if (first >= this.#chunks.length) return null;
    const at = lowerBound(this.#chunks[first]!, offset);
    let start = Number.POSITIVE_INFINITY;
    let end = offset + 1;
    for (let c = first, i = at; c < this.#chunks.length; c++, i = 0) {
      const chunk = this.#chunks[c]!;
      for (; i < chunk.length; i += STRIDE) {
        const reached = start === Number.POSITIVE_INFINITY ? chunk[i]! <= offset : chunk[i] === end;
        if (!reached || ((1 << chunk[i + 2]!) & tagMask) === 0) {
          c = this.#chunks.length;
          break;
        }
        if (start === Number.POSITIVE_INFINITY) start = chunk[i]!;
        end = chunk[i + 1]!;
      }
    }
    if (start === Number.POSITIVE_INFINITY) return null;
    for (let c = first, i = at - STRIDE; c >= 0; c--, i = (this.#chunks[c]?.length ?? 0) - STRIDE) {
      const chunk = this.#chunks[c]!;
      for (; i >= 0; i -= STRIDE) {
        if (chunk[i + 1] !== start || ((1 << chunk[i + 2]!) & tagMask) === 0) return { start, end };
        start = chunk[i]!;
      }
    }
    return { start, end };
  }

  /** True if every byte of [start, end) lies in a piece whose tag has its bit in `tagMask`. Allocates nothing. */
  coveredBy(start: number, end: number, tagMask: number): boolean {
    let reached = start;
    for (let c = this.#chunkAt(start); c < this.#chunks.length; c++) {
      const chunk = this.#chunks[c]!;
      for (let i = lowerBound(chunk, reached); i < chunk.length; i += STRIDE) {
        if (chunk[i]! > reached || ((1 << chunk[i + 2]!) & tagMask) === 0) return false;
        reached = chunk[i + 1]!;
        if (reached >= end) return true;
      }
    }
    return false;
  }

  /** Every piece, ascending. */
  all(): FlatPieces {
    return this.#chunks.length === 1 ? this.#chunks[0]!.slice() : this.#chunks.flat();
  }

  /** Takes `by` from every sequence: for a new numbering that begins above the old one. */
  shiftSequences(by: number): void {
    for (const chunk of this.#chunks) for (let i = 3; i < chunk.length; i += STRIDE) chunk[i] = chunk[i]! - by;
  }

  /** Index of the first chunk with a piece that ends beyond `offset`. */
  #chunkAt(offset: number): number {
    const chunks = this.#chunks;
    let low = 0;
    let high = chunks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const chunk = chunks[middle]!;
      if (chunk[chunk.length - 3]! > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Puts `pieces` in the place of everything from (first, firstAt) up to (last, lastAt), splitting what grew too long. */
  #splice(first: number, firstAt: number, last: number, lastAt: number, pieces: FlatPieces): void {
    const head = this.#chunks[first]?.slice(0, firstAt) ?? [];
    const tail = this.#chunks[last]?.slice(lastAt) ?? [];
    let removed = 0;
    for (let c = first; c <= last && c < this.#chunks.length; c++) removed += this.#chunks[c]!.length;
    const whole = head.concat(pieces, tail);
    this.#size += (whole.length - removed) / STRIDE;
    const lengthMax = CHUNK_PIECES_MAX * STRIDE;
    if (whole.length > 0 && whole.length <= lengthMax && first === last && first < this.#chunks.length) {
      this.#chunks[first] = whole;
      return;
    }
    const parts: FlatPieces[] = [];
    const count = Math.ceil(whole.length / lengthMax);
    const step = Math.ceil(whole.length / STRIDE / Math.max(count, 1)) * STRIDE;
    for (let i = 0; i < whole.length; i += step) parts.push(whole.slice(i, i + step));
    this.#chunks = this.#chunks.slice(0, first).concat(parts, this.#chunks.slice(last + 1));
  }
}

/** Index of the first piece in the chunk that ends beyond `offset`. */
function lowerBound(chunk: FlatPieces, offset: number): number {
  let low = 0;
  let high = chunk.length / STRIDE;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (chunk[middle * STRIDE + 1]! > offset) high = middle;
    else low = middle + 1;
  }
  return low * STRIDE;
}

/** The same pieces with neighbours merged where the rule above allows it. Empty pieces are dropped. */
export function merged(pieces: FlatPieces, settledSeq: number): FlatPieces {
  const out: FlatPieces = [];
  for (let i = 0; i < pieces.length; i += STRIDE) {
    const start = pieces[i]!;
    const end = pieces[i + 1]!;
    if (end <= start) continue;
    const tag = pieces[i + 2]!;
    const seq = pieces[i + 3]!;
    const before = out.length - STRIDE;
    if (before >= 0 && out[before + 1] === start && out[before + 2] === tag) {
      const beforeSeq = out[before + 3]!;
      if (beforeSeq === seq || (beforeSeq <= settledSeq && seq <= settledSeq)) {
        out[before + 1] = end;
        if (seq > beforeSeq) out[before + 3] = seq;
        continue;
      }
    }
    out.push(start, end, tag, seq);
  }
  return out;
}
