import { EventEmitter } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import { FsError } from '../common/errors.js';
import type { AllocateMode } from '../fs/file-system-api.js';
import { collect, isView, toChunks, type WritableData } from './content.js';
import { HandleIo } from './handle-io.js';
import { checkAborted, fileClosed, invalidArgType, invalidArgValue, outOfRange, toNodeError } from './node-errors.js';
import type { HintKind, LockKind, OpArgs, OpenResult, OpName } from './ops.js';
import { ALLOCATE_MODES, attributesFromWire, HINT_KINDS } from './ops.js';
import type { Session } from './session.js';
import { BigIntStats, Stats } from './stats.js';
import { ReadStream, type ReadStreamOptions, WriteStream, type WriteStreamOptions } from './streams.js';
import {
  checkInteger,
  checkMode,
  checkOptions,
  checkOwner,
  checkPath,
  checkSignal,
  checkTimes,
  checkXattrName,
  checkXattrValue,
  type Mode,
  type PathLike,
  type TimeLike,
  toBuffer,
} from './validate.js';

/** An open file, shaped like node's FileHandle; beyond it: readSync, writeSync, hint, and `signal` wherever something can wait. */
export interface SignalOption {
  readonly signal?: AbortSignal | undefined;
}
export interface XattrOptions extends SignalOption {
  /** EEXIST when it is there. */
  readonly create?: boolean | undefined;
  /** ENODATA when it is not. */
  readonly replace?: boolean | undefined;
}
export interface ReadOptions<B extends NodeJS.ArrayBufferView = NodeJS.ArrayBufferView> extends SignalOption {
  readonly buffer?: B | undefined;
  readonly offset?: number | null | undefined;
  readonly length?: number | null | undefined;
  readonly position?: number | bigint | null | undefined;
}
/** start and length in bytes; length 0 (the default) is to the end of the file, however long that becomes. */
export interface LockRangeOptions extends SignalOption {
  readonly start?: number | undefined;
  readonly length?: number | undefined;
  readonly owner?: 'process' | 'handle' | undefined;
}
export interface FallocateOptions extends SignalOption {
  readonly mode?: AllocateMode | undefined;
  readonly keepSize?: boolean | undefined;
}
export interface FlockOptions extends SignalOption {
  /** Until nobody's lock stands against it; else EAGAIN at once. */
  readonly wait?: boolean | undefined;
  /** The longest it waits: ETIMEDOUT. */
  readonly timeoutMs?: number | undefined;
}
export interface LockHandleOptions extends LockRangeOptions, FlockOptions {
  readonly type?: 'read' | 'write' | undefined;
}
export interface FoundLock {
  readonly type: 'read' | 'write';
  readonly start: number;
  readonly length: number;
  readonly pid: number;
  readonly node: number;
}
export type WriteOptions = Omit<ReadOptions, 'buffer'>;
type EncodingOption = BufferEncoding | null | undefined;

const DEFAULT_READ_BYTES = 16_384;
function lockRange({ start = 0, length = 0, owner = 'process' }: LockRangeOptions) {
  checkInteger(start, 'start', 0);
  checkInteger(length, 'length', 0);
  if (owner !== 'process' && owner !== 'handle')
    throw invalidArgValue('owner', owner, "must be one of 'process', 'handle'");
  return { kind: owner, offset: start, length } as const;
}
function lockType(type: unknown): 'read' | 'write' {
  if (type !== 'read' && type !== 'write') throw invalidArgValue('type', type, "must be one of 'read', 'write'");
  return type;
}

const INT32_MAX = 2 ** 31 - 1;

/** Bytes [offset, offset + length) of any view, as a view of the same memory. */
const viewOf = (b: NodeJS.ArrayBufferView, offset: number, length: number): Uint8Array =>
  new Uint8Array(b.buffer, b.byteOffset + offset, length);

function toPosition(position: unknown): number | null {
  if (typeof position === 'bigint') return position < 0n ? null : Math.min(Number(position), Number.MAX_SAFE_INTEGER);
  return Number.isSafeInteger(position) && (position as number) >= 0 ? (position as number) : null;
}

/** node's checks of a read into a buffer, shared by read and readSync. @returns what to fill, null for nothing. */
function readTarget(buffer: unknown, offset: unknown, length: unknown): Uint8Array | null {
  if (!isView(buffer)) throw invalidArgType('buffer', 'an instance of Buffer, TypedArray, or DataView', buffer);
  const start = offset ?? 0;
  checkInteger(start, 'offset', 0);
  const count = length ?? buffer.byteLength - start;
  if (count === 0) return null;
  if (buffer.byteLength === 0) throw invalidArgValue('buffer', buffer, 'is empty and cannot be written');
  checkInteger(count, 'length');
  if (count < 0) throw outOfRange('length', '>= 0', count);
  if (start + count > buffer.byteLength) throw outOfRange('length', `<= ${buffer.byteLength - start}`, count);
  return viewOf(buffer, start, count);
}

function writeSource(buffer: NodeJS.ArrayBufferView, offset: unknown, length: unknown): Uint8Array {
  const start = offset ?? 0;
  checkInteger(start, 'offset', 0);
  const count = typeof length === 'number' ? length : buffer.byteLength - start;
  if (start > buffer.byteLength) throw outOfRange('offset', `<= ${buffer.byteLength}`, start);
  if (count > buffer.byteLength - start) throw outOfRange('length', `<= ${buffer.byteLength - start}`, count);
  if (count < 0) throw outOfRange('length', '>= 0', count);
  checkInteger(count, 'length', 0, INT32_MAX);
  return viewOf(buffer, start, count);
}

function checkBuffers(buffers: unknown): asserts buffers is NodeJS.ArrayBufferView[] {
  if (!Array.isArray(buffers) || !buffers.every((b) => isView(b)))
    throw invalidArgType('buffers', 'an ArrayBufferView[]', buffers);
}

const signalOf = (options: SignalOption | undefined | null): AbortSignal | undefined => {
  checkSignal(options?.signal);
  checkAborted(options?.signal);
  return options?.signal ?? undefined;
};

export class FileHandle extends EventEmitter implements AsyncDisposable {
  readonly #io: HandleIo;
  #closeEmitted = false;

  constructor(session: Session, opened: OpenResult) {
    super();
    this.#io = new HandleIo(session, opened);
  }

  /** A number like a file descriptor's: unique in this client. -1 once closed. */
  get fd(): number {
    return this.#io.closed ? -1 : this.#io.opened.handle;
  }

  async read<B extends NodeJS.ArrayBufferView = Buffer>(
    bufferOrOptions?: B | ReadOptions<B> | null,
    offsetOrOptions?: number | null | ReadOptions<B>,
    length?: number | null,
    position?: number | bigint | null,
  ): Promise<{ bytesRead: number; buffer: B }> {
    this.#io.checkOpen('read');
    let options: ReadOptions<B>;
    if (isView(bufferOrOptions)) {
      if (typeof offsetOrOptions === 'object' && offsetOrOptions !== null)
        options = { ...offsetOrOptions, buffer: bufferOrOptions };
      else options = { buffer: bufferOrOptions, offset: offsetOrOptions, length, position };
    } else {
      if (typeof bufferOrOptions !== 'object' && bufferOrOptions !== undefined)
        throw invalidArgType('options', 'of type object', bufferOrOptions);
      options = bufferOrOptions ?? {};
    }
    const buffer = (options.buffer === undefined ? Buffer.alloc(DEFAULT_READ_BYTES) : options.buffer) as B;
    const target = readTarget(buffer, options.offset, options.length);
    const signal = signalOf(options);
    const bytesRead = target === null ? 0 : await this.#io.read(target, toPosition(options.position), signal);
    return { bytesRead, buffer };
  }

  /** fs.readSync on this handle. A hit is one native call; a miss waits for the engine's thread. @returns bytes read */
  readSync(
    buffer: NodeJS.ArrayBufferView,
    offset?: number | null | Omit<ReadOptions, 'buffer'>,
    length?: number | null,
    position?: number | bigint | null,
  ): number {
    // The hot path: whole numbers inside a Uint8Array, nothing else to be decided.
    if (
      buffer instanceof Uint8Array &&
      typeof offset === 'number' &&
      typeof length === 'number' &&
      typeof position === 'number' &&
      offset >= 0 &&
      length > 0 &&
      position >= 0 &&
      offset + length <= buffer.byteLength &&
      Number.isSafeInteger(offset + length + position)
    ) {
      const whole = offset === 0 && length === buffer.byteLength;
      const target = whole ? buffer : buffer.subarray(offset, offset + length);
      const hit = this.#io.tryRead(position, target);
      return hit >= 0 ? hit : this.#io.readSync(target, position);
    }
    this.#io.checkOpen('read');
    if (typeof offset === 'object' && offset !== null) return this.#readSyncOptions(buffer, offset);
    return this.#readSyncOptions(buffer, { offset, length, position });
  }

  #readSyncOptions(buffer: NodeJS.ArrayBufferView, options: Omit<ReadOptions, 'buffer'>): number {
    const target = readTarget(buffer, options.offset, options.length);
    const { position } = options;
    if (typeof position === 'number') checkInteger(position, 'position', -1);
    return target === null ? 0 : this.#io.readSync(target, toPosition(position));
  }

  async write<B extends NodeJS.ArrayBufferView>(
    buffer: B,
    offset?: number | null | WriteOptions,
    length?: number | null,
    position?: number | null,
  ): Promise<{ bytesWritten: number; buffer: B }>;
  async write(
    data: string,
    position?: number | null,
    encoding?: EncodingOption,
  ): Promise<{ bytesWritten: number; buffer: string }>;
  async write(
    data: NodeJS.ArrayBufferView | string,
    offset?: number | null | WriteOptions,
    length?: number | EncodingOption,
    position?: number | null,
  ): Promise<{ bytesWritten: number; buffer: NodeJS.ArrayBufferView | string }> {
    this.#io.checkOpen('write');
    if (isView(data)) {
      const options = typeof offset === 'object' && offset !== null ? offset : { offset, length, position };
      if (data.byteLength === 0) return { bytesWritten: 0, buffer: data };
      const source = writeSource(data, options.offset, options.length);
      const signal = 'signal' in options ? signalOf(options) : undefined;
      const at = typeof options.position === 'number' ? toPosition(options.position) : null;
      return { bytesWritten: await this.#io.write(source, at, signal), buffer: data };
    }
    if (typeof data !== 'string')
      throw invalidArgType('buffer', 'of type string or an instance of Buffer, TypedArray, or DataView', data);
    const encoding = typeof length === 'string' ? length : 'utf8';
    if (!Buffer.isEncoding(encoding)) throw invalidArgValue('encoding', encoding, 'is invalid encoding');
    const bytes = Buffer.from(data, encoding);
    return { bytesWritten: await this.#io.write(bytes, toPosition(offset)), buffer: data };
  }

  /** fs.writeSync on this handle. @returns bytes written */
  writeSync(
    data: NodeJS.ArrayBufferView | string,
    offset?: number | null | WriteOptions,
    length?: number | EncodingOption,
    position?: number | null,
  ): number {
    if (
      data instanceof Uint8Array &&
      typeof offset === 'number' &&
      typeof length === 'number' &&
      typeof position === 'number' &&
      offset >= 0 &&
      length > 0 &&
      position >= 0 &&
      offset + length <= data.byteLength &&
      Number.isSafeInteger(offset + length + position)
    ) {
      const source = offset === 0 && length === data.byteLength ? data : data.subarray(offset, offset + length);
      const hit = this.#io.tryWrite(position, source);
      return hit >= 0 ? hit : this.#io.writeSync(source, position);
    }
    this.#io.checkOpen('write');
    if (isView(data)) {
      const options = typeof offset === 'object' && offset !== null ? offset : { offset, length, position };
      if (data.byteLength === 0) return 0;
      const source = writeSource(data, options.offset, options.length);
      return this.#io.writeSync(source, typeof options.position === 'number' ? toPosition(options.position) : null);
    }
    if (typeof data !== 'string')
      throw invalidArgType('buffer', 'of type string or an instance of Buffer, TypedArray, or DataView', data);
    const encoding = typeof length === 'string' ? length : 'utf8';
    return this.#io.writeSync(Buffer.from(data, encoding), toPosition(offset));
  }

  /** One operation, atomic against others. */
  async readv<B extends readonly NodeJS.ArrayBufferView[]>(
    buffers: B,
    position?: number | null,
    options?: SignalOption,
  ): Promise<{ bytesRead: number; buffers: B }> {
    this.#io.checkOpen('read');
    checkBuffers(buffers);
    const lengths = buffers.map((b) => b.byteLength);
    const views = buffers.map((b) => viewOf(b, 0, b.byteLength));
    const total = lengths.reduce((sum, length) => sum + length, 0);
    if (total === 0) return { bytesRead: 0, buffers };
    const all = new Uint8Array(total);
    const bytesRead = await this.#io.read(all, toPosition(position), signalOf(options));
    let at = 0;
    views.forEach((view, i) => {
      if (view.byteLength !== lengths[i])
        throw invalidArgValue('buffers', buffers, 'was detached or shrank while it was read into');
      view.set(all.subarray(at, Math.min(bytesRead, at + view.byteLength)));
      at = Math.min(bytesRead, at + view.byteLength);
    });
    return { bytesRead, buffers };
  }

  /** One operation, atomic against others. */
  async writev<B extends readonly NodeJS.ArrayBufferView[]>(
    buffers: B,
    position?: number | null,
    options?: SignalOption,
  ): Promise<{ bytesWritten: number; buffers: B }> {
    this.#io.checkOpen('write');
    checkBuffers(buffers);
    const all = Buffer.concat(buffers.map((b) => viewOf(b, 0, b.byteLength)));
    if (all.length === 0) return { bytesWritten: 0, buffers };
    const at = typeof position === 'number' ? toPosition(position) : null;
    return { bytesWritten: await this.#io.write(all, at, signalOf(options)), buffers };
  }

  async readFile(options?: (SignalOption & { encoding?: null | undefined }) | null): Promise<Buffer>;
  async readFile(options: (SignalOption & { encoding: BufferEncoding }) | BufferEncoding): Promise<string>;
  async readFile(
    options?: (SignalOption & { encoding?: EncodingOption }) | BufferEncoding | null,
  ): Promise<string | Buffer>;
  async readFile(
    options?: (SignalOption & { encoding?: EncodingOption }) | BufferEncoding | null,
  ): Promise<string | Buffer> {
    const { encoding, signal } = checkOptions<SignalOption & { encoding?: EncodingOption }>(options);
    checkAborted(signal);
    const io = this.#io;
    const work = (): Promise<Buffer> =>
      io.inTurn(async () => {
        const { result } = await io.call('statHandle', { handle: io.opened.handle }, undefined, signal);
        return collect(Math.max(0, result.sizeBytes - io.position), async (target) => {
          checkAborted(signal);
          return io.readAhead(target, signal);
        });
      });
    const bytes = await io.use('read', work, signal);
    return encoding === undefined || encoding === null ? bytes : bytes.toString(encoding);
  }

  async writeFile(
    data: WritableData,
    options?: (SignalOption & { encoding?: EncodingOption }) | BufferEncoding | null,
  ): Promise<void> {
    const { encoding, signal } = checkOptions<SignalOption & { encoding?: EncodingOption }>(options);
    this.#io.checkOpen('writeFile');
    const chunks = toChunks(data, encoding ?? 'utf8');
    for await (const chunk of chunks) {
      checkAborted(signal);
      if (chunk.byteLength > 0) await this.#io.write(chunk, null, signal);
    }
    checkAborted(signal);
  }

  async appendFile(
    data: WritableData,
    options?: (SignalOption & { encoding?: EncodingOption }) | BufferEncoding | null,
  ): Promise<void> {
    return this.writeFile(data, options);
  }

  async stat(options: SignalOption & { bigint: true }): Promise<BigIntStats>;
  async stat(options?: SignalOption & { bigint?: false | undefined }): Promise<Stats>;
  async stat(options?: SignalOption & { bigint?: boolean | undefined }): Promise<Stats | BigIntStats> {
    const { result } = await this.#call('fstat', 'statHandle', { handle: this.#io.opened.handle }, options);
    const attributes = attributesFromWire(result);
    return options?.bigint === true ? new BigIntStats(attributes) : new Stats(attributes);
  }

  async truncate(length = 0, options?: SignalOption): Promise<void> {
    checkInteger(length, 'len');
    const size = Math.max(0, length);
    await this.#call('ftruncate', 'truncateHandle', { handle: this.#io.opened.handle, size }, options);
  }
  async chmod(mode: Mode, options?: SignalOption): Promise<void> {
    const changes = { mode: checkMode(mode, 'mode') };
    await this.#call('fchmod', 'setAttributesHandle', { handle: this.#io.opened.handle, changes }, options);
  }
  async chown(uid: number, gid: number, options?: SignalOption): Promise<void> {
    const changes = { uid: checkOwner(uid, 'uid'), gid: checkOwner(gid, 'gid') };
    await this.#call('fchown', 'setAttributesHandle', { handle: this.#io.opened.handle, changes }, options);
  }
  async utimes(atime: TimeLike, mtime: TimeLike, options?: SignalOption): Promise<void> {
    const changes = checkTimes(atime, mtime, ['atime', 'mtime']);
    if (changes === null) return;
    await this.#call('futime', 'setAttributesHandle', { handle: this.#io.opened.handle, changes }, options);
  }
  /**
   * fallocate(2): space for a range of bytes (`allocate`), zeros without it (`punchHole`) or with it (`zeroRange`). But for holes the file becomes as
   * long as that takes, unless `keepSize`. ENOSPC at once when there is not enough, and then nothing of it is kept.
   */
  async fallocate(offset: number, length: number, options: FallocateOptions = {}): Promise<void> {
    checkInteger(offset, 'offset', 0);
    checkInteger(length, 'length', 0);
    const { mode = 'allocate', keepSize = false } = options;
    if (!ALLOCATE_MODES.includes(mode))
      throw invalidArgValue('mode', mode, `must be one of ${ALLOCATE_MODES.join(', ')}`);
    const args = { handle: this.#io.opened.handle, mode, offset, length, keepSize };
    await this.#call('fallocate', 'allocate', args, options);
  }
  /** Where the first data, or hole, from an offset on begins (SEEK_DATA, SEEK_HOLE); ENXIO when there is none. Moves no position. */
  async seek(offset: number, what: 'data' | 'hole', options?: SignalOption): Promise<number> {
    checkInteger(offset, 'offset', 0);
    if (what !== 'data' && what !== 'hole') throw invalidArgValue('what', what, "must be one of 'data', 'hole'");
    const { result } = await this.#call('lseek', 'seek', { handle: this.#io.opened.handle, offset, what }, options);
    return result.offset;
  }
  /**
   * copy_file_range(2): bytes from `offset` on to another open file of this client, in the engine. Resolves with how many were copied: fewer than
   * asked for at the end of the file. Moves no position.
   */
  async copyRange(
    offset: number,
    target: FileHandle,
    targetOffset: number,
    length: number,
    options?: SignalOption,
  ): Promise<number> {
    checkInteger(offset, 'offset', 0);
    checkInteger(targetOffset, 'targetOffset', 0);
    checkInteger(length, 'length', 0);
    if (!(target instanceof FileHandle)) throw invalidArgType('target', 'an instance of FileHandle', target);
    const syscall = 'copy_file_range';
    target.#io.checkOpen(syscall);
    if (target.session !== this.session)
      throw toNodeError(new FsError('crossesFileSystem', { op: syscall, detail: 'of another client' }), syscall);
    const to = target.#io.opened.handle;
    const args = { handle: this.#io.opened.handle, offset, to, toOffset: targetOffset, length };
    const copy = () => this.#call(syscall, 'copyRange', args, options);
    const { result } = await target.#io.use(syscall, copy);
    return result.length;
  }
  /** A name for the file that is open: what one that was opened with O_TMPFILE becomes known by. */
  async link(path: PathLike, options?: SignalOption): Promise<void> {
    const { given, absolute } = checkPath(path, 'path', 'link');
    const args = { handle: this.#io.opened.handle, to: absolute };
    const signal = signalOf(options);
    await this.#io.use('link', async () => {
      try {
        await this.session.call('linkHandle', args, undefined, signal);
      } catch (error) {
        throw toNodeError(error, 'link', undefined, given, signal);
      }
    });
  }
  /** Extended attributes, as fgetxattr(2) and its kin. */
  async getxattr(name: string, options?: SignalOption): Promise<Buffer> {
    const args = { handle: this.#io.opened.handle, name: checkXattrName(name) };
    return toBuffer((await this.#call('fgetxattr', 'getXattr', args, options)).payload);
  }
  async setxattr(name: string, value: string | Uint8Array, options?: XattrOptions): Promise<void> {
    const { create, replace } = options ?? {};
    const args = { handle: this.#io.opened.handle, name: checkXattrName(name), create, replace };
    await this.#call('fsetxattr', 'setXattr', args, options, checkXattrValue(value));
  }
  async listxattr(options?: SignalOption): Promise<string[]> {
    return [
      ...(await this.#call('flistxattr', 'listXattrs', { handle: this.#io.opened.handle }, options)).result.names,
    ];
  }
  async removexattr(name: string, options?: SignalOption): Promise<void> {
    const args = { handle: this.#io.opened.handle, name: checkXattrName(name) };
    await this.#call('fremovexattr', 'removeXattr', args, options);
  }
  async sync(options?: SignalOption): Promise<void> {
    await this.#call('fsync', 'sync', { handle: this.#io.opened.handle, dataOnly: false }, options);
  }
  async datasync(options?: SignalOption): Promise<void> {
    await this.#call('fdatasync', 'sync', { handle: this.#io.opened.handle, dataOnly: true }, options);
  }

  async #call<K extends OpName>(
    syscall: string,
    op: K,
    args: OpArgs<K>,
    options: SignalOption | undefined,
    payload?: Uint8Array,
  ) {
    const signal = signalOf(options);
    return this.#io.use(syscall, () => this.session.call(op, args, payload, signal), signal);
  }
  private get session(): Session {
    return this.#io.session;
  }

  /**
   * fcntl's locks, over all nodes: of this process (`owner: 'process'`, F_SETLK), or of this handle alone (`'handle'`, F_OFD_SETLK). Without
   * `wait` EAGAIN when somebody else's stands against it; with it as soon as nobody's does, EDEADLK when that would be never.
   */
  async lock(options: LockHandleOptions = {}): Promise<void> {
    const args = { ...lockRange(options), type: lockType(options.type ?? 'write') };
    await this.#lock({ ...args, wait: options.wait ?? false }, options);
  }
  /** Gives up what this process (or this handle) has locked of the range. */
  async unlock(options: LockRangeOptions = {}): Promise<void> {
    const { handle } = this.#io.opened;
    await this.#lockCall('unlock', { handle, ...lockRange(options) }, options);
  }
  /** Whose lock stands against such a one, or null (F_GETLK). `pid` is -1 when it is a handle's; length 0: to the end of the file. */
  async getLock(options: Omit<LockHandleOptions, 'wait' | 'timeoutMs'> = {}): Promise<FoundLock | null> {
    const { handle } = this.#io.opened;
    const args = { handle, ...lockRange(options), type: lockType(options.type ?? 'write') };
    const { lock } = await this.#lockCall('getLock', args, options);
    if (lock === null) return null;
    const { offset: start, ...rest } = lock;
    return { ...rest, start };
  }
  /** flock(2): this handle's lock on the whole file. Going from shared to exclusive or back gives up the old one first. */
  async flock(operation: 'shared' | 'exclusive' | 'unlock', options: FlockOptions = {}): Promise<void> {
    const whole = { kind: 'flock' as const, offset: 0, length: 0 };
    if (operation === 'unlock') {
      await this.#lockCall('unlock', { handle: this.#io.opened.handle, ...whole }, options);
      return;
    }
    if (operation !== 'shared' && operation !== 'exclusive')
      throw invalidArgValue('operation', operation, "must be one of 'shared', 'exclusive', 'unlock'");
    const type = operation === 'shared' ? 'read' : 'write';
    await this.#lock({ ...whole, type, wait: options.wait ?? false }, options);
  }

  async #lock(
    args: { kind: LockKind; offset: number; length: number; type: 'read' | 'write'; wait: boolean },
    { timeoutMs, ...options }: FlockOptions,
  ): Promise<void> {
    if (timeoutMs !== undefined) checkInteger(timeoutMs, 'timeoutMs', 0);
    const { handle } = this.#io.opened;
    const time = timeoutMs === undefined ? {} : { timeoutMs };
    await this.#lockCall('lock', { handle, pid: process.pid, ...args, ...time }, options);
  }

  /** One that waits doesn't hold up a close, which ends it. */
  async #lockCall<K extends 'lock' | 'unlock' | 'getLock'>(
    op: K,
    args: Parameters<typeof this.session.call<K>>[1],
    options: SignalOption,
  ) {
    const signal = signalOf(options);
    this.#io.checkOpen(op);
    try {
      return (await this.session.call(op, args, undefined, signal)).result;
    } catch (error) {
      throw toNodeError(error, op, undefined, undefined, signal);
    }
  }

  /** What the program is going to do with a range, in bytes; length 0 means to the end of file. Never waits, never fails. */
  hint(kind: HintKind, offset = 0, length = 0): void {
    if (!HINT_KINDS.includes(kind)) throw invalidArgValue('kind', kind, `must be one of ${HINT_KINDS.join(', ')}`);
    checkInteger(offset, 'offset', 0);
    checkInteger(length, 'length', 0);
    if (this.#io.closed) throw fileClosed('hint');
    this.#io.hint(kind, offset, length === 0 ? Number.MAX_SAFE_INTEGER - offset : length);
  }

  createReadStream(options?: Omit<ReadStreamOptions, 'flags' | 'mode'>): ReadStream {
    return new ReadStream(this, options);
  }
  createWriteStream(options?: Omit<WriteStreamOptions, 'flags' | 'mode'>): WriteStream {
    return new WriteStream(this, options);
  }
  readLines(options?: Omit<ReadStreamOptions, 'flags' | 'mode'>): Interface {
    return createInterface({ input: this.createReadStream(options), crlfDelay: Number.POSITIVE_INFINITY });
  }

  close = async (): Promise<void> => {
    if (this.#io.closed) return;
    const closed = this.#io.close();
    if (!this.#closeEmitted) {
      this.#closeEmitted = true;
      this.emit('close');
    }
    try {
      await closed;
    } catch (error) {
      throw toNodeError(error, 'close');
    }
  };

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
