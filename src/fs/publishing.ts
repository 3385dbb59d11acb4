/**
 * What application threads may rely on for hits. A file's status mode is published at the end of an operation, while its tokens are pinned, and
 * lowered by the revoke handler before anything else happens; between those two the cache map lets hits grow size and times.
 */
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { Inode } from './inode.js';
import { FREE_INODE } from './inode-format.js';
import { segmentOf } from './layout.js';
import { S_ISGID, S_ISUID } from './permissions.js';
import type { Volume } from './volume.js';

/** The mode in which the status token of an inode is held now. */
function heldStatus(volume: Volume, ino: InodeNumber): TokenMode {
  const { tokens } = volume.parts;
  for (const mode of [TokenMode.exclusive, TokenMode.concurrentWrite, TokenMode.shared] as const)
    if (tokens.heldRange(TokenClass.status, segmentOf(ino), ino * SECTOR_BYTES, mode) !== null) return mode;
  return TokenMode.none;
}

/** With status pinned. A write must clear setuid bits, or a doubtful tail, which a hit can't: such a file is written through the engine. */
export function publishStatus(volume: Volume, ino: InodeNumber): void {
  const inode = volume.inodes.get(ino);
  if (inode?.file == null || inode.openCount === 0 || inode.type === FREE_INODE) return;
  let mode = heldStatus(volume, ino);
  const setId = (inode.mode & (S_ISUID | S_ISGID)) !== 0;
  if (mode === TokenMode.exclusive && (setId || inode.tailDoubtful || inode.settling > 0)) mode = TokenMode.shared;
  // A lower bound of the size is not what readers of a shared file may go by.
  if (inode.concurrent !== (mode === TokenMode.concurrentWrite)) mode = TokenMode.none;
  if (inode.concurrent && (setId || inode.tailDoubtful || inode.settling > 0)) mode = TokenMode.none;
  inode.file.setStatusMode(mode);
}

/**
 * Changes of size and times by the engine: no write hit runs meanwhile, what hits did before is merged first. Synchronous;
 * exclusive status pinned. The caller publishes again at its end.
 */
export function withSettledState<T>(volume: Volume, inode: Inode, change: () => T): T {
  inode.file?.setStatusMode(TokenMode.shared);
  volume.inodes.refresh(inode);
  return change();
}
