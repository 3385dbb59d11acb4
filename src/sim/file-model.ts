import type { SequentialModel } from './linearizability.js';

/**
 * What a file is to the checker: a row of cells and a size, counted in cells. A write fills whole cells with its own stamp; what a
 * read finds in a cell is that stamp, 0 for zeros, or the fingerprint of a mixture (which only a crash may leave behind).
 *
 * A layout says where in the file the cells are. Cells are no multiple of a sector, so they share sectors and cross pages.
 */
export const CELLS_MAX = 24;

export interface CellLayout {
  /** Where the first cell begins; the file is never shorter. */
  readonly baseBytes: number;
  /** A multiple of 4. */
  readonly cellBytes: number;
}
export const LAYOUTS: readonly CellLayout[] = [
  { baseBytes: 0, cellBytes: 6000 },
  // Across the boundary of two blocks.
  { baseBytes: 2 ** 20 - 12 * 6000, cellBytes: 6000 },
  // Inline in the inode as long as it is short.
  { baseBytes: 0, cellBytes: 300 },
  { baseBytes: 0, cellBytes: 20_000 },
];

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
export function stampedBytes(layout: CellLayout, stamp: number, count: number): Uint8Array {
  return new Uint8Array(new Uint32Array((count * layout.cellBytes) / 4).fill(stamp).buffer);
}

/** The cells in the bytes of a read that began at a cell's border; an odd rest becomes a cell that matches nothing. */
export function cellsOf(layout: CellLayout, bytes: Uint8Array): number[] {
  const cells: number[] = [];
  for (let at = 0; at < bytes.length; at += layout.cellBytes) {
    const cell = bytes.slice(at, at + layout.cellBytes);
    cells.push(cell.length === layout.cellBytes ? cellValue(cell) : -1);
  }
  return cells;
}

/** How many cells a size means; a fraction when it can't be right. */
export const cellsOfSize = (layout: CellLayout, sizeBytes: number): number =>
  (sizeBytes - layout.baseBytes) / layout.cellBytes;

/** What a cell holds: its stamp, or a negative fingerprint when it isn't uniform. */
function cellValue(bytes: Uint8Array): number {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const first = words[0]!;
  let hash = 17;
  let uniform = true;
  for (const word of words) {
    if (word !== first) uniform = false;
    hash = Math.imul(hash ^ word, 0x01000193);
  }
  return uniform ? first : -2 - (hash >>> 0);
}

/** What is in bytes that are no whole cells of one stamp each: for the eye of whoever looks for the reason. */
export function runsOf(offsetBytes: number, bytes: Uint8Array): string {
  const words = new Uint32Array(bytes.slice().buffer, 0, Math.floor(bytes.length / 4));
  const runs: string[] = [];
  for (let at = 0; at < words.length; ) {
    let end = at + 1;
    while (end < words.length && words[end] === words[at]) end++;
    runs.push(`[${offsetBytes + at * 4}, ${offsetBytes + end * 4}) = ${words[at]}`);
    at = end;
  }
  return runs.join(', ');
}
