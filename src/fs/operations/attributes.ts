/** stat, access, chmod, chown, utimes: by path and by handle. Rules and order of errors are Linux's (notify_change and below). */
import { FsError } from '../../common/errors.js';
import { TokenMode } from '../../token-manager/token.js';
import {
  type AttributeChanges,
  type Attributes,
  type Credentials,
  FileType,
  type OpOptions,
} from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { walkToExisting } from '../path-walk.js';
import {
  checkAccess,
  EXECUTE,
  inGroup,
  isOwner,
  mayAccess,
  mayKeepSetgid,
  READ,
  S_ISGID,
  strippedByChown,
  WRITE,
} from '../permissions.js';
import { type InodeRef, loadRef, pinInodes } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';

/** An inode found by its path may be gone when its token arrives: then the path is walked again. */
const TRIES = 16;
const ID_MAX = 2 ** 32 - 1;

export async function onPath<T>(
  volume: Volume,
  path: string,
  request: { op: string; credentials: Credentials; followLast: boolean; options: OpOptions | undefined },
  use: (ref: InodeRef) => Promise<T>,
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    const { target } = await walkToExisting(volume, path, request);
    try {
      return await use(target);
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'staleHandle' || attempt >= TRIES) throw error;
    }
  }
}

export async function statInode(
  volume: Volume,
  ref: InodeRef,
  op: string,
  options: OpOptions | undefined,
): Promise<Attributes> {
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.shared }], options);
  try {
    volume.ahead.looked(ref.ino);
    const inode = await loadRef(volume, ref, op);
    volume.inodes.refresh(inode);
    return inode.attributes();
  } finally {
    pins.release();
  }
}

/** Asked for whom the program runs, not with whose rights (its real ids). */
export async function access(
  volume: Volume,
  path: string,
  mode: number,
  who: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  const op = 'access';
  if ((mode & ~(READ | WRITE | EXECUTE)) !== 0) throw new FsError('invalidArgument', { op, object: path });
  const credentials = { ...who, uid: who.realUid ?? who.uid, gid: who.realGid ?? who.gid };
  await onPath(volume, path, { op, credentials, followLast: true, options }, async (ref) => {
    const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.shared }], options);
    try {
      const inode = await loadRef(volume, ref, op);
      if (!mayAccess(inode, credentials, mode)) throw new FsError('accessDenied', { op, object: path });
    } finally {
      pins.release();
    }
  });
}

export async function setInodeAttributes(
  volume: Volume,
  ref: InodeRef,
  changes: AttributeChanges,
  credentials: Credentials,
  object: string,
  options: OpOptions | undefined,
): Promise<Attributes> {
  const op = 'setAttributes';
  checkValues(changes, op, object);
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.exclusive }], options);
  try {
    const inode = await loadRef(volume, ref, op);
    checkChanges(inode, changes, credentials, op, object);
    return withSettledState(volume, inode, () => {
      const transaction = new MetadataTransaction(volume);
      apply(inode, changes, credentials, transaction.nowNs);
      inode.ctimeNs = transaction.nowNs;
      transaction.inode(inode);
      transaction.commit();
      return inode.attributes();
    });
  } finally {
    publishStatus(volume, ref.ino);
    pins.release();
  }
}

function checkValues({ mode, uid, gid, atimeNs, mtimeNs }: AttributeChanges, op: string, object: string): void {
  const wrong = (detail: string) => new FsError('invalidArgument', { op, object, detail });
  if (mode !== undefined && (mode & ~0o7777) !== 0) throw wrong(`mode ${mode.toString(8)}`);
  for (const id of [uid, gid])
    if (id !== undefined && !(Number.isInteger(id) && id >= -1 && id < ID_MAX)) throw wrong(`id ${id}`);
  for (const time of [atimeNs, mtimeNs])
    if (typeof time === 'bigint' && BigInt.asIntN(64, time) !== time) throw wrong('a time out of range');
}

/** Root may do everything; but what can't be done is refused to it too. */
function checkChanges(
  inode: Inode,
  { mode, uid, gid, atimeNs, mtimeNs }: AttributeChanges,
  credentials: Credentials,
  op: string,
  object: string,
): void {
  if (mode !== undefined && inode.type === FileType.symlink)
    throw new FsError('notSupported', { op, object, detail: 'a symbolic link has no mode of its own' });
  if (credentials.uid === 0 || credentials.checked) return;
  const denied = (detail: string) => new FsError('notPermitted', { op, object, detail });
  const owner = isOwner(inode, credentials);
  if (mode !== undefined && !owner) throw denied('not the owner');
  if (uid !== undefined && uid !== -1 && (uid !== inode.uid || !owner)) throw denied('only root gives files away');
  if (gid !== undefined && gid !== -1 && !(owner && (gid === inode.gid || inGroup(credentials, gid))))
    throw denied('not a member of the group');
  const chown = uid !== undefined || gid !== undefined;
  if (chown && !owner && strippedByChown(inode, credentials) !== inode.mode) throw denied('not the owner');
  if (atimeNs === undefined && mtimeNs === undefined) return;
  if (atimeNs === 'now' && mtimeNs === 'now') {
    if (!owner) checkAccess(inode, credentials, WRITE, op, object);
  } else if (!owner) throw denied('not the owner');
}

function apply(inode: Inode, changes: AttributeChanges, credentials: Credentials, nowNs: bigint): void {
  const { uid, gid, mode, atimeNs, mtimeNs } = changes;
  if (uid !== undefined || gid !== undefined) {
    inode.mode = strippedByChown(inode, credentials);
    if (uid !== undefined && uid !== -1) inode.uid = uid;
    if (gid !== undefined && gid !== -1) inode.gid = gid;
  }
  if (mode !== undefined) inode.mode = mayKeepSetgid(inode.gid, credentials) ? mode : mode & ~S_ISGID;
  if (atimeNs !== undefined) inode.readAtNs = null;
  if (atimeNs !== undefined) inode.atimeNs = atimeNs === 'now' ? nowNs : atimeNs;
  if (mtimeNs !== undefined) inode.mtimeNs = mtimeNs === 'now' ? nowNs : mtimeNs;
}
