import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import type { KernelFileHandle, ListedEntry } from '../fs/inode-calls.js';
import type { KernelNode } from './kernel-nodes.js';

/** What the kernel has open, by the numbers that it was given. */
export interface FileHandle {
  readonly node: KernelNode;
  readonly file: KernelFileHandle;
  readonly writable: boolean;
}
export interface DirectoryHandle {
  readonly node: KernelNode;
  /** As it was when it was last read from its beginning: offsets mean the same as long as it is open. */
  listing: { readonly parent: InodeNumber; readonly entries: readonly ListedEntry[] } | null;
}

export class Handles {
  readonly #files = new Map<number, FileHandle>();
  readonly #directories = new Map<number, DirectoryHandle>();
  #next = 1;

  get size(): number {
    return this.#files.size + this.#directories.size;
  }
  addFile(handle: FileHandle): number {
    this.#files.set(this.#next, handle);
    return this.#next++;
  }
  addDirectory(handle: DirectoryHandle): number {
    this.#directories.set(this.#next, handle);
    return this.#next++;
  }
  /** @throws {FsError} badHandle */
  file(handle: number): FileHandle {
    const found = this.#files.get(handle);
    if (found === undefined) throw new FsError('badHandle', { op: 'mount', object: `handle ${handle}` });
    return found;
  }
  /** @throws {FsError} badHandle */
  directory(handle: number): DirectoryHandle {
    const found = this.#directories.get(handle);
    if (found === undefined) throw new FsError('badHandle', { op: 'mount', object: `handle ${handle}` });
    return found;
  }
  takeFile(handle: number): FileHandle | undefined {
    const found = this.#files.get(handle);
    this.#files.delete(handle);
    return found;
  }
  takeDirectory(handle: number): void {
    this.#directories.delete(handle);
  }
  takeAllFiles(): FileHandle[] {
    const all = [...this.#files.values()];
    this.#files.clear();
    this.#directories.clear();
    return all;
  }
}
