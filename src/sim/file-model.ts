import type { SequentialModel } from './linearizability.js';

/**
 * What a file is to the checker: a row of cells and a size, counted in cells. Cells are 6000 bytes, so they share sectors and cross
 * pages. A write fills whole cells with its own stamp; what a read finds in a cell is that stamp, 0 for zeros, or the fingerprint
 * of a mixture (which only a crash may leave behind).
 */
export const CELL_BYTES = 6000;
export const CELLS_MAX = 24;

export type FileInput =
  | { readonly op: 'read'; readonly from: number; readonly to: number }
  | { readonly op: 'write'; readonly from: number; readonly to: number; readonly stamp: number }
  | { readonly op: 'append'; readonly count: number; readonly stamp: number }
  | { readonly op: 'truncate'; readonly size: number }
  | { readonly op: 'stat' }
  /** A node died with unwritten bytes: from here on the file is what had reached the NSDs. */
  | { readonly op: 'reverted'; readonly cells: readonly number[] };

/** read: the cells up to the end of file; append: [where it went]; stat: [size]; others: []. */
export type FileOutput = readonly number[];
export type FileState = readonly number[];

export const fileModel: SequentialModel<FileState, FileInput, FileOutput> = {
  initial: [],
  step(state, input, output) {
    switch (input.op) {
      case 'read':
        return output === null || same(output, state.slice(input.from, input.to)) ? state : null;
      case 'stat':
        return output === null || output[0] === state.length ? state : null;
      case 'write': {
        const next = [...state];
        while (next.length < input.from) next.push(0);
        for (let cell = input.from; cell < input.to; cell++) next[cell] = input.stamp;
        return next;
      }
      case 'append': {
        if (output !== null && output[0] !== state.length) return null;
        return [...state, ...new Array<number>(input.count).fill(input.stamp)];
      }
      case 'truncate': {
        const next = state.slice(0, input.size);
        while (next.length < input.size) next.push(0);
        return next;
      }
      case 'reverted':
        return input.cells;
    }
  },
  key: (state) => state.join(),
};

const same = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((value, index) => value === b[index]);

/** The bytes of `count` cells written by the operation with this stamp. */
export function stampedBytes(stamp: number, count: number): Uint8Array {
  const words = new Uint32Array((count * CELL_BYTES) / 4).fill(stamp);
  return new Uint8Array(words.buffer);
}

/** What a cell holds: its stamp, or a negative fingerprint when it isn't uniform. `bytes` is one whole cell. */
export function cellValue(bytes: Uint8Array): number {
  const copy = bytes.slice();
  const words = new Uint32Array(copy.buffer, 0, CELL_BYTES / 4);
  const first = words[0]!;
  let hash = 17;
  let uniform = true;
  for (const word of words) {
    if (word !== first) uniform = false;
    hash = Math.imul(hash ^ word, 0x01000193);
  }
  return uniform ? first : -1 - (hash >>> 0);
}
