/** Gathers what logs say, sector by sector, and what their nodes left unfinished. Pure. */
import type { NsdIndex } from '../../common/ids.js';
import { keyOrder } from './key-order.js';
import type { SectorRecord } from './log-records.js';
import { keyAt, nsdOf, type SectorKey, sectorOf } from './logged-sectors.js';
import { LooseEnds } from './loose-ends.js';
import type { RecordTable } from './record-table.js';

export interface PlannedSector {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly records: readonly SectorRecord[];
}

/** What one log says of sectors: which of its records count, in the order of their keys. */
interface Said {
  readonly table: RecordTable;
  readonly order: Uint32Array;
}

export class RedoPlan {
  readonly #logs: Said[] = [];

  /** One log, from its tail on. Returns what its node left unfinished. */
  add(table: RecordTable): LooseEnds {
    let ends = new LooseEnds();
    /** A snapshot that is being read: it counts when it is complete. */
    let snapshot: { readonly ends: LooseEnds; readonly last: number } | null = null;
    const order = keyOrder(table.keys);
    const limbo = new Limbo(table, order);
    for (const { change, transaction, behind } of table.ends) {
      if (snapshot !== null && snapshot.last < transaction) {
        ends = snapshot.ends;
        snapshot = null;
      }
      if (change.kind === 'reset') snapshot = { ends: new LooseEnds(), last: transaction + change.transactions - 1 };
      (snapshot?.ends ?? ends).apply(change);
      // Nothing names these sub-blocks any more: what was in them is not written again, or free space would not be zeros. A node's own space in limbo is
      // nothing of what other nodes' logs say.
      if (change.kind === 'limbo')
        for (const { nsd, sector, count } of change.extents) limbo.add(keyAt(nsd, sector), count, behind);
    }
    if (snapshot !== null && snapshot.last < table.transactions) ends = snapshot.ends;
    this.#logs.push({ table, order: limbo.rest() });
    return ends;
  }

  /** When all logs have been added. */
  sectors(): PlannedSectors {
    return new PlannedSectors(this.#logs);
  }
}

/** Takes the records out that an extent which came into limbo makes void. */
class Limbo {
  readonly #table: RecordTable;
  readonly #order: Uint32Array;
  #sorted: Float64Array | null = null;
  #void: Uint8Array | null = null;

  constructor(table: RecordTable, order: Uint32Array) {
    this.#table = table;
    this.#order = order;
  }

  /** Those before the record `behind`. */
  add(first: SectorKey, count: number, behind: number): void {
    if (behind === 0) return;
    const order = this.#order;
    const { keys } = this.#table;
    this.#sorted ??= Float64Array.from(order, (index) => keys[index]!);
    for (let at = firstAtLeast(this.#sorted, first); at < order.length && this.#sorted[at]! < first + count; at++) {
      if (order[at]! >= behind) continue;
      this.#void ??= new Uint8Array(order.length);
      this.#void[at] = 1;
    }
  }

  rest(): Uint32Array {
    const isVoid = this.#void;
    return isVoid === null ? this.#order : this.#order.filter((_, at) => isVoid[at] === 0);
  }
}

function firstAtLeast(sorted: Float64Array, key: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! < key) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** By NSD and sector, ascending: neighbours are read and written together. Each is made when it is asked for. */
export class PlannedSectors {
  readonly #tables: readonly RecordTable[];
  /** By key, then by log and in its order: which log, and which of its records. */
  readonly #logs: Uint16Array;
  readonly #records: Uint32Array;
  /** Of each sector: its key, and where its records begin. */
  readonly #keys: Float64Array;
  readonly #starts: Uint32Array;

  constructor(logs: readonly Said[]) {
    this.#tables = logs.map(({ table }) => table);
    const count = logs.reduce((sum, { order }) => sum + order.length, 0);
    let keys = new Float64Array(count);
    let records = new Uint32Array(count);
    let numbers = new Uint16Array(count);
    let filled = 0;
    logs.forEach(({ table, order }, log) => {
      const { keys: from } = table;
      records.set(order, filled);
      numbers.fill(log, filled, filled + order.length);
      for (let i = 0; i < order.length; i++) keys[filled + i] = from[order[i]!]!;
      filled += order.length;
    });
    if (logs.length > 1) {
      const order = keyOrder(keys);
      [keys, records, numbers] = [
        Float64Array.from(order, (at) => keys[at]!),
        Uint32Array.from(order, (at) => records[at]!),
        Uint16Array.from(order, (at) => numbers[at]!),
      ];
    }
    const starts = new Uint32Array(count + 1);
    let sectors = 0;
    for (let at = 0; at < count; at++) {
      const key = keys[at]!;
      if (at > 0 && keys[sectors - 1] === key) continue;
      starts[sectors] = at;
      keys[sectors++] = key;
    }
    starts[sectors] = count;
    this.#records = records;
    this.#logs = numbers;
    this.#keys = keys.subarray(0, sectors);
    this.#starts = starts;
  }

  get length(): number {
    return this.#keys.length;
  }

  /** The NSDs that are named, with their copies as they are named. */
  nsds(): Set<NsdIndex> {
    const found = new Set<NsdIndex>();
    const keys = this.#keys;
    for (let at = 0; at < keys.length; at = firstAtLeast(keys, keyAt(nsdOf(keys[at]!) + 1, 0)))
      found.add(nsdOf(keys[at]!));
    return found;
  }

  at(index: number): PlannedSector {
    const key = this.#keys[index]!;
    const records: SectorRecord[] = [];
    for (let at = this.#starts[index]!; at < this.#starts[index + 1]!; at++)
      records.push(this.#tables[this.#logs[at]!]!.record(this.#records[at]!));
    return { nsd: nsdOf(key), sector: sectorOf(key), records };
  }

  /** Neighbours from there on, so many at most. */
  runFrom(index: number, max: number): PlannedSector[] {
    const run = [this.at(index)];
    const keys = this.#keys;
    for (let at = index + 1; at < keys.length && run.length < max; at++) {
      if (keys[at] !== keys[at - 1]! + 1 || nsdOf(keys[at]!) !== run[0]!.nsd) break;
      run.push(this.at(at));
    }
    return run;
  }
}
