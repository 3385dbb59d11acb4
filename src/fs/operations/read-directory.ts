/** readdir: all names of a directory, in no order. */
import { FsError } from '../../common/errors.js';
import { TokenMode } from '../../token-manager/token.js';
import { Directory } from '../directory.js';
import { type Credentials, type DirectoryEntry, FileType, type OpOptions } from '../file-system-api.js';
import { walkToExisting } from '../path-walk.js';
import { checkAccess, READ } from '../permissions.js';
import { loadDirectory, pinInodes } from '../pinning.js';
import type { Volume } from '../volume.js';

export async function readDirectory(
  volume: Volume,
  path: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<DirectoryEntry[]> {
  const op = 'readdir';
  const { target } = await walkToExisting(volume, path, { op, credentials, followLast: true, options });
  if (target.type !== FileType.directory) throw new FsError('notDirectory', { op, object: path });
  const pins = await pinInodes(
    volume,
    [{ ino: target.ino, status: TokenMode.shared, data: TokenMode.shared }],
    options,
  );
  try {
    const inode = await loadDirectory(volume, target, op, path);
    checkAccess(inode, credentials, READ, op, path);
    const entries = await new Directory(volume, inode).list();
    volume.accessTimes.noteRead(inode);
    return entries.map(({ name, ino, type }) => ({ name: Buffer.from(name).toString('utf8'), ino, type }));
  } finally {
    pins.release();
  }
}
