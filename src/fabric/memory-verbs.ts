import type { Clock, Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';
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
 * Verbs in memory: queue pairs whose every step is an event of an injected clock, strict where hardware is. Keys open exactly the
 * range, the direction and the queue pair they were bound for; an invalidated key, a key of another queue pair or an address
 * outside of it is a remote access error that ends both queue pairs; a send without a receive is tried again a few times and fails.
 *
 * A policy is asked about each work request and may delay it, fail it, or swallow it (its completion never comes).
 */
export interface VerbsStep {
  readonly from: string;
  readonly to: string;
  readonly connection: number;
  readonly op: 'connect' | 'send' | 'write' | 'read' | 'bind' | 'invalidate';
  readonly lengthBytes: number;
  /** Of sends: what goes over. */
  readonly bytes: Uint8Array;
}
/** A string: the status it fails with. 'lost': neither does it happen nor does anything behind it. */
export type VerbsVerdict = { readonly delayMs: number } | 'lost' | { readonly status: string };
export type VerbsPolicy = (step: VerbsStep) => VerbsVerdict;

const AT_ONCE: VerbsVerdict = { delayMs: 0 };
const RNR_TRIES = 5;
const RNR_DELAY_MS = 1;
const nothing = new Uint8Array(0);

export class VerbsNetwork {
  policy: VerbsPolicy;
  readonly listeners = new Map<string, { port: MemoryVerbs; onRequest: (request: VerbsRequest) => void }>();
  readonly queues = new Set<MemoryQueue>();
  readonly #unreachable = new Set<string>();
  #connections = 0;

  constructor(
    readonly clock: Clock,
    policy: VerbsPolicy = () => AT_ONCE,
  ) {
    this.policy = policy;
  }

  port(host: string, pool: PagePool, limits: Partial<VerbsLimits> = {}): MemoryVerbs {
    return new MemoryVerbs(this, host, pool, limits);
  }

  setReachable(a: string, b: string, reachable: boolean): void {
    if (reachable) this.#unreachable.delete(pairOf(a, b));
    else {
      this.#unreachable.add(pairOf(a, b));
      this.cut(a, b);
    }
  }
  reachable(a: string, b: string): boolean {
    return !this.#unreachable.has(pairOf(a, b));
  }

  /** The wire between the two fails: what is under way or posted later runs out of retries, idle ends notice nothing. */
  cut(a: string, b: string): void {
    for (const queue of [...this.queues]) if (queue.host === a && queue.other?.host === b) queue.unplug();
    for (const queue of [...this.queues]) if (queue.host === b && queue.other?.host === a) queue.unplug();
  }

  get connectionCount(): number {
    return Math.ceil(this.queues.size / 2);
  }
  nextConnection(): number {
    return this.#connections++;
  }
}

const pairOf = (a: string, b: string): string => (a < b ? `${a} ${b}` : `${b} ${a}`);

interface Bound {
  readonly window: MemoryWindow;
  readonly queue: MemoryQueue;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly access: 'read' | 'write';
}

export class MemoryVerbs implements VerbsPort {
  readonly name = 'memory0';
  readonly limits: VerbsLimits;
  readonly poolAddress = 0x10_0000_0000;
  onRemoved: ((error: FsError) => void) | null = null;
  readonly usable = true;
  closed = false;
  readonly bound = new Map<number, Bound>();
  windowCount = 0;
  memoryCount = 0;
  #nextWindow = 1;

  constructor(
    readonly network: VerbsNetwork,
    readonly host: string,
    readonly pool: PagePool,
    limits: Partial<VerbsLimits>,
  ) {
    this.limits = { windows: true, windowsMax: 65_536, segmentsMax: 16, ...limits };
  }

  get hosts(): readonly string[] {
    return [this.host];
  }

  /** The device is pulled out. */
  remove(): void {
    const error = new FsError('deviceError', { op: 'fabric.rdma', object: this.name, detail: 'the device is gone' });
    for (const queue of [...this.network.queues]) if (queue.port === this) queue.gone(error);
    this.network.clock.after(0, () => this.onRemoved?.(error));
  }

  allocate(lengthBytes: number): VerbsMemory {
    this.memoryCount++;
    let open = true;
    return {
      bytes: new Uint8Array(lengthBytes),
      close: () => {
        if (open) this.memoryCount--;
        open = false;
      },
    };
  }

  allocateWindow(): MemoryWindow {
    if (!this.limits.windows || this.windowCount >= this.limits.windowsMax) {
      throw new FsError('notSupported', { op: 'fabric.rdma', detail: 'no memory windows' });
    }
    this.windowCount++;
    return new MemoryWindow(this, this.#nextWindow++);
  }

  listen(address: TransportAddress, onRequest: (request: VerbsRequest) => void): VerbsListener {
    const key = `${address.host}:${address.port}`;
    const { listeners } = this.network;
    if (listeners.has(key)) {
      throw new FsError('identityTaken', { op: 'fabric.listen', object: key, detail: 'the address is in use' });
    }
    listeners.set(key, { port: this, onRequest });
    return { address, close: () => listeners.delete(key) };
  }

  connect(address: TransportAddress, setup: VerbsSetup, signal: AbortSignal): Promise<VerbsConnected> {
    const object = `${address.host}:${address.port}`;
    const { network } = this;
    const connection = network.nextConnection();
    const queue = new MemoryQueue(this, connection, setup);
    setup.prepare(queue);
    return new Promise((resolve, reject) => {
      const refuse = (error: unknown) => {
        signal.removeEventListener('abort', onAbort);
        queue.close();
        reject(error);
      };
      const unreachable = (detail: string) => refuse(new FsError('unreachable', { op: 'fabric.dial', object, detail }));
      let timer: Timer | null = null;
      const onAbort = () => {
        timer?.cancel();
        refuse(signal.reason);
      };
      signal.addEventListener('abort', onAbort, { once: true });
      const verdict = network.policy({
        from: this.host,
        to: address.host,
        connection,
        op: 'connect',
        lengthBytes: setup.privateData.length,
        bytes: setup.privateData,
      });
      if (verdict === 'lost' || ('delayMs' in verdict && verdict.delayMs === Number.POSITIVE_INFINITY)) return;
      const delayMs = 'delayMs' in verdict ? verdict.delayMs : 0;
      timer = network.clock.after(delayMs, () => {
        const listener = network.listeners.get(object);
        if (signal.aborted) return;
        if (this.closed || queue.closed) return unreachable('closed');
        if (!('delayMs' in verdict) || !network.reachable(this.host, address.host)) return unreachable('no path');
        if (listener === undefined) return unreachable('nobody listens');
        listener.onRequest({
          privateData: padded(setup.privateData, 56),
          from: `${this.host} #${connection}`,
          reject: (data) => network.clock.after(0, () => refuse(new VerbsRejected(object, padded(data, 148)))),
          accept: (theirs) => {
            const end = new MemoryQueue(listener.port, connection, theirs);
            end.other = queue;
            queue.other = end;
            theirs.prepare(end);
            network.clock.after(0, () => {
              if (signal.aborted || queue.closed) return end.disconnected();
              signal.removeEventListener('abort', onAbort);
              resolve({ queue, privateData: padded(theirs.privateData, 196) });
            });
          },
        });
      });
    });
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    for (const [key, listener] of this.network.listeners)
      if (listener.port === this) this.network.listeners.delete(key);
    for (const queue of [...this.network.queues]) if (queue.port === this) queue.close();
  }
}

function padded(bytes: Uint8Array, lengthBytes: number): Uint8Array {
  const out = new Uint8Array(lengthBytes);
  out.set(bytes);
  return out;
}

export class MemoryWindow implements VerbsWindow {
  tag = 0;
  bound: MemoryQueue | null = null;
  #open = true;
  constructor(
    readonly port: MemoryVerbs,
    readonly index: number,
  ) {}
  get key(): number {
    return ((this.index << 8) | this.tag) >>> 0;
  }
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.port.windowCount--;
    this.port.bound.delete(this.key);
  }
}

interface Request {
  readonly id: number;
  readonly op: VerbsStep['op'];
  readonly signalled: boolean;
  readonly lengthBytes: number;
  /** Inline: the bytes as they were when it was posted. */
  inline: Uint8Array | null;
  readonly memory: VerbsMemory | null;
  readonly offsetBytes: number;
  readonly local: readonly PoolSegment[];
  readonly address: number;
  readonly key: number;
  readonly window: MemoryWindow | null;
  readonly access: 'read' | 'write';
}

interface Receive {
  readonly id: number;
  readonly memory: VerbsMemory;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

interface Record {
  readonly id: number;
  readonly receive: boolean;
  readonly status: string;
  readonly lengthBytes: number;
}

const noEvents: VerbsEvents = { onCompletions: () => undefined, onClosed: () => undefined };

export class MemoryQueue implements VerbsQueue {
  events: VerbsEvents = noEvents;
  other: MemoryQueue | null = null;
  closed = false;
  /** In error: everything posted is flushed. */
  failed = false;
  readonly inlineBytesMax: number;
  readonly #sendsMax: number;
  readonly #queued: Request[] = [];
  readonly #queuedReceives: Receive[] = [];
  readonly #posted: Request[] = [];
  readonly #receives: Receive[] = [];
  #records: Record[] = [];
  #outstanding = 0;
  /** Unsignalled ones done since the last completion. */
  #silent = 0;
  #running = false;
  #unplugged = false;
  #reporting = false;
  #rnrTries = 0;

  constructor(
    readonly port: MemoryVerbs,
    readonly connection: number,
    setup: VerbsSetup,
  ) {
    this.inlineBytesMax = setup.inlineBytes;
    this.#sendsMax = setup.sendsMax;
    port.network.queues.add(this);
  }

  get host(): string {
    return this.port.host;
  }
  get sendsFree(): number {
    return this.#sendsMax - this.#outstanding - this.#queued.length;
  }

  receive(id: number, memory: VerbsMemory, offsetBytes: number, lengthBytes: number): void {
    this.#queuedReceives.push({ id, memory, offsetBytes, lengthBytes });
  }
  send(
    id: number,
    memory: VerbsMemory,
    offsetBytes: number,
    lengthBytes: number,
    inline: boolean,
    signalled: boolean,
  ): void {
    if (lengthBytes === 0) throw new RangeError('a message of no bytes');
    if (inline && lengthBytes > this.inlineBytesMax) throw new RangeError('too long to be inline');
    const request = this.#request(id, 'send', signalled, lengthBytes, { memory, offsetBytes });
    if (inline) request.inline = memory.bytes.slice(offsetBytes, offsetBytes + lengthBytes);
  }
  write(id: number, local: readonly PoolSegment[], address: number, key: number, signalled: boolean): void {
    this.#request(id, 'write', signalled, bytesOf(local), { local, address, key });
  }
  read(id: number, local: readonly PoolSegment[], address: number, key: number, signalled: boolean): void {
    this.#request(id, 'read', signalled, bytesOf(local), { local, address, key });
  }
  bind(
    id: number,
    window: VerbsWindow,
    offsetBytes: number,
    lengthBytes: number,
    access: 'read' | 'write',
    signalled: boolean,
  ): void {
    const mine = window as MemoryWindow;
    if (mine.bound !== null) throw new RangeError('the window is bound');
    mine.tag = (mine.tag + 1) & 0xff;
    mine.bound = this;
    this.#request(id, 'bind', signalled, lengthBytes, { window: mine, offsetBytes, access, key: mine.key });
  }
  invalidate(id: number, window: VerbsWindow, signalled: boolean): void {
    const mine = window as MemoryWindow;
    this.#request(id, 'invalidate', signalled, 0, { window: mine, key: mine.key });
  }

  #request(id: number, op: Request['op'], signalled: boolean, lengthBytes: number, rest: Partial<Request>): Request {
    if (this.sendsFree < 1) throw new RangeError('the queue is full');
    if (rest.local !== undefined && rest.local.length > this.port.limits.segmentsMax) throw new RangeError('segments');
    const request: Request = {
      id,
      op,
      signalled,
      lengthBytes,
      inline: null,
      memory: null,
      offsetBytes: 0,
      local: [],
      address: 0,
      key: 0,
      window: null,
      access: 'read',
      ...rest,
    };
    this.#queued.push(request);
    return request;
  }

  post(): void {
    if (this.port.closed || this.closed)
      throw new FsError('deviceError', { op: 'fabric.rdma', detail: 'it is closed' });
    this.#receives.push(...this.#queuedReceives.splice(0));
    this.#outstanding += this.#queued.length;
    this.#posted.push(...this.#queued.splice(0));
    this.#run();
  }

  // --- execution ---

  #run(): void {
    if (this.#running || this.closed || this.#posted.length === 0) return;
    if (this.failed) {
      for (const request of this.#posted.splice(0)) this.#complete(request, 'flushed');
      return;
    }
    if (this.other === null) return; // not connected yet
    const request = this.#posted[0]!;
    const verdict = this.port.network.policy({
      from: this.host,
      to: this.other.host,
      connection: this.connection,
      op: request.op,
      lengthBytes: request.lengthBytes,
      bytes: request.op === 'send' ? this.#bytesOfSend(request) : nothing,
    });
    if (verdict === 'lost' || ('delayMs' in verdict && verdict.delayMs === Number.POSITIVE_INFINITY)) {
      this.#running = true;
      return;
    }
    this.#running = true;
    this.port.network.clock.after('delayMs' in verdict ? verdict.delayMs : 0, () => {
      this.#running = false;
      if (this.closed) return;
      this.#step(request, 'status' in verdict ? verdict.status : null);
      this.#run();
    });
  }

  #step(request: Request, forced: string | null): void {
    if (this.failed) return;
    const status = forced ?? this.#execute(request);
    if (status === 'again') return;
    this.#posted.shift();
    if (status === 'success') {
      this.#complete(request, status);
      return;
    }
    this.failed = true;
    this.#complete(request, status);
    this.#flushReceives();
  }

  #bytesOfSend(request: Request): Uint8Array {
    return (
      request.inline ?? request.memory!.bytes.subarray(request.offsetBytes, request.offsetBytes + request.lengthBytes)
    );
  }

  #execute(request: Request): string {
    const { window } = request;
    if (request.op === 'bind') {
      const { offsetBytes, lengthBytes, access } = request;
      this.port.bound.set(request.key, { window: window!, queue: this, offsetBytes, lengthBytes, access });
      return 'success';
    }
    if (request.op === 'invalidate') {
      if (!this.port.bound.delete(request.key)) return 'windowBindError';
      window!.bound = null;
      return 'success';
    }
    const other = this.other!;
    if (this.#unplugged || other.closed || other.failed) return 'retryExceeded';
    if (request.op === 'send') return this.#send(other, this.#bytesOfSend(request));
    const reach = other.port.bound.get(request.key);
    const offsetBytes = request.address - other.port.poolAddress;
    const allowed =
      reach !== undefined &&
      reach.queue === other &&
      reach.access === request.op &&
      offsetBytes >= reach.offsetBytes &&
      offsetBytes + request.lengthBytes <= reach.offsetBytes + reach.lengthBytes;
    if (!allowed) {
      other.#error();
      return 'remoteAccessError';
    }
    const remote = other.port.pool.bytes.subarray(offsetBytes, offsetBytes + request.lengthBytes);
    let at = 0;
    for (const segment of request.local) {
      const local = this.port.pool.bytes.subarray(segment.offsetBytes, segment.offsetBytes + segment.lengthBytes);
      if (request.op === 'write') remote.set(local, at);
      else local.set(remote.subarray(at, at + segment.lengthBytes));
      at += segment.lengthBytes;
    }
    return 'success';
  }

  #send(other: MemoryQueue, bytes: Uint8Array): string {
    const receive = other.#receives[0];
    if (receive === undefined) {
      if (++this.#rnrTries > RNR_TRIES) return 'receiverNotReadyRetryExceeded';
      this.#running = true;
      this.port.network.clock.after(RNR_DELAY_MS, () => {
        this.#running = false;
        this.#run();
      });
      return 'again';
    }
    this.#rnrTries = 0;
    other.#receives.shift();
    if (bytes.length > receive.lengthBytes) {
      other.#record({ id: receive.id, receive: true, status: 'localLengthError', lengthBytes: 0 });
      other.#error();
      return 'remoteInvalidRequestError';
    }
    receive.memory.bytes.set(bytes, receive.offsetBytes);
    other.#record({ id: receive.id, receive: true, status: 'success', lengthBytes: bytes.length });
    return 'success';
  }

  /** Moves to error because of what the peer or the wire did. */
  #error(): void {
    if (this.failed || this.closed) return;
    this.failed = true;
    this.#flushReceives();
    this.#running = false;
    this.#run();
  }

  #flushReceives(): void {
    for (const { id } of this.#receives.splice(0))
      this.#record({ id, receive: true, status: 'flushed', lengthBytes: 0 });
  }

  #complete(request: Request, status: string): void {
    if (status === 'success' && !request.signalled) {
      this.#silent++;
      return;
    }
    this.#outstanding -= 1 + this.#silent;
    this.#silent = 0;
    this.#record({ id: request.id, receive: false, status, lengthBytes: request.lengthBytes });
  }

  /** For tests: a completion of something that was never posted. */
  inventCompletion(id: number, receive: boolean): void {
    this.#record({ id, receive, status: 'success', lengthBytes: 24 });
  }

  /** For tests: what a broken peer would send. */
  rawSend(bytes: Uint8Array): void {
    const memory = { bytes: bytes.slice(), close: () => undefined };
    this.send(0, memory, 0, bytes.length, false, false);
    this.post();
  }

  #record(record: Record): void {
    if (this.closed) return;
    this.#records.push(record);
    if (this.#reporting) return;
    this.#reporting = true;
    this.port.network.clock.after(0, () => {
      this.#reporting = false;
      if (this.closed) return;
      const records = this.#records;
      this.#records = [];
      this.events.onCompletions(new Batch(records));
    });
  }

  // --- ends ---

  unplug(): void {
    this.#unplugged = true;
    // A connection manager hears of a dead path by its own means; here at once, so that idle links learn of it, too.
    this.disconnected();
  }

  disconnected(): void {
    this.port.network.clock.after(0, () => {
      if (this.closed) return;
      this.failed = true;
      this.events.onClosed(
        new FsError('connectionLost', { op: 'fabric.link', object: this.host, detail: 'the peer disconnected' }),
      );
    });
  }

  gone(error: FsError): void {
    this.failed = true;
    this.#unplugged = true;
    this.port.network.clock.after(0, () => {
      if (!this.closed) this.events.onClosed(error);
    });
    this.other?.disconnected();
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.port.network.queues.delete(this);
    for (const [key, bound] of this.port.bound) if (bound.queue === this) this.port.bound.delete(key);
    // What was sent before still arrives; then the other side sees the disconnect.
    this.other?.disconnected();
  }
}

class Batch implements VerbsCompletions {
  constructor(readonly records: readonly Record[]) {}
  get count(): number {
    return this.records.length;
  }
  id(index: number): number {
    return this.records[index]!.id;
  }
  isReceive(index: number): boolean {
    return this.records[index]!.receive;
  }
  status(index: number): string {
    return this.records[index]!.status;
  }
  lengthBytes(index: number): number {
    return this.records[index]!.lengthBytes;
  }
}

const bytesOf = (segments: readonly PoolSegment[]): number =>
  segments.reduce((sum, segment) => sum + segment.lengthBytes, 0);
