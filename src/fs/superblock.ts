/**
 * The superblock: what a node must know to mount. A copy is in data sector 0 of every NSD; the copy with the greatest
 * generation counts. Written by mkfs, and by whatever changes the list of NSDs later.
 *
 * Fault model: any copy may be unreadable, torn or foreign; one good one is enough.
 */
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Checksums } from '../nsd/checksums.js';
import { ByteReader, ByteWriter } from '../protocol/codec.js';
import { type BlockPointer, POINTER_BYTES, pointerFault, readPointer, writePointer } from './block-pointer.js';
import {
  FORMAT_VERSION,
  type Geometry,
  NSD_BLOCKS_MAX,
  NSD_COUNT_MAX,
  REGION_BLOCKS_MAX,
  RESERVED_BLOCKS,
  regionCountFor,
  SEGMENT_COUNT_MAX,
} from './layout.js';
import { corrupt, getI64, getU32, HEADER_BYTES, Magic, sealSector, sectorFault, writeHeader } from './sector.js';

export interface NsdDescription {
  readonly uuid: string;
  /** Blocks of 1 MiB in its data space. */
  readonly blocks: number;
  readonly failureGroup: number;
}

export interface Superblock {
  readonly fsUuid: string;
  readonly name: string;
  readonly formatVersion: number;
  /** Bits that a reader must know, or not use it at all; that a writer must know, or only read; that nobody must know. None of each in format 1. */
  readonly incompatibleFeatures: number;
  readonly readOnlyCompatibleFeatures: number;
  readonly compatibleFeatures: number;
  readonly generation: number;
  readonly birthtimeNs: bigint;
  readonly nsds: readonly NsdDescription[];
  readonly geometry: Geometry;
  /** Where the inode file begins: its first block holds inode 1, which tells the rest. */
  readonly inodeFile: BlockPointer;
}

const FS_NAME_BYTES_MAX = 64;
/** Of each kind, those that this code knows. */
const KNOWN_FEATURES = { incompatible: 0, readOnlyCompatible: 0 };

export function uuidBytes(uuid: string): Uint8Array {
  const hex = uuid.replaceAll('-', '');
  if (!/^[0-9a-fA-F]{32}$/.test(hex)) throw new FsError('invalidArgument', { op: 'uuid', object: uuid });
  return Uint8Array.from(Buffer.from(hex, 'hex'));
}
export function uuidText(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
/** What every metadata sector carries of the file system's UUID. */
export const fsIdOf = (fsUuid: string): bigint => getI64(uuidBytes(fsUuid), 0);

export function encodeSuperblock(superblock: Superblock, checksums: Checksums): Uint8Array {
  const writer = new ByteWriter(SECTOR_BYTES);
  const pointer = new Uint8Array(POINTER_BYTES);
  writePointer(pointer, 0, superblock.inodeFile);
  writer
    .zeros(HEADER_BYTES)
    .raw(uuidBytes(superblock.fsUuid))
    .u32(superblock.formatVersion)
    .u32(superblock.incompatibleFeatures)
    .i64(superblock.birthtimeNs)
    .u32(superblock.geometry.regionBlocks)
    .u32(superblock.geometry.segmentCount)
    .raw(pointer)
    .u8(superblock.geometry.metadataCopies)
    .zeros(3)
    .u32(superblock.readOnlyCompatibleFeatures)
    .u32(superblock.compatibleFeatures)
    .zeros(52)
    .string(superblock.name)
    .u32(superblock.nsds.length);
  for (const nsd of superblock.nsds) writer.raw(uuidBytes(nsd.uuid)).u64(nsd.blocks).u32(nsd.failureGroup);
  const body = writer.finish();
  if (body.length > SECTOR_BYTES)
    throw new FsError('tooLarge', { op: 'superblock', object: superblock.name, detail: 'does not fit a sector' });
  const sector = new Uint8Array(SECTOR_BYTES);
  sector.set(body);
  const fsId = fsIdOf(superblock.fsUuid);
  writeHeader(sector, { magic: Magic.superblock, fsId, owner: 0, index: 0, generation: superblock.generation });
  sealSector(sector, checksums);
  return sector;
}

/** @throws {FsError} corrupt, or wrongFormat when it is a good superblock of a format that this code does not know. */
export function decodeSuperblock(sector: Uint8Array, checksums: Checksums): Superblock {
  const bad = (detail: string): FsError => corrupt('mount', 'superblock', detail);
  if (sector.length !== SECTOR_BYTES) throw bad(`${sector.length} bytes instead of ${SECTOR_BYTES}`);
  const fsId = getI64(sector, 8);
  const fault = sectorFault(sector, { magic: Magic.superblock, fsId, owner: 0, index: 0 }, checksums);
  if (fault !== null) throw bad(fault);
  try {
    return decodeBody(sector, fsId, bad);
  } catch (error) {
    if (FsError.is(error) && (error.reason === 'corrupt' || error.reason === 'wrongFormat')) throw error;
    throw new FsError('corrupt', { op: 'mount', object: 'superblock', detail: 'cannot be decoded', cause: error });
  }
}

function decodeBody(sector: Uint8Array, fsId: bigint, bad: (detail: string) => FsError): Superblock {
  const reader = new ByteReader(sector, 'superblock');
  reader.raw(HEADER_BYTES);
  const uuid = reader.raw(16);
  if (getI64(uuid, 0) !== fsId) throw bad('UUID and header disagree');
  const formatVersion = reader.u32();
  const incompatibleFeatures = reader.u32();
  const wrong = (detail: string): FsError => new FsError('wrongFormat', { op: 'mount', object: 'superblock', detail });
  if (formatVersion !== FORMAT_VERSION)
    throw wrong(`format version ${formatVersion}; this code knows ${FORMAT_VERSION}`);
  const unknown = bitsIn(incompatibleFeatures, KNOWN_FEATURES.incompatible);
  if (unknown !== null) throw wrong(`it has incompatible features that this code does not know: ${unknown}`);
  const birthtimeNs = reader.i64();
  const regionBlocks = reader.u32();
  const segmentCount = reader.u32();
  const inodeFile = readPointer(reader.raw(POINTER_BYTES), 0);
  const metadataCopies = reader.u8();
  const zeros = (length: number): void => {
    if (reader.raw(length).some((byte) => byte !== 0)) throw bad('reserved bytes are not zero');
  };
  zeros(3);
  const readOnlyCompatibleFeatures = reader.u32();
  const compatibleFeatures = reader.u32();
  zeros(52);
  const name = reader.string(FS_NAME_BYTES_MAX);
  const nsdCount = reader.count(NSD_COUNT_MAX);
  const nsds: NsdDescription[] = [];
  for (let i = 0; i < nsdCount; i++)
    nsds.push({ uuid: uuidText(reader.raw(16)), blocks: reader.u64(), failureGroup: reader.u32() });
  zeros(reader.remainingBytes);
  if (nsdCount === 0) throw bad('lists no NSD');
  if (nsds.some((nsd) => nsd.blocks <= RESERVED_BLOCKS || nsd.blocks > NSD_BLOCKS_MAX)) throw bad('an NSD has no room');
  if (regionBlocks < 1 || regionBlocks > REGION_BLOCKS_MAX) throw bad(`${regionBlocks} blocks per region`);
  if (segmentCount < 1 || segmentCount > SEGMENT_COUNT_MAX) throw bad(`${segmentCount} segments`);
  if (metadataCopies !== 1 && metadataCopies !== 2) throw bad(`${metadataCopies} copies of metadata`);
  const nsdBlocks = nsds.map((nsd) => nsd.blocks);
  const regionCount = regionCountFor(nsdBlocks, regionBlocks);
  const failureGroups = nsds.map((nsd) => nsd.failureGroup);
  const geometry: Geometry = {
    nsdCount,
    nsdBlocks,
    regionBlocks,
    regionCount,
    segmentCount,
    failureGroups,
    metadataCopies,
  };
  if (inodeFile === null) throw bad('does not say where the inode file is');
  const fault = pointerFault(inodeFile, geometry);
  if (fault !== null) throw bad(fault);
  const generation = getU32(sector, 32);
  return {
    fsUuid: uuidText(uuid),
    name,
    formatVersion,
    incompatibleFeatures,
    readOnlyCompatibleFeatures,
    compatibleFeatures,
    generation,
    birthtimeNs,
    nsds,
    geometry,
    inodeFile,
  };
}

/** Those that are set and not known, or null. */
function bitsIn(features: number, known: number): string | null {
  const bits = Array.from({ length: 32 }, (_, bit) => bit).filter((bit) => ((features & ~known) >>> bit) & 1);
  if (bits.length === 0) return null;
  return `${bits.length === 1 ? 'bit' : 'bits'} ${bits.join(', ')}`;
}

/** Before anything of the file system is written. @throws {FsError} wrongFormat */
export function checkWritable(superblock: Superblock, op: string): void {
  const unknown = bitsIn(superblock.readOnlyCompatibleFeatures, KNOWN_FEATURES.readOnlyCompatible);
  if (unknown === null) return;
  const detail = `it has features that whoever writes to it must know, and this code does not: ${unknown}`;
  throw new FsError('wrongFormat', { op, object: superblock.name, detail });
}

export function checkFsName(name: string): void {
  const length = Buffer.byteLength(name);
  if (length === 0 || length > FS_NAME_BYTES_MAX)
    throw new FsError('invalidArgument', {
      op: 'mkfs',
      object: name,
      detail: `a name has 1 to ${FS_NAME_BYTES_MAX} bytes`,
    });
}
