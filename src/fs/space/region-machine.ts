/**
 * The allocation manager of one file system: points nodes that need space to a region. Pure: an event and the time in, an answer out.
 *
 * Owns soft state only: what nodes have told about how much is free in regions, and which region was named to whom a moment ago, so that two
 * askers get different ones. Who holds what the token server's table says, which is given with each question. Nothing of it is
 * on disk; the machine begins with nothing known, and what nobody has told about counts as free.
 * Invariant: it decides nothing. A region is whoever's has its token; a wrong answer costs its asker another question.
 * Fault model: reports may be old, wrong, or of regions that there are not; they are bounded by the number of regions.
 */
import type { NodeId } from '../../common/ids.js';
import type { RegionAnswer, RegionAsk, RegionReport } from './shipment.js';

/** Regions from `first` up to, without, `end` are this node's. Ascending, disjoint. */
export interface RegionHolder {
  readonly first: number;
  readonly end: number;
  readonly node: NodeId;
}

export type RegionEvent = {
  readonly type: 'asked';
  readonly from: NodeId;
  readonly ask: RegionAsk;
  readonly holders: readonly RegionHolder[];
};

/** For how long a region that was named to one node is not named to another. */
const PROMISE_MS = 2_000;
/** Regions looked at for one answer. */
const SCAN_MAX = 100_000;
/** Regions of which something is known; of the others nothing is. */
const KNOWN_MAX = 1 << 20;

export class RegionMachine {
  readonly #known = new Map<number, { readonly subBlocks: number; readonly inRow: number }>();
  readonly #promised = new Map<number, { readonly node: NodeId; readonly untilMs: number }>();

  /** Null: nothing was wanted. */
  step({ from, ask, holders }: RegionEvent, nowMs: number): RegionAnswer | null {
    for (const report of ask.reports) this.#hear(report, ask.regionCount);
    return ask.count === 0 ? null : this.#choose(from, ask, holders, nowMs);
  }

  #hear({ region, free }: RegionReport, regionCount: number): void {
    if (region >= regionCount) return;
    if (free === null) this.#known.delete(region);
    else if (this.#known.has(region) || this.#known.size < KNOWN_MAX) this.#known.set(region, free);
  }

  #choose(from: NodeId, ask: RegionAsk, holders: readonly RegionHolder[], nowMs: number): RegionAnswer {
    const { count, regionCount, first, tried } = ask;
    let held: { readonly region: number; readonly holder: NodeId; readonly free: number } | null = null;
    let at = indexFrom(holders, first);
    for (let i = 0; i < Math.min(regionCount, SCAN_MAX); i++) {
      const region = (first + i) % regionCount;
      if (region === 0) at = 0;
      while (at < holders.length && holders[at]!.end <= region) at++;
      const known = this.#known.get(region);
      if (tried.includes(region) || (known !== undefined && known.inRow < count)) continue;
      const holder = at < holders.length && holders[at]!.first <= region ? holders[at]!.node : null;
      const other = holder ?? this.#promisedTo(region, nowMs) ?? from;
      if (other === from) {
        this.#promised.set(region, { node: from, untilMs: nowMs + PROMISE_MS });
        return { kind: 'free', region };
      }
      const free = known?.subBlocks ?? -1;
      if (held === null || free > held.free) held = { region, holder: other, free };
    }
    return held === null ? { kind: 'full' } : { kind: 'held', region: held.region, holder: held.holder };
  }

  #promisedTo(region: number, nowMs: number): NodeId | null {
    const promise = this.#promised.get(region);
    if (promise === undefined) return null;
    if (nowMs < promise.untilMs) return promise.node;
    this.#promised.delete(region);
    return null;
  }
}

/** The first holder that ends behind the region. */
function indexFrom(holders: readonly RegionHolder[], region: number): number {
  let low = 0;
  let high = holders.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holders[middle]!.end <= region) low = middle + 1;
    else high = middle;
  }
  return low;
}
