import { FsError } from '../common/errors.js';
import { isVersionBefore, nextSectorVersion } from '../common/sector-version.js';
import { SECTOR_BYTES } from '../common/units.js';
import { uuidFromBytes, uuidToBytes } from '../protocol/nsd-messages.js';
import { copyWordsFrom, copyWordsTo } from '../protocol/words.js';
import type { Checksums } from './checksums.js';

/**
 * The NSD on its device, format 1. Everything is little-endian; a sector is 4096 bytes; unnamed bytes are zero and checked.
 *
 *   device sector            holds
 *   0                        header
 *   1 .. C                   checksum area: C checksum sectors, ceil(D / 504)
 *   C+1 .. C+I               intent area: I sectors (intent-layout.ts)
 *   C+I+1 .. C+I+D           data sectors 0 .. D-1
 *   C+I+D+1                  copy of the header
 *
 * Of a device of N whole sectors I = N / 128, from 2 to 128, and of the M = N - 2 - I that are left C = ceil(M / 505), D = M - C.
 *
 *   header                                       checksum sector k (for data sectors 504k .. 504k+503): 8 pieces of 512 bytes
 *   byte  bytes                                  byte  bytes
 *      0  8   magic "HFNSDHDR"                      0  8   entry of data sector 504k + 63p (p: the piece, 0 to 7):
 *      8  4   CRC32C of the sector, this                   u32 CRC32C of its bytes, u32 version word
 *             field as zero                         8  8   entry of data sector 504k + 63p + 1
 *     12  2   format version, 1                     ...
 *     14  2   zero                                504  4   CRC32C of the piece, this field as the first
 *     16  16  UUID of the NSD                              4 bytes of the NSD's UUID
 *     32  16  UUID of its file system,            508  4   number of the piece, 8k + p modulo 2^32
 *             zero = free
 *     48  4   failure group
 *     52  4   sector bytes, 4096
 *     56  8   D, data sectors
 *     64  8   C, checksum sectors
 *     72  8   generation: counted up by every write of the header
 *     80  2   bytes of the cluster's id (0 to 64)
 *     82  2   bytes of the name (0 to 128)
 *     84  4   I, intent sectors
 *     88  64  the cluster's id, UTF-8
 *    152  128 name, UTF-8
 *    280  8   life: counted up by every opening to serve it
 *    288  8   whole since: the first life since which no unflushed write can have been lost between two lives
 *    296  16  UUID of what keeps unflushed writes while this life's server may die (the machine's boot); zero = nothing
 *    312  2   1: this life ended in good order, with everything flushed
 *
 * A checksum sector is written whole, in place. Devices write blocks of 512 bytes whole or not at all, so a torn write leaves each of its
 * pieces as before or as after, and each says for itself whether it can be believed: what is out of date then is only what was
 * being changed. (Two places for each sector, written in turn, would need a third while a flush is under way, and falling back to the
 * older one would take what rotted for what was torn: sectors that were there would read as zeros.)
 *
 * Version word of an entry: bits 0..30 the version, bit 31 set = hole. Version 0 = never written. A sector that was never
 * written or that is a hole reads as zeros, without touching the device; its CRC field is 0. Every write and every discard counts
 * the version up by 1 (2^31-2 is followed by 1), so that a version once named in a log record doesn't come again after a block was
 * freed and reused (L2); a write may also set it, to the present one or a later one (common/sector-version.ts). The word 0xffffffff = lost:
 * the piece was found unreadable, the entry went with it; the sector reads as checksumMismatch until it is written (then from VERSION_AFTER_LOSS on) or discarded.
 * The word 0x7fffffff = the sector checks itself (a log's): no checksum and no version is kept, its CRC field is 0, reads give whatever bytes there
 * are, and writing it anew changes nothing here. Written in another way it goes on from VERSION_AFTER_LOSS.
 *
 * The two headers are written one after the other with a flush between; of two valid ones the higher generation counts.
 * A header or piece that is intact but carries another UUID or number is as bad as a broken one: it was misdirected.
 */
export const ENTRIES_PER_CHECKSUM_SECTOR = 504;
export const NSD_FORMAT_VERSION = 1;
export const CLUSTER_ID_BYTES_MAX = 64;
export const NSD_NAME_BYTES_MAX = 128;
export const INTENT_SECTORS_MIN = 2;
export const INTENT_SECTORS_MAX = 128;
/** Header, one checksum sector, the intents, one data sector, copy. */
export const DEVICE_SECTORS_MIN = 4 + INTENT_SECTORS_MIN;

const HEADER_MAGIC = Buffer.from('HFNSDHDR', 'latin1');
const HEADER_CRC_AT = 8;
const HEADER_END = 314;
const PIECES = 8;
const PIECE_BYTES = 512;
const PIECE_CRC_AT = 504;
const PIECE_NUMBER_AT = 508;
const WORDS_PER_PIECE = PIECE_CRC_AT / 4;

export const HOLE_FLAG = 0x80000000;
export const VERSION_MASK = 0x7fffffff;
export const LOST_WORD = 0xffffffff;
export const SELF_CHECKING_WORD = 0x7fffffff;
/** Later, as serial numbers go, than any version of the first half; see the version word. */
export const VERSION_AFTER_LOSS = 2 ** 30 - 1;

/** What a version word says. */
export const isLost = (word: number): boolean => word === LOST_WORD;
/** Its bytes say themselves whether they are whole. */
export const isSelfChecking = (word: number): boolean => word === SELF_CHECKING_WORD;
/** Never written or discarded: reads as zeros. */
export const readsAsZeros = (word: number): boolean => word === 0 || (word >= HOLE_FLAG && word !== LOST_WORD);
/** What checks itself has none, which is before all. */
export const versionOf = (word: number): number => (isSelfChecking(word) ? 0 : word & VERSION_MASK);
export function nextVersion(word: number): number {
  if (isLost(word) || isSelfChecking(word)) return VERSION_AFTER_LOSS;
  // 2^31-1 is left out as well: as a hole it would be the lost word.
  return nextSectorVersion(versionOf(word));
}
/**
 * Whether a write that names its version may go to the sector: it is not of before the last write. The version of the last write is the
 * same write repeated; that of a hole was taken by the discard. What is lost knows nothing of before, and any write heals it.
 */
export function takesVersion(word: number, version: number): boolean {
  if (isLost(word) || isSelfChecking(word)) return true;
  const present = versionOf(word);
  return readsAsZeros(word) ? isVersionBefore(present, version) : !isVersionBefore(version, present);
}
export const holeWord = (word: number): number => (nextVersion(word) | HOLE_FLAG) >>> 0;

export interface NsdHeader {
  readonly uuid: string;
  /** Null: free for any file system to take. */
  readonly fsUuid: string | null;
  readonly clusterId: string;
  readonly failureGroup: number;
  readonly name: string;
  readonly dataSectorCount: number;
  readonly intentSectorCount: number;
  readonly generation: number;
  /** See the layout: whether what one life has not flushed is there for the next. */
  readonly life: number;
  readonly wholeSince: number;
  readonly keeper: string | null;
  readonly ended: boolean;
}

export interface NsdGeometry {
  readonly checksumSectorCount: number;
  readonly intentSectorCount: number;
  readonly dataSectorCount: number;
  /** Device sector of the first intent sector. */
  readonly intentStart: number;
  /** Device sector of data sector 0. */
  readonly dataStart: number;
  /** Device sector of the header's copy. */
  readonly headerCopy: number;
}

/** Where things are, by what the header says. */
export function geometryOf(header: Pick<NsdHeader, 'dataSectorCount' | 'intentSectorCount'>): NsdGeometry {
  const { dataSectorCount, intentSectorCount } = header;
  const checksumSectorCount = Math.ceil(dataSectorCount / ENTRIES_PER_CHECKSUM_SECTOR);
  const intentStart = 1 + checksumSectorCount;
  const dataStart = intentStart + intentSectorCount;
  const headerCopy = dataStart + dataSectorCount;
  return { checksumSectorCount, intentSectorCount, dataSectorCount, intentStart, dataStart, headerCopy };
}

/** How a device is divided. @throws {FsError} invalidArgument when it is too small. */
export function geometryOfDevice(lengthBytes: number): NsdGeometry {
  const sectors = Math.floor(lengthBytes / SECTOR_BYTES);
  if (sectors < DEVICE_SECTORS_MIN)
    throw new FsError('invalidArgument', {
      op: 'nsd.format',
      detail: `a device of ${lengthBytes} bytes is too small for an NSD`,
    });
  const each = ENTRIES_PER_CHECKSUM_SECTOR + 1;
  let intentSectorCount = Math.min(INTENT_SECTORS_MAX, Math.max(INTENT_SECTORS_MIN, Math.floor(sectors / 128)));
  // One sector over, too few for a checksum sector and what it is for.
  if ((sectors - 2 - intentSectorCount) % each === 1)
    intentSectorCount += intentSectorCount < INTENT_SECTORS_MAX ? 1 : -1;
  const rest = sectors - 2 - intentSectorCount;
  return geometryOf({ dataSectorCount: rest - Math.ceil(rest / each), intentSectorCount });
}

const one = new Uint32Array(1);
/** CRC of the sector at `offsetBytes` with the u32 at `fieldAt` as zero; leaves the bytes as they were. */
export function selfChecksum(checksums: Checksums, bytes: Uint8Array, offsetBytes: number, fieldAt: number): number {
  const field = bytes.slice(offsetBytes + fieldAt, offsetBytes + fieldAt + 4);
  bytes.fill(0, offsetBytes + fieldAt, offsetBytes + fieldAt + 4);
  checksums.sectors(bytes, offsetBytes, 1, one, 0);
  bytes.set(field, offsetBytes + fieldAt);
  return one[0]!;
}

const viewOf = (bytes: Uint8Array, offsetBytes: number): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset + offsetBytes, SECTOR_BYTES);

function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}
/** NaN beyond 2^53: compares unequal to everything, so every check on it fails. */
function getU64(view: DataView, at: number): number {
  const high = view.getUint32(at + 4, true);
  return high > 0x1fffff ? Number.NaN : high * 2 ** 32 + view.getUint32(at, true);
}

/** @throws {FsError} invalidArgument for names that are too long. */
export function encodeHeader(header: NsdHeader, checksums: Checksums, into: Uint8Array, offsetBytes: number): void {
  const clusterId = Buffer.from(header.clusterId, 'utf8');
  const name = Buffer.from(header.name, 'utf8');
  if (clusterId.length > CLUSTER_ID_BYTES_MAX || name.length > NSD_NAME_BYTES_MAX)
    throw new FsError('invalidArgument', {
      op: 'nsd.format',
      object: header.name,
      detail: 'name or cluster id too long',
    });
  const view = viewOf(into, offsetBytes);
  into.fill(0, offsetBytes, offsetBytes + SECTOR_BYTES);
  into.set(HEADER_MAGIC, offsetBytes);
  view.setUint16(12, NSD_FORMAT_VERSION, true);
  into.set(uuidToBytes(header.uuid), offsetBytes + 16);
  if (header.fsUuid !== null) into.set(uuidToBytes(header.fsUuid), offsetBytes + 32);
  view.setUint32(48, header.failureGroup, true);
  view.setUint32(52, SECTOR_BYTES, true);
  setU64(view, 56, header.dataSectorCount);
  setU64(view, 64, geometryOf(header).checksumSectorCount);
  view.setUint32(84, header.intentSectorCount, true);
  setU64(view, 72, header.generation);
  view.setUint16(80, clusterId.length, true);
  view.setUint16(82, name.length, true);
  into.set(clusterId, offsetBytes + 88);
  into.set(name, offsetBytes + 152);
  setU64(view, 280, header.life);
  setU64(view, 288, header.wholeSince);
  if (header.keeper !== null) into.set(uuidToBytes(header.keeper), offsetBytes + 296);
  view.setUint16(312, header.ended ? 1 : 0, true);
  view.setUint32(HEADER_CRC_AT, selfChecksum(checksums, into, offsetBytes, HEADER_CRC_AT), true);
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);

/** What a header sector says, or why it can't be believed. */
export type HeaderVerdict =
  | { readonly ok: true; readonly header: NsdHeader }
  /** foreign: intact, but of a format this version doesn't read. */
  | { readonly ok: false; readonly kind: 'broken' | 'foreign'; readonly why: string };

export function decodeHeader(
  bytes: Uint8Array,
  offsetBytes: number,
  deviceLengthBytes: number,
  checksums: Checksums,
): HeaderVerdict {
  const broken = (why: string): HeaderVerdict => ({ ok: false, kind: 'broken', why });
  const view = viewOf(bytes, offsetBytes);
  const sector = bytes.subarray(offsetBytes, offsetBytes + SECTOR_BYTES);
  if (!HEADER_MAGIC.equals(sector.subarray(0, 8))) return broken('no NSD magic');
  if (view.getUint32(HEADER_CRC_AT, true) !== selfChecksum(checksums, bytes, offsetBytes, HEADER_CRC_AT))
    return broken('checksum of the header is wrong');
  const version = view.getUint16(12, true);
  if (version !== NSD_FORMAT_VERSION) return { ok: false, kind: 'foreign', why: `format version ${version}` };
  const sectorBytes = view.getUint32(52, true);
  if (sectorBytes !== SECTOR_BYTES) return { ok: false, kind: 'foreign', why: `sectors of ${sectorBytes} bytes` };
  const dataSectorCount = getU64(view, 56);
  if (!(dataSectorCount >= 1)) return broken('no data sectors');
  const intentSectorCount = view.getUint32(84, true);
  if (intentSectorCount < INTENT_SECTORS_MIN || intentSectorCount > INTENT_SECTORS_MAX)
    return broken(`an intent area of ${intentSectorCount} sectors`);
  const geometry = geometryOf({ dataSectorCount, intentSectorCount });
  if (getU64(view, 64) !== geometry.checksumSectorCount) return broken('checksum area of another size');
  if (!((geometry.headerCopy + 1) * SECTOR_BYTES <= deviceLengthBytes))
    return broken(`${dataSectorCount} data sectors don't fit on ${deviceLengthBytes} bytes`);
  const generation = getU64(view, 72);
  if (!(generation >= 1)) return broken('generation out of range');
  const clusterIdBytes = view.getUint16(80, true);
  const nameBytes = view.getUint16(82, true);
  if (clusterIdBytes > CLUSTER_ID_BYTES_MAX || nameBytes > NSD_NAME_BYTES_MAX) return broken('name too long');
  if (view.getUint16(14, true) !== 0 || !isZero(sector.subarray(HEADER_END))) return broken('reserved bytes are set');
  const fs = sector.subarray(32, 48);
  const uuid = sector.subarray(16, 32);
  if (isZero(uuid)) return broken('no UUID');
  const keeper = sector.subarray(296, 312);
  const life = getU64(view, 280);
  const wholeSince = getU64(view, 288);
  const ended = view.getUint16(312, true);
  if (!(life >= 0 && wholeSince >= 1 && wholeSince <= life + 1 && ended <= 1)) return broken('lives out of range');
  return {
    ok: true,
    header: {
      uuid: uuidFromBytes(uuid),
      fsUuid: isZero(fs) ? null : uuidFromBytes(fs),
      clusterId: Buffer.from(sector.subarray(88, 88 + clusterIdBytes)).toString('utf8'),
      failureGroup: view.getUint32(48, true),
      name: Buffer.from(sector.subarray(152, 152 + nameBytes)).toString('utf8'),
      dataSectorCount,
      intentSectorCount,
      generation,
      life,
      wholeSince,
      keeper: isZero(keeper) ? null : uuidFromBytes(keeper),
      ended: ended === 1,
    },
  };
}

/** Entries as they lie on the device: crc, version word, crc, version word, … */
export type ChecksumEntries = Uint32Array;
export const newEntries = (): ChecksumEntries => new Uint32Array(ENTRIES_PER_CHECKSUM_SECTOR * 2);

interface ChecksumSectorPlace {
  readonly nsd: Uint8Array;
  /** k: among the checksum sectors. */
  readonly index: number;
}

/** @param place `nsd`: the NSD's UUID, or its first bytes. */
export function encodeChecksumSector(
  place: ChecksumSectorPlace,
  entries: ChecksumEntries,
  checksums: Checksums,
  into: Uint8Array,
  offsetBytes: number,
): void {
  const view = viewOf(into, offsetBytes);
  for (let piece = 0; piece < PIECES; piece++) {
    const at = piece * PIECE_BYTES;
    copyWordsTo(entries.subarray(piece * WORDS_PER_PIECE, (piece + 1) * WORDS_PER_PIECE), into, offsetBytes + at);
    view.setUint32(at + PIECE_NUMBER_AT, pieceNumber(place, piece), true);
    view.setUint32(at + PIECE_CRC_AT, pieceChecksum(place, checksums, into, offsetBytes + at), true);
  }
}

/** Entries of pieces that can't be believed, whatever the reason, are lost; their number is told. */
export function decodeChecksumSector(
  place: ChecksumSectorPlace,
  checksums: Checksums,
  bytes: Uint8Array,
  offsetBytes: number,
): { readonly entries: ChecksumEntries; readonly lostPieces: number } {
  const view = viewOf(bytes, offsetBytes);
  const entries = newEntries();
  let lostPieces = 0;
  for (let piece = 0; piece < PIECES; piece++) {
    const at = piece * PIECE_BYTES;
    const stored = view.getUint32(at + PIECE_CRC_AT, true);
    const good =
      view.getUint32(at + PIECE_NUMBER_AT, true) === pieceNumber(place, piece) &&
      pieceChecksum(place, checksums, bytes, offsetBytes + at) === stored;
    view.setUint32(at + PIECE_CRC_AT, stored, true);
    if (good) entries.set(copyWordsFrom(bytes, offsetBytes + at, WORDS_PER_PIECE), piece * WORDS_PER_PIECE);
    else {
      lostPieces++;
      for (let i = 1; i < WORDS_PER_PIECE; i += 2) entries[piece * WORDS_PER_PIECE + i] = LOST_WORD;
    }
  }
  return { entries, lostPieces };
}

const pieceNumber = ({ index }: ChecksumSectorPlace, piece: number): number => (index * PIECES + piece) % 2 ** 32;
/** Leaves the NSD's bytes in the checksum's field. */
function pieceChecksum(
  place: ChecksumSectorPlace,
  checksums: Checksums,
  bytes: Uint8Array,
  offsetBytes: number,
): number {
  bytes.set(place.nsd.subarray(0, 4), offsetBytes + PIECE_CRC_AT);
  return checksums.bytes(bytes.subarray(offsetBytes, offsetBytes + PIECE_BYTES));
}
