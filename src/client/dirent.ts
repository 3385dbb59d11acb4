import { FileType } from '../fs/file-system-api.js';
import { codedError } from './node-errors.js';

/** An entry of a directory, compatible with fs.Dirent. */
export class Dirent<Name extends string | Buffer = string> {
  readonly #type: FileType;

  constructor(
    readonly name: Name,
    /** The directory it is in, as it was named by the caller. */
    readonly parentPath: string,
    type: FileType,
  ) {
    this.#type = type;
  }

  /** node's older name of parentPath. */
  get path(): string {
    return this.parentPath;
  }
  isFile(): boolean {
    return this.#type === FileType.regular;
  }
  isDirectory(): boolean {
    return this.#type === FileType.directory;
  }
  isSymbolicLink(): boolean {
    return this.#type === FileType.symlink;
  }
  isFIFO(): boolean {
    return this.#type === FileType.fifo;
  }
  isCharacterDevice(): boolean {
    return this.#type === FileType.characterDevice;
  }
  isBlockDevice(): boolean {
    return this.#type === FileType.blockDevice;
  }
  isSocket(): boolean {
    return this.#type === FileType.socket;
  }
}

/** An open directory, compatible with fs.Dir: a listing of the moment it was opened. */
export class Dir implements AsyncIterable<Dirent> {
  #next = 0;
  #closed = false;

  constructor(
    readonly path: string,
    readonly entries: readonly Dirent[],
  ) {
    Object.defineProperty(this, 'entries', { enumerable: false });
  }

  #check(): void {
    if (this.#closed) throw codedError('ERR_DIR_CLOSED', 'Directory handle was closed');
  }
  readSync(): Dirent | null {
    this.#check();
    return this.entries[this.#next++] ?? null;
  }
  async read(): Promise<Dirent | null> {
    return this.readSync();
  }
  closeSync(): void {
    this.#check();
    this.#closed = true;
  }
  async close(): Promise<void> {
    this.closeSync();
  }
  async *[Symbol.asyncIterator](): AsyncGenerator<Dirent, void, undefined> {
    try {
      for (let entry = this.readSync(); entry !== null; entry = this.readSync()) yield entry;
    } finally {
      if (!this.#closed) this.#closed = true;
    }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#closed) this.closeSync();
  }
}
