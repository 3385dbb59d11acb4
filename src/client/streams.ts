import { Readable, Writable } from 'node:stream';
import type { FileHandle } from './file-handle.js';
import { outOfRange } from './node-errors.js';
import { checkInteger } from './validate.js';

/** Streams over a FileHandle, with the options, events and properties of fs.ReadStream and fs.WriteStream. */
interface CommonOptions {
  readonly encoding?: BufferEncoding | null | undefined;
  /** Close the handle when the stream ends or fails. Default true. */
  readonly autoClose?: boolean | undefined;
  readonly emitClose?: boolean | undefined;
  /** In bytes. Without it the stream uses and moves the handle's position. */
  readonly start?: number | undefined;
  readonly highWaterMark?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly flags?: string | number | undefined;
  readonly mode?: number | string | undefined;
}
export interface ReadStreamOptions extends CommonOptions {
  /** The last byte to read, inclusive. Default: the end of file. */
  readonly end?: number | undefined;
}
export interface WriteStreamOptions extends CommonOptions {
  /** fsync before closing. */
  readonly flush?: boolean | undefined;
}

/** A handle, or how to get one. */
type Source = FileHandle | (() => Promise<FileHandle>);
type Done = (error?: Error | null) => void;

const READ_CHUNK_BYTES = 64 * 1024;

const asError = (error: unknown): Error => (error instanceof Error ? error : new Error(String(error)));

async function construct(stream: Readable | Writable, source: Source): Promise<FileHandle> {
  const handle = typeof source === 'function' ? await source() : source;
  // A handle closed under its stream ends it; autoClose closes it after the stream, which then is destroyed already.
  handle.once('close', () => stream.destroy());
  stream.emit('open', handle.fd);
  stream.emit('ready');
  return handle;
}

function whenClosed(stream: Readable | Writable, done: Done | undefined): void {
  if (done === undefined) return;
  if (stream.closed) process.nextTick(done);
  else stream.once('close', done);
}

/** Before the stream's own constructor, which already schedules the opening. */
function checked<T extends ReadStreamOptions>(options: T): T {
  const { start, end } = options;
  if (start !== undefined) checkInteger(start, 'start', 0);
  if (end !== undefined && end !== Number.POSITIVE_INFINITY) checkInteger(end, 'end', 0);
  if (start !== undefined && end !== undefined && start > end)
    throw outOfRange('start', `<= "end" (here: ${end})`, start);
  return options;
}

const streamOptions = (options: CommonOptions): object => ({
  emitClose: options.emitClose ?? true,
  ...(options.highWaterMark === undefined ? {} : { highWaterMark: options.highWaterMark }),
  ...(options.signal === undefined ? {} : { signal: options.signal }),
});

export class ReadStream extends Readable {
  readonly #source: Source;
  readonly #autoClose: boolean;
  readonly #end: number;
  #handle: FileHandle | null = null;
  #position: number | null;
  #left: number;
  bytesRead = 0;

  constructor(
    source: Source,
    options: ReadStreamOptions = {},
    readonly path?: string,
  ) {
    super({ highWaterMark: READ_CHUNK_BYTES, ...streamOptions(checked(options)) });
    const { start, end } = options;
    this.#source = source;
    this.#autoClose = options.autoClose ?? true;
    this.#end = end ?? Number.POSITIVE_INFINITY;
    this.#position = start ?? null;
    this.#left = this.#end - (start ?? 0) + 1;
    if (options.encoding !== undefined && options.encoding !== null) this.setEncoding(options.encoding);
  }

  get fd(): number | null {
    return this.#handle?.fd ?? null;
  }
  get pending(): boolean {
    return this.#handle === null;
  }

  override _construct(done: Done): void {
    construct(this, this.#source).then(
      (handle) => {
        this.#handle = handle;
        done();
      },
      (error: unknown) => done(asError(error)),
    );
  }

  override _read(size: number): void {
    const length = Math.min(size, this.#left);
    if (length <= 0) {
      this.push(null);
      return;
    }
    const buffer = Buffer.allocUnsafeSlow(length);
    this.#handle!.read(buffer, 0, length, this.#position).then(
      ({ bytesRead }) => {
        if (bytesRead === 0) {
          this.push(null);
          return;
        }
        this.bytesRead += bytesRead;
        this.#left -= bytesRead;
        if (this.#position !== null) this.#position += bytesRead;
        this.push(bytesRead === length ? buffer : buffer.subarray(0, bytesRead));
      },
      (error: unknown) => this.destroy(asError(error)),
    );
  }

  override _destroy(error: Error | null, done: Done): void {
    if (!this.#autoClose || this.#handle === null) done(error);
    else
      this.#handle.close().then(
        () => done(error),
        (closing: unknown) => done(error ?? asError(closing)),
      );
  }

  close(done?: Done): void {
    whenClosed(this, done);
    this.destroy();
  }
}

export class WriteStream extends Writable {
  readonly #source: Source;
  readonly #autoClose: boolean;
  readonly #flush: boolean;
  #handle: FileHandle | null = null;
  #position: number | null;
  bytesWritten = 0;

  constructor(
    source: Source,
    options: WriteStreamOptions = {},
    readonly path?: string,
  ) {
    super({ ...streamOptions(checked(options)), decodeStrings: true });
    this.#source = source;
    this.#autoClose = options.autoClose ?? true;
    this.#flush = options.flush ?? false;
    this.#position = options.start ?? null;
    if (options.encoding !== undefined && options.encoding !== null) this.setDefaultEncoding(options.encoding);
  }

  get fd(): number | null {
    return this.#handle?.fd ?? null;
  }
  get pending(): boolean {
    return this.#handle === null;
  }

  override _construct(done: Done): void {
    construct(this, this.#source).then(
      (handle) => {
        this.#handle = handle;
        done();
      },
      (error: unknown) => done(asError(error)),
    );
  }

  async #writeAll(buffers: readonly Buffer[]): Promise<void> {
    const { bytesWritten } = await this.#handle!.writev(buffers, this.#position);
    this.bytesWritten += bytesWritten;
    if (this.#position !== null) this.#position += bytesWritten;
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: Done): void {
    this.#writeAll([chunk]).then(
      () => done(),
      (error: unknown) => done(asError(error)),
    );
  }

  /** Everything that gathered while the last write ran, as one. */
  override _writev(chunks: { chunk: Buffer }[], done: Done): void {
    this.#writeAll(chunks.map(({ chunk }) => chunk)).then(
      () => done(),
      (error: unknown) => done(asError(error)),
    );
  }

  override _final(done: Done): void {
    if (!this.#flush) done();
    else
      this.#handle!.sync().then(
        () => done(),
        (error: unknown) => done(asError(error)),
      );
  }

  override _destroy(error: Error | null, done: Done): void {
    if (!this.#autoClose || this.#handle === null) done(error);
    else
      this.#handle.close().then(
        () => done(error),
        (closing: unknown) => done(error ?? asError(closing)),
      );
  }

  close(done?: Done): void {
    whenClosed(this, done);
    // What was given to it is written first.
    if (!this.#autoClose) this.once('finish', () => this.destroy());
    this.end();
  }
}
