/**
 * Everything that has as many copies as the file system has of metadata: where it is, read from the NSDs. For who compares copies while nobody has the
 * file system mounted.
 */
import { epoch, inodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { allPointers, loadForCut, type PointerHost } from './block-map.js';
import { Inode } from './inode.js';
import { decodeInode, FREE_INODE } from './inode-format.js';
import { ALLOCATION_MAP, type Extent, INODE_FILE, INODE_MAP, INODES_PER_BLOCK, LOG_TABLE } from './layout.js';
import { findLogTable, type LogStorage, readDescriptors, withSectors } from './log/log-reader.js';
import { readSuperblock } from './mount.js';
import { fsIdOf, type Superblock } from './superblock.js';
import { keptBlock } from './xattr-format.js';

/** Of the logs only where they are: what is in them counts for itself. */
export interface MetadataExtents {
  readonly extents: readonly Extent[];
  readonly logs: readonly Extent[];
}

export async function allMetadata(storage: LogStorage): Promise<readonly Extent[]> {
  return (await findMetadata(storage, await readSuperblock(storage))).extents;
}

export async function findMetadata(storage: LogStorage, superblock: Superblock): Promise<MetadataExtents> {
  const { geometry, inodeFile } = superblock;
  const fsId = fsIdOf(superblock.fsUuid);
  const { checksums } = storage;
  const host: PointerHost = {
    fsId,
    geometry,
    checksums,
    parts: { epoch: () => epoch(1) },
    allocator: { allocateMetadata: () => Promise.reject(new Error('nothing is allocated here')) },
    readSectors: (nsd, sector, count, use) =>
      withSectors(storage, count, async (bytes, offsetBytes) => {
        const versions = new Uint32Array(count);
        await storage.nsds.read([
          { nsd, sector, memory: { offsetBytes, lengthBytes: count * SECTOR_BYTES }, versions },
        ]);
        return use(bytes, versions);
      }),
  };
  const extents: Extent[] = [];
  const logs: Extent[] = [];
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
  if (file === null) return { extents, logs };
  await loadForCut(host, file, 0);
  const { blocks, indirects } = allPointers(file);
  extents.push(...indirects);
  for (const { block, pointer } of blocks) {
    extents.push(pointer);
    const bytes = await host.readSectors(pointer.nsd, pointer.sector, pointer.count, (found) => found.slice());
    for (let at = 0; at < pointer.count; at++) {
      const inode = inodeAt(block * INODES_PER_BLOCK + at, bytes.subarray(at * SECTOR_BYTES, (at + 1) * SECTOR_BYTES));
      if (inode !== null && inode.ino !== INODE_FILE) extents.push(...(await extentsOf(host, inode)));
    }
  }
  const volume = { ...storage, fsId, geometry, inodeFile };
  for (const descriptor of await readDescriptors(volume, await findLogTable(volume)))
    if (descriptor !== null) logs.push(...descriptor.pieces);
  return { extents, logs };
}

async function extentsOf(host: PointerHost, inode: Inode): Promise<Extent[]> {
  const found: Extent[] = [];
  await loadForCut(host, inode, 0);
  const { blocks, indirects } = allPointers(inode);
  found.push(...indirects);
  if (isMetadataFile(inode)) found.push(...blocks.map(({ pointer }) => pointer));
  const attributes = keptBlock(inode.kept);
  if (attributes !== null) found.push(attributes.pointer);
  return found;
}

/** What it holds is metadata too. */
export const isMetadataFile = (inode: Inode): boolean =>
  inode.isDirectory || inode.ino === ALLOCATION_MAP || inode.ino === INODE_MAP || inode.ino === LOG_TABLE;
