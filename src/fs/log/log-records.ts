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
import { getU16 } from '../sector.js';
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
const FULL = 1;
const RAW = 2;
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

/** The records keep the bytes. @throws {FsError} badFrame */
export function decodeTransaction(body: Uint8Array): LogRecord[] {
  const reader = new ByteReader(body, 'log transaction');
  const records: LogRecord[] = [];
  while (reader.remainingBytes > 0) records.push(decodeRecord(reader, body));
  return records;
}

const wrong = (detail: string): FsError => new FsError('badFrame', { op: 'log.read', detail });

function decodeRecord(reader: ByteReader, body: Uint8Array): LogRecord {
  const kind = KINDS[reader.u8() - 1] as LogRecord['kind'] | undefined;
  switch (kind) {
    case undefined:
      throw wrong('a record of an unknown kind');
    case 'sector':
      return { kind, sector: decodeSector(reader, body) };
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
  readonly #bytes: Uint8Array;
  readonly #at: number;
  readonly #count: number;

  constructor(
    readonly nsd: NsdIndex,
    readonly sector: number,
    readonly base: number,
    readonly full: boolean,
    readonly raw: boolean,
    bytes: Uint8Array,
    at: number,
    count: number,
  ) {
    this.#bytes = bytes;
    this.#at = at;
    this.#count = count;
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

/** What it says, into the image of the sector before it. */
export function applyRecord(image: Uint8Array, record: SectorRecord): void {
  if (record instanceof WrittenRecord) record.applyTo(image);
  else applyRuns(image, record.runs);
}

function decodeSector(reader: ByteReader, body: Uint8Array): SectorRecord {
  const flags = reader.u8();
  if ((flags & ~(FULL | RAW)) !== 0) throw wrong(`flags ${flags}`);
  const nsd = nsdIndex(reader.u16());
  const base = reader.u32();
  const sector = reader.u64();
  const count = reader.u16();
  const at = body.length - reader.remainingBytes;
  let from = 0;
  for (let i = 0; i < count; i++) {
    const offsetBytes = reader.u16();
    const length = reader.u16();
    if (length === 0 || offsetBytes < from || offsetBytes + length > SECTOR_BYTES)
      throw wrong(`a run of ${length} bytes at ${offsetBytes}`);
    from = offsetBytes + length;
    reader.skip(length);
  }
  return new WrittenRecord(nsd, sector, base, (flags & FULL) !== 0, (flags & RAW) !== 0, body, at, count);
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
