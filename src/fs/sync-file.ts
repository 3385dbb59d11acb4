/**
 * fsync and fdatasync.
 *
 * Order: dirty data and its NSDs' flush, the record that exposes it, the log as far as it goes now. A small amount of data goes into the log itself,
 * before that record, and needs no flush of its own (data-writer.ts). The log is in the order in which things were
 * done here: so with the inode all its names are durable, and those of the directories above. What left this node was durable before. Needs no token.
 */

import { allPointers } from './block-map.js';
import type { OpOptions } from './file-system-api.js';
import type { Inode } from './inode.js';
import { staleError } from './inode-table.js';
import { UnflushedNsds } from './unflushed.js';
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
  // Errors of earlier write-behind come out here, dirty or not.
  const file = inode.file ?? volume.cache.get(inode.ino);
  inode.syncing++;
  inode.syncBytesLeft = volume.settings.logWriteBytesMax;
  try {
    await file?.flush();
    if (inode.valid && (inode.dirtyCore || (inode.dirty && !dataOnly))) await volume.inodes.expose([inode]);
    else if (inode.writing !== null) await inode.writing;
  } finally {
    if (--inode.syncing === 0) inode.syncBytesLeft = 0;
  }
  await flushNsds(volume, inode, options);
  await volume.log?.force();
  // A fence meanwhile: what was not written looks clean, since nothing of it is valid any more.
  volume.checkNotFenced('fsync', inode.ino);
}

/**
 * The NSDs that this file's data was written to since they were last flushed. One that is being flushed for somebody else is waited for, and
 * flushed by us if that failed.
 */
async function flushNsds(volume: Volume, inode: Inode, options: OpOptions | undefined): Promise<void> {
  for (;;) {
    const { nsds, of, flushing } = UnflushedNsds.take([inode.unflushed]);
    const elsewhere = inode.unflushedElsewhere;
    inode.unflushedElsewhere = false;
    if (elsewhere) {
      for (const nsd of volume.nsdsInUse()) nsds.add(nsd);
      // Of what has one copy, on an NSD that is away, nobody can say that it is durable.
      for (const { pointer } of allPointers(inode).blocks) nsds.add(pointer.nsd);
      if (!of.includes(inode.unflushed)) of.push(inode.unflushed);
    }
    if (nsds.size > 0)
      await UnflushedNsds.during(of, nsds, () =>
        volume.parts.nsds.flush([...nsds], { signal: options?.signal }).catch((error: unknown) => {
          inode.unflushedElsewhere ||= elsewhere;
          throw error;
        }),
      );
    if ((await Promise.all(flushing)).every((succeeded) => succeeded)) return;
    options?.signal?.throwIfAborted();
  }
}
