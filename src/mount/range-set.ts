import { type ByteRange, intersect, isEmpty, overlaps, subtract } from '../common/byte-range.js';

/** A set of bytes as disjoint ranges, ascending, that don't touch. For the few ranges of one inode. */
export class RangeSet {
  #ranges: ByteRange[] = [];

  constructor(ranges: Iterable<ByteRange> = []) {
    for (const one of ranges) this.add(one);
  }

  get isEmpty(): boolean {
    return this.#ranges.length === 0;
  }
  [Symbol.iterator](): Iterator<ByteRange> {
    return this.#ranges[Symbol.iterator]();
  }

  add(more: ByteRange): void {
    if (isEmpty(more)) return;
    let { start, end } = more;
    const before: ByteRange[] = [];
    const behind: ByteRange[] = [];
    for (const one of this.#ranges) {
      if (one.end < start) before.push(one);
      else if (one.start > end) behind.push(one);
      else {
        start = Math.min(start, one.start);
        end = Math.max(end, one.end);
      }
    }
    this.#ranges = [...before, { start, end }, ...behind];
  }
  remove(less: ByteRange): void {
    if (!isEmpty(less)) this.#ranges = this.#ranges.flatMap((one) => subtract(one, less));
  }
  clear(): void {
    this.#ranges = [];
  }

  overlaps(other: ByteRange): boolean {
    return !isEmpty(other) && this.#ranges.some((one) => overlaps(one, other));
  }
  covers(other: ByteRange): boolean {
    return isEmpty(other) || this.#ranges.some((one) => one.start <= other.start && other.end <= one.end);
  }
  /** What of it lies in a range. */
  within(other: ByteRange): ByteRange[] {
    return this.#ranges.filter((one) => overlaps(one, other)).map((one) => intersect(one, other));
  }
  intersection(other: RangeSet): RangeSet {
    return new RangeSet([...other].flatMap((one) => this.within(one)));
  }
  without(other: Iterable<ByteRange>): RangeSet {
    const rest = new RangeSet(this.#ranges);
    for (const one of other) rest.remove(one);
    return rest;
  }
}
