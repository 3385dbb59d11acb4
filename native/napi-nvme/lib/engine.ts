import { BlockIoError, errnoName } from './errors.js';
import { type NativeAddon, type NativeEngine, type NativeTarget, native } from './native.js';

/**
 * The block engine: one io_uring of this thread, the buffers attached to it, and the devices opened on it.
 *
 * Operations are written into the submission arena as they are asked for and handed over together: one native call per turn of
 * the microtask queue, or when the arena is full. Completions arrive as records in the completion arena, one callback per batch.
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
}

export interface AttachOptions {
  /** Register the memory with the kernel, if it lets us; true unless said otherwise. */
  readonly registered?: boolean;
}

export interface OpenOptions {
  readonly readOnly?: boolean;
  /** prefer: through the page cache where the file system refuses O_DIRECT; require: EINVAL then; off: never. */
  readonly direct?: 'prefer' | 'require' | 'off';
}

/** Memory that operations may name. */
export interface IoBuffer {
  readonly buffer: ArrayBuffer;
  readonly lengthBytes: number;
  /** Whether the kernel has it registered. */
  readonly registered: boolean;
  /** Why not: an errno's name, ENOMEM for the limit on locked memory; null if it is, or if it wasn't wanted. */
  readonly notRegisteredBecause: string | null;
}

interface AttachedBuffer extends IoBuffer {
  readonly engine: BlockEngine;
  readonly slot: number;
  readonly addressModulo: number;
  inFlight: number;
  detached: boolean;
}

type OperationName = BlockIoError['syscall'];

interface Operation {
  name: OperationName;
  device: OpenedDevice;
  buffer: AttachedBuffer | null;
  offsetBytes: number;
  bufferOffsetBytes: number;
  lengthBytes: number;
  resolve: () => void;
  reject: (error: Error) => void;
}

/** Engines with operations in flight: their promises must settle even if nobody holds anything else of them. */
const busy = new Set<BlockEngine>();

const QUEUE_DEPTH_DEFAULT = 128;
const WAITING_MAX_DEFAULT = 65_536;
const SPIN_US_DEFAULT = 100;
const POLL_US_MAX = 60_000_000;
const DIRECT_MODES = ['prefer', 'require', 'off'] as const;

export class BlockEngine {
  readonly queueDepth: number;
  readonly #waitingMax: number;
  readonly #addon: NativeAddon;
  readonly #native: NativeEngine;
  readonly #instructions: DataView;
  readonly #completions: DataView;
  readonly #codes: Record<OperationName, number>;
  readonly #operations: (Operation | null)[];
  readonly #freeTags: number[] = [];
  #written = 0;
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
    // Weakly, so that an engine nobody uses any more can be collected; while it is busy, `busy` holds it.
    const weak = new WeakRef(this);
    this.#native = new this.#addon.Engine(this.queueDepth, spinUs, (count) => {
      const engine = weak.deref();
      if (engine !== undefined) engine.#dispatch(count);
    });
    this.#instructions = new DataView(this.#native.submissions);
    this.#completions = new DataView(this.#native.completions);
    this.#codes = {
      read: abi.read,
      write: abi.write,
      flush: abi.flush,
      discard: abi.discard,
      writeZeroes: abi.writeZeroes,
    };
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
    const attached = this.#own(buffer);
    if (attached.detached) return;
    if (attached.inFlight > 0) throw new Error(`the buffer is in use by ${attached.inFlight} operations`);
    if (this.#closing === null && !this.#native.detach(attached.slot)) throw new Error('the buffer is in use');
    attached.detached = true;
  }

  /** Opens a block device, a loop device or a regular file. @throws the system's error, with code, syscall and path. */
  async open(path: string, options: OpenOptions = {}): Promise<BlockDeviceHandle> {
    this.#checkOpen();
    if (typeof path !== 'string') throw new TypeError('open wants a path');
    const direct = DIRECT_MODES.indexOf(options.direct ?? 'prefer');
    if (direct < 0) throw new TypeError(`direct is one of ${DIRECT_MODES.join(', ')}`);
    const target = await this.#native.open(path, options.readOnly ?? false, direct);
    if (this.#closing !== null) {
      this.#native.closeTarget(target.slot);
      throw new Error('the engine is closed');
    }
    const device = new OpenedDevice(this, path, target, (gone) => {
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
    this.#flush();
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

  #own(buffer: IoBuffer): AttachedBuffer {
    const attached = buffer as Partial<AttachedBuffer>;
    if (typeof buffer !== 'object' || buffer === null || attached.engine !== this)
      throw new TypeError('not a buffer of this engine: attach it first');
    return attached as AttachedBuffer;
  }

  /** Called by devices. @internal */
  start(
    name: OperationName,
    device: OpenedDevice,
    offsetBytes: number,
    buffer: IoBuffer | null,
    bufferOffsetBytes: number,
    lengthBytes: number,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const refuse = (code: string, detail: string): BlockIoError =>
        new BlockIoError(code, name, device.path, offsetBytes, lengthBytes, 0, false, detail);
      if (this.#closing !== null) throw refuse('EBADF', 'the engine is closed');
      if (device.closed) throw refuse('EBADF', 'the device is closed');
      const attached = buffer === null ? null : this.#own(buffer);
      if (name !== 'flush') checkPlace(device, attached, offsetBytes, bufferOffsetBytes, lengthBytes, refuse);
      const operation = {
        name,
        device,
        buffer: attached,
        offsetBytes,
        bufferOffsetBytes,
        lengthBytes,
        resolve,
        reject,
      };
      const tag = this.#freeTags.pop();
      if (tag === undefined && this.waiting >= this.#waitingMax)
        throw refuse('EAGAIN', `${this.waiting} operations wait already`);
      device.began();
      if (attached !== null) attached.inFlight++;
      if (tag === undefined) this.#waiting.push(operation);
      else this.#write(tag, operation);
    });
  }

  #write(tag: number, operation: Operation): void {
    this.#operations[tag] = operation;
    busy.add(this);
    const { abi } = this.#addon;
    const view = this.#instructions;
    const at = this.#written++ * abi.instructionBytes;
    view.setUint32(at + abi.operationAt, this.#codes[operation.name], true);
    view.setUint32(at + abi.targetAt, operation.device.target.slot, true);
    view.setUint32(at + abi.bufferAt, operation.buffer?.slot ?? 0, true);
    view.setUint32(at + abi.tagAt, tag, true);
    view.setFloat64(at + abi.offsetAt, operation.offsetBytes, true);
    view.setFloat64(at + abi.bufferOffsetAt, operation.bufferOffsetBytes, true);
    view.setFloat64(at + abi.lengthAt, operation.lengthBytes, true);
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    queueMicrotask(this.#flushLater);
  }

  readonly #flushLater = (): void => {
    this.#flushScheduled = false;
    this.#flush();
  };

  /** Hands over what was written; there is always room, since each instruction has a tag and there are as many places as tags. */
  #flush(): void {
    const count = this.#written;
    if (count === 0) return;
    this.#written = 0;
    try {
      this.#native.submit(count);
    } catch (error) {
      this.#failUnsubmitted(count, error instanceof Error ? error : new Error(String(error)));
    }
  }

  /** The native side took none of them: its arguments were refused, which only a buffer detached behind our back can cause. */
  #failUnsubmitted(count: number, error: Error): void {
    const { abi } = this.#addon;
    const tags: number[] = [];
    for (let i = 0; i < count; i++) tags.push(this.#instructions.getUint32(i * abi.instructionBytes + abi.tagAt, true));
    for (const tag of tags) this.#settle(tag, (operation) => operation.reject(error));
  }

  #dispatch(count: number): void {
    const { abi } = this.#addon;
    const view = this.#completions;
    this.#dispatching = true;
    for (let i = 0; i < count; i++) {
      const at = i * abi.completionBytes;
      const errno = view.getInt32(at + abi.completionErrorAt, true);
      const doneBytes = view.getFloat64(at + abi.completionDoneAt, true);
      this.#settle(view.getUint32(at + abi.completionTagAt, true), (operation) =>
        complete(operation, errno, doneBytes),
      );
    }
    this.#dispatching = false;
  }

  #settle(tag: number, how: (operation: Operation) => void): void {
    const operation = this.#operations[tag];
    if (operation === null || operation === undefined) return;
    this.#operations[tag] = null;
    if (operation.buffer !== null) operation.buffer.inFlight--;
    how(operation);
    operation.device.ended();
    const next = this.#nextWaiting();
    if (next !== undefined) this.#write(tag, next);
    else {
      this.#freeTags.push(tag);
      if (this.inFlight > 0) return;
      busy.delete(this);
      this.#idle?.();
    }
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

function complete(operation: Operation, errno: number, doneBytes: number): void {
  const { name, device, offsetBytes, lengthBytes } = operation;
  if (errno === 0 && (doneBytes === lengthBytes || name === 'flush')) {
    operation.resolve();
    return;
  }
  const short = errno === 0;
  const code = short ? 'EIO' : errnoName(errno);
  const detail = short
    ? `the device ended after ${doneBytes} bytes`
    : `the device failed${doneBytes > 0 ? ` after ${doneBytes} bytes` : ''}`;
  operation.reject(new BlockIoError(code, name, device.path, offsetBytes, lengthBytes, doneBytes, short, detail));
}

function checkPlace(
  device: OpenedDevice,
  buffer: AttachedBuffer | null,
  offsetBytes: number,
  bufferOffsetBytes: number,
  lengthBytes: number,
  refuse: (code: string, detail: string) => BlockIoError,
): void {
  const whole = Number.isSafeInteger(offsetBytes) && Number.isSafeInteger(lengthBytes);
  if (!whole || offsetBytes < 0 || lengthBytes <= 0 || !Number.isSafeInteger(offsetBytes + lengthBytes))
    throw refuse('EINVAL', 'offset and length are no byte range');
  const { logicalBlockBytes, memoryAlignBytes, direct, kind } = device;
  // Through the page cache files have no blocks; block devices always do for what isn't a transfer.
  if (
    (direct || (kind === 'block' && buffer === null)) &&
    (offsetBytes % logicalBlockBytes || lengthBytes % logicalBlockBytes)
  )
    throw refuse('EINVAL', `not whole blocks of ${logicalBlockBytes} bytes`);
  if (buffer === null) return;
  if (buffer.detached) throw refuse('EFAULT', 'the buffer is detached');
  const within = Number.isSafeInteger(bufferOffsetBytes) && bufferOffsetBytes >= 0;
  if (!within || bufferOffsetBytes + lengthBytes > buffer.lengthBytes) throw refuse('EFAULT', 'outside of the buffer');
  if (direct && (buffer.addressModulo + bufferOffsetBytes) % memoryAlignBytes !== 0)
    throw refuse('EINVAL', `memory is not aligned to ${memoryAlignBytes} bytes`);
}

/** An opened device. All offsets and lengths are bytes; with `direct` they are whole logical blocks. */
export interface BlockDeviceHandle {
  readonly path: string;
  readonly kind: 'block' | 'file';
  /** When it was opened; a file may grow. */
  readonly sizeBytes: number;
  readonly logicalBlockBytes: number;
  readonly physicalBlockBytes: number;
  /** What direct I/O asks of memory addresses. */
  readonly memoryAlignBytes: number;
  /** False where the file system refused O_DIRECT: then everything goes through the page cache. */
  readonly direct: boolean;
  readonly readOnly: boolean;
  readonly closed: boolean;
  /** @throws {BlockIoError} with `short` set when the device ends before the transfer. */
  read(offsetBytes: number, buffer: IoBuffer, bufferOffsetBytes: number, lengthBytes: number): Promise<void>;
  write(offsetBytes: number, buffer: IoBuffer, bufferOffsetBytes: number, lengthBytes: number): Promise<void>;
  /** Everything written before is durable when it resolves. */
  flush(): Promise<void>;
  /** Gives the space back; what is read there afterwards is the device's affair (zeros from files). */
  discard(offsetBytes: number, lengthBytes: number): Promise<void>;
  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void>;
  /** Waits for its operations. A second call waits for the same. */
  close(): Promise<void>;
}

class OpenedDevice implements BlockDeviceHandle {
  #operations = 0;
  #closing: Promise<void> | null = null;
  #idle: (() => void) | null = null;

  constructor(
    private readonly engine: BlockEngine,
    readonly path: string,
    readonly target: NativeTarget,
    private readonly release: (device: OpenedDevice) => void,
  ) {}

  get kind(): 'block' | 'file' {
    return this.target.block ? 'block' : 'file';
  }
  get sizeBytes(): number {
    return this.target.sizeBytes;
  }
  get logicalBlockBytes(): number {
    return this.target.logicalBlockBytes;
  }
  get physicalBlockBytes(): number {
    return this.target.physicalBlockBytes;
  }
  get memoryAlignBytes(): number {
    return this.target.memoryAlignBytes;
  }
  get direct(): boolean {
    return this.target.direct;
  }
  get readOnly(): boolean {
    return this.target.readOnly;
  }
  get closed(): boolean {
    return this.#closing !== null;
  }

  read(offsetBytes: number, buffer: IoBuffer, bufferOffsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('read', this, offsetBytes, buffer, bufferOffsetBytes, lengthBytes);
  }
  write(offsetBytes: number, buffer: IoBuffer, bufferOffsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('write', this, offsetBytes, buffer, bufferOffsetBytes, lengthBytes);
  }
  flush(): Promise<void> {
    return this.engine.start('flush', this, 0, null, 0, 0);
  }
  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('discard', this, offsetBytes, null, 0, lengthBytes);
  }
  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('writeZeroes', this, offsetBytes, null, 0, lengthBytes);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }
  async #close(): Promise<void> {
    if (this.#operations > 0)
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    this.release(this);
  }

  /** @internal */
  began(): void {
    this.#operations++;
  }
  /** @internal */
  ended(): void {
    this.#operations--;
    if (this.#operations === 0) this.#idle?.();
  }
}

function wholeNumber(name: string, value: number, min: number, max: number): number {
  if (!Number.isInteger(value) || value < min || value > max)
    throw new RangeError(`${name} is a whole number from ${min} to ${max}, not ${String(value)}`);
  return value;
}
