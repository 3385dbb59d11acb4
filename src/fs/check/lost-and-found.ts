/**
 * The directory /lost+found: what has no name any more gets its inode number as one. It is made when it is first needed, mode 0700, root's.
 *
 * Cut in the midst: an inode that has no name yet gets one the next time, one whose link count is not right yet is counted then.
 */
import { FsError } from '../../common/errors.js';
import { type InodeNumber, inodeNumber } from '../../common/ids.js';
import { FileType } from '../file-system-api.js';
import { encodeInode, FREE_INODE } from '../inode-format.js';
import { FIRST_USER_INODE, INODE_MAP, INODES_PER_BLOCK, ROOT_DIRECTORY, segmentOf } from '../layout.js';
import { segmentFault, segmentGeneration } from '../map-formats.js';
import type { SectorEdits } from './check-storage.js';
import { DirectoryEdits } from './directory-edits.js';
import { editInode } from './inode-edits.js';
import { emptyInode } from './inodes.js';
import type { Scan } from './scan.js';

const NAME = Buffer.from('lost+found');

export async function moveToLostAndFound(scan: Scan, edits: SectorEdits, ino: InodeNumber): Promise<void> {
  const home = await findOrMake(scan, edits);
  const directory = await DirectoryEdits.open(scan, edits, home);
  const type = scan.inodes.type(ino) as FileType;
  const generation = scan.inodes.generation(ino);
  let name = String(ino);
  for (let i = 1; !(await directory.insert(Buffer.from(name), { ino, generation, type })); i++) name = `${ino}.${i}`;
  if (type === FileType.directory)
    await editInode(scan, edits, ino, (fields) => {
      fields.parent = home;
    });
  await edits.commit();
}

async function findOrMake(scan: Scan, edits: SectorEdits): Promise<InodeNumber> {
  const root = await DirectoryEdits.open(scan, edits, ROOT_DIRECTORY);
  const present = await root.lookup(NAME);
  if (present?.type === FileType.directory) return present.ino;
  if (present !== null)
    throw new FsError('notDirectory', { op: 'fs.repair', object: '/lost+found', detail: 'there is something else' });
  const ino = freeNumber(scan);
  const generation = await generationFor(scan, ino);
  const sector = scan.inodes.home(ino)!;
  const bytes = new Uint8Array(4096);
  const fields = emptyInode();
  // Cut off before it has its name, it is an orphan.
  Object.assign(fields, { type: FileType.directory, mode: 0o700, nlink: 0, generation, parent: ROOT_DIRECTORY });
  encodeInode(ino, fields, bytes, scan.fsId);
  edits.put(sector.nsd, sector.sector, bytes);
  await edits.commit();
  scan.inodes.set(ino, FileType.directory, generation, 2);
  await root.insert(NAME, { ino, generation, type: FileType.directory });
  await edits.commit();
  await editInode(scan, edits, ino, (made) => {
    made.nlink = 2;
  });
  await edits.commit();
  return ino;
}

/** Its mark in the inode map, and the segment's next generation, come with the maps. */
function freeNumber(scan: Scan): InodeNumber {
  for (const block of scan.inodes.blocks())
    for (let slot = 0; slot < INODES_PER_BLOCK; slot++) {
      const ino = inodeNumber(block * INODES_PER_BLOCK + slot);
      if (ino >= FIRST_USER_INODE && scan.inodes.type(ino) === FREE_INODE) return ino;
    }
  throw new FsError('noInodes', { op: 'fs.repair', object: '/lost+found', detail: 'no inode is free for it' });
}

async function generationFor(scan: Scan, ino: InodeNumber): Promise<number> {
  const segment = segmentOf(ino);
  const home = scan.systemSector(INODE_MAP, segment);
  const sector = home === null ? null : await scan.storage.readOne(home.nsd, home.sector);
  const good = sector !== null && segmentFault(sector, segment, scan.fsId, scan.checksums) === null;
  return Math.max(scan.inodes.generation(ino) + 1, good ? segmentGeneration(sector) : 1);
}
