/**
 * Cycles among processes that wait for each other's locks.
 *
 * An owner lives on one node, which knows what it holds and what it waits for, so that no edge needs a server: who waits for a range waits
 * for those who hold what stands against it. What nobody reports waits for nothing. Pure.
 */
import { overlaps } from '../../common/byte-range.js';
import { excludes, type LockOwner, type LockPiece, sameOwner } from './lock-table.js';

export interface PlacedPiece extends LockPiece {
  readonly object: number;
}
export interface OwnerWait extends PlacedPiece {
  readonly opId: number;
  /** On the clock of its node; only to choose a victim. */
  readonly sinceMs: number;
}
/** A process that waits, and what it holds meanwhile. */
export interface OwnerReport {
  readonly owner: LockOwner;
  /** Counted up by its node at every change of what follows. */
  readonly version: number;
  readonly waits: readonly OwnerWait[];
  readonly holds: readonly PlacedPiece[];
}
export interface CycleStep {
  readonly report: OwnerReport;
  readonly wait: OwnerWait;
}

const standsAgainst = (held: PlacedPiece, wait: OwnerWait): boolean =>
  held.object === wait.object && excludes(held.type, wait.type) && overlaps(held, wait);

/** A cycle through this owner, or null. */
export function findCycle(reports: readonly OwnerReport[], from: OwnerReport): CycleStep[] | null {
  const seen = new Set<OwnerReport>([from]);
  const path: CycleStep[] = [];
  const visit = (report: OwnerReport): boolean => {
    for (const wait of report.waits) {
      for (const other of reports) {
        if (sameOwner(other.owner, report.owner) || !other.holds.some((held) => standsAgainst(held, wait))) continue;
        path.push({ report, wait });
        if (other === from) return true;
        if (!seen.has(other)) {
          seen.add(other);
          if (visit(other)) return true;
        }
        path.pop();
      }
    }
    return false;
  };
  return visit(from) ? path : null;
}

/** Whoever began to wait last, as on Linux; whoever looks chooses the same. */
export function victimOf(cycle: readonly CycleStep[]): CycleStep {
  const later = (a: CycleStep, b: CycleStep): number =>
    a.wait.sinceMs - b.wait.sinceMs || a.report.owner.node - b.report.owner.node || a.wait.opId - b.wait.opId;
  return cycle.reduce((latest, step) => (later(step, latest) > 0 ? step : latest));
}

interface Check {
  readonly checkId: number;
  readonly cycle: readonly CycleStep[];
  readonly pending: Set<OwnerReport>;
}
export type DetectorEffect =
  | { readonly type: 'confirm'; readonly checkId: number; readonly owner: LockOwner; readonly version: number }
  | { readonly type: 'victim'; readonly owner: LockOwner; readonly version: number; readonly opId: number };

/**
 * The reports of all nodes, and the search. A cycle found in reports may never have been: they are of different moments. So each owner's
 * node is asked whether its report still holds. When all say yes, every one of them was true between the last report and the first
 * question, all at once: the owners wait for each other, and will for ever. Cycles are checked one at a time, so that two through one
 * owner don't cost two victims.
 */
export class DeadlockDetector {
  readonly #reports: OwnerReport[] = [];
  #toSearch: OwnerReport[] = [];
  #check: Check | null = null;
  #lastCheckId = 0;
  #effects: DetectorEffect[] = [];

  get size(): number {
    return this.#reports.length;
  }

  report(report: OwnerReport): DetectorEffect[] {
    this.#forget(report.owner);
    if (report.waits.length > 0) {
      this.#reports.push(report);
      this.#toSearch.push(report);
    }
    return this.#search();
  }

  dropWhere(drops: (owner: LockOwner) => boolean): DetectorEffect[] {
    for (const report of this.#reports.slice()) if (drops(report.owner)) this.#forget(report.owner);
    return this.#search();
  }

  confirmed(checkId: number, owner: LockOwner, holds: boolean): DetectorEffect[] {
    const check = this.#check;
    if (check?.checkId !== checkId) return [];
    const step = check.cycle.find(({ report }) => sameOwner(report.owner, owner));
    if (step === undefined) return [];
    if (!holds) {
      // Its node has told what is true instead, or the wait is over.
      this.#check = null;
      this.#forget(owner);
      this.#again(check);
      return this.#search();
    }
    check.pending.delete(step.report);
    if (check.pending.size > 0) return [];
    const victim = victimOf(check.cycle);
    this.#check = null;
    this.#forget(victim.report.owner);
    this.#again(check);
    const { owner: dies, version } = victim.report;
    this.#effects.push({ type: 'victim', owner: dies, version, opId: victim.wait.opId });
    return this.#search();
  }

  /** The others of a check may be in other cycles. */
  #again({ cycle }: Check): void {
    for (const { report } of cycle) if (this.#reports.includes(report)) this.#toSearch.push(report);
  }

  #forget(owner: LockOwner): void {
    const at = this.#reports.findIndex((report) => sameOwner(report.owner, owner));
    if (at < 0) return;
    const [gone] = this.#reports.splice(at, 1);
    this.#toSearch = this.#toSearch.filter((report) => report !== gone);
    const check = this.#check;
    if (check?.cycle.some(({ report }) => report === gone)) {
      this.#check = null;
      this.#again(check);
    }
  }

  #search(): DetectorEffect[] {
    while (this.#check === null && this.#toSearch.length > 0) {
      const cycle = findCycle(this.#reports, this.#toSearch.pop()!);
      if (cycle === null) continue;
      const checkId = ++this.#lastCheckId;
      this.#check = { checkId, cycle, pending: new Set(cycle.map(({ report }) => report)) };
      for (const { report } of cycle)
        this.#effects.push({ type: 'confirm', checkId, owner: report.owner, version: report.version });
    }
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }
}
