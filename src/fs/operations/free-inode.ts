/** The end of an inode: nobody names it, nobody has it open on any node. */
import { WHOLE } from '../../common/byte-range.js';
import { TokenMode } from '../../token-manager/token.js';
import { cutPointers, loadForCut } from '../block-map.js';
import { cutPoint } from '../cut-point.js';
import { cutSpace, isCutInSteps } from '../file-space.js';
import type { OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { EMPTY_AREA, FREE_INODE } from '../inode-format.js';
import { aloneItem } from '../open-tokens.js';
import { type InodeRef, pinInodes } from '../pinning.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';
import { installXattrs, NO_XATTRS } from '../xattrs.js';

/** After its last name went, with exclusive status and data pinned: frees it, or leaves that to the last close, or to steps (in-steps.ts). */
export async function freeIfUnused(volume: Volume, inode: Inode): Promise<void> {
  if (inode.nlink > 0 || inode.type === FREE_INODE) return;
  if (inode.openCount > 0) {
    inode.orphan = true;
    return;
  }
  if (await isCutInSteps(volume, inode, 0)) {
    void volume.orphans.take(inode);
    return;
  }
  // Somebody else may have it open: that is asked without holding anything.
  const alone = volume.parts.tokens.tryPin([aloneItem(volume, inode.ino)]);
  if (alone === null) {
    void volume.orphans.take(inode);
    return;
  }
  try {
    await freeAlone(volume, inode);
  } finally {
    alone.release();
  }
}

/** @returns whether there is more of it. */
async function freeAlone(volume: Volume, inode: Inode): Promise<boolean> {
  inode.file?.setStatusMode(TokenMode.none);
  // Its pages go without being written.
  const file = inode.file ?? volume.cache.get(inode.ino);
  if (file !== undefined) await file.discard(WHOLE);
  if (await isCutInSteps(volume, inode, 0)) {
    if (inode.holdsDataBack) {
      await cutSpace(volume, inode, 0);
      await volume.inodes.expose([inode]);
    } else await cutMetadata(volume, inode);
    return true;
  }
  return inode.structure.run(async () => {
    await loadForCut(volume, inode, 0);
    if (inode.openCount > 0 || inode.type === FREE_INODE) return false;
    const transaction = new MetadataTransaction(volume);
    inode.pendingFrees.push(...cutPointers(inode, 0));
    // Its attributes' block is given up by the transaction.
    installXattrs(inode, NO_XATTRS);
    const frees = inode.pendingFrees;
    inode.pendingFrees = [];
    transaction.looseEnd({ kind: 'orphanSettled', ino: inode.ino, generation: inode.generation });
    transaction.numbers('numbersTaken', inode.ino);
    const hadMetadata = inode.isDirectory;
    inode.unexposed = false;
    inode.type = FREE_INODE;
    inode.orphan = false;
    inode.flags = 0;
    inode.sizeBytes = 0;
    inode.area = EMPTY_AREA;
    inode.directoryDepth = 0;
    inode.directoryEntries = 0;
    transaction.inode(inode);
    transaction.limbo(frees, hadMetadata);
    const logged = transaction.commit();
    volume.counters.add('fs.inodesFreed');
    volume.frees.addOf(inode, frees, logged);
    return false;
  });
}

/** A directory's last leaves: its pointers are metadata, and logged at once. */
async function cutMetadata(volume: Volume, inode: Inode): Promise<void> {
  await inode.structure.run(async () => {
    const from = await cutPoint(volume, inode, 0, volume.stepExtentsMax);
    await loadForCut(volume, inode, from);
    const frees = cutPointers(inode, from);
    const transaction = new MetadataTransaction(volume);
    transaction.inode(inode);
    transaction.limbo(frees, true);
    volume.frees.addOf(inode, frees, transaction.commit());
  });
}

/**
 * One step towards the end of an inode that had no name, or may have none, when it was last looked at.
 * @returns whether there is more. @throws {FsError} tokenRefused: it is open elsewhere.
 */
export async function freeOrphan(volume: Volume, ref: InodeRef, options: OpOptions | undefined): Promise<boolean> {
  const pins = await pinInodes(
    volume,
    [{ ino: ref.ino, status: TokenMode.exclusive, alone: true, data: TokenMode.exclusive }],
    options,
  );
  try {
    const inode = await volume.inodes.load(ref.ino);
    if (inode.type === FREE_INODE || inode.generation !== ref.generation || inode.nlink > 0) return false;
    if (inode.openCount === 0) return await freeAlone(volume, inode);
    inode.orphan = true;
    return false;
  } finally {
    pins.release();
  }
}
