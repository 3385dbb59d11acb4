/**
 * What the log says about an inode. `image` of an inode is its sector as the log has it last (or the NSD, where the log has nothing), kept while
 * that differs from what is in memory.
 */
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Inode } from './inode.js';
import { encodeInode, type InodeFields, InodeFlag } from './inode-format.js';
import { getU32, getU64, setU32, setU64 } from './sector.js';
import type { Volume } from './volume.js';
import { KEPT_AT, KEPT_BYTES, keptBlock } from './xattr-format.js';

/** Fields that say where data is and how much: size, bytes of the area in use, sub-blocks, tail epoch, the area. */
const EXPOSING: readonly (readonly [from: number, to: number])[] = [
  [56, 64],
  [108, 110],
  [112, 120],
  [140, 144],
  [640, SECTOR_BYTES],
];
const FLAGS_AT = 104;
const ALLOCATED_AT = 112;

/** The block of attributes is metadata: it counts as soon as it is named. */
const attributeSubBlocks = (image: Uint8Array): number =>
  keptBlock(image.subarray(KEPT_AT, KEPT_AT + KEPT_BYTES))?.pointer.count ?? 0;

/** As these fields say, in memory or a variation of that. Not sealed. */
export function wholeImage(volume: Volume, ino: InodeNumber, fields: InodeFields): Uint8Array {
  const image = new Uint8Array(SECTOR_BYTES);
  encodeInode(ino, fields, image, volume.fsId);
  return image;
}

/** As it is in memory, without what is not exposed yet. Not sealed. */
export function inodeImage(volume: Volume, inode: Inode): Uint8Array {
  const image = wholeImage(volume, inode.ino, inode);
  if (inode.unexposed && inode.image !== null) expose(image, inode.image);
  return image;
}

/** Size, pointers and inline bytes as another image has them. */
export function expose(image: Uint8Array, as: Uint8Array): void {
  const attributes = attributeSubBlocks(image) - attributeSubBlocks(as);
  for (const [from, to] of EXPOSING) image.set(as.subarray(from, to), from);
  setU64(image, ALLOCATED_AT, getU64(image, ALLOCATED_AT) + attributes);
  const flags = (getU32(image, FLAGS_AT) & ~InodeFlag.inline) | (getU32(as, FLAGS_AT) & InodeFlag.inline);
  setU32(image, FLAGS_AT, flags);
}

/**
 * In the turn in which size, pointers or inline bytes of a regular file change in memory, before they do: from here on, until they have been exposed,
 * transactions log them as they were. A write-out that is under way exposes what was there when it began, and not this.
 */
export function holdBack(volume: Volume, inode: Inode): void {
  if (!inode.holdsDataBack) return;
  inode.heldChanges++;
  if (inode.unexposed) return;
  inode.image ??= inodeImage(volume, inode);
  inode.unexposed = true;
}
