/**
 * Sectors of the log on its device.
 *
 * A *group* is what is written at once: transactions one behind the other, cut into payloads. Sector n of the log (counted from its
 * beginning, never from 0 again) lies at place n mod capacity. Every sector says which group it is of, so that a group of which a sector
 * didn't reach the device is seen to be incomplete.
 *
 *   0 u32 magic HLG1 · 4 u32 CRC32C, this field as zero · 8 i64 file system · 16 u32 slot · 20 u32 generation of the log
 *   24 u64 n · 32 u16 place in the group · 34 u16 sectors of the group · 36 u32 payload bytes
 *   40 u64 tail: the sector from which on recovery needs the log, when the group was written · 48 zeros · 64 payload
 */
import { SECTOR_BYTES } from '../../common/units.js';
import type { Checksums } from '../../nsd/checksums.js';
import type { Geometry } from '../layout.js';
import { getI64, getU16, getU32, getU64, Magic, sealSector, setI64, setU16, setU32, setU64 } from '../sector.js';
import { RecordTable, type TableMark } from './record-table.js';

const PAYLOAD_AT = 64;
export const PAYLOAD_BYTES = SECTOR_BYTES - PAYLOAD_AT;

export interface LogIdentity {
  readonly fsId: bigint;
  readonly slot: number;
  /** Another one at every claim: what an earlier owner wrote is told from what the present one did. */
  readonly generation: number;
}

export interface LogGroup {
  /** Number of its first sector. */
  readonly first: number;
  readonly sectorCount: number;
  readonly tail: number;
  readonly transactions: readonly Uint8Array[];
}

export const sectorsFor = (payloadBytes: number): number => Math.ceil(payloadBytes / PAYLOAD_BYTES);

/** Into `memory`, of exactly the group's sectors, sealed. */
export function encodeGroup(group: LogGroup, identity: LogIdentity, checksums: Checksums, memory: Uint8Array): void {
  memory.fill(0, 0, group.sectorCount * SECTOR_BYTES);
  let left = 0;
  for (const transaction of group.transactions) left += transaction.length;
  let index = 0;
  let at = 0;
  for (let place = 0; place < group.sectorCount; place++) {
    const sector = memory.subarray(place * SECTOR_BYTES, (place + 1) * SECTOR_BYTES);
    const payload = Math.min(left, PAYLOAD_BYTES);
    left -= payload;
    setU32(sector, 0, Magic.log);
    setI64(sector, 8, BigInt.asIntN(64, identity.fsId));
    setU32(sector, 16, identity.slot);
    setU32(sector, 20, identity.generation);
    setU64(sector, 24, group.first + place);
    setU16(sector, 32, place);
    setU16(sector, 34, group.sectorCount);
    setU32(sector, 36, payload);
    setU64(sector, 40, group.tail);
    for (let done = 0; done < payload; ) {
      const transaction = group.transactions[index]!;
      const part = transaction.subarray(at, at + payload - done);
      sector.set(part, PAYLOAD_AT + done);
      done += part.length;
      at += part.length;
      if (at < transaction.length) continue;
      index++;
      at = 0;
    }
    sealSector(sector, checksums);
  }
}

interface SectorHead {
  readonly number: number;
  readonly place: number;
  readonly sectorCount: number;
  readonly payloadBytes: number;
  readonly tail: number;
}

/** Null: not a sector of this log in this generation. */
function decodeHead(sector: Uint8Array, identity: LogIdentity, checksums: Checksums): SectorHead | null {
  if (getU32(sector, 0) !== Magic.log) return null;
  if (getI64(sector, 8) !== BigInt.asIntN(64, identity.fsId)) return null;
  if (getU32(sector, 16) !== identity.slot || getU32(sector, 20) !== identity.generation) return null;
  const head = {
    number: getU64(sector, 24),
    place: getU16(sector, 32),
    sectorCount: getU16(sector, 34),
    payloadBytes: getU32(sector, 36),
    tail: getU64(sector, 40),
  };
  if (!(head.place < head.sectorCount && head.payloadBytes <= PAYLOAD_BYTES)) return null;
  if (!(head.number >= head.place && head.tail <= head.number)) return null;
  const said = getU32(sector, 4);
  sealSector(sector, checksums);
  const isGood = getU32(sector, 4) === said;
  setU32(sector, 4, said);
  return isGood ? head : null;
}

/** A log's descriptor is durable before anything is logged in its generation: one of an earlier generation than what is there is out of date. */
function laterLife(sector: Uint8Array, identity: LogIdentity, checksums: Checksums): string | null {
  const generation = getU32(sector, 20);
  if (getU32(sector, 0) !== Magic.log || generation <= identity.generation) return null;
  const head = decodeHead(sector, { ...identity, generation }, checksums);
  return head === null
    ? null
    : `sector ${head.number} is of generation ${generation}, its descriptor of ${identity.generation}`;
}

/** Whether it is this sector of this log. */
export const isLogSector = (sector: Uint8Array, n: number, identity: LogIdentity, checksums: Checksums): boolean =>
  decodeHead(sector, identity, checksums)?.number === n;

export interface ScannedLog {
  /** From the tail on, in order. */
  readonly records: RecordTable;
  /** The first sector behind what was believed, and the tail as the last group says. */
  readonly head: number;
  readonly tail: number;
  /** Why it ends there, when it isn't simply the end. */
  readonly ended: string | null;
  /** There is more behind that end, of groups that were begun after it had been durable: something was lost. */
  readonly hole: string | null;
  /** Something in it is of a later generation: its descriptor is out of date, or this was read while others went on with the log. */
  readonly later: string | null;
  /** Sectors from tail to head that are not the same on every copy, or not there. */
  readonly uneven: readonly number[];
}

export interface LogScanParts {
  /** The sector that a group begins with. */
  readonly from: number;
  readonly capacity: number;
  readonly identity: LogIdentity;
  readonly checksums: Checksums;
  /** What records may name; null: anything. */
  readonly geometry: Geometry | null;
}

/**
 * Reads a log, sector after sector, each place of it once. Believes nothing: the first group that is not whole or not the next one ends the log, and what lies
 * behind it was never acknowledged; so does one that doesn't decode or has a record that can't be, and that is a hole.
 */
export class LogScan {
  readonly #parts: LogScanParts;
  readonly #records: RecordTable;
  /** Groups that are whole: their first sectors, and what was there before them. */
  readonly #groups: { readonly first: number; readonly mark: TableMark }[] = [];
  readonly #uneven: number[] = [];
  #next: number;
  /** The first sector behind what is believed. */
  #head: number;
  #tail: number;
  #group: { readonly mark: TableMark; readonly sectorCount: number; tail: number } | null = null;
  #over = false;
  #ended: string | null = null;
  #hole: string | null = null;
  #later: string | null = null;

  constructor(parts: LogScanParts) {
    this.#parts = parts;
    this.#next = parts.from;
    this.#head = parts.from;
    this.#tail = parts.from;
    this.#records = new RecordTable(parts.capacity * PAYLOAD_BYTES, parts.geometry);
  }

  /** The next sector, as each copy has it: the first of them that is it counts. Null: one couldn't say. The memory is the caller's again. */
  take(copies: readonly (Uint8Array | null)[]): void {
    const n = this.#next++;
    const { identity, checksums } = this.#parts;
    let head: SectorHead | null = null;
    let bytes: Uint8Array | null = null;
    let isUneven = false;
    for (const sector of copies) {
      const found = sector === null ? null : decodeHead(sector, identity, checksums);
      if (found === null && sector !== null) this.#later ??= laterLife(sector, identity, checksums);
      if (found?.number !== n) isUneven = true;
      else if (head === null) [head, bytes] = [found, sector];
    }
    if (isUneven && copies.length > 1) this.#uneven.push(n);
    if (!this.#over) this.#scan(n, head, bytes);
    // A group is written when the one before it is durable: one that is there, behind one that is not, says that this one was there.
    if (this.#over && this.#hole === null && head !== null && n - head.place > this.#head)
      this.#hole = `sectors ${this.#head} to ${n - head.place - 1} are lost`;
  }

  #scan(n: number, head: SectorHead | null, bytes: Uint8Array | null): void {
    if (this.#group === null) {
      if (head === null) this.#end(null);
      else if (head.place !== 0 || n + head.sectorCount - this.#parts.from > this.#parts.capacity)
        this.#end(`sector ${n} does not begin a group`);
      else this.#group = { mark: this.#records.mark, sectorCount: head.sectorCount, tail: head.tail };
    }
    const group = this.#group;
    if (group === null) return;
    const place = n - this.#head;
    if (head === null || head.place !== place || head.sectorCount !== group.sectorCount) {
      this.#records.backTo(group.mark);
      this.#end(`the group at sector ${this.#head} has a torn end`);
      return;
    }
    this.#records.fill(bytes!.subarray(PAYLOAD_AT, PAYLOAD_AT + head.payloadBytes));
    if (place + 1 === group.sectorCount) this.#groupEnds(group);
  }

  #groupEnds({ mark, sectorCount, tail }: { mark: TableMark; sectorCount: number; tail: number }): void {
    const why = this.#records.addFilled(mark.bytes);
    this.#group = null;
    if (why !== null) {
      // Whole, so it was durable: what it said is lost all the same.
      this.#records.backTo(mark);
      this.#hole = `the group at sector ${this.#head} is refused: ${why}`;
      this.#end(null);
      return;
    }
    this.#groups.push({ first: this.#head, mark });
    this.#tail = Math.max(this.#tail, tail);
    this.#head += sectorCount;
  }

  #end(why: string | null): void {
    this.#over = true;
    this.#group = null;
    this.#ended = why;
  }

  /** When all have been taken. */
  finish(): ScannedLog {
    const [head, tail] = [this.#head, this.#tail];
    const first = this.#groups.find((group) => group.first >= tail);
    this.#records.beginAt(first?.mark ?? this.#records.mark);
    const uneven = this.#uneven.filter((n) => n >= tail && n < head);
    return { records: this.#records, head, tail, ended: this.#ended, hole: this.#hole, later: this.#later, uneven };
  }
}
