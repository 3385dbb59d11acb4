/**
 * fsync and fdatasync.
 *
 * Order: dirty data, the inode, the devices' own flush; then, for a file that this node created, linked or renamed since it was last
 * synced, the directories concerned in the same way, and what names those. So a name on a device has an inode behind it, and
 * a file that was synced is found by its name, as on any local file system. Needs no token: a directory whose token has
 * gone was written out then.
 */
import type { InodeNumber } from '../common/ids.js';
import type { OpOptions } from './file-system-api.js';
import type { Inode } from './inode.js';
import { staleError } from './inode-table.js';
import { allNsds } from './layout.js';
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
  await syncInode(volume, inode, dataOnly, options);
  await syncNames(volume, inode, new Set([inode.ino]), options);
  // A fence meanwhile: what was not written looks clean, since nothing of it is valid any more.
  volume.checkNotFenced('fsync', inode.ino);
}

async function syncInode(
  volume: Volume,
  inode: Inode,
  dataOnly: boolean,
  options: OpOptions | undefined,
): Promise<void> {
  volume.inodes.refresh(inode);
  // Errors of earlier write-behind come out here, dirty or not.
  const file = inode.file ?? volume.cache.get(inode.ino);
  await file?.flush();
  if (inode.valid && (inode.dirtyCore || (inode.dirty && !dataOnly))) await volume.inodes.writeOut([inode]);
  else if (inode.writing !== null) await inode.writing;
  await flushNsds(volume, inode, options);
}

/**
 * The NSDs that this inode was written to since they were last flushed. The map of what is allocated has to survive with what points
 * into it. One that is being flushed for somebody else is waited for, and flushed by us if that failed.
 */
async function flushNsds(volume: Volume, inode: Inode, options: OpOptions | undefined): Promise<void> {
  const written = [inode.unflushed, ...[...volume.systemFiles.values()].map((map) => map.unflushed)];
  for (;;) {
    const { nsds, of, flushing } = UnflushedNsds.take(written);
    const elsewhere = inode.unflushedElsewhere;
    inode.unflushedElsewhere = false;
    if (elsewhere) {
      for (const nsd of allNsds(volume.geometry)) nsds.add(nsd);
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

/** Upwards, each directory once: what was renamed back and forth could lead in a circle. */
async function syncNames(
  volume: Volume,
  inode: Inode,
  done: Set<InodeNumber>,
  options: OpOptions | undefined,
): Promise<void> {
  const names = inode.renamedIn;
  if (names === null) return;
  for (const [directory, change] of [...names]) {
    if (!done.has(directory)) {
      done.add(directory);
      const named = volume.inodes.get(directory);
      if (named === undefined) await volume.parts.nsds.flush(allNsds(volume.geometry), { signal: options?.signal });
      else {
        await syncInode(volume, named, false, options);
        await syncNames(volume, named, done, options);
      }
    }
    // A name that came while this ran is the next one's to write.
    if (names.get(directory) === change) names.delete(directory);
  }
  if (names.size === 0 && inode.renamedIn === names) inode.renamedIn = null;
}
