import type { FsError } from '../common/errors.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { TransportAddress } from './link.js';

/**
 * What RDMA links need of verbs, and no more: one device with the page pool registered on it, reliable connected queue pairs made
 * through the connection manager, memory windows of type 2. `rdma-verbs.ts` is it over node-rdma-cm, `memory-verbs.ts` in memory.
 *
 * Contract for implementations:
 * - Work requests of a queue run in the order in which they were queued; completions come in that order. A signalled one
 *   completes exactly once; one that is not signalled completes only if it fails.
 * - After the first failure nothing more of that queue is executed; what was outstanding completes as 'flushed'.
 * - Nothing is called back from inside a call. After `close` of a queue nothing is called back at all and no local memory is read or
 *   written. Windows bound on it are closed before it; a closed window is open to nobody.
 * - An invalidate that has completed: no access through the window lands or reads any more.
 */
export interface VerbsPort {
  /** The device's name: 'mlx5_0', 'rxe0'. */
  readonly name: string;
  readonly limits: VerbsLimits;
  /** What a peer names for the first byte of the pool, where a window lets it. */
  readonly poolAddress: number;
  /** IPv4 addresses by which the device is reached. */
  readonly hosts: readonly string[];
  /** A port of it is up. */
  readonly usable: boolean;
  /** Set by whoever opened it: the device is gone, once. Its queues have ended by then, or end with it. */
  onRemoved: ((error: FsError) => void) | null;
  /** Registered memory of its own, for messages. */
  allocate(lengthBytes: number): VerbsMemory;
  /** @throws {FsError} notSupported, deviceError. */
  allocateWindow(): VerbsWindow;
  /** Port 0 takes any. @throws {FsError} identityTaken, invalidArgument. */
  listen(address: TransportAddress, onRequest: (request: VerbsRequest) => void): VerbsListener;
  /** @throws {FsError} unreachable; VerbsRejected when the other side said no. Aborting leaves nothing behind. */
  connect(address: TransportAddress, setup: VerbsSetup, signal: AbortSignal): Promise<VerbsConnected>;
  /** Queues, windows, memory, listeners, the device: everything, at once. */
  close(): void;
}

export interface VerbsLimits {
  /** Memory windows of type 2. */
  readonly windows: boolean;
  readonly windowsMax: number;
  /** Local segments in one write or read. */
  readonly segmentsMax: number;
}

export interface VerbsMemory {
  readonly bytes: Uint8Array;
  close(): void;
}

export interface VerbsWindow {
  /** Of the latest bind, once that was queued. */
  readonly key: number;
  close(): void;
}

export interface VerbsListener {
  readonly address: TransportAddress;
  close(): void;
}

/** A queue pair to be: its sizes, what goes with the connection's first packet, and who prepares it before that leaves. */
export interface VerbsSetup {
  readonly sendsMax: number;
  readonly receivesMax: number;
  readonly inlineBytes: number;
  readonly privateData: Uint8Array;
  /** Sets the queue's events and posts its first receives. */
  readonly prepare: (queue: VerbsQueue) => void;
}

export interface VerbsConnected {
  readonly queue: VerbsQueue;
  /** The acceptor's, maybe with zeros behind it. */
  readonly privateData: Uint8Array;
}

export interface VerbsRequest {
  readonly privateData: Uint8Array;
  /** For logs. */
  readonly from: string;
  /** The queue may be used at once for what follows from the peer's first message; onClosed comes if the connection fails. */
  accept(setup: VerbsSetup): void;
  reject(privateData: Uint8Array): void;
}

export interface VerbsQueue {
  /** Work requests that fit now. */
  readonly sendsFree: number;
  readonly inlineBytesMax: number;
  events: VerbsEvents;
  receive(id: number, memory: VerbsMemory, offsetBytes: number, lengthBytes: number): void;
  /** Inline: the bytes are taken when it is posted. */
  send(
    id: number,
    memory: VerbsMemory,
    offsetBytes: number,
    lengthBytes: number,
    inline: boolean,
    signalled: boolean,
  ): void;
  write(id: number, local: readonly PoolSegment[], remoteAddress: number, key: number, signalled: boolean): void;
  read(id: number, local: readonly PoolSegment[], remoteAddress: number, key: number, signalled: boolean): void;
  bind(
    id: number,
    window: VerbsWindow,
    offsetBytes: number,
    lengthBytes: number,
    access: 'read' | 'write',
    signalled: boolean,
  ): void;
  invalidate(id: number, window: VerbsWindow, signalled: boolean): void;
  /** Hands over what was queued. @throws {FsError} deviceError: nothing may be believed of this queue any more. */
  post(): void;
  close(): void;
}

export interface VerbsEvents {
  /** Valid until it returns. */
  onCompletions(completions: VerbsCompletions): void;
  /** The peer disconnected, or the device is gone. Completions of what was outstanding may or may not come. */
  onClosed(error: FsError): void;
}

export interface VerbsCompletions {
  readonly count: number;
  id(index: number): number;
  /** Of a receive; else of a send, write, … */
  isReceive(index: number): boolean;
  /** 'success', or what went wrong in the verbs' words: 'remoteAccessError', 'retryExceeded', 'flushed', … */
  status(index: number): string;
  lengthBytes(index: number): number;
}

export type OpenVerbsPort = (pool: PagePool) => VerbsPort;
