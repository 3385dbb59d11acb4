import { promises as local } from 'node:fs';
import path from 'node:path';
import type { FileSystemClient } from '../client/file-system-client.js';
import { eachLimit } from './limit.js';

/** The part of `fs.promises` that copying needs; the local file system and a Holdfast client both have it. */
export interface TreeStat {
  readonly dev: number;
  readonly ino: number;
  readonly mode: number;
  readonly size: number;
  readonly atimeMs: number;
  readonly mtimeMs: number;
  isFile(): boolean;
  isDirectory(): boolean;
  isSymbolicLink(): boolean;
}
interface TreeHandle {
  read(buffer: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
  write(buffer: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesWritten: number }>;
  close(): Promise<void>;
}
interface WriteOptions {
  readonly mode: number;
  readonly times: { readonly atime: number; readonly mtime: number };
}
export interface TreeFs {
  stat(path: string): Promise<TreeStat>;
  lstat(path: string): Promise<TreeStat>;
  readdir(path: string): Promise<string[]>;
  readFile(path: string): Promise<Buffer>;
  writeFile(path: string, data: Uint8Array, options: WriteOptions): Promise<void>;
  open(path: string, flags: string, mode?: number): Promise<TreeHandle>;
  mkdir(path: string, options: { mode: number }): Promise<unknown>;
  symlink(target: string, path: string): Promise<void>;
  readlink(path: string): Promise<string>;
  rm(path: string, options: { force: boolean }): Promise<void>;
  chmod(path: string, mode: number): Promise<void>;
  utimes(path: string, atimeS: number, mtimeS: number): Promise<void>;
  lutimes(path: string, atimeS: number, mtimeS: number): Promise<void>;
}

export const localTree: TreeFs = {
  stat: (file) => local.stat(file),
  lstat: (file) => local.lstat(file),
  readdir: (directory) => local.readdir(directory),
  readFile: (file) => local.readFile(file),
  writeFile: async (file, data, { mode, times }) => {
    await local.writeFile(file, data, { mode });
    await local.utimes(file, times.atime, times.mtime);
  },
  open: (file, flags, mode) => local.open(file, flags, mode),
  mkdir: (directory, options) => local.mkdir(directory, options),
  symlink: (target, file) => local.symlink(target, file),
  readlink: (file) => local.readlink(file),
  rm: (file, options) => local.rm(file, options),
  chmod: (file, mode) => local.chmod(file, mode),
  utimes: (file, atimeS, mtimeS) => local.utimes(file, atimeS, mtimeS),
  lutimes: (file, atimeS, mtimeS) => local.lutimes(file, atimeS, mtimeS),
};
export const holdfastTree = (client: FileSystemClient): TreeFs => ({
  stat: (file) => client.stat(file),
  lstat: (file) => client.lstat(file),
  readdir: (directory) => client.readdir(directory),
  readFile: (file) => client.readFile(file),
  writeFile: (file, data, options) => client.writeFile(file, data, options),
  open: (file, flags, mode) => client.open(file, flags, mode),
  mkdir: (directory, options) => client.mkdir(directory, options),
  symlink: (target, file) => client.symlink(target, file),
  readlink: async (file) => client.readlink(file),
  rm: (file, options) => client.rm(file, options),
  chmod: (file, mode) => client.chmod(file, mode),
  utimes: (file, atimeS, mtimeS) => client.utimes(file, atimeS, mtimeS),
  lutimes: (file, atimeS, mtimeS) => client.lutimes(file, atimeS, mtimeS),
});

export interface TreeEntry {
  /** Relative to the root, '' for the root itself; '/'-separated. */
  readonly path: string;
  readonly stat: TreeStat;
}
export interface Tree {
  /** Parents before children. */
  readonly directories: TreeEntry[];
  readonly files: TreeEntry[];
  readonly symlinks: TreeEntry[];
  /** Neither file, directory nor symbolic link: left out. */
  readonly others: string[];
  readonly bytes: number;
}

const IN_FLIGHT = 64;

/** Everything below `root`, the root included; symbolic links are not followed, unless it is `root` itself. `skip` leaves out entries, and what is below. */
export async function scanTree(fs: TreeFs, root: string, skip: (path: string) => boolean = () => false): Promise<Tree> {
  const tree = {
    directories: [] as TreeEntry[],
    files: [] as TreeEntry[],
    symlinks: [] as TreeEntry[],
    others: [] as string[],
    bytes: 0,
  };
  const add = (entry: TreeEntry): boolean => {
    const { stat } = entry;
    if (stat.isDirectory()) tree.directories.push(entry);
    else if (stat.isSymbolicLink()) tree.symlinks.push(entry);
    else if (stat.isFile()) {
      tree.files.push(entry);
      tree.bytes += stat.size;
    } else tree.others.push(entry.path);
    return stat.isDirectory();
  };
  let level: string[] = add({ path: '', stat: await fs.stat(root) }) ? [''] : [];
  while (level.length > 0) {
    const found: string[] = [];
    await eachLimit(level, IN_FLIGHT, async (directory) => {
      for (const name of await fs.readdir(path.posix.join(root, directory))) {
        const entry = path.posix.join(directory, name);
        if (!skip(entry)) found.push(entry);
      }
    });
    const next: string[] = [];
    await eachLimit(found, IN_FLIGHT, async (entry) => {
      const stat = await fs.lstat(path.posix.join(root, entry));
      if (add({ path: entry, stat })) next.push(entry);
    });
    level = next;
  }
  return tree;
}
