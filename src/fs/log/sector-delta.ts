/** What changed between two images of a sector, as runs of words. */
import { SECTOR_BYTES } from '../../common/units.js';

const WORDS = SECTOR_BYTES / 4;
/** A gap of so many unchanged words is cheaper written than left out: a run's head has as many bytes. */
const GAP_WORDS_MAX = 1;
/** The header's CRC: made when the sector is written, no part of what it says. */
const CRC_WORD = 1;

export interface Run {
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
}

const wordsOf = (image: Uint8Array): Int32Array =>
  (image.byteOffset & 3) === 0
    ? new Int32Array(image.buffer, image.byteOffset, WORDS)
    : new Int32Array(image.slice().buffer, 0, WORDS);

/** From `before` (null: from zeros) to `after`. The runs' bytes are views of `after`. `raw`: it has no header. */
export function sectorDelta(before: Uint8Array | null, after: Uint8Array, raw = false): Run[] {
  const now = wordsOf(after);
  const then = before === null ? null : wordsOf(before);
  const runs: Run[] = [];
  let start = -1;
  let end = -1;
  for (let word = 0; word < WORDS; word++) {
    if ((word === CRC_WORD && !raw) || now[word] === (then === null ? 0 : then[word])) continue;
    if (start >= 0 && word - end > GAP_WORDS_MAX) {
      runs.push(run(after, start, end));
      start = -1;
    }
    if (start < 0) start = word;
    end = word + 1;
  }
  if (start >= 0) runs.push(run(after, start, end));
  return runs;
}

const run = (after: Uint8Array, start: number, end: number): Run => ({
  offsetBytes: start * 4,
  bytes: after.subarray(start * 4, end * 4),
});

export function applyRuns(image: Uint8Array, runs: readonly Run[]): void {
  for (const { offsetBytes, bytes } of runs) image.set(bytes, offsetBytes);
}
