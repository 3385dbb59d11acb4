import { isIP } from 'node:net';
import { getSystemErrorName } from 'node:util';
import { wholeNumber } from './completion-queue.js';
import { listDevices } from './device.js';
import { doAll, RdmaError } from './errors.js';
import {
  type NativeAddress,
  type NativeCmEvent,
  type NativeConnectionId,
  type NativeConnectParameters,
  type NativeEventChannel,
  native,
  nativeCall,
} from './native.js';
import { QueuePair, type QueuePairOptions } from './queue-pair.js';

export type Address = NativeAddress;

/** What both sides say when a connection is made. */
export interface ConnectOptions {
  readonly queuePair: QueuePair;
  /** `CONNECT_DATA_BYTES_MAX` for connect, `ACCEPT_DATA_BYTES_MAX` for accept. The peer gets it padded with zeros to that. */
  readonly privateData?: Uint8Array;
  /** Reads and atomics that the peer may have in flight to us; as many as the device allows unless said otherwise. */
  readonly responderResources?: number;
  /** Reads and atomics that we may have in flight to the peer; cut to what the peer's `responderResources` allow. */
  readonly initiatorDepth?: number;
  /** How often a packet without answer is sent again, 0 to 7; 5 unless said otherwise. */
  readonly retryCount?: number;
  /** How often we try again when the peer has no receive, 0 to 6; 5 unless said otherwise. 7 means for ever, and is refused. */
  readonly rnrRetryCount?: number;
  /** How long the peer waits before it tries again when we have no receive, as the verbs number it, 1 to 31; 12 (0.64 ms) unless said otherwise. */
  readonly minRnrTimer?: number;
  /** Until it is established; 10,000 unless said otherwise. */
  readonly timeoutMs?: number;
}

export const CONNECT_DATA_BYTES_MAX = 56;
export const ACCEPT_DATA_BYTES_MAX = 196;
export const REJECT_DATA_BYTES_MAX = 148;

export interface Established {
  /** Of the one who accepted; empty on his own side. */
  readonly privateData: Uint8Array;
  readonly responderResources: number;
  readonly initiatorDepth: number;
}

/** A peer wants to connect. Answer with `accept` or `reject`, or `close` the id. */
export interface ConnectionRequest {
  readonly id: ConnectionId;
  readonly privateData: Uint8Array;
  /** What `accept` should offer at most, from our side. */
  readonly responderResources: number;
  readonly initiatorDepth: number;
  readonly retryCount: number;
  readonly rnrRetryCount: number;
}

/** Every event of the connection manager. `status` is 0 or what the manager says: a negative errno, or a reject reason. */
export type CmEvent =
  | { readonly type: 'addressResolved' }
  | { readonly type: 'addressError'; readonly status: number }
  | { readonly type: 'routeResolved' }
  | { readonly type: 'routeError'; readonly status: number }
  | { readonly type: 'connectRequest'; readonly request: ConnectionRequest }
  | { readonly type: 'connectError'; readonly status: number }
  | { readonly type: 'unreachable'; readonly status: number }
  | { readonly type: 'rejected'; readonly status: number; readonly privateData: Uint8Array }
  | ({ readonly type: 'established' } & Established)
  | { readonly type: 'disconnected'; readonly status: number }
  /** The device goes: close everything on it. */
  | { readonly type: 'deviceRemoval' }
  | { readonly type: 'multicastJoin' | 'multicastError'; readonly status: number }
  | { readonly type: 'addressChange'; readonly status: number }
  /** The connection's number may be used again. */
  | { readonly type: 'timewaitExit' };

/** Channels with open ids: not to be collected, even if nobody holds anything of them. */
const busy = new Set<EventChannel>();

const EMPTY = new Uint8Array(0);
const TIMEOUT_MS_DEFAULT = 10_000;

/**
 * The event channel of librdmacm: ids are made on it, the event loop watches it. Keeps the process alive while ids are open;
 * `unref` changes that. One is enough for all of a thread's connections.
 */
export class EventChannel {
  readonly #native: NativeEventChannel;
  readonly #ids = new Map<number, ConnectionId>();
  #closed = false;

  /** @throws {RdmaError} that names what is missing where there is no RDMA. */
  constructor() {
    // What librdmacm itself says would not name what is missing.
    listDevices();
    const weak = new WeakRef(this);
    try {
      this.#native = native().createEventChannel((event) => {
        const channel = weak.deref();
        if (channel !== undefined) channel.#dispatch(event);
      });
    } catch (cause) {
      throw new RdmaError(
        'ENODEV',
        'rdma_create_event_channel',
        "RDMA connections can't be made here: the kernel module rdma_ucm is not loaded",
        { missing: 'module', cause },
      );
    }
  }

  get closed(): boolean {
    return this.#closed;
  }

  createId(): ConnectionId {
    if (this.#closed) throw new RdmaError('EBADF', 'rdma_create_id', 'it is closed', { object: 'event channel' });
    return this.#adopt(nativeCall('event channel', () => this.#native.createId()));
  }

  ref(): this {
    this.#native.setReferenced(true);
    return this;
  }
  unref(): this {
    this.#native.setReferenced(false);
    return this;
  }

  /** Closes its ids, then itself. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    doAll([
      ...[...this.#ids.values()].map((id) => () => id.close()),
      () => nativeCall('event channel', () => this.#native.close()),
    ]);
  }

  #adopt(made: NativeConnectionId): ConnectionId {
    const { handle } = made;
    const id = new ConnectionId(made, () => {
      this.#ids.delete(handle);
      if (this.#ids.size === 0) busy.delete(this);
    });
    this.#ids.set(handle, id);
    busy.add(this);
    return id;
  }

  #dispatch(event: NativeCmEvent): void {
    const id = this.#ids.get(event.id);
    if (event.newId !== undefined) {
      const { newId } = event;
      if (id === undefined || this.#closed) newId.close();
      else
        id.handleEvent({
          type: 'connectRequest',
          request: {
            id: this.#adopt(newId),
            privateData: bytes(event),
            responderResources: event.responderResources ?? 0,
            initiatorDepth: event.initiatorDepth ?? 0,
            retryCount: event.retryCount ?? 0,
            rnrRetryCount: event.rnrRetryCount ?? 0,
          },
        });
      return;
    }
    if (id === undefined) return;
    const { type, status } = event;
    switch (type) {
      case 'established':
        id.handleEvent({
          type,
          privateData: bytes(event),
          responderResources: event.responderResources ?? 0,
          initiatorDepth: event.initiatorDepth ?? 0,
        });
        break;
      case 'rejected':
        id.handleEvent({ type, status, privateData: bytes(event) });
        break;
      default:
        id.handleEvent({ type, status } as CmEvent);
    }
  }
}

function bytes(event: NativeCmEvent): Uint8Array {
  return event.privateData === undefined ? EMPTY : new Uint8Array(event.privateData);
}

interface Waiting {
  readonly operation: string;
  readonly success: 'addressResolved' | 'routeResolved' | 'established';
  readonly resolve: (event: CmEvent) => void;
  readonly reject: (error: RdmaError) => void;
  readonly timer: NodeJS.Timeout;
}

/**
 * An id of the connection manager: a listener, or one end of a connection.
 *
 * Connecting: `resolveAddress`, `resolveRoute`, `createQueuePair`, post receives, `connect`. Accepting: `bind`, `listen`, and for each
 * 'connectRequest' `createQueuePair` on the request's id, post receives, `accept`.
 * One operation at a time. Each promise settles: by an event, at its deadline (ETIMEDOUT), or by `close` (ECANCELED).
 */
export class ConnectionId {
  /** Every event, before the promises that wait for it settle. */
  onEvent: ((event: CmEvent) => void) | null = null;
  /** @internal */ readonly native: NativeConnectionId;
  readonly #onClose: () => void;
  #waiting: Waiting | null = null;
  #queuePair: QueuePair | null = null;
  #state: 'idle' | 'connected' | 'disconnected' | 'closed' = 'idle';
  #target: string | null = null;

  /** @internal Use `channel.createId()`. */
  constructor(made: NativeConnectionId, onClose: () => void) {
    this.native = made;
    this.#onClose = onClose;
  }

  get closed(): boolean {
    return this.#state === 'closed';
  }
  get connected(): boolean {
    return this.#state === 'connected';
  }
  get queuePair(): QueuePair | null {
    return this.#queuePair;
  }
  /** Known after `resolveAddress` and in a connection request, else null. Open the device by it. */
  get deviceName(): string | null {
    return this.closed ? null : this.native.deviceName;
  }
  get portNumber(): number {
    return this.closed ? 0 : this.native.portNumber;
  }
  get localAddress(): Address | null {
    return this.closed ? null : this.native.localAddress;
  }
  get remoteAddress(): Address | null {
    return this.closed ? null : this.native.remoteAddress;
  }

  /** Of an operation's packets: IP type of service. Before resolving. */
  setTypeOfService(value: number): void {
    this.#call('rdma_set_option', () => this.native.setOption('typeOfService', wholeNumber('value', value, 0, 255)));
  }
  setReuseAddress(reuse: boolean): void {
    this.#call('rdma_set_option', () => this.native.setOption('reuseAddress', reuse ? 1 : 0));
  }
  /** How long a packet may stay without an answer: 4.096 µs × 2^exponent. Before the queue pair connects. */
  setAckTimeout(exponent: number): void {
    this.#call('rdma_set_option', () => this.native.setOption('ackTimeout', wholeNumber('exponent', exponent, 1, 31)));
  }

  /** @param host an IPv4 or IPv6 address of ours, '0.0.0.0' or '::' for all; @param port 0 for any, `localAddress` tells. */
  bind(host: string, port: number): void {
    checkAddress(host, port, 0);
    this.#target = `${host}:${port}`;
    this.#call('rdma_bind_addr', () => this.native.bind(host, port));
  }

  /** From now on 'connectRequest' events come. */
  listen(backlog = 128): void {
    this.#call('rdma_listen', () => this.native.listen(wholeNumber('backlog', backlog, 1, 65_535)));
  }

  /** Finds the device. @param host an IPv4 or IPv6 address. @throws {RdmaError} EADDRNOTAVAIL, EHOSTUNREACH, ENODEV, ETIMEDOUT, … */
  async resolveAddress(
    host: string,
    port: number,
    options: { readonly sourceHost?: string; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    checkAddress(host, port, 1);
    if (options.sourceHost !== undefined) checkAddress(options.sourceHost, 1, 1);
    this.#target = `${host}:${port}`;
    const timeoutMs = wholeNumber('timeoutMs', options.timeoutMs ?? TIMEOUT_MS_DEFAULT, 1, 600_000);
    await this.#wait('rdma_resolve_addr', 'addressResolved', timeoutMs, () =>
      this.native.resolveAddress(options.sourceHost ?? null, host, port, timeoutMs),
    );
  }

  async resolveRoute(timeoutMs = TIMEOUT_MS_DEFAULT): Promise<void> {
    wholeNumber('timeoutMs', timeoutMs, 1, 600_000);
    await this.#wait('rdma_resolve_route', 'routeResolved', timeoutMs, () => this.native.resolveRoute(timeoutMs));
  }

  /**
   * A queue pair for this connection; receives may be posted to it at once. After the address was resolved, or in a connection
   * request. The protection domain is of a device opened under `deviceName`.
   */
  createQueuePair(options: QueuePairOptions): QueuePair {
    this.#checkOpen('createQueuePair');
    const { protectionDomain, sendCompletions, sharedReceiveQueue } = options;
    const { device } = protectionDomain;
    const receiveCompletions = options.receiveCompletions ?? sendCompletions;
    if (this.#queuePair !== null && !this.#queuePair.closed) throw new TypeError('the id has a queue pair');
    if (this.deviceName === null)
      throw new RdmaError('EINVAL', 'createQueuePair', 'the address is not resolved', { object: this.#label });
    if (device.name !== this.deviceName)
      throw new TypeError(`the protection domain is of ${device.name}, the connection goes through ${this.deviceName}`);
    if (sendCompletions.device !== device || receiveCompletions.device !== device)
      throw new TypeError('the completion queue is of another device object');
    if (sharedReceiveQueue !== undefined && sharedReceiveQueue.protectionDomain !== protectionDomain)
      throw new TypeError('the shared receive queue is of another protection domain');
    const { limits } = device;
    const sizes = {
      maxSend: wholeNumber('maxSend', options.maxSend ?? 128, 1, limits.maxWorkRequests),
      maxReceive: wholeNumber('maxReceive', options.maxReceive ?? 128, 1, limits.maxWorkRequests),
      maxSendSegments: wholeNumber('maxSendSegments', options.maxSendSegments ?? 4, 1, limits.maxSegments),
      maxReceiveSegments: wholeNumber('maxReceiveSegments', options.maxReceiveSegments ?? 4, 1, limits.maxSegments),
      maxInlineBytes: wholeNumber('maxInlineBytes', options.maxInlineBytes ?? 0, 0, 65_536),
    };
    const sendDeadlineMs = wholeNumber('sendDeadlineMs', options.sendDeadlineMs ?? 10_000, 0, 3_600_000);
    const made = this.#call('ibv_create_qp', () =>
      this.native.createQueuePair(
        protectionDomain.native,
        sendCompletions.native,
        receiveCompletions.native,
        sharedReceiveQueue?.native ?? null,
        sizes,
      ),
    );
    this.#queuePair = new QueuePair(made, options, sendDeadlineMs);
    return this.#queuePair;
  }

  /** @throws {RdmaError} ECONNREFUSED with `privateData` and `cmStatus` when rejected, EHOSTUNREACH, ETIMEDOUT, … */
  async connect(options: ConnectOptions): Promise<Established> {
    return await this.#establish('rdma_connect', options, CONNECT_DATA_BYTES_MAX, (queuePair, parameters) =>
      this.native.connect(queuePair.native, parameters),
    );
  }

  /** Resolves when the peer knows, too. */
  async accept(options: ConnectOptions): Promise<Established> {
    return await this.#establish('rdma_accept', options, ACCEPT_DATA_BYTES_MAX, (queuePair, parameters) =>
      this.native.accept(queuePair.native, parameters),
    );
  }

  /** Refuses a connection request; the peer gets the data padded with zeros. Then close the id. */
  reject(privateData: Uint8Array = EMPTY): void {
    checkPrivateData(privateData, REJECT_DATA_BYTES_MAX);
    this.#call('rdma_reject', () => this.native.reject(privateData));
  }

  /**
   * Ends the connection. The queue pair goes to error, what is outstanding completes as `flushed`; 'disconnected' comes on both sides.
   * What the peer has not received yet is lost: exchange a goodbye first. Nothing when there is no connection.
   */
  disconnect(): void {
    if (this.#state !== 'connected') return;
    this.#state = 'disconnected';
    this.#queuePair?.moveToError();
    this.#call('rdma_disconnect', () => this.native.disconnect());
  }

  /** Ends it, and its queue pair. The peer sees a disconnect, or a reject if the connection was not made yet. */
  close(): void {
    if (this.#state === 'closed') return;
    this.#hangUp();
    this.#queuePair?.close();
    const label = this.#label;
    this.#state = 'closed';
    nativeCall(label, () => this.native.close());
    this.#onClose();
    this.#settle(
      new RdmaError('ECANCELED', this.#waiting?.operation ?? 'close', 'the id was closed', { object: label }),
    );
  }

  /** Where nobody can be told that it failed: then the peer's timeout ends it. */
  #hangUp(): void {
    try {
      this.disconnect();
    } catch (error) {
      if (!(error instanceof RdmaError)) throw error;
    }
  }

  /** @internal */
  handleEvent(event: CmEvent): void {
    const { type } = event;
    if (type === 'established') this.#state = 'connected';
    if (type === 'disconnected') {
      if (this.#state === 'connected') {
        this.#queuePair?.fail(
          new RdmaError('ECONNRESET', type, 'the peer disconnected', { object: this.#queuePair.label }),
        );
        // Answers the peer's request, so that he needn't wait for his timeout.
        this.#hangUp();
      }
    }
    if (type === 'deviceRemoval')
      this.#queuePair?.fail(new RdmaError('ENODEV', type, 'the device is gone', { object: this.#queuePair.label }));
    try {
      this.onEvent?.(event);
    } finally {
      const waiting = this.#waiting;
      if (waiting !== null) {
        if (type === waiting.success) this.#settle(null, event);
        else {
          const error = this.#errorOf(event, waiting.operation);
          if (error !== null) this.#settle(error);
        }
      }
    }
  }

  get #label(): string {
    return this.#target === null ? 'connection' : `connection ${this.#target}`;
  }

  #errorOf(event: CmEvent, operation: string): RdmaError | null {
    const object = this.#label;
    switch (event.type) {
      case 'addressError':
      case 'routeError':
        return new RdmaError(errnoOr('EHOSTUNREACH', event.status), operation, event.type, {
          object,
          cmStatus: event.status,
        });
      case 'unreachable':
        return new RdmaError(errnoOr('EHOSTUNREACH', event.status), operation, 'the peer does not answer', {
          object,
          cmStatus: event.status,
        });
      case 'connectError':
        return new RdmaError(errnoOr('ECONNABORTED', event.status), operation, 'the connection could not be made', {
          object,
          cmStatus: event.status,
        });
      case 'rejected':
        return new RdmaError('ECONNREFUSED', operation, `the peer refused, reason ${event.status}`, {
          object,
          cmStatus: event.status,
          privateData: event.privateData,
        });
      case 'disconnected':
        return new RdmaError('ECONNRESET', operation, 'the peer disconnected', { object });
      case 'deviceRemoval':
        return new RdmaError('ENODEV', operation, 'the device is gone', { object });
      default:
        return null;
    }
  }

  async #establish(
    operation: string,
    options: ConnectOptions,
    dataBytesMax: number,
    start: (queuePair: QueuePair, parameters: NativeConnectParameters) => void,
  ): Promise<Established> {
    const { queuePair } = options;
    if (queuePair !== this.#queuePair || queuePair.closed) throw new TypeError("the queue pair is not this id's");
    const { limits } = queuePair.protectionDomain.device;
    const privateData = options.privateData ?? EMPTY;
    checkPrivateData(privateData, dataBytesMax);
    const parameters: NativeConnectParameters = {
      privateData,
      responderResources: wholeNumber(
        'responderResources',
        options.responderResources ?? Math.min(limits.maxResponderResources, 255),
        0,
        255,
      ),
      initiatorDepth: wholeNumber(
        'initiatorDepth',
        options.initiatorDepth ?? Math.min(limits.maxInitiatorDepth, 255),
        0,
        255,
      ),
      retryCount: wholeNumber('retryCount', options.retryCount ?? 5, 0, 7),
      rnrRetryCount: wholeNumber('rnrRetryCount', options.rnrRetryCount ?? 5, 0, 6),
      minRnrTimer: wholeNumber('minRnrTimer', options.minRnrTimer ?? 12, 1, 31),
    };
    const timeoutMs = wholeNumber('timeoutMs', options.timeoutMs ?? TIMEOUT_MS_DEFAULT, 1, 600_000);
    const event = await this.#wait(operation, 'established', timeoutMs, () => start(queuePair, parameters));
    if (event.type !== 'established')
      throw new RdmaError('EPROTO', operation, `unexpected ${event.type}`, { object: this.#label });
    return {
      privateData: event.privateData,
      responderResources: event.responderResources,
      initiatorDepth: event.initiatorDepth,
    };
  }

  #wait(operation: string, success: Waiting['success'], timeoutMs: number, start: () => void): Promise<CmEvent> {
    return new Promise((resolve, reject) => {
      if (this.#waiting !== null) throw new TypeError(`${this.#waiting.operation} is not done yet`);
      this.#call(operation, start);
      const timer = setTimeout(
        () =>
          this.#settle(
            new RdmaError('ETIMEDOUT', operation, `nothing within ${timeoutMs} ms`, { object: this.#label }),
          ),
        timeoutMs + 100,
      );
      this.#waiting = { operation, success, resolve, reject, timer };
    });
  }

  #settle(error: RdmaError | null, event?: CmEvent): void {
    const waiting = this.#waiting;
    if (waiting === null) return;
    this.#waiting = null;
    clearTimeout(waiting.timer);
    if (error !== null) waiting.reject(error);
    else if (event !== undefined) waiting.resolve(event);
  }

  #call<T>(operation: string, call: () => T): T {
    this.#checkOpen(operation);
    return nativeCall(this.#label, call);
  }

  #checkOpen(operation: string): void {
    if (this.#state === 'closed') throw new RdmaError('EBADF', operation, 'it is closed', { object: this.#label });
  }
}

/** Most events carry a negative errno; a reject carries the reason of its own table. */
function errnoOr(code: string, status: number): string {
  return status < 0 && status > -200 ? getSystemErrorName(status) : code;
}

function checkAddress(host: string, port: number, portMin: number): void {
  if (typeof host !== 'string') throw new TypeError('the host is a string');
  if (isIP(host) === 0) throw new RangeError(`'${host}' is no IP address`);
  wholeNumber('port', port, portMin, 65_535);
}

function checkPrivateData(data: Uint8Array, max: number): void {
  if (!(data instanceof Uint8Array)) throw new TypeError('private data is an Uint8Array');
  if (data.byteLength > max) throw new RangeError(`${data.byteLength} bytes of private data, at most ${max} fit`);
}
