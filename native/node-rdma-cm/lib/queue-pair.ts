import type { CompletionQueue } from './completion-queue.js';
import { RdmaError } from './errors.js';
import {
  type Access,
  accessBits,
  type LocalSegment,
  type MemoryRegion,
  type MemoryWindow,
  type ProtectionDomain,
  type RemoteSegment,
} from './memory.js';
import { type NativeAbi, type NativeQueuePair, native, nativeCall } from './native.js';
import { ReceiveArena } from './receive-arena.js';
import { type Segments, SegmentWriter } from './segment-writer.js';
import type { SharedReceiveQueue } from './shared-receive-queue.js';
import type { Completion } from './work-completion.js';

export interface QueuePairOptions {
  readonly protectionDomain: ProtectionDomain;
  readonly sendCompletions: CompletionQueue;
  /** The same as for sends unless said otherwise. */
  readonly receiveCompletions?: CompletionQueue;
  /** Receives come from there instead of from a queue of its own. */
  readonly sharedReceiveQueue?: SharedReceiveQueue;
  /** Requests outstanding in each queue; 128 unless said otherwise. */
  readonly maxSend?: number;
  readonly maxReceive?: number;
  /** Segments per request; 4 unless said otherwise. */
  readonly maxSendSegments?: number;
  readonly maxReceiveSegments?: number;
  /** Bytes that a request may carry inline; 0 unless said otherwise. The device may give more, `queuePair.maxInlineBytes` tells. */
  readonly maxInlineBytes?: number;
  /**
   * The watchdog: a signalled request that has no completion after so long puts the queue pair into error (`ETIMEDOUT`), which
   * brings all completions. 10,000 unless said otherwise; 0 switches it off.
   */
  readonly sendDeadlineMs?: number;
}

export interface RequestOptions {
  /** Comes back with the completion; 0 to 2^53 - 1, 0 unless said otherwise. */
  readonly id?: number;
  /**
   * Whether success yields a completion; true unless said otherwise. (The queue pair signals some unsignalled ones for itself,
   * invisibly, so that a queue of unsignalled requests doesn't fill up for ever.)
   */
  readonly signalled?: boolean;
  /** Begins only when all reads and atomics queued before it are done. */
  readonly fence?: boolean;
  /** Wakes a receiver that asked for solicited events only. */
  readonly solicited?: boolean;
  /** The bytes are copied when it is posted, so that the memory may be reused at once; at most `maxInlineBytes`. Sends and writes. */
  readonly inline?: boolean;
}

export type QueuePairState = 'initialized' | 'connected' | 'error' | 'closed';

/** Open ones, which may have transfers in flight: not to be collected, nor what they use, even if nobody holds anything of them. */
const open = new Set<QueuePair>();

const NO_OPTIONS: RequestOptions = {};

/**
 * A reliable connected queue pair. Requests are queued by the methods below, written into memory that the addon shares, and handed
 * over together by `post()`: one native call per batch. Completions arrive at its completion queues.
 *
 * Invariants: each signalled request and each receive yields exactly one completion, whatever happens, as long as the completion queue is
 * open; after the first failed request nothing more is executed; never more requests outstanding than the queues hold.
 * Fault model: the peer dies, refuses, has no receives, gave a wrong key; the device vanishes; a completion never comes (watchdog).
 */
export class QueuePair {
  readonly protectionDomain: ProtectionDomain;
  readonly sendCompletions: CompletionQueue;
  readonly receiveCompletions: CompletionQueue;
  readonly sharedReceiveQueue: SharedReceiveQueue | null;
  /** The device's number of it. */
  readonly number: number;
  readonly maxSend: number;
  readonly maxReceive: number;
  readonly maxSendSegments: number;
  readonly maxReceiveSegments: number;
  readonly maxInlineBytes: number;
  /** The first thing that went wrong: a failed request, the peer's disconnect, the device, the watchdog. */
  failure: RdmaError | null = null;
  /** Called once, when `failure` is set. Completions of what was outstanding follow, as `flushed`. */
  onFailure: ((failure: RdmaError) => void) | null = null;
  /** Free for the user's own object: completions name the queue pair. */
  data: unknown = null;
  /** @internal */ readonly native: NativeQueuePair;
  /** @internal */ readonly handle: number;
  readonly #abi: NativeAbi;
  readonly #state: Uint32Array;
  readonly #words: Uint32Array;
  readonly #doubles: Float64Array;
  readonly #bigs: BigUint64Array;
  readonly #segments: SegmentWriter;
  readonly #recordBytes: number;
  readonly #receives: ReceiveArena | null;
  readonly #sendDeadlineMs: number;
  #queued = 0;
  #watchdog: NodeJS.Timeout | null = null;
  #drained: (() => void)[] = [];
  #closed = false;

  /** @internal Use `connectionId.createQueuePair()`. */
  constructor(made: NativeQueuePair, options: QueuePairOptions, sendDeadlineMs: number) {
    const { abi } = native();
    this.#abi = abi;
    this.native = made;
    this.handle = made.handle;
    this.protectionDomain = options.protectionDomain;
    this.sendCompletions = options.sendCompletions;
    this.receiveCompletions = options.receiveCompletions ?? options.sendCompletions;
    this.sharedReceiveQueue = options.sharedReceiveQueue ?? null;
    this.number = made.number;
    this.maxSend = made.maxSend;
    this.maxReceive = made.maxReceive;
    this.maxSendSegments = made.maxSendSegments;
    this.maxReceiveSegments = made.maxReceiveSegments;
    this.maxInlineBytes = made.maxInlineBytes;
    this.#sendDeadlineMs = sendDeadlineMs;
    this.#state = new Uint32Array(made.state);
    this.#words = new Uint32Array(made.sends);
    this.#doubles = new Float64Array(made.sends);
    this.#bigs = new BigUint64Array(made.sends);
    this.#segments = new SegmentWriter(this.#words, this.#doubles, this.protectionDomain, this.maxSendSegments, abi);
    this.#recordBytes = abi.request.bytes + this.maxSendSegments * abi.segment.bytes;
    this.#receives =
      this.sharedReceiveQueue === null
        ? new ReceiveArena(made.receives, this.protectionDomain, this.maxReceive, this.maxReceiveSegments, abi)
        : null;
    this.protectionDomain.device.queuePairs.set(this.handle, this);
    open.add(this);
  }

  get label(): string {
    return `queue pair ${this.number}`;
  }
  get closed(): boolean {
    return this.#closed;
  }
  get state(): QueuePairState {
    if (this.#closed) return 'closed';
    const phase = this.#state[this.#abi.state.phase];
    return phase === this.#abi.state.phaseError
      ? 'error'
      : phase === this.#abi.state.phaseConnected
        ? 'connected'
        : 'initialized';
  }
  /** Posted and not known to be done; unsignalled requests count until a later one has completed. */
  get sendsOutstanding(): number {
    return this.#state[this.#abi.state.sendsOutstanding] as number;
  }
  get receivesOutstanding(): number {
    return this.#state[this.#abi.state.receivesOutstanding] as number;
  }
  /** How many more sends, writes, reads, … can be queued now. */
  get sendsFree(): number {
    return this.maxSend - this.sendsOutstanding - this.#queued;
  }
  get receivesFree(): number {
    return this.#receives === null ? 0 : this.maxReceive - this.receivesOutstanding - this.#receives.queued;
  }

  /** A message into the peer's next receive. */
  send(segments: Segments, options: RequestOptions = NO_OPTIONS): void {
    this.#request('send', segments, options);
    this.#commit();
  }
  /** With 32 bits that the receive's completion carries. */
  sendWithImmediate(segments: Segments, immediate: number, options: RequestOptions = NO_OPTIONS): void {
    checkWord('immediate', immediate);
    const at = this.#request('sendWithImmediate', segments, options);
    this.#words[(at + this.#abi.request.immediate) / 4] = immediate;
    this.#commit();
  }
  /** Invalidates a window of the peer's on arrival, before its receive completes. */
  sendWithInvalidate(segments: Segments, remoteKey: number, options: RequestOptions = NO_OPTIONS): void {
    checkWord('remoteKey', remoteKey);
    const at = this.#request('sendWithInvalidate', segments, options);
    this.#words[(at + this.#abi.request.immediate) / 4] = remoteKey;
    this.#commit();
  }
  /** Our bytes into the peer's memory. Completed: they have landed. */
  write(segments: Segments, remote: RemoteSegment, options: RequestOptions = NO_OPTIONS): void {
    const at = this.#request('write', segments, options);
    this.#remote(at, remote);
    this.#commit();
  }
  /** And a completion there: it consumes a receive, whose segments are not used. */
  writeWithImmediate(
    segments: Segments,
    remote: RemoteSegment,
    immediate: number,
    options: RequestOptions = NO_OPTIONS,
  ): void {
    checkWord('immediate', immediate);
    const at = this.#request('writeWithImmediate', segments, options);
    this.#remote(at, remote);
    this.#words[(at + this.#abi.request.immediate) / 4] = immediate;
    this.#commit();
  }
  /** The peer's bytes into our memory, which allows local write. */
  read(segments: Segments, remote: RemoteSegment, options: RequestOptions = NO_OPTIONS): void {
    const at = this.#request('read', segments, options);
    this.#remote(at, remote);
    this.#commit();
  }
  /** Atomic on 8 aligned bytes of the peer's: `swap` if they are `compare`. What they were before lands in `result`, 8 bytes. */
  compareAndSwap(
    result: LocalSegment,
    remote: RemoteSegment,
    compare: bigint,
    swap: bigint,
    options: RequestOptions = NO_OPTIONS,
  ): void {
    checkAtomic(result, remote, compare, swap);
    const at = this.#request('compareAndSwap', result, options);
    this.#remote(at, remote);
    this.#bigs[(at + this.#abi.request.compareAdd) / 8] = compare;
    this.#bigs[(at + this.#abi.request.swap) / 8] = swap;
    this.#commit();
  }
  /** Atomic on 8 aligned bytes of the peer's. What they were before lands in `result`, 8 bytes. */
  fetchAndAdd(result: LocalSegment, remote: RemoteSegment, add: bigint, options: RequestOptions = NO_OPTIONS): void {
    checkAtomic(result, remote, add, 0n);
    const at = this.#request('fetchAndAdd', result, options);
    this.#remote(at, remote);
    this.#bigs[(at + this.#abi.request.compareAdd) / 8] = add;
    this.#commit();
  }
  /**
   * Binds a window to a range of a region that allows `windowBind`, and returns the key (`window.key` from now on) for the peer: valid
   * once the bind has completed, so that a send queued behind it, in the same batch even, may tell. Bind only a window that isn't bound.
   */
  bindWindow(
    window: MemoryWindow,
    region: MemoryRegion,
    offsetBytes: number,
    lengthBytes: number,
    access: Pick<Access, 'remoteRead' | 'remoteWrite' | 'remoteAtomic'>,
    options: RequestOptions = NO_OPTIONS,
  ): number {
    if (window.protectionDomain !== this.protectionDomain || region.protectionDomain !== this.protectionDomain)
      throw new TypeError('the window or the region is of another protection domain');
    if (window.closed || region.closed)
      throw new RdmaError('EBADF', 'bindWindow', 'it is closed', {
        object: window.closed ? 'memory window' : 'memory region',
      });
    if (!(Number.isInteger(offsetBytes) && offsetBytes >= 0 && Number.isInteger(lengthBytes) && lengthBytes >= 1))
      throw new RangeError(`${lengthBytes} bytes at ${offsetBytes} are no range`);
    if (offsetBytes + lengthBytes > region.lengthBytes)
      throw new RangeError(
        `${lengthBytes} bytes at ${offsetBytes} are not inside of the region's ${region.lengthBytes}`,
      );
    const { request, access: bits } = this.#abi;
    const at = this.#request('bindWindow', null, options);
    const key = window.takeNextKey();
    this.#words[(at + request.remoteKey) / 4] = key;
    this.#words[(at + request.window) / 4] = window.slot;
    this.#words[(at + request.region) / 4] = region.slot;
    this.#doubles[(at + request.bindOffset) / 8] = offsetBytes;
    this.#doubles[(at + request.bindLength) / 8] = lengthBytes;
    this.#words[(at + request.bindAccess) / 4] = accessBits(access) & ~bits.localWrite;
    this.#commit();
    return key;
  }
  /** Ends the window's binding. Completed: no access through it lands any more. */
  invalidateLocal(window: MemoryWindow, options: RequestOptions = NO_OPTIONS): void {
    if (window.protectionDomain !== this.protectionDomain)
      throw new TypeError('the window is of another protection domain');
    if (window.closed) throw new RdmaError('EBADF', 'invalidateLocal', 'it is closed', { object: 'memory window' });
    const at = this.#request('invalidateLocal', null, options);
    this.#words[(at + this.#abi.request.remoteKey) / 4] = window.key;
    this.#commit();
  }
  /** Memory for a peer's message; null or no segments for a write with immediate. */
  receive(segments: Segments | null, id: number): void {
    this.#checkOpen('receive');
    if (this.#receives === null) throw new TypeError('receives are posted to the shared receive queue');
    if (this.receivesFree < 1 || !this.#receives.add(segments, id))
      throw new RdmaError('ENOBUFS', 'receive', `the queue holds ${this.maxReceive}`, { object: this.label });
  }

  /** Hands over what is queued: receives first. @throws {RdmaError} with `postedCount`; what was refused and what is behind it is dropped. */
  post(): void {
    this.#checkOpen('post');
    const receives = this.#receives?.queued ?? 0;
    const sends = this.#queued;
    this.#queued = 0;
    if (this.#receives !== null) this.#receives.queued = 0;
    if (receives > 0) nativeCall(this.label, () => this.native.postReceives(receives));
    if (sends > 0) nativeCall(this.label, () => this.native.postSends(sends));
    if (sends > 0 && this.#sendDeadlineMs > 0) this.#startWatchdog();
  }

  /** Everything outstanding completes as `flushed`, what is posted later too. Keeps `failure` as it is. */
  moveToError(): void {
    if (!this.#closed) nativeCall(this.label, () => this.native.moveToError());
  }

  /**
   * Moves it to error and resolves when nothing is outstanding: no transfer of ours lands any more. Receives in a shared queue
   * are not waited for. When the device doesn't bring the completions in time, the queue pair is closed, which does.
   * Somebody must take the completions: the event loop, or `poll`.
   */
  drain(timeoutMs = 5000): Promise<void> {
    if (!(timeoutMs > 0)) throw new RangeError(`timeoutMs ${timeoutMs} is no time`);
    if (this.#closed) return Promise.resolve();
    this.moveToError();
    if (this.idle) return Promise.resolve();
    const { looking } = this.protectionDomain.device;
    looking.add(this);
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.close(), timeoutMs);
      this.#drained.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  /** Ends it at once. What was outstanding completes as `flushed` at its completion queues; nothing lands after this has returned. */
  close(): void {
    if (this.#closed) return;
    nativeCall(this.label, () => this.native.close());
    this.#closed = true;
    open.delete(this);
    this.#stopWatchdog();
    // Its last completions still name it; then it is forgotten.
    this.protectionDomain.device.looking.add(this);
    this.look();
  }

  /** @internal */
  get idle(): boolean {
    return this.sendsOutstanding === 0 && this.receivesOutstanding === 0;
  }

  /** @internal After a batch of completions, or when none will come any more. */
  look(): void {
    const { device } = this.protectionDomain;
    const silent = this.sendCompletions.closed && this.receiveCompletions.closed;
    if (!this.idle && !silent) {
      if (this.#closed) this.#settleDrained();
      return;
    }
    device.looking.delete(this);
    if (this.#closed) device.queuePairs.delete(this.handle);
    this.#settleDrained();
  }

  /** @internal The first reason stays. */
  fail(failure: RdmaError): void {
    if (this.failure !== null || this.#closed) return;
    this.failure = failure;
    this.native.moveToError();
    this.onFailure?.(failure);
  }

  /** @internal */
  noteFailedWork(completion: Completion): void {
    if (completion.status === 'flushed') return;
    this.fail(
      new RdmaError('EIO', completion.operation, `${completion.status} (vendor error ${completion.vendorError})`, {
        object: this.label,
        workStatus: completion.status,
        workOperation: completion.operation,
      }),
    );
  }

  #settleDrained(): void {
    const waiting = this.#drained;
    this.#drained = [];
    for (const resolve of waiting) resolve();
  }

  #startWatchdog(): void {
    if (this.#watchdog !== null) return;
    const everyMs = Math.max(10, Math.floor(this.#sendDeadlineMs / 4));
    this.#watchdog = setInterval(() => this.#watch(), everyMs);
    this.#watchdog.unref();
  }
  #stopWatchdog(): void {
    if (this.#watchdog !== null) clearInterval(this.#watchdog);
    this.#watchdog = null;
  }
  #watch(): void {
    if (this.sendsOutstanding === 0) {
      this.#stopWatchdog();
      return;
    }
    const ageMs = this.native.oldestSendAgeMs();
    if (ageMs <= this.#sendDeadlineMs) return;
    // Not even the flush came: closing brings the completions.
    if (ageMs > 2 * this.#sendDeadlineMs && this.failure !== null) this.close();
    else
      this.fail(
        new RdmaError('ETIMEDOUT', 'watchdog', `a request has no completion after ${Math.round(ageMs)} ms`, {
          object: this.label,
        }),
      );
  }

  #checkOpen(operation: string): void {
    if (this.#closed) throw new RdmaError('EBADF', operation, 'it is closed', { object: this.label });
  }

  /** Writes what all requests have, and returns where; it counts when committed. */
  #request(operation: string, segments: Segments | null, options: RequestOptions): number {
    this.#checkOpen(operation);
    if (this.sendsFree < 1)
      throw new RdmaError('ENOBUFS', operation, `the queue holds ${this.maxSend}`, { object: this.label });
    const { request, flags, operations } = this.#abi;
    const id = options.id ?? 0;
    if (!Number.isSafeInteger(id) || id < 0) throw new RangeError(`id ${id} is not from 0 to 2^53 - 1`);
    const at = this.#queued * this.#recordBytes;
    const count = this.#segments.write(
      segments,
      at + request.bytes,
      operation === 'bindWindow' || operation === 'invalidateLocal',
    );
    let bits = 0;
    if (options.signalled !== false) bits |= flags.signalled;
    if (options.fence === true) bits |= flags.fence;
    if (options.solicited === true) bits |= flags.solicited;
    if (options.inline === true) {
      this.#checkInline(operation, segments);
      bits |= flags.inline;
    }
    const word = at / 4;
    this.#words[word + request.operation / 4] = operations[operation] as number;
    this.#words[word + request.flags / 4] = bits;
    this.#doubles[(at + request.id) / 8] = id;
    this.#words[word + request.segmentCount / 4] = count;
    return at;
  }

  #commit(): void {
    this.#queued++;
  }

  #remote(at: number, remote: RemoteSegment): void {
    const { address, key } = remote;
    if (!Number.isSafeInteger(address) || address < 0) throw new RangeError(`remote address ${address} is none`);
    checkWord('remote key', key);
    this.#doubles[(at + this.#abi.request.remoteAddress) / 8] = address;
    this.#words[(at + this.#abi.request.remoteKey) / 4] = key;
  }

  #checkInline(operation: string, segments: Segments | null): void {
    if (operation === 'read' || operation === 'compareAndSwap' || operation === 'fetchAndAdd' || segments === null)
      throw new TypeError(`${operation} can't be inline`);
    let lengthBytes = 0;
    if ('length' in segments) for (const segment of segments) lengthBytes += segment.lengthBytes;
    else lengthBytes = segments.lengthBytes;
    if (lengthBytes > this.maxInlineBytes)
      throw new RangeError(`${lengthBytes} bytes inline, this queue takes ${this.maxInlineBytes}`);
  }
}

function checkWord(name: string, value: number): void {
  if (!(Number.isInteger(value) && value >= 0 && value <= 0xffffffff))
    throw new RangeError(`${name} ${value} is not 32 bits`);
}

const U64_MAX = 0xffffffffffffffffn;

function checkAtomic(result: LocalSegment, remote: RemoteSegment, first: bigint, second: bigint): void {
  if (typeof first !== 'bigint' || typeof second !== 'bigint')
    throw new TypeError('the operands of an atomic operation are bigints');
  if (first < 0n || first > U64_MAX || second < 0n || second > U64_MAX)
    throw new RangeError('an operand is not 64 bits');
  if (result.lengthBytes !== 8) throw new RangeError('the result of an atomic operation has 8 bytes');
  if (remote.address % 8 !== 0) throw new RangeError('an atomic operation wants an address aligned to 8 bytes');
}
