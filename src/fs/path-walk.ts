/**
 * From a path to an inode. Each directory on the way is read under its own shared tokens, given up before the next: what was found may
 * be gone a moment later, so operations look again under their own tokens.
 */
import { WHOLE } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { TokenMode } from '../token-manager/token.js';
import { Directory, hashedName } from './directory.js';
import { type Credentials, FileType, type OpOptions } from './file-system-api.js';
import { NAME_BYTES_MAX, PATH_BYTES_MAX, ROOT_DIRECTORY, SYMLINKS_MAX } from './layout.js';
import type { LeafEntry } from './leaf-format.js';
import { checkAccess, EXECUTE } from './permissions.js';
import { checkDirectory, type InodeRef, loadDirectory, loadRef, pinInodes } from './pinning.js';
import { corrupt } from './sector.js';
import { parentOf } from './tree-faults.js';
import type { Volume } from './volume.js';
import { XattrSpace } from './xattr-format.js';
import { allXattrs, withXattrs } from './xattrs.js';

export interface Walked {
  /** Where the last name is (or would be); null when the path ends in '/', '.' or '..' themselves. */
  readonly parent: InodeRef | null;
  readonly name: string;
  readonly target: LeafEntry | null;
  /** The path said that it must be a directory. */
  readonly trailingSlash: boolean;
  /** Names from the root to the target, without links. */
  readonly names: readonly string[];
  /** The path's last component was '.' or '..'. */
  readonly dots: boolean;
}

export interface WalkRequest {
  readonly op: string;
  readonly credentials: Credentials;
  readonly followLast: boolean;
  /** For what changes names: the last one stands for itself, a slash behind it notwithstanding (the caller judges that). */
  readonly nameOnly?: boolean;
  readonly options?: OpOptions | undefined;
}

export function splitPath(path: string, op: string): { names: string[]; trailingSlash: boolean } {
  if (path.length === 0) throw new FsError('notFound', { op, object: path, detail: 'an empty path' });
  if (path.includes('\0')) throw new FsError('invalidArgument', { op, object: path, detail: 'a NUL in the path' });
  if (Buffer.byteLength(path) >= PATH_BYTES_MAX) throw new FsError('nameTooLong', { op, object: path });
  const names = path.split('/').filter((name) => name !== '');
  const trailingSlash = path.endsWith('/') && names.length > 0;
  return { names, trailingSlash };
}

function checkName(name: string, op: string, path: string): void {
  if (name.length * 3 > NAME_BYTES_MAX && Buffer.byteLength(name) > NAME_BYTES_MAX)
    throw new FsError('nameTooLong', { op, object: path, detail: `a name of more than ${NAME_BYTES_MAX} bytes` });
}

export const rootRef: LeafEntry = { ino: ROOT_DIRECTORY, generation: 1, type: FileType.directory };

export async function walk(volume: Volume, path: string, request: WalkRequest): Promise<Walked> {
  const { op, options } = request;
  volume.checkOpen(op);
  const start = path.startsWith('/') ? undefined : options?.directory;
  if (start === undefined && !path.startsWith('/') && path.length > 0)
    throw new FsError('invalidArgument', { op, object: path, detail: 'paths are absolute' });
  const split = splitPath(path, op);
  let { trailingSlash } = split;
  let remaining = split.names;
  let at = 0;
  let directory: LeafEntry = start === undefined ? rootRef : { ...start, type: FileType.directory };
  let names: string[] = [];
  let links = 0;
  let dots = false;
  while (at < remaining.length) {
    const name = remaining[at++]!;
    const last = at === remaining.length;
    dots = name === '.' || name === '..';
    const known = dots ? undefined : tryLookupIn(volume, directory, name, path, request);
    const step = known === undefined ? await lookupIn(volume, directory, name, path, request) : known;
    if (dots) {
      if (name === '..') names.pop();
      directory = step!;
      continue;
    }
    if (step === null) {
      if (!last) throw new FsError('notFound', { op, object: path });
      return { parent: directory, name, target: null, trailingSlash, names: [...names, name], dots };
    }
    if (
      step.type === FileType.symlink &&
      (!last || request.followLast || (trailingSlash && request.nameOnly !== true))
    ) {
      if (++links > SYMLINKS_MAX) throw new FsError('tooManyLinks', { op, object: path });
      const target = await readLink(volume, step, op, path, options);
      const inner = splitPath(target, op);
      if (last) trailingSlash ||= inner.trailingSlash;
      if (target.startsWith('/')) {
        directory = rootRef;
        names = [];
      }
      remaining = [...inner.names, ...remaining.slice(at)];
      at = 0;
      continue;
    }
    if (last) {
      if (trailingSlash && step.type !== FileType.directory && request.nameOnly !== true)
        throw new FsError('notDirectory', { op, object: path });
      return { parent: directory, name, target: step, trailingSlash, names: [...names, name], dots };
    }
    if (step.type !== FileType.directory) throw new FsError('notDirectory', { op, object: path });
    names.push(name);
    directory = step;
  }
  return { parent: null, name: '', target: directory, trailingSlash, names, dots };
}

/** The same as lookupIn in one turn, when everything is at hand; else undefined. Most steps of most walks are this. */
export function tryLookupIn(
  volume: Volume,
  directory: LeafEntry,
  name: string,
  path: string,
  { op, credentials }: Pick<WalkRequest, 'op' | 'credentials'>,
): LeafEntry | null | undefined {
  const { ino } = directory;
  const pins = volume.parts.tokens.tryPin([
    volume.inodes.statusItem(ino, TokenMode.shared),
    volume.dataItem(ino, WHOLE, TokenMode.shared),
  ]);
  if (pins === null) return undefined;
  try {
    const inode = volume.inodes.get(ino);
    if (inode === undefined) return undefined;
    checkDirectory(inode, directory, op, path);
    checkAccess(inode, credentials, EXECUTE, op, path);
    checkName(name, op, path);
    const found = new Directory(volume, inode).tryLookup(hashedName(name));
    return found !== null && 'kind' in found ? undefined : found;
  } finally {
    pins.release();
  }
}

/** One name in one directory, with its search permission checked. */
async function lookupIn(
  volume: Volume,
  directory: LeafEntry,
  name: string,
  path: string,
  { op, credentials, options }: WalkRequest,
): Promise<LeafEntry | null> {
  const pins = await pinInodes(
    volume,
    [{ ino: directory.ino, status: TokenMode.shared, data: TokenMode.shared }],
    options,
  );
  let parent: LeafEntry;
  try {
    const inode = await loadDirectory(volume, directory, op, path);
    checkAccess(inode, credentials, EXECUTE, op, path);
    checkName(name, op, path);
    if (name === '.') return directory;
    if (name !== '..') return await new Directory(volume, inode).lookup(hashedName(name));
    parent = { ino: parentOf(volume, inode, op), generation: 0, type: FileType.directory };
  } finally {
    pins.release();
  }
  return parentEntry(volume, parent.ino, op, options);
}

/** A directory's parent is known by number; its generation is read under the parent's own token. */
async function parentEntry(
  volume: Volume,
  ino: LeafEntry['ino'],
  op: string,
  options: OpOptions | undefined,
): Promise<LeafEntry> {
  const pins = await pinInodes(volume, [{ ino, status: TokenMode.shared }], options);
  try {
    const inode = await volume.inodes.load(ino);
    if (!inode.isDirectory)
      throw new FsError('notFound', { op, object: `inode ${ino}`, detail: 'the directory is gone' });
    return { ino, generation: inode.generation, type: FileType.directory };
  } finally {
    pins.release();
  }
}

export async function readLink(
  volume: Volume,
  link: InodeRef,
  op: string,
  path: string,
  options: OpOptions | undefined,
): Promise<string> {
  const pins = await pinInodes(volume, [{ ino: link.ino, status: TokenMode.shared }], options);
  try {
    const inode = await loadRef(volume, link, op);
    if (inode.type !== FileType.symlink)
      throw new FsError('invalidArgument', { op, object: path, detail: 'not a symbolic link' });
    volume.accessTimes.noteRead(inode);
    if (inode.isInline) return Buffer.from(inode.area.subarray(0, inode.sizeBytes)).toString('utf8');
    const find = () => allXattrs(inode).find(({ space }) => space === XattrSpace.linkTarget);
    const kept = await withXattrs(volume, inode, find);
    if (kept === undefined) throw corrupt(op, `inode ${link.ino}`, 'a link without a target');
    return Buffer.from(kept.value).toString('utf8');
  } finally {
    pins.release();
  }
}

/** For operations on what is there. */
export async function walkToExisting(
  volume: Volume,
  path: string,
  request: WalkRequest,
): Promise<Walked & { target: LeafEntry }> {
  const walked = await walk(volume, path, request);
  if (walked.target === null) throw new FsError('notFound', { op: request.op, object: path });
  return walked as Walked & { target: LeafEntry };
}
