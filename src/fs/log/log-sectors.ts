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
import { FsError } from '../../common/errors.js';
import { SECTOR_BYTES } from '../../common/units.js';
import type { Checksums } from '../../nsd/checksums.js';
import { getI64, getU16, getU32, getU64, Magic, sealSector, setI64, setU16, setU32, setU64 } from '../sector.js';
import { decodeTransaction, type LogRecord, TRANSACTION_BYTES_MAX } from './log-records.js';

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

/** Whether it is this sector of this log. */
export const isLogSector = (sector: Uint8Array, n: number, identity: LogIdentity, checksums: Checksums): boolean =>
  decodeHead(sector, identity, checksums)?.number === n;

export interface ScannedLog {
  /** From the tail on, in order. */
  readonly transactions: readonly (readonly LogRecord[])[];
  /** The first sector behind what was believed, and the tail as the last group says. */
  readonly head: number;
  readonly tail: number;
  /** Why it ends there, when it isn't simply the end. */
  readonly ended: string | null;
  /** There is more behind that end, of groups that were begun after it had been durable: something was lost. */
  readonly hole: string | null;
}

/**
 * Reads a log from sector `from` on, where a group begins. `sectorAt` gives what lies at the place of a sector number, null where the device
 * couldn't say. Believes nothing: the first group that is not whole or not the next one ends the log, and what lies behind it was never
 * acknowledged; so does one that doesn't decode or has a record with a fault, and that is a hole.
 */
export function scanLog(
  from: number,
  capacity: number,
  identity: LogIdentity,
  checksums: Checksums,
  sectorAt: (number: number) => Uint8Array | null,
  faultOf: (record: LogRecord) => string | null = () => null,
): ScannedLog {
  const groups: { first: number; transactions: LogRecord[][] }[] = [];
  let tail = from;
  let at = from;
  let ended: string | null = null;
  let refused: string | null = null;
  const headOf = (number: number): SectorHead | null => {
    const sector = sectorAt(number);
    const head = sector === null ? null : decodeHead(sector, identity, checksums);
    return head !== null && head.number === number ? head : null;
  };
  while (at - from < capacity) {
    const first = headOf(at);
    if (first === null) break;
    if (first.place !== 0 || at + first.sectorCount - from > capacity) {
      ended = `sector ${at} does not begin a group`;
      break;
    }
    const payload: Uint8Array[] = [];
    for (let place = 0; place < first.sectorCount; place++) {
      const head = headOf(at + place);
      if (head === null || head.place !== place || head.sectorCount !== first.sectorCount) break;
      payload.push(sectorAt(at + place)!.subarray(PAYLOAD_AT, PAYLOAD_AT + head.payloadBytes));
    }
    if (payload.length < first.sectorCount) {
      ended = `the group at sector ${at} has a torn end`;
      break;
    }
    const transactions = transactionsOf(payload, faultOf);
    if (typeof transactions === 'string') {
      // Whole, so it was durable: what it said is lost all the same.
      refused = `the group at sector ${at} is refused: ${transactions}`;
      break;
    }
    groups.push({ first: at, transactions });
    tail = Math.max(tail, first.tail);
    at += first.sectorCount;
  }
  return {
    transactions: groups.filter(({ first }) => first >= tail).flatMap((group) => group.transactions),
    head: at,
    tail,
    ended,
    hole: refused ?? holeBehind(at, from + capacity, headOf),
  };
}

/** A group is written when the one before it is durable: one that is there, behind one that is not, says that this one was there. */
function holeBehind(end: number, limit: number, headOf: (number: number) => SectorHead | null): string | null {
  for (let number = end + 1; number < limit; number++) {
    const head = headOf(number);
    if (head !== null && head.number - head.place > end)
      return `sectors ${end} to ${head.number - head.place - 1} are lost`;
  }
  return null;
}

/** Or why not. */
function transactionsOf(
  payload: readonly Uint8Array[],
  faultOf: (record: LogRecord) => string | null,
): LogRecord[][] | string {
  // No Buffer: views of one cost more, and every run of a record is one.
  const bytes = new Uint8Array(payload.reduce((sum, { length }) => sum + length, 0));
  let filled = 0;
  for (const part of payload) {
    bytes.set(part, filled);
    filled += part.length;
  }
  const found: LogRecord[][] = [];
  try {
    for (let at = 0; at < bytes.length; ) {
      if (at + 4 > bytes.length) return 'it is not made of transactions';
      const length = getU32(bytes, at);
      if (length > TRANSACTION_BYTES_MAX || at + 4 + length > bytes.length) return `a transaction of ${length} bytes`;
      const transaction = decodeTransaction(bytes.subarray(at + 4, at + 4 + length));
      for (const record of transaction) {
        const fault = faultOf(record);
        if (fault !== null) return fault;
      }
      found.push(transaction);
      at += 4 + length;
    }
  } catch (error) {
    return (FsError.is(error) && error.detail) || String(error);
  }
  return found;
}
