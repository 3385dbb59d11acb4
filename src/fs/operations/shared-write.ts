/** Whether a file is served through its owner (shared/shared-handle.ts). A directory passes it on to what is made in it. */
import { FsError } from '../../common/errors.js';
import { TokenMode } from '../../token-manager/token.js';
import { type Credentials, FileType, type OpOptions } from '../file-system-api.js';
import { InodeFlag } from '../inode-format.js';
import { isOwner } from '../permissions.js';
import { type InodeRef, loadRef, pinInodes } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';

/** `on` absent: only tells. */
export async function sharedWrite(
  volume: Volume,
  ref: InodeRef,
  on: boolean | undefined,
  path: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<boolean> {
  const op = 'sharedWrite';
  const status = on === undefined ? TokenMode.shared : TokenMode.exclusive;
  const pins = await pinInodes(volume, [{ ino: ref.ino, status }], options);
  try {
    const inode = await loadRef(volume, ref, op);
    if (inode.type !== FileType.regular && inode.type !== FileType.directory)
      throw new FsError('invalidArgument', { op, object: path, detail: 'neither a file nor a directory' });
    const is = (inode.flags & InodeFlag.sharedWrite) !== 0;
    if (on === undefined || on === is) return is;
    if (!isOwner(inode, credentials)) throw new FsError('notPermitted', { op, object: path });
    const transaction = new MetadataTransaction(volume);
    withSettledState(volume, inode, () => {
      if (on) inode.flags |= InodeFlag.sharedWrite;
      else inode.flags &= ~InodeFlag.sharedWrite;
      inode.ctimeNs = transaction.nowNs;
      transaction.inode(inode);
      transaction.commit();
    });
    return on;
  } finally {
    publishStatus(volume, ref.ino);
    pins.release();
  }
}
