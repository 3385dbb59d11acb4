/**
 * fallocate(2) on a regular file: space for a range, holes and zeros in it.
 *
 * A call takes exclusive status, and data on the range, and owns `contents`: nobody has a page of the range meanwhile that could become wrong. Long
 * ranges go in steps, each an operation of its own; only the last one makes the file longer. What a step can't get space for it gives back
 * what it had got.
 */
import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { BLOCK_BYTES } from '../common/units.js';
import { findBlock } from './block-map.js';
import { makeHole, makeZeros, wholeSectors } from './file-holes.js';
import { type FileHandle, onCertainTail } from './file-io.js';
import { isReserved, reserve } from './file-space.js';
import type { AllocateMode, AllocateOptions } from './file-system-api.js';
import { FILE_BYTES_MAX } from './indirect-format.js';
import type { Inode } from './inode.js';
import { InodeFlag } from './inode-format.js';
import { holdBack } from './inode-image.js';
import { strippedByWrite } from './permissions.js';
import { withSettledState } from './publishing.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

const op = 'fallocate';
/** Of one step: 4 GiB. */
const STEP_BYTES = 4096 * BLOCK_BYTES;
/** Allocated with room in the log for that. */
const BLOCKS_AT_ONCE = 64;
/** After so many what was allocated is exposed: one record names it, and the space isn't in limbo any longer. */
const BLOCKS_PER_EXPOSURE = 1024;

export function checkAllocation(mode: AllocateMode, offsetBytes: number, lengthBytes: number, object: string): void {
  if (!(offsetBytes >= 0 && lengthBytes > 0 && Number.isInteger(offsetBytes) && Number.isInteger(lengthBytes)))
    throw new FsError('invalidArgument', { op, object, detail: `${lengthBytes} bytes from ${offsetBytes} on` });
  if (mode === 'collapseRange' || mode === 'insertRange')
    throw new FsError('notSupported', { op, object, detail: 'bytes of a file are not moved' });
  if (offsetBytes + lengthBytes > FILE_BYTES_MAX)
    throw new FsError('fileTooBig', { op, object, detail: `ends at ${offsetBytes + lengthBytes}` });
}

export interface AllocateStep extends ByteRange {
  readonly isLast: boolean;
  /** Of the whole call. */
  readonly blocks: number;
}

export function* stepsOf(offsetBytes: number, lengthBytes: number): Generator<AllocateStep> {
  const end = offsetBytes + lengthBytes;
  const blocks = Math.floor(lengthBytes / BLOCK_BYTES);
  for (let start = offsetBytes; start < end; ) {
    const cut = (Math.floor(start / STEP_BYTES) + 1) * STEP_BYTES;
    yield { start, end: Math.min(end, cut), isLast: cut >= end, blocks };
    start = cut;
  }
}

export async function allocateRange(
  volume: Volume,
  handle: FileHandle,
  mode: AllocateMode,
  range: AllocateStep,
  options: AllocateOptions | undefined,
): Promise<void> {
  await onCertainTail(volume, handle, range, op, options, (inode) =>
    inode.contents.runExclusive(async () => {
      inode.settling++;
      try {
        withSettledState(volume, inode, () => undefined);
        if (mode !== 'allocate') await clear(volume, inode, range, mode === 'punchHole');
        if (mode !== 'punchHole') await reserveAll(volume, inode, range, options);
        changed(volume, handle, inode, mode, range, options?.keepSize === true);
      } finally {
        inode.settling--;
      }
    }),
  );
}

/** The range reads as zeros. */
async function clear(volume: Volume, inode: Inode, range: ByteRange, givesBack: boolean): Promise<void> {
  const file = volume.inodes.attach(inode);
  const whole = wholeSectors(range);
  const edges = [
    { start: range.start, end: Math.min(range.end, whole.start) },
    { start: Math.max(whole.end, range.start), end: range.end },
  ];
  // Behind the end are zeros; space for them would be another thing.
  for (const { start, end } of edges) {
    const to = Math.min(end, inode.sizeBytes);
    if (start < to) await file.zero({ start, end: to });
  }
  if (whole.start >= whole.end) return;
  if (inode.isInline) {
    const to = Math.min(whole.end, inode.sizeBytes);
    if (whole.start < to) await file.zero({ start: whole.start, end: to });
    return;
  }
  await file.discard(whole);
  await (givesBack ? makeHole : makeZeros)(volume, inode, whole);
  await file.discard(whole);
}

const blocksOf = ({ geometry }: Volume): number => geometry.nsdBlocks.reduce((sum, blocks) => sum + blocks, 0);

async function reserveAll(
  volume: Volume,
  inode: Inode,
  range: AllocateStep,
  options: AllocateOptions | undefined,
): Promise<void> {
  if (isReserved(inode, range)) return;
  // Not even an empty file system has so much.
  if (range.blocks > blocksOf(volume))
    throw new FsError('noSpace', { op, object: `inode ${inode.ino}`, detail: `${range.blocks} blocks` });
  const added: ByteRange[] = [];
  let unexposed = 0;
  try {
    for (let start = range.start; start < range.end; ) {
      const firstBlock = Math.floor(start / BLOCK_BYTES);
      const end = Math.min(range.end, (firstBlock + BLOCKS_AT_ONCE) * BLOCK_BYTES);
      for (let block = firstBlock; block * BLOCK_BYTES < end; block++) {
        const hole = inode.isInline ? null : await findBlock(volume, inode, block, (pointer) => pointer === null);
        if (hole !== block) continue;
        added.push({ start: block * BLOCK_BYTES, end: (block + 1) * BLOCK_BYTES });
      }
      await volume.innerChange(() => reserve(volume, inode, { start, end }), options);
      unexposed += BLOCKS_AT_ONCE;
      if (unexposed >= BLOCKS_PER_EXPOSURE || volume.inodes.holdsMuch(inode)) {
        await volume.inodes.expose([inode]);
        unexposed = 0;
      }
      start = end;
    }
  } catch (error) {
    // Those that were holes are holes again.
    for (const hole of added) {
      await volume.inodes.attach(inode).discard(hole);
      await makeHole(volume, inode, hole);
    }
    throw error;
  }
}

function changed(
  volume: Volume,
  handle: FileHandle,
  inode: Inode,
  mode: AllocateMode,
  range: AllocateStep,
  keepSize: boolean,
): void {
  const transaction = new MetadataTransaction(volume);
  withSettledState(volume, inode, () => {
    holdBack(volume, inode);
    const grows = mode !== 'punchHole' && range.end > inode.sizeBytes;
    if (grows && keepSize) inode.flags |= InodeFlag.keepsSpace;
    if (grows && !keepSize && range.isLast) inode.sizeBytes = range.end;
    inode.mtimeNs = transaction.nowNs;
    inode.ctimeNs = transaction.nowNs;
    inode.mode = strippedByWrite(inode, handle.credentials);
    transaction.inode(inode);
    transaction.commit();
  });
}
