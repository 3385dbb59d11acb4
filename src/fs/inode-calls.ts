/**
 * The file system by inode, for a mount: a kernel walks paths itself, checks rights itself, and names what it knows by inode and generation. What a
 * name in a directory stands for is looked up under that directory's tokens, as for a path.
 */
import { constants } from 'node:fs';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { TokenMode } from '../token-manager/token.js';
import { Directory } from './directory.js';
import {
  type AttributeChanges,
  type Attributes,
  type Credentials,
  type DirectoryRef,
  FileType,
  type FsStatistics,
  type OpenFile,
  type OpOptions,
  type RenameOptions,
  type XattrSetOptions,
} from './file-system-api.js';
import type { Inode } from './inode.js';
import type { LeafEntry } from './leaf-format.js';
import type { FsOpenFile } from './open-file.js';
import { setInodeAttributes, statInode } from './operations/attributes.js';
import { addName } from './operations/link.js';
import { makeNode } from './operations/make.js';
import { open, openInode } from './operations/open.js';
import { rename } from './operations/rename.js';
import { remove } from './operations/unlink.js';
import { getXattr, listXattrs, setXattr } from './operations/xattr.js';
import { readLink, rootRef, walk } from './path-walk.js';
import { type InodeRef, loadDirectory, pinInodes } from './pinning.js';
import { Statistics } from './statistics.js';
import type { Volume } from './volume.js';

export type { InodeRef } from './pinning.js';

/** A file that a kernel has open. */
export type KernelFileHandle = OpenFile &
  Pick<FsOpenFile, 'tryHold' | 'hold' | 'heldAround' | 'readHeld' | 'writeHeld' | 'generation'>;

export interface ListedEntry extends InodeRef {
  readonly name: string;
  readonly type: FileType;
}

/** How often something may be gone between the look-up of its name and the look at it. */
const TRIES = 16;
const KERNEL = { fromKernel: true } as const;

const inDirectory = (directory: DirectoryRef, options: OpOptions | undefined): OpOptions => ({
  ...options,
  directory,
  ...KERNEL,
});
const named = (ref: InodeRef): string => `inode ${ref.ino}`;
const isStale = (error: unknown): boolean => FsError.is(error) && error.reason === 'staleHandle';

export class InodeCalls {
  readonly root: InodeRef = rootRef;
  readonly #volume: Volume;
  readonly #statistics: Statistics;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#statistics = new Statistics(volume);
  }

  /** Null: there is no such name. */
  async lookup(directory: InodeRef, name: string, who: Credentials, options?: OpOptions): Promise<Attributes | null> {
    const request = { op: 'lookup', credentials: who, followLast: false, options: inDirectory(directory, options) };
    for (let attempt = 1; ; attempt++) {
      const { target } = await walk(this.#volume, name, request);
      if (target === null) return null;
      try {
        return await statInode(this.#volume, target, 'lookup', options);
      } catch (error) {
        if (!isStale(error) || attempt >= TRIES) throw error;
      }
    }
  }
  stat(ref: InodeRef, options?: OpOptions): Promise<Attributes> {
    this.#volume.checkOpen('stat');
    return statInode(this.#volume, ref, 'stat', options);
  }
  setAttributes(ref: InodeRef, changes: AttributeChanges, who: Credentials, options?: OpOptions): Promise<Attributes> {
    const set = () => setInodeAttributes(this.#volume, ref, changes, who, named(ref), options);
    return this.#volume.change(set, options);
  }

  /** `again`: it is open here already, and may have lost its name. */
  async open(ref: InodeRef, flags: number, who: Credentials, again: boolean, options?: OpOptions) {
    const how = again ? 'again' : 'trusted';
    return (await openInode(this.#volume, ref, flags, who, options, how)) as FsOpenFile as KernelFileHandle;
  }
  async create(
    directory: InodeRef,
    name: string,
    flags: number,
    mode: number,
    who: Credentials,
    options?: OpOptions,
  ): Promise<{ readonly file: KernelFileHandle; readonly attributes: Attributes }> {
    const where = inDirectory(directory, options);
    const all = flags | constants.O_CREAT | constants.O_NOFOLLOW;
    return this.#opened(await this.#volume.change(() => open(this.#volume, name, all, mode, who, where), options));
  }
  /** A file without a name. */
  async createNameless(directory: InodeRef, flags: number, mode: number, who: Credentials, options?: OpOptions) {
    const where = inDirectory(directory, options);
    const make = () => open(this.#volume, '.', flags, mode, who, where);
    return this.#opened(await this.#volume.change(make, options));
  }
  async #opened(opened: OpenFile) {
    const file = opened as FsOpenFile as KernelFileHandle;
    try {
      return { file, attributes: await file.stat() };
    } catch (error) {
      await file.close().catch(() => undefined);
      throw error;
    }
  }

  mkdir(directory: InodeRef, name: string, mode: number, who: Credentials, options?: OpOptions): Promise<Attributes> {
    const type = FileType.directory;
    return this.#make(directory, { op: 'mkdir', path: name, type, mode: mode & 0o1777, credentials: who }, options);
  }
  mknod(
    directory: InodeRef,
    name: string,
    type: FileType,
    mode: number,
    rdev: number,
    who: Credentials,
    options?: OpOptions,
  ): Promise<Attributes> {
    return this.#make(directory, { op: 'mknod', path: name, type, mode, rdev, credentials: who }, options);
  }
  symlink(
    directory: InodeRef,
    name: string,
    target: string,
    who: Credentials,
    options?: OpOptions,
  ): Promise<Attributes> {
    const bytes = Uint8Array.from(Buffer.from(target, 'utf8'));
    const type = FileType.symlink;
    const node = { op: 'symlink', path: name, type, mode: 0o777, credentials: who, target: bytes };
    return this.#make(directory, node, options);
  }
  async #make(
    directory: InodeRef,
    node: Omit<Parameters<typeof makeNode>[1], 'options' | 'onCreated'>,
    options: OpOptions | undefined,
  ): Promise<Attributes> {
    let attributes: Attributes | null = null;
    const onCreated = (inode: Inode): void => {
      attributes = inode.attributes();
    };
    const where = inDirectory(directory, options);
    await this.#volume.change(() => makeNode(this.#volume, { ...node, options: where, onCreated }), options);
    return attributes!;
  }

  async remove(
    op: 'unlink' | 'rmdir',
    directory: InodeRef,
    name: string,
    who: Credentials,
    options?: OpOptions,
  ): Promise<void> {
    if (op === 'unlink') await this.#volume.frees.makeRoom();
    const where = inDirectory(directory, options);
    await this.#volume.change(() => remove(this.#volume, op, name, who, where), options);
  }
  async rename(
    from: InodeRef,
    name: string,
    to: InodeRef,
    newName: string,
    who: Credentials,
    options: RenameOptions,
  ): Promise<void> {
    const where = { ...options, ...inDirectory(from, options), toDirectory: to };
    await this.#volume.change(() => rename(this.#volume, name, newName, who, where), options);
  }
  async link(
    existing: LeafEntry,
    directory: InodeRef,
    name: string,
    who: Credentials,
    options?: OpOptions,
  ): Promise<Attributes> {
    const where = inDirectory(directory, options);
    await this.#volume.change(() => addName(this.#volume, existing, named(existing), name, who, where), options);
    return statInode(this.#volume, existing, 'link', options);
  }

  readlink(ref: InodeRef, options?: OpOptions): Promise<string> {
    return readLink(this.#volume, ref, 'readlink', named(ref), options);
  }
  /** All names, in no order; '.' and '..' are not among them. */
  async list(
    ref: InodeRef,
    options?: OpOptions,
  ): Promise<{ readonly parent: InodeNumber; readonly entries: ListedEntry[] }> {
    const volume = this.#volume;
    volume.checkOpen('readdir');
    const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.shared, data: TokenMode.shared }], options);
    try {
      const inode = await loadDirectory(volume, ref, 'readdir', named(ref));
      const found = await new Directory(volume, inode).list();
      volume.accessTimes.noteRead(inode);
      const entries = found.map(({ name, ino, generation, type }) => ({
        name: Buffer.from(name).toString('utf8'),
        ino,
        generation,
        type,
      }));
      return { parent: inode.parent, entries };
    } finally {
      pins.release();
    }
  }

  getXattr(ref: InodeRef, name: string, who: Credentials, options?: OpOptions): Promise<Uint8Array> {
    return getXattr(this.#volume, ref, name, who, named(ref), options);
  }
  listXattrs(ref: InodeRef, who: Credentials, options?: OpOptions): Promise<string[]> {
    return listXattrs(this.#volume, ref, who, options);
  }
  setXattr(
    ref: InodeRef,
    name: string,
    value: Uint8Array | null,
    who: Credentials,
    options?: XattrSetOptions & OpOptions,
  ): Promise<void> {
    const set = () => setXattr(this.#volume, ref, name, value, who, named(ref), options);
    return this.#volume.change(set, options);
  }

  statfs(): Promise<FsStatistics> {
    this.#volume.checkOpen('statfs');
    return this.#statistics.read();
  }
  /** Names in a directory are logged: durable when the log is. */
  async syncDirectory(): Promise<void> {
    this.#volume.checkOpen('fsync');
    await this.#volume.log?.force();
  }
}
