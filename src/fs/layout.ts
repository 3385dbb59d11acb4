/**
 * The fixed numbers of disk format 1, and the arithmetic between inode numbers, segments, regions and sectors.
 * docs/disk-format.md describes every structure byte by byte; a number changed here is another format.
 */
import { type InodeNumber, inodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { copiesOf } from '../nsd/copies.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';

export const FORMAT_VERSION = 1;

/** The inode file: inode N is its sector N. */
export const INODE_FILE = inodeNumber(1);
export const ROOT_DIRECTORY = inodeNumber(2);
/** One sector per (region, NSD). */
export const ALLOCATION_MAP = inodeNumber(3);
/** One sector per segment. */
export const INODE_MAP = inodeNumber(4);
/** Nothing is stored under it: its exclusive data token lets a node move directories between directories. */
export const RENAME_LOCK = inodeNumber(5);
/** One sector per log of a node. */
export const LOG_TABLE = inodeNumber(6);
export const FIRST_USER_INODE = inodeNumber(16);

/** Whole blocks at the start of every NSD's data space: the superblock copy. */
export const RESERVED_BLOCKS = 1;
/** Inodes in one block of the inode file, and so the step in which it grows. */
export const INODES_PER_BLOCK = SUB_BLOCKS_PER_BLOCK;
export const BLOCKS_PER_SEGMENT = INODES_PER_SEGMENT / INODES_PER_BLOCK;

/** What a superblock can list in one sector. */
export const NSD_COUNT_MAX = 96;
/** At the end of a region's sector: for each slot of the table of logs, through which shipment its frees have been applied (S6). */
export const FREE_MARK_BYTES = 6;
export const FREE_MARKS_AT = SECTOR_BYTES - FREE_MARK_BYTES * SUB_BLOCKS_PER_BLOCK;
/** Bitmaps of 32 bytes between a 64-byte header and the marks. */
export const REGION_BLOCKS_MAX = (FREE_MARKS_AT - 64) / 32;
export const SEGMENT_COUNT_MAX = 1 << 24;
export const NAME_BYTES_MAX = 255;
export const PATH_BYTES_MAX = 4096;
export const SYMLINKS_MAX = 40;
export const LINK_COUNT_MAX = 65_000;

export const segmentOf = (ino: InodeNumber): number => Math.floor(ino / INODES_PER_SEGMENT);
export const inodeBlockOf = (ino: InodeNumber): number => Math.floor(ino / INODES_PER_BLOCK);
/** What a name may name, and be in: not what is the file system's own, and nothing that can't be there. */
export const isUserInode = (ino: InodeNumber, { segmentCount }: Pick<Geometry, 'segmentCount'>): boolean =>
  ino >= FIRST_USER_INODE && ino < segmentCount * INODES_PER_SEGMENT;
export const isSystemFile = (ino: InodeNumber): boolean => ino === ALLOCATION_MAP || ino === INODE_MAP;

/** A run of sub-blocks inside one block of one NSD, or of two: `nsd` says which (nsd/copies.ts). */
export interface Extent {
  readonly nsd: NsdIndex;
  /** First sector of the NSD's data space. */
  readonly sector: number;
  /** 1 to 256 sub-blocks. */
  readonly count: number;
}

/** What mkfs decided once and the superblock tells everyone. */
export interface Geometry {
  readonly nsdCount: number;
  /** Blocks of each NSD, the reserved one included. */
  readonly nsdBlocks: readonly number[];
  /** Blocks per region on each NSD. */
  readonly regionBlocks: number;
  readonly regionCount: number;
  readonly segmentCount: number;
  /** By NSD: two copies are in different ones, where there are two. */
  readonly failureGroups: readonly number[];
  /** Of metadata and of logs. */
  readonly metadataCopies: MetadataCopies;
}
export type MetadataCopies = 1 | 2;
/** An NSD has 1 PiB at most: with its number, sectors make keys that are safe integers. */
export const NSD_BLOCKS_MAX = 2 ** 30;

export const regionCountFor = (nsdBlocks: readonly number[], regionBlocks: number): number =>
  Math.ceil(Math.max(...nsdBlocks) / regionBlocks);

/** The region that an NSD's sector belongs to. */
export const regionOf = (geometry: Geometry, sector: number): number =>
  Math.floor(sector / SUB_BLOCKS_PER_BLOCK / geometry.regionBlocks);

/** A region's sectors in the allocation map file. */
export const regionRange = (geometry: Geometry, region: number) => ({
  start: region * geometry.nsdCount * SECTOR_BYTES,
  end: (region + 1) * geometry.nsdCount * SECTOR_BYTES,
});
export const regionSectorRange = (geometry: Geometry, region: number, nsd: NsdIndex) => {
  const start = (region * geometry.nsdCount + nsd) * SECTOR_BYTES;
  return { start, end: start + SECTOR_BYTES };
};
/** From the sector of one copy to that of the other. */
export const regionSectorsRange = (geometry: Geometry, region: number, nsd: NsdIndex) => {
  const ranges = copiesOf(nsd).map((copy) => regionSectorRange(geometry, region, copy));
  return { start: Math.min(...ranges.map(({ start }) => start)), end: Math.max(...ranges.map(({ end }) => end)) };
};
export const segmentRange = (segment: number) => ({
  start: segment * SECTOR_BYTES,
  end: (segment + 1) * SECTOR_BYTES,
});

export const allNsds = (geometry: Geometry): NsdIndex[] =>
  Array.from({ length: geometry.nsdCount }, (_, index) => nsdIndex(index));
