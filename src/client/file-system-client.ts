import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { FsError } from '../common/errors.js';
import type { Deny } from '../fs/file-system-api.js';
import { type DirectoryEntry, FileType, O_TMPFILE } from '../fs/file-system-api.js';
import { toChunks, type WritableData, wholeBytes } from './content.js';
import { Dir, Dirent } from './dirent.js';
import { FileHandle, type SignalOption, type XattrOptions } from './file-handle.js';
import { checkAborted, invalidArgValue, refusals, toNodeError } from './node-errors.js';
import { attributesFromWire, DENIES, type OpArgs, type OpName, type Reply, type WireChanges } from './ops.js';
import { unpackEntries } from './packed-entries.js';
import type { Session } from './session.js';
import { BigIntStats, type StatFs, Stats, toStatFs } from './stats.js';
import { ReadStream, type ReadStreamOptions, WriteStream, type WriteStreamOptions } from './streams.js';
import { type CpOptions, copyTree, type RmOptions, readTree, removeTree } from './tree.js';
import {
  type CheckedPath,
  checkBoolean,
  checkFlags,
  checkInteger,
  checkMode,
  checkNodeMode,
  checkOptions,
  checkOwner,
  checkPath,
  checkSignal,
  checkTimes,
  checkXattrName,
  checkXattrValue,
  inEncoding,
  type Mode,
  type PathLike,
  type TimeLike,
  toBuffer,
} from './validate.js';

/**
 * The API: `node:fs/promises` by name, arguments, defaults and errors, over a Session. Beyond it: `signal` in a last options
 * argument wherever something can wait, `promises` and `constants` (so that it can be given where a `fs` is asked for), `stats`, `close`.
 *
 * Invariants: every method is bound, so that `const { readFile } = client` works as with node's module. Nothing is cached here:
 * what is coherent is the engine's business.
 */
type Encoding = BufferEncoding | 'buffer' | null;
interface EncodingOptions extends SignalOption {
  readonly encoding?: Encoding | undefined;
}
/** What others may not do meanwhile, on any node: refused with EBUSY to whoever comes second. */
export interface ShareOptions extends SignalOption {
  readonly deny?: Deny | undefined;
  /** How long to wait for those in the way before EBUSY. */
  readonly busyTimeoutMs?: number | undefined;
}
export interface ReadFileOptions extends SignalOption {
  readonly encoding?: BufferEncoding | null | undefined;
  readonly flag?: string | number | undefined;
}
export interface WriteFileOptions extends ReadFileOptions {
  readonly mode?: Mode | undefined;
  /** fsync before closing. */
  readonly flush?: boolean | undefined;
  /** Not node's: what `utimes` would set afterwards, in the same exchange. */
  readonly times?: { readonly atime: TimeLike; readonly mtime: TimeLike } | undefined;
}
export interface ReaddirOptions extends EncodingOptions {
  readonly withFileTypes?: boolean | undefined;
  readonly recursive?: boolean | undefined;
}
export interface MkdirOptions extends SignalOption {
  readonly recursive?: boolean | undefined;
  readonly mode?: Mode | undefined;
}
export interface StatOptions extends SignalOption {
  readonly bigint?: boolean | undefined;
}
export interface RenameOptions extends SignalOption {
  readonly noReplace?: boolean | undefined;
  readonly exchange?: boolean | undefined;
}
export interface LocateOptions extends SignalOption {
  readonly offset?: number | undefined;
  readonly length?: number | undefined;
}
/** At most a block of 1 MiB long, but for holes. */
export interface FileLocation {
  readonly kind: 'data' | 'hole' | 'inline';
  readonly offset: number;
  readonly length: number;
  readonly nsd: string | null;
  readonly nsdUuid: string | null;
  /** The node that serves the NSD; null: nobody, for now. */
  readonly node: number | null;
  readonly sector: number | null;
}
export interface ClientStats {
  /** The engine's counters, by name. */
  readonly engine: Record<string, number>;
  /** What this process's clients refused by themselves: wrong arguments, closed handles, buffers that shrank. */
  readonly client: Record<string, number>;
  /** Hits and misses of this process's threads, where there is a cache map. */
  /** Answers of stat and lstat that this thread remembered. */
  readonly statHits: number;
  readonly hits: ReturnType<NonNullable<Session['map']>['stats']> | null;
}

/** Files up to this many bytes are read in one exchange. */
const ONE_EXCHANGE_READ_BYTES = 1 << 20;
const MKDTEMP_TRIES = 100;
const LISTING_TRIES = 20;
/** Steps of the engine's compound operations; an error of another kind happened before any of them. */
const STEPS = new Set(['open', 'read', 'write', 'fstat', 'futime', 'fsync', 'close']);

/** The signal of a last options argument. Anything else there (an index, from `map`) is left alone. */
function signalOf(options: unknown): AbortSignal | undefined {
  if (typeof options !== 'object' || options === null || !('signal' in options)) return undefined;
  const { signal } = options;
  checkSignal(signal);
  checkAborted(signal);
  return signal ?? undefined;
}

function checkShare({ deny, busyTimeoutMs }: ShareOptions = {}): Pick<OpArgs<'open'>, 'deny' | 'busyTimeoutMs'> {
  if (deny !== undefined && !DENIES.includes(deny))
    throw invalidArgValue('options.deny', deny, `must be one of ${DENIES.join(', ')}`);
  if (busyTimeoutMs !== undefined) checkInteger(busyTimeoutMs, 'options.busyTimeoutMs', 0);
  return { ...(deny === undefined ? {} : { deny }), ...(busyTimeoutMs === undefined ? {} : { busyTimeoutMs }) };
}

export class FileSystemClient implements AsyncDisposable {
  /** node's, and O_TMPFILE. */
  readonly constants: typeof constants & { readonly O_TMPFILE: number } = { ...constants, O_TMPFILE };
  /** This very object. An own, enumerable property: that is how isomorphic-git tells a promise API. */
  readonly promises: this = this;
  readonly #session: Session;
  #listingTurn: Promise<unknown> = Promise.resolve();

  constructor(session: Session) {
    this.#session = session;
    for (const name of Object.getOwnPropertyNames(FileSystemClient.prototype)) {
      const method: unknown = Reflect.get(this, name);
      if (name !== 'constructor' && typeof method === 'function')
        Object.defineProperty(this, name, { value: method.bind(this), enumerable: false, writable: true });
    }
  }

  async #call<K extends OpName>(
    op: K,
    args: OpArgs<K>,
    syscall: string,
    path: string | undefined,
    options: unknown,
    dest?: string,
    payload?: Uint8Array,
  ): Promise<Reply<K>> {
    const signal = signalOf(options);
    try {
      return await this.#session.call(op, args, payload, signal);
    } catch (error) {
      throw toNodeError(error, syscall, path, dest, signal);
    }
  }

  async #compound<K extends 'readFile' | 'writeFile'>(
    op: K,
    args: OpArgs<K>,
    path: CheckedPath,
    payload: Uint8Array | undefined,
    signal: AbortSignal | undefined,
  ): Promise<Reply<K>> {
    checkAborted(signal);
    try {
      return await this.#session.call(op, args, payload, signal);
    } catch (error) {
      const step = FsError.is(error) && STEPS.has(error.op) ? error.op : 'open';
      throw toNodeError(error, step, step === 'open' ? path.given : undefined, undefined, signal);
    }
  }

  async open(path: PathLike, flags?: string | number, mode?: Mode, options?: ShareOptions): Promise<FileHandle> {
    const { given, absolute } = checkPath(path, 'path', 'open');
    const share = checkShare(options);
    const args = { path: absolute, flags: checkFlags(flags), mode: checkMode(mode, 'mode', 0o666), ...share };
    const { result } = await this.#call('open', args, 'open', given, options);
    return new FileHandle(this.#session, result);
  }

  async readFile(
    path: PathLike | FileHandle,
    options?: (ReadFileOptions & { readonly encoding?: null | undefined }) | null,
  ): Promise<Buffer>;
  async readFile(
    path: PathLike | FileHandle,
    options: (ReadFileOptions & { readonly encoding: BufferEncoding }) | BufferEncoding,
  ): Promise<string>;
  async readFile(
    path: PathLike | FileHandle,
    options?: ReadFileOptions | BufferEncoding | null,
  ): Promise<string | Buffer>;
  async readFile(
    path: PathLike | FileHandle,
    options?: ReadFileOptions | BufferEncoding | null,
  ): Promise<string | Buffer> {
    const { encoding, flag, signal } = checkOptions<ReadFileOptions>(options);
    if (path instanceof FileHandle) return path.readFile({ encoding, signal });
    const checked = checkPath(path, 'path', 'open');
    const flags = checkFlags(flag ?? 'r');
    const args = { path: checked.absolute, flags, limit: ONE_EXCHANGE_READ_BYTES };
    const { result, payload } = await this.#compound('readFile', args, checked, undefined, signal);
    if (result.complete) {
      const bytes = toBuffer(payload);
      return encoding === undefined || encoding === null ? bytes : bytes.toString(encoding);
    }
    await using handle = await this.open(path, flags & ~constants.O_TRUNC, 0o666, { signal });
    return await handle.readFile({ encoding, signal });
  }

  async writeFile(
    path: PathLike | FileHandle,
    data: WritableData,
    options?: WriteFileOptions | BufferEncoding | null,
  ): Promise<void> {
    const given = checkOptions<WriteFileOptions>(options);
    const { signal } = given;
    const encoding = given.encoding ?? 'utf8';
    const flush = given.flush ?? false;
    checkBoolean(flush, 'options.flush');
    const changes =
      given.times === undefined ? undefined : (checkTimes(given.times.atime, given.times.mtime) ?? undefined);
    const whole = wholeBytes(data, encoding);
    if (path instanceof FileHandle) {
      await path.writeFile(data, { encoding, signal });
      if (given.times !== undefined) await path.utimes(given.times.atime, given.times.mtime, { signal });
      return;
    }
    const checked = checkPath(path, 'path', 'open');
    const flags = checkFlags(given.flag ?? 'w');
    const mode = checkMode(given.mode, 'mode', 0o666);
    if (whole !== null && whole.byteLength <= this.#session.transferBytesMax) {
      const args = { path: checked.absolute, flags, mode, sync: flush, changes };
      // A string's bytes are new already; the caller's own are copied before anything waits.
      const payload = typeof data === 'string' ? whole : new Uint8Array(whole);
      await this.#compound('writeFile', args, checked, payload, signal);
      return;
    }
    await using handle = await this.open(path, flags, mode, { signal });
    await handle.writeFile(whole ?? toChunksOnce(data, encoding), { signal });
    if (given.times !== undefined) await handle.utimes(given.times.atime, given.times.mtime, { signal });
    if (flush) await handle.sync({ signal });
  }

  async appendFile(
    path: PathLike | FileHandle,
    data: WritableData,
    options?: WriteFileOptions | BufferEncoding | null,
  ): Promise<void> {
    const given = checkOptions<WriteFileOptions>(options);
    return this.writeFile(path, data, { ...given, flag: given.flag ?? 'a' });
  }

  async stat(path: PathLike, options: StatOptions & { readonly bigint: true }): Promise<BigIntStats>;
  async stat(path: PathLike, options?: StatOptions): Promise<Stats>;
  async stat(path: PathLike, options?: StatOptions): Promise<Stats | BigIntStats> {
    return options === undefined
      ? (this.#session.remembered?.stats(path, true) ?? this.#stat(path, true))
      : this.#stat(path, true, options);
  }
  async lstat(path: PathLike, options: StatOptions & { readonly bigint: true }): Promise<BigIntStats>;
  async lstat(path: PathLike, options?: StatOptions): Promise<Stats>;
  async lstat(path: PathLike, options?: StatOptions): Promise<Stats | BigIntStats> {
    return options === undefined
      ? (this.#session.remembered?.stats(path, false) ?? this.#stat(path, false))
      : this.#stat(path, false, options);
  }
  async #stat(path: PathLike, follow: boolean, options?: StatOptions): Promise<Stats | BigIntStats> {
    const syscall = follow ? 'stat' : 'lstat';
    const { given, absolute } = checkPath(path, 'path', syscall);
    const { remembered } = this.#session;
    const known = options?.signal === undefined ? remembered?.get(absolute, follow) : undefined;
    if (known !== undefined) return options?.bigint === true ? new BigIntStats(known.attributes) : known.stats();
    const args = { path: absolute, follow, ...(remembered ? { stamped: true } : {}) };
    const { result } = await this.#call('stat', args, syscall, given, options);
    const { stamps, ...wire } = result;
    const attributes = attributesFromWire(wire);
    if (stamps !== undefined) remembered?.put(absolute, attributes, stamps);
    return options?.bigint === true ? new BigIntStats(attributes) : new Stats(attributes);
  }

  async statfs(path: PathLike, options: StatOptions & { readonly bigint: true }): Promise<StatFs<bigint>>;
  async statfs(path: PathLike, options?: StatOptions): Promise<StatFs>;
  async statfs(path: PathLike, options?: StatOptions): Promise<StatFs | StatFs<bigint>> {
    const { given, absolute } = checkPath(path, 'path', 'statfs');
    const { result } = await this.#call('statfs', { path: absolute }, 'statfs', given, options);
    return options?.bigint === true ? toStatFs(result, BigInt) : toStatFs(result, Number);
  }

  /**
   * Declares a file shared-write: all nodes read and write it through one of them, which caches it for all; a directory passes it on to what is made in
   * it. For small records that many nodes write; the owner of the file may say so.
   */
  async setSharedWrite(path: PathLike, on: boolean, options?: SignalOption): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', 'sharedwrite');
    checkBoolean(on, 'on');
    await this.#call('sharedWrite', { path: absolute, on }, 'sharedwrite', given, options);
  }
  async isSharedWrite(path: PathLike, options?: SignalOption): Promise<boolean> {
    const { given, absolute } = checkPath(path, 'path', 'sharedwrite');
    return (await this.#call('sharedWrite', { path: absolute }, 'sharedwrite', given, options)).result.on;
  }

  /**
   * Which NSD, and which node that serves it, has which bytes of a file: for programs that would rather compute where their data is. The whole file, or
   * `length` bytes from `offset` on.
   */
  async locate(path: PathLike, options: LocateOptions = {}): Promise<FileLocation[]> {
    const { given, absolute } = checkPath(path, 'path', 'locate');
    const { offset = 0, length = Number.MAX_SAFE_INTEGER - offset } = options;
    checkInteger(offset, 'offset', 0);
    checkInteger(length, 'length', 0);
    const found: FileLocation[] = [];
    for (let at = offset; ; ) {
      const args = { path: absolute, offset: at, length: Math.max(0, offset + length - at) };
      const { result } = await this.#call('locate', args, 'locate', given, options);
      for (const { offsetBytes, lengthBytes, ...where } of result.ranges)
        found.push({ offset: offsetBytes, length: lengthBytes, ...where });
      if (result.nextBytes === null) return found;
      at = result.nextBytes;
    }
  }

  async access(path: PathLike, mode: number = constants.F_OK, options?: SignalOption): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', 'access');
    checkInteger(mode, 'mode', 0, 7);
    await this.#call('access', { path: absolute, mode }, 'access', given, options);
  }

  /**
   * The entries as the engine has them. It keeps a few large listings for its clients; who makes more at once loses some, and makes
   * those anew one after the other.
   */
  async #entries(path: CheckedPath, syscall: string, options: unknown): Promise<DirectoryEntry[]> {
    const lost = (error: unknown): boolean => FsError.is(error) && error.reason === 'badHandle';
    try {
      return await this.#listing(path, syscall, options);
    } catch (error) {
      if (!lost(error)) throw error;
    }
    const again = async (): Promise<DirectoryEntry[]> => {
      for (let tries = 1; ; tries++)
        try {
          return await this.#listing(path, syscall, options);
        } catch (error) {
          if (!lost(error) || tries >= LISTING_TRIES) throw error;
        }
    };
    const mine = this.#listingTurn.then(again);
    this.#listingTurn = mine.catch(() => undefined);
    return mine;
  }

  /** All pages of one listing. */
  async #listing(path: CheckedPath, syscall: string, options: unknown): Promise<DirectoryEntry[]> {
    let { result, payload } = await this.#call('readdir', { path: path.absolute }, syscall, path.given, options);
    const entries: DirectoryEntry[] = [];
    for (;;) {
      for (const entry of unpackEntries(payload ?? new Uint8Array(0))) entries.push(entry);
      if (result.cursor === null) return entries;
      const args = { cursor: result.cursor, from: result.next };
      ({ result, payload } = await this.#call('readdirMore', args, syscall, path.given, options));
    }
  }

  async readdir(path: PathLike, options: ReaddirOptions & { readonly withFileTypes: true }): Promise<Dirent[]>;
  async readdir(
    path: PathLike,
    options: (ReaddirOptions & { readonly encoding: 'buffer'; readonly withFileTypes?: false }) | 'buffer',
  ): Promise<Buffer[]>;
  async readdir(
    path: PathLike,
    options?:
      | (ReaddirOptions & { readonly encoding?: BufferEncoding | null | undefined; readonly withFileTypes?: false })
      | BufferEncoding
      | null,
  ): Promise<string[]>;
  async readdir(
    path: PathLike,
    options?: ReaddirOptions | Encoding,
  ): Promise<string[] | Buffer[] | Dirent[] | Dirent<Buffer>[]> {
    const given = checkOptions<ReaddirOptions>(options);
    const checked = checkPath(path, 'path', 'scandir');
    const list = (directory: CheckedPath) => this.#entries(directory, 'scandir', given);
    if (given.recursive === true) {
      const found = await readTree(checked, list, (p) => this.stat(p, { signal: given.signal }));
      if (given.withFileTypes !== true) return found.map(({ relative }) => relative);
      return found.map(({ entry, directory }) => new Dirent(entry.name, directory, entry.type));
    }
    const entries = await list(checked);
    if (given.withFileTypes !== true) return entries.map(({ name }) => inEncoding(name, given.encoding)) as string[];
    return entries.map(
      ({ name, type }) => new Dirent(inEncoding(name, given.encoding), checked.given, type),
    ) as Dirent[];
  }

  async opendir(path: PathLike, options?: EncodingOptions & { readonly recursive?: boolean }): Promise<Dir> {
    const checked = checkPath(path, 'path', 'opendir');
    try {
      const entries = await this.readdir(path, { ...options, encoding: 'utf8', withFileTypes: true });
      return new Dir(checked.given, entries);
    } catch (error) {
      if (FsError.is(error)) throw toNodeError(error.cause, 'opendir', checked.given);
      throw error;
    }
  }

  async mkdir(path: PathLike, options?: MkdirOptions | Mode | null): Promise<string | undefined> {
    const given: MkdirOptions =
      typeof options === 'object' && options !== null ? options : { mode: options ?? undefined };
    const recursive = given.recursive ?? false;
    checkBoolean(recursive, 'options.recursive');
    const checked = checkPath(path, 'path', 'mkdir');
    const mode = checkMode(given.mode, 'mode', 0o777);
    const { result } = await this.#call(
      'mkdir',
      { path: checked.absolute, mode, recursive },
      'mkdir',
      checked.given,
      given,
    );
    return recursive ? (result.first ?? undefined) : undefined;
  }

  async mkdtemp(prefix: PathLike, options?: EncodingOptions | Encoding): Promise<string> {
    const given = checkOptions<EncodingOptions>(options);
    const checked = checkPath(prefix, 'prefix', 'mkdtemp');
    for (let tries = 1; ; tries++) {
      // base64url has '-' and '_', which mkdtemp(3) never makes.
      const suffix = randomBytes(12).toString('base64').replace(/[+/=]/g, '').slice(0, 6);
      const args = { path: checked.absolute + suffix, mode: 0o700, recursive: false };
      try {
        await this.#call('mkdir', args, 'mkdtemp', checked.given + suffix, given);
        return inEncoding(checked.given + suffix, given.encoding) as string;
      } catch (error) {
        if (!FsError.is(error) || error.code !== 'EEXIST' || tries >= MKDTEMP_TRIES) throw error;
      }
    }
  }

  async rmdir(path: PathLike, options?: SignalOption & { readonly recursive?: boolean }): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', 'rmdir');
    if (options?.recursive === true && (await this.stat(path)).isDirectory())
      return removeTree(this, given, { recursive: true, signal: options.signal });
    await this.#call('rmdir', { path: absolute }, 'rmdir', given, options);
  }
  async unlink(path: PathLike, options?: SignalOption): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', 'unlink');
    await this.#call('unlink', { path: absolute }, 'unlink', given, options);
  }
  async rm(path: PathLike, options?: RmOptions): Promise<void> {
    const { given } = checkPath(path, 'path', 'lstat');
    if (options?.force !== undefined) checkBoolean(options.force, 'options.force');
    if (options?.recursive !== undefined) checkBoolean(options.recursive, 'options.recursive');
    await removeTree(this, given, options ?? {});
  }

  async #two(
    op: 'link' | 'copyFile',
    from: PathLike,
    to: PathLike,
    names: readonly [string, string, string],
    options: unknown,
    mode = 0,
  ): Promise<void> {
    const a = checkPath(from, names[1], names[0]);
    const b = checkPath(to, names[2], names[0]);
    const args = { from: a.absolute, to: b.absolute };
    if (op === 'copyFile') await this.#call(op, { ...args, mode }, names[0], a.given, options, b.given);
    else await this.#call(op, args, names[0], a.given, options, b.given);
  }
  /** Beyond node's: `noReplace` refuses a new name that is there (EEXIST), `exchange` gives each name what the other had. */
  async rename(oldPath: PathLike, newPath: PathLike, options?: RenameOptions): Promise<void> {
    const a = checkPath(oldPath, 'oldPath', 'rename');
    const b = checkPath(newPath, 'newPath', 'rename');
    const { noReplace, exchange } = options ?? {};
    if (noReplace !== undefined) checkBoolean(noReplace, 'options.noReplace');
    if (exchange !== undefined) checkBoolean(exchange, 'options.exchange');
    const args = { from: a.absolute, to: b.absolute, noReplace, exchange };
    await this.#call('rename', args, 'rename', a.given, options, b.given);
  }

  /** mknod(2): `mode` has the type's bits too (constants.S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK, S_IFREG); `rdev` of devices. */
  async mknod(path: PathLike, mode: number, rdev = 0, options?: SignalOption): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', 'mknod');
    checkInteger(rdev, 'rdev', 0, 0xffffffff);
    await this.#call('mknod', { path: absolute, ...checkNodeMode(mode), rdev }, 'mknod', given, options);
  }
  async mkfifo(path: PathLike, mode: Mode = 0o666, options?: SignalOption): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', 'mkfifo');
    const args = { path: absolute, type: FileType.fifo, mode: checkMode(mode, 'mode'), rdev: 0 };
    await this.#call('mknod', args, 'mkfifo', given, options);
  }
  async link(existingPath: PathLike, newPath: PathLike, options?: SignalOption): Promise<void> {
    await this.#two('link', existingPath, newPath, ['link', 'existingPath', 'newPath'], options);
  }
  async copyFile(source: PathLike, destination: PathLike, mode = 0, options?: SignalOption): Promise<void> {
    checkInteger(mode, 'mode', 0, 7);
    await this.#two('copyFile', source, destination, ['copyfile', 'src', 'dest'], options, mode);
  }
  async cp(source: PathLike, destination: PathLike, options?: CpOptions): Promise<void> {
    const from = checkPath(source, 'src', 'cp');
    const to = checkPath(destination, 'dest', 'cp');
    await copyTree(this, from.given, to.given, options ?? {});
  }

  async symlink(target: PathLike, path: PathLike, _type?: string | null, options?: SignalOption): Promise<void> {
    const a = checkPath(target, 'target', 'symlink');
    const b = checkPath(path, 'path', 'symlink');
    await this.#call('symlink', { target: a.given, path: b.absolute }, 'symlink', a.given, options, b.given);
  }
  async readlink(path: PathLike, options?: EncodingOptions | Encoding): Promise<string> {
    const given = checkOptions<EncodingOptions>(options);
    const checked = checkPath(path, 'path', 'readlink');
    const { result } = await this.#call('readlink', { path: checked.absolute }, 'readlink', checked.given, given);
    return inEncoding(result.target, given.encoding) as string;
  }
  async realpath(path: PathLike, options?: EncodingOptions | Encoding): Promise<string> {
    const given = checkOptions<EncodingOptions>(options);
    const checked = checkPath(path, 'path', 'realpath');
    const { result } = await this.#call('realpath', { path: checked.absolute }, 'realpath', checked.given, given);
    return inEncoding(result.path, given.encoding) as string;
  }

  async truncate(path: PathLike, length = 0, options?: SignalOption): Promise<void> {
    // node opens and then truncates: what is wrong with the path is said by open.
    const { given, absolute } = checkPath(path, 'path', 'open');
    checkInteger(length, 'len');
    await this.#call('truncate', { path: absolute, size: Math.max(0, length) }, 'open', given, options);
  }

  async #change(
    path: PathLike,
    changes: WireChanges,
    follow: boolean,
    syscall: string,
    options: unknown,
  ): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', syscall);
    await this.#call('setAttributes', { path: absolute, changes, follow }, syscall, given, options);
  }
  async chmod(path: PathLike, mode: Mode, options?: SignalOption): Promise<void> {
    await this.#change(path, { mode: checkMode(mode, 'mode') }, true, 'chmod', options);
  }
  async chown(path: PathLike, uid: number, gid: number, options?: SignalOption): Promise<void> {
    await this.#change(path, { uid: checkOwner(uid, 'uid'), gid: checkOwner(gid, 'gid') }, true, 'chown', options);
  }
  async lchown(path: PathLike, uid: number, gid: number, options?: SignalOption): Promise<void> {
    await this.#change(path, { uid: checkOwner(uid, 'uid'), gid: checkOwner(gid, 'gid') }, false, 'lchown', options);
  }
  async utimes(path: PathLike, atime: TimeLike, mtime: TimeLike, options?: SignalOption): Promise<void> {
    const changes = checkTimes(atime, mtime);
    if (changes !== null) await this.#change(path, changes, true, 'utime', options);
  }
  async lutimes(path: PathLike, atime: TimeLike, mtime: TimeLike, options?: SignalOption): Promise<void> {
    const changes = checkTimes(atime, mtime);
    if (changes !== null) await this.#change(path, changes, false, 'lutime', options);
  }

  async #getxattr(path: PathLike, name: string, follow: boolean, syscall: string, options: unknown): Promise<Buffer> {
    const { given, absolute } = checkPath(path, 'path', syscall);
    const args = { path: absolute, follow, name: checkXattrName(name) };
    const { payload } = await this.#call('getXattr', args, syscall, given, options);
    return toBuffer(payload);
  }
  async #setxattr(
    path: PathLike,
    name: string,
    value: string | Uint8Array,
    follow: boolean,
    syscall: string,
    options: XattrOptions | undefined,
  ): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', syscall);
    const { create, replace } = options ?? {};
    const args = { path: absolute, follow, name: checkXattrName(name), create, replace };
    await this.#call('setXattr', args, syscall, given, options, undefined, checkXattrValue(value));
  }
  async #listxattr(path: PathLike, follow: boolean, syscall: string, options: unknown): Promise<string[]> {
    const { given, absolute } = checkPath(path, 'path', syscall);
    const { result } = await this.#call('listXattrs', { path: absolute, follow }, syscall, given, options);
    return [...result.names];
  }
  async #removexattr(path: PathLike, name: string, follow: boolean, syscall: string, options: unknown): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', syscall);
    const args = { path: absolute, follow, name: checkXattrName(name) };
    await this.#call('removeXattr', args, syscall, given, options);
  }
  /** Extended attributes, as getxattr(2) and its kin; `name` with its space ('user.comment'). The l-forms don't follow a last link. */
  async getxattr(path: PathLike, name: string, options?: SignalOption): Promise<Buffer> {
    return this.#getxattr(path, name, true, 'getxattr', options);
  }
  async lgetxattr(path: PathLike, name: string, options?: SignalOption): Promise<Buffer> {
    return this.#getxattr(path, name, false, 'lgetxattr', options);
  }
  async setxattr(path: PathLike, name: string, value: string | Uint8Array, options?: XattrOptions): Promise<void> {
    await this.#setxattr(path, name, value, true, 'setxattr', options);
  }
  async lsetxattr(path: PathLike, name: string, value: string | Uint8Array, options?: XattrOptions): Promise<void> {
    await this.#setxattr(path, name, value, false, 'lsetxattr', options);
  }
  async listxattr(path: PathLike, options?: SignalOption): Promise<string[]> {
    return this.#listxattr(path, true, 'listxattr', options);
  }
  async llistxattr(path: PathLike, options?: SignalOption): Promise<string[]> {
    return this.#listxattr(path, false, 'llistxattr', options);
  }
  async removexattr(path: PathLike, name: string, options?: SignalOption): Promise<void> {
    await this.#removexattr(path, name, true, 'removexattr', options);
  }
  async lremovexattr(path: PathLike, name: string, options?: SignalOption): Promise<void> {
    await this.#removexattr(path, name, false, 'lremovexattr', options);
  }

  createReadStream(path: PathLike, given: ReadStreamOptions | BufferEncoding = {}): ReadStream {
    const { given: shown } = checkPath(path, 'path', 'open');
    const options = checkOptions<ReadStreamOptions>(given);
    const { signal } = options;
    return new ReadStream(() => this.open(path, options.flags ?? 'r', options.mode, { signal }), options, shown);
  }
  createWriteStream(path: PathLike, given: WriteStreamOptions | BufferEncoding = {}): WriteStream {
    const { given: shown } = checkPath(path, 'path', 'open');
    const options = checkOptions<WriteStreamOptions>(given);
    const { signal } = options;
    return new WriteStream(() => this.open(path, options.flags ?? 'w', options.mode, { signal }), options, shown);
  }

  /** Everything dirty on the engine's node, durable when it resolves. */
  async syncAll(options?: SignalOption): Promise<void> {
    await this.#call('syncAll', {}, 'sync', undefined, options);
  }

  async stats(options?: SignalOption): Promise<ClientStats> {
    const { result } = await this.#call('counters', {}, 'stats', undefined, options);
    const { map, remembered } = this.#session;
    return {
      engine: result,
      client: refusals.snapshot(),
      statHits: remembered?.hits ?? 0,
      hits: map?.stats() ?? null,
    };
  }

  /** Closes every handle and the session; where the engine is the client's own, it leaves the cluster in good order. */
  async close(): Promise<void> {
    await this.#session.close();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#session.close();
  }
}

/** The iterable's chunks in the encoding asked for: the handle then sees bytes only. */
async function* toChunksOnce(data: WritableData, encoding: BufferEncoding): AsyncGenerator<Uint8Array> {
  yield* toChunks(data, encoding);
}
