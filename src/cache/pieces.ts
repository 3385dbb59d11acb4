import type { ByteRange } from '../common/byte-range.js';
import { PAGE_BYTES } from '../common/units.js';

/** The range cut at multiples of `pieceBytes` (whole pages), so that only its ends may lie within a page. */
export function cutIntoPieces(range: ByteRange, pieceBytes: number): ByteRange[] {
  const pieces: ByteRange[] = [];
  for (let start = range.start; start < range.end; ) {
    const pageStart = Math.floor(start / PAGE_BYTES) * PAGE_BYTES;
    const end = Math.min(range.end, pageStart + pieceBytes);
    pieces.push({ start, end });
    start = end;
  }
  return pieces;
}
