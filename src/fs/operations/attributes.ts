/** stat, access, chmod, chown, utimes: by path and by handle. */
import { FsError } from '../../common/errors.js';
import { TokenMode } from '../../token-manager/token.js';
import type { AttributeChanges, Attributes, Credentials, OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { walkToExisting } from '../path-walk.js';
import { EXECUTE, inGroup, isOwner, mayAccess, READ, S_ISGID, strippedOfSetId, WRITE } from '../permissions.js';
import { type InodeRef, loadRef, pinInodes } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';

/** An inode found by its path may be gone when its token arrives: then the path is walked again. */
const TRIES = 16;

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
    const inode = await loadRef(volume, ref, op);
    volume.inodes.refresh(inode);
    return inode.attributes();
  } finally {
    pins.release();
  }
}

export async function access(
  volume: Volume,
  path: string,
  mode: number,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  const op = 'access';
  if ((mode & ~(READ | WRITE | EXECUTE)) !== 0) throw new FsError('invalidArgument', { op, object: path });
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
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.exclusive }], options);
  try {
    const inode = await loadRef(volume, ref, op);
    checkChanges(inode, changes, credentials, op, object);
    return withSettledState(volume, inode, () => {
      const transaction = new MetadataTransaction(volume);
      apply(inode, changes, credentials);
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

function checkChanges(
  inode: Inode,
  changes: AttributeChanges,
  credentials: Credentials,
  op: string,
  object: string,
): void {
  const denied = (detail: string) => new FsError('notPermitted', { op, object, detail });
  const { mode, uid, gid, atimeNs, mtimeNs } = changes;
  if (mode !== undefined && (mode & ~0o7777) !== 0)
    throw new FsError('invalidArgument', { op, object, detail: `mode ${mode.toString(8)}` });
  for (const id of [uid, gid])
    if (id !== undefined && !(Number.isInteger(id) && id >= 0 && id < 2 ** 32))
      throw new FsError('invalidArgument', { op, object, detail: `id ${id}` });
  for (const time of [atimeNs, mtimeNs])
    if (time !== undefined && BigInt.asIntN(64, time) !== time)
      throw new FsError('invalidArgument', { op, object, detail: 'a time out of range' });
  if (credentials.uid === 0) return;
  const owner = isOwner(inode, credentials);
  if ((mode !== undefined || atimeNs !== undefined || mtimeNs !== undefined) && !owner) throw denied('not the owner');
  if (uid !== undefined && (uid !== inode.uid || !owner)) throw denied('only root gives files away');
  if (gid !== undefined && !(owner && (gid === inode.gid || inGroup(credentials, gid))))
    throw denied('not a member of the group');
}

function apply(inode: Inode, changes: AttributeChanges, credentials: Credentials): void {
  if (changes.uid !== undefined || changes.gid !== undefined) {
    inode.uid = changes.uid ?? inode.uid;
    inode.gid = changes.gid ?? inode.gid;
    if (!inode.isDirectory) inode.mode = strippedOfSetId(inode.mode);
  }
  if (changes.mode !== undefined) {
    const foreign = credentials.uid !== 0 && !inGroup(credentials, inode.gid) && !inode.isDirectory;
    inode.mode = foreign ? changes.mode & ~S_ISGID : changes.mode;
  }
  inode.atimeNs = changes.atimeNs ?? inode.atimeNs;
  inode.mtimeNs = changes.mtimeNs ?? inode.mtimeNs;
}
