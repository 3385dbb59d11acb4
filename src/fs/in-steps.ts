/**
 * What is too much for one transaction of the log goes in steps: the space of a file that is gone, or that became much shorter. Each step is a transaction
 * of its own that gives up the last pieces of the file (cut-point.ts); between two of them nothing is held, and what they gave up goes
 * back to the map, so that others get on and find room.
 *
 * The operation is over when its first transaction is made: the name is gone, the size is what was asked for. That transaction has a note in the
 * node's loose ends, an orphan, as ext4 keeps both kinds in one list: whoever recovers or mounts what this node left goes on from
 * what the last step has left.
 * A file that is being cut says so itself, too (being-cut.ts).
 * Fault model: a step that fails is tried again by Orphans; steps may be done by several nodes in turn.
 */
import { FsError } from '../common/errors.js';
import { TokenMode } from '../token-manager/token.js';
import { atEndOnce } from './file-io.js';
import { type OpOptions, ROOT } from './file-system-api.js';
import type { Inode } from './inode.js';
import { FREE_INODE } from './inode-format.js';
import { freeOrphan } from './operations/free-inode.js';
import { type InodeRef, pinInodes } from './pinning.js';
import { publishStatus } from './publishing.js';
import type { Volume } from './volume.js';

/**
 * One step towards the end of what was noted: an inode without names loses some of its space, or its life; one with names what is behind its end.
 * @returns whether there is more. @throws {FsError} tokenRefused: without names, and open elsewhere.
 */
export async function orphanStep(volume: Volume, ref: InodeRef, options: OpOptions | undefined): Promise<boolean> {
  const what = await lookAt(volume, ref, options);
  if (what === null) return false;
  if (what.nlink <= 0) return freeOrphan(volume, ref, options);
  if (!what.tailDoubtful) return false;
  const handle = { ...ref, inode: what, credentials: ROOT, movesAtime: false };
  try {
    return (await atEndOnce(volume, handle, 'truncate', options, () => Promise.resolve(true))) === null;
  } catch (error) {
    if (FsError.is(error) && error.reason === 'staleHandle') return false;
    throw error;
  } finally {
    // The cache knew it for the time of the step only.
    if (what.openCount === 0 && what.nlink > 0 && !what.replaced) volume.inodes.detach(what);
  }
}

/** Null: it has ended, or is another's number by now. */
async function lookAt(volume: Volume, ref: InodeRef, options: OpOptions | undefined): Promise<Inode | null> {
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.exclusive }], options);
  try {
    const inode = await volume.inodes.load(ref.ino);
    return inode.type === FREE_INODE || inode.generation !== ref.generation ? null : inode;
  } finally {
    publishStatus(volume, ref.ino);
    pins.release();
  }
}
