/**
 * SEEK_DATA and SEEK_HOLE. What has space is data, written or not: who makes a page dirty has its space allocated before, and that takes the exclusive
 * status token. So under a shared one the pointers tell it all, for what other nodes have dirty too.
 */
import { FsError } from '../common/errors.js';
import { BLOCK_BYTES, SUB_BLOCK_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { findBlock, findPointer } from './block-map.js';
import { type FileHandle, named } from './file-io.js';
import type { OpOptions } from './file-system-api.js';
import type { Inode } from './inode.js';
import { loadRef } from './pinning.js';
import type { Volume } from './volume.js';

export async function seekIn(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  what: 'data' | 'hole',
  options: OpOptions | undefined,
): Promise<number> {
  const pins = await volume.pin([volume.inodes.statusItem(handle.ino, TokenMode.shared)], options);
  try {
    const inode = await loadRef(volume, handle, 'lseek');
    const found = await inode.structure.run(async () => {
      volume.inodes.refresh(inode);
      if (!(offsetBytes >= 0 && offsetBytes < inode.sizeBytes)) return null;
      if (inode.isInline) return what === 'data' ? offsetBytes : inode.sizeBytes;
      const at = await (what === 'data' ? dataFrom : holeFrom)(volume, inode, offsetBytes);
      if (what === 'hole') return Math.min(at, inode.sizeBytes);
      return at < inode.sizeBytes ? at : null;
    });
    if (found !== null) return found;
    throw new FsError('noData', { op: 'lseek', object: named(handle), detail: `no ${what} from ${offsetBytes} on` });
  } finally {
    pins.release();
  }
}

export async function dataFrom(volume: Volume, inode: Inode, offsetBytes: number): Promise<number> {
  for (let from = Math.floor(offsetBytes / BLOCK_BYTES); ; from++) {
    const block = await findBlock(volume, inode, from, (pointer) => pointer !== null);
    if (block === null) return Number.POSITIVE_INFINITY;
    const count = findPointer(inode, block)?.count ?? 0;
    if (offsetBytes < block * BLOCK_BYTES + count * SUB_BLOCK_BYTES) return Math.max(offsetBytes, block * BLOCK_BYTES);
    from = block;
  }
}

export async function holeFrom(volume: Volume, inode: Inode, offsetBytes: number): Promise<number> {
  const first = Math.floor(offsetBytes / BLOCK_BYTES);
  const isShort = (count: number): boolean => count < SUB_BLOCKS_PER_BLOCK;
  const block = await findBlock(volume, inode, first, (pointer) => isShort(pointer?.count ?? 0));
  if (block === null) return Number.POSITIVE_INFINITY;
  const count = findPointer(inode, block)?.count ?? 0;
  return Math.max(offsetBytes, block * BLOCK_BYTES + count * SUB_BLOCK_BYTES);
}
