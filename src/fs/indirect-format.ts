/** An indirect block: one sub-block of pointers, to blocks (level 1) or to indirect blocks one level below. */
import type { InodeNumber } from '../common/ids.js';
import { BLOCK_BYTES, RANGE_END, SECTOR_BYTES } from '../common/units.js';
import type { Checksums } from '../nsd/checksums.js';
import { POINTER_BYTES, pointersFault } from './block-pointer.js';
import { DIRECT_POINTERS, INDIRECT_LEVELS } from './inode-format.js';
import type { Geometry } from './layout.js';
import { corrupt, getU32, Magic, sectorFault, writeHeader } from './sector.js';

export const INDIRECT_POINTERS_AT = 64;
export const INDIRECT_POINTERS = (SECTOR_BYTES - INDIRECT_POINTERS_AT) / POINTER_BYTES;

/** Blocks below one pointer of an indirect block of this level. */
export const span = (level: number): number => INDIRECT_POINTERS ** (level - 1);

/** Where a file ends at the latest: offsets are safe integers, and behind every end is a sector more. Five levels reach further. */
export const FILE_BYTES_MAX = RANGE_END - SECTOR_BYTES;
export const FILE_BLOCKS_MAX = Math.ceil(FILE_BYTES_MAX / BLOCK_BYTES);

/** The first block below the area's pointer to an indirect block of this level. */
export function firstBlockOf(level: number): number {
  let firstBlock = DIRECT_POINTERS;
  for (let below = 1; below < level; below++) firstBlock += INDIRECT_POINTERS ** below;
  return firstBlock;
}

/** Where a block's pointer is: in the area (level 0), or below the area's entry `root`, `level` levels down. */
export interface PointerPlace {
  readonly level: number;
  readonly root: number;
  /** First block below the root entry. */
  readonly firstBlock: number;
}

export function pointerPlace(block: number): PointerPlace {
  if (block < DIRECT_POINTERS) return { level: 0, root: block, firstBlock: block };
  let level = 1;
  while (level < INDIRECT_LEVELS && block >= firstBlockOf(level + 1)) level++;
  return rootPlace(level);
}

export const rootPlace = (level: number): PointerPlace => ({
  level,
  root: DIRECT_POINTERS + level - 1,
  firstBlock: firstBlockOf(level),
});

export function formatIndirect(
  ino: InodeNumber,
  level: number,
  firstBlock: number,
  generation: number,
  fsId: bigint,
): Uint8Array {
  const sector = new Uint8Array(SECTOR_BYTES);
  writeHeader(sector, { magic: Magic.indirect, fsId, owner: ino, index: firstBlock, generation });
  sector[40] = level;
  return sector;
}

/** @throws {FsError} corrupt, naming the file and the place. */
export function checkIndirect(
  { ino, generation }: { readonly ino: InodeNumber; readonly generation: number },
  level: number,
  firstBlock: number,
  sector: Uint8Array,
  fsId: bigint,
  geometry: Geometry,
  checksums: Checksums,
): void {
  const fault =
    sectorFault(sector, { magic: Magic.indirect, fsId, owner: ino, index: firstBlock }, checksums) ??
    (getU32(sector, 32) === generation ? null : `of generation ${getU32(sector, 32)} instead of ${generation}`) ??
    (sector[40] === level ? null : `level ${sector[40]} instead of ${level}`) ??
    pointersFault(sector, INDIRECT_POINTERS_AT, INDIRECT_POINTERS, geometry);
  if (fault !== null)
    throw corrupt('inode.read', `inode ${ino}, indirect block of level ${level} from block ${firstBlock} on`, fault);
}
