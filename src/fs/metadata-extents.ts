/**
 * Everything that has as many copies as the file system has of metadata: where it is, as it is in place on the NSDs. For who compares copies. Where
 * the file system is in use while this reads it, what it says of an inode may be of two moments; `extentsOf` under the inode's tokens is exact.
 */
import { isDamage } from '../common/damage.js';
import { epoch, type InodeNumber, inodeNumber } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { allPointers, loadForCut, type PointerHost } from './block-map.js';
import { Inode } from './inode.js';
import { decodeInode, FREE_INODE } from './inode-format.js';
import { ALLOCATION_MAP, type Extent, INODE_FILE, INODE_MAP, INODES_PER_BLOCK, LOG_TABLE } from './layout.js';
import { LOG_RUN, type LogStorage, withSectors } from './log/log-reader.js';
import { readSuperblock } from './mount.js';
import { fsIdOf, type Superblock } from './superblock.js';
import { keptBlock } from './xattr-format.js';

const NO_BYTES = new Uint8Array(0);

export interface MetadataOf {
  readonly ino: InodeNumber;
  /** inodes: a block of them; map, table: of the two maps and of the table of logs; owned: indirect blocks, leaves, attributes. */
  readonly kind: 'inodes' | 'map' | 'table' | 'owned';
  /** Null: the inode has some, and they could not be followed. */
  readonly extent: Extent | null;
  /** Number of its first sector in what it is part of: of inodes the inode, of maps the sector. */
  readonly first: number;
}

/** While nobody has it mounted. */
export async function allMetadata(storage: LogStorage): Promise<readonly Extent[]> {
  const found: Extent[] = [];
  for await (const { extent } of metadataOf(storage, await readSuperblock(storage)))
    if (extent !== null) found.push(extent);
  return found;
}

export async function* metadataOf(storage: LogStorage, superblock: Superblock): AsyncGenerator<MetadataOf> {
  const { geometry, inodeFile } = superblock;
  const { checksums } = storage;
  const fsId = fsIdOf(superblock.fsUuid);
  const host: PointerHost = {
    fsId,
    geometry,
    checksums,
    parts: { epoch: () => epoch(1) },
    allocator: { allocateMetadata: () => Promise.reject(new Error('nothing is allocated here')) },
    readSectors: (nsd, sector, count, use) =>
      withSectors(storage, count, async (bytes, offsetBytes) => {
        const versions = new Uint32Array(count);
        const memory = { offsetBytes, lengthBytes: count * SECTOR_BYTES };
        await storage.nsds.read([{ nsd, sector, memory, versions }]);
        return use(bytes, versions);
      }),
  };
  const inodeAt = (ino: number, sector: Uint8Array): Inode | null => {
    const fields = decodeInode(inodeNumber(ino), sector, fsId, geometry, checksums);
    if (fields === null || fields.type === FREE_INODE) return null;
    const inode = new Inode(inodeNumber(ino));
    inode.assign(fields);
    return inode;
  };
  const file = await host.readSectors(inodeFile.nsd, inodeFile.sector + INODE_FILE, 1, (bytes) =>
    inodeAt(INODE_FILE, bytes),
  );
  if (file === null) return;
  await loadForCut(host, file, 0);
  const { blocks, indirects } = allPointers(file);
  for (const extent of indirects) yield { ino: INODE_FILE, kind: 'owned', extent, first: 0 };
  for (const { block, pointer } of blocks) {
    const first = block * INODES_PER_BLOCK;
    yield { ino: INODE_FILE, kind: 'inodes', extent: pointer, first };
    let run: Uint8Array = NO_BYTES;
    for (let at = 0; at < pointer.count; at++) {
      const ino = inodeNumber(first + at);
      const inRun = at % LOG_RUN;
      if (inRun === 0) {
        const count = Math.min(LOG_RUN, pointer.count - at);
        run = await host.readSectors(pointer.nsd, pointer.sector + at, count, (found) => found.slice());
      }
      if (ino === INODE_FILE) continue;
      const sector = run.subarray(inRun * SECTOR_BYTES, (inRun + 1) * SECTOR_BYTES);
      let extents: Awaited<ReturnType<typeof extentsOf>>;
      try {
        const inode = inodeAt(ino, sector);
        if (inode === null) continue;
        extents = await extentsOf(host, inode);
      } catch (error) {
        // What merely could not be read now is not passed over.
        if (!isDamage(error)) throw error;
        yield { ino, kind: 'owned', extent: null, first: 0 };
        continue;
      }
      for (const { extent, paged } of extents) yield { ino, kind: kindOf(ino, paged), extent, first: paged ?? 0 };
    }
  }
}

const kindOf = (ino: InodeNumber, paged: number | null): MetadataOf['kind'] => {
  if (paged === null) return 'owned';
  if (ino === ALLOCATION_MAP || ino === INODE_MAP) return 'map';
  return ino === LOG_TABLE ? 'table' : 'owned';
};

/** Of an inode, beside itself. `paged`: the sector of the file that it begins with, where the page cache has it; null: it has not. */
export async function extentsOf(
  host: PointerHost,
  inode: Inode,
): Promise<{ readonly extent: Extent; readonly paged: number | null }[]> {
  const found: { extent: Extent; paged: number | null }[] = [];
  await loadForCut(host, inode, 0);
  const { blocks, indirects } = allPointers(inode);
  for (const extent of indirects) found.push({ extent, paged: null });
  if (isMetadataFile(inode))
    for (const { block, pointer } of blocks) found.push({ extent: pointer, paged: block * SUB_BLOCKS_PER_BLOCK });
  const attributes = keptBlock(inode.kept);
  if (attributes !== null) found.push({ extent: attributes.pointer, paged: null });
  return found;
}

/** What it holds is metadata too. */
const isMetadataFile = (inode: Inode): boolean =>
  inode.isDirectory || inode.ino === ALLOCATION_MAP || inode.ino === INODE_MAP || inode.ino === LOG_TABLE;
