/**
 * A file's space: reserving it before pages become dirty, growing fragments, cutting.
 *
 * A regular file begins in its inode (inline), goes on as a fragment of 1 to 255 sub-blocks when it outgrows that, and in whole
 * blocks from its first megabyte on. Sub-blocks behind a pointer's count are a hole.
 *
 * Moving a fragment copies it from device to device, with no transfer of the file in flight: what this node has dirty goes to
 * the new place later; what others may have cached clean is the same bytes; and dirty bytes elsewhere can't be, because changing
 * pointers takes the exclusive status token. So it needs no data token beyond the caller's.
 */
import { invariant } from '../common/assert.js';
import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { BLOCK_BYTES, RANGE_END, SUB_BLOCK_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import {
  cutPointers,
  findPointer,
  hasIndirects,
  loadForCut,
  loadPointers,
  preparePointer,
  setPointer,
} from './block-map.js';
import { type BlockPointer, blockPointer } from './block-pointer.js';
import { cutPoint } from './cut-point.js';
import { readAsLogged } from './data-reader.js';
import { durably } from './durable.js';
import { FILE_BLOCKS_MAX, FILE_BYTES_MAX } from './indirect-format.js';
import type { Inode } from './inode.js';
import { AREA_BYTES, EMPTY_AREA, InodeFlag } from './inode-format.js';
import { holdBack } from './inode-image.js';
import type { Extent } from './layout.js';
import { keyOf } from './log/logged-sectors.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

/** Sub-blocks of a block that a range up to `end` (a file offset) needs. */
const subBlocksNeeded = (block: number, end: number): number =>
  Math.min(SUB_BLOCKS_PER_BLOCK, Math.ceil((end - block * BLOCK_BYTES) / SUB_BLOCK_BYTES));

export function isReserved(inode: Inode, range: ByteRange): boolean {
  if (inode.isInline) return range.end <= AREA_BYTES;
  for (let block = Math.floor(range.start / BLOCK_BYTES); block * BLOCK_BYTES < range.end; block++) {
    const pointer = findPointer(inode, block);
    if (!pointer || pointer.count < subBlocksNeeded(block, range.end)) return false;
  }
  return true;
}

/** Exclusive status is held by whoever writes. @throws {FsError} noSpace, fileTooBig */
export async function reserve(volume: Volume, inode: Inode, range: ByteRange): Promise<void> {
  if (range.end > FILE_BYTES_MAX)
    throw new FsError('fileTooBig', { op: 'write', object: `inode ${inode.ino}`, detail: `ends at ${range.end}` });
  await inode.structure.run(async () => {
    invariant(inode.valid, `space is reserved for inode ${inode.ino} under its status token`);
    if (isReserved(inode, range)) return;
    try {
      if (inode.isInline)
        await leaveInline(volume, inode, range.start < BLOCK_BYTES ? subBlocksNeeded(0, range.end) : 1);
      for (let block = Math.floor(range.start / BLOCK_BYTES); block * BLOCK_BYTES < range.end; block++)
        await reserveBlock(volume, inode, block, subBlocksNeeded(block, range.end));
    } finally {
      // Also after a failure: indirect blocks and the blocks before it are there.
      pointersChanged(volume, inode);
    }
  });
}

/** A file's pointers are exposed with its data; other inodes' are metadata like what they point to, and logged at once. */
function pointersChanged(volume: Volume, inode: Inode): void {
  if (inode.holdsDataBack) {
    volume.inodes.markDirty(inode, true);
    // Writers that don't come by the engine don't make room before.
    if (volume.inodes.holdsMuch(inode) && inode.writing === null)
      volume.inodes.expose([inode]).catch((error: unknown) => {
        volume.parts.logger.debug({ ino: inode.ino, error: String(error) }, 'could not be exposed yet');
      });
    return;
  }
  const transaction = new MetadataTransaction(volume);
  transaction.inode(inode);
  transaction.commit();
}

async function reserveBlock(volume: Volume, inode: Inode, block: number, need: number): Promise<void> {
  await preparePointer(volume, inode, block);
  const present = findPointer(inode, block);
  invariant(present !== undefined, 'prepared');
  if (present === null) {
    const extent = await allocateUpTo(volume, inode, block, block === 0 ? need : SUB_BLOCKS_PER_BLOCK, need);
    if (!inode.holdsDataBack) await volume.learnVersions([extent]);
    pointTo(volume, inode, block, extent);
  } else if (present.count < need) await grow(volume, inode, block, present, need);
}

/** The wish, or when space has become scarce or scattered, what is needed. */
async function allocateUpTo(volume: Volume, inode: Inode, block: number, wish: number, need: number): Promise<Extent> {
  const allocate = (count: number, urgently: boolean): Promise<Extent> =>
    inode.holdsDataBack
      ? volume.allocator.allocate(inode.ino, block, count, urgently)
      : volume.allocator.allocateMetadata(inode.ino, block, count, urgently);
  try {
    return await allocate(wish, wish === need);
  } catch (error) {
    if (wish === need || !FsError.is(error) || error.reason !== 'noSpace') throw error;
    return allocate(need, true);
  }
}

/** In one turn: the pointer, and that it names what was in limbo until then. */
function pointTo(volume: Volume, inode: Inode, block: number, extent: Extent): void {
  setPointer(inode, block, blockPointer(extent, volume.parts.epoch(), inode.placementClass));
  inode.reserved.push(extent);
}

async function grow(volume: Volume, inode: Inode, block: number, from: BlockPointer, need: number): Promise<void> {
  const wish = Math.min(SUB_BLOCKS_PER_BLOCK, Math.max(need, from.count * 2));
  for (const count of wish === need ? [need] : [wish, need]) {
    if (!volume.allocator.tryExtend(from, count)) continue;
    const more = { nsd: from.nsd, sector: from.sector + from.count, count: count - from.count };
    if (!inode.holdsDataBack) await volume.learnVersions([more]);
    setPointer(inode, block, { ...from, count });
    inode.reserved.push(more);
    return;
  }
  const extent = await allocateUpTo(volume, inode, block, wish, need);
  volume.counters.add('fs.fragmentMoves');
  await copyInto(
    volume,
    inode,
    extent,
    from.count,
    async (_, memory) => {
      const io = { nsd: from.nsd, sector: from.sector, memory };
      if (!inode.holdsDataBack) return volume.readMetadata([{ ...io, versions: new Uint32Array(from.count) }]);
      await readAsLogged(volume, [io]);
    },
    () => {
      pointTo(volume, inode, block, extent);
      if (inode.holdsDataBack) inode.pendingFrees.push(from);
      else metadataMoved(volume, inode, block, from);
    },
  );
}

/** What was copied is durable; what the log is ahead of it comes along. Nothing of it is on its way to a device. */
function metadataMoved(volume: Volume, inode: Inode, block: number, from: BlockPointer): void {
  const transaction = new MetadataTransaction(volume);
  for (let at = 0; at < from.count; at++) {
    const image = volume.sectors.latest(keyOf({ nsd: from.nsd, sector: from.sector + at }));
    if (image !== undefined) transaction.sector(inode, block * BLOCK_BYTES + at * SUB_BLOCK_BYTES, image);
  }
  transaction.inode(inode);
  transaction.limbo([from], true);
  volume.frees.add([from], transaction.commit());
}

/**
 * From the inode's area into a fragment of `count` sub-blocks. Also when the area is empty: a small write that was promised room in the
 * inode may be on its way into the cache.
 */
async function leaveInline(volume: Volume, inode: Inode, count: number): Promise<void> {
  const extent = await allocateUpTo(volume, inode, 0, count, count);
  const swap = (): void => {
    holdBack(volume, inode);
    inode.flags &= ~InodeFlag.inline;
    inode.area = EMPTY_AREA;
    pointTo(volume, inode, 0, extent);
  };
  const fill = (bytes: Uint8Array): void => {
    bytes.fill(0);
    bytes.set(inode.area);
  };
  // Nothing to carry over: free sub-blocks are zeros, and no transfer has read or written the area as anything else.
  if (inode.area.length === 0) swap();
  else await copyInto(volume, inode, extent, 1, fill, swap);
}

async function copyInto(
  volume: Volume,
  inode: Inode,
  extent: Extent,
  count: number,
  fill: (bytes: Uint8Array, memory: { offsetBytes: number; lengthBytes: number }) => Promise<void> | void,
  swap: () => void,
): Promise<void> {
  try {
    // The staging first: with transfers held up nothing may be waited for but devices.
    await volume.withStaging(count * SUB_BLOCK_BYTES, (bytes, segment) =>
      inode.withoutTransfers(async () => {
        const memory = { offsetBytes: segment.offsetBytes, lengthBytes: count * SUB_BLOCK_BYTES };
        await fill(bytes, memory);
        // What was there before may be durable, so this must be before it takes its place.
        await durably(volume.parts.nsds, [extent.nsd], 'move', () =>
          volume.parts.nsds.write([{ nsd: extent.nsd, sector: extent.sector, memory }]),
        );
        if (!inode.holdsDataBack) await volume.learnVersions([extent]);
        swap();
      }),
    );
  } catch (error) {
    // It was never pointed to by anything.
    volume.frees.add([extent]);
    throw error;
  }
}

/**
 * Gives up what lies behind the sub-block of the last byte, as much of it as one transaction takes, from the end of the file on. Exclusive status and
 * data held, write hits off; the caller discards the pages behind it afterwards, before hits come back.
 * @returns false: there is more; it is given up when this has been exposed (in-steps.ts).
 */
export async function cutSpace(volume: Volume, inode: Inode, sizeBytes: number): Promise<boolean> {
  return inode.structure.run(async () => {
    if (inode.isInline) return true;
    const { end, keptBlock, keptCount, cutFrom } = keptOf(sizeBytes);
    const from = await cutPoint(volume, inode, cutFrom, volume.stepExtentsMax);
    await loadForCut(volume, inode, from);
    if (keptCount > 0) await loadPointers(volume, inode, keptBlock);
    holdBack(volume, inode);
    if (inode.hasUnflushed) inode.unflushed.forget({ start: end, end: RANGE_END });
    const freed = cutPointers(inode, from);
    const tail = keptCount > 0 && from === cutFrom ? findPointer(inode, keptBlock) : null;
    if (tail && tail.count > keptCount) {
      freed.push({ nsd: tail.nsd, sector: tail.sector + keptCount, count: tail.count - keptCount });
      setPointer(inode, keptBlock, { ...tail, count: keptCount });
    }
    if (freed.length > 0) {
      for (const extent of freed) inode.pendingFrees.push(extent);
      volume.inodes.markDirty(inode, true);
    }
    return from === cutFrom;
  });
}

/** Whether `cutSpace` would have to be called more than once. */
export async function isCutInSteps(volume: Volume, inode: Inode, sizeBytes: number): Promise<boolean> {
  const { stepExtentsMax } = volume;
  // Extents have a sub-block at least; a count that is too small is not believed where there can be many.
  if (inode.isInline || (inode.allocatedSubBlocks <= stepExtentsMax && !hasIndirects(inode))) return false;
  const { cutFrom } = keptOf(sizeBytes);
  return inode.structure.run(async () => (await cutPoint(volume, inode, cutFrom, stepExtentsMax)) > cutFrom);
}

function keptOf(sizeBytes: number) {
  const end = Math.ceil(sizeBytes / SUB_BLOCK_BYTES) * SUB_BLOCK_BYTES;
  const keptBlock = Math.floor(end / BLOCK_BYTES);
  const keptCount = Math.ceil((end % BLOCK_BYTES) / SUB_BLOCK_BYTES);
  return { end, keptBlock, keptCount, cutFrom: keptBlock + (keptCount > 0 ? 1 : 0) };
}

/** Whether closing it would give space back. */
export function hasTail(inode: Inode): boolean {
  if (inode.isInline || inode.sizeBytes === 0) return !inode.isInline && inode.allocatedSubBlocks > 0;
  const last = Math.floor((inode.sizeBytes - 1) / BLOCK_BYTES);
  const pointer = findPointer(inode, last);
  if (pointer != null && pointer.count > subBlocksNeeded(last, inode.sizeBytes)) return true;
  // Where the last block is full, what was prepared in front of the writer is the next one.
  return last + 1 < FILE_BLOCKS_MAX && findPointer(inode, last + 1) != null;
}

export { AREA_BYTES as INLINE_BYTES_MAX };
