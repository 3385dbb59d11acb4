/**
 * The transactions of a log that was read, in the memory that they were read into, with a few numbers for each record and no object: a full log has hundreds
 * of thousands, and nearly all are looked at once, when the sector that they are about is redone.
 *
 * Invariant: what is in the table was looked at, record by record, and can be there (record-bounds.ts).
 */
import { invariant } from '../../common/assert.js';
import { FsError } from '../../common/errors.js';
import type { NsdIndex } from '../../common/ids.js';
import type { Geometry } from '../layout.js';
import { getU32 } from '../sector.js';
import {
  encodeTransaction,
  type LogRecord,
  type RecordSink,
  readTransaction,
  type SectorRecord,
  sectorRecordAt,
  TRANSACTION_BYTES_MAX,
} from './log-records.js';
import { keyAt } from './logged-sectors.js';
import type { LooseEnd } from './loose-ends.js';
import { endFault, sectorFault } from './record-bounds.js';

/** A change of the loose ends, and its place among the records. */
export interface LoggedEnd {
  readonly change: LooseEnd;
  readonly transaction: number;
  /** Records about sectors before it. */
  readonly behind: number;
}

/** How far it was filled. */
export interface TableMark {
  readonly bytes: number;
  readonly records: number;
  readonly ends: number;
  readonly transactions: number;
}

export class RecordTable implements RecordSink {
  readonly #geometry: Geometry | null;
  readonly #bytes: Uint8Array;
  #filled = 0;
  #keys = new Float64Array(64);
  #places = new Uint32Array(64);
  #length = 0;
  #ends: LoggedEnd[] = [];
  #transactions = 0;
  #fault: string | null = null;

  /** `geometry`: what records may name; null: anything. */
  constructor(capacityBytes: number, geometry: Geometry | null = null) {
    // No Buffer: views of one cost more. Pages of it that are never filled are never there.
    this.#bytes = new Uint8Array(capacityBytes);
    this.#geometry = geometry;
  }

  static of(transactions: readonly (readonly LogRecord[])[]): RecordTable {
    const encoded = transactions.map((records) => encodeTransaction(records));
    const table = new RecordTable(encoded.reduce((sum, { length }) => sum + length, 0));
    for (const bytes of encoded) table.fill(bytes);
    const why = table.addFilled(0);
    invariant(why === null, `records that are not records: ${why}`);
    return table;
  }

  get transactions(): number {
    return this.#transactions;
  }
  /** Records about sectors. */
  get length(): number {
    return this.#length;
  }
  /** Of the records about sectors, in their order. */
  get keys(): Float64Array {
    return this.#keys.subarray(0, this.#length);
  }
  get ends(): readonly LoggedEnd[] {
    return this.#ends;
  }
  record(index: number): SectorRecord {
    return sectorRecordAt(this.#bytes, this.#places[index]!);
  }

  get mark(): TableMark {
    return {
      bytes: this.#filled,
      records: this.#length,
      ends: this.#ends.length,
      transactions: this.#transactions,
    };
  }
  /** As if nothing had come since. */
  backTo(mark: TableMark): void {
    this.#filled = mark.bytes;
    this.#length = mark.records;
    this.#ends.length = mark.ends;
    this.#transactions = mark.transactions;
  }
  /** As if it had begun here. */
  beginAt(mark: TableMark): void {
    this.#keys.copyWithin(0, mark.records, this.#length);
    this.#places.copyWithin(0, mark.records, this.#length);
    this.#length -= mark.records;
    this.#ends = this.#ends.slice(mark.ends).map(({ change, transaction, behind }) => ({
      change,
      transaction: transaction - mark.transactions,
      behind: behind - mark.records,
    }));
    this.#transactions -= mark.transactions;
  }

  /** Bytes of transactions, one behind the other. */
  fill(bytes: Uint8Array): void {
    this.#bytes.set(bytes, this.#filled);
    this.#filled += bytes.length;
  }

  /** The transactions that were filled in from there on; or why not: then some of them may have been added. */
  addFilled(from: number): string | null {
    const bytes = this.#bytes;
    const end = this.#filled;
    this.#fault = null;
    try {
      for (let at = from; at < end; ) {
        if (at + 4 > end) return 'it is not made of transactions';
        const length = getU32(bytes, at);
        at += 4;
        if (length > TRANSACTION_BYTES_MAX || at + length > end) return `a transaction of ${length} bytes`;
        readTransaction(bytes, at, at + length, this);
        if (this.#fault !== null) return this.#fault;
        this.#transactions++;
        at += length;
      }
    } catch (error) {
      return (FsError.is(error) && error.detail) || String(error);
    }
    return null;
  }

  sector(nsd: NsdIndex, sector: number, at: number): void {
    if (this.#geometry !== null) this.#fault ??= sectorFault(nsd, sector, this.#geometry);
    const index = this.#length++;
    if (index === this.#keys.length) {
      this.#keys = grown(this.#keys, new Float64Array(2 * index));
      this.#places = grown(this.#places, new Uint32Array(2 * index));
    }
    this.#keys[index] = keyAt(nsd, sector);
    this.#places[index] = at;
  }

  end(change: LooseEnd): void {
    if (this.#geometry !== null) this.#fault ??= endFault(change, this.#geometry);
    this.#ends.push({ change, transaction: this.#transactions, behind: this.#length });
  }
}

function grown<T extends Float64Array | Uint32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}
