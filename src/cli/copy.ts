import path from 'node:path';
import { eachLimit } from './limit.js';
import { sentence, UsageError } from './output.js';
import { Progress } from './progress.js';
import { scanTree, type Tree, type TreeEntry, type TreeFs, type TreeStat } from './tree.js';

/**
 * Copies files and trees between two file systems: contents, permission bits, times, symbolic links as links.
 *
 * Invariants: a directory's own mode and times are set after everything in it; what exists is overwritten, never
 * removed, except that a file in the way of a symbolic link is replaced; nothing is copied onto itself, by whatever name. Fault model: the first error ends the copy, what
 * was copied stays.
 */
export interface CopyResult {
  readonly files: number;
  readonly directories: number;
  readonly symlinks: number;
  readonly skipped: readonly string[];
  readonly bytes: number;
  readonly seconds: number;
}

export interface CopyOptions {
  readonly recursive: boolean;
  readonly quiet: boolean;
  readonly label: string;
  /** Paths below the source that are left out. */
  readonly skip?: (path: string) => boolean;
}

const IN_FLIGHT = 64;
/** Up to here a file is one read and one write. */
const SMALL_BYTES = 1 << 20;
const CHUNK_BYTES = 4 << 20;
/** Chunks of one large file on their way at once. */
const CHUNKS_IN_FLIGHT = 4;
const PERMISSIONS = 0o7777;

export async function copy(
  from: { readonly fs: TreeFs; readonly path: string },
  to: { readonly fs: TreeFs; readonly path: string },
  options: CopyOptions,
): Promise<CopyResult> {
  const started = performance.now();
  const source = await from.fs.stat(from.path);
  if (source.isDirectory() && !options.recursive) throw new UsageError(`${from.path} is a directory, copy it with -r`);
  const existing = await statOrNull(to.fs, to.path);
  const target = existing?.isDirectory() === true ? path.posix.join(to.path, path.posix.basename(from.path)) : to.path;
  const there = await statOrNull(to.fs, target);
  const merges = there !== null;
  if (merges && from.fs === to.fs) refuseSame(source, from.path, there, target);
  // A link named on the command line means what it points to; links inside a tree are copied as links.
  const tree: Tree = source.isDirectory()
    ? await scanTree(from.fs, from.path, options.skip)
    : { directories: [], files: [{ path: '', stat: source }], symlinks: [], others: [], bytes: source.size };

  const progress = new Progress(options.label, tree.files.length + tree.symlinks.length, tree.bytes, options.quiet);
  const at = (root: string, entry: TreeEntry): string => (entry.path === '' ? root : path.posix.join(root, entry.path));
  try {
    for (const level of levels(tree.directories))
      await eachLimit(level, IN_FLIGHT, async (entry) => {
        // Writable while it is filled, whatever it will be.
        await makeDirectory(to.fs, at(target, entry), (entry.stat.mode & PERMISSIONS) | 0o700);
      });
    await eachLimit(tree.files, IN_FLIGHT, async (entry) => {
      await named(at(target, entry), () =>
        copyFile(from.fs, at(from.path, entry), to.fs, at(target, entry), entry.stat, merges, (bytes) =>
          progress.add(0, bytes),
        ),
      );
      progress.add(1, 0);
    });
    await eachLimit(tree.symlinks, IN_FLIGHT, async (entry) => {
      await copySymlink(from.fs, at(from.path, entry), to.fs, at(target, entry), entry.stat, merges);
      progress.add(1, 0);
    });
    for (const level of levels(tree.directories).reverse())
      await eachLimit(level, IN_FLIGHT, async (entry) => {
        const mode = entry.stat.mode & PERMISSIONS;
        if (merges || (mode & 0o700) !== 0o700) await to.fs.chmod(at(target, entry), mode);
        await to.fs.utimes(at(target, entry), entry.stat.atimeMs / 1000, entry.stat.mtimeMs / 1000);
      });
  } finally {
    progress.stop();
  }
  return {
    files: tree.files.length,
    directories: tree.directories.length,
    symlinks: tree.symlinks.length,
    skipped: tree.others,
    bytes: tree.bytes,
    seconds: (performance.now() - started) / 1000,
  };
}

/** What fails below a path (a device, an NSD that is away) doesn't know whose it is. */
async function named<T>(path: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (error) {
    if (error instanceof Error && error.message.includes(path)) throw error;
    throw new CopyError(path, error);
  }
}

export class CopyError extends Error {
  override readonly name = 'CopyError';
  constructor(
    readonly path: string,
    override readonly cause: unknown,
  ) {
    super(`${path}: ${sentence(cause)}`);
  }
}

async function copyFile(
  fromFs: TreeFs,
  from: string,
  toFs: TreeFs,
  to: string,
  stat: TreeStat,
  merges: boolean,
  copied: (bytes: number) => void,
): Promise<void> {
  // Opened for writing, a file is emptied before its first byte is read.
  if (merges && fromFs === toFs) {
    const there = await statOrNull(toFs, to);
    if (there !== null) refuseSame(stat, from, there, to);
  }
  const mode = stat.mode & PERMISSIONS;
  const times = { atime: stat.atimeMs / 1000, mtime: stat.mtimeMs / 1000 };
  if (stat.size <= SMALL_BYTES) {
    const bytes = await fromFs.readFile(from);
    await toFs.writeFile(to, bytes, { mode, times });
    copied(bytes.length);
  } else {
    await copyLarge(fromFs, from, toFs, to, mode, copied);
    await toFs.utimes(to, times.atime, times.mtime);
  }
  if (merges) await toFs.chmod(to, mode);
}

async function copyLarge(
  fromFs: TreeFs,
  from: string,
  toFs: TreeFs,
  to: string,
  mode: number,
  copied: (bytes: number) => void,
): Promise<void> {
  const source = await fromFs.open(from, 'r');
  try {
    const target = await toFs.open(to, 'w', mode);
    try {
      let next = 0;
      let ended = false;
      const lane = async (): Promise<void> => {
        const buffer = new Uint8Array(CHUNK_BYTES);
        while (!ended) {
          const position = next;
          next += CHUNK_BYTES;
          let filled = 0;
          while (filled < CHUNK_BYTES) {
            const { bytesRead } = await source.read(buffer, filled, CHUNK_BYTES - filled, position + filled);
            if (bytesRead === 0) break;
            filled += bytesRead;
          }
          if (filled < CHUNK_BYTES) ended = true;
          for (let done = 0; done < filled; ) {
            const { bytesWritten } = await target.write(buffer, done, filled - done, position + done);
            done += bytesWritten;
          }
          copied(filled);
        }
      };
      const lanes = await Promise.allSettled(Array.from({ length: CHUNKS_IN_FLIGHT }, lane));
      for (const outcome of lanes) if (outcome.status === 'rejected') throw outcome.reason;
    } finally {
      await target.close();
    }
  } finally {
    await source.close();
  }
}

function refuseSame(one: TreeStat, from: string, other: TreeStat, to: string): void {
  if (one.ino === other.ino && one.dev === other.dev) throw new Error(`${from} and ${to} are the same file`);
}

async function copySymlink(
  fromFs: TreeFs,
  from: string,
  toFs: TreeFs,
  to: string,
  stat: TreeStat,
  merges: boolean,
): Promise<void> {
  const target = await fromFs.readlink(from);
  if (merges) await toFs.rm(to, { force: true });
  await toFs.symlink(target, to);
  await toFs.lutimes(to, stat.atimeMs / 1000, stat.mtimeMs / 1000);
}

async function makeDirectory(fs: TreeFs, directory: string, mode: number): Promise<void> {
  try {
    await fs.mkdir(directory, { mode });
  } catch (error) {
    if (!isCode(error, 'EEXIST') || !(await fs.stat(directory)).isDirectory()) throw error;
  }
}

async function statOrNull(fs: TreeFs, file: string): Promise<TreeStat | null> {
  try {
    return await fs.stat(file);
  } catch (error) {
    if (isCode(error, 'ENOENT')) return null;
    throw error;
  }
}

export const isCode = (error: unknown, code: string): boolean =>
  typeof error === 'object' && error !== null && 'code' in error && error.code === code;

/** By depth, so that each level needs only the ones before it. */
function levels(directories: readonly TreeEntry[]): TreeEntry[][] {
  const byDepth: TreeEntry[][] = [];
  for (const entry of directories) {
    const depth = entry.path === '' ? 0 : entry.path.split('/').length;
    byDepth[depth] ??= [];
    byDepth[depth].push(entry);
  }
  return byDepth;
}
