/**
 * Where mkfs puts what a mount can't do without: the first block of the inode file, the two maps and the table of logs.
 *
 * It follows from the geometry in the superblock and from nothing else, so it comes out the same whenever it is asked for: that is how a repair finds
 * these files again when their inodes are damaged (check/system/). Whoever changes the order changes the disk format.
 */
import { FsError } from '../common/errors.js';
import { type InodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { copiesOf, mirrored } from '../nsd/copies.js';
import { secondsFor } from './allocator.js';
import { type PointerHost, preparePointer, setPointer } from './block-map.js';
import { blockPointer } from './block-pointer.js';
import { FileType } from './file-system-api.js';
import { Inode } from './inode.js';
import {
  ALLOCATION_MAP,
  type Extent,
  type Geometry,
  INODE_FILE,
  INODE_MAP,
  LOG_TABLE,
  RESERVED_BLOCKS,
} from './layout.js';

/** Numbers of the system's inodes have one life. */
const SYSTEM_GENERATION = 1;

/** First blocks of the NSDs, handed out one after the other. */
export class MkfsSpace {
  readonly #geometry: Geometry;
  readonly #nextBlock: number[];
  #turn = 0;
  #fragment: { nsd: NsdIndex; sector: number; left: number } | null = null;

  constructor(
    geometry: Geometry,
    private readonly name: string,
  ) {
    this.#geometry = geometry;
    this.#nextBlock = geometry.nsdBlocks.map(() => RESERVED_BLOCKS);
  }

  /** @throws {FsError} noSpace */
  take(count: number): Extent {
    if (count === SUB_BLOCKS_PER_BLOCK) return this.#block();
    if (this.#fragment === null || this.#fragment.left < count) {
      const { nsd, sector } = this.#block();
      this.#fragment = { nsd, sector, left: SUB_BLOCKS_PER_BLOCK };
    }
    const { nsd, sector } = this.#fragment;
    this.#fragment = { nsd, sector: sector + count, left: this.#fragment.left - count };
    return { nsd, sector, count };
  }

  /** A fresh one, the next NSD's turn; with two copies the first block that is fresh on both. */
  #block(): Extent {
    const { nsdCount, nsdBlocks, metadataCopies } = this.#geometry;
    for (let i = 0; i < nsdCount; i++) {
      const first = nsdIndex((this.#turn + i) % nsdCount);
      const homes =
        metadataCopies === 1 ? [first] : secondsFor(this.#geometry, first).map((second) => mirrored(first, second));
      for (const nsd of homes) {
        const copies = copiesOf(nsd);
        const block = Math.max(...copies.map((copy) => this.#nextBlock[copy]!));
        if (copies.some((copy) => block >= nsdBlocks[copy]!)) continue;
        this.#turn = first + 1;
        for (const copy of copies) this.#nextBlock[copy] = block + 1;
        return { nsd, sector: block * SUB_BLOCKS_PER_BLOCK, count: SUB_BLOCKS_PER_BLOCK };
      }
    }
    throw new FsError('noSpace', { op: 'mkfs', object: this.name, detail: 'the NSDs do not hold the maps' });
  }
}

export interface SystemFiles {
  readonly inodeFile: Inode;
  readonly allocationMap: Inode;
  readonly inodeMap: Inode;
  readonly logTable: Inode;
}

/** Sectors of a file of mkfs that never grows. */
export const systemFileSectors = ({ regionCount, nsdCount, segmentCount }: Geometry, ino: InodeNumber): number =>
  ino === ALLOCATION_MAP ? regionCount * nsdCount : ino === INODE_MAP ? segmentCount : SUB_BLOCKS_PER_BLOCK;

/** `host` hands out what a `MkfsSpace` does, which nobody has taken anything of before. */
export async function layOutSystemFiles(host: PointerHost, nowNs: bigint): Promise<SystemFiles> {
  const file = async (ino: InodeNumber): Promise<Inode> => {
    const inode = systemInode(ino, nowNs);
    const sectors = systemFileSectors(host.geometry, ino);
    for (let block = 0; block < Math.ceil(sectors / SUB_BLOCKS_PER_BLOCK); block++) {
      await preparePointer(host, inode, block);
      const extent = await host.allocator.allocateMetadata(ino, block, SUB_BLOCKS_PER_BLOCK);
      setPointer(inode, block, blockPointer(extent, host.parts.epoch()));
    }
    inode.sizeBytes = sectors * SECTOR_BYTES;
    return inode;
  };
  return {
    inodeFile: await file(INODE_FILE),
    allocationMap: await file(ALLOCATION_MAP),
    inodeMap: await file(INODE_MAP),
    logTable: await file(LOG_TABLE),
  };
}

export function systemInode(ino: InodeNumber, nowNs: bigint): Inode {
  const inode = new Inode(ino);
  inode.type = FileType.regular;
  inode.nlink = 1;
  inode.generation = SYSTEM_GENERATION;
  inode.atimeNs = inode.mtimeNs = inode.ctimeNs = inode.birthtimeNs = nowNs;
  return inode;
}
