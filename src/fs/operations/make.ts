/** mkdir, mknod and symlink. */
import { FsError } from '../../common/errors.js';
import { type Credentials, FileType, type OpOptions } from '../file-system-api.js';
import { PATH_BYTES_MAX } from '../layout.js';
import { walk } from '../path-walk.js';
import type { Volume } from '../volume.js';
import { createNode, type NewNode } from './create-node.js';

/** What mknod makes; directories and links have calls of their own. */
const NODE_TYPES: ReadonlySet<FileType> = new Set([
  FileType.regular,
  FileType.fifo,
  FileType.characterDevice,
  FileType.blockDevice,
  FileType.socket,
]);
const isDevice = (type: FileType): boolean => type === FileType.characterDevice || type === FileType.blockDevice;
const RDEV_MAX = 2 ** 32 - 1;

/** The name must not be there; what was said with a slash behind it can only become a directory. */
export async function makeNode(volume: Volume, node: NewNode): Promise<void> {
  const { op, path, credentials, options, type } = node;
  const walked = await walk(volume, path, { op, credentials, followLast: false, nameOnly: true, options });
  if (walked.target !== null || walked.parent === null) throw new FsError('exists', { op, object: path });
  if (walked.trailingSlash && type !== FileType.directory) throw new FsError('notFound', { op, object: path });
  const existing = await createNode(volume, walked.parent, walked.name, node);
  if (existing !== null) throw new FsError('exists', { op, object: path });
}

export async function mkdir(
  volume: Volume,
  path: string,
  mode: number,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  await makeNode(volume, { op: 'mkdir', path, type: FileType.directory, mode: mode & 0o1777, credentials, options });
}

export async function mknod(
  volume: Volume,
  path: string,
  type: FileType,
  mode: number,
  rdev: number,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  const op = 'mknod';
  if (type === FileType.directory)
    throw new FsError('notPermitted', { op, object: path, detail: 'directories are made by mkdir' });
  if (!NODE_TYPES.has(type)) throw new FsError('invalidArgument', { op, object: path, detail: `type ${type}` });
  if (!Number.isInteger(rdev) || rdev < 0 || rdev > RDEV_MAX)
    throw new FsError('invalidArgument', { op, object: path, detail: `device ${rdev}` });
  await makeNode(volume, { op, path, type, mode, rdev: isDevice(type) ? rdev : 0, credentials, options });
}

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
  if (bytes.length >= PATH_BYTES_MAX)
    throw new FsError('nameTooLong', { op, object: path, detail: `a target of ${bytes.length} bytes` });
  await makeNode(volume, { op, path, type: FileType.symlink, mode: 0o777, credentials, target: bytes, options });
}
