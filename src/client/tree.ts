import { constants } from 'node:os';
import { posix } from 'node:path';
import { FsError } from '../common/errors.js';
import type { DirectoryEntry } from '../fs/file-system-api.js';
import { FileType } from '../fs/file-system-api.js';
import type { FileSystemClient } from './file-system-client.js';
import { codedError } from './node-errors.js';
import type { Stats } from './stats.js';
import { type CheckedPath, checkPath } from './validate.js';

/** Operations on whole trees: rm -r, cp -r, readdir recursive. Made of single operations, several in flight, bounded. */
interface SignalOption {
  readonly signal?: AbortSignal | undefined;
}
export interface RmOptions extends SignalOption {
  readonly force?: boolean | undefined;
  readonly recursive?: boolean | undefined;
  /** Accepted as node does; Holdfast has nothing that a retry would help against. */
  readonly maxRetries?: number | undefined;
  readonly retryDelay?: number | undefined;
}
export interface CpOptions extends SignalOption {
  readonly recursive?: boolean | undefined;
  /** Replace files that are there. Default true. */
  readonly force?: boolean | undefined;
  /** With force false: a file that is there is an error. */
  readonly errorOnExist?: boolean | undefined;
  readonly dereference?: boolean | undefined;
  readonly preserveTimestamps?: boolean | undefined;
  readonly verbatimSymlinks?: boolean | undefined;
  readonly mode?: number | undefined;
  readonly filter?: ((source: string, destination: string) => boolean | Promise<boolean>) | undefined;
}

const AT_ONCE = 16;

/** Runs `work` on every item, a bounded number at a time. The first error stops new ones and is thrown when the running have ended. */
export async function eachBounded<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  let failed = false;
  const lane = async (): Promise<void> => {
    while (next < items.length && !failed) {
      try {
        await work(items[next++]!);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  const lanes = Array.from({ length: Math.min(AT_ONCE, items.length) }, lane);
  await Promise.allSettled(lanes);
  await Promise.all(lanes);
}

/** Of a directory as it was named: joining would take '..' behind a link out of the text, and mean another directory. */
const below = (directory: string, name: string): string =>
  directory.endsWith('/') ? directory + name : `${directory}/${name}`;

const isCode = (error: unknown, code: string): boolean => FsError.is(error) && error.code === code;

/** node's SystemError for a directory where none may be; its errno is positive there, so it is here. */
function isDirectoryError(syscall: string, path: string, what: string): Error {
  const error = codedError('ERR_FS_EISDIR', `Path is a directory: ${syscall} returned EISDIR (${what}) ${path}`);
  return Object.assign(error, { name: 'SystemError', syscall, path, errno: constants.errno.EISDIR });
}

export async function removeTree(fs: FileSystemClient, path: string, options: RmOptions): Promise<void> {
  const { signal } = options;
  let found: Stats;
  try {
    found = await fs.lstat(path, { signal });
  } catch (error) {
    if (options.force === true && isCode(error, 'ENOENT')) return;
    throw error;
  }
  if (!found.isDirectory()) return gone(fs.unlink(path, { signal }));
  if (options.recursive !== true) throw isDirectoryError('rm', path, 'is a directory');
  await removeDirectory(fs, path, signal);
}

/** Somebody else may be removing the same tree. */
async function gone(work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (!isCode(error, 'ENOENT')) throw error;
  }
}

async function removeDirectory(fs: FileSystemClient, path: string, signal: AbortSignal | undefined): Promise<void> {
  const entries = await fs.readdir(path, { withFileTypes: true, signal });
  const [directories, files] = [entries.filter((e) => e.isDirectory()), entries.filter((e) => !e.isDirectory())];
  await eachBounded(files, (entry) => gone(fs.unlink(below(path, entry.name), { signal })));
  // One after the other: the bound would multiply with the depth.
  for (const entry of directories) await removeDirectory(fs, below(path, entry.name), signal);
  await gone(fs.rmdir(path, { signal }));
}

export interface TreeEntry {
  readonly entry: DirectoryEntry;
  /** The directory it is in, as node's Dirent.path has it. */
  readonly directory: string;
  /** From the directory that was asked for. */
  readonly relative: string;
}

/** In node's order: a directory's entries, then its last subdirectory's. Links to directories are listed, not entered. */
export async function readTree(
  top: CheckedPath,
  list: (directory: CheckedPath) => Promise<DirectoryEntry[]>,
  stat: (path: string) => Promise<Stats>,
): Promise<TreeEntry[]> {
  const found: TreeEntry[] = [];
  const queue: { shown: string; path: string; entries: DirectoryEntry[] }[] = [
    { shown: top.given, path: top.given, entries: await list(top) },
  ];
  for (let next = queue.pop(); next !== undefined; next = queue.pop()) {
    const { shown, path, entries } = next;
    for (const entry of entries) {
      const shownChild = posix.join(shown, entry.name);
      found.push({ entry, directory: shown, relative: posix.relative(top.given, shownChild) });
      if (entry.type !== FileType.directory) continue;
      const child = below(path, entry.name);
      try {
        queue.push({ shown: shownChild, path: child, entries: await list(checkPath(child, 'path', 'scandir')) });
      } catch (error) {
        // Removed since it was listed; anything else is the caller's to know.
        if (!isCode(error, 'ENOENT') || (await exists(stat, child))) throw error;
      }
    }
  }
  return found;
}

async function exists(stat: (path: string) => Promise<Stats>, path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

export async function copyTree(fs: FileSystemClient, from: string, to: string, options: CpOptions): Promise<void> {
  const source = posix.resolve('/', from);
  const target = posix.resolve('/', to);
  if (source === target)
    throw codedError('ERR_FS_CP_EINVAL', `Invalid src or dest: cp returned EINVAL ${from} -> ${to}`);
  const found = await (options.dereference === true ? fs.stat(from, options) : fs.lstat(from, options));
  if (found.isDirectory()) {
    if (options.recursive !== true) throw isDirectoryError('cp', from, `${from} is a directory (not copied)`);
    if (`${target}/`.startsWith(`${source}/`) || (await isInside(fs, to, found, options.signal)))
      throw codedError('ERR_FS_CP_EINVAL', `Cannot copy ${from} to a subdirectory of self ${to}`);
  }
  await fs.mkdir(posix.dirname(to), { recursive: true, signal: options.signal });
  await copyEntry(fs, from, to, found, options);
}

/** Whether `to` will be somewhere in the directory, by whatever links it is named. */
async function isInside(
  fs: FileSystemClient,
  to: string,
  directory: Stats,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  for (let parent = posix.dirname(to); ; parent = posix.dirname(parent)) {
    let at: string;
    try {
      at = await fs.realpath(parent, { signal });
    } catch (error) {
      if (!isCode(error, 'ENOENT')) throw error;
      continue;
    }
    for (; ; at = posix.dirname(at)) {
      if ((await fs.stat(at, { signal })).ino === directory.ino) return true;
      if (at === '/') return false;
    }
  }
}

async function copyEntry(
  fs: FileSystemClient,
  from: string,
  to: string,
  found: Stats,
  options: CpOptions,
): Promise<void> {
  if (options.filter !== undefined && !(await options.filter(from, to))) return;
  const { signal } = options;
  let existing: Stats | null = null;
  try {
    existing = await fs.lstat(to, { signal });
  } catch (error) {
    if (!isCode(error, 'ENOENT')) throw error;
  }
  if (existing?.ino === found.ino) throw codedError('ERR_FS_CP_EINVAL', `${from} and ${to} cannot be the same`);
  if (existing !== null && existing.isDirectory() !== found.isDirectory()) {
    const code = found.isDirectory() ? 'ERR_FS_CP_DIR_TO_NON_DIR' : 'ERR_FS_CP_NON_DIR_TO_DIR';
    throw codedError(code, `Cannot overwrite ${to} with ${from}: one is a directory`);
  }
  if (found.isDirectory()) return copyDirectory(fs, from, to, found, existing === null, options);
  if (existing !== null && options.force === false) {
    if (options.errorOnExist === true) throw codedError('ERR_FS_CP_EEXIST', `Target already exists: ${to}`);
    return;
  }
  const link = found.isSymbolicLink() ? await fs.readlink(from, { signal }) : null;
  if (existing !== null && (link !== null || existing.isSymbolicLink())) await fs.unlink(to, { signal });
  if (link !== null) {
    const absolute = options.verbatimSymlinks === true ? link : posix.resolve('/', posix.dirname(from), link);
    await fs.symlink(absolute, to, null, { signal });
    return;
  }
  if (found.isSocket()) throw codedError('ERR_FS_CP_SOCKET', `Cannot copy a socket file: ${from}`);
  if (found.isFIFO()) throw codedError('ERR_FS_CP_FIFO_PIPE', `Cannot copy a FIFO pipe: ${from}`);
  if (!found.isFile()) throw codedError('ERR_FS_CP_UNKNOWN', `Cannot copy ${from}: neither file, directory nor link`);
  await fs.copyFile(from, to, options.mode ?? 0, { signal });
  if (options.preserveTimestamps === true) await fs.utimes(to, found.atime, found.mtime, { signal });
}

async function copyDirectory(
  fs: FileSystemClient,
  from: string,
  to: string,
  found: Stats,
  isNew: boolean,
  options: CpOptions,
): Promise<void> {
  const { signal } = options;
  if (isNew) await fs.mkdir(to, { recursive: true, signal });
  const entries = await fs.readdir(from, { withFileTypes: true, signal });
  const copyOne = async (name: string): Promise<void> => {
    const path = below(from, name);
    const stats = await (options.dereference === true ? fs.stat(path, { signal }) : fs.lstat(path, { signal }));
    await copyEntry(fs, path, below(to, name), stats, options);
  };
  await eachBounded(
    entries.filter((e) => !e.isDirectory()),
    (e) => copyOne(e.name),
  );
  for (const entry of entries) if (entry.isDirectory()) await copyOne(entry.name);
  if (isNew) await fs.chmod(to, found.mode & 0o7777, { signal });
}
