import type { Device } from './device.js';
import { RdmaError } from './errors.js';
import { type NativeAbi, type NativeCompletionQueue, native, nativeCall } from './native.js';
import type { QueuePair } from './queue-pair.js';
import type { Completion, Completions, Operation, WorkStatus } from './work-completion.js';

export interface CompletionQueueOptions {
  /**
   * Completions that it can hold: at least the sum of `maxSend` and `maxReceive` of the queue pairs that use it; making a queue pair
   * that could overrun it is refused.
   */
  readonly depth: number;
  /**
   * One call per batch, from the event loop. Null: nobody watches it; completions are taken by `poll` only.
   * What it throws is an uncaught exception, as in any event listener.
   */
  readonly onCompletions: ((completions: Completions) => void) | null;
  /** Completions per batch; 64 unless said otherwise, at most 4096. */
  readonly batchMax?: number;
  /**
   * For how many µs the event loop may look for a completion before it sleeps, while requests are outstanding and as far as it has
   * paid before; 0 (the default) to 1000. Costs processor time, saves the wake-up.
   */
  readonly spinUsMax?: number;
}

/**
 * A completion queue with its completion channel, watched by the event loop: armed, then polled once more, then slept on.
 * Keeps the process alive while queue pairs that use it are open; `unref` changes that.
 */
export class CompletionQueue {
  readonly device: Device;
  readonly depth: number;
  /** @internal */ readonly native: NativeCompletionQueue;
  readonly #batch: CompletionBatch;
  readonly #onClose: () => void;
  readonly #listener: CompletionQueueOptions['onCompletions'];
  #closed = false;

  /**
   * What the addon holds: weakly, and in a scope of its own, so that a queue that nobody uses any more can be collected, with
   * whatever its listener refers to. While queue pairs use it, these are held.
   */
  static #deliverTo(weak: WeakRef<CompletionQueue>): (count: number, errors: number) => void {
    return (count, errors) => {
      const queue = weak.deref();
      if (queue === undefined || queue.#closed) return;
      try {
        queue.#listener?.(queue.#take(count, errors));
      } finally {
        queue.#look();
      }
    };
  }

  /** @internal Use `device.createCompletionQueue()`. */
  constructor(device: Device, options: CompletionQueueOptions, onClose: () => void) {
    const depth = wholeNumber('depth', options.depth, 1, device.limits.maxCompletionQueueDepth);
    const batchMax = wholeNumber('batchMax', options.batchMax ?? 64, 1, 4096);
    const spinUsMax = wholeNumber('spinUsMax', options.spinUsMax ?? 0, 0, 1000);
    const listener = options.onCompletions;
    if (listener !== null && typeof listener !== 'function') throw new TypeError('onCompletions is a function or null');
    this.device = device;
    this.#onClose = onClose;
    this.#listener = listener;
    const deliver = CompletionQueue.#deliverTo(new WeakRef(this));
    this.native = nativeCall('completion queue', () =>
      device.native.createCompletionQueue(depth, batchMax, listener === null ? -1 : spinUsMax, deliver),
    );
    this.depth = this.native.depth;
    this.#batch = new CompletionBatch(this.native.completions, native().abi, device.queuePairs);
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Takes a batch now, looking for at most so many µs (0: once) without letting go of the thread. For benchmarks, and for
   * threads that do nothing else; the listener, if there is one, doesn't see these.
   */
  poll(maxWaitUs = 0): Completions {
    this.#checkOpen();
    this.#look();
    const result = nativeCall('completion queue', () =>
      this.native.poll(wholeNumber('maxWaitUs', maxWaitUs, 0, 60_000_000)),
    );
    return this.#take(result & 0xffff, Math.floor(result / 65536));
  }

  /** Whether open queue pairs on it keep the process alive. */
  ref(): this {
    this.native.setReferenced(true);
    return this;
  }
  unref(): this {
    this.native.setReferenced(false);
    return this;
  }

  /** Closes the queue pairs that use it, then itself. No completion is delivered any more. */
  close(): void {
    if (this.#closed) return;
    for (const queuePair of [...this.device.queuePairs.values()])
      if (queuePair.sendCompletions === this || queuePair.receiveCompletions === this) queuePair.close();
    this.#closed = true;
    nativeCall('completion queue', () => this.native.close());
    this.#onClose();
    this.#look();
  }

  /** Queue pairs that are drained or closed wait for their last completions. */
  #look(): void {
    const { looking } = this.device;
    if (looking.size > 0) for (const queuePair of [...looking]) queuePair.look();
  }

  #checkOpen(): void {
    if (this.#closed) throw new RdmaError('EBADF', 'poll', 'it is closed', { object: 'completion queue' });
  }

  #take(count: number, errors: number): Completions {
    const batch = this.#batch;
    batch.count = count;
    batch.errorCount = errors;
    if (errors > 0) {
      for (let index = 0; index < count; index++)
        if (!batch.ok(index)) batch.queuePair(index)?.noteFailedWork(batch.at(index));
    }
    return batch;
  }
}

class CompletionBatch implements Completions {
  count = 0;
  errorCount = 0;
  readonly #words: Uint32Array;
  readonly #doubles: Float64Array;
  readonly #queuePairs: ReadonlyMap<number, QueuePair>;
  readonly #abi: NativeAbi;
  /** In words. */
  readonly #stride: number;
  readonly #statusAt: number;
  readonly #idAt: number;

  constructor(arena: ArrayBuffer, abi: NativeAbi, queuePairs: ReadonlyMap<number, QueuePair>) {
    this.#words = new Uint32Array(arena);
    this.#doubles = new Float64Array(arena);
    this.#queuePairs = queuePairs;
    this.#abi = abi;
    this.#stride = abi.completion.bytes / 4;
    this.#statusAt = abi.completion.status / 4;
    this.#idAt = abi.completion.id / 8;
  }

  id(index: number): number {
    return this.#doubles[this.#index(index) * (this.#stride / 2) + this.#idAt] as number;
  }
  ok(index: number): boolean {
    return this.#words[this.#index(index) * this.#stride + this.#statusAt] === 0;
  }
  status(index: number): WorkStatus {
    return (this.#abi.statusNames[this.#word(index, this.#abi.completion.status)] ?? 'generalError') as WorkStatus;
  }
  operation(index: number): Operation {
    return this.#abi.operationNames[this.#word(index, this.#abi.completion.operation)] as Operation;
  }
  queuePair(index: number): QueuePair | null {
    return this.#queuePairs.get(this.#word(index, this.#abi.completion.queuePair)) ?? null;
  }
  lengthBytes(index: number): number {
    return this.#word(index, this.#abi.completion.length);
  }
  immediate(index: number): number | null {
    const { completion } = this.#abi;
    return this.#word(index, completion.flags) & completion.hasImmediate
      ? this.#word(index, completion.immediate)
      : null;
  }
  invalidatedKey(index: number): number | null {
    const { completion } = this.#abi;
    return this.#word(index, completion.flags) & completion.hasInvalidatedKey
      ? this.#word(index, completion.invalidatedKey)
      : null;
  }
  at(index: number): Completion {
    return {
      id: this.id(index),
      status: this.status(index),
      operation: this.operation(index),
      queuePair: this.queuePair(index),
      lengthBytes: this.lengthBytes(index),
      immediate: this.immediate(index),
      invalidatedKey: this.invalidatedKey(index),
      vendorError: this.#word(index, this.#abi.completion.vendorError),
    };
  }
  *[Symbol.iterator](): Iterator<Completion> {
    for (let index = 0; index < this.count; index++) yield this.at(index);
  }

  #index(index: number): number {
    if (!(index >= 0 && index < this.count)) throw new RangeError(`completion ${index} of ${this.count}`);
    return index;
  }
  #word(index: number, atBytes: number): number {
    return this.#words[this.#index(index) * this.#stride + atBytes / 4] as number;
  }
}

/** @internal */
export function wholeNumber(name: string, value: number, min: number, max: number): number {
  if (typeof value !== 'number') throw new TypeError(`${name} is a number`);
  if (!Number.isInteger(value) || value < min || value > max)
    throw new RangeError(`${name} ${value} is not from ${min} to ${max}`);
  return value;
}
