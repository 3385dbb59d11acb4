/**
 * Makes an empty file system on a set of NSDs.
 *
 * Order: everything discarded (so that free space reads as zeros), then the maps, the system inodes and the root directory, a flush, and at
 * last the superblocks: an interrupted mkfs leaves nothing that mounts.
 */
import type { Clock } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import { type Epoch, epoch, type InodeNumber, inodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { type Random, systemRandom } from '../common/random.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import type { BufferArena, PagePool } from '../native/page-pool.js';
import type { Checksums } from '../nsd/checksums.js';
import { copiesOf } from '../nsd/copies.js';
import { withCopies } from '../nsd/mirrored-nsds.js';
import type { NsdClientApi } from '../nsd/nsd-api.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';
import { dirtyIndirects, findPointer, type PointerHost } from './block-map.js';
import { type Flush, LossMark } from './durable.js';
import { FileType } from './file-system-api.js';
import type { Inode } from './inode.js';
import { encodeInode } from './inode-format.js';
import {
  ALLOCATION_MAP,
  allNsds,
  type Extent,
  FIRST_USER_INODE,
  FORMAT_VERSION,
  type Geometry,
  type MetadataCopies,
  NSD_COUNT_MAX,
  REGION_BLOCKS_MAX,
  RENAME_LOCK,
  RESERVED_BLOCKS,
  ROOT_DIRECTORY,
  regionCountFor,
  regionOf,
  SEGMENT_COUNT_MAX,
} from './layout.js';
import {
  encodeDescriptor,
  LOG_SLOTS,
  type LogDescriptor,
  LogState,
  logBytesFor,
  logPieces,
  logsFor,
  unusedSlot,
} from './log/log-table.js';
import {
  fillBits,
  formatRegion,
  formatSegment,
  regionFree,
  segmentFree,
  setInodeUsed,
  setRegionFree,
  setSegmentFree,
} from './map-formats.js';
import { layOutSystemFiles, MkfsSpace, systemFileSectors, systemInode } from './mkfs-layout.js';
import { sealSector } from './sector.js';
import { checkFsName, encodeSuperblock, fsIdOf, type NsdDescription, type Superblock } from './superblock.js';

export interface CreateFileSystemOptions {
  /** In the order of their index. `blocks`: whole MiB of the NSD's data space, see `blocksOf`. */
  readonly nsds: readonly NsdDescription[];
  readonly fsUuid: string;
  readonly name: string;
  readonly nsdClient: NsdClientApi;
  readonly arena: BufferArena;
  readonly pool: PagePool;
  readonly checksums: Checksums;
  readonly clock: Clock;
  readonly random?: Random;
  readonly epoch?: Epoch;
  /** Blocks per region on each NSD; default: 64, fewer when that gave less than `expectedNodes` * 4 regions. */
  readonly regionBlocks?: number;
  /** Inode numbers there can ever be, in segments of 4096; default: one inode per 64 KiB, at least 64 segments. */
  readonly segmentCount?: number;
  /** Nodes that will allocate at the same time; default 16. */
  readonly expectedNodes?: number;
  /** Of each log; default: by the size of the file system. */
  readonly logBytes?: number;
  /** Of the root directory. */
  readonly rootMode?: number;
  /** Of metadata and of logs; default: 2 where the NSDs are in two failure groups or more. */
  readonly metadataCopies?: MetadataCopies;
}

/** Whole blocks in an NSD's data space. */
export const blocksOf = (dataSectors: number): number => Math.floor(dataSectors / SUB_BLOCKS_PER_BLOCK);

const WRITE_RUN = 64;
const EXPECTED_NODES = 16;
const REGION_BLOCKS_DEFAULT = 64;
const SEGMENTS_MIN = 64;
const BLOCKS_PER_SEGMENT_OF_CAPACITY = 256;

export async function createFileSystem(given: CreateFileSystemOptions): Promise<Superblock> {
  const options = { ...given, nsdClient: withCopies({ nsds: given.nsdClient }) };
  checkFsName(options.name);
  const geometry = chooseGeometry(options);
  const mark = new LossMark(options.nsdClient, allNsds(geometry));
  await options.nsdClient.discard(
    options.nsds.map(({ blocks }, index) => ({
      nsd: nsdIndex(index),
      sector: 0,
      sectorCount: blocks * SUB_BLOCKS_PER_BLOCK,
    })),
  );
  return new Mkfs(options, geometry, mark).run();
}

function chooseGeometry(options: CreateFileSystemOptions): Geometry {
  const invalid = (detail: string) => new FsError('invalidArgument', { op: 'mkfs', object: options.name, detail });
  const nsdBlocks = options.nsds.map((nsd) => nsd.blocks);
  if (nsdBlocks.length === 0 || nsdBlocks.length > NSD_COUNT_MAX) throw invalid(`${nsdBlocks.length} NSDs`);
  if (nsdBlocks.some((blocks) => !(blocks > RESERVED_BLOCKS))) throw invalid('an NSD is too small');
  const largest = Math.max(...nsdBlocks);
  const wanted = (options.expectedNodes ?? EXPECTED_NODES) * 4;
  const regionBlocks =
    options.regionBlocks ?? Math.max(1, Math.min(REGION_BLOCKS_DEFAULT, Math.floor(largest / wanted)));
  if (!(regionBlocks >= 1 && regionBlocks <= REGION_BLOCKS_MAX)) throw invalid(`${regionBlocks} blocks per region`);
  const capacity = nsdBlocks.reduce((sum, blocks) => sum + blocks, 0);
  const segmentCount =
    options.segmentCount ?? Math.max(SEGMENTS_MIN, Math.ceil(capacity / BLOCKS_PER_SEGMENT_OF_CAPACITY));
  if (!(segmentCount >= 1 && segmentCount <= SEGMENT_COUNT_MAX)) throw invalid(`${segmentCount} segments`);
  const regionCount = regionCountFor(nsdBlocks, regionBlocks);
  const failureGroups = options.nsds.map((nsd) => nsd.failureGroup);
  const metadataCopies = options.metadataCopies ?? (new Set(failureGroups).size > 1 ? 2 : 1);
  if (metadataCopies > nsdBlocks.length) throw invalid(`${metadataCopies} copies on ${nsdBlocks.length} NSD`);
  return {
    nsdCount: nsdBlocks.length,
    nsdBlocks,
    regionBlocks,
    regionCount,
    segmentCount,
    failureGroups,
    metadataCopies,
  };
}

class Mkfs implements PointerHost {
  readonly fsId: bigint;
  readonly checksums: Checksums;
  readonly parts: { readonly epoch: () => Epoch };
  readonly allocator = {
    allocateMetadata: (_: InodeNumber, __: number, count: number) => Promise.resolve(this.#allocate(count)),
  };
  readonly #options: CreateFileSystemOptions;
  readonly #space: MkfsSpace;
  /** Sectors of the allocation map that are not all free, by index. */
  readonly #regions = new Map<number, Uint8Array>();

  constructor(
    options: CreateFileSystemOptions,
    readonly geometry: Geometry,
    private readonly losses: LossMark,
  ) {
    this.#options = options;
    this.fsId = fsIdOf(options.fsUuid);
    this.checksums = options.checksums;
    this.parts = { epoch: () => options.epoch ?? epoch(1) };
    this.#space = new MkfsSpace(geometry, options.name);
    for (let nsd = 0; nsd < geometry.nsdCount; nsd++)
      this.#mark({ nsd: nsdIndex(nsd), sector: 0, count: RESERVED_BLOCKS * SUB_BLOCKS_PER_BLOCK });
  }

  async run(): Promise<Superblock> {
    const { geometry } = this;
    const now = this.#options.clock.wallNs();
    const { inodeFile, allocationMap, inodeMap, logTable } = await layOutSystemFiles(this, now);
    const logs = this.#logs();
    const first = findPointer(inodeFile, 0)!;
    const inodes = [inodeFile, this.#root(now), allocationMap, inodeMap, systemInode(RENAME_LOCK, now), logTable];
    await this.#writeSectors(first.nsd, first.sector, FIRST_USER_INODE, (sector, index) => {
      const inode = inodes.find(({ ino }) => ino === index);
      if (inode === undefined) return;
      encodeInode(inode.ino, inode, sector, this.fsId);
      sealSector(sector, this.checksums);
    });
    for (const inode of inodes)
      for (const { home, sector } of dirtyIndirects(inode)) {
        sealSector(sector, this.checksums);
        await this.#writeSectors(home.nsd, home.sector, 1, (bytes) => bytes.set(sector));
      }
    await this.#writeFile(allocationMap, systemFileSectors(geometry, ALLOCATION_MAP), (sector, index) =>
      this.#region(sector, index),
    );
    await this.#writeFile(inodeMap, geometry.segmentCount, (sector, index) => this.#segment(sector, index));
    // All of them: none is written for the first time later, when a power cut could tear it and nobody knew that it was the first (S1).
    await this.#writeFile(logTable, LOG_SLOTS, (sector, slot) => {
      sector.set(encodeDescriptor(logs[slot] ?? unusedSlot(slot), this.fsId, this.parts.epoch()));
      sealSector(sector, this.checksums);
    });
    await this.#flush('mkfs');
    const superblock: Superblock = {
      fsUuid: this.#options.fsUuid,
      name: this.#options.name,
      formatVersion: FORMAT_VERSION,
      incompatibleFeatures: 0,
      readOnlyCompatibleFeatures: 0,
      compatibleFeatures: 0,
      generation: 1,
      birthtimeNs: this.#options.clock.wallNs(),
      nsds: this.#options.nsds,
      geometry,
      inodeFile: first,
    };
    const image = encodeSuperblock(superblock, this.checksums);
    for (const nsd of allNsds(geometry)) await this.#writeSectors(nsd, 0, 1, (sector) => sector.set(image));
    await this.#flush('superblock');
    return superblock;
  }

  /** Nobody waits for a file system that is being made: whoever makes it begins anew. */
  async #flush(why: Flush): Promise<void> {
    const { nsdClient } = this.#options;
    await nsdClient.flush(allNsds(this.geometry), { why });
    if (!this.losses.lost) return;
    const detail = 'an NSD lost power meanwhile: what was written may be lost';
    throw new FsError('writesLost', { op: 'createFileSystem', object: this.#options.name, detail });
  }

  // Space

  #allocate(count: number): Extent {
    return this.#mark(this.#space.take(count));
  }

  /** One for each node that is expected, ready to be taken. */
  #logs(): LogDescriptor[] {
    const bytes = logBytesFor(this.geometry, this.#options.logBytes ?? null);
    const { pieceSectors, pieces } = logPieces(bytes);
    const count = logsFor(this.geometry, bytes, this.#options.expectedNodes ?? EXPECTED_NODES);
    return Array.from({ length: count }, (_, slot) => ({
      ...unusedSlot(slot),
      state: LogState.clean,
      pieceSectors,
      pieces: Array.from({ length: pieces }, () => this.#allocate(pieceSectors)),
    }));
  }

  #mark(extent: Extent): Extent {
    for (const nsd of copiesOf(extent.nsd)) this.#markOn(nsd, extent);
    return extent;
  }
  #markOn(nsd: NsdIndex, extent: Extent): void {
    const { geometry } = this;
    for (let done = 0; done < extent.count; done += SUB_BLOCKS_PER_BLOCK) {
      const sector = extent.sector + done;
      const count = Math.min(SUB_BLOCKS_PER_BLOCK, extent.count - done);
      const region = regionOf(geometry, sector);
      const index = region * geometry.nsdCount + nsd;
      let bits = this.#regions.get(index);
      if (bits === undefined) {
        bits = new Uint8Array(SECTOR_BYTES);
        formatRegion(bits, region, nsd, geometry, this.fsId);
        this.#regions.set(index, bits);
      }
      const block = Math.floor(sector / SUB_BLOCKS_PER_BLOCK) % geometry.regionBlocks;
      fillBits(bits, block, sector % SUB_BLOCKS_PER_BLOCK, count, 1);
      setRegionFree(bits, regionFree(bits) - count);
    }
  }

  #region(sector: Uint8Array, index: number): void {
    const { nsdCount } = this.geometry;
    const used = this.#regions.get(index);
    if (used !== undefined) sector.set(used);
    else formatRegion(sector, Math.floor(index / nsdCount), nsdIndex(index % nsdCount), this.geometry, this.fsId);
    sealSector(sector, this.checksums);
  }

  #segment(sector: Uint8Array, index: number): void {
    formatSegment(sector, index, this.fsId);
    if (index === 0) {
      for (let slot = 0; slot < FIRST_USER_INODE; slot++) setInodeUsed(sector, slot, true);
      setSegmentFree(sector, Math.min(INODES_PER_SEGMENT, segmentFree(sector)) - FIRST_USER_INODE);
    }
    sealSector(sector, this.checksums);
  }

  // Inodes

  #root(nowNs: bigint): Inode {
    const inode = systemInode(ROOT_DIRECTORY, nowNs);
    inode.type = FileType.directory;
    inode.mode = this.#options.rootMode ?? 0o755;
    inode.nlink = 2;
    inode.parent = ROOT_DIRECTORY;
    inode.directorySeed = Math.floor((this.#options.random ?? systemRandom).next() * 2 ** 32);
    return inode;
  }

  // Writing

  async #writeFile(inode: Inode, sectors: number, fill: (sector: Uint8Array, index: number) => void): Promise<void> {
    for (let at = 0; at < sectors; at += SUB_BLOCKS_PER_BLOCK) {
      const home = findPointer(inode, inodeNumber(at / SUB_BLOCKS_PER_BLOCK))!;
      await this.#writeSectors(home.nsd, home.sector, Math.min(SUB_BLOCKS_PER_BLOCK, sectors - at), (sector, index) =>
        fill(sector, at + index),
      );
    }
  }

  async #writeSectors(
    nsd: NsdIndex,
    sector: number,
    count: number,
    fill: (sector: Uint8Array, index: number) => void,
  ): Promise<void> {
    const { arena, pool, nsdClient } = this.#options;
    for (let at = 0; at < count; at += WRITE_RUN) {
      const run = Math.min(WRITE_RUN, count - at);
      const memory = await arena.allocate(run * SECTOR_BYTES);
      try {
        for (let i = 0; i < run; i++) {
          const start = memory.offsetBytes + i * SECTOR_BYTES;
          const bytes = pool.bytes.subarray(start, start + SECTOR_BYTES);
          bytes.fill(0);
          fill(bytes, at + i);
        }
        const io = { offsetBytes: memory.offsetBytes, lengthBytes: run * SECTOR_BYTES };
        await nsdClient.write([{ nsd, sector: sector + at, memory: io }]);
      } finally {
        arena.free(memory);
      }
    }
  }

  /** Nothing is ever read back: what mkfs works on is in memory. */
  readSectors<T>(): Promise<T> {
    return Promise.reject(new FsError('internal', { op: 'mkfs', detail: 'reads nothing' }));
  }
}
