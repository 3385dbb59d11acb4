/**
 * Reads a whole file system that nobody has mounted, and says what does not fit together. Changes nothing.
 *
 * `problems` are contradictions that no crash of ours explains; `lost` is space and numbers that nobody uses, which a node that died
 * leaves behind. Believes nothing: every structure is verified before it is followed.
 */
import type { InodeNumber, NsdIndex } from '../common/ids.js';
import { epoch, inodeNumber, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import type { BufferArena, PagePool } from '../native/page-pool.js';
import type { Checksums } from '../nsd/checksums.js';
import { copiesOf } from '../nsd/copies.js';
import { withCopies } from '../nsd/mirrored-nsds.js';
import type { NsdClientApi } from '../nsd/nsd-api.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';
import { allPointers, findPointer, loadForCut, type PointerHost } from './block-map.js';
import { FileType } from './file-system-api.js';
import { Inode } from './inode.js';
import { decodeInode, FREE_INODE } from './inode-format.js';
import {
  ALLOCATION_MAP,
  type Extent,
  FIRST_USER_INODE,
  INODE_FILE,
  INODE_MAP,
  INODES_PER_BLOCK,
  LOG_TABLE,
  RENAME_LOCK,
  RESERVED_BLOCKS,
  ROOT_DIRECTORY,
} from './layout.js';
import { hashName, leafDepth, leafEntries, leafExists, leafFault } from './leaf-format.js';
import { findLogTable, readDescriptors } from './log/log-reader.js';
import { LogState } from './log/log-table.js';
import { bitmapAt, inodeUsed, regionFault, segmentFault } from './map-formats.js';
import { readSuperblock } from './mount.js';
import { fsIdOf, type Superblock } from './superblock.js';
import { keptBlock } from './xattr-format.js';

export interface CheckReport {
  readonly problems: readonly string[];
  readonly lostSubBlocks: number;
  readonly lostInodes: number;
  /** In use, system inodes included. */
  readonly inodes: number;
  readonly directories: number;
  readonly usedSubBlocks: number;
}

export interface CheckParts {
  readonly nsds: NsdClientApi;
  readonly arena: BufferArena;
  readonly pool: PagePool;
  readonly checksums: Checksums;
}

const READ_RUN = 64;
const PROBLEMS_MAX = 200;

export async function checkFileSystem(parts: CheckParts): Promise<CheckReport> {
  const { nsds } = parts;
  return new Check({ ...parts, nsds: withCopies({ nsds }) }, await readSuperblock(parts)).run();
}

/** Who has a log open: whoever has it mounted, or had when it died. */
export async function logOwners(
  parts: CheckParts,
  nsdCount: number,
): Promise<{ readonly nodeId: number; readonly incarnation: number }[]> {
  const { fsUuid, geometry, inodeFile } = await readSuperblock(parts, nsdCount);
  const { nsds } = parts;
  const logs = { ...parts, nsds: withCopies({ nsds }), fsId: fsIdOf(fsUuid), geometry, inodeFile };
  const descriptors = await readDescriptors(logs, await findLogTable(logs));
  return descriptors.flatMap((descriptor) => (descriptor?.state === LogState.open ? [descriptor.owner] : []));
}

class Check implements PointerHost {
  readonly fsId: bigint;
  readonly geometry;
  readonly checksums: Checksums;
  readonly parts = { epoch: () => epoch(1) };
  readonly allocator = { allocateMetadata: () => Promise.reject(new Error('a check allocates nothing')) };
  readonly #io: CheckParts;
  readonly #problems: string[] = [];
  readonly #inodes = new Map<InodeNumber, Inode>();
  readonly #links = new Map<InodeNumber, number>();
  /** Per NSD: the owner of each sub-block, 0 for nobody. */
  readonly #owners: Uint32Array[];
  #lostSubBlocks = 0;
  #lostInodes = 0;
  #usedSubBlocks = 0;

  constructor(io: CheckParts, superblock: Superblock) {
    this.#io = io;
    this.geometry = superblock.geometry;
    this.checksums = io.checksums;
    this.fsId = fsIdOf(superblock.fsUuid);
    this.#owners = superblock.geometry.nsdBlocks.map((blocks) => new Uint32Array(blocks * SUB_BLOCKS_PER_BLOCK));
    this.#home = superblock.inodeFile;
  }
  readonly #home: Extent;

  async run(): Promise<CheckReport> {
    for (let nsd = 0; nsd < this.geometry.nsdCount; nsd++)
      this.#claim(ROOT_DIRECTORY, {
        nsd: nsdIndex(nsd),
        sector: 0,
        count: RESERVED_BLOCKS * SUB_BLOCKS_PER_BLOCK,
      });
    await this.#readInodes();
    await this.#claimLogs();
    for (const inode of this.#inodes.values()) await this.#claimAll(inode);
    for (const inode of this.#inodes.values()) if (inode.isDirectory) await this.#readDirectory(inode);
    this.#checkLinks();
    await this.#checkAllocation();
    await this.#checkInodeMap();
    let directories = 0;
    for (const inode of this.#inodes.values()) if (inode.isDirectory) directories++;
    return {
      problems: this.#problems,
      lostSubBlocks: this.#lostSubBlocks,
      lostInodes: this.#lostInodes,
      inodes: this.#inodes.size,
      directories,
      usedSubBlocks: this.#usedSubBlocks,
    };
  }

  #problem(text: string): void {
    if (this.#problems.length < PROBLEMS_MAX) this.#problems.push(text);
  }
  /** What throws is a problem; the rest is still looked at. */
  async #attempt(what: string, body: () => Promise<void>): Promise<void> {
    try {
      await body();
    } catch (error) {
      this.#problem(`${what}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  async readSectors<T>(
    nsd: NsdIndex,
    sector: number,
    count: number,
    use: (bytes: Uint8Array, versions: Uint32Array) => T,
  ): Promise<T> {
    const memory = await this.#io.arena.allocate(count * SECTOR_BYTES);
    try {
      const io = { offsetBytes: memory.offsetBytes, lengthBytes: count * SECTOR_BYTES };
      const versions = new Uint32Array(count);
      await this.#io.nsds.read([{ nsd, sector, memory: io, versions }]);
      return use(this.#io.pool.bytes.subarray(io.offsetBytes, io.offsetBytes + io.lengthBytes), versions);
    } finally {
      this.#io.arena.free(memory);
    }
  }

  async #eachSector(home: Extent, count: number, use: (sector: Uint8Array, index: number) => void): Promise<void> {
    for (let at = 0; at < count; at += READ_RUN) {
      const run = Math.min(READ_RUN, count - at);
      const copy = await this.readSectors(home.nsd, home.sector + at, run, (bytes) => bytes.slice());
      for (let i = 0; i < run; i++) use(copy.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES), at + i);
    }
  }

  #decode(ino: InodeNumber, sector: Uint8Array): Inode | null {
    const fields = decodeInode(ino, sector, this.fsId, this.geometry, this.checksums);
    if (fields === null || fields.type === FREE_INODE) return null;
    const inode = new Inode(ino);
    inode.assign(fields);
    return inode;
  }

  async #readInodes(): Promise<void> {
    const file = await this.readSectors(this.#home.nsd, this.#home.sector + INODE_FILE, 1, (bytes) =>
      this.#decode(INODE_FILE, bytes),
    );
    if (file === null) {
      this.#problem('inode 1 is free');
      return;
    }
    await loadForCut(this, file, 0);
    for (const { block, pointer } of allPointers(file).blocks) {
      await this.#eachSector(pointer, pointer.count, (sector, index) => {
        const ino = inodeNumber(block * INODES_PER_BLOCK + index);
        try {
          const inode = this.#decode(ino, sector);
          if (inode !== null) this.#inodes.set(ino, inode);
        } catch (error) {
          this.#problem(String(error));
        }
      });
    }
  }

  #claim(ino: InodeNumber, extent: Extent): void {
    for (const nsd of copiesOf(extent.nsd)) this.#claimOn(nsd, ino, extent);
  }
  #claimOn(nsd: NsdIndex, ino: InodeNumber, { sector, count }: Extent): void {
    const owners = this.#owners[nsd]!;
    for (let at = sector; at < sector + count; at++) {
      if (owners[at] !== 0) {
        this.#problem(`sub-block ${at} of NSD ${nsd} belongs to inode ${owners[at]} and to inode ${ino}`);
        return;
      }
      owners[at] = ino;
    }
    this.#usedSubBlocks += count;
  }

  async #claimAll(inode: Inode): Promise<void> {
    await this.#attempt(`inode ${inode.ino}`, async () => {
      await loadForCut(this, inode, 0);
      const { blocks, indirects } = allPointers(inode);
      let count = 0;
      const attributes = keptBlock(inode.kept);
      const extents: Extent[] = [...blocks.map(({ pointer }) => pointer), ...indirects];
      if (attributes !== null) extents.push(attributes.pointer);
      for (const extent of extents) {
        this.#claim(inode.ino, extent);
        count += extent.count;
      }
      const counted = inode.ino >= FIRST_USER_INODE || inode.ino === ROOT_DIRECTORY;
      if (counted && count !== inode.allocatedSubBlocks)
        this.#problem(`inode ${inode.ino} has ${count} sub-blocks and says ${inode.allocatedSubBlocks}`);
    });
  }

  /** Space of logs, and which of them have to be replayed before a check means anything. */
  async #claimLogs(): Promise<void> {
    await this.#attempt('logs', async () => {
      const logs = { ...this.#io, fsId: this.fsId, geometry: this.geometry, inodeFile: this.#home };
      const descriptors = await readDescriptors(logs, await findLogTable(logs));
      for (const [slot, descriptor] of descriptors.entries()) {
        if (descriptor === null) {
          this.#problem(`the descriptor of log ${slot} is damaged`);
          continue;
        }
        if (descriptor.state !== LogState.unused && descriptor.state !== LogState.clean)
          this.#problem(`log ${slot} of node ${descriptor.owner.nodeId} has not been brought to its end`);
        for (const extent of descriptor.pieces) this.#claim(LOG_TABLE, extent);
      }
    });
  }

  async #readDirectory(directory: Inode): Promise<void> {
    const names = new Set<string>();
    let subdirectories = 0;
    await this.#attempt(`directory ${directory.ino}`, async () => {
      for (const { block, pointer } of allPointers(directory).blocks)
        await this.#eachSector(pointer, pointer.count, (leaf, at) => {
          const index = block * SUB_BLOCKS_PER_BLOCK + at;
          const fault = leafFault(leaf, directory.ino, index, this.fsId, this.checksums);
          if (fault !== null) this.#problem(`directory ${directory.ino} leaf ${index} ${fault}`);
          else if (leafExists(leaf)) subdirectories += this.#readLeaf(directory, leaf, index, names);
        });
    });
    if (names.size !== directory.directoryEntries)
      this.#problem(`directory ${directory.ino} has ${names.size} names and says ${directory.directoryEntries}`);
    if (directory.nlink !== 2 + subdirectories)
      this.#problem(`directory ${directory.ino} has ${subdirectories} directories and ${directory.nlink} links`);
  }

  #readLeaf(directory: Inode, leaf: Uint8Array, index: number, names: Set<string>): number {
    let subdirectories = 0;
    const mask = 2 ** leafDepth(leaf) - 1;
    for (const entry of leafEntries(leaf)) {
      const name = Buffer.from(entry.name).toString('utf8');
      const where = `name '${name}' in directory ${directory.ino}`;
      const hash = hashName(entry.name, directory.directorySeed);
      if (hash !== entry.hash || (hash & mask) >>> 0 !== index) this.#problem(`${where} is in the wrong leaf ${index}`);
      if (names.has(name)) this.#problem(`${where} is there twice`);
      names.add(name);
      const target = this.#inodes.get(entry.ino);
      if (target === undefined || target.generation !== entry.generation) {
        this.#problem(`${where} names inode ${entry.ino}, which is not there`);
        continue;
      }
      if (target.type !== entry.type) this.#problem(`${where} has type ${entry.type}, its inode ${target.type}`);
      this.#links.set(entry.ino, (this.#links.get(entry.ino) ?? 0) + 1);
      if (target.type !== FileType.directory) continue;
      subdirectories++;
      if (target.parent !== directory.ino) this.#problem(`${where} says that its parent is ${target.parent}`);
    }
    return subdirectories;
  }

  #checkLinks(): void {
    for (const inode of this.#inodes.values()) {
      if (inode.ino < FIRST_USER_INODE) continue;
      const links = this.#links.get(inode.ino) ?? 0;
      if (inode.isDirectory ? links !== 1 : links !== inode.nlink)
        this.#problem(`inode ${inode.ino} has ${links} names and says ${inode.nlink}`);
    }
    for (const ino of [ROOT_DIRECTORY, ALLOCATION_MAP, INODE_MAP, RENAME_LOCK, LOG_TABLE])
      if (!this.#inodes.has(ino)) this.#problem(`system inode ${ino} is missing`);
  }

  async #checkMap(ino: InodeNumber, sectors: number, use: (sector: Uint8Array, index: number) => void): Promise<void> {
    const file = this.#inodes.get(ino);
    if (file === undefined) return;
    for (let block = 0; block * SUB_BLOCKS_PER_BLOCK < sectors; block++) {
      const home = findPointer(file, block);
      if (!home) this.#problem(`inode ${ino} has no block ${block}`);
      else
        await this.#eachSector(
          home,
          Math.min(SUB_BLOCKS_PER_BLOCK, sectors - block * SUB_BLOCKS_PER_BLOCK),
          (sector, at) => use(sector, block * SUB_BLOCKS_PER_BLOCK + at),
        );
    }
  }

  async #checkAllocation(): Promise<void> {
    const { geometry } = this;
    await this.#checkMap(ALLOCATION_MAP, geometry.regionCount * geometry.nsdCount, (sector, index) => {
      const fault = regionFault(sector, index, geometry, this.fsId, this.checksums);
      if (fault !== null) {
        this.#problem(`allocation map sector ${index} ${fault}`);
        return;
      }
      const owners = this.#owners[index % geometry.nsdCount]!;
      const first = Math.floor(index / geometry.nsdCount) * geometry.regionBlocks * SUB_BLOCKS_PER_BLOCK;
      for (let i = 0; i < geometry.regionBlocks * SUB_BLOCKS_PER_BLOCK && first + i < owners.length; i++) {
        const used = ((sector[bitmapAt(0) + (i >> 3)]! >> (i & 7)) & 1) === 1;
        if (used && owners[first + i] === 0) this.#lostSubBlocks++;
        if (!used && owners[first + i] !== 0)
          this.#problem(
            `sub-block ${first + i} of NSD ${index % geometry.nsdCount} is free, and inode ${owners[first + i]}'s`,
          );
      }
    });
  }

  async #checkInodeMap(): Promise<void> {
    await this.#checkMap(INODE_MAP, this.geometry.segmentCount, (sector, segment) => {
      const fault = segmentFault(sector, segment, this.fsId, this.checksums);
      if (fault !== null) {
        this.#problem(`inode map segment ${segment} ${fault}`);
        return;
      }
      for (let slot = 0; slot < INODES_PER_SEGMENT; slot++) {
        const ino = inodeNumber(segment * INODES_PER_SEGMENT + slot);
        const present = this.#inodes.has(ino) || ino < FIRST_USER_INODE;
        const used = inodeUsed(sector, slot);
        if (used && !present) this.#lostInodes++;
        if (!used && present) this.#problem(`inode ${ino} is in use, its number is free`);
      }
    });
  }
}
