import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import path from 'node:path';
import {
  allocateMemory,
  type CompletionQueue,
  type Completions,
  type ConnectionId,
  type ConnectionRequest,
  Device,
  EventChannel,
  type LocalSegment,
  listDevices,
  type MemoryRegion,
  type MemoryWindow,
  type ProtectionDomain,
  type QueuePair,
  RdmaError,
} from 'node-rdma-cm';
import { FsError, type Reason } from '../common/errors.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { TransportAddress } from './link.js';
import { VerbsRejected } from './rdma-wire.js';
import type {
  VerbsCompletions,
  VerbsConnected,
  VerbsEvents,
  VerbsLimits,
  VerbsListener,
  VerbsMemory,
  VerbsPort,
  VerbsQueue,
  VerbsRequest,
  VerbsSetup,
  VerbsWindow,
} from './verbs-port.js';

/**
 * The verbs port over node-rdma-cm: one device, one protection domain, the pool registered in it for local use and for windows.
 * A completion queue per queue pair, so that an end is an end.
 */
export interface RdmaDeviceOptions {
  /** Null: the first there is. */
  readonly device: string | null;
  /** How long the event loop may look for completions before it sleeps. */
  readonly spinUsMax?: number;
}

const COMPLETIONS_PER_BATCH_MAX = 256;
/** 4.096 µs × 2^16 = 0.27 s without an answer, seven times: a dead peer is noticed within two seconds. */
const ACK_TIMEOUT_EXPONENT = 16;
const RETRIES = 6;
/** Credit makes it an exception; 7 would mean for ever. */
const RNR_RETRIES = 3;
const CONNECT_TIMEOUT_MS = 5000;
const SEGMENTS_MAX = 16;
const WORK_MARGIN = 16;
const VERBS_CLASS = '/sys/class/infiniband_verbs';
const DEVICE_LOOK_MS = 250;
const SPIN_US_DEFAULT = 20;

/** @throws {FsError} nativeMissing (no addon, no library), notSupported (no module, no device), deviceError. */
export function openRdmaPort(pool: PagePool, options: RdmaDeviceOptions): VerbsPort {
  try {
    return new RdmaPort(pool, options);
  } catch (error) {
    throw toFsError(error, 'fabric.rdma.open');
  }
}

class RdmaPort implements VerbsPort {
  readonly name: string;
  readonly limits: VerbsLimits;
  readonly poolAddress: number;
  onRemoved: ((error: FsError) => void) | null = null;
  readonly device: Device;
  readonly domain: ProtectionDomain;
  readonly poolRegion: MemoryRegion;
  readonly spinUsMax: number;
  readonly #channel: EventChannel;
  readonly #queues = new Set<RdmaQueue>();
  readonly #watch: NodeJS.Timeout | null;
  #removed = false;
  #closed = false;

  constructor(pool: PagePool, options: RdmaDeviceOptions) {
    const name = options.device ?? listDevices()[0]!.name;
    // Before it is opened: from then on its removal waits for us, who would find no entry to look at any more.
    const entry = verbsEntry(name);
    this.device = Device.open(name);
    try {
      this.name = name;
      this.spinUsMax = options.spinUsMax ?? SPIN_US_DEFAULT;
      this.domain = this.device.createProtectionDomain();
      this.poolRegion = this.domain.registerMemory(pool.buffer, {
        localWrite: true,
        windowBind: this.device.limits.windowsType2,
      });
      this.poolAddress = this.poolRegion.address;
      this.#channel = new EventChannel();
    } catch (error) {
      this.device.close();
      throw error;
    }
    const { windowsType2, maxWindows, maxSegments, maxSegmentsRead } = this.device.limits;
    this.limits = {
      windows: windowsType2,
      windowsMax: maxWindows,
      segmentsMax: Math.min(SEGMENTS_MAX, maxSegments, maxSegmentsRead === 0 ? maxSegments : maxSegmentsRead),
    };
    this.device.onAsyncEvent = ({ type }) => {
      if (type === 'deviceFatal') this.removed();
    };
    this.#watch = watchDevice(entry ?? verbsEntry(name), () => this.removed());
  }

  /** IPv4 addresses by which the device is reached. */
  get hosts(): readonly string[] {
    const found = new Set<string>();
    const netdevs = new Set<string>();
    for (const port of this.device.ports()) {
      for (const { gid, netdev } of port.gids) {
        const mapped = /^(?:::|0:0:0:0:0:)ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(gid);
        if (mapped !== null) found.add(mapped[1]!);
        if (netdev !== null) netdevs.add(netdev);
      }
    }
    for (const netdev of netdevs) {
      for (const { family, address } of networkInterfaces()[netdev] ?? []) if (family === 'IPv4') found.add(address);
    }
    return [...found];
  }

  get usable(): boolean {
    return this.device.ports().some(({ state }) => state === 'active');
  }

  removed(): void {
    if (this.#removed || this.#closed) return;
    this.#removed = true;
    const error = new FsError('deviceError', { op: 'fabric.rdma', object: this.name, detail: 'the device is gone' });
    // Its queue pairs hear of it by themselves; whoever is told here closes this port, the device with it.
    setImmediate(() => {
      if (!this.#closed) this.onRemoved?.(error);
    });
  }

  allocate(lengthBytes: number): VerbsMemory {
    return this.#call('fabric.rdma.register', () => {
      const region = this.domain.registerMemory(allocateMemory(lengthBytes), { localWrite: true });
      return new RdmaMemory(region);
    });
  }

  allocateWindow(): VerbsWindow {
    return this.#call('fabric.rdma.window', () => new RdmaWindow(this.domain.allocateWindow()));
  }

  listen(address: TransportAddress, onRequest: (request: VerbsRequest) => void): VerbsListener {
    return this.#call('fabric.listen', () => {
      const id = this.#channel.createId();
      try {
        id.bind(address.host, address.port);
        id.onEvent = (event) => {
          if (event.type === 'deviceRemoval') this.removed();
          else if (event.type === 'connectRequest') this.#request(event.request, onRequest);
        };
        id.listen();
        const port = id.localAddress?.port ?? address.port;
        return { address: { host: address.host, port }, close: () => letGo(() => id.close()) };
      } catch (error) {
        id.close();
        throw error;
      }
    });
  }

  #request(request: ConnectionRequest, onRequest: (request: VerbsRequest) => void): void {
    const { id } = request;
    const remote = id.remoteAddress;
    const from = remote === null ? 'unknown' : `${remote.host}:${remote.port}`;
    if (id.deviceName !== this.name || this.#closed) {
      id.close();
      return;
    }
    let answered = false;
    id.onEvent = (event) => {
      if (event.type === 'deviceRemoval') this.removed();
    };
    onRequest({
      privateData: request.privateData,
      from,
      reject: (privateData) => {
        answered = true;
        try {
          id.reject(privateData);
        } finally {
          id.close();
        }
      },
      accept: (setup) => {
        answered = true;
        const queue = this.#newQueue(id, setup);
        id.accept({ queuePair: queue.queuePair, privateData: setup.privateData, ...this.#retries() }).catch(
          (error: unknown) => queue.ended(toFsError(error, 'fabric.accept', from)),
        );
      },
    });
    if (!answered) id.close();
  }

  async connect(address: TransportAddress, setup: VerbsSetup, signal: AbortSignal): Promise<VerbsConnected> {
    const object = `${address.host}:${address.port}`;
    const id = this.#channel.createId();
    const onAbort = () => letGo(() => id.close());
    signal.addEventListener('abort', onAbort, { once: true });
    let queue: RdmaQueue | null = null;
    try {
      await id.resolveAddress(address.host, address.port, { timeoutMs: CONNECT_TIMEOUT_MS });
      if (id.deviceName !== this.name) {
        throw new FsError('unreachable', {
          op: 'fabric.dial',
          object,
          detail: `the way there is through ${id.deviceName ?? 'no RDMA device'}, not ${this.name}`,
        });
      }
      id.setAckTimeout(ACK_TIMEOUT_EXPONENT);
      await id.resolveRoute(CONNECT_TIMEOUT_MS);
      id.onEvent = (event) => {
        if (event.type === 'deviceRemoval') this.removed();
      };
      queue = this.#newQueue(id, setup);
      const established = await id.connect({
        queuePair: queue.queuePair,
        privateData: setup.privateData,
        timeoutMs: CONNECT_TIMEOUT_MS,
        ...this.#retries(),
      });
      signal.throwIfAborted();
      return { queue, privateData: established.privateData };
    } catch (error) {
      queue?.close();
      letGo(() => id.close());
      if (signal.aborted) throw signal.reason;
      if (error instanceof RdmaError && error.code === 'ECONNREFUSED') {
        throw new VerbsRejected(object, error.privateData, error);
      }
      throw toFsError(error, 'fabric.dial', object);
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  #retries() {
    return { retryCount: RETRIES, rnrRetryCount: RNR_RETRIES };
  }

  #newQueue(id: ConnectionId, setup: VerbsSetup): RdmaQueue {
    const queue = new RdmaQueue(this, id, setup, () => this.#queues.delete(queue));
    this.#queues.add(queue);
    setup.prepare(queue);
    return queue;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#watch !== null) clearInterval(this.#watch);
    for (const queue of [...this.#queues]) queue.close();
    letGo(() => this.#channel.close());
    letGo(() => this.device.close());
  }

  #call<T>(op: string, call: () => T): T {
    try {
      return call();
    } catch (error) {
      throw toFsError(error, op, this.name);
    }
  }
}

/**
 * Drivers that can't take a device from its users (soft-RoCE) tell nobody when it is removed: the removal waits, its verbs character device
 * gone already, until everybody has let go of it. So that is looked at.
 */
function watchDevice(entry: VerbsEntry | null, onGone: () => void): NodeJS.Timeout | null {
  if (entry === null) return null;
  const timer = setInterval(() => {
    if (!isGone(entry)) return;
    clearInterval(timer);
    onGone();
  }, DEVICE_LOOK_MS);
  return timer.unref();
}

/** In sysfs. Another device may get the same path, but not the same inode. */
interface VerbsEntry {
  readonly path: string;
  readonly inode: number;
}

function verbsEntry(name: string): VerbsEntry | null {
  try {
    const paths = readdirSync(VERBS_CLASS).map((entry) => path.join(VERBS_CLASS, entry));
    const found = paths.find((entry) => deviceOf(entry) === name);
    return found === undefined ? null : { path: found, inode: statSync(found).ino };
  } catch {
    // No such class: then there is nothing that could be seen to go.
    return null;
  }
}

function isGone({ path, inode }: VerbsEntry): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false })?.ino !== inode;
  } catch {
    // What can't be looked at is not known to be gone.
    return false;
  }
}

function deviceOf(entry: string): string | null {
  const file = path.join(entry, 'ibdev');
  return existsSync(file) ? readFileSync(file, 'utf8').trim() : null;
}

class RdmaMemory implements VerbsMemory {
  readonly bytes: Uint8Array;
  constructor(readonly region: MemoryRegion) {
    this.bytes = new Uint8Array(region.buffer, region.offsetBytes, region.lengthBytes);
  }
  close(): void {
    letGo(() => this.region.close());
  }
}

class RdmaWindow implements VerbsWindow {
  constructor(readonly window: MemoryWindow) {}
  get key(): number {
    return this.window.key;
  }
  close(): void {
    letGo(() => this.window.close());
  }
}

/** A device that is going refuses some goodbyes; what it had is freed with its context. */
function letGo(step: () => void): void {
  try {
    step();
  } catch (error) {
    if (!(error instanceof RdmaError)) throw error;
  }
}

class RdmaQueue implements VerbsQueue {
  events: VerbsEvents = { onCompletions: () => undefined, onClosed: () => undefined };
  readonly queuePair: QueuePair;
  readonly #completionQueue: CompletionQueue;
  readonly #pool: MemoryRegion;
  readonly #id: ConnectionId;
  readonly #batch = new Batch();
  readonly #onGone: () => void;
  #closed = false;
  #ending = false;

  constructor(port: RdmaPort, id: ConnectionId, setup: VerbsSetup, onGone: () => void) {
    this.#id = id;
    this.#pool = port.poolRegion;
    this.#onGone = onGone;
    const { sendsMax, receivesMax, inlineBytes } = setup;
    this.#completionQueue = port.device.createCompletionQueue({
      depth: sendsMax + receivesMax + WORK_MARGIN,
      batchMax: COMPLETIONS_PER_BATCH_MAX,
      spinUsMax: port.spinUsMax,
      onCompletions: (completions) => this.#deliver(completions),
    });
    try {
      this.queuePair = id.createQueuePair({
        protectionDomain: port.domain,
        sendCompletions: this.#completionQueue,
        maxSend: sendsMax,
        maxReceive: receivesMax,
        maxSendSegments: port.limits.segmentsMax,
        maxReceiveSegments: 1,
        maxInlineBytes: inlineBytes,
        // The link holds the watch.
        sendDeadlineMs: 0,
      });
    } catch (error) {
      this.#completionQueue.close();
      throw error;
    }
    this.queuePair.onFailure = (failure) => this.ended(toFsError(failure, 'fabric.link'));
  }

  get sendsFree(): number {
    return this.queuePair.sendsFree;
  }
  get inlineBytesMax(): number {
    return this.queuePair.maxInlineBytes;
  }

  #deliver(completions: Completions): void {
    if (this.#closed) return;
    this.#batch.of = completions;
    this.events.onCompletions(this.#batch);
  }

  /** It failed, or the peer is gone: first what has completed, which may say more, then the end. */
  ended(error: FsError): void {
    if (this.#ending) return;
    this.#ending = true;
    setImmediate(() => {
      while (!this.#closed) {
        const completions = this.#completionQueue.poll();
        if (completions.count === 0) break;
        this.#deliver(completions);
      }
      if (!this.#closed) this.events.onClosed(error);
    });
  }

  receive(id: number, memory: VerbsMemory, offsetBytes: number, lengthBytes: number): void {
    this.queuePair.receive({ region: (memory as RdmaMemory).region, offsetBytes, lengthBytes }, id);
  }

  send(
    id: number,
    memory: VerbsMemory,
    offsetBytes: number,
    lengthBytes: number,
    inline: boolean,
    signalled: boolean,
  ): void {
    const segment = { region: (memory as RdmaMemory).region, offsetBytes, lengthBytes };
    this.queuePair.send(segment, { id, inline, signalled });
  }

  write(id: number, local: readonly PoolSegment[], address: number, key: number, signalled: boolean): void {
    this.queuePair.write(this.#segments(local), { address, key }, { id, signalled });
  }

  read(id: number, local: readonly PoolSegment[], address: number, key: number, signalled: boolean): void {
    this.queuePair.read(this.#segments(local), { address, key }, { id, signalled });
  }

  #segments(local: readonly PoolSegment[]): LocalSegment[] {
    return local.map(({ offsetBytes, lengthBytes }) => ({ region: this.#pool, offsetBytes, lengthBytes }));
  }

  bind(
    id: number,
    window: VerbsWindow,
    offsetBytes: number,
    lengthBytes: number,
    access: 'read' | 'write',
    signalled: boolean,
  ): void {
    const allowed = access === 'read' ? { remoteRead: true } : { remoteWrite: true };
    this.queuePair.bindWindow((window as RdmaWindow).window, this.#pool, offsetBytes, lengthBytes, allowed, {
      id,
      signalled,
    });
  }

  invalidate(id: number, window: VerbsWindow, signalled: boolean): void {
    this.queuePair.invalidateLocal((window as RdmaWindow).window, { id, signalled });
  }

  post(): void {
    try {
      this.queuePair.post();
    } catch (error) {
      throw toFsError(error, 'fabric.rdma.post');
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#onGone();
    letGo(() => this.#id.disconnect());
    letGo(() => this.#id.close());
    letGo(() => this.queuePair.close());
    // This may be inside of its own callback.
    setImmediate(() => letGo(() => this.#completionQueue.close()));
  }
}

class Batch implements VerbsCompletions {
  of!: Completions;
  get count(): number {
    return this.of.count;
  }
  id(index: number): number {
    return this.of.id(index);
  }
  isReceive(index: number): boolean {
    const operation = this.of.operation(index);
    return operation === 'receive' || operation === 'receiveWriteWithImmediate';
  }
  status(index: number): string {
    return this.of.ok(index) ? 'success' : this.of.status(index);
  }
  lengthBytes(index: number): number {
    return this.of.lengthBytes(index);
  }
}

const REASON_OF_CODE: Readonly<Record<string, Reason>> = {
  EADDRINUSE: 'identityTaken',
  EADDRNOTAVAIL: 'unreachable',
  ECONNABORTED: 'connectionLost',
  ECONNREFUSED: 'unreachable',
  ECONNRESET: 'connectionLost',
  EHOSTUNREACH: 'unreachable',
  ENETUNREACH: 'unreachable',
  ENODEV: 'deviceError',
  EOPNOTSUPP: 'notSupported',
  ERR_DLOPEN_FAILED: 'nativeMissing',
  ETIMEDOUT: 'unreachable',
};

function toFsError(error: unknown, op: string, object?: string): FsError {
  if (!(error instanceof RdmaError)) return FsError.from(error, op, object);
  const missing = error.missing === 'addon' || error.missing === 'library' ? 'nativeMissing' : 'notSupported';
  const reason = error.missing === null ? (REASON_OF_CODE[error.code] ?? 'deviceError') : missing;
  const hint = error.code === 'ENOMEM' ? ' (is the limit on locked memory too low? `ulimit -l`)' : '';
  return new FsError(reason, { op, object, detail: `${error.message}${hint}`, cause: error });
}
