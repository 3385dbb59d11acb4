import type { Clock, Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import {
  FRAME_AT,
  FRAME_HEADER_BYTES,
  FrameKind,
  LINK_ENDS,
  LinkEnd,
  linkEndError,
  TRANSFER_CHUNK_BYTES,
  TransferStatus,
} from '../protocol/frame.js';
import type { RemoteWindow } from './fabric.js';
import type { FrameBatch, Link, LinkEvents, Transport, TransportAddress } from './link.js';
import { copySegments, slice } from './segments.js';

/**
 * Links in memory: a network whose every delivery is an event of an injected clock, for the simulator and for tests.
 *
 * A policy is asked about each thing that crosses: how long it takes, or whether the connection breaks just before it
 * arrives. Within one direction of one connection order is kept whatever the delays; between connections it isn't.
 * Nothing is random here and no time passes but the clock's, so a run is as repeatable as its clock and its policy.
 * Bytes are copied when sent and when delivered; checksums are neither made nor checked, since nothing can corrupt them.
 */
export interface Crossing {
  /** Network's number of the connection; both directions share it. */
  readonly connection: number;
  /** Host names as given to transport(). */
  readonly from: string;
  readonly to: string;
  readonly kind: 'connect' | 'record' | 'frame' | 'transfer';
  /** FrameKind of frames and pieces of transfers, else 0. */
  readonly frameKind: number;
  /** Counted per connection and direction, from 0. */
  readonly index: number;
  readonly lengthBytes: number;
}

/** Infinity: stalls for good, with everything behind it, until the connection is cut. */
export type Verdict = { readonly delayMs: number } | 'cut';
export type MemoryPolicy = (crossing: Crossing) => Verdict;

const AT_ONCE: Verdict = { delayMs: 0 };

export class MemoryNetwork {
  readonly clock: Clock;
  /** Asked about each crossing; replace it at any time. */
  policy: MemoryPolicy;
  readonly #listeners = new Map<string, { transport: MemoryTransport; accept: (link: Link) => void }>();
  readonly #connections = new Set<Connection>();
  readonly #unreachable = new Set<string>();
  #connectionCount = 0;

  constructor(clock: Clock, policy: MemoryPolicy = () => AT_ONCE) {
    this.clock = clock;
    this.policy = policy;
  }

  /** A node's door to this network; `host` is how the policy and `setReachable` name it, and what others dial. */
  transport(host: string, pool: PagePool): MemoryTransport {
    return new MemoryTransport(this, host, pool);
  }

  /** False: cuts what connects the two hosts, and refuses new connections until it is set to true again. */
  setReachable(a: string, b: string, reachable: boolean): void {
    if (reachable) {
      this.#unreachable.delete(pairKey(a, b));
      return;
    }
    this.#unreachable.add(pairKey(a, b));
    this.cut(a, b);
  }

  reachable(a: string, b: string): boolean {
    return !this.#unreachable.has(pairKey(a, b));
  }

  /** Breaks all present connections between the two; both sides learn of it. */
  cut(a: string, b: string): void {
    for (const connection of [...this.#connections]) {
      const [x, y] = connection.ends;
      if ((x.host === a && y.host === b) || (x.host === b && y.host === a)) connection.break();
    }
  }

  get connectionCount(): number {
    return this.#connections.size;
  }

  // --- for transports ---

  listen(address: TransportAddress, transport: MemoryTransport, accept: (link: Link) => void): void {
    const key = `${address.host}:${address.port}`;
    if (this.#listeners.has(key)) {
      throw new FsError('identityTaken', { op: 'fabric.listen', object: key, detail: 'the address is in use' });
    }
    this.#listeners.set(key, { transport, accept });
  }

  dial(address: TransportAddress, from: MemoryTransport, signal: AbortSignal): Promise<Link> {
    const key = `${address.host}:${address.port}`;
    const connection = this.#connectionCount++;
    const verdict = this.policy({
      connection,
      from: from.host,
      to: address.host,
      kind: 'connect',
      frameKind: 0,
      index: 0,
      lengthBytes: 0,
    });
    return new Promise((resolve, reject) => {
      const refuse = (detail: string) => reject(new FsError('unreachable', { op: 'fabric.dial', object: key, detail }));
      if (verdict !== 'cut' && verdict.delayMs === Number.POSITIVE_INFINITY) {
        signal.addEventListener('abort', () => reject(signal.reason), { once: true });
        return;
      }
      const timer = this.clock.after(verdict === 'cut' ? 0 : verdict.delayMs, () => {
        signal.removeEventListener('abort', onAbort);
        const listener = this.#listeners.get(key);
        if (from.closed) return refuse('closed');
        if (verdict === 'cut' || !this.reachable(from.host, address.host)) return refuse('no path');
        if (listener === undefined) return refuse('nobody listens');
        const made = new Connection(this, connection, from, listener.transport);
        this.#connections.add(made);
        listener.accept(made.ends[1]);
        resolve(made.ends[0]);
      });
      const onAbort = () => {
        timer.cancel();
        reject(signal.reason);
      };
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  forget(connection: Connection): void {
    this.#connections.delete(connection);
  }

  closeTransport(transport: MemoryTransport, silently: boolean): void {
    for (const [key, listener] of this.#listeners) if (listener.transport === transport) this.#listeners.delete(key);
    for (const connection of [...this.#connections]) {
      for (const end of connection.ends) {
        if (end.transport !== transport) continue;
        if (silently) end.crash();
        else end.close();
        connection.break();
      }
    }
  }
}

const pairKey = (a: string, b: string): string => (a < b ? `${a} ${b}` : `${b} ${a}`);

interface MemoryWindow {
  readonly peerNode: number;
  readonly segments: readonly PoolSegment[];
  readonly lengthBytes: number;
  readonly access: 'read' | 'write';
}

export class MemoryTransport implements Transport {
  closed = false;
  readonly #windows = new Map<string, MemoryWindow>();
  #nextWindow = 1;

  constructor(
    readonly network: MemoryNetwork,
    readonly host: string,
    readonly pool: PagePool,
  ) {}

  async listen(address: TransportAddress, accept: (link: Link) => void): Promise<TransportAddress> {
    this.network.listen(address, this, accept);
    return address;
  }

  dial(address: TransportAddress, signal: AbortSignal): Promise<Link> {
    return this.network.dial(address, this, signal);
  }

  openWindow(peerNode: number, segments: readonly PoolSegment[], access: 'read' | 'write'): RemoteWindow {
    const name = new Uint8Array(16);
    new DataView(name.buffer).setFloat64(0, this.#nextWindow++, true);
    const lengthBytes = segments.reduce((sum, segment) => sum + segment.lengthBytes, 0);
    this.#windows.set(windowKey(name), { peerNode, segments: [...segments], lengthBytes, access });
    return name;
  }

  closeWindow(window: RemoteWindow): Promise<void> {
    // Deliveries look the window up when they land, so from here on nothing can.
    this.#windows.delete(windowKey(window));
    return Promise.resolve();
  }

  close(): void {
    this.closed = true;
    this.#windows.clear();
    this.network.closeTransport(this, false);
  }

  /** The node dies: nothing is told to it any more; the others see their connections break. */
  crash(): void {
    this.closed = true;
    this.#windows.clear();
    this.network.closeTransport(this, true);
  }

  /** For ends of connections. */
  find(
    name: RemoteWindow,
    peerNode: number,
    access: 'read' | 'write',
    offsetBytes: number,
    lengthBytes: number,
  ): readonly PoolSegment[] | TransferStatus {
    const window = this.#windows.get(windowKey(name));
    if (window === undefined) return TransferStatus.windowUnknown;
    if (window.peerNode !== peerNode || window.access !== access) return TransferStatus.windowDenied;
    if (offsetBytes + lengthBytes > window.lengthBytes) return TransferStatus.outOfBounds;
    return slice(window.segments, offsetBytes, lengthBytes);
  }
}

const windowKey = (name: RemoteWindow): string => Buffer.from(name.subarray(0, 16)).toString('hex');

class Connection {
  readonly ends: readonly [MemoryLink, MemoryLink];

  constructor(
    readonly network: MemoryNetwork,
    readonly id: number,
    dialer: MemoryTransport,
    acceptor: MemoryTransport,
  ) {
    const a = new MemoryLink(this, dialer, `${dialer.host} to ${acceptor.host} #${id}`);
    const b = new MemoryLink(this, acceptor, `${acceptor.host} from ${dialer.host} #${id}`);
    a.other = b;
    b.other = a;
    this.ends = [a, b];
  }

  /** Whatever is under way is lost. Each side hears of it from an event of the clock. */
  break(): void {
    this.network.forget(this);
    for (const end of this.ends) end.broken();
  }
}

/** Something on its way to the other end. */
interface Parcel {
  readonly kind: 'record' | 'frame' | 'transfer';
  readonly frameKind: number;
  readonly bytes: Uint8Array;
  readonly transfer: TransferParcel | null;
  atMs: number;
}
interface TransferParcel {
  readonly id: number;
  readonly kind: number;
  readonly window: RemoteWindow;
  /** In the window; of readData: in the transfer. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly last: boolean;
  readonly status: TransferStatus;
}
interface PendingRead {
  readonly local: readonly PoolSegment[];
}

const nothing = new Uint8Array(0);
const noEvents: LinkEvents = {
  onRecord: () => undefined,
  onFrames: () => undefined,
  onTransferDone: () => undefined,
  onClosed: () => undefined,
};

class MemoryLink implements Link {
  /** What it stands in for. */
  readonly kind = 'tcp';
  closed = false;
  events: LinkEvents = noEvents;
  other!: MemoryLink;
  #peerNode = 0;
  /** Arriving here, in order. */
  #incoming: Parcel[] = [];
  #sentCount = 0;
  #lastAtMs = 0;
  #timer: Timer | null = null;
  readonly #reads = new Map<number, PendingRead>();
  /** Pieces of our writes that have not left yet: one is under way at a time, so that messages can overtake. */
  readonly #writes: { id: number; window: RemoteWindow; offsetBytes: number; local: PoolSegment[]; sent: number }[] =
    [];

  constructor(
    readonly connection: Connection,
    readonly transport: MemoryTransport,
    readonly name: string,
  ) {}

  get host(): string {
    return this.transport.host;
  }

  sendRecord(record: Uint8Array): void {
    this.#post({ kind: 'record', frameKind: 0, bytes: record.slice(), transfer: null, atMs: 0 });
  }

  startFrames(peerNode: number): void {
    this.#peerNode = peerNode;
  }

  send(bytes: Uint8Array, start: number, end: number): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = start; at < end && !this.closed; ) {
      const total = FRAME_HEADER_BYTES + view.getUint32(at + FRAME_AT.bodyBytes, true);
      const frameKind = view.getUint8(at + FRAME_AT.kind);
      this.#post({ kind: 'frame', frameKind, bytes: bytes.slice(at, at + total), transfer: null, atMs: 0 });
      at += total;
    }
  }

  write(id: number, window: RemoteWindow, offsetBytes: number, local: readonly PoolSegment[]): void {
    if (!this.closed) this.#writes.push({ id, window: window.slice(), offsetBytes, local: [...local], sent: 0 });
  }

  read(id: number, window: RemoteWindow, offsetBytes: number, local: readonly PoolSegment[]): void {
    if (this.closed) return;
    this.#reads.set(id, { local: [...local] });
    const lengthBytes = local.reduce((sum, segment) => sum + segment.lengthBytes, 0);
    this.#postTransfer({
      id,
      kind: FrameKind.readRequest,
      window: window.slice(),
      offsetBytes,
      lengthBytes,
      last: true,
      status: TransferStatus.landed,
    });
  }

  flush(): void {
    for (const write of this.#writes.splice(0)) {
      const total = write.local.reduce((sum, segment) => sum + segment.lengthBytes, 0);
      for (let sent = 0; sent < total && !this.closed; sent += TRANSFER_CHUNK_BYTES) {
        const lengthBytes = Math.min(TRANSFER_CHUNK_BYTES, total - sent);
        this.#postTransfer(
          {
            id: write.id,
            kind: FrameKind.write,
            window: write.window,
            offsetBytes: write.offsetBytes + sent,
            lengthBytes,
            last: sent + lengthBytes === total,
            status: TransferStatus.landed,
          },
          gather(this.transport.pool, slice(write.local, sent, lengthBytes)),
        );
      }
    }
  }

  cancel(id: number): void {
    this.#reads.delete(id);
    const index = this.#writes.findIndex((write) => write.id === id);
    if (index >= 0) this.#writes.splice(index, 1);
  }

  close(): void {
    if (this.closed) return;
    this.#end();
    // The other side learns as it would of a FIN: after what is still under way to it.
    this.connection.network.forget(this.connection);
    this.other.#closeAfterIncoming();
  }

  /** The node of this end died: what is on its way here arrives nowhere. */
  crash(): void {
    this.#end();
  }

  /** The network broke: nothing more arrives, then onClosed. */
  broken(): void {
    if (this.closed) return;
    this.#incoming = [];
    this.#timer?.cancel();
    this.#timer = this.connection.network.clock.after(0, () => this.#closedByNetwork());
  }

  #closedByNetwork(): void {
    if (this.closed) return;
    const events = this.events;
    this.#end();
    events.onClosed(linkEndError(LinkEnd.closedByPeer, this.name), LINK_ENDS[LinkEnd.closedByPeer]!.name);
  }

  #closeAfterIncoming(): void {
    if (this.closed) return;
    const last = this.#incoming[this.#incoming.length - 1];
    // Behind something that stalls for good it is never heard: then the break itself has to do.
    if (last === undefined || last.atMs === Number.POSITIVE_INFINITY) {
      this.broken();
      return;
    }
    this.#incoming.push({ kind: 'record', frameKind: -1, bytes: nothing, transfer: null, atMs: last.atMs });
  }

  #end(): void {
    this.closed = true;
    this.#incoming = [];
    this.#reads.clear();
    this.#writes.length = 0;
    this.#timer?.cancel();
    this.#timer = null;
  }

  #postTransfer(transfer: TransferParcel, bytes: Uint8Array = nothing): void {
    this.#post({ kind: 'transfer', frameKind: transfer.kind, bytes, transfer, atMs: 0 });
  }

  #post(parcel: Parcel): void {
    const to = this.other;
    if (this.closed || to.closed) return;
    const network = this.connection.network;
    const verdict = network.policy({
      connection: this.connection.id,
      from: this.host,
      to: to.host,
      kind: parcel.kind,
      frameKind: parcel.frameKind,
      index: this.#sentCount++,
      lengthBytes: parcel.bytes.length,
    });
    if (verdict === 'cut') {
      // What is ahead of it in this direction still arrives; then the break is seen, on both sides.
      const atMs = Math.max(this.#lastAtMs, network.clock.nowMs());
      this.#lastAtMs = Number.POSITIVE_INFINITY;
      to.#arrive({ kind: 'record', frameKind: -2, bytes: nothing, transfer: null, atMs });
      return;
    }
    parcel.atMs = Math.max(this.#lastAtMs, network.clock.nowMs() + verdict.delayMs);
    this.#lastAtMs = parcel.atMs;
    to.#arrive(parcel);
  }

  #arrive(parcel: Parcel): void {
    this.#incoming.push(parcel);
    if (this.#incoming.length === 1) this.#arm();
  }

  #arm(): void {
    const head = this.#incoming[0];
    if (head === undefined || this.#timer !== null || head.atMs === Number.POSITIVE_INFINITY) return;
    const clock = this.connection.network.clock;
    this.#timer = clock.after(Math.max(0, head.atMs - clock.nowMs()), () => {
      this.#timer = null;
      this.#deliver();
      this.#arm();
    });
  }

  /** Everything due, frames in batches as a socket would bring them. */
  #deliver(): void {
    const now = this.connection.network.clock.nowMs();
    while (!this.closed && this.#incoming.length > 0 && this.#incoming[0]!.atMs <= now) {
      if (this.#incoming[0]!.kind === 'frame') {
        const frames: Uint8Array[] = [];
        while (this.#incoming[0]?.kind === 'frame' && this.#incoming[0].atMs <= now) {
          frames.push(this.#incoming.shift()!.bytes);
        }
        this.events.onFrames(batchOf(frames));
        continue;
      }
      const parcel = this.#incoming.shift()!;
      if (parcel.frameKind === -1) {
        this.#closedByNetwork();
        return;
      }
      if (parcel.frameKind === -2) {
        this.connection.break();
        return;
      }
      if (parcel.transfer === null) this.events.onRecord(parcel.bytes);
      else this.#onTransfer(parcel.transfer, parcel.bytes);
    }
  }

  #onTransfer(parcel: TransferParcel, bytes: Uint8Array): void {
    const { id, window, offsetBytes, lengthBytes } = parcel;
    const done = (status: TransferStatus) =>
      this.#postTransfer({ ...parcel, kind: FrameKind.transferDone, window: nothing, status });
    switch (parcel.kind) {
      case FrameKind.write: {
        const target = this.transport.find(window, this.#peerNode, 'write', offsetBytes, lengthBytes);
        if (typeof target === 'number') {
          done(target);
          return;
        }
        copySegments(bytes, [{ offsetBytes: 0, lengthBytes }], this.transport.pool.bytes, target);
        if (parcel.last) done(TransferStatus.landed);
        return;
      }
      case FrameKind.readRequest: {
        const source = this.transport.find(window, this.#peerNode, 'read', offsetBytes, lengthBytes);
        if (typeof source === 'number') {
          done(source);
          return;
        }
        this.#postTransfer(
          { ...parcel, kind: FrameKind.readData, offsetBytes: 0 },
          gather(this.transport.pool, source),
        );
        return;
      }
      case FrameKind.readData: {
        const read = this.#reads.get(id);
        if (read === undefined) return;
        this.#reads.delete(id);
        copySegments(bytes, [{ offsetBytes: 0, lengthBytes }], this.transport.pool.bytes, read.local);
        this.events.onTransferDone(id, TransferStatus.landed);
        return;
      }
      default:
        this.#reads.delete(id);
        this.events.onTransferDone(id, parcel.status);
    }
  }
}

function gather(pool: PagePool, segments: readonly PoolSegment[]): Uint8Array {
  const lengthBytes = segments.reduce((sum, segment) => sum + segment.lengthBytes, 0);
  const bytes = new Uint8Array(lengthBytes);
  copySegments(pool.bytes, segments, bytes, [{ offsetBytes: 0, lengthBytes }]);
  return bytes;
}

function batchOf(frames: readonly Uint8Array[]): FrameBatch {
  const bytes = new Uint8Array(frames.reduce((sum, frame) => sum + frame.length, 0));
  const offsets = new Uint32Array(frames.length);
  let at = 0;
  for (let i = 0; i < frames.length; i++) {
    offsets[i] = at;
    bytes.set(frames[i]!, at);
    at += frames[i]!.length;
  }
  return { bytes, view: new DataView(bytes.buffer), offsets, count: frames.length };
}
