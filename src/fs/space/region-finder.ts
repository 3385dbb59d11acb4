/**
 * This node's side of the allocation manager (region-machine.ts): asks it for regions, and tells it what is free in those that were had.
 *
 * Fault model: a manager that doesn't answer is left alone for a while; who needs space looks through the regions itself.
 */
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { type Geometry, regionRange } from '../layout.js';
import type { Volume } from '../volume.js';
import { REPORTS_MAX, type RegionAnswer, type RegionReport, TRIED_MAX } from './shipment.js';

/** How long a manager that was silent is not asked. */
const SILENT_MS = 5_000;

export class RegionFinder {
  readonly #volume: Volume;
  readonly #first: number;
  /** What has still to be told, the newest of each region; bounded. */
  readonly #untold = new Map<number, RegionReport['free']>();
  /** Regions that this node has said have no whole block left. */
  readonly #usedUp = new Set<number>();
  #silentUntilMs = 0;

  constructor(volume: Volume, first: number) {
    this.#volume = volume;
    this.#first = first;
  }

  /** A region that this node doesn't allocate from any more, or never did. */
  left(region: number, free: RegionReport['free']): void {
    this.#usedUp.delete(region);
    this.#untold.delete(region);
    this.#untold.set(region, free);
    if (this.#untold.size > REPORTS_MAX / 2) this.#untold.delete(this.#untold.keys().next().value!);
  }

  /** Something was freed in a region that this node allocates from: worth a word if others believe that there is nothing. */
  moreIn(region: number): void {
    if (this.#usedUp.delete(region)) this.left(region, null);
  }

  /** For the background: others should hear of it before they need it. */
  async tell(held: readonly RegionReport[]): Promise<void> {
    if (this.#untold.size > 0) await this.#ask(0, [], held);
  }

  /**
   * Regions one after the other, as the manager names them, until `attempt` makes something of one. `others`: also those that other nodes hold.
   * *unknown*: it doesn't answer, or doesn't know better; *none*: there is none, or only others hold some.
   */
  async find<T>(
    { count }: { readonly count: number },
    others: boolean,
    held: () => readonly RegionReport[],
    attempt: (region: number) => Promise<T | null>,
  ): Promise<T | 'none' | 'unknown'> {
    const tried: number[] = [];
    while (tried.length < TRIED_MAX) {
      const answer = await this.#ask(count, tried, held());
      if (answer === null) return 'unknown';
      if (answer.kind === 'full' || (answer.kind === 'held' && !others)) return others ? 'unknown' : 'none';
      const found = await attempt(answer.region);
      if (found !== null) return found;
      this.#volume.counters.add('fs.managerWrong');
      tried.push(answer.region);
    }
    return 'unknown';
  }

  async #ask(count: number, tried: readonly number[], held: readonly RegionReport[]): Promise<RegionAnswer | null> {
    const { clock, counters, parts, settings, geometry } = this.#volume;
    if (clock.nowMs() < this.#silentUntilMs) return null;
    const reports = held.slice(0, REPORTS_MAX / 2);
    const told = new Set(reports.map(({ region }) => region));
    for (const [region, free] of this.#untold) if (!told.has(region)) reports.push({ region, free });
    this.#untold.clear();
    for (const { region, free } of reports)
      if (free !== null && free.inRow < SUB_BLOCKS_PER_BLOCK) this.#usedUp.add(region);
      else this.#usedUp.delete(region);
    counters.add('fs.managerAsked');
    const ask = { ...placeOf(geometry), count, first: this.#first, tried, reports };
    const answer = await parts.peers.region(ask, settings.managerTimeoutMs);
    if (answer === null && count > 0) {
      counters.add('fs.managerSilent');
      this.#silentUntilMs = clock.nowMs() + SILENT_MS;
      return null;
    }
    return answer === null || answer.kind === 'full' || answer.region < geometry.regionCount ? answer : null;
  }
}

const placeOf = (geometry: Geometry) => ({
  regionCount: geometry.regionCount,
  regionBytes: regionRange(geometry, 0).end,
});
