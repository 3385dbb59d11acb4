/** An inode's sector, and pointers below it, as a repair changes them. */
import type { InodeNumber } from '../../common/ids.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { type BlockPointer, POINTER_BYTES, writePointer } from '../block-pointer.js';
import { INDIRECT_POINTERS_AT } from '../indirect-format.js';
import { decodeInode, EMPTY_AREA, encodeInode, FREE_INODE, type InodeFields } from '../inode-format.js';
import { sealSector } from '../sector.js';
import type { SectorEdits } from './check-storage.js';
import { type PointerSite, withAreaPointer } from './pointer-walk.js';
import type { Scan } from './scan.js';

export async function editInode(
  scan: Scan,
  edits: SectorEdits,
  ino: InodeNumber,
  change: (fields: InodeFields) => void,
): Promise<void> {
  const home = scan.inodes.home(ino)!;
  const sector = await edits.open(home.nsd, home.sector);
  if (sector === null) return;
  sealSector(sector, scan.checksums);
  const fields = decodeInode(ino, sector, scan.fsId, scan.geometry, scan.checksums);
  if (fields === null) return;
  change(fields);
  encodeInode(ino, fields, sector, scan.fsId);
}

export async function readInode(scan: Scan, edits: SectorEdits, ino: InodeNumber): Promise<InodeFields | null> {
  const home = scan.inodes.home(ino);
  const sector = home === null ? null : await edits.open(home.nsd, home.sector);
  if (sector === null) return null;
  sealSector(sector, scan.checksums);
  return decodeInode(ino, sector, scan.fsId, scan.geometry, scan.checksums);
}

/** As the last of its names going does it; what it pointed to is found to be lost when everything is read again. */
export const freeInode = (scan: Scan, edits: SectorEdits, ino: InodeNumber): Promise<void> =>
  editInode(scan, edits, ino, (fields) => {
    fields.type = FREE_INODE;
    fields.flags = 0;
    fields.nlink = 0;
    fields.sizeBytes = 0;
    fields.allocatedSubBlocks = 0;
    fields.directoryDepth = 0;
    fields.directoryEntries = 0;
    fields.kept = EMPTY_AREA;
    fields.area = EMPTY_AREA;
  });

/** As if it had never been. */
export function clearInode(scan: Scan, edits: SectorEdits, ino: InodeNumber): void {
  const home = scan.inodes.home(ino)!;
  edits.put(home.nsd, home.sector, new Uint8Array(SECTOR_BYTES));
}

export async function setPointerAt(
  scan: Scan,
  edits: SectorEdits,
  ino: InodeNumber,
  site: PointerSite,
  pointer: BlockPointer | null,
): Promise<void> {
  if (site.kind === 'area') {
    await editInode(scan, edits, ino, (fields) => {
      fields.area = withAreaPointer(fields.area, site.entry, pointer);
    });
    return;
  }
  const sector = await edits.open(site.home.nsd, site.home.sector);
  if (sector !== null) writePointer(sector, INDIRECT_POINTERS_AT + site.slot * POINTER_BYTES, pointer);
}
