/** unlink and rmdir: a name goes, and with its last name the inode. */
import { FsError } from '../../common/errors.js';
import { TokenMode } from '../../token-manager/token.js';
import { Directory, hashedName } from '../directory.js';
import { type Credentials, FileType, type OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import type { LeafEntry } from '../leaf-format.js';
import { walkToExisting } from '../path-walk.js';
import { checkAccess, checkSticky, EXECUTE, WRITE } from '../permissions.js';
import { type InodeRef, loadDirectory, pinInodes } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { MetadataTransaction } from '../transaction.js';
import { checkNamed } from '../tree-faults.js';
import type { Volume } from '../volume.js';
import { freeIfUnused } from './free-inode.js';

type Removal = 'unlink' | 'rmdir';

export async function remove(
  volume: Volume,
  op: Removal,
  path: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  for (;;) {
    const walked = await walkToExisting(volume, path, { op, credentials, followLast: false, nameOnly: true, options });
    const { parent, name, target } = walked;
    if (parent === null) {
      if (op === 'unlink') throw new FsError('isDirectory', { op, object: path });
      if (walked.dots && path.replace(/\/+$/, '').endsWith('..')) throw new FsError('notEmpty', { op, object: path });
      if (walked.dots) throw new FsError('invalidArgument', { op, object: path });
      throw new FsError('busy', { op, object: path, detail: 'the root of the file system stays' });
    }
    if (op === 'unlink' && walked.trailingSlash)
      throw new FsError(target.type === FileType.directory ? 'isDirectory' : 'notDirectory', { op, object: path });
    const pins = await pinInodes(
      volume,
      [
        { ino: parent.ino, status: TokenMode.exclusive, data: TokenMode.exclusive },
        { ino: target.ino, status: TokenMode.exclusive, data: TokenMode.exclusive },
      ],
      options,
    );
    try {
      if (await removeEntry(volume, op, parent, name, target, path, credentials)) return;
    } finally {
      publishStatus(volume, target.ino);
      pins.release();
    }
  }
}

/** False: the name means something else by now, look again. */
async function removeEntry(
  volume: Volume,
  op: Removal,
  parent: InodeRef,
  name: string,
  target: LeafEntry,
  path: string,
  credentials: Credentials,
): Promise<boolean> {
  const hashed = hashedName(name);
  for (;;) {
    const inode = await volume.inodes.load(target.ino);
    const directoryInode = await loadDirectory(volume, parent, op, path);
    if (!inode.valid) continue;
    const directory = new Directory(volume, directoryInode);
    const found = directory.tryLookup(hashed);
    if (found === null) throw new FsError('notFound', { op, object: path });
    if ('kind' in found) {
      await directory.advance(found);
      continue;
    }
    if (found.ino !== target.ino || found.generation !== target.generation) return false;
    checkAccess(directoryInode, credentials, WRITE | EXECUTE, op, path);
    // A name whose inode is gone (its node died before it was written) can still be taken away.
    const dangling = inode.type === 0 || inode.generation !== target.generation;
    if (!dangling) {
      checkTarget(op, directoryInode, inode, path, credentials);
      checkNamed(op, directoryInode, name, target, inode);
    }
    const transaction = new MetadataTransaction(volume);
    const needed = directory.tryRemove(hashed, transaction);
    if (needed !== null) {
      await directory.advance(needed);
      continue;
    }
    if (!dangling) withSettledState(volume, inode, () => dropLink(inode, directoryInode, transaction));
    transaction.commit();
    if (!dangling) await freeIfUnused(volume, inode);
    return true;
  }
}

function checkTarget(op: Removal, directory: Inode, inode: Inode, path: string, credentials: Credentials): void {
  checkSticky(directory, inode, credentials, op, path);
  if (op === 'unlink' && inode.isDirectory) throw new FsError('isDirectory', { op, object: path });
  if (op === 'rmdir' && !inode.isDirectory) throw new FsError('notDirectory', { op, object: path });
  if (op === 'rmdir' && inode.directoryEntries > 0) throw new FsError('notEmpty', { op, object: path });
}

/** One name of the inode is gone from the directory; of a directory it was the only one. */
export function dropLink(inode: Inode, directory: Inode, transaction: MetadataTransaction): void {
  if (inode.type === FileType.directory) {
    inode.nlink = 0;
    directory.nlink--;
  } else inode.nlink--;
  if (inode.nlink === 0) transaction.looseEnd({ kind: 'orphan', ino: inode.ino, generation: inode.generation });
  inode.ctimeNs = transaction.nowNs;
  transaction.inode(inode);
  transaction.inode(directory);
}
