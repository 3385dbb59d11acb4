import { createHash, randomBytes as cryptoRandomBytes } from 'node:crypto';
import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { NodeIdentity, RemoteWindow } from './fabric.js';
import { Refusal } from './handshake.js';
import type { Link, Transport, TransportAddress } from './link.js';
import { RdmaLink, type RdmaLinkHost } from './rdma-link.js';
import { DEFAULT_RDMA_SETTINGS, type RdmaSettings } from './rdma-settings.js';
import { WindowPool, WindowTable } from './rdma-windows.js';
import {
  encodeGreeting,
  encodeRejection,
  GREETING_BYTES,
  type Greeting,
  IDENTITY_BYTES,
  judgeGreeting,
  RDMA_VERSION,
  Rejection,
  readRejection,
  rejectionName,
  VerbsRejected,
} from './rdma-wire.js';
import { HandshakeRefused } from './remote-peer.js';
import type { VerbsListener, VerbsMemory, VerbsPort, VerbsRequest } from './verbs-port.js';

/**
 * Links over one RDMA device. Owns the device's port, the memory for messages and the type-2 windows; the table of open windows may
 * be handed in, since it outlives a device that goes and comes.
 *
 * A connection is judged by its private data before anything else of it is looked at: another version or another cluster is
 * rejected with the reason. What the private data claims, the handshake proves: its proofs cover both sides' greetings.
 */
export interface RdmaTransportOptions {
  readonly self: NodeIdentity;
  readonly clusterId: string;
  readonly pool: PagePool;
  readonly port: VerbsPort;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly settings?: Partial<RdmaSettings> | undefined;
  readonly windows?: WindowTable | undefined;
  readonly randomBytes?: ((count: number) => Uint8Array) | undefined;
  /** The device is gone; the transport has closed. */
  readonly onRemoved?: ((error: FsError) => void) | undefined;
  /** A link ended, for this reason; null: this side closed it. */
  readonly onLinkEnd?: ((link: RdmaLink, failure: string | null, lifeMs: number) => void) | undefined;
  /** Tests only: greet with another version. */
  readonly version?: number | undefined;
}

const SPARE_MEMORIES_MAX = 8;

export class RdmaTransport implements Transport, RdmaLinkHost {
  readonly clock: Clock;
  readonly counters: Counters;
  readonly port: VerbsPort;
  readonly pagePool: PagePool;
  readonly windows: WindowTable;
  readonly windowPool: WindowPool;
  readonly settings: RdmaSettings;
  readonly #options: RdmaTransportOptions;
  readonly #randomBytes: (count: number) => Uint8Array;
  readonly #cluster: Uint8Array;
  readonly #version: number;
  /** With the times they began at; the newest is last. */
  readonly #links = new Map<RdmaLink, number>();
  readonly #listeners: VerbsListener[] = [];
  readonly #spare: VerbsMemory[] = [];
  #nextLink: number;
  #nextWindow = 1;
  #closed = false;

  constructor(options: RdmaTransportOptions) {
    this.#options = options;
    this.clock = options.clock;
    this.counters = options.counters;
    this.port = options.port;
    this.pagePool = options.pool;
    this.settings = { ...DEFAULT_RDMA_SETTINGS, ...options.settings };
    this.windows = options.windows ?? new WindowTable();
    this.windowPool = new WindowPool(options.port, this.settings.windowsMax);
    this.#randomBytes = options.randomBytes ?? cryptoRandomBytes;
    this.#cluster = createHash('sha256').update(options.clusterId).digest().subarray(0, 8);
    this.#version = options.version ?? RDMA_VERSION;
    const start = this.#randomBytes(4);
    this.#nextLink = new DataView(start.buffer, start.byteOffset, 4).getUint32(0, true);
    options.port.onRemoved = (error) => {
      if (this.#closed) return;
      this.#endLinks(error);
      this.close();
      options.onRemoved?.(error);
    };
  }

  get closed(): boolean {
    return this.#closed;
  }

  // --- connections ---

  listen(address: TransportAddress, accept: (link: Link) => void): Promise<TransportAddress> {
    try {
      this.#mustBeOpen();
      const listener = this.port.listen(address, (request) => this.#onRequest(request, accept));
      this.#listeners.push(listener);
      return Promise.resolve(listener.address);
    } catch (error) {
      return Promise.reject(FsError.from(error, 'fabric.listen', `${address.host}:${address.port}`));
    }
  }

  #onRequest(request: VerbsRequest, accept: (link: Link) => void): void {
    const peer = this.#closed
      ? Rejection.closing
      : this.#links.size >= this.settings.linksMax
        ? Rejection.crowd
        : judgeGreeting(request.privateData, this.#cluster, this.#version);
    if (typeof peer === 'number') {
      const name = rejectionName(peer);
      this.counters.add(`fabric.refusedHandshake.${name}`);
      this.#options.logger.warn({ from: request.from, rejection: name }, 'fabric: connection rejected');
      request.reject(encodeRejection(peer));
      return;
    }
    const link = this.#newLink(`rdma from ${request.from}`);
    try {
      const own = encodeGreeting(this.#greeting(link));
      request.accept({
        ...this.#sizes(),
        privateData: own,
        prepare: (queue) => {
          link.prepare(queue);
          link.greeted(peer, bindingOf(request.privateData, own));
        },
      });
      accept(link);
    } catch (error) {
      this.counters.add('fabric.rdma.acceptsFailed');
      this.#options.logger.warn(
        { from: request.from, error: String(error) },
        'fabric: a connection could not be accepted',
      );
      link.close();
    }
  }

  async dial(address: TransportAddress, signal: AbortSignal): Promise<Link> {
    this.#mustBeOpen();
    signal.throwIfAborted();
    const object = `${address.host}:${address.port}`;
    const link = this.#newLink(`rdma to ${object}`);
    const own = encodeGreeting(this.#greeting(link));
    try {
      const setup = { ...this.#sizes(), privateData: own, prepare: link.prepare.bind(link) };
      const { privateData } = await this.port.connect(address, setup, signal);
      if (link.closed) throw new FsError('closed', { op: 'fabric.dial', object, detail: 'closed meanwhile' });
      const peer = judgeGreeting(privateData, this.#cluster, this.#version);
      if (typeof peer === 'number') {
        this.counters.add(`fabric.refusedHandshake.${rejectionName(peer)}`);
        throw rejected(peer, object, 'us');
      }
      link.greeted(peer, bindingOf(own, privateData));
      return link;
    } catch (error) {
      link.close();
      if (!(error instanceof VerbsRejected)) throw FsError.from(error, 'fabric.dial', object);
      const why = readRejection(error.privateData);
      if (why === null) throw error;
      this.counters.add(`fabric.handshakeRefused.${rejectionName(why)}`);
      throw rejected(why, object, 'them');
    }
  }

  #newLink(name: string): RdmaLink {
    const number = this.#nextLink;
    this.#nextLink = (number + 1) >>> 0;
    const link = new RdmaLink(this, number, name);
    this.#links.set(link, this.clock.nowMs());
    return link;
  }

  #greeting(link: RdmaLink): Greeting {
    const { self } = this.#options;
    return {
      version: this.#version,
      cluster: this.#cluster,
      nodeId: self.nodeId,
      incarnation: self.incarnation,
      linkNumber: link.linkNumber,
      receives: this.settings.receives,
      unitBytesMax: this.settings.unitBytes,
      windows: this.port.limits.windows,
      nonce: this.#randomBytes(16),
    };
  }

  #sizes() {
    const { sendsMax, receives, inlineBytes } = this.settings;
    return { sendsMax, receivesMax: receives, inlineBytes };
  }

  // --- windows ---

  openWindow(peerNode: number, segments: readonly PoolSegment[], access: 'read' | 'write'): RemoteWindow {
    const identity = new Uint8Array(IDENTITY_BYTES);
    new DataView(identity.buffer).setFloat64(0, this.#nextWindow++, true);
    identity.set(this.#randomBytes(8), 8);
    return this.openNamed(identity, peerNode, segments, access, false);
  }

  /**
   * Under an identity that another transport gave it.
   * @param inNextMessage The peer learns its name by a message over the link that it has now: it is good from then on, and costs no call of its own.
   */
  openNamed(
    identity: Uint8Array,
    peerNode: number,
    segments: readonly PoolSegment[],
    access: 'read' | 'write',
    inNextMessage: boolean,
  ): RemoteWindow {
    let lengthBytes = 0;
    for (const segment of segments) lengthBytes += segment.lengthBytes;
    const pays = lengthBytes > this.settings.oneSidedAboveBytes && this.port.limits.windows;
    return this.windows.open(
      identity,
      peerNode,
      segments,
      access,
      pays ? this.#linkWith(peerNode) : null,
      inNextMessage,
    );
  }

  closeWindow(window: RemoteWindow): Promise<void> {
    return this.windows.close(window);
  }

  hasLinkWith(peerNode: number): boolean {
    return this.#linkWith(peerNode) !== null;
  }

  /** The newest one that carries frames. */
  #linkWith(peerNode: number): RdmaLink | null {
    let found: RdmaLink | null = null;
    for (const link of this.#links.keys()) if (link.peerNode === peerNode && !link.closed) found = link;
    return found;
  }

  // --- for links ---

  takeMemory(): VerbsMemory {
    const { receives, sendSlots, unitBytes } = this.settings;
    return this.#spare.pop() ?? this.port.allocate((receives + sendSlots) * unitBytes);
  }

  giveMemory(memory: VerbsMemory): void {
    if (!this.#closed && this.#spare.length < SPARE_MEMORIES_MAX) this.#spare.push(memory);
    else memory.close();
  }

  linkGone(link: RdmaLink): void {
    const begunMs = this.#links.get(link);
    if (begunMs === undefined) return;
    this.#links.delete(link);
    this.#options.onLinkEnd?.(link, link.failure, this.clock.nowMs() - begunMs);
  }

  // --- the end ---

  #endLinks(error: FsError): void {
    for (const link of [...this.#links.keys()]) link.onClosed(error);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const listener of this.#listeners.splice(0)) listener.close();
    for (const link of [...this.#links.keys()]) link.destroy();
    for (const memory of this.#spare.splice(0)) memory.close();
    if (this.#options.windows === undefined) this.windows.clear();
    this.port.close();
  }

  #mustBeOpen(): void {
    if (this.#closed) throw new FsError('closed', { op: 'fabric.transport', detail: 'the transport is closed' });
  }
}

/** Both greetings as they are on the wire, without the padding behind them. */
function bindingOf(dialer: Uint8Array, acceptor: Uint8Array): Uint8Array {
  const binding = new Uint8Array(2 * GREETING_BYTES);
  binding.set(dialer.subarray(0, GREETING_BYTES));
  binding.set(acceptor.subarray(0, GREETING_BYTES), GREETING_BYTES);
  return binding;
}

function rejected(why: Rejection, object: string, by: 'us' | 'them'): FsError {
  if (why === Rejection.crowd)
    return new FsError('busy', { op: 'fabric.dial', object, detail: 'it has too many links' });
  const refusals = {
    [Rejection.malformed]: Refusal.malformed,
    [Rejection.wrongVersion]: Refusal.wrongVersion,
    [Rejection.wrongCluster]: Refusal.wrongCluster,
    [Rejection.closing]: Refusal.closing,
  } as const;
  return new HandshakeRefused(refusals[why], by, object);
}
