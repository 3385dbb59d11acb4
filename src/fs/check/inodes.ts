/**
 * The first phase: every inode, where its space is, and whether what it points to for itself (indirect blocks, attributes) is what it should be.
 * Space of logs is told first, so that whoever shares it with them is not the one who keeps it.
 */
import { type InodeNumber, inodeNumber } from '../../common/ids.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { pointerFault, readPointer, writePointer } from '../block-pointer.js';
import { FileType } from '../file-system-api.js';
import { INDIRECT_POINTERS, INDIRECT_POINTERS_AT, span } from '../indirect-format.js';
import { decodeInode, EMPTY_AREA, encodeInode, FREE_INODE, type InodeFields, InodeFlag } from '../inode-format.js';
import { type Extent, FIRST_USER_INODE, INODE_FILE, INODES_PER_BLOCK, RENAME_LOCK, ROOT_DIRECTORY } from '../layout.js';
import { Magic, writeHeader } from '../sector.js';
import { decodeXattrBlock, encodeKept, keptBlock, keptEntries, XattrSpace } from '../xattr-format.js';
import { clearInode, editInode, setPointerAt } from './inode-edits.js';
import { isItself, salvageInode } from './inode-salvage.js';
import { type IndirectPlace, walkPointers } from './pointer-walk.js';
import type { Scan } from './scan.js';
import { SYSTEM_FILES } from './system/structures.js';

export const UNREADABLE = 'it can not be read, its bytes do not have their checksum';

export const detailOf = (error: unknown): string => (error as { detail?: string }).detail ?? String(error);

/** False: there is no way to the inodes, and nothing more to be said. */
export async function checkInodes(scan: Scan): Promise<boolean> {
  await scan.logs.read();
  const own = scan.system.get(INODE_FILE);
  if (own === undefined) return false;
  const blocks = [...own.blocks].sort(([a], [b]) => a - b);
  for (const [at, [block, extent]] of blocks.entries()) {
    scan.progress('inodes', at, blocks.length);
    scan.inodes.addBlock(block, extent);
    const present: { ino: InodeNumber; fields: InodeFields }[] = [];
    await scan.storage.each(extent, INODES_PER_BLOCK, (sector, index) => {
      const ino = inodeNumber(block * INODES_PER_BLOCK + index);
      if (ino === 0 || isSystemFile(ino)) return;
      const fields = decoded(scan, ino, sector);
      if (fields !== null) present.push({ ino, fields });
    });
    for (const { ino, fields } of present) await checkInode(scan, ino, fields);
  }
  for (const { ino, fields, blocks: pointers, indirects } of scan.system.values()) {
    scan.inodes.set(ino, fields.type, fields.generation, fields.nlink);
    for (const extent of [...pointers.values(), ...indirects]) scan.claim(extent);
  }
  checkSystemInodes(scan);
  return true;
}

const isSystemFile = (ino: InodeNumber): boolean => SYSTEM_FILES.some((file) => file === ino);

const identityOf = (scan: Scan, ino: InodeNumber) => ({ magic: Magic.inode, fsId: scan.fsId, owner: ino, index: ino });
const salvage = (scan: Scan, ino: InodeNumber, sector: Uint8Array) =>
  salvageInode(ino, sector, identityOf(scan, ino), scan.geometry, scan.checksums);

/** Null: free, never written, or damaged (which is reported). */
function decoded(scan: Scan, ino: InodeNumber, sector: Uint8Array | null): InodeFields | null {
  let why = UNREADABLE;
  try {
    if (sector !== null) {
      const fields = decodeInode(ino, sector, scan.fsId, scan.geometry, scan.checksums);
      if (fields === null) return null;
      scan.inodes.set(ino, fields.type, fields.generation, fields.nlink);
      return fields.type === FREE_INODE ? null : fields;
    }
  } catch (error) {
    why = detailOf(error);
  }
  scan.damaged.add(ino);
  const kind = sector === null ? 'inodeUnreadable' : 'inodeDamaged';
  const salvaged = sector === null ? null : salvage(scan, ino, sector);
  if (salvaged !== null) {
    const dropped = salvaged.dropped.length === 0 ? '' : `, without ${salvaged.dropped.join(', ')}`;
    scan.report(kind, { ino }, why, `kept as it reads${dropped}`, async (edits) => {
      const home = scan.inodes.home(ino)!;
      edits.put(home.nsd, home.sector, salvaged.sector);
    });
  } else
    scan.report(kind, { ino }, `${why}: what was in it is lost`, 'freed, with what it pointed to', async (edits) =>
      clearInode(scan, edits, ino),
    );
  return null;
}

async function checkInode(scan: Scan, ino: InodeNumber, fields: InodeFields): Promise<void> {
  let count = 0;
  const take = (extent: Extent): void => {
    scan.claim(extent);
    count += extent.count;
  };
  await walkPointers(scan, ino, fields, {
    block: (_, pointer) => take(pointer),
    indirect: ({ pointer }) => take(pointer),
    broken: (place, why, sector) => {
      reportBrokenIndirect(scan, ino, fields, place, why, sector);
    },
  });
  const attributes = keptBlock(fields.kept);
  if (attributes !== null && (await checkAttributes(scan, ino, fields))) take(attributes.pointer);
  const counted = ino >= FIRST_USER_INODE || ino === ROOT_DIRECTORY;
  if (counted && count !== fields.allocatedSubBlocks)
    scan.report(
      'spaceCount',
      { ino },
      `has ${count} sub-blocks and says ${fields.allocatedSubBlocks}`,
      `${count} written`,
      (edits) =>
        editInode(scan, edits, ino, (now) => {
          now.allocatedSubBlocks = count;
        }),
    );
  if (fields.type !== FileType.directory) return;
  scan.inodes.directories.set(ino, {
    ino,
    generation: fields.generation,
    parent: fields.parent,
    seed: fields.directorySeed,
    depth: fields.directoryDepth,
    entries: fields.directoryEntries,
    sizeBytes: fields.sizeBytes,
    namedIn: inodeNumber(0),
    name: EMPTY_AREA,
    foundEntries: 0,
    foundDirectories: 0,
    foundDepth: 0,
    foundBytes: 0,
  });
}

function reportBrokenIndirect(
  scan: Scan,
  ino: InodeNumber,
  { generation }: InodeFields,
  { pointer, site, level, firstBlock }: IndirectPlace,
  why: string,
  sector: Uint8Array | null,
): void {
  const last = firstBlock + INDIRECT_POINTERS * span(level) - 1;
  const object = `inode ${ino}, indirect block of level ${level} from block ${firstBlock} on`;
  const identity = { magic: Magic.indirect, fsId: scan.fsId, owner: ino, index: firstBlock };
  const ours = sector !== null && pointer.count === 1 && isItself(sector, identity, scan.checksums);
  if (ours && sector[40] === level) {
    const dropped: number[] = [];
    const image = sector.slice();
    writeHeader(image, { ...identity, generation });
    for (let slot = 0; slot < INDIRECT_POINTERS; slot++) {
      const at = INDIRECT_POINTERS_AT + slot * 16;
      const below = readPointer(image, at);
      if (below === null || pointerFault(below, scan.geometry) === null) continue;
      writePointer(image, at, null);
      dropped.push(firstBlock + slot * span(level));
    }
    const lost = dropped.length === 0 ? '' : `; what was at blocks ${dropped.join(', ')} is lost`;
    scan.report('indirectDamaged', { object, ino }, `${why}${lost}`, 'kept as it reads', async (edits) =>
      edits.put(pointer.nsd, pointer.sector, image),
    );
    return;
  }
  scan.report(
    'indirectDamaged',
    { object, ino },
    `${why}: blocks ${firstBlock} to ${last} of the file are lost`,
    'cut off: these blocks become a hole',
    (edits) => setPointerAt(scan, edits, ino, site, null),
  );
}

/** False: the block is not what it should be. */
async function checkAttributes(scan: Scan, ino: InodeNumber, fields: InodeFields): Promise<boolean> {
  const { pointer, lengthBytes } = keptBlock(fields.kept)!;
  const owner = { ino, generation: fields.generation };
  const sectors: Uint8Array[] = [];
  let why = UNREADABLE;
  for (let at = 0; at < pointer.count; at++) {
    const sector = await scan.storage.readOne(pointer.nsd, pointer.sector + at);
    if (sector !== null) sectors.push(sector);
  }
  if (sectors.length === pointer.count)
    try {
      decodeXattrBlock(
        Buffer.concat(sectors, pointer.count * SECTOR_BYTES),
        owner,
        lengthBytes,
        scan.fsId,
        scan.checksums,
      );
      return true;
    } catch (error) {
      why = detailOf(error);
    }
  const object = `attributes of inode ${ino}`;
  const target = fields.type === FileType.symlink && fields.sizeBytes > 0 && (fields.flags & InodeFlag.inline) === 0;
  const inline = keptEntries(fields.kept);
  if (target && !inline.some(({ space }) => space === XattrSpace.linkTarget))
    scan.report(
      'attributesDamaged',
      { object, ino },
      `${why}: the target of the link is lost`,
      'freed',
      async (edits) => clearInode(scan, edits, ino),
    );
  else
    scan.report(
      'attributesDamaged',
      { object, ino },
      `${why}: ${lengthBytes} bytes of attributes are lost`,
      `dropped; ${inline.length} that are in the inode stay`,
      (edits) =>
        editInode(scan, edits, ino, (now) => {
          now.kept = encodeKept(inline, null, []);
        }),
    );
  return false;
}

function checkSystemInodes(scan: Scan): void {
  const { damaged } = scan;
  const remake = (ino: InodeNumber, why: string, mend: string, change: (fields: InodeFields) => void): void =>
    scan.report('systemInode', { ino }, why, mend, async (edits) => {
      const home = scan.inodes.home(ino)!;
      const sector = new Uint8Array(SECTOR_BYTES);
      const fields = emptyInode();
      change(fields);
      encodeInode(ino, fields, sector, scan.fsId);
      edits.put(home.nsd, home.sector, sector);
    });
  if (scan.inodes.type(RENAME_LOCK) === FREE_INODE && !damaged.has(RENAME_LOCK))
    remake(RENAME_LOCK, 'is missing', 'made anew', () => undefined);
  if (scan.inodes.type(ROOT_DIRECTORY) !== FileType.directory && !damaged.has(ROOT_DIRECTORY))
    remake(
      ROOT_DIRECTORY,
      'the root directory is missing',
      'made anew, empty: what was in it goes to /lost+found',
      (root) => {
        root.type = FileType.directory;
        root.mode = 0o755;
        root.nlink = 2;
        root.parent = ROOT_DIRECTORY;
      },
    );
}

export function emptyInode(): InodeFields {
  return {
    type: FileType.regular,
    mode: 0,
    uid: 0,
    gid: 0,
    nlink: 1,
    sizeBytes: 0,
    atimeNs: 0n,
    mtimeNs: 0n,
    ctimeNs: 0n,
    birthtimeNs: 0n,
    rdev: 0,
    flags: 0,
    placementClass: 0,
    generation: 1,
    allocatedSubBlocks: 0,
    parent: inodeNumber(0),
    directoryDepth: 0,
    directorySeed: 0,
    directoryEntries: 0,
    projectId: 0,
    tailEpoch: 0,
    kept: EMPTY_AREA,
    area: EMPTY_AREA,
  };
}
