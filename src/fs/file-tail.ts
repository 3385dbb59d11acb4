/**
 * What lies behind the end of a file whose last writer may have died.
 *
 * A node writes data before the inode that exposes it. When it dies between the two, what it wrote behind the end lies in the file's own last sectors,
 * where nobody sees it until the file grows over a gap; then it would be seen instead of zeros. The inode says up to which
 * epoch its tail is certain (disk-format.md, tail epoch); each death makes a new epoch.
 */
import { WHOLE } from '../common/byte-range.js';
import { SECTOR_BYTES } from '../common/units.js';
import { makeZeros } from './file-holes.js';
import { cutSpace, isReserved } from './file-space.js';
import type { Inode } from './inode.js';
import { InodeFlag } from './inode-format.js';
import { holdBack } from './inode-image.js';
import type { Volume } from './volume.js';

/**
 * Status, and data from the end on, pinned exclusively; `contents` owned, hits off. The zeros are on the NSDs before the doubt ends, because the
 * inode that says so may be written out at any time after. Fault model: after an error it is as doubtful as before.
 * @returns false: what is there is too much for one transaction. A part of it is gone; the caller lets others have the tokens and begins anew.
 */
export async function clearTail(volume: Volume, inode: Inode): Promise<boolean> {
  inode.settling++;
  try {
    const { sizeBytes } = inode;
    const sectorEnd = Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
    const file = volume.inodes.attach(inode);
    // Pages first: one that is prepared for a sequential writer would stay writable without space behind it.
    await file.discard({ start: sectorEnd, end: WHOLE.end });
    if ((inode.flags & InodeFlag.keepsSpace) === 0) {
      if (!(await cutSpace(volume, inode, sizeBytes))) {
        await volume.inodes.expose([inode]);
        return false;
      }
    } else {
      await makeZeros(volume, inode, { start: sectorEnd, end: WHOLE.end });
      await file.discard({ start: sectorEnd, end: WHOLE.end });
    }
    const rest = { start: sizeBytes, end: sectorEnd };
    if (sizeBytes < sectorEnd && isReserved(inode, rest)) {
      // Written even if the cache shows zeros: the device may have something else.
      await file.write(sizeBytes, new Uint8Array(sectorEnd - sizeBytes), { onCopied: () => undefined });
      await file.flush(rest);
    }
    holdBack(volume, inode);
    inode.tailDoubtful = false;
    volume.inodes.markDirty(inode, true);
    volume.counters.add('fs.tailsCleared');
    return true;
  } finally {
    inode.settling--;
  }
}
