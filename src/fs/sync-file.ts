/**
 * fsync and fdatasync.
 *
 * Order: dirty data and its NSDs' flush, the record that exposes it, the log as far as it goes now. A small amount of data goes into the log itself,
 * before that record, and needs no flush of its own (data-writer.ts). The log is in the order in which things were
 * done here: so with the inode all its names are durable, and those of the directories above. What left this node was durable before. Needs no token.
 */

import type { OpOptions } from './file-system-api.js';
import type { Inode } from './inode.js';
import { staleError } from './inode-table.js';
import { flushWritten } from './unflushed.js';
import type { Volume } from './volume.js';

/** `dataOnly` passes over an inode of which only times changed. */
export async function syncFile(
  volume: Volume,
  inode: Inode,
  dataOnly: boolean,
  options: OpOptions | undefined,
): Promise<void> {
  if (inode.replaced) throw staleError(inode, 'fsync');
  volume.inodes.refresh(inode);
  if (needsSettling(volume, inode, dataOnly)) await volume.inodes.concurrent.settleInode(inode.ino);
  // Errors of earlier write-behind come out here, dirty or not.
  const file = inode.file ?? volume.cache.get(inode.ino);
  inode.syncing++;
  try {
    do {
      inode.syncBytesLeft = volume.settings.logWriteBytesMax;
      await file?.flush();
      if (inode.valid && (inode.dirtyCore || (inode.dirty && !dataOnly))) await volume.inodes.expose([inode]);
      else if (inode.writing !== null) await inode.writing;
      // Again when an NSD lost some of it.
    } while (!(await flushWritten(volume, [inode], 'fsync', options?.signal)));
  } finally {
    if (--inode.syncing === 0) inode.syncBytesLeft = 0;
  }
  await volume.log?.force();
  // A fence meanwhile: what was not written looks clean, since nothing of it is valid any more.
  volume.checkNotFenced('fsync', inode.ino);
}

/**
 * What was written beside others counts when size and times are in the inode: here, or durably in place by whoever had it since. That takes the
 * status token. With the data alone a size that others have brought in already will do.
 */
function needsSettling(volume: Volume, inode: Inode, dataOnly: boolean): boolean {
  if (volume.inodes.concurrent.isTold(inode.ino)) return true;
  if (!inode.valid || !inode.concurrent || !inode.concurrentChanges) return false;
  return !dataOnly || inode.sizeBytes > inode.concurrentBytes;
}
