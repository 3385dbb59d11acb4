/**
 * Space in the middle of a file: given back, or made zeros where it is.
 *
 * A block of a file is one run of sub-blocks from its beginning on, so what can be given back is whole blocks, and a block's end. The rest of a
 * range becomes zeros in place, by a discard: what the device then has are zeros, as in a sub-block that is free.
 * The caller holds exclusive status and data, owns `contents`, has write hits off, and has thrown away the range's pages; it does so once more
 * afterwards, since read-ahead may have brought some meanwhile.
 */
import { type ByteRange, intersect, isEmpty } from '../common/byte-range.js';
import { BLOCK_BYTES, SECTOR_BYTES, SUB_BLOCK_BYTES } from '../common/units.js';
import { cutPointers, findBlock, findPointer, loadForCut, loadPointers, setPointer } from './block-map.js';
import { durably } from './durable.js';
import { DISCARD_EXTENTS_MAX } from './free-queue.js';
import { FILE_BLOCKS_MAX } from './indirect-format.js';
import type { Inode } from './inode.js';
import { holdBack } from './inode-image.js';
import type { Extent } from './layout.js';
import { keyOf } from './log/logged-sectors.js';
import type { Volume } from './volume.js';

/** The part of a pointer's sub-blocks that a range of whole sectors covers. */
function covered(block: number, pointer: Extent, range: ByteRange): { from: number; to: number } {
  const start = block * BLOCK_BYTES;
  const { start: from, end: to } = intersect(range, { start, end: start + pointer.count * SUB_BLOCK_BYTES });
  return { from: (from - start) / SUB_BLOCK_BYTES, to: (to - start) / SUB_BLOCK_BYTES };
}

/** Every block of the range that has a pointer, in order. Under `structure`. */
async function eachBlock(
  volume: Volume,
  inode: Inode,
  range: ByteRange,
  use: (block: number, pointer: Extent, from: number, to: number) => void,
): Promise<void> {
  if (inode.isInline) return;
  for (let block = Math.floor(range.start / BLOCK_BYTES); block * BLOCK_BYTES < range.end; block++) {
    const next = await findBlock(volume, inode, block, (pointer) => pointer !== null);
    if (next === null || next * BLOCK_BYTES >= range.end) return;
    block = next;
    const pointer = findPointer(inode, block);
    if (!pointer) continue;
    const { from, to } = covered(block, pointer, range);
    if (from < to) use(block, pointer, from, to);
  }
}

/** Gives back what of a range of whole sectors can be given back, and makes zeros of the rest of what is there. */
export async function makeHole(volume: Volume, inode: Inode, range: ByteRange): Promise<void> {
  if (isEmpty(range) || inode.isInline) return;
  const first = Math.ceil(range.start / BLOCK_BYTES);
  const end = Math.min(FILE_BLOCKS_MAX, Math.floor(range.end / BLOCK_BYTES));
  // What is given up by one record has to fit into the log many times over.
  const blocksAtOnce = Math.max(1, Math.floor(volume.stepExtentsMax / 2));
  for (let at: number | null = first; at !== null && at < end; ) {
    at = await findBlock(volume, inode, at, (pointer) => pointer !== null);
    if (at === null || at >= end) break;
    await freeBlocks(volume, inode, at, Math.min(end, at + blocksAtOnce));
    at += blocksAtOnce;
  }
  // What is left are the blocks at both ends.
  for (const block of new Set([Math.floor(range.start / BLOCK_BYTES), Math.floor(range.end / BLOCK_BYTES)]))
    if (block < FILE_BLOCKS_MAX) await freeEnd(volume, inode, block, range);
  await makeZeros(volume, inode, range);
}

async function freeBlocks(volume: Volume, inode: Inode, from: number, to: number): Promise<void> {
  await inode.structure.run(async () => {
    await loadForCut(volume, inode, from, to);
    holdBack(volume, inode);
    inode.pendingFrees.push(...cutPointers(inode, from, to));
    volume.inodes.markDirty(inode, true);
  });
  if (volume.inodes.holdsMuch(inode)) await volume.inodes.expose([inode]);
}

async function freeEnd(volume: Volume, inode: Inode, block: number, range: ByteRange): Promise<void> {
  await inode.structure.run(async () => {
    await loadPointers(volume, inode, block);
    const pointer = findPointer(inode, block);
    if (!pointer) return;
    const { from, to } = covered(block, pointer, range);
    if (from >= to || to < pointer.count) return;
    holdBack(volume, inode);
    inode.pendingFrees.push({ nsd: pointer.nsd, sector: pointer.sector + from, count: pointer.count - from });
    setPointer(inode, block, from === 0 ? null : { ...pointer, count: from });
    volume.inodes.markDirty(inode, true);
  });
}

/** What is allocated in a range of whole sectors reads as zeros afterwards, durably. */
export async function makeZeros(volume: Volume, inode: Inode, range: ByteRange): Promise<void> {
  if (isEmpty(range) || inode.isInline) return;
  await inode.structure.run(async () => {
    const extents: Extent[] = [];
    await eachBlock(volume, inode, range, (_, { nsd, sector }, from, to) =>
      extents.push({ nsd, sector: sector + from, count: to - from }),
    );
    if (extents.length === 0) return;
    await inode.withoutTransfers(async () => {
      for (const { nsd, sector, count } of extents)
        for (let at = sector; at < sector + count; at++) volume.logged.drop(keyOf({ nsd, sector: at }));
      await volume.sectors.writesEnded(extents);
      const { nsds } = volume.parts;
      await durably(nsds, [...new Set(extents.map(({ nsd }) => nsd))], 'zeros', async () => {
        for (let at = 0; at < extents.length; at += DISCARD_EXTENTS_MAX) {
          const some = extents.slice(at, at + DISCARD_EXTENTS_MAX);
          await nsds.discard(some.map(({ nsd, sector, count }) => ({ nsd, sector, sectorCount: count })));
        }
      });
      if (inode.hasUnflushed) inode.unflushed.forget(range);
    });
  });
}

/** The whole sectors of a range. */
export const wholeSectors = ({ start, end }: ByteRange): ByteRange => {
  const first = Math.ceil(start / SECTOR_BYTES) * SECTOR_BYTES;
  return { start: first, end: Math.max(first, Math.floor(end / SECTOR_BYTES) * SECTOR_BYTES) };
};
