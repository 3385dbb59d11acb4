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

interface Gathered {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly records: SectorRecord[];
}

export class RedoPlan {
  readonly #sectors = new Map<SectorKey, Gathered>();

  /** One log, from its tail on. Returns what its node left unfinished. */
  add(transactions: Iterable<readonly LogRecord[]>): LooseEnds {
    let ends = new LooseEnds();
    /** A snapshot that is being read: it counts when it is complete. */
    let snapshot: { readonly ends: LooseEnds; left: number } | null = null;
    // A node's own space in limbo is nothing of what other nodes' logs say.
    const own = this.#sectors.size === 0 ? this.#sectors : new Map<SectorKey, Gathered>();
    for (const transaction of transactions) {
      for (const record of transaction) {
        if (record.kind === 'sector') {
          gather(own, record.sector);
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
    if (own !== this.#sectors)
      for (const { records } of own.values()) for (const record of records) gather(this.#sectors, record);
    return ends;
  }

  /** By NSD and sector, ascending: neighbours are read and written together. */
  sectors(): PlannedSector[] {
    const keys = Float64Array.from(this.#sectors.keys()).sort();
    return Array.from(keys, (key) => this.#sectors.get(key)!);
  }
}

function gather(into: Map<SectorKey, Gathered>, record: SectorRecord): void {
  const key = keyOf(record);
  const known = into.get(key);
  if (known === undefined) into.set(key, { nsd: record.nsd, sector: record.sector, records: [record] });
  else known.records.push(record);
}
