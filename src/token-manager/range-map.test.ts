import fc from 'fast-check';
import { expect, it } from 'vitest';
import { type FlatPieces, RangeMap, STRIDE } from './range-map.js';

const SPACE = 40;
type Change = { at: number; length: number; tag: number; seq: number };
const change = fc.record({
  at: fc.integer({ min: 0, max: SPACE - 1 }),
  length: fc.integer({ min: 1, max: 12 }),
  tag: fc.integer({ min: 0, max: 3 }),
  seq: fc.integer({ min: 1, max: 5 }),
});

/** The same map, one cell per byte. */
class Cells {
  readonly tags = new Array<number>(SPACE + 16).fill(0);
  readonly seqs = new Array<number>(SPACE + 16).fill(0);
  apply({ at, length, tag, seq }: Change): void {
    this.tags.fill(tag, at, at + length);
    this.seqs.fill(seq, at, at + length);
  }
}

function apply(map: RangeMap, { at, length, tag, seq }: Change, settledSeq?: number): void {
  map.replace(at, at + length, tag === 0 ? [] : [at, at + length, tag, seq], settledSeq);
}

function expand(pieces: FlatPieces): { tags: number[]; seqs: number[] } {
  const cells = new Cells();
  for (let i = 0; i < pieces.length; i += STRIDE) {
    cells.tags.fill(pieces[i + 2]!, pieces[i]!, pieces[i + 1]!);
    cells.seqs.fill(pieces[i + 3]!, pieces[i]!, pieces[i + 1]!);
  }
  return cells;
}

it('holds exactly what was put in, like an array of bytes', () => {
  fc.assert(
    fc.property(fc.array(change, { maxLength: 60 }), (changes) => {
      const map = new RangeMap();
      const cells = new Cells();
      for (const c of changes) {
        apply(map, c);
        cells.apply(c);
      }
      const { tags, seqs } = expand(map.all());
      expect(tags).toEqual(cells.tags);
      expect(seqs.map((s, i) => (tags[i] === 0 ? 0 : s))).toEqual(cells.seqs.map((s, i) => (tags[i] === 0 ? 0 : s)));
      expect(map.size).toBe(map.all().length / STRIDE);
    }),
  );
});

it('merges touching neighbours of equal tag and sequence, so that pieces never outnumber the changes of value', () => {
  fc.assert(
    fc.property(fc.array(change, { maxLength: 60 }), (changes) => {
      const map = new RangeMap();
      for (const c of changes) apply(map, { ...c, seq: 1 });
      const all = map.all();
      for (let i = STRIDE; i < all.length; i += STRIDE) {
        const touches = all[i - STRIDE + 1] === all[i] && all[i - STRIDE + 2] === all[i + 2];
        expect(touches).toBe(false);
        expect(all[i]!).toBeGreaterThanOrEqual(all[i - STRIDE + 1]!);
      }
    }),
  );
});

it('merges different sequences to the higher one only when both are settled', () => {
  const map = new RangeMap();
  apply(map, { at: 0, length: 4, tag: 1, seq: 3 });
  apply(map, { at: 4, length: 4, tag: 1, seq: 7 }, 6);
  expect(map.all()).toEqual([0, 4, 1, 3, 4, 8, 1, 7]);
  apply(map, { at: 8, length: 4, tag: 1, seq: 9 }, 8);
  expect(map.all()).toEqual([0, 8, 1, 7, 8, 12, 1, 9]);
});

it('answers coverage and spans like an array of bytes', () => {
  const question = fc.record({ at: fc.integer({ min: 0, max: SPACE - 1 }), length: fc.integer({ min: 1, max: 20 }) });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 30 }), question, fc.integer({ min: 2, max: 14 }), (changes, q, mask) => {
      const map = new RangeMap();
      const cells = new Cells();
      for (const c of changes) {
        apply(map, c);
        cells.apply(c);
      }
      const fits = (i: number): boolean => cells.tags[i]! > 0 && ((1 << cells.tags[i]!) & mask) !== 0;
      let all = true;
      for (let i = q.at; i < q.at + q.length; i++) all &&= fits(i);
      expect(map.coveredBy(q.at, q.at + q.length, mask)).toBe(all);
      let [start, end] = [q.at, q.at];
      while (start > 0 && fits(start - 1)) start--;
      while (fits(end)) end++;
      expect(map.spanAround(q.at, mask)).toEqual(fits(q.at) ? { start, end } : null);
    }),
  );
});

it('stays right across many chunks, in whatever order pieces come and go', () => {
  const count = 3000;
  const map = new RangeMap();
  for (let i = 0; i < count; i++) {
    const at = ((i * 1009) % count) * 2;
    map.replace(at, at + 1, [at, at + 1, 1, i]);
  }
  expect(map.size).toBe(count);
  expect(map.spanAround(5, 2)).toBeNull();
  for (let i = 0; i < count; i++) map.replace(2 * i + 1, 2 * i + 2, [2 * i + 1, 2 * i + 2, 1, i], count);
  expect(map.size).toBe(1);
  expect(map.spanAround(1234, 2)).toEqual({ start: 0, end: 2 * count });
  map.replace(100, 5000, []);
  expect(map.all().filter((_, i) => i % STRIDE < 2)).toEqual([0, 100, 5000, 2 * count]);
});
