/** link: a further name for a file. */
import { FsError } from '../../common/errors.js';
import { TokenMode } from '../../token-manager/token.js';
import { Directory, hashedName } from '../directory.js';
import { type Credentials, FileType, type OpOptions } from '../file-system-api.js';
import { LINK_COUNT_MAX } from '../layout.js';
import type { LeafEntry } from '../leaf-format.js';
import { walk, walkToExisting } from '../path-walk.js';
import { checkAccess, EXECUTE, WRITE } from '../permissions.js';
import { loadDirectory, pinInodes } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';

const op = 'link';
/** Of something that is replaced again and again. */
const ATTEMPTS_MAX = 64;

export async function link(
  volume: Volume,
  existing: string,
  path: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const { target } = await walkToExisting(volume, existing, { op, credentials, followLast: false, options });
    try {
      return await addName(volume, target, existing, path, credentials, options);
    } catch (error) {
      // What the name meant may be gone because something else was put in its place: then there was no moment without a file of that name.
      const isGone = FsError.is(error) && error.reason === 'notFound' && error.object === existing;
      if (!isGone || attempt === ATTEMPTS_MAX) throw error;
    }
  }
}

/** A name for what is known already, by another name or by a handle. A file that never had one (`linkable`) gets its first. */
export async function addName(
  volume: Volume,
  target: LeafEntry,
  existing: string,
  path: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  const {
    parent,
    name,
    target: present,
    trailingSlash,
  } = await walk(volume, path, {
    op,
    credentials,
    followLast: false,
    nameOnly: true,
    options,
  });
  if (present !== null || parent === null) throw new FsError('exists', { op, object: path });
  if (trailingSlash) throw new FsError('notFound', { op, object: path });
  const pins = await pinInodes(
    volume,
    [
      { ino: parent.ino, status: TokenMode.exclusive, data: TokenMode.exclusive },
      { ino: target.ino, status: TokenMode.exclusive },
    ],
    options,
  );
  try {
    const hashed = hashedName(name);
    for (;;) {
      const inode = await volume.inodes.load(target.ino);
      const directoryInode = await loadDirectory(volume, parent, op, path);
      if (!inode.valid) continue;
      const isNameless = inode.nlink === 0;
      if (inode.type === 0 || inode.generation !== target.generation || (isNameless && !inode.linkable))
        throw new FsError('notFound', { op, object: existing });
      checkAccess(directoryInode, credentials, WRITE | EXECUTE, op, path);
      if (target.type === FileType.directory)
        throw new FsError('notPermitted', { op, object: existing, detail: 'a directory has one name' });
      if (inode.nlink >= LINK_COUNT_MAX) throw new FsError('linkCountLimit', { op, object: existing });
      const directory = new Directory(volume, directoryInode);
      const found = directory.tryLookup(hashed);
      if (found !== null && !('kind' in found)) throw new FsError('exists', { op, object: path });
      const transaction = new MetadataTransaction(volume);
      const needed = found ?? directory.tryInsert(hashed, target, transaction);
      if (needed !== null) {
        await directory.advance(needed);
        continue;
      }
      withSettledState(volume, inode, () => {
        inode.nlink++;
        if (isNameless) {
          inode.orphan = false;
          inode.linkable = false;
          transaction.looseEnd({ kind: 'orphanSettled', ino: inode.ino, generation: inode.generation });
        }
        inode.ctimeNs = transaction.nowNs;
        transaction.inode(inode);
        transaction.commit();
      });
      return;
    }
  } finally {
    publishStatus(volume, target.ino);
    pins.release();
  }
}
