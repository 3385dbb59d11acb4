import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { getSystemErrorName } from 'node:util';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { loadTcpAddon, type TcpAddon, type TcpEngine, type TcpStats } from '../native/tcp.js';
import { LINK_ENDS, LinkEnd, linkEndError, type TransferStatus } from '../protocol/frame.js';
import type { RemoteWindow, TransferOptions } from './fabric.js';
import type { FrameBatch, Link, LinkEvents, Transport, TransportAddress } from './link.js';

/**
 * Links over TCP: a thin face of native/tcp, which owns the sockets and everything about bytes. One engine per transport,
 * on the event loop of the thread that made it.
 */
const FRAMES_PER_BATCH_MAX = 4096;
const COMPLETIONS_PER_BATCH_MAX = 1024;
const BACKLOG = 512;

const noEvents: LinkEvents = {
  onRecord: () => undefined,
  onFrames: () => undefined,
  onTransferDone: () => undefined,
  onClosed: () => undefined,
};

export class TcpTransport implements Transport {
  readonly #addon: TcpAddon;
  readonly #engine: TcpEngine;
  readonly #links = new Map<number, TcpLink>();
  readonly #dialling = new Map<number, (error: number) => void>();
  readonly #accepting = new Map<number, (link: Link) => void>();
  readonly #counters: Counters;
  readonly #offsets = new Uint32Array(FRAMES_PER_BATCH_MAX);
  readonly #completions = new Uint32Array(COMPLETIONS_PER_BATCH_MAX * 2);
  #closed = false;

  /** @throws {FsError} nativeMissing when the addon is not built. */
  constructor(pool: PagePool, counters: Counters = new Counters()) {
    this.#counters = counters;
    this.#addon = loadTcpAddon();
    this.#engine = this.#addon.createEngine(
      pool.buffer,
      [
        (listener, connection) => {
          const accept = this.#accepting.get(listener);
          if (accept === undefined) this.#addon.closeConnection(this.#engine, connection);
          else accept(this.#adopt(connection, `accepted ${connection}`));
        },
        (connection, error) => this.#dialling.get(connection)?.(error),
        (connection, record) => this.#links.get(connection)?.events.onRecord(record),
        (connection, frameCount, completionCount) =>
          this.#links.get(connection)?.deliver(frameCount, this.#completions, completionCount),
        (connection, end, error) => this.#links.get(connection)?.ended(end, error),
      ],
      this.#offsets,
      this.#completions,
    );
  }

  stats(): TcpStats {
    return this.#addon.stats(this.#engine);
  }

  async listen(address: TransportAddress, accept: (link: Link) => void): Promise<TransportAddress> {
    const host = await numericHost(address.host);
    this.#mustBeOpen();
    const [error, listener, port] = this.#addon.listen(this.#engine, host, address.port, BACKLOG);
    if (error !== 0) {
      const name = getSystemErrorName(-error);
      throw new FsError(name === 'EADDRINUSE' ? 'identityTaken' : 'invalidArgument', {
        op: 'fabric.listen',
        object: `${address.host}:${address.port}`,
        detail: name === 'EADDRINUSE' ? 'the address is in use' : name,
      });
    }
    this.#accepting.set(listener, accept);
    return { host: address.host, port };
  }

  async dial(address: TransportAddress, signal: AbortSignal): Promise<Link> {
    const object = `${address.host}:${address.port}`;
    const host = await numericHost(address.host);
    this.#mustBeOpen();
    signal.throwIfAborted();
    const connection = this.#addon.dial(this.#engine, host, address.port);
    if (connection < 0) throw unreachable(object, -connection);
    return await new Promise<Link>((resolve, reject) => {
      const onAbort = () => {
        this.#dialling.delete(connection);
        this.#addon.closeConnection(this.#engine, connection);
        reject(signal.reason);
      };
      this.#dialling.set(connection, (error) => {
        this.#dialling.delete(connection);
        signal.removeEventListener('abort', onAbort);
        if (error === 0) resolve(this.#adopt(connection, `dialled ${object}`));
        else reject(unreachable(object, error));
      });
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  openWindow(peerNode: number, segments: readonly PoolSegment[], access: 'read' | 'write'): RemoteWindow {
    return this.#addon.openWindow(this.#engine, peerNode, access === 'read' ? 1 : 2, segmentPairs(segments));
  }

  closeWindow(window: RemoteWindow): Promise<void> {
    // Sockets are read on this thread only, so the call itself is all there is to wait for.
    if (!this.#closed) this.#addon.closeWindow(this.#engine, window);
    return Promise.resolve();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const link of this.#links.values()) link.forsake();
    this.#links.clear();
    this.#addon.destroyEngine(this.#engine);
    for (const fail of [...this.#dialling.values()]) fail(103 /* ECONNABORTED */);
  }

  #mustBeOpen(): void {
    if (this.#closed) throw new FsError('closed', { op: 'fabric.transport', detail: 'the transport is closed' });
  }

  #adopt(connection: number, name: string): TcpLink {
    const link = new TcpLink(this.#addon, this.#engine, connection, name, this.#offsets, this.#counters, () =>
      this.#links.delete(connection),
    );
    this.#links.set(connection, link);
    return link;
  }
}

class TcpLink implements Link {
  readonly kind = 'tcp';
  closed = false;
  events: LinkEvents = noEvents;
  readonly #batch: FrameBatch;

  constructor(
    readonly addon: TcpAddon,
    readonly engine: TcpEngine,
    readonly connection: number,
    readonly name: string,
    offsets: Uint32Array,
    readonly counters: Counters,
    readonly onGone: () => void,
  ) {
    const buffer = addon.receiveBuffer(engine, connection) ?? new ArrayBuffer(0);
    this.#batch = { bytes: new Uint8Array(buffer), view: new DataView(buffer), offsets, count: 0 };
  }

  deliver(frameCount: number, completions: Uint32Array, completionCount: number): void {
    // Completions first: what is told in a message may build on bytes that have landed, never the other way round.
    for (let i = 0; i < completionCount && !this.closed; i++) {
      this.events.onTransferDone(completions[2 * i]!, completions[2 * i + 1] as TransferStatus);
    }
    if (frameCount === 0 || this.closed) return;
    this.#batch.count = frameCount;
    this.events.onFrames(this.#batch);
  }

  ended(end: number, error: number): void {
    if (this.closed) return;
    this.forsake();
    this.onGone();
    const text = error === 0 ? '' : getSystemErrorName(-error);
    this.events.onClosed(linkEndError(end, this.name, text), (LINK_ENDS[end] ?? LINK_ENDS[LinkEnd.socketError]!).name);
  }

  forsake(): void {
    this.closed = true;
  }

  sendRecord(record: Uint8Array): void {
    if (!this.closed) this.addon.sendRecord(this.engine, this.connection, record);
  }

  startFrames(peerNode: number): void {
    if (!this.closed) this.addon.startFrames(this.engine, this.connection, peerNode);
  }

  send(bytes: Uint8Array, start: number, end: number): void {
    if (this.closed) return;
    const broken = this.addon.send(this.engine, this.connection, bytes, start, end);
    if (broken !== 0) this.#breakLater(broken);
  }

  write(
    transfer: number,
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): void {
    if (this.closed) return;
    this.counters.add('fabric.tcp.bytesWritten', bytesOf(local));
    const pairs = segmentPairs(local);
    const unchecked = options?.verifiedByUser === true ? 1 : 0;
    this.addon.write(this.engine, this.connection, transfer, window, windowOffsetBytes, pairs, unchecked);
  }

  read(
    transfer: number,
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): void {
    if (this.closed) return;
    this.counters.add('fabric.tcp.bytesRead', bytesOf(local));
    const pairs = segmentPairs(local);
    const unchecked = options?.verifiedByUser === true ? 1 : 0;
    this.addon.read(this.engine, this.connection, transfer, window, windowOffsetBytes, pairs, unchecked);
  }

  flush(): void {
    if (this.closed) return;
    const broken = this.addon.flush(this.engine, this.connection);
    if (broken !== 0) this.#breakLater(broken);
  }

  cancel(transfer: number): void {
    if (!this.closed) this.addon.cancel(this.engine, this.connection, transfer);
  }

  close(): void {
    if (this.closed) return;
    this.forsake();
    this.onGone();
    this.addon.closeConnection(this.engine, this.connection);
  }

  /** A call that met a broken socket may not call back: the news comes after it. */
  #breakLater(end: number): void {
    setImmediate(() => {
      if (this.closed) return;
      this.addon.closeConnection(this.engine, this.connection);
      this.ended(end, 0);
    });
  }
}

const unreachable = (object: string, errno: number): FsError =>
  new FsError('unreachable', { op: 'fabric.dial', object, detail: getSystemErrorName(-errno) });

const bytesOf = (segments: readonly PoolSegment[]): number => {
  let sum = 0;
  for (const segment of segments) sum += segment.lengthBytes;
  return sum;
};

function segmentPairs(segments: readonly PoolSegment[]): Float64Array {
  const pairs = new Float64Array(segments.length * 2);
  for (let i = 0; i < segments.length; i++) {
    pairs[2 * i] = segments[i]!.offsetBytes;
    pairs[2 * i + 1] = segments[i]!.lengthBytes;
  }
  return pairs;
}

async function numericHost(host: string): Promise<string> {
  if (isIP(host) !== 0) return host;
  try {
    return (await lookup(host)).address;
  } catch (cause) {
    throw new FsError('unreachable', { op: 'fabric.lookup', object: host, detail: 'the name has no address', cause });
  }
}
