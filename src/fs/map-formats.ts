/**
 * Sectors of the two maps. Both are bitmaps with a set bit for what is in use, and a count of what is free that is true
 * whenever the sector is on a device.
 *
 *   region sector (region, NSD):  40 u32 free sub-blocks  44 u32 region  48 u16 NSD  64 one 32-byte bitmap per block
 *                                 2560 u48 for each of 256 log slots, of NSD 0: frees shipped from it have been applied to the region through this one
 *   segment sector:               40 u32 free inodes      44 u32 next generation     64 bitmap of 512 bytes
 */
import type { NsdIndex } from '../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import type { Checksums } from '../nsd/checksums.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';
import { ALLOCATION_MAP, FREE_MARK_BYTES, FREE_MARKS_AT, type Geometry, INODE_MAP } from './layout.js';
import { getU16, getU32, Magic, sectorFault, setU16, setU32, writeHeader } from './sector.js';

export const BITMAPS_AT = 64;
/** The maps have one life: their generation is that of their inodes. */
const GENERATION = 1;
const BITMAP_BYTES = SUB_BLOCKS_PER_BLOCK / 8;

const POPULATION = Uint8Array.from({ length: 256 }, (_, byte) => {
  let bits = 0;
  for (let b = byte; b !== 0; b >>= 1) bits += b & 1;
  return bits;
});

export const regionFree = (sector: Uint8Array): number => getU32(sector, 40);
export const setRegionFree = (sector: Uint8Array, free: number): void => setU32(sector, 40, free);
/** S6: what this slot's log has shipped to be freed in this region is applied up to and including this sequence. */
export function freedThrough(sector: Uint8Array, slot: number): number {
  const at = FREE_MARKS_AT + slot * FREE_MARK_BYTES;
  return getU32(sector, at) + getU16(sector, at + 4) * 2 ** 32;
}
export function setFreedThrough(sector: Uint8Array, slot: number, sequence: number): void {
  const at = FREE_MARKS_AT + slot * FREE_MARK_BYTES;
  setU32(sector, at, sequence % 2 ** 32);
  setU16(sector, at + 4, Math.floor(sequence / 2 ** 32));
}
export const bitmapAt = (blockInRegion: number): number => BITMAPS_AT + blockInRegion * BITMAP_BYTES;

export function blockFree(sector: Uint8Array, blockInRegion: number): number {
  const at = bitmapAt(blockInRegion);
  let used = 0;
  for (let i = 0; i < BITMAP_BYTES; i++) used += POPULATION[sector[at + i]!]!;
  return SUB_BLOCKS_PER_BLOCK - used;
}

/** First sub-block of a free run of `count` in the block, or -1. */
export function findRun(sector: Uint8Array, blockInRegion: number, count: number): number {
  const at = bitmapAt(blockInRegion);
  let run = 0;
  for (let bit = 0; bit < SUB_BLOCKS_PER_BLOCK; bit++) {
    if (run === 0 && (bit & 7) === 0 && sector[at + (bit >> 3)] === 0xff) {
      bit += 7;
      continue;
    }
    if ((sector[at + (bit >> 3)]! >> (bit & 7)) & 1) run = 0;
    else if (++run === count) return bit - count + 1;
  }
  return -1;
}

/** How many of `count` bits from `bit` on have the value asked for. */
export function countBits(sector: Uint8Array, blockInRegion: number, bit: number, count: number, value: 0 | 1): number {
  const at = bitmapAt(blockInRegion);
  let same = 0;
  for (let i = bit; i < bit + count; i++) if (((sector[at + (i >> 3)]! >> (i & 7)) & 1) === value) same++;
  return same;
}

export function fillBits(sector: Uint8Array, blockInRegion: number, bit: number, count: number, value: 0 | 1): void {
  const at = bitmapAt(blockInRegion);
  for (let i = bit; i < bit + count; i++) {
    const byte = at + (i >> 3);
    if (value === 1) sector[byte] = sector[byte]! | (1 << (i & 7));
    else sector[byte] = sector[byte]! & ~(1 << (i & 7));
  }
}

/** Free sub-blocks of a region's sector as runs, counted from the region's first sub-block. */
export function freeRuns(sector: Uint8Array, regionBlocks: number): { from: number; count: number }[] {
  const runs: { from: number; count: number }[] = [];
  const bits = regionBlocks * SUB_BLOCKS_PER_BLOCK;
  let from = -1;
  for (let bit = 0; bit <= bits; bit++) {
    const free = bit < bits && ((sector[BITMAPS_AT + (bit >> 3)]! >> (bit & 7)) & 1) === 0;
    if (free && from < 0) from = bit;
    if (!free && from >= 0) {
      runs.push({ from, count: bit - from });
      from = -1;
    }
  }
  return runs;
}

/** A region sector with everything free that exists on the NSD. */
export function formatRegion(
  sector: Uint8Array,
  region: number,
  nsd: NsdIndex,
  geometry: Geometry,
  fsId: bigint,
): void {
  sector.fill(0);
  const index = region * geometry.nsdCount + nsd;
  writeHeader(sector, { magic: Magic.region, fsId, owner: ALLOCATION_MAP, index, generation: GENERATION });
  setU32(sector, 44, region);
  setU16(sector, 48, nsd);
  let free = 0;
  for (let block = 0; block < geometry.regionBlocks; block++) {
    const exists = region * geometry.regionBlocks + block < geometry.nsdBlocks[nsd]!;
    if (exists) free += SUB_BLOCKS_PER_BLOCK;
    else fillBits(sector, block, 0, SUB_BLOCKS_PER_BLOCK, 1);
  }
  setRegionFree(sector, free);
}

export function regionFault(
  sector: Uint8Array,
  index: number,
  geometry: Geometry,
  fsId: bigint,
  checksums: Checksums,
): string | null {
  const fault = sectorFault(sector, { magic: Magic.region, fsId, owner: ALLOCATION_MAP, index }, checksums);
  if (fault !== null) return fault;
  if (getU32(sector, 32) !== GENERATION) return `of generation ${getU32(sector, 32)} instead of ${GENERATION}`;
  const region = Math.floor(index / geometry.nsdCount);
  if (getU32(sector, 44) !== region || getU16(sector, 48) !== index % geometry.nsdCount)
    return `says it is region ${getU32(sector, 44)} of NSD ${getU16(sector, 48)}`;
  let free = 0;
  for (let block = 0; block < geometry.regionBlocks; block++) {
    const blockFreeCount = blockFree(sector, block);
    if (
      region * geometry.regionBlocks + block >= geometry.nsdBlocks[index % geometry.nsdCount]! &&
      blockFreeCount !== 0
    )
      return `block ${block} is free but does not exist`;
    free += blockFreeCount;
  }
  if (free !== regionFree(sector)) return `${free} sub-blocks free, ${regionFree(sector)} counted`;
  return null;
}

export const segmentFree = (sector: Uint8Array): number => getU32(sector, 40);
export const setSegmentFree = (sector: Uint8Array, free: number): void => setU32(sector, 40, free);
export const segmentGeneration = (sector: Uint8Array): number => getU32(sector, 44);
export const setSegmentGeneration = (sector: Uint8Array, generation: number): void => setU32(sector, 44, generation);
export const inodeUsed = (sector: Uint8Array, slot: number): boolean =>
  ((sector[BITMAPS_AT + (slot >> 3)]! >> (slot & 7)) & 1) === 1;
export function setInodeUsed(sector: Uint8Array, slot: number, used: boolean): void {
  const at = BITMAPS_AT + (slot >> 3);
  sector[at] = used ? sector[at]! | (1 << (slot & 7)) : sector[at]! & ~(1 << (slot & 7));
}

export function formatSegment(sector: Uint8Array, segment: number, fsId: bigint): void {
  sector.fill(0);
  writeHeader(sector, { magic: Magic.segment, fsId, owner: INODE_MAP, index: segment, generation: GENERATION });
  setSegmentFree(sector, INODES_PER_SEGMENT);
  setSegmentGeneration(sector, 1);
}

export function segmentFault(sector: Uint8Array, segment: number, fsId: bigint, checksums: Checksums): string | null {
  const fault = sectorFault(sector, { magic: Magic.segment, fsId, owner: INODE_MAP, index: segment }, checksums);
  if (fault !== null) return fault;
  if (getU32(sector, 32) !== GENERATION) return `of generation ${getU32(sector, 32)} instead of ${GENERATION}`;
  let used = 0;
  for (let i = 0; i < INODES_PER_SEGMENT / 8; i++) used += POPULATION[sector[BITMAPS_AT + i]!]!;
  const free = INODES_PER_SEGMENT - used;
  return free === segmentFree(sector) ? null : `${free} inodes free, ${segmentFree(sector)} counted`;
}
