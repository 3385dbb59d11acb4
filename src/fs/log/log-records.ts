/**
 * Records of the log, and transactions made of them. A transaction is what is redone wholly or not at all.
 *
 *   transaction  u32 bytes that follow · records
 *   sector       u8 1 · u8 flags (1: full, from zeros; 2: raw, a sector without header, not to be sealed) · u16 NSD · u32 version it was made on · u64 sector · u16 runs
 *                · runs × (u16 offset · u16 length · bytes)
 *   limbo 2, settled 3          u16 n · n × (u16 NSD · u64 sector · u16 sub-blocks)
 *   numbersTaken 4, numbersSettled 5   u64 first · u16 count
 *   orphan 6, orphanSettled 7   u64 inode · u32 generation
 *   reset 8                     u16 transactions, this one the first: with the last of them they are all loose ends there are
 *   shipped 9, arrived 10       u64 sequence · u16 n · n × (u16 NSD · u64 sector · u16 sub-blocks)
 *
 * Little-endian. What was read from a device is believed in nothing: a record that is not exactly one of these ends the log
 * where its transaction begins.
 */
import { FsError } from '../../common/errors.js';
import { inodeNumber, type NsdIndex, nsdIndex } from '../../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { ByteReader, ByteWriter } from '../../protocol/codec.js';
import type { Extent } from '../layout.js';
import { getU16, getU32, getU64 } from '../sector.js';
import { EXTENTS_MAX, type LooseEnd } from './loose-ends.js';
import { applyRuns, type Run, runBounds } from './sector-delta.js';

export interface SectorRecord {
  readonly nsd: NsdIndex;
  readonly sector: number;
  /** The version that the sector has, or will have, on its NSD without this change (L2). */
  readonly base: number;
  /** Begins with a sector of zeros. */
  readonly full: boolean;
  /** A file's bytes: it has no header and is written as it is. */
  readonly raw: boolean;
  readonly runs: readonly Run[];
}
export type LogRecord = { readonly kind: 'sector'; readonly sector: SectorRecord } | LooseEnd;

const KINDS = [
  'sector',
  'limbo',
  'settled',
  'numbersTaken',
  'numbersSettled',
  'orphan',
  'orphanSettled',
  'reset',
  'shipped',
  'arrived',
];
const codeOf = (kind: LogRecord['kind']): number => KINDS.indexOf(kind) + 1;
const SECTOR_CODE = codeOf('sector');
const FULL = 1;
const RAW = 2;
const FLAGS_AT = 1;
const NSD_AT = 2;
const BASE_AT = 4;
const ADDRESS_AT = 8;
const RUN_COUNT_AT = 16;
const SECTOR_HEAD_BYTES = 18;
const RUN_HEAD_BYTES = 4;
/** Of one step: a block and every indirect block above it. With fewer it could come to nothing. */
export const STEP_EXTENTS_MIN = 8;
/** Of one transaction: a bound for what is read, and for what is written at once. */
export const TRANSACTION_BYTES_MAX = 1 << 20;

/**
 * Makes transactions, one after the other, in memory that it keeps: most of what a node does ends in one. What it has been told is forgotten by
 * `finish` and by `clear`.
 */
export class TransactionWriter {
  readonly #writer = new ByteWriter(8192).u32(0);

  get isEmpty(): boolean {
    return this.#writer.lengthBytes === LENGTH_BYTES;
  }
  record(record: LogRecord): void {
    encodeRecord(this.#writer, record);
  }
  /** The runs that `findRuns` has just found, from an image that may be shorter than what they run over: the rest is zeros. */
  runs(head: Omit<SectorRecord, 'runs'>, image: Uint8Array, runCount: number): void {
    const writer = this.#writer;
    writer.u8(codeOf('sector'));
    encodeSectorHead(writer, head, runCount);
    for (let i = 0; i < runCount; i++) {
      const start = runBounds[2 * i]! * 4;
      const end = runBounds[2 * i + 1]! * 4;
      writer.u16(start).u16(end - start);
      const held = Math.max(start, Math.min(end, image.length));
      writer.part(image, start, held);
      if (held < end) writer.zeros(end - held);
    }
  }
  /** @throws {FsError} internal: it is too long, and forgotten. */
  finish(lengthBytesMax = TRANSACTION_BYTES_MAX): Uint8Array {
    const length = this.#writer.lengthBytes - LENGTH_BYTES;
    this.#writer.u32At(0, length);
    const bytes = this.#writer.finish().slice();
    this.clear();
    if (length > lengthBytesMax)
      throw new FsError('internal', { op: 'log.append', detail: `a transaction of ${length} bytes` });
    return bytes;
  }
  clear(): void {
    this.#writer.reset().u32(0);
  }
}
const LENGTH_BYTES = 4;

export function encodeTransaction(records: readonly LogRecord[]): Uint8Array {
  const writer = new TransactionWriter();
  for (const record of records) writer.record(record);
  return writer.finish();
}

function encodeSectorHead(writer: ByteWriter, head: Omit<SectorRecord, 'runs'>, runCount: number): void {
  const { nsd, sector, base, full, raw } = head;
  writer
    .u8((full ? FULL : 0) | (raw ? RAW : 0))
    .u16(nsd)
    .u32(base)
    .u64(sector)
    .u16(runCount);
}

function encodeRecord(writer: ByteWriter, record: LogRecord): void {
  writer.u8(codeOf(record.kind));
  switch (record.kind) {
    case 'sector': {
      const { runs } = record.sector;
      encodeSectorHead(writer, record.sector, runs.length);
      for (const { offsetBytes, bytes } of runs) writer.u16(offsetBytes).u16(bytes.length).raw(bytes);
      break;
    }
    case 'limbo':
    case 'settled':
      encodeExtents(writer, record.kind, null, record.extents);
      break;
    case 'shipped':
    case 'arrived':
      encodeExtents(writer, record.kind, record.sequence, record.extents);
      break;
    case 'numbersTaken':
    case 'numbersSettled':
      writer.u64(record.first).u16(record.count);
      break;
    case 'orphan':
    case 'orphanSettled':
      writer.u64(record.ino).u32(record.generation);
      break;
    case 'reset':
      writer.u16(record.transactions);
      break;
  }
}

/** As many records as it takes; the code of the first one is written. */
function encodeExtents(
  writer: ByteWriter,
  kind: LogRecord['kind'],
  sequence: number | null,
  extents: readonly Extent[],
): void {
  for (let at = 0; at === 0 || at < extents.length; at += EXTENTS_MAX) {
    if (at > 0) writer.u8(codeOf(kind));
    if (sequence !== null) writer.u64(sequence);
    const some = extents.slice(at, at + EXTENTS_MAX);
    writer.u16(some.length);
    for (const { nsd, sector, count } of some) writer.u16(nsd).u64(sector).u16(count);
  }
}

/** Where the records of a transaction go, in their order. */
export interface RecordSink {
  /** A record about a sector, which lies at `at` (`sectorRecordAt`). */
  sector(nsd: NsdIndex, sector: number, at: number): void;
  end(change: LooseEnd): void;
}

/** The records from `from` up to `to`. @throws {FsError} badFrame; the sink has been told of those before it. */
export function readTransaction(bytes: Uint8Array, from: number, to: number, sink: RecordSink): void {
  for (let at = from; at < to; ) {
    if (bytes[at] === SECTOR_CODE) at = readSectorRecord(bytes, at, to, sink);
    else {
      const reader = new ByteReader(bytes.subarray(at, to), 'log transaction');
      sink.end(decodeEnd(reader));
      at = to - reader.remainingBytes;
    }
  }
}

/** The records keep the bytes. @throws {FsError} badFrame */
export function decodeTransaction(body: Uint8Array): LogRecord[] {
  const records: LogRecord[] = [];
  readTransaction(body, 0, body.length, {
    sector: (_nsd, _sector, at) => void records.push({ kind: 'sector', sector: sectorRecordAt(body, at) }),
    end: (change) => void records.push(change),
  });
  return records;
}

const wrong = (detail: string): FsError => new FsError('badFrame', { op: 'log.read', detail });

function decodeEnd(reader: ByteReader): LooseEnd {
  const kind = KINDS[reader.u8() - 1] as LooseEnd['kind'] | undefined;
  switch (kind) {
    case undefined:
      throw wrong('a record of an unknown kind');
    case 'limbo':
    case 'settled':
      return { kind, extents: decodeExtents(reader) };
    case 'shipped':
    case 'arrived':
      return { kind, sequence: reader.u64(), extents: decodeExtents(reader) };
    case 'numbersTaken':
    case 'numbersSettled': {
      const first = inodeNumber(reader.u64());
      const count = reader.u16();
      if (count === 0 || !Number.isSafeInteger(first + count)) throw wrong(`${count} numbers from ${first} on`);
      return { kind, first, count };
    }
    case 'orphan':
    case 'orphanSettled':
      return { kind, ino: inodeNumber(reader.u64()), generation: reader.u32() };
    case 'reset': {
      const transactions = reader.u16();
      if (transactions === 0) throw wrong('loose ends in no transaction');
      return { kind, transactions };
    }
  }
}

/** As it lies in the log: its runs were looked at, and stay where they are. A log that is redone has hundreds of thousands of them. */
class WrittenRecord implements SectorRecord {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly base: number;
  readonly full: boolean;
  readonly raw: boolean;
  readonly #bytes: Uint8Array;
  readonly #at: number;
  readonly #count: number;

  constructor(bytes: Uint8Array, at: number) {
    const flags = bytes[at + FLAGS_AT]!;
    this.full = (flags & FULL) !== 0;
    this.raw = (flags & RAW) !== 0;
    this.nsd = nsdIndex(getU16(bytes, at + NSD_AT));
    this.base = getU32(bytes, at + BASE_AT);
    this.sector = getU64(bytes, at + ADDRESS_AT);
    this.#bytes = bytes;
    this.#at = at + SECTOR_HEAD_BYTES;
    this.#count = getU16(bytes, at + RUN_COUNT_AT);
  }

  get runs(): Run[] {
    const runs: Run[] = [];
    this.#each((offsetBytes, from, end) => runs.push({ offsetBytes, bytes: this.#bytes.subarray(from, end) }));
    return runs;
  }

  applyTo(image: Uint8Array): void {
    const bytes = this.#bytes;
    this.#each((offsetBytes, from, end) => {
      // A view costs more than the few bytes that most runs are.
      if (end - from > SHORT_RUN_BYTES) image.set(bytes.subarray(from, end), offsetBytes);
      else for (let i = from; i < end; i++) image[offsetBytes + i - from] = bytes[i]!;
    });
  }

  #each(use: (offsetBytes: number, from: number, end: number) => void): void {
    const bytes = this.#bytes;
    let at = this.#at;
    for (let i = 0; i < this.#count; i++) {
      const from = at + 4;
      at = from + getU16(bytes, at + 2);
      use(getU16(bytes, from - 4), from, at);
    }
  }
}
const SHORT_RUN_BYTES = 64;

/** One that `readTransaction` has told of; it keeps the bytes. */
export const sectorRecordAt = (bytes: Uint8Array, at: number): SectorRecord => new WrittenRecord(bytes, at);

/** What it says, into the image of the sector before it. */
export function applyRecord(image: Uint8Array, record: SectorRecord): void {
  if (record instanceof WrittenRecord) record.applyTo(image);
  else applyRuns(image, record.runs);
}

/** Where the next record begins. */
function readSectorRecord(bytes: Uint8Array, at: number, to: number, sink: RecordSink): number {
  if (at + SECTOR_HEAD_BYTES > to) throw wrong(`a record of ${to - at} bytes`);
  const flags = bytes[at + FLAGS_AT]!;
  if ((flags & ~(FULL | RAW)) !== 0) throw wrong(`flags ${flags}`);
  const sector = getU64(bytes, at + ADDRESS_AT);
  if (Number.isNaN(sector)) throw wrong('a sector beyond 2^53');
  let next = at + SECTOR_HEAD_BYTES;
  let from = 0;
  for (let left = getU16(bytes, at + RUN_COUNT_AT); left > 0; left--) {
    if (next + RUN_HEAD_BYTES > to) throw wrong(`${left} runs more than there are`);
    const offsetBytes = getU16(bytes, next);
    const length = getU16(bytes, next + 2);
    next += RUN_HEAD_BYTES + length;
    from = offsetBytes >= from ? offsetBytes + length : SECTOR_BYTES + 1;
    if (length === 0 || from > SECTOR_BYTES || next > to) throw wrong(`a run of ${length} bytes at ${offsetBytes}`);
  }
  sink.sector(nsdIndex(getU16(bytes, at + NSD_AT)), sector, at);
  return next;
}

function decodeExtents(reader: ByteReader): Extent[] {
  const count = reader.u16();
  if (count > EXTENTS_MAX) throw wrong(`${count} extents`);
  return Array.from({ length: count }, () => decodeExtent(reader));
}

function decodeExtent(reader: ByteReader): Extent {
  const nsd = nsdIndex(reader.u16());
  const sector = reader.u64();
  const count = reader.u16();
  if (count < 1 || (sector % SUB_BLOCKS_PER_BLOCK) + count > SUB_BLOCKS_PER_BLOCK)
    throw wrong(`an extent of ${count} sub-blocks at ${sector}`);
  return { nsd, sector, count };
}
