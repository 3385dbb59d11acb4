import type { InodeNumber } from '../common/ids.js';
import type {
  AttributeChanges,
  Attributes,
  Credentials,
  DirectoryEntry,
  FileSystem,
  FileType,
  FsStatistics,
  Located,
  OpenFile,
  OpOptions,
  RenameOptions,
  StampedAttributes,
  XattrSetOptions,
} from '../fs/file-system-api.js';
import type { MountedFileSystem } from '../fs/mount.js';

/**
 * A file system that is mounted at its first use: a daemon serves its socket before the file system of its cluster has been
 * created. Fault model: a mount that failed is tried again by the next operation.
 */
export class LazyFileSystem implements FileSystem {
  #mounting: Promise<MountedFileSystem> | null = null;
  #mounted: MountedFileSystem | null = null;
  #forgotten = 0;

  constructor(private readonly mount: () => Promise<MountedFileSystem>) {}

  #get(): Promise<MountedFileSystem> {
    this.#mounting ??= this.#mountOnce();
    return this.#mounting;
  }
  async #mountOnce(): Promise<MountedFileSystem> {
    const forgotten = this.#forgotten;
    try {
      const mounted = await this.mount();
      if (forgotten === this.#forgotten) this.#mounted = mounted;
      return mounted;
    } catch (error) {
      if (forgotten === this.#forgotten) this.#mounting = null;
      throw error;
    }
  }
  /** The mounted one is gone: the next operation mounts anew. */
  forget(): void {
    this.#forgotten++;
    this.#mounting = null;
    this.#mounted = null;
  }

  tryStat(path: string, follow: boolean, who: Credentials): StampedAttributes | null {
    return this.#mounted?.tryStat(path, follow, who) ?? null;
  }
  async open(path: string, flags: number, mode: number, who: Credentials, options?: OpOptions): Promise<OpenFile> {
    return (await this.#get()).open(path, flags, mode, who, options);
  }
  async openInode(ino: InodeNumber, generation: number, flags: number, who: Credentials): Promise<OpenFile> {
    return (await this.#get()).openInode(ino, generation, flags, who);
  }
  async stat(path: string, who: Credentials, options?: OpOptions): Promise<Attributes> {
    return (await this.#get()).stat(path, who, options);
  }
  async sharedWrite(path: string, on: boolean | undefined, who: Credentials, options?: OpOptions): Promise<boolean> {
    return (await this.#get()).sharedWrite(path, on, who, options);
  }
  async locate(path: string, offset: number, length: number, who: Credentials, options?: OpOptions): Promise<Located> {
    return (await this.#get()).locate(path, offset, length, who, options);
  }
  async lstat(path: string, who: Credentials, options?: OpOptions): Promise<Attributes> {
    return (await this.#get()).lstat(path, who, options);
  }
  async access(path: string, mode: number, who: Credentials, options?: OpOptions): Promise<void> {
    await (await this.#get()).access(path, mode, who, options);
  }
  async mkdir(path: string, mode: number, who: Credentials, options?: OpOptions): Promise<void> {
    await (await this.#get()).mkdir(path, mode, who, options);
  }
  async rmdir(path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await (await this.#get()).rmdir(path, who, options);
  }
  async unlink(path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await (await this.#get()).unlink(path, who, options);
  }
  async mknod(
    path: string,
    type: FileType,
    mode: number,
    rdev: number,
    who: Credentials,
    options?: OpOptions,
  ): Promise<void> {
    await (await this.#get()).mknod(path, type, mode, rdev, who, options);
  }
  async rename(from: string, to: string, who: Credentials, options?: RenameOptions): Promise<void> {
    await (await this.#get()).rename(from, to, who, options);
  }
  async link(existing: string, path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await (await this.#get()).link(existing, path, who, options);
  }
  async symlink(target: string, path: string, who: Credentials, options?: OpOptions): Promise<void> {
    await (await this.#get()).symlink(target, path, who, options);
  }
  async readlink(path: string, who: Credentials, options?: OpOptions): Promise<string> {
    return (await this.#get()).readlink(path, who, options);
  }
  async realpath(path: string, who: Credentials, options?: OpOptions): Promise<string> {
    return (await this.#get()).realpath(path, who, options);
  }
  async readdir(path: string, who: Credentials, options?: OpOptions): Promise<DirectoryEntry[]> {
    return (await this.#get()).readdir(path, who, options);
  }
  async setAttributes(
    path: string,
    changes: AttributeChanges,
    followLinks: boolean,
    who: Credentials,
    options?: OpOptions,
  ): Promise<Attributes> {
    return (await this.#get()).setAttributes(path, changes, followLinks, who, options);
  }
  async getXattr(path: string, followLinks: boolean, name: string, who: Credentials, options?: OpOptions) {
    return (await this.#get()).getXattr(path, followLinks, name, who, options);
  }
  async listXattrs(path: string, followLinks: boolean, who: Credentials, options?: OpOptions) {
    return (await this.#get()).listXattrs(path, followLinks, who, options);
  }
  async setXattr(
    path: string,
    followLinks: boolean,
    name: string,
    value: Uint8Array | null,
    who: Credentials,
    options?: XattrSetOptions & OpOptions,
  ): Promise<void> {
    await (await this.#get()).setXattr(path, followLinks, name, value, who, options);
  }
  async truncate(path: string, sizeBytes: number, who: Credentials, options?: OpOptions): Promise<void> {
    await (await this.#get()).truncate(path, sizeBytes, who, options);
  }
  async statfs(options?: OpOptions): Promise<FsStatistics> {
    return (await this.#get()).statfs(options);
  }
  async sync(): Promise<void> {
    if (this.#mounting !== null) await (await this.#mounting).sync();
  }
  async unmount(): Promise<void> {
    if (this.#mounting === null) return;
    const mounted = await this.#mounting;
    this.#mounting = null;
    await mounted.unmount();
  }
}
