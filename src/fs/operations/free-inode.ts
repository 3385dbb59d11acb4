/** The end of an inode: nobody names it, nobody has it open on any node. */
import { WHOLE } from '../../common/byte-range.js';
import { TokenMode } from '../../token-manager/token.js';
import { cutPointers, loadForCut } from '../block-map.js';
import type { OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { EMPTY_AREA, FREE_INODE } from '../inode-format.js';
import { aloneItem } from '../open-tokens.js';
import { type InodeRef, pinInodes } from '../pinning.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';
import { installXattrs, NO_XATTRS } from '../xattrs.js';

/** After its last name went, with exclusive status and data pinned: frees it, or leaves that to the last close. */
export async function freeIfUnused(volume: Volume, inode: Inode): Promise<void> {
  if (inode.nlink > 0 || inode.type === FREE_INODE) return;
  if (inode.openCount > 0) {
    inode.orphan = true;
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

async function freeAlone(volume: Volume, inode: Inode): Promise<void> {
  inode.file?.setStatusMode(TokenMode.none);
  // Its pages go without being written.
  const file = inode.file ?? volume.cache.get(inode.ino);
  if (file !== undefined) await file.discard(WHOLE);
  await inode.structure.run(async () => {
    await loadForCut(volume, inode, 0);
    if (inode.openCount > 0 || inode.type === FREE_INODE) return;
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
  });
}

/** An inode that had no name, or may have none, when it was last looked at. @throws {FsError} tokenRefused: it is open elsewhere. */
export async function freeOrphan(volume: Volume, ref: InodeRef, options: OpOptions | undefined): Promise<void> {
  const pins = await pinInodes(
    volume,
    [{ ino: ref.ino, status: TokenMode.exclusive, alone: true, data: TokenMode.exclusive }],
    options,
  );
  try {
    const inode = await volume.inodes.load(ref.ino);
    if (inode.type === FREE_INODE || inode.generation !== ref.generation) return;
    await freeIfUnused(volume, inode);
  } finally {
    pins.release();
  }
}
