import fc from 'fast-check';
import { expect, it } from 'vitest';
import { conflicts, covers, join } from './compatibility.js';
import { HIT_STRIDE, HolderTable, objectKey } from './holder-table.js';
import { TokenClass, TokenMode } from './token.js';

const SPACE = 24;
const MEMBERS = 4;
const KEY = objectKey(TokenClass.data, 5);

const operation = fc.record({
  member: fc.integer({ min: 0, max: MEMBERS - 1 }),
  at: fc.integer({ min: 0, max: SPACE - 1 }),
  length: fc.integer({ min: 1, max: 6 }),
  mode: fc.constantFrom(TokenMode.none, TokenMode.shared, TokenMode.exclusive),
  lower: fc.boolean(),
  /** How many grants ago the statement was made. */
  age: fc.integer({ min: 0, max: 3 }),
});

it('T2: knows of every member and byte what was granted and what was stated, like an array of bytes', () => {
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 80 }), (operations) => {
      const table = new HolderTable();
      const modes = Array.from({ length: MEMBERS }, () => new Array<TokenMode>(SPACE + 8).fill(TokenMode.none));
      const seqs = Array.from({ length: MEMBERS }, () => new Array<number>(SPACE + 8).fill(0));
      let seq = 0;
      for (const { member, at, length, mode, lower, age } of operations) {
        const cells = Array.from({ length }, (_, i) => at + i);
        const [mine, mySeqs] = [modes[member]!, seqs[member]!];
        if (lower) {
          table.lower(KEY, member, at, at + length, mode, seq - age, 0);
          for (const i of cells) if (mySeqs[i]! <= seq - age && !covers(mode, mine[i]!)) mine[i] = mode;
        } else if (mode !== TokenMode.none) {
          // As the server does: nothing is granted that conflicts.
          const free = cells.every((i) => modes.every((theirs, m) => m === member || !conflicts(mode, theirs[i]!)));
          if (!free) continue;
          table.assign(KEY, member, at, at + length, mode, ++seq, 0);
          for (const i of cells) {
            mine[i] = join(mine[i]!, mode);
            mySeqs[i] = seq;
          }
        }
      }
      const seen = modes.map((m) => m.map((): TokenMode => TokenMode.none));
      const hits: number[] = [];
      table.collect(KEY, 0, SPACE + 8, hits);
      for (let i = 0; i < hits.length; i += HIT_STRIDE) {
        for (let at = hits[i + 2]!; at < hits[i + 3]!; at++) {
          expect(seen[hits[i]!]![at]).toBe(TokenMode.none);
          seen[hits[i]!]![at] = hits[i + 1] as TokenMode;
          expect(hits[i + 4]).toBe(seqs[hits[i]!]![at]);
        }
      }
      expect(seen).toEqual(modes);
      expect(table.size).toBe(hits.length / HIT_STRIDE);
      for (let member = 0; member < MEMBERS; member++) table.dropFrom(KEY, member);
      expect([table.size, table.objectCount]).toEqual([0, 0]);
    }),
    { numRuns: 300 },
  );
});

it('counts ranges over many objects, and gives everything back', () => {
  const table = new HolderTable();
  for (let i = 0; i < 5000; i++) table.assign(objectKey(TokenClass.data, i), i % 7, 0, 4096, TokenMode.shared, i, 0);
  for (let i = 0; i < 5000; i++) table.assign(objectKey(TokenClass.data, i), 9, 8192, 12288, TokenMode.exclusive, i, 0);
  expect(table.size).toBe(10000);
  for (let i = 0; i < 5000; i += 2) table.dropObject(objectKey(TokenClass.data, i));
  expect([table.size, table.objectCount]).toEqual([5000, 2500]);
});
