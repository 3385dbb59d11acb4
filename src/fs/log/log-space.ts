/** Where the sectors of a log lie: pieces of equal length, one behind the other, each with as many copies as its extent says (nsd/copies.ts). */
import type { NsdIndex } from '../../common/ids.js';
import type { Extent } from '../layout.js';

export interface LogRun {
  readonly nsd: NsdIndex;
  readonly sector: number;
  /** Sectors from the beginning of what was asked for. */
  readonly at: number;
  readonly count: number;
}

export class LogSpace {
  readonly capacitySectors: number;

  constructor(
    readonly pieceSectors: number,
    readonly pieces: readonly Extent[],
  ) {
    this.capacitySectors = pieces.length * pieceSectors;
  }

  /** The places of log sectors `first` on, so many at most in each run. */
  runs(first: number, count: number, max = Number.POSITIVE_INFINITY): LogRun[] {
    const runs: LogRun[] = [];
    for (let at = 0; at < count; ) {
      const place = (first + at) % this.capacitySectors;
      const piece = this.pieces[Math.floor(place / this.pieceSectors)]!;
      const inside = place % this.pieceSectors;
      const length = Math.min(count - at, this.pieceSectors - inside, max);
      runs.push({ nsd: piece.nsd, sector: piece.sector + inside, at, count: length });
      at += length;
    }
    return runs;
  }
}
