/**
 * What the log says about an inode. `image` of an inode is its sector as the log has it last (or the NSD, where the log has nothing), kept while
 * that is held back behind what is in memory. Images end with what is in use; the rest of the sector is zeros.
 */
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Inode } from './inode.js';
import { AREA_AT, encodeInode, FIELDS_END, type InodeFields, InodeFlag } from './inode-format.js';
import type { Extent } from './layout.js';
import { getU32, getU64, setU32, setU64 } from './sector.js';
import type { Volume } from './volume.js';
import { KEPT_AT, KEPT_BYTES, keptBlock } from './xattr-format.js';

const SIZE_AT = 56;
/** Fields that say where data is and how much: size, bytes of the area in use, sub-blocks, tail epoch; and the area. */
const EXPOSING: readonly (readonly [from: number, to: number])[] = [
  [SIZE_AT, 64],
  [108, 110],
  [112, 120],
  [140, 144],
];
const FLAGS_AT = 104;
const ALLOCATED_AT = 112;
const AREA_LENGTH_AT = 108;

/** Where images are made: one for each change of metadata, so none is allocated. */
const scratch = new Uint8Array(SECTOR_BYTES);

/** The block of attributes is metadata: it counts as soon as it is named. */
const attributeSubBlocks = (image: Uint8Array): number =>
  image.length <= KEPT_AT ? 0 : (keptBlock(image.subarray(KEPT_AT, KEPT_AT + KEPT_BYTES))?.pointer.count ?? 0);

/** What is in use of the scratch image: whole words. */
function used(kept: boolean): Uint8Array {
  const areaLength = scratch[AREA_LENGTH_AT]! | (scratch[AREA_LENGTH_AT + 1]! << 8);
  const end = areaLength > 0 ? AREA_AT + ((areaLength + 3) & ~3) : kept ? AREA_AT : FIELDS_END;
  return scratch.subarray(0, end);
}

/** As these fields say, in memory or a variation of that. Not sealed. */
export function wholeImage(volume: Volume, ino: InodeNumber, fields: InodeFields): Uint8Array {
  encodeInode(ino, fields, scratch, volume.fsId);
  return used(fields.kept.length > 0).slice();
}

/**
 * As it is in memory, without what is not exposed yet, or with that as `exposed` says. Not sealed. Valid until the next one is made; who keeps it
 * makes a copy.
 */
export function inodeImage(volume: Volume, inode: Inode, exposed: Uint8Array | null = null): Uint8Array {
  encodeInode(inode.ino, inode, scratch, volume.fsId);
  const as = exposed ?? (inode.unexposed ? inode.image : null);
  if (as !== null) expose(as);
  return used(inode.kept.length > 0);
}

/** Size, pointers and inline bytes of the scratch image as another image has them. */
function expose(as: Uint8Array): void {
  const attributes = attributeSubBlocks(scratch) - attributeSubBlocks(as);
  for (const [from, to] of EXPOSING) for (let at = from; at < to; at++) scratch[at] = as[at]!;
  scratch.fill(0, AREA_AT);
  if (as.length > AREA_AT) scratch.set(as.subarray(AREA_AT), AREA_AT);
  // A count that was too small to begin with (block-map.ts).
  setU64(scratch, ALLOCATED_AT, Math.max(0, getU64(scratch, ALLOCATED_AT) + attributes));
  const flags = (getU32(scratch, FLAGS_AT) & ~InodeFlag.inline) | (getU32(as, FLAGS_AT) & InodeFlag.inline);
  setU32(scratch, FLAGS_AT, flags);
}

/** Whether the log, or the inode's sector, says that these are the file's bytes, from `offsetBytes` on: zeros too are something to keep there (S1). */
export function isExposed(inode: Inode, offsetBytes: number, { nsd, sector, count }: Extent): boolean {
  const logged = inode.unexposed ? getU64(inode.image!, SIZE_AT) : inode.sizeBytes;
  if (offsetBytes >= (inode.concurrent ? inode.concurrentBytes : logged)) return false;
  const holds = (held: Extent): boolean =>
    held.nsd === nsd && held.sector <= sector && sector + count <= held.sector + held.count;
  return !inode.reserved.some(holds) && !inode.exposing.some(holds);
}

/**
 * In the turn in which size, pointers or inline bytes of a regular file change in memory, before they do: from here on, until they have been exposed,
 * transactions log them as they were. A write-out that is under way exposes what was there when it began, and not this.
 */
export function holdBack(volume: Volume, inode: Inode): void {
  if (!inode.holdsDataBack) return;
  inode.heldChanges++;
  if (inode.unexposed) return;
  inode.image = inodeImage(volume, inode).slice();
  inode.unexposed = true;
}
