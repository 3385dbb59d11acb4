/** Where to begin, so that what is cut off a file fits into one transaction: pointers are counted from the end of the file on. */
import { areaPointer, entryOffset, loadChild, loadRoot, type PointerHost } from './block-map.js';
import { readPointer } from './block-pointer.js';
import { FILE_BLOCKS_MAX, INDIRECT_POINTERS, rootPlace, span } from './indirect-format.js';
import type { IndirectNode, Inode } from './inode.js';
import { DIRECT_POINTERS, INDIRECT_LEVELS } from './inode-format.js';
import { STEP_EXTENTS_MIN } from './log/log-records.js';

/**
 * The first block of the last piece of a file that has `extentsMax` extents at most, indirect blocks included; `fromBlock` when that is all there is
 * behind it. Only what belongs to the piece is read. Under `structure`.
 */
export async function cutPoint(
  volume: PointerHost,
  inode: Inode,
  fromBlock: number,
  extentsMax: number,
): Promise<number> {
  if (inode.isInline) return fromBlock;
  let left = Math.max(STEP_EXTENTS_MIN, extentsMax);
  const isOver = (): boolean => left-- === 0;
  /** Null: the whole of it belongs to the piece. */
  const below = async (node: IndirectNode): Promise<number | null> => {
    for (let slot = INDIRECT_POINTERS - 1; slot >= 0; slot--) {
      const first = node.firstBlock + slot * span(node.level);
      const end = Math.min(FILE_BLOCKS_MAX, first + span(node.level));
      if (end <= fromBlock) return fromBlock;
      if (readPointer(node.sector, entryOffset(slot)) === null) continue;
      if (isOver()) return Math.max(fromBlock, end);
      const child = node.level === 1 ? null : await loadChild(volume, inode, node, slot);
      const found = child === null ? null : await below(child);
      if (found !== null) return found;
    }
    return null;
  };
  for (let level = INDIRECT_LEVELS; level >= 1; level--) {
    const place = rootPlace(level);
    const end = Math.min(FILE_BLOCKS_MAX, place.firstBlock + INDIRECT_POINTERS * span(level));
    if (end <= fromBlock) return fromBlock;
    if (areaPointer(inode, place.root) === null) continue;
    if (isOver()) return Math.max(fromBlock, end);
    const node = await loadRoot(volume, inode, place);
    const found = node === null ? null : await below(node);
    if (found !== null) return found;
  }
  for (let entry = DIRECT_POINTERS - 1; entry >= fromBlock; entry--)
    if (areaPointer(inode, entry) !== null && isOver()) return entry + 1;
  return fromBlock;
}
