import { constants } from 'node:fs';
import { type CacheMap, type EntryId, HIT_PAGES_MAX } from '../cache/cache-map.js';
import { FsError } from '../common/errors.js';
import { PAGE_BYTES } from '../common/units.js';
import { fileClosed, invalidState, NodeFsError, toNodeError } from './node-errors.js';
import type { OpArgs, OpenResult, OpName, Reply, WireHintKind } from './ops.js';
import type { Session } from './session.js';

/**
 * Bytes of one open file: hits on the calling thread, misses through the session; the handle's position and who may use it.
 *
 * Invariants: a hit touches neither message nor promise. What moves the position runs one at a time, in order of the calls,
 * and moves it only after it succeeded. Source bytes are copied before the first wait, target bytes are written after the
 * last, so a buffer that changes meanwhile costs an error and never another's bytes. The engine's handle is closed when the last
 * user is done. When the session fails there are no hits any more (F7).
 *
 * A long read that misses first has the engine bring the pages, and copies them itself by a hit: the bytes are copied once and no buffer
 * crosses threads. If others take the pages away in between, the engine does the whole read, so that contention can't starve it.
 */

/** Sequential hits tell the engine how far they are once per so many bytes, so that it reads ahead of them. */
const PROGRESS_BYTES = 2 << 20;
/** From here on a buffer of its own costs more than a second look. */
const BRING_BYTES_MIN = 128 << 10;
const BRING_BYTES_MAX = (HIT_PAGES_MAX - 1) * PAGE_BYTES;
/** So many reads are left to the engine after the pages were gone when the hit came. */
const READS_AFTER_LOSS = 16;
/** The longest synchronous operation; longer ones are cut. */
const SYNC_BYTES_MAX = 64 << 20;
const JSON_ROOM_BYTES = 4096;
const NO_ENTRY = -1 as EntryId;

let lastMs = 0;
let lastNs = 0n;
/** Wall clock in ns, to the millisecond: a BigInt made once per millisecond, not once per hit. */
function wallNs(): bigint {
  const now = Date.now();
  if (now !== lastMs) {
    lastMs = now;
    lastNs = BigInt(now) * 1_000_000n;
  }
  return lastNs;
}

export class HandleIo {
  /** Of the next operation without one, in bytes. */
  position = 0;
  readonly append: boolean;
  readonly #readable: boolean;
  readonly #writable: boolean;
  readonly #map: CacheMap | null;
  #readEntry = NO_ENTRY;
  #writeEntry = NO_ENTRY;
  #turn: Promise<unknown> | null = null;
  #users = 0;
  #closed = false;
  #closing: Promise<void> | null = null;
  #idle: (() => void) | null = null;
  /** Where a sequential reader's next hit would start, and how far the engine knows. */
  #sequentialEnd = 0;
  #reported = 0;
  #readsForEngine = 0;
  /** The first hit that reads is told to the engine, for the atime; further ones cost no message. */
  #atimeDue: boolean;
  readonly #forget: () => void;

  constructor(
    readonly session: Session,
    readonly opened: OpenResult,
  ) {
    const { flags, entry } = opened;
    const access = flags & (constants.O_RDONLY | constants.O_WRONLY | constants.O_RDWR);
    this.append = (flags & constants.O_APPEND) !== 0;
    this.#readable = access !== constants.O_WRONLY;
    this.#writable = access !== constants.O_RDONLY;
    this.#map = session.map;
    this.#atimeDue = opened.atimeDue;
    if (this.#map !== null && entry !== null) {
      if (this.#readable) this.#readEntry = entry as EntryId;
      // Synchronous writes must reach the devices; an appended hit doesn't tell where it landed, which a reader's position needs.
      const durable = (flags & (constants.O_SYNC | constants.O_DSYNC)) !== 0;
      if (this.#writable && !durable && !(this.append && this.#readable)) this.#writeEntry = entry as EntryId;
    }
    this.#forget = session.onFailure(() => this.#noHits());
  }

  get closed(): boolean {
    return this.#closed;
  }

  #noHits(): void {
    this.#readEntry = NO_ENTRY;
    this.#writeEntry = NO_ENTRY;
  }

  /** Bytes copied, or negative: not a hit. */
  tryRead(offset: number, target: Uint8Array): number {
    if (this.#readEntry === NO_ENTRY) return -1;
    const count = this.#map!.read(this.#readEntry, offset, target);
    if (count > 0) {
      if (this.#atimeDue) this.#accessed();
      if (offset !== this.#sequentialEnd) this.#reported = offset;
      this.#sequentialEnd = offset + count;
      if (this.#sequentialEnd - this.#reported >= PROGRESS_BYTES) this.#progress();
    }
    return count;
  }

  /** Bytes written, or negative: not a hit. */
  tryWrite(offset: number, source: Uint8Array): number {
    if (this.#writeEntry === NO_ENTRY) return -1;
    return this.#map!.write(this.#writeEntry, this.append ? -1 : offset, source, wallNs());
  }

  #accessed(): void {
    this.#atimeDue = false;
    this.hint('accessed', 0, 0);
  }

  #progress(): void {
    const from = this.#reported;
    this.#reported = this.#sequentialEnd;
    this.hint('passed', from, this.#sequentialEnd - from);
  }

  hint(kind: WireHintKind, offset: number, length: number): void {
    this.session.notify('hint', { handle: this.opened.handle, kind, offset, length });
  }

  checkOpen(syscall: string): void {
    if (this.#closed || this.#closing !== null) throw fileClosed(syscall);
  }
  #check(allowed: boolean, syscall: string): void {
    if (!allowed) throw new NodeFsError(new FsError('badHandle', { op: syscall }), syscall);
  }

  /** Keeps the engine's handle open while the work runs. */
  async use<T>(syscall: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    this.checkOpen(syscall);
    this.#users++;
    try {
      return await work();
    } catch (error) {
      if (FsError.is(error)) throw toNodeError(error, syscall, undefined, undefined, signal);
      throw error;
    } finally {
      this.#users--;
      if (this.#users === 0) this.#idle?.();
    }
  }

  call<K extends OpName>(op: K, args: OpArgs<K>, payload?: Uint8Array, signal?: AbortSignal): Promise<Reply<K>> {
    return this.session.call(op, args, payload, signal);
  }

  /** One at a time, in order of the calls: for everything that uses the position. */
  inTurn<T>(work: () => Promise<T>): Promise<T> {
    const before = this.#turn;
    const mine = before === null ? work() : before.then(work, work);
    const settled = mine.then(
      () => undefined,
      () => undefined,
    );
    this.#turn = settled;
    void settled.then(() => {
      if (this.#turn === settled) this.#turn = null;
    });
    return mine;
  }

  /** Fills `target` from `position`, or from the handle's own, which then moves. @returns bytes read, 0 at the end of file. */
  read(target: Uint8Array, position: number | null, signal?: AbortSignal): Promise<number> {
    return this.use(
      'read',
      async () => {
        this.#check(this.#readable, 'read');
        if (position !== null) return this.#readAt(position, target, signal);
        return this.inTurn(() => this.readAhead(target, signal));
      },
      signal,
    );
  }

  /** Reads at the handle's position and moves it. Only in turn. */
  async readAhead(target: Uint8Array, signal?: AbortSignal): Promise<number> {
    this.#check(this.#readable, 'read');
    const count = await this.#readAt(this.position, target, signal);
    this.position += count;
    return count;
  }

  async #readAt(offset: number, target: Uint8Array, signal?: AbortSignal): Promise<number> {
    const want = target.byteLength;
    const hit = this.tryRead(offset, target);
    if (hit >= 0) return hit;
    const brought = await this.#bringAndHit(offset, target, signal);
    if (brought >= 0) return brought;
    const { handle } = this.opened;
    let done = 0;
    while (done < want) {
      const length = Math.min(want - done, this.session.transferBytesMax);
      const { payload } = await this.call('read', { handle, offset: offset + done, length }, undefined, signal);
      const count = payload?.length ?? 0;
      this.#land(target, want, done, payload, length);
      done += count;
      if (count < length) break;
    }
    return done;
  }

  async #bringAndHit(offset: number, target: Uint8Array, signal: AbortSignal | undefined): Promise<number> {
    const length = target.byteLength;
    if (this.#readEntry === NO_ENTRY || length < BRING_BYTES_MIN || length > BRING_BYTES_MAX) return -1;
    if (this.#readsForEngine > 0) {
      this.#readsForEngine--;
      return -1;
    }
    await this.call('bring', { handle: this.opened.handle, offset, length }, undefined, signal);
    checkLength(target, length);
    const hit = this.tryRead(offset, target);
    if (hit < 0) this.#readsForEngine = READS_AFTER_LOSS;
    return hit;
  }

  #land(target: Uint8Array, want: number, at: number, payload: Uint8Array | undefined, length: number): void {
    if (payload === undefined || payload.length === 0) return;
    if (payload.length > length) throw new FsError('badFrame', { op: 'read', detail: 'more bytes than asked for' });
    checkLength(target, want);
    target.set(payload, at);
  }

  /** @returns bytes written: all of them, or it throws. */
  write(source: Uint8Array, position: number | null, signal?: AbortSignal): Promise<number> {
    if (!this.#closed && this.#closing === null && (position !== null || this.#turn === null)) {
      const hit = this.tryWrite(position ?? this.position, source);
      if (hit >= 0) {
        if (position === null && !this.append) this.position += hit;
        return Promise.resolve(hit);
      }
    }
    const bytes = new Uint8Array(source);
    return this.use(
      'write',
      async () => {
        this.#check(this.#writable, 'write');
        if (position !== null) return (await this.#writeAt(position, bytes, signal)).count;
        return this.inTurn(() => this.writeAhead(bytes, signal));
      },
      signal,
    );
  }

  /** Writes at the handle's position and moves it. Only in turn; the bytes are the session's from now on. */
  async writeAhead(bytes: Uint8Array, signal?: AbortSignal): Promise<number> {
    this.#check(this.#writable, 'write');
    const { count, end } = await this.#writeAt(this.position, bytes, signal);
    this.position = end;
    return count;
  }

  async #writeAt(offset: number, bytes: Uint8Array, signal?: AbortSignal): Promise<{ count: number; end: number }> {
    const { handle } = this.opened;
    const count = bytes.byteLength;
    let done = 0;
    let end = offset;
    while (done < count) {
      const piece = count - done <= this.session.transferBytesMax && done === 0 ? bytes : this.#piece(bytes, done);
      const at = this.append ? null : offset + done;
      const { result } = await this.call('write', { handle, offset: at }, piece, signal);
      if (result.length === 0) throw new FsError('internal', { op: 'write', detail: 'a write made no progress' });
      done += result.length;
      end = result.offset + result.length;
    }
    return { count, end };
  }

  #piece(bytes: Uint8Array, done: number): Uint8Array {
    return bytes.slice(done, Math.min(bytes.byteLength, done + this.session.transferBytesMax));
  }

  /** Synchronous misses: the thread waits for the engine. */
  readSync(target: Uint8Array, position: number | null): number {
    this.checkOpen('read');
    this.#check(this.#readable, 'read');
    const start = position ?? this.#positionNow('read');
    let done = this.tryRead(start, target);
    if (done < 0) {
      done = 0;
      while (done < target.byteLength) {
        const length = Math.min(target.byteLength - done, this.session.transferBytesMax, SYNC_BYTES_MAX);
        const { payload } = this.#callSync('read', start + done, length, undefined);
        this.#land(target, target.byteLength, done, payload, length);
        const count = payload?.length ?? 0;
        done += count;
        if (count < length) break;
      }
    }
    if (position === null) this.position = start + done;
    return done;
  }

  writeSync(source: Uint8Array, position: number | null): number {
    this.checkOpen('write');
    this.#check(this.#writable, 'write');
    const start = position ?? this.#positionNow('write');
    let done = this.tryWrite(start, source);
    let end = start + done;
    if (done < 0) {
      done = 0;
      while (done < source.byteLength) {
        const length = Math.min(source.byteLength - done, this.session.transferBytesMax, SYNC_BYTES_MAX);
        const bytes = new Uint8Array(source.subarray(done, done + length));
        const { result } = this.#callSync('write', this.append ? null : start + done, 0, bytes);
        done += result.length;
        end = result.offset + result.length;
      }
    }
    if (position === null) this.position = end;
    return done;
  }

  #positionNow(syscall: string): number {
    if (this.#turn === null) return this.position;
    const detail = 'an asynchronous operation is using the position of this handle; give one';
    throw new NodeFsError(new FsError('busy', { op: syscall, detail }), syscall);
  }

  #callSync(op: 'read', offset: number, length: number, payload: undefined): Reply<'read'>;
  #callSync(op: 'write', offset: number | null, length: number, payload: Uint8Array): Reply<'write'>;
  #callSync(op: 'read' | 'write', offset: number | null, length: number, payload?: Uint8Array): Reply {
    const { handle } = this.opened;
    try {
      if (op === 'read')
        return this.session.callSync('read', { handle, offset: offset ?? 0, length }, length + JSON_ROOM_BYTES);
      return this.session.callSync('write', { handle, offset }, JSON_ROOM_BYTES, payload);
    } catch (error) {
      throw toNodeError(error, op);
    }
  }

  /** No new use from now on; waits for the running ones, then closes the engine's handle. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#noHits();
    if (this.#users > 0)
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    this.#closed = true;
    this.#forget();
    if (this.session.failure !== null) return;
    try {
      await this.call('close', { handle: this.opened.handle });
    } catch (error) {
      throw toNodeError(error, 'close');
    }
  }
}

/** A detached or shrunk buffer leaves its views with no length. */
function checkLength(target: Uint8Array, want: number): void {
  if (target.byteLength !== want) throw invalidState('The buffer was detached or shrank while it was read into');
}
