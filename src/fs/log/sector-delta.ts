/** What changed between two images of a sector, as runs of words. An image may be shorter than its sector: the rest is zeros. */
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

/** Its words where they are, if they are aligned. */
export const wordsOf = (image: Uint8Array): Int32Array =>
  (image.byteOffset & 3) === 0
    ? new Int32Array(image.buffer, image.byteOffset, image.byteLength >>> 2)
    : new Int32Array(image.slice().buffer);

/** Pairs of a run's first word and the one behind its last, of the last comparison: made for each change of metadata, so nothing is allocated. */
export const runBounds = new Uint16Array(WORDS + 2);

/** How many runs there are in `runBounds`: where `after` is not as `before`. `raw`: it has no header. */
export function findRuns(before: Int32Array, after: Int32Array, raw = false): number {
  const both = Math.min(before.length, after.length);
  const end = Math.max(before.length, after.length);
  let found = 0;
  let start = -1;
  let last = -1;
  for (let word = 0; word < end; word++) {
    if (word < both) {
      if (before[word] === after[word]) continue;
    } else if ((word < after.length ? after[word] : before[word]) === 0) continue;
    if (word === CRC_WORD && !raw) continue;
    if (start >= 0 && word - last > GAP_WORDS_MAX) {
      runBounds[found++] = start;
      runBounds[found++] = last;
      start = -1;
    }
    if (start < 0) start = word;
    last = word + 1;
  }
  if (start >= 0) {
    runBounds[found++] = start;
    runBounds[found++] = last;
  }
  return found / 2;
}

const NOTHING = new Int32Array(0);

/** From `before` (null: from zeros) to `after`, a whole sector. The runs' bytes are views of `after`. */
export function sectorDelta(before: Uint8Array | null, after: Uint8Array, raw = false): Run[] {
  const count = findRuns(before === null ? NOTHING : wordsOf(before), wordsOf(after), raw);
  return Array.from({ length: count }, (_, i) => {
    const offsetBytes = runBounds[2 * i]! * 4;
    return { offsetBytes, bytes: after.subarray(offsetBytes, runBounds[2 * i + 1]! * 4) };
  });
}

export function applyRuns(image: Uint8Array, runs: readonly Run[]): void {
  for (const { offsetBytes, bytes } of runs) image.set(bytes, offsetBytes);
}
