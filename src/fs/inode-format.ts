/**
 * An inode on the device: one sector of the inode file. Fixed fields, room for extended attributes, then the area: inline data
 * (short files, symbolic links) or block pointers.
 *
 * Fault model: a sector may hold anything; `decodeInode` believes nothing that it can check, and says what is wrong.
 */
import type { InodeNumber } from '../common/ids.js';
import { inodeNumber } from '../common/ids.js';
import { RANGE_END, SECTOR_BYTES, SUB_BLOCK_BYTES } from '../common/units.js';
import type { Checksums } from '../nsd/checksums.js';
import { POINTER_BYTES, pointersFault } from './block-pointer.js';
import { FileType } from './file-system-api.js';
import type { Geometry } from './layout.js';
import {
  corrupt,
  getI64,
  getU16,
  getU32,
  getU64,
  isZero,
  Magic,
  sectorFault,
  setI64,
  setU16,
  setU32,
  setU64,
  writeHeader,
} from './sector.js';
import { KEPT_AT, KEPT_BYTES, keptFault } from './xattr-format.js';

/** Behind the fields. */
export const FIELDS_END = 144;
/** Where the area begins; bytes 256 to 639 are kept for extended attributes. */
export const AREA_AT = 640;
export const AREA_BYTES = SECTOR_BYTES - AREA_AT;
export const AREA_POINTERS = AREA_BYTES / POINTER_BYTES;
/** The last five pointers of the area lead to indirect blocks of one to five levels. */
export const INDIRECT_LEVELS = 5;
export const DIRECT_POINTERS = AREA_POINTERS - INDIRECT_LEVELS;
/** Greatest depth of a directory's hash table: 2^24 leaves, some 10^9 entries. */
export const DIRECTORY_DEPTH_MAX = 24;

/** More than the longest file and its indirect blocks have. */
export const ALLOCATED_SUB_BLOCKS_MAX = 2 * (RANGE_END / SUB_BLOCK_BYTES);

export const InodeFlag = {
  /** The area holds the file's bytes (or a link's target), not pointers. */
  inline: 1,
  /** Space behind the end was asked for, and stays when the file is closed. */
  keepsSpace: 2,
  /** Read and written through the node that owns it; a directory passes it on. */
  sharedWrite: 4,
} as const;
export const KNOWN_FLAGS = InodeFlag.inline | InodeFlag.keepsSpace | InodeFlag.sharedWrite;

/** Type of an inode that is not in use; the others are FileType. */
export const FREE_INODE = 0;

/** Everything that is stored of an inode, in memory. */
export interface InodeFields {
  /** 0: free. */
  type: FileType | typeof FREE_INODE;
  mode: number;
  uid: number;
  gid: number;
  nlink: number;
  sizeBytes: number;
  atimeNs: bigint;
  mtimeNs: bigint;
  ctimeNs: bigint;
  birthtimeNs: bigint;
  rdev: number;
  flags: number;
  placementClass: number;
  /** Raised at each reuse of the number. */
  generation: number;
  /** Sub-blocks of data and of indirect blocks. */
  allocatedSubBlocks: number;
  /** Directories: the directory that it is in; the root is its own. */
  parent: InodeNumber;
  directoryDepth: number;
  directorySeed: number;
  directoryEntries: number;
  /** Whom a quota will count it for, beyond uid and gid. */
  projectId: number;
  /** Allocated bytes behind the size are zeros, but for what a node left there that died in this epoch or later. */
  tailEpoch: number;
  /** Extended attributes, as xattr-format.ts has them: empty, or the whole kept area. */
  kept: Uint8Array;
  /** Bytes of the area in use: inline length, or the pointers up to the last that was ever set. */
  area: Uint8Array;
}

export const EMPTY_AREA = new Uint8Array(0);

/** Not sealed. */
export function encodeInode(ino: InodeNumber, fields: InodeFields, sector: Uint8Array, fsId: bigint): void {
  sector.fill(0);
  writeHeader(sector, { magic: Magic.inode, fsId, owner: ino, index: ino, generation: fields.generation });
  sector[40] = fields.type;
  sector[41] = fields.placementClass;
  setU16(sector, 42, fields.mode);
  setU32(sector, 44, fields.uid);
  setU32(sector, 48, fields.gid);
  setU32(sector, 52, fields.nlink);
  setU64(sector, 56, fields.sizeBytes);
  setI64(sector, 64, fields.atimeNs);
  setI64(sector, 72, fields.mtimeNs);
  setI64(sector, 80, fields.ctimeNs);
  setI64(sector, 88, fields.birthtimeNs);
  setU64(sector, 96, fields.rdev);
  setU32(sector, 104, fields.flags);
  setU16(sector, 108, fields.area.length);
  sector[110] = fields.directoryDepth;
  setU64(sector, 112, fields.allocatedSubBlocks);
  setU64(sector, 120, fields.parent);
  setU32(sector, 128, fields.directorySeed);
  setU32(sector, 132, fields.directoryEntries);
  setU32(sector, 136, fields.projectId);
  setU32(sector, 140, fields.tailEpoch);
  sector.set(fields.kept, KEPT_AT);
  sector.set(fields.area, AREA_AT);
}

/** Most inodes have no attributes, and keep no memory for them. */
function keptOf(sector: Uint8Array): Uint8Array {
  const kept = sector.slice(KEPT_AT, KEPT_AT + KEPT_BYTES);
  return kept.some((byte) => byte !== 0) ? kept : EMPTY_AREA;
}

/**
 * What is wrong with a directory's size, or null: leaves are numbered below 2^depth, so nothing lies behind that. Not decodeInode's business: a check
 * finds the right one in the leaves, and loses no name.
 */
export function directoryFault(
  type: InodeFields['type'],
  { sizeBytes, depth }: { readonly sizeBytes: number; readonly depth: number },
): string | null {
  if (type !== FileType.directory) return null;
  if (sizeBytes % SECTOR_BYTES === 0 && sizeBytes <= 2 ** depth * SECTOR_BYTES) return null;
  return `a directory of depth ${depth} and ${sizeBytes} bytes`;
}

/** Null: never written. @throws {FsError} corrupt, naming the inode and what is wrong with it. */
export function decodeInode(
  ino: InodeNumber,
  sector: Uint8Array,
  fsId: bigint,
  geometry: Geometry,
  checksums: Checksums,
): InodeFields | null {
  if (isZero(sector)) return null;
  const bad = (detail: string) => corrupt('inode.read', `inode ${ino}`, detail);
  const fault = sectorFault(sector, { magic: Magic.inode, fsId, owner: ino, index: ino }, checksums);
  if (fault !== null) throw bad(fault);
  const type = sector[40]!;
  if (type > FileType.socket) throw bad(`type ${type}`);
  const areaLength = getU16(sector, 108);
  if (areaLength > AREA_BYTES) throw bad(`${areaLength} bytes of area`);
  const flags = getU32(sector, 104);
  if ((flags & ~KNOWN_FLAGS) !== 0) throw bad(`flags ${flags.toString(16)}`);
  const fields: InodeFields = {
    type: type as InodeFields['type'],
    placementClass: sector[41]!,
    mode: getU16(sector, 42),
    uid: getU32(sector, 44),
    gid: getU32(sector, 48),
    nlink: getU32(sector, 52),
    sizeBytes: getU64(sector, 56),
    atimeNs: getI64(sector, 64),
    mtimeNs: getI64(sector, 72),
    ctimeNs: getI64(sector, 80),
    birthtimeNs: getI64(sector, 88),
    rdev: getU64(sector, 96),
    flags,
    generation: getU32(sector, 32),
    allocatedSubBlocks: getU64(sector, 112),
    parent: inodeNumber(getU64(sector, 120)),
    directoryDepth: sector[110]!,
    directorySeed: getU32(sector, 128),
    directoryEntries: getU32(sector, 132),
    projectId: getU32(sector, 136),
    tailEpoch: getU32(sector, 140),
    kept: keptOf(sector),
    area: sector.slice(AREA_AT, AREA_AT + areaLength),
  };
  if (!(fields.sizeBytes <= RANGE_END)) throw bad('size out of range');
  if (fields.mode > 0o7777) throw bad(`mode ${fields.mode.toString(8)}`);
  if (Number.isNaN(fields.rdev) || Number.isNaN(fields.parent)) throw bad('an integer beyond 2^53');
  if (!(fields.allocatedSubBlocks <= ALLOCATED_SUB_BLOCKS_MAX)) throw bad('a count of sub-blocks out of range');
  if (fields.directoryDepth > DIRECTORY_DEPTH_MAX) throw bad(`directory depth ${fields.directoryDepth}`);
  const attributesFault = fields.kept.length === 0 ? null : keptFault(fields.kept, geometry);
  if (attributesFault !== null) throw bad(attributesFault);
  if ((flags & InodeFlag.inline) !== 0) {
    if (type === FileType.directory) throw bad('a directory in its inode');
    if (fields.sizeBytes !== areaLength) throw bad(`${areaLength} inline bytes, size ${fields.sizeBytes}`);
    return fields;
  }
  if (areaLength % POINTER_BYTES !== 0) throw bad(`${areaLength} bytes of pointers`);
  const pointerFault = pointersFault(fields.area, 0, areaLength / POINTER_BYTES, geometry);
  if (pointerFault !== null) throw bad(pointerFault);
  return fields;
}
