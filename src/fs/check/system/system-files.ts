/**
 * The files that a mount can't do without, and which nothing names: the inode file, the maps, the table of logs. Their inodes are read; and where one, or an
 * indirect block below it, is damaged, or doesn't lead to what it should, its pointers are found without it.
 *
 * The maps and the table of logs are where mkfs has put them, which follows from the geometry. The inode file grows: its blocks are looked for on all NSDs.
 * Nothing is believed because of where it is: a sector says itself what it is, under its checksum. The rest of a check goes on with what was found, as
 * if it had been mended already; what can't be found leaves the check blind (Scan.blind).
 */

import { FsError } from '../../../common/errors.js';
import { epoch, type InodeNumber, type NsdIndex } from '../../../common/ids.js';
import { BLOCK_BYTES, SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../../common/units.js';
import { dirtyIndirects, findPointer, type PointerHost } from '../../block-map.js';
import { type BlockPointer, blockPointer } from '../../block-pointer.js';
import { FileType } from '../../file-system-api.js';
import type { Inode } from '../../inode.js';
import { decodeInode, encodeInode, type InodeFields } from '../../inode-format.js';
import { ALLOCATION_MAP, type Extent, INODE_FILE, INODE_MAP, LOG_TABLE } from '../../layout.js';
import { BITMAPS_AT, regionFault } from '../../map-formats.js';
import { layOutSystemFiles, MkfsSpace, systemFileSectors, systemInode } from '../../mkfs-layout.js';
import { isZero, Magic } from '../../sector.js';
import type { SectorEdits } from '../check-storage.js';
import { FreeSpace } from '../free-space.js';
import { salvageInode } from '../inode-salvage.js';
import { walkPointers } from '../pointer-walk.js';
import type { Scan } from '../scan.js';
import { inodeFileBlocks, placeText } from './inode-file.js';
import { type IndirectAt, indirectKey, indirectsAbove, pointerTree } from './pointer-tree.js';
import { type FoundBlock, searchSystem } from './search.js';
import { type Holding, holdingOf, SYSTEM_FILES } from './structures.js';

/** As it is, or as a repair will make it. */
export interface SystemFile {
  readonly ino: InodeNumber;
  readonly fields: InodeFields;
  /** Ascending. */
  readonly blocks: ReadonlyMap<number, BlockPointer>;
  /** Those that there are. */
  readonly indirects: readonly Extent[];
}

/** What an inode says. */
interface Present {
  readonly fault: string | null;
  readonly fields: InodeFields | null;
  readonly blocks: ReadonlyMap<number, BlockPointer>;
  readonly indirects: ReadonlyMap<string, Extent>;
}

/** When mkfs put it there is not known, and nobody asks: a pointer of the system's keeps its place before all others. */
const BIRTH_EPOCH = 1;
const UNREADABLE = 'it can not be read, its bytes do not have their checksum';

export async function findSystemFiles(scan: Scan): Promise<void> {
  const finder = new SystemFinder(scan);
  await finder.start();
  for (const ino of [ALLOCATION_MAP, INODE_MAP, LOG_TABLE]) await finder.findLaidOut(ino);
  await finder.findInodeFile();
}

class SystemFinder {
  readonly #scan: Scan;
  readonly #present = new Map<InodeNumber, Present>();
  /** Of mkfs; empty, if it can't have laid them out. */
  readonly #laid = new Map<InodeNumber, Inode>();
  /** Something of these files is where mkfs puts it. */
  #laidOut: boolean | null = null;
  #found: FoundBlock[] | null = null;

  constructor(scan: Scan) {
    this.#scan = scan;
  }

  async start(): Promise<void> {
    const scan = this.#scan;
    for (const ino of SYSTEM_FILES) this.#present.set(ino, await readPresent(scan, ino));
    await this.#layOut();
  }

  async #isLaidOut(): Promise<boolean> {
    if (this.#laidOut !== null) return this.#laidOut;
    const first = this.#laidAt(INODE_FILE, 0);
    this.#laidOut = false;
    if (first === null || !isSamePlace(first, this.#scan.superblock.inodeFile)) return false;
    for (const ino of [ALLOCATION_MAP, INODE_MAP, LOG_TABLE])
      this.#laidOut ||= (await this.#holding(ino, 0, this.#laidAt(ino, 0))) === 'its own';
    return this.#laidOut;
  }

  async #layOut(): Promise<void> {
    const { geometry, fsId, checksums } = this.#scan;
    const space = new MkfsSpace(geometry, this.#scan.superblock.name);
    const host: PointerHost = {
      fsId,
      geometry,
      checksums,
      parts: { epoch: () => epoch(BIRTH_EPOCH) },
      allocator: { allocateMetadata: (_, __, count) => Promise.resolve(space.take(count)) },
      readSectors: () => Promise.reject(new FsError('internal', { op: 'fs.check', detail: 'reads nothing' })),
    };
    try {
      const laid = await layOutSystemFiles(host, 0n);
      for (const inode of Object.values(laid)) this.#laid.set(inode.ino, inode);
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'noSpace') throw error;
    }
  }
  #laidAt(ino: InodeNumber, block: number): BlockPointer | null {
    const inode = this.#laid.get(ino);
    return inode === undefined ? null : (findPointer(inode, block) ?? null);
  }

  async #holding(ino: InodeNumber, block: number, home: BlockPointer | null): Promise<Holding> {
    if (home === null || home.count !== SUB_BLOCKS_PER_BLOCK) return 'something else';
    return holdingOf(this.#scan, ino, block, home);
  }

  // The maps, and the table of logs

  async findLaidOut(ino: InodeNumber): Promise<void> {
    const scan = this.#scan;
    const present = this.#present.get(ino)!;
    const blocks = new Map<number, BlockPointer>();
    const count = Math.ceil(systemFileSectors(scan.geometry, ino) / SUB_BLOCKS_PER_BLOCK);
    const moved: number[] = [];
    for (let block = 0; block < count; block++) {
      const home = await this.#homeOf(ino, block, present);
      if (typeof home === 'string') {
        const why = present.fault ?? `block ${block} of it is not where it says`;
        scan.blind = true;
        scan.damaged.add(ino);
        scan.report('systemInode', { ino }, `${why}; not mended: ${home}`);
        return;
      }
      const has = present.blocks.get(block);
      if (has === undefined || !isSamePlace(has, home)) moved.push(block);
      blocks.set(block, home);
    }
    if (present.fault === null && moved.length === 0 && present.blocks.size === blocks.size) {
      this.#know(ino, present.fields!, blocks, [...present.indirects.values()]);
      return;
    }
    const homes = new Map(present.indirects);
    for (const { level, firstBlock, home } of (await this.#isLaidOut()) ? dirtyIndirects(this.#laid.get(ino)!) : [])
      if (!homes.has(indirectKey({ level, firstBlock }))) homes.set(indirectKey({ level, firstBlock }), home);
    const why = present.fault ?? `its blocks ${moved.join(', ')} are not where it says`;
    this.#remake(ino, why, blocks, homes);
  }

  /** Where a block of such a file is; or why that is not known. */
  async #homeOf(ino: InodeNumber, block: number, present: Present): Promise<BlockPointer | string> {
    const has = present.blocks.get(block) ?? null;
    if ((await this.#holding(ino, block, has)) === 'its own') return has!;
    const laid = this.#laidAt(ino, block);
    const there = await this.#holding(ino, block, laid);
    if (there === 'its own') return laid!;
    // What is in it is gone, and will be made anew.
    if (laid !== null && has !== null && isSamePlace(has, laid)) return has;
    if (laid !== null && there === 'damage' && (await this.#isLaidOut())) return laid;
    const homes = (await this.#search()).find((one) => one.ino === ino && one.block === block)?.homes ?? [];
    if (homes.length === 1) return blockPointer(homes[0]!, BIRTH_EPOCH);
    if (homes.length === 0 && has !== null && present.fault === null) return has;
    return homes.length === 0
      ? `nothing of its block ${block} is found, neither where mkfs puts it nor elsewhere`
      : `its block ${block} seems to be at ${homes.map(placeText).join(', and at ')}`;
  }

  // The inode file

  async findInodeFile(): Promise<void> {
    const scan = this.#scan;
    const present = this.#present.get(INODE_FILE)!;
    if (present.fault === null) {
      this.#know(INODE_FILE, present.fields!, present.blocks, [...present.indirects.values()]);
      return;
    }
    const { blocks: homes, doubt } = await inodeFileBlocks(scan, await this.#search());
    if (doubt !== null) {
      scan.blind = true;
      scan.damaged.add(INODE_FILE);
      scan.report('systemInode', { ino: INODE_FILE }, `${present.fault}; not mended: ${doubt}`);
      return;
    }
    const blocks = new Map<number, BlockPointer>();
    for (const [block, home] of homes) blocks.set(block, blockPointer(home, BIRTH_EPOCH));
    for (const [block, pointer] of present.blocks) {
      const found = homes.get(block);
      if (found === undefined ? await this.#isNobodys(pointer, homes) : isSamePlace(found, pointer))
        blocks.set(block, pointer);
    }
    const ascending = new Map([...blocks].sort(([a], [b]) => a - b));
    this.#remake(INODE_FILE, present.fault, ascending, present.indirects);
  }

  /** A block of which the damaged inode says that it is the inode file's, and in which there is nothing that could say so: zeros, or nothing legible. */
  async #isNobodys(pointer: BlockPointer, homes: ReadonlyMap<number, Extent>): Promise<boolean> {
    if (pointer.count !== SUB_BLOCKS_PER_BLOCK || [...homes.values()].some((home) => isSamePlace(home, pointer)))
      return false;
    let isEmpty = true;
    await this.#scan.storage.each(pointer, SUB_BLOCKS_PER_BLOCK, (sector) => {
      if (sector !== null && !isZero(sector)) isEmpty = false;
    });
    return isEmpty;
  }

  async #search(): Promise<FoundBlock[]> {
    this.#found ??= await searchSystem(this.#scan, (nsd, block) => this.#isFree(nsd, block));
    return this.#found;
  }

  /** By the allocation map, where that is known and whole. */
  #region: { readonly index: number; readonly sector: Uint8Array | null } = { index: -1, sector: null };
  async #isFree(nsd: NsdIndex, block: number): Promise<boolean> {
    const scan = this.#scan;
    const { regionBlocks, nsdCount } = scan.geometry;
    const index = Math.floor(block / regionBlocks) * nsdCount + nsd;
    if (this.#region.index !== index) {
      const home = scan.systemSector(ALLOCATION_MAP, index);
      const sector = home === null ? null : await scan.storage.readOne(home.nsd, home.sector);
      const isWhole = sector !== null && regionFault(sector, index, scan.geometry, scan.fsId, scan.checksums) === null;
      this.#region = { index, sector: isWhole ? sector : null };
    }
    const { sector } = this.#region;
    if (sector === null) return false;
    const at = BITMAPS_AT + (block % regionBlocks) * BITMAP_BYTES;
    return sector.subarray(at, at + BITMAP_BYTES).every((byte) => byte === 0);
  }

  // What comes of it

  #know(
    ino: InodeNumber,
    fields: InodeFields,
    blocks: ReadonlyMap<number, BlockPointer>,
    indirects: readonly Extent[],
  ): void {
    this.#scan.system.set(ino, { ino, fields, blocks, indirects });
  }

  #remake(
    ino: InodeNumber,
    why: string,
    blocks: ReadonlyMap<number, BlockPointer>,
    homes: ReadonlyMap<string, Extent>,
  ): void {
    const scan = this.#scan;
    const fields = systemInode(ino, scan.superblock.birthtimeNs);
    const last = Math.max(...blocks.keys());
    fields.sizeBytes =
      ino === INODE_FILE ? (last + 1) * BLOCK_BYTES : systemFileSectors(scan.geometry, ino) * SECTOR_BYTES;
    const above = new Set([...blocks.keys()].flatMap(indirectsAbove).map(indirectKey));
    const used = [...homes].filter(([key]) => above.has(key)).map(([, home]) => home);
    fields.allocatedSubBlocks = blocks.size * SUB_BLOCKS_PER_BLOCK + above.size;
    this.#know(ino, fields, blocks, used);
    const { fsId, superblock, geometry } = scan;
    const mend = `made anew, with ${blocks.size} blocks that say themselves that they are its`;
    scan.report('systemInode', { ino }, why, mend, async (edits: SectorEdits) => {
      const free = new FreeSpace(scan);
      const homeOf = async (at: IndirectAt): Promise<Extent> => {
        const home = homes.get(indirectKey(at));
        if (home !== undefined) return home;
        if (scan.blind) {
          const detail = 'its indirect blocks need space, and what is free is not known';
          throw new FsError('noSpace', { op: 'fs.repair', object: `inode ${ino}`, detail });
        }
        return free.take(1, geometry.metadataCopies);
      };
      const { area, indirects } = await pointerTree(
        blocks,
        { ino, generation: fields.generation, fsId },
        BIRTH_EPOCH,
        homeOf,
      );
      for (const { home, sector } of indirects) edits.put(home.nsd, home.sector, sector);
      await edits.commit();
      const sector = new Uint8Array(SECTOR_BYTES);
      encodeInode(ino, { ...fields, area }, sector, fsId);
      edits.put(superblock.inodeFile.nsd, superblock.inodeFile.sector + ino, sector);
    });
  }
}

const BITMAP_BYTES = SUB_BLOCKS_PER_BLOCK / 8;
const isSamePlace = (a: Extent, b: Extent): boolean => a.nsd === b.nsd && a.sector === b.sector;

async function readPresent(scan: Scan, ino: InodeNumber): Promise<Present> {
  const { nsd, sector: first } = scan.superblock.inodeFile;
  const sector = await scan.storage.readOne(nsd, first + ino);
  const blocks = new Map<number, BlockPointer>();
  const indirects = new Map<string, Extent>();
  const { fields, fault } = sector === null ? { fields: null, fault: UNREADABLE } : fieldsOf(scan, ino, sector);
  let broken: string | null = null;
  if (fields !== null)
    await walkPointers(scan, ino, fields, {
      block: (block, pointer) => blocks.set(block, pointer),
      indirect: ({ pointer, level, firstBlock }) => indirects.set(indirectKey({ level, firstBlock }), pointer),
      broken: ({ pointer, level, firstBlock }, why) => {
        broken ??= `its indirect block of level ${level} from block ${firstBlock} on: ${why}`;
        // What a sound inode says of where it is, is so; what it was doesn't matter then.
        if (fault === null && pointer.count === 1) indirects.set(indirectKey({ level, firstBlock }), pointer);
      },
    });
  const start = blocks.get(0);
  const astray =
    ino === INODE_FILE && (start === undefined || !isSamePlace(start, scan.superblock.inodeFile))
      ? 'its first block is not where the superblock says'
      : null;
  return { fault: fault ?? broken ?? astray, fields, blocks, indirects };
}

/** Also of what is damaged, where pointers can still be read in it. */
function fieldsOf(
  scan: Scan,
  ino: InodeNumber,
  sector: Uint8Array,
): { fields: InodeFields | null; fault: string | null } {
  const { fsId, geometry, checksums } = scan;
  const decoded = (bytes: Uint8Array): InodeFields | null => {
    const fields = decodeInode(ino, bytes, fsId, geometry, checksums);
    return fields === null || fields.type !== FileType.regular ? null : fields;
  };
  try {
    const fields = decoded(sector);
    return { fields, fault: fields === null ? 'is missing' : null };
  } catch (error) {
    const fault = (error as { detail?: string }).detail ?? String(error);
    const identity = { magic: Magic.inode, fsId, owner: ino, index: ino };
    const salvaged = salvageInode(ino, sector, identity, geometry, checksums);
    return { fields: salvaged === null ? null : decoded(salvaged.sector), fault };
  }
}
