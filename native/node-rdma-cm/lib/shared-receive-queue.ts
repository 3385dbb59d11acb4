import { wholeNumber } from './completion-queue.js';
import { RdmaError } from './errors.js';
import type { ProtectionDomain } from './memory.js';
import { type NativeReceiveQueue, native, nativeCall } from './native.js';
import { ReceiveArena } from './receive-arena.js';
import type { Segments } from './segment-writer.js';

export interface SharedReceiveQueueOptions {
  readonly maxReceive: number;
  /** Segments per receive; 1 unless said otherwise. */
  readonly maxSegments?: number;
}

/**
 * Receives for any number of queue pairs. Their completions arrive at each queue pair's `receiveCompletions`.
 * Receives that nobody consumed get no completion when it closes.
 */
export class SharedReceiveQueue {
  readonly protectionDomain: ProtectionDomain;
  readonly maxReceive: number;
  readonly maxSegments: number;
  /** @internal */ readonly native: NativeReceiveQueue;
  readonly #arena: ReceiveArena;
  readonly #onClose: () => void;
  #closed = false;

  /** @internal Use `protectionDomain.createSharedReceiveQueue()`. */
  constructor(domain: ProtectionDomain, options: SharedReceiveQueueOptions, onClose: () => void) {
    const { limits } = domain.device;
    const maxReceive = wholeNumber('maxReceive', options.maxReceive, 1, limits.maxSharedReceiveQueueWorkRequests);
    const maxSegments = wholeNumber('maxSegments', options.maxSegments ?? 1, 1, limits.maxSegments);
    this.protectionDomain = domain;
    this.#onClose = onClose;
    this.native = nativeCall('shared receive queue', () =>
      domain.native.createSharedReceiveQueue(maxReceive, maxSegments),
    );
    this.maxReceive = this.native.maxReceive;
    this.maxSegments = this.native.maxSegments;
    this.#arena = new ReceiveArena(this.native.receives, domain, this.maxReceive, this.maxSegments, native().abi);
  }

  get closed(): boolean {
    return this.#closed;
  }
  /** Posted and not yet consumed. */
  get outstanding(): number {
    return this.#closed ? 0 : this.native.outstanding;
  }

  /** Queues a receive until `post`. @throws {RdmaError} ENOBUFS when more than `maxReceive` are queued. */
  receive(segments: Segments | null, id: number): void {
    this.#checkOpen('receive');
    if (!this.#arena.add(segments, id))
      throw new RdmaError('ENOBUFS', 'receive', 'too many are queued', { object: 'shared receive queue' });
  }

  /** Hands over what is queued, in one native call. @throws {RdmaError} with `postedCount`; what it refused is dropped. */
  post(): void {
    this.#checkOpen('post');
    const count = this.#arena.queued;
    this.#arena.queued = 0;
    if (count > 0) nativeCall('shared receive queue', () => this.native.postReceives(count));
  }

  /** Once, when fewer than `count` receives are left: the device's async event `sharedReceiveQueueLimitReached`. */
  armLimit(count: number): void {
    this.#checkOpen('armLimit');
    nativeCall('shared receive queue', () => this.native.armLimit(wholeNumber('count', count, 1, this.maxReceive)));
  }

  /** Closes the queue pairs that use it, then itself. */
  close(): void {
    if (this.#closed) return;
    for (const queuePair of [...this.protectionDomain.device.queuePairs.values()])
      if (queuePair.sharedReceiveQueue === this) queuePair.close();
    this.#closed = true;
    nativeCall('shared receive queue', () => this.native.close());
    this.#onClose();
  }

  #checkOpen(operation: string): void {
    if (this.#closed) throw new RdmaError('EBADF', operation, 'it is closed', { object: 'shared receive queue' });
  }
}
