/**
 * The header every metadata sector starts with, its sealing and its verification.
 *
 * Invariant: a sector on a device is either zeros (never written, or discarded) or sealed: magic, file system, owner, index
 * and CRC32C agree. Sealing happens just before write-out, so in memory the CRC field is not kept current.
 * Fault model: a sector may hold anything at all; what does not verify is reported as `corrupt`, by name, never used.
 */
import { invariant } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Checksums } from '../nsd/checksums.js';

export const HEADER_BYTES = 40;

/** ASCII, little-endian on the device. */
export const Magic = {
  superblock: 0x31535748, // HWS1
  inode: 0x31495748, // HWI1
  indirect: 0x31505748, // HWP1
  leaf: 0x31445748, // HWD1
  region: 0x31415748, // HWA1
  segment: 0x31535348, // HSS1
  xattrs: 0x31585748, // HWX1
  log: 0x31474c48, // HLG1
  logTable: 0x31544c48, // HLT1
} as const;
export type Magic = (typeof Magic)[keyof typeof Magic];

export interface SectorIdentity {
  readonly magic: Magic;
  /** First 8 bytes of the file system's UUID. */
  readonly fsId: bigint;
  /** The inode (or structure) that it belongs to. */
  readonly owner: number;
  /** Its place in the owner: leaf, region sector, segment, first block of an indirect block. */
  readonly index: number;
  readonly generation: number;
}

/** One view per buffer: making a DataView per sector would cost more than what is read through it. */
const views = new WeakMap<ArrayBufferLike, DataView>();
function viewOf(bytes: Uint8Array): DataView {
  let view = views.get(bytes.buffer);
  if (view === undefined) {
    view = new DataView(bytes.buffer);
    views.set(bytes.buffer, view);
  }
  return view;
}

export function getU16(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}
export function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}
export function getU32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}
export function setU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}
/** A safe integer, or NaN when the stored value is beyond 2^53: callers compare, and NaN equals nothing. */
export function getU64(bytes: Uint8Array, at: number): number {
  const high = getU32(bytes, at + 4);
  return high > 0x1fffff ? Number.NaN : high * 2 ** 32 + getU32(bytes, at);
}
export function setU64(bytes: Uint8Array, at: number, value: number): void {
  invariant(value >= 0 && value <= Number.MAX_SAFE_INTEGER, 'what is stored can be read again');
  setU32(bytes, at, value % 2 ** 32);
  setU32(bytes, at + 4, Math.floor(value / 2 ** 32));
}
export function getI64(bytes: Uint8Array, at: number): bigint {
  return viewOf(bytes).getBigInt64(bytes.byteOffset + at, true);
}
export function setI64(bytes: Uint8Array, at: number, value: bigint): void {
  viewOf(bytes).setBigInt64(bytes.byteOffset + at, value, true);
}

export function writeHeader(sector: Uint8Array, identity: SectorIdentity): void {
  setU32(sector, 0, identity.magic);
  setU32(sector, 4, 0);
  setI64(sector, 8, BigInt.asIntN(64, identity.fsId));
  setU64(sector, 16, identity.owner);
  setU64(sector, 24, identity.index);
  setU32(sector, 32, identity.generation);
  setU32(sector, 36, 0);
}

const one = new Uint32Array(1);
function crcOf(sector: Uint8Array, checksums: Checksums): number {
  checksums.sectors(sector, 0, 1, one, 0);
  return one[0]!;
}

/** Computes and stores the CRC; the sector must not change until it has been written. */
export function sealSector(sector: Uint8Array, checksums: Checksums): void {
  setU32(sector, 4, 0);
  setU32(sector, 4, crcOf(sector, checksums));
}

/** The same of many, one behind the other, in one pass. Those that are not to be sealed stay as they are. */
export function sealSectors(bytes: Uint8Array, checksums: Checksums, isSealed: (index: number) => boolean): void {
  const count = bytes.length / SECTOR_BYTES;
  for (let i = 0; i < count; i++) if (isSealed(i)) setU32(bytes, i * SECTOR_BYTES + 4, 0);
  const crcs = new Uint32Array(count);
  checksums.sectors(bytes, 0, count, crcs, 0);
  for (let i = 0; i < count; i++) if (isSealed(i)) setU32(bytes, i * SECTOR_BYTES + 4, crcs[i]!);
}

const ZEROS = Buffer.alloc(SECTOR_BYTES);

export function isZero(sector: Uint8Array): boolean {
  // The first word is the magic: nearly every sector that is not is decided there.
  return getU32(sector, 0) === 0 && ZEROS.equals(sector);
}

/** Why a sector is not what it should be, or null. Leaves the sector as it was. */
export function sectorFault(
  sector: Uint8Array,
  expected: Omit<SectorIdentity, 'generation'>,
  checksums: Checksums,
): string | null {
  if (sector.length !== SECTOR_BYTES) return `${sector.length} bytes instead of ${SECTOR_BYTES}`;
  const magic = getU32(sector, 0);
  if (magic !== expected.magic) return `magic ${magic.toString(16)} instead of ${expected.magic.toString(16)}`;
  const crc = getU32(sector, 4);
  setU32(sector, 4, 0);
  const computed = crcOf(sector, checksums);
  setU32(sector, 4, crc);
  if (crc !== computed) return `CRC32C ${crc.toString(16)} instead of ${computed.toString(16)}`;
  if (getI64(sector, 8) !== BigInt.asIntN(64, expected.fsId)) return 'belongs to another file system';
  const owner = getU64(sector, 16);
  if (owner !== expected.owner) return `belongs to ${owner} instead of ${expected.owner}`;
  const index = getU64(sector, 24);
  if (index !== expected.index) return `is number ${index} instead of ${expected.index}`;
  if (getU32(sector, 36) !== 0) return 'reserved bytes of its header are not zero';
  return null;
}

export const corrupt = (op: string, object: string, detail: string): FsError =>
  new FsError('corrupt', { op, object, detail });
