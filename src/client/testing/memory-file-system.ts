import { constants } from 'node:fs';
import type { EntryId } from '../../cache/cache-map.js';
import { FsError } from '../../common/errors.js';
import type { InodeNumber } from '../../common/ids.js';
import {
  type AllocateMode,
  type AllocateOptions,
  type AttributeChanges,
  type Attributes,
  type Credentials,
  type DirectoryEntry,
  type FileSystem,
  FileType,
  type FsStatistics,
  type Located,
  type OpenFile,
  type OpOptions,
  type RenameOptions,
  type XattrSetOptions,
} from '../../fs/file-system-api.js';
import type { InodeOpener } from '../dispatcher.js';
import { fail, MAY_READ, MAY_WRITE, type MemoryNode, MemoryTree, mayAccess } from './memory-tree.js';

/**
 * A faithful FileSystem in memory: what the client is tested against, on every transport. `before` is called ahead of every
 * operation and may wait, or throw: how tests hold an operation or break it.
 */
const { O_ACCMODE, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_TRUNC, O_WRONLY, O_RDWR } = {
  O_ACCMODE: 3,
  ...constants,
};
const TOTAL_BYTES = 1 << 30;
const INODES_MAX = 1_000_000;

export class MemoryFileSystem implements FileSystem, InodeOpener {
  readonly tree: MemoryTree;
  /** Calls of each operation since the start. */
  readonly calls = new Map<string, number>();
  openFiles = 0;
  syncs = 0;
  before: (op: string, options: OpOptions | undefined) => Promise<void> | void = () => undefined;
  /** An inode's entry in a cache map, for tests that have one. */
  entryOf: (ino: InodeNumber) => EntryId | null = () => null;

  constructor(wallNs: () => bigint = () => BigInt(Date.now()) * 1_000_000n) {
    this.tree = new MemoryTree(wallNs);
  }

  async enter(op: string, options: OpOptions | undefined): Promise<void> {
    this.calls.set(op, (this.calls.get(op) ?? 0) + 1);
    await this.before(op, options);
    if (options?.signal?.aborted === true) throw fail('aborted', op);
  }

  async open(path: string, flags: number, mode: number, who: Credentials, options?: OpOptions): Promise<OpenFile> {
    await this.enter('open', options);
    const exclusive = (flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0;
    const follow = !exclusive && (flags & O_NOFOLLOW) === 0;
    const place = this.tree.walk(path, who, 'open', follow);
    let { node } = place;
    if (node === null) {
      if ((flags & O_CREAT) === 0) throw fail('notFound', 'open', path);
      if (place.wantsDirectory) throw fail('isDirectory', 'open', path);
      this.tree.checkNames(place.directory, who, 'open', path);
      node = this.tree.create(FileType.regular, mode, who);
      this.tree.insert(place.directory, place.name, node);
      return new MemoryFile(this, node, flags);
    }
    if (exclusive) throw fail('exists', 'open', path);
    if (node.type === FileType.directory && (flags & O_CREAT) !== 0) throw fail('isDirectory', 'open', path);
    return this.#openNode(node, flags, who, path);
  }

  async openInode(ino: InodeNumber, generation: number, flags: number, who: Credentials): Promise<OpenFile> {
    await this.enter('openInode', undefined);
    const node = this.tree.get(ino);
    if (node === undefined || node.generation !== generation) throw fail('staleHandle', 'open', `inode ${ino}`);
    return this.#openNode(node, flags, who, `inode ${ino}`);
  }

  #openNode(node: MemoryNode, flags: number, who: Credentials, path: string): OpenFile {
    const access = flags & O_ACCMODE;
    if (node.type === FileType.symlink) throw fail('tooManyLinks', 'open', path);
    if ((flags & O_DIRECTORY) !== 0 && node.type !== FileType.directory) throw fail('notDirectory', 'open', path);
    const writes = access === O_WRONLY || access === O_RDWR;
    if (node.type === FileType.directory && (writes || (flags & O_TRUNC) !== 0))
      throw fail('isDirectory', 'open', path);
    const want = (access === O_WRONLY ? 0 : MAY_READ) | (writes ? MAY_WRITE : 0);
    if (!mayAccess(node, who, want)) throw fail('accessDenied', 'open', path);
    if ((flags & O_TRUNC) !== 0 && writes) this.resize(node, 0);
    return new MemoryFile(this, node, flags);
  }

  resize(node: MemoryNode, sizeBytes: number): void {
    if (sizeBytes > TOTAL_BYTES) throw fail('fileTooBig', 'truncate');
    if (sizeBytes < node.sizeBytes) node.bytes.fill(0, sizeBytes, node.sizeBytes);
    this.#grow(node, sizeBytes);
    node.sizeBytes = sizeBytes;
    node.mtimeNs = node.ctimeNs = this.tree.wallNs();
  }

  #grow(node: MemoryNode, sizeBytes: number): void {
    if (sizeBytes <= node.bytes.length) return;
    const grown = new Uint8Array(Math.max(sizeBytes, node.bytes.length * 2));
    grown.set(node.bytes);
    node.bytes = grown;
  }

  store(node: MemoryNode, offsetBytes: number, source: Uint8Array): void {
    const end = offsetBytes + source.length;
    if (end > TOTAL_BYTES) throw fail('fileTooBig', 'write');
    this.#grow(node, end);
    node.bytes.set(source, offsetBytes);
    node.sizeBytes = Math.max(node.sizeBytes, end);
    node.mtimeNs = node.ctimeNs = this.tree.wallNs();
  }

  async stat(path: string, who: Credentials, options?: OpOptions): Promise<Attributes> {
    await this.enter('stat', options);
    return this.tree.attributes(this.tree.find(path, who, 'stat'));
  }
  async lstat(path: string, who: Credentials, options?: OpOptions): Promise<Attributes> {
    await this.enter('lstat', options);
    return this.tree.attributes(this.tree.find(path, who, 'lstat', false));
  }
  async access(path: string, mode: number, who: Credentials, options?: OpOptions): Promise<void> {
    await this.enter('access', options);
    const node = this.tree.find(path, who, 'access');
    if (mode !== 0 && !mayAccess(node, who, mode)) throw fail('accessDenied', 'access', path);
  }

  async mkdir(path: string, mode: number, who: Credentials, options?: OpOptions): Promise<void> {
    await this.enter('mkdir', options);
    const place = this.tree.walk(path, who, 'mkdir', false);
    if (place.node !== null) throw fail('exists', 'mkdir', path);
    this.tree.checkNames(place.directory, who, 'mkdir', path);
    this.tree.insert(place.directory, place.name, this.tree.create(FileType.directory, mode, who));
  }
  async mknod(
    path: string,
    type: FileType,
    mode: number,
    rdev: number,
    who: Credentials,
    options?: OpOptions,
  ): Promise<void> {
    await this.enter('mknod', options);
    const place = this.tree.walk(path, who, 'mknod', false);
    if (place.node !== null) throw fail('exists', 'mknod', path);
    this.tree.checkNames(place.directory, who, 'mknod', path);
    const node = this.tree.create(type, mode, who);
    node.rdev = rdev;
    this.tree.insert(place.directory, place.name, node);
  }
  async rmdir(path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await this.enter('rmdir', options);
    const { directory, name, node } = this.tree.walk(path, who, 'rmdir', false);
    if (node === null) throw fail('notFound', 'rmdir', path);
    if (node.type !== FileType.directory) throw fail('notDirectory', 'rmdir', path);
    if (name === '.') throw fail('invalidArgument', 'rmdir', path);
    if (node === this.tree.root) throw fail('busy', 'rmdir', path);
    if (node.entries.size > 0) throw fail('notEmpty', 'rmdir', path);
    this.tree.checkNames(directory, who, 'rmdir', path, node);
    this.tree.remove(directory, name, node);
    this.tree.dropLink(node);
  }
  async unlink(path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await this.enter('unlink', options);
    const { directory, name, node } = this.tree.walk(path, who, 'unlink', false);
    if (node === null) throw fail('notFound', 'unlink', path);
    if (node.type === FileType.directory) throw fail('isDirectory', 'unlink', path);
    this.tree.checkNames(directory, who, 'unlink', path, node);
    this.tree.remove(directory, name, node);
    this.tree.dropLink(node);
  }

  async rename(from: string, to: string, who: Credentials, options?: RenameOptions): Promise<void> {
    await this.enter('rename', options);
    if (options?.exchange === true) throw fail('notSupported', 'rename', from);
    const source = this.tree.walk(from, who, 'rename', false);
    const target = this.tree.walk(to, who, 'rename', false);
    const node = source.node;
    if (node === null) throw fail('notFound', 'rename', from);
    const isDirectory = node.type === FileType.directory;
    if (isDirectory)
      for (let up = target.directory; ; up = up.parent!) {
        if (up === node) throw fail('invalidArgument', 'rename', from);
        if (up === this.tree.root) break;
      }
    if (target.wantsDirectory && !isDirectory) throw fail('notDirectory', 'rename', to);
    const victim = target.node;
    if (victim !== null && options?.noReplace === true) throw fail('exists', 'rename', to);
    if (victim === node) return;
    if (victim !== null) {
      if (isDirectory && victim.type !== FileType.directory) throw fail('notDirectory', 'rename', to);
      if (!isDirectory && victim.type === FileType.directory) throw fail('isDirectory', 'rename', to);
      if (victim.entries.size > 0) throw fail('notEmpty', 'rename', to);
    }
    this.tree.checkNames(source.directory, who, 'rename', from, node);
    this.tree.checkNames(target.directory, who, 'rename', to, victim ?? undefined);
    this.tree.remove(source.directory, source.name, node);
    if (victim !== null) {
      this.tree.remove(target.directory, target.name, victim);
      this.tree.dropLink(victim);
    }
    this.tree.insert(target.directory, target.name, node);
  }

  async link(existing: string, path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await this.enter('link', options);
    const node = this.tree.find(existing, who, 'link', false);
    if (node.type === FileType.directory) throw fail('notPermitted', 'link', existing);
    const place = this.tree.walk(path, who, 'link', false);
    if (place.node !== null) throw fail('exists', 'link', path);
    this.tree.checkNames(place.directory, who, 'link', path);
    this.tree.insert(place.directory, place.name, node);
    node.nlink++;
    node.ctimeNs = this.tree.wallNs();
  }
  async symlink(target: string, path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await this.enter('symlink', options);
    const place = this.tree.walk(path, who, 'symlink', false);
    if (place.node !== null) throw fail('exists', 'symlink', path);
    this.tree.checkNames(place.directory, who, 'symlink', path);
    this.tree.insert(place.directory, place.name, this.tree.create(FileType.symlink, 0o777, who, target));
  }
  async readlink(path: string, who: Credentials, options?: OpOptions): Promise<string> {
    await this.enter('readlink', options);
    const node = this.tree.find(path, who, 'readlink', false);
    if (node.type !== FileType.symlink) throw fail('invalidArgument', 'readlink', path);
    return node.target;
  }
  async realpath(path: string, who: Credentials, options?: OpOptions): Promise<string> {
    await this.enter('realpath', options);
    const { directory, name, node } = this.tree.walk(path, who, 'realpath', true);
    if (node === null) throw fail('notFound', 'realpath', path);
    const parts: string[] = [];
    let at = node;
    if (node.type !== FileType.directory) {
      parts.unshift(name);
      at = directory;
    }
    for (; at !== this.tree.root; at = at.parent!)
      for (const [entry, child] of at.parent!.entries) if (child === at) parts.unshift(entry);
    return `/${parts.join('/')}`;
  }
  async readdir(path: string, who: Credentials, options?: OpOptions): Promise<DirectoryEntry[]> {
    await this.enter('readdir', options);
    const node = this.tree.find(path, who, 'readdir');
    if (node.type !== FileType.directory) throw fail('notDirectory', 'readdir', path);
    if (!mayAccess(node, who, MAY_READ)) throw fail('accessDenied', 'readdir', path);
    return [...node.entries].map(([name, { ino, type }]) => ({ name, ino, type }));
  }
  async setAttributes(
    path: string,
    changes: AttributeChanges,
    followLinks: boolean,
    who: Credentials,
    options?: OpOptions,
  ): Promise<Attributes> {
    await this.enter('setAttributes', options);
    const node = this.tree.find(path, who, 'setAttributes', followLinks);
    return this.tree.change(node, changes, who, 'setAttributes', path);
  }
  async truncate(path: string, sizeBytes: number, who: Credentials, options?: OpOptions): Promise<void> {
    await this.enter('truncate', options);
    const node = this.tree.find(path, who, 'truncate');
    if (node.type === FileType.directory) throw fail('isDirectory', 'truncate', path);
    if (!mayAccess(node, who, MAY_WRITE)) throw fail('accessDenied', 'truncate', path);
    this.resize(node, sizeBytes);
  }
  async getXattr(path: string, follow: boolean, name: string, who: Credentials, options?: OpOptions) {
    await this.enter('getxattr', options);
    return this.tree.getXattr(this.tree.find(path, who, 'getxattr', follow), name);
  }
  async listXattrs(path: string, follow: boolean, who: Credentials, options?: OpOptions): Promise<string[]> {
    await this.enter('listxattr', options);
    return [...this.tree.find(path, who, 'listxattr', follow).xattrs.keys()];
  }
  async setXattr(
    path: string,
    follow: boolean,
    name: string,
    value: Uint8Array | null,
    who: Credentials,
    options?: XattrSetOptions & OpOptions,
  ): Promise<void> {
    await this.enter('setxattr', options);
    this.tree.setXattr(this.tree.find(path, who, 'setxattr', follow), name, value, options);
  }
  readonly #shared = new Set<InodeNumber>();
  async sharedWrite(path: string, on: boolean | undefined, who: Credentials, options?: OpOptions): Promise<boolean> {
    await this.enter('sharedWrite', options);
    const { ino } = this.tree.find(path, who, 'sharedWrite');
    if (on === true) this.#shared.add(ino);
    if (on === false) this.#shared.delete(ino);
    return this.#shared.has(ino);
  }
  async locate(path: string, offset: number, length: number, who: Credentials, options?: OpOptions): Promise<Located> {
    await this.enter('locate', options);
    const { sizeBytes } = this.tree.find(path, who, 'locate');
    const lengthBytes = Math.max(0, Math.min(length, sizeBytes - offset));
    const none = { nsd: null, nsdUuid: null, node: null, sector: null };
    const ranges = lengthBytes === 0 ? [] : [{ kind: 'inline' as const, offsetBytes: offset, lengthBytes, ...none }];
    return { ranges, nextBytes: null };
  }
  async statfs(options?: OpOptions): Promise<FsStatistics> {
    await this.enter('statfs', options);
    return {
      blockBytes: 1 << 20,
      subBlockBytes: 4096,
      totalBytes: TOTAL_BYTES,
      freeBytes: TOTAL_BYTES / 2,
      totalInodes: INODES_MAX,
      freeInodes: INODES_MAX - this.tree.inodeCount,
      nameBytesMax: 255,
    };
  }
  async sync(): Promise<void> {
    this.syncs++;
  }
  async unmount(): Promise<void> {}
}

class MemoryFile implements OpenFile {
  readonly ino: InodeNumber;
  readonly entry: EntryId | null;
  readonly atimeDue = false;
  readonly hints: { kind: string; offsetBytes: number; lengthBytes: number }[] = [];
  #closed = false;

  constructor(
    readonly fs: MemoryFileSystem,
    readonly node: MemoryNode,
    readonly flags: number,
  ) {
    this.ino = node.ino;
    this.entry = fs.entryOf(node.ino);
    node.opens++;
    fs.openFiles++;
  }

  async #enter(op: string, options: OpOptions | undefined): Promise<void> {
    await this.fs.enter(op, options);
    if (this.#closed) throw new FsError('badHandle', { op });
  }

  async read(offsetBytes: number, target: Uint8Array, options?: OpOptions): Promise<number> {
    await this.#enter('read', options);
    if (this.node.type === FileType.directory) throw fail('isDirectory', 'read');
    if ((this.flags & O_ACCMODE) === O_WRONLY) throw fail('badHandle', 'read');
    const count = Math.max(0, Math.min(target.length, this.node.sizeBytes - offsetBytes));
    target.set(this.node.bytes.subarray(offsetBytes, offsetBytes + count));
    return count;
  }
  async bring(offsetBytes: number, lengthBytes: number, options?: OpOptions): Promise<number> {
    await this.#enter('read', options);
    return Math.max(0, Math.min(lengthBytes, this.node.sizeBytes - offsetBytes));
  }
  async write(offsetBytes: number | null, source: Uint8Array, options?: OpOptions) {
    await this.#enter('write', options);
    if ((this.flags & O_ACCMODE) === constants.O_RDONLY) throw fail('badHandle', 'write');
    const at = offsetBytes === null || (this.flags & O_APPEND) !== 0 ? this.node.sizeBytes : offsetBytes;
    this.fs.store(this.node, at, source);
    return { offsetBytes: at, lengthBytes: source.length };
  }
  async truncate(sizeBytes: number, options?: OpOptions): Promise<void> {
    await this.#enter('ftruncate', options);
    if ((this.flags & O_ACCMODE) === constants.O_RDONLY) throw fail('invalidArgument', 'ftruncate');
    this.fs.resize(this.node, sizeBytes);
  }
  async allocate(mode: AllocateMode, offsetBytes: number, lengthBytes: number, options?: AllocateOptions) {
    await this.#enter('fallocate', options);
    if ((this.flags & O_ACCMODE) === constants.O_RDONLY) throw fail('badHandle', 'fallocate');
    if (mode === 'collapseRange' || mode === 'insertRange') throw fail('notSupported', 'fallocate');
    const end = offsetBytes + lengthBytes;
    if (mode !== 'allocate') this.node.bytes.fill(0, offsetBytes, end);
    if (mode !== 'punchHole' && options?.keepSize !== true && end > this.node.sizeBytes) this.fs.resize(this.node, end);
  }
  async seek(offsetBytes: number, what: 'data' | 'hole', options?: OpOptions): Promise<number> {
    await this.#enter('lseek', options);
    if (offsetBytes >= this.node.sizeBytes) throw fail('noData', 'lseek');
    return what === 'data' ? offsetBytes : this.node.sizeBytes;
  }
  async copyRange(
    offsetBytes: number,
    target: OpenFile,
    targetOffsetBytes: number,
    lengthBytes: number,
    options?: OpOptions,
  ): Promise<number> {
    await this.#enter('copy_file_range', options);
    if (!(target instanceof MemoryFile)) throw fail('crossesFileSystem', 'copy_file_range');
    const end = Math.min(this.node.sizeBytes, offsetBytes + lengthBytes);
    if (end <= offsetBytes) return 0;
    const bytes = this.node.bytes.slice(offsetBytes, end);
    return (await target.write(targetOffsetBytes, bytes, options)).lengthBytes;
  }
  async link(path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await this.#enter('link', options);
    const place = this.fs.tree.walk(path, who, 'link', false);
    if (place.node !== null) throw fail('exists', 'link', path);
    this.fs.tree.insert(place.directory, place.name, this.node);
    this.node.nlink++;
  }
  async stat(options?: OpOptions): Promise<Attributes> {
    await this.#enter('fstat', options);
    return this.fs.tree.attributes(this.node);
  }
  async setAttributes(changes: AttributeChanges, who: Credentials, options?: OpOptions): Promise<Attributes> {
    await this.#enter('fsetattr', options);
    return this.fs.tree.change(this.node, changes, who, 'fsetattr');
  }
  async getXattr(name: string, _who: Credentials, options?: OpOptions): Promise<Uint8Array> {
    await this.#enter('getxattr', options);
    return this.fs.tree.getXattr(this.node, name);
  }
  async listXattrs(_who: Credentials, options?: OpOptions): Promise<string[]> {
    await this.#enter('listxattr', options);
    return [...this.node.xattrs.keys()];
  }
  async setXattr(
    name: string,
    value: Uint8Array | null,
    _who: Credentials,
    options?: XattrSetOptions & OpOptions,
  ): Promise<void> {
    await this.#enter('setxattr', options);
    this.fs.tree.setXattr(this.node, name, value, options);
  }
  async sync(_dataOnly: boolean, options?: OpOptions): Promise<void> {
    await this.#enter('fsync', options);
    this.fs.syncs++;
  }
  hint(kind: string, offsetBytes: number, lengthBytes: number): void {
    this.hints.push({ kind, offsetBytes, lengthBytes });
  }
  async close(): Promise<void> {
    await this.fs.enter('close', undefined);
    if (this.#closed) return;
    this.#closed = true;
    this.node.opens--;
    this.fs.openFiles--;
    this.fs.tree.forgetUnused(this.node);
  }
}
