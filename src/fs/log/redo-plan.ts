/** Gathers what logs say, sector by sector, and what their nodes left unfinished. Pure. */
import type { NsdIndex } from '../../common/ids.js';
import type { LogRecord, SectorRecord } from './log-records.js';
import { keyOf, type SectorKey } from './logged-sectors.js';
import { LooseEnds } from './loose-ends.js';

export interface PlannedSector {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly records: readonly SectorRecord[];
}

export class RedoPlan {
  readonly #sectors = new Map<SectorKey, SectorRecord[]>();

  /** One log, from its tail on. Returns what its node left unfinished. */
  add(transactions: Iterable<readonly LogRecord[]>): LooseEnds {
    let ends = new LooseEnds();
    /** A snapshot that is being read: it counts when it is complete. */
    let snapshot: { readonly ends: LooseEnds; left: number } | null = null;
    const own = new Map<SectorKey, SectorRecord[]>();
    for (const transaction of transactions) {
      for (const record of transaction) {
        if (record.kind === 'sector') {
          const key = keyOf(record.sector);
          const list = own.get(key);
          if (list === undefined) own.set(key, [record.sector]);
          else list.push(record.sector);
          continue;
        }
        if (record.kind === 'reset') snapshot = { ends: new LooseEnds(), left: record.transactions };
        (snapshot?.ends ?? ends).apply(record);
        // Nothing names these sub-blocks any more: what was in them is not written again, or free space would not be zeros.
        if (record.kind === 'limbo')
          for (const { nsd, sector, count } of record.extents)
            for (let at = sector; at < sector + count; at++) own.delete(keyOf({ nsd, sector: at }));
      }
      if (snapshot === null || --snapshot.left > 0) continue;
      ends = snapshot.ends;
      snapshot = null;
    }
    for (const [key, records] of own) {
      const list = this.#sectors.get(key);
      if (list === undefined) this.#sectors.set(key, records);
      else list.push(...records);
    }
    return ends;
  }

  /** By NSD and sector, ascending: neighbours are read and written together. */
  sectors(): PlannedSector[] {
    return [...this.#sectors.entries()]
      .sort(([a], [b]) => a - b)
      .map(([, records]) => ({ nsd: records[0]!.nsd, sector: records[0]!.sector, records }));
  }
}
