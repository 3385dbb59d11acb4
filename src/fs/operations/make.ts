/** mkdir and symlink. */
import { FsError } from '../../common/errors.js';
import { type Credentials, FileType, type OpOptions } from '../file-system-api.js';
import { AREA_BYTES } from '../inode-format.js';
import { walk } from '../path-walk.js';
import type { Volume } from '../volume.js';
import { createNode } from './create-node.js';

export async function mkdir(
  volume: Volume,
  path: string,
  mode: number,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  const op = 'mkdir';
  const { parent, name, target } = await walk(volume, path, { op, credentials, followLast: false, options });
  if (target !== null || parent === null) throw new FsError('exists', { op, object: path });
  const type = FileType.directory;
  const existing = await createNode(volume, parent, name, {
    op,
    path,
    type,
    mode: mode & 0o1777,
    credentials,
    options,
  });
  if (existing !== null) throw new FsError('exists', { op, object: path });
}

/** The target is kept in the inode, so it may be as long as an inode's area. */
export async function symlink(
  volume: Volume,
  target: string,
  path: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  const op = 'symlink';
  const bytes = Uint8Array.from(Buffer.from(target, 'utf8'));
  if (bytes.length === 0) throw new FsError('notFound', { op, object: path, detail: 'an empty target' });
  if (bytes.includes(0)) throw new FsError('invalidArgument', { op, object: path, detail: 'a NUL in the target' });
  if (bytes.length > AREA_BYTES)
    throw new FsError('nameTooLong', { op, object: path, detail: `a target of more than ${AREA_BYTES} bytes` });
  const walked = await walk(volume, path, { op, credentials, followLast: false, options });
  if (walked.target !== null || walked.parent === null) throw new FsError('exists', { op, object: path });
  if (walked.trailingSlash) throw new FsError('notFound', { op, object: path });
  const existing = await createNode(volume, walked.parent, walked.name, {
    op,
    path,
    type: FileType.symlink,
    mode: 0o777,
    credentials,
    target: bytes,
    options,
  });
  if (existing !== null) throw new FsError('exists', { op, object: path });
}
