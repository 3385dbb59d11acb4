import { ACCESS_WISHES, type AccessWish, chooseAccess } from './block-access.js';
import { BlockIoError, errnoName } from './errors.js';
import { namedHolder } from './lock-holder.js';
import { type Layout, layoutOf, type NativeAddon, type NativeEngine, native } from './native.js';
import {
  type AttachedBuffer,
  type BlockDeviceHandle,
  checkPlace,
  failureOf,
  type IoBuffer,
  mayHaveShrunk,
  OpenedDevice,
  type Operation,
  type OperationName,
  outcomeOf,
} from './opened-device.js';
import { namespaceFiles } from './storage-identity.js';

/**
 * The block engine: one io_uring of this thread, the buffers attached to it, and the devices opened on it.
 *
 * Operations are written into the submission arena as they are asked for and handed over together: one native call per turn of the microtask
 * queue; none for what follows completions, since who calls back takes it along. Completions arrive as records in the completion arena, one
 * callback per batch.
 * At most `queueDepth` operations are with the kernel; more wait here in order, at most `waitingMax`.
 *
 * Invariants: every operation settles exactly once; a device closes after its last operation; a buffer stays attached, and so its
 * memory stays, while operations name it. One thread only: another thread makes its own engine over the same memory.
 * Fault model: every errno, short transfers, a closed engine or device, wrong arguments, buffers detached behind our back.
 */
export interface EngineOptions {
  /** Operations with the kernel at a time; 1 to 4096. */
  readonly queueDepth?: number;
  /** Operations waiting here behind them; the next is refused with EAGAIN. */
  readonly waitingMax?: number;
  /**
   * For how long the event loop may look for a completion before it sleeps, while one or two operations are in flight and it has
   * paid before; 0 to 1000. Costs processor time where there is nothing else to do, saves the wake-up.
   */
  readonly spinUsMax?: number;
  /** For NVMe commands passed through: when the kernel gives one up (ETIMEDOUT). */
  readonly commandTimeoutMs?: number;
  /**
   * For NVMe commands passed through, which the kernel doesn't repeat: for how long a passing trouble of the path (a controller that
   * reconnects or is reset with the command under way, an access group in transition) is waited out. 0: not at all.
   */
  readonly pathRetryMsMax?: number;
}

export interface AttachOptions {
  /** Register the memory with the kernel, if it lets us; true unless said otherwise. */
  readonly registered?: boolean;
}

export interface OpenOptions {
  readonly readOnly?: boolean;
  /** prefer: through the page cache where the file system refuses O_DIRECT; require: EINVAL then; off: never. */
  readonly direct?: 'prefer' | 'require' | 'off';
  /**
   * auto: NVMe commands to a namespace's character device where that can be done, else the block device or file. passthrough: only
   * that. block: the kernel's block device. `device.access` and `device.accessReason` tell what was taken.
   */
  readonly access?: AccessWish;
  /**
   * Only with an exclusive lock (flock) on what is opened, of a namespace by whatever name; it lasts until the device is closed, and after this
   * process died until the kernel has done what was under way. EBUSY, naming the process, while another has it.
   */
  readonly lock?: boolean;
}

/** The executor of every operation's promise: one function, no closure for each. It runs before `new Promise` returns. */
let resolveOf: () => void = () => undefined;
let rejectOf: (error: Error) => void = () => undefined;
const capture = (resolve: () => void, reject: (error: Error) => void): void => {
  resolveOf = resolve;
  rejectOf = reject;
};
/** Whose `then` puts something behind this turn of the microtask queue; `queueMicrotask` makes an object for each. */
const settled = Promise.resolve();

/** Engines with operations in flight: their promises must settle even if nobody holds anything else of them. */
const busy = new Set<BlockEngine>();

const QUEUE_DEPTH_DEFAULT = 128;
const WAITING_MAX_DEFAULT = 65_536;
const SPIN_US_DEFAULT = 100;
const COMMAND_TIMEOUT_MS_DEFAULT = 30_000;
const PATH_RETRY_MS_DEFAULT = 3000;
const RETRY_DELAY_MS_MIN = 10;
const RETRY_DELAY_MS_MAX = 200;
const POLL_US_MAX = 60_000_000;
const DIRECT_MODES = ['prefer', 'require', 'off'] as const;

export class BlockEngine {
  readonly queueDepth: number;
  readonly #waitingMax: number;
  readonly #commandTimeoutMs: number;
  readonly #pathRetryMsMax: number;
  readonly #addon: NativeAddon;
  readonly #native: NativeEngine;
  readonly #layout: Layout;
  /** The arenas, as words and as numbers. */
  readonly #instructionWords: Uint32Array;
  readonly #instructionNumbers: Float64Array;
  readonly #completionWords: Uint32Array;
  readonly #completionNumbers: Float64Array;
  readonly #control: Uint32Array;
  readonly #codes: Record<OperationName, number>;
  readonly #durable: number;
  readonly #operations: (Operation | null)[];
  readonly #freeTags: number[] = [];
  #flushScheduled = false;
  /** A ring of its own would save little: `shift` of V8 is cheap for the lengths that occur. */
  #waiting: Operation[] = [];
  #waitingHead = 0;
  #dispatching = false;
  #closing: Promise<void> | null = null;
  #idle: (() => void) | null = null;
  readonly #devices = new Set<OpenedDevice>();

  constructor(options: EngineOptions = {}) {
    this.#addon = native();
    const { abi } = this.#addon;
    this.queueDepth = wholeNumber('queueDepth', options.queueDepth ?? QUEUE_DEPTH_DEFAULT, 1, abi.depthMax);
    this.#waitingMax = wholeNumber('waitingMax', options.waitingMax ?? WAITING_MAX_DEFAULT, 0, 2 ** 24);
    const spinUs = wholeNumber('spinUsMax', options.spinUsMax ?? SPIN_US_DEFAULT, 0, 1000);
    this.#commandTimeoutMs = wholeNumber(
      'commandTimeoutMs',
      options.commandTimeoutMs ?? COMMAND_TIMEOUT_MS_DEFAULT,
      1,
      2 ** 31 - 1,
    );
    this.#pathRetryMsMax = wholeNumber(
      'pathRetryMsMax',
      options.pathRetryMsMax ?? PATH_RETRY_MS_DEFAULT,
      0,
      2 ** 31 - 1,
    );
    // Weakly, so that an engine nobody uses any more can be collected; while it is busy, `busy` holds it.
    const weak = new WeakRef(this);
    this.#native = new this.#addon.Engine(this.queueDepth, spinUs, (count) => {
      const engine = weak.deref();
      if (engine !== undefined) engine.#dispatch(count);
    });
    this.#layout = layoutOf(abi);
    this.#instructionWords = new Uint32Array(this.#native.submissions);
    this.#instructionNumbers = new Float64Array(this.#native.submissions);
    this.#completionWords = new Uint32Array(this.#native.completions);
    this.#completionNumbers = new Float64Array(this.#native.completions);
    this.#control = new Uint32Array(this.#native.control);
    this.#codes = {
      read: abi.read,
      write: abi.write,
      flush: abi.flush,
      discard: abi.discard,
      writeZeroes: abi.writeZeroes,
      compare: abi.compare,
      verify: abi.verify,
    };
    this.#durable = abi.durable;
    this.#operations = new Array<Operation | null>(this.queueDepth).fill(null);
    for (let tag = this.queueDepth - 1; tag >= 0; tag--) this.#freeTags.push(tag);
  }

  /** With the kernel, or about to be. */
  get inFlight(): number {
    return this.queueDepth - this.#freeTags.length;
  }
  get waiting(): number {
    return this.#waiting.length - this.#waitingHead;
  }

  /**
   * Makes memory usable for operations. It must not be transferred or resized while it is attached. Memory for direct I/O begins at a
   * multiple of the device's `memoryAlignBytes`; `allocate` gives such.
   */
  attach(buffer: ArrayBuffer, options: AttachOptions = {}): IoBuffer {
    this.#checkOpen();
    if (!(buffer instanceof ArrayBuffer)) throw new TypeError('attach wants an ArrayBuffer');
    if ((buffer as ArrayBuffer & { resizable?: boolean }).resizable)
      throw new TypeError('a resizable ArrayBuffer can lose memory that the kernel writes into');
    const wanted = options.registered ?? true;
    const made = this.#native.attach(buffer, wanted);
    const refused = made.registerErrno !== 0;
    const attached: AttachedBuffer = {
      engine: this,
      buffer,
      lengthBytes: buffer.byteLength,
      registered: wanted && !refused,
      notRegisteredBecause: refused ? errnoName(made.registerErrno) : null,
      slot: made.slot,
      addressModulo: made.addressModulo,
      inFlight: 0,
      detached: false,
    };
    return attached;
  }

  /** New memory at a page's boundary, all zeros, attached. */
  allocate(lengthBytes: number, options: AttachOptions = {}): IoBuffer {
    this.#checkOpen();
    return this.attach(this.#addon.allocate(wholeNumber('lengthBytes', lengthBytes, 1, 2 ** 40)), options);
  }

  /** Gives the memory back. @throws {Error} while operations name it. A second call does nothing. */
  detach(buffer: IoBuffer): void {
    if (!this.#owns(buffer)) throw notAttached();
    if (buffer.detached) return;
    if (buffer.inFlight > 0) throw new Error(`the buffer is in use by ${buffer.inFlight} operations`);
    if (this.#closing === null && !this.#native.detach(buffer.slot)) throw new Error('the buffer is in use');
    buffer.detached = true;
  }

  /** Opens a block device, a loop device or a regular file. @throws the system's error, with code, syscall and path. */
  async open(path: string, options: OpenOptions = {}): Promise<BlockDeviceHandle> {
    this.#checkOpen();
    if (typeof path !== 'string') throw new TypeError('open wants a path');
    const direct = DIRECT_MODES.indexOf(options.direct ?? 'prefer');
    if (direct < 0) throw new TypeError(`direct is one of ${DIRECT_MODES.join(', ')}`);
    const wish = options.access ?? 'auto';
    if (!ACCESS_WISHES.includes(wish)) throw new TypeError(`access is one of ${ACCESS_WISHES.join(', ')}`);
    const choice = await chooseAccess(path, wish, this.#native.passesCommands, this.#commandTimeoutMs);
    this.#checkOpen();
    const readOnly = (options.readOnly ?? false) || choice.namespace?.writeProtected === true;
    const lock = options.lock === true ? namespaceFiles(choice.path) : null;
    const opening =
      choice.geometry === null
        ? this.#native.open(choice.path, readOnly, direct, lock)
        : this.#native.openNamespace(choice.path, readOnly, choice.geometry, lock);
    const target = await opening.catch(async (error: unknown) => {
      throw lock === null ? error : await namedHolder(error);
    });
    if (this.#closing !== null) {
      this.#native.closeTarget(target.slot);
      throw new Error('the engine is closed');
    }
    const device = new OpenedDevice(this, path, target, choice, (gone) => {
      this.#devices.delete(gone);
      this.#native.closeTarget(target.slot);
    });
    this.#devices.add(device);
    return device;
  }

  /**
   * For benchmarks, and for workers that do nothing else: blocks this thread until an operation completes, at most `maxWaitUs`
   * (0: only looks), then settles what has completed. @returns how many operations that were.
   */
  pollCompletions(maxWaitUs: number): number {
    this.#checkOpen();
    wholeNumber('maxWaitUs', maxWaitUs, 0, POLL_US_MAX);
    if (this.#dispatching) return 0;
    const count = this.#native.poll(maxWaitUs);
    this.#dispatch(count);
    return count;
  }

  /** Waits for all operations, closes the devices, releases everything. A second call waits for the same. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    // Behind the assignment in close(): from here on nothing new is taken.
    await Promise.resolve();
    this.#flush();
    if (this.inFlight > 0 || this.waiting > 0)
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    await Promise.all([...this.#devices].map((device) => device.close()));
    this.#native.close();
  }

  #checkOpen(): void {
    if (this.#closing !== null) throw new Error('the engine is closed');
  }

  #owns(buffer: IoBuffer): buffer is AttachedBuffer {
    return typeof buffer === 'object' && buffer !== null && (buffer as Partial<AttachedBuffer>).engine === this;
  }

  /** Called by devices. @internal */
  start(
    name: OperationName,
    device: OpenedDevice,
    offsetBytes: number,
    buffer: IoBuffer | null,
    bufferOffsetBytes: number,
    lengthBytes: number,
    durable = false,
  ): Promise<void> {
    const refused = this.#refusal(name, device, offsetBytes, buffer, bufferOffsetBytes, lengthBytes);
    if (refused !== null) return Promise.reject(refused);
    const attached = buffer as AttachedBuffer | null;
    const promise = new Promise<void>(capture);
    const operation: Operation = {
      name,
      device,
      buffer: attached,
      offsetBytes,
      bufferOffsetBytes,
      lengthBytes,
      durable,
      deadlineMs: 0,
      retries: 0,
      resolve: resolveOf,
      reject: rejectOf,
    };
    device.began();
    if (attached !== null) attached.inFlight++;
    const tag = this.#freeTags.pop();
    if (tag === undefined) this.#waiting.push(operation);
    else this.#write(tag, operation);
    return promise;
  }

  #refusal(
    name: OperationName,
    device: OpenedDevice,
    offsetBytes: number,
    buffer: IoBuffer | null,
    bufferOffsetBytes: number,
    lengthBytes: number,
  ): Error | null {
    const refuse = (code: string, detail: string): BlockIoError =>
      new BlockIoError(code, name, device.path, offsetBytes, lengthBytes, 0, false, detail);
    if (this.#closing !== null) return refuse('EBADF', 'the engine is closed');
    if (device.closed) return refuse('EBADF', 'the device is closed');
    if (buffer !== null && !this.#owns(buffer)) return notAttached();
    if (name !== 'flush') {
      const problem = checkPlace(device, buffer as AttachedBuffer | null, offsetBytes, bufferOffsetBytes, lengthBytes);
      if (problem !== null) return refuse(problem.code, problem.detail);
    }
    if (this.#freeTags.length === 0 && this.waiting >= this.#waitingMax)
      return refuse('EAGAIN', `${this.waiting} operations wait already`);
    return null;
  }

  #write(tag: number, operation: Operation): void {
    this.#operations[tag] = operation;
    busy.add(this);
    const { instruction, control } = this.#layout;
    const words = this.#instructionWords;
    const numbers = this.#instructionNumbers;
    const index = this.#control[control.written]!++;
    const word = index * instruction.words;
    const number = index * instruction.numbers;
    words[word + instruction.operation] = this.#codes[operation.name] | (operation.durable ? this.#durable : 0);
    words[word + instruction.target] = operation.device.target.slot;
    words[word + instruction.buffer] = operation.buffer === null ? 0 : operation.buffer.slot;
    words[word + instruction.tag] = tag;
    numbers[number + instruction.offset] = operation.offsetBytes;
    numbers[number + instruction.bufferOffset] = operation.bufferOffsetBytes;
    numbers[number + instruction.length] = operation.lengthBytes;
    if (this.#flushScheduled || this.#control[control.dispatching] !== 0) return;
    this.#flushScheduled = true;
    void settled.then(this.#flushLater);
  }

  readonly #flushLater = (): void => {
    this.#flushScheduled = false;
    this.#flush();
  };

  /** Hands over what was written; there is always room, since each instruction has a tag and there are as many places as tags. */
  #flush(): void {
    if (this.#control[this.#layout.control.written] !== 0) this.#native.submit();
  }

  #dispatch(count: number): void {
    const { completion } = this.#layout;
    const words = this.#completionWords;
    const numbers = this.#completionNumbers;
    this.#dispatching = true;
    for (let i = 0, word = 0; i < count; i++, word += completion.words) {
      const tag = words[word + completion.tag]!;
      const errno = words[word + completion.error]! | 0;
      const doneBytes = numbers[i * completion.numbers + completion.done]!;
      const operation = this.#operations[tag];
      if (operation === null || operation === undefined) continue;
      if (errno === 0 && doneBytes === operation.lengthBytes) this.#settle(tag, operation, null);
      else this.#complete(tag, operation, errno, doneBytes, words[word + completion.status]!);
    }
    this.#dispatching = false;
  }

  #complete(tag: number, operation: Operation, errno: number, doneBytes: number, status: number): void {
    const outcome = outcomeOf(operation, errno, doneBytes, status);
    if (outcome === 'passing') this.#retry(tag, operation, errno, doneBytes, status);
    else if (outcome !== 'done' && mayHaveShrunk(operation, status))
      void this.#failAfterLook(tag, operation, errno, doneBytes, status);
    else this.#settle(tag, operation, outcome === 'done' ? null : outcome);
  }

  /** What failed may lie beyond the end by now; that is another error. */
  async #failAfterLook(
    tag: number,
    operation: Operation,
    errno: number,
    doneBytes: number,
    status: number,
  ): Promise<void> {
    // A device that can't be asked has the size that it had.
    await operation.device.refresh().catch(() => undefined);
    this.#settle(tag, operation, failureOf(operation, errno, doneBytes, status));
  }

  /** The operation keeps its tag meanwhile: it is still in flight, for everybody but the device. */
  #retry(tag: number, operation: Operation, errno: number, doneBytes: number, status: number): void {
    const nowMs = performance.now();
    if (operation.deadlineMs === 0) operation.deadlineMs = nowMs + this.#pathRetryMsMax;
    if (nowMs >= operation.deadlineMs || !operation.device.isPresent()) {
      this.#settle(tag, operation, failureOf(operation, errno, doneBytes, status));
      return;
    }
    const delayMs = Math.min(RETRY_DELAY_MS_MIN * 2 ** Math.min(operation.retries++, 10), RETRY_DELAY_MS_MAX);
    setTimeout(() => this.#write(tag, operation), Math.min(delayMs, operation.deadlineMs - nowMs));
  }

  #settle(tag: number, operation: Operation, error: Error | null): void {
    this.#operations[tag] = null;
    if (operation.buffer !== null) operation.buffer.inFlight--;
    if (error === null) operation.resolve();
    else operation.reject(error);
    operation.device.ended();
    if (this.#waiting.length > 0) {
      const next = this.#nextWaiting();
      if (next !== undefined) {
        this.#write(tag, next);
        return;
      }
    }
    this.#freeTags.push(tag);
    if (this.inFlight > 0) return;
    busy.delete(this);
    this.#idle?.();
  }

  #nextWaiting(): Operation | undefined {
    const next = this.#waiting[this.#waitingHead];
    if (next === undefined) return undefined;
    this.#waitingHead++;
    if (this.#waitingHead === this.#waiting.length || this.#waitingHead >= 1024) {
      this.#waiting = this.#waiting.slice(this.#waitingHead);
      this.#waitingHead = 0;
    }
    return next;
  }
}

const notAttached = (): TypeError => new TypeError('not a buffer of this engine: attach it first');

function wholeNumber(name: string, value: number, min: number, max: number): number {
  if (!Number.isInteger(value) || value < min || value > max)
    throw new RangeError(`${name} is a whole number from ${min} to ${max}, not ${String(value)}`);
  return value;
}
