import type { Clock, Timer } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { NodeIdentity, RemoteWindow } from './fabric.js';
import type { DialOptions, Link, Transport, TransportAddress, TransportKind } from './link.js';
import type { RdmaLink } from './rdma-link.js';
import { selfTest } from './rdma-self-test.js';
import type { RdmaSettings } from './rdma-settings.js';
import { RdmaTransport } from './rdma-transport.js';
import { WindowTable } from './rdma-windows.js';
import { IDENTITY_BYTES } from './rdma-wire.js';
import type { OpenVerbsPort } from './verbs-port.js';

/**
 * The ladder: verbs where both ends have them and the device here passed its self-test, else TCP. A window has one identity on both
 * rungs, so a transfer goes on over whatever link the session has.
 *
 * A device that goes takes its links with it: the sessions dial again, by TCP at once. One that comes back (or comes late) is tested, and then
 * taken into use. A peer whose RDMA links don't get on (dials that fail, links that die young, twice in a row) is served over TCP, and
 * tried again in the background after a pause that doubles; a link that is up replaces the TCP one in order, at no cost but a reconnect.
 */
export interface LadderOptions {
  readonly self: NodeIdentity;
  readonly clusterId: string;
  readonly pool: PagePool;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly tcp: Transport;
  /** required: nothing but RDMA, and no start without. */
  readonly mode: 'auto' | 'off' | 'required';
  readonly openPort: OpenVerbsPort;
  /** Where to listen for RDMA; null: at an address of the device, at the port that TCP got. */
  readonly rdmaHost?: string | null;
  readonly rdmaPort?: number | null;
  readonly settings?: Partial<RdmaSettings> | undefined;
  readonly randomBytes?: ((count: number) => Uint8Array) | undefined;
  readonly timing?: Partial<LadderTiming> | undefined;
}

export interface LadderTiming {
  /** How often a device that is missing is looked for. */
  readonly probeMs: number;
  /** A dial over RDMA that takes longer is given up, in favour of TCP. */
  readonly dialMs: number;
  /** One that the peer ended, for whatever reason of his, within this time says something about the path. */
  readonly youngMs: number;
  /** A link that lived so long was a good one. */
  readonly lastedMs: number;
  readonly pauseFirstMs: number;
  readonly pauseMaxMs: number;
}

const DEFAULT_TIMING: LadderTiming = {
  probeMs: 2000,
  dialMs: 3000,
  youngMs: 1000,
  lastedMs: 10_000,
  pauseFirstMs: 1000,
  pauseMaxMs: 60_000,
};
const FAILURES_TO_FALL_BACK = 2;

interface PeerState {
  /** In a row. */
  failures: number;
  lastError: string;
  /** Not over RDMA before. */
  retryAtMs: number;
  timer: Timer | null;
  /** Its present address has no RDMA in it. */
  withoutRdma: boolean;
}

export class LadderTransport implements Transport {
  onBetter: ((peerNode: number) => void) | null = null;
  /** Others can reach this node over RDMA from now on; while it listens. */
  onRdmaAddress: ((rdma: NonNullable<TransportAddress['rdma']>) => void) | null = null;
  readonly #options: LadderOptions;
  readonly #timing: LadderTiming;
  readonly #windows = new WindowTable();
  readonly #peers = new Map<number, PeerState>();
  readonly #dialledFor = new WeakMap<Link, number>();
  #rdma: RdmaTransport | null = null;
  /** Why there is no RDMA. */
  #without = 'not tried yet';
  #lasting = false;
  #accept: ((link: Link) => void) | null = null;
  #tcpAddress: TransportAddress | null = null;
  #rdmaAddress: TransportAddress | null = null;
  #probe: Timer | null = null;
  #bringingUp = false;
  #closed = false;

  /** @throws {FsError} in mode `required`, when there is no RDMA. */
  static async create(options: LadderOptions): Promise<LadderTransport> {
    const ladder = new LadderTransport(options);
    if (options.mode === 'off') {
      ladder.#without = 'switched off by the configuration';
      ladder.#lasting = true;
      return ladder;
    }
    await ladder.#bringUp();
    if (options.mode === 'required' && ladder.#rdma === null) {
      ladder.close();
      throw new FsError('notSupported', {
        op: 'fabric.rdma',
        detail: `the configuration requires RDMA: ${ladder.#without}`,
      });
    }
    return ladder;
  }

  private constructor(options: LadderOptions) {
    this.#options = options;
    this.#timing = { ...DEFAULT_TIMING, ...options.timing };
  }

  /** What this node has. */
  get local(): { readonly device: string | null; readonly windows: boolean; readonly reason: string } {
    const port = this.#rdma?.port;
    return port === undefined
      ? { device: null, windows: false, reason: this.#without }
      : {
          device: port.name,
          windows: port.limits.windows,
          reason: port.limits.windows ? 'self-test passed' : 'no memory windows: bulk goes in messages',
        };
  }

  /** Why the link with a peer is what it is. */
  describe(peerNode: number, kind: TransportKind | null): string {
    if (kind === 'rdma') return this.local.device === null ? 'ending' : `device ${this.local.device}`;
    if (this.#rdma === null) return this.#without;
    const peer = this.#peers.get(peerNode);
    if (peer === undefined) return 'dialled by the peer';
    if (peer.failures >= FAILURES_TO_FALL_BACK || peer.retryAtMs > this.#now) {
      const leftS = Math.max(0, Math.ceil((peer.retryAtMs - this.#now) / 1000));
      return `RDMA failed ${peer.failures} times, last: ${peer.lastError}; again in ${leftS} s`;
    }
    if (peer.withoutRdma) return 'the peer has no RDMA';
    return peer.lastError === '' ? 'dialled by the peer' : `RDMA failed: ${peer.lastError}`;
  }

  get #now(): number {
    return this.#options.clock.nowMs();
  }

  // --- the device ---

  async #bringUp(): Promise<void> {
    const { options } = { options: this.#options };
    if (this.#closed || this.#bringingUp || this.#rdma !== null) return;
    this.#bringingUp = true;
    try {
      await selfTest({
        self: options.self,
        clusterId: options.clusterId,
        clock: options.clock,
        open: options.openPort,
        randomBytes: options.randomBytes,
        host: (hosts) => this.#host(hosts),
      });
      if (this.#closed) return;
      const port = options.openPort(options.pool);
      let rdma: RdmaTransport;
      try {
        rdma = new RdmaTransport({
          ...options,
          port,
          windows: this.#windows,
          onRemoved: (error) => this.#removed(error),
          onLinkEnd: (link, failure, lifeMs) => this.#linkEnded(link, failure, lifeMs),
        });
      } catch (error) {
        port.close();
        throw error;
      }
      this.#rdma = rdma;
      options.counters.add('fabric.rdma.devicesTaken');
      options.logger.info({ device: port.name, windows: port.limits.windows }, 'fabric: RDMA is in use');
      await this.#listenRdma();
      this.#lookForBetter();
    } catch (error) {
      const why = FsError.from(error, 'fabric.rdma');
      this.#rdma?.close();
      this.#rdma = null;
      if (this.#without !== why.message) options.logger.info({ why: why.message }, 'fabric: no RDMA');
      this.#without = why.message;
      // What is not installed is not going to appear while this process runs.
      if (why.reason === 'nativeMissing') this.#lasting = true;
    } finally {
      this.#bringingUp = false;
      this.#probeLater();
    }
  }

  #probeLater(): void {
    if (this.#closed || this.#lasting || this.#rdma !== null || this.#probe !== null) return;
    this.#probe = this.#options.clock.after(this.#timing.probeMs, () => {
      this.#probe = null;
      void this.#bringUp();
    });
  }

  #removed(error: FsError): void {
    this.#rdma = null;
    this.#without = error.message;
    this.#options.counters.add('fabric.rdma.devicesLost');
    this.#options.logger.warn({ why: error.message }, 'fabric: RDMA is gone, TCP takes over');
    this.#probeLater();
  }

  /** The device's address that others are told: as configured, the one that TCP listens at, or its first. */
  #host(hosts: readonly string[]): string | null {
    const wanted = this.#options.rdmaHost ?? null;
    if (wanted !== null) return wanted;
    const listening = this.#tcpAddress?.host;
    return listening !== undefined && hosts.includes(listening) ? listening : (hosts[0] ?? null);
  }

  async #listenRdma(): Promise<void> {
    const rdma = this.#rdma;
    const accept = this.#accept;
    if (rdma === null || accept === null) return;
    const host = this.#host(rdma.port.hosts);
    if (host === null) throw new FsError('notSupported', { op: 'fabric.rdma', detail: 'the device has no IP address' });
    // Where it listened before, so that others find it again.
    const port = this.#rdmaAddress?.port ?? this.#options.rdmaPort ?? this.#tcpAddress?.port ?? 0;
    const known = this.#rdmaAddress;
    this.#rdmaAddress = await rdma.listen({ host, port }, accept);
    const now = { host: this.#rdmaAddress.host, port: this.#rdmaAddress.port };
    if (known?.host !== now.host || known.port !== now.port) this.onRdmaAddress?.(now);
  }

  /** RDMA is there now: whoever is connected by TCP is tried again. */
  #lookForBetter(): void {
    for (const [node, peer] of this.#peers) {
      peer.timer?.cancel();
      peer.timer = null;
      peer.failures = 0;
      peer.retryAtMs = 0;
      this.#later(node);
    }
  }
  #later(node: number): void {
    this.#options.clock.after(0, () => {
      if (!this.#closed && this.#rdma !== null) this.onBetter?.(node);
    });
  }

  // --- connections ---

  async listen(address: TransportAddress, accept: (link: Link) => void): Promise<TransportAddress> {
    this.#accept = accept;
    const refuse = (link: Link) => {
      this.#options.counters.add('fabric.refusedTcp');
      link.close();
    };
    this.#tcpAddress = await this.#options.tcp.listen(address, this.#options.mode === 'required' ? refuse : accept);
    try {
      await this.#listenRdma();
    } catch (error) {
      if (this.#options.mode === 'required') throw error;
      const why = FsError.from(error, 'fabric.listen');
      this.#options.logger.warn({ why: why.message }, 'fabric: not listening for RDMA');
      this.#rdma?.close();
      this.#rdma = null;
      this.#without = why.message;
      this.#probeLater();
    }
    const rdma = this.#rdma === null ? null : this.#rdmaAddress;
    return rdma === null ? this.#tcpAddress : { ...this.#tcpAddress, rdma: { host: rdma.host, port: rdma.port } };
  }

  async dial(address: TransportAddress, signal: AbortSignal, options: DialOptions = {}): Promise<Link> {
    const node = options.peerNode ?? 0;
    const peer = this.#peer(node);
    peer.withoutRdma = address.rdma === undefined;
    const only = options.transport ?? (this.#options.mode === 'required' ? 'rdma' : null);
    const rdma = this.#rdma;
    const object = `node ${node} at ${address.host}:${address.port}`;
    const worthIt = only === 'rdma' || (only === null && peer.retryAtMs <= this.#now);
    if (rdma !== null && address.rdma !== undefined && worthIt) {
      try {
        const link = await this.#dialRdma(rdma, address.rdma, signal);
        this.#dialledFor.set(link, node);
        return link;
      } catch (error) {
        if (signal.aborted) throw error;
        const why = FsError.from(error, 'fabric.dial', object);
        this.#options.counters.add('fabric.rdma.dialsFailed');
        this.#failed(node, why.message);
        // TCP carries on, and would for ever, since nothing else asks for a better link.
        if (peer.timer === null) this.#retryLater(node, peer);
        if (only === 'rdma') throw why;
      }
    } else if (only === 'rdma') {
      const detail = rdma === null ? this.#without : 'the peer has no RDMA';
      if (address.rdma !== undefined) this.#retryLater(node, peer);
      throw new FsError('unreachable', { op: 'fabric.dial', object, detail: `not over RDMA: ${detail}` });
    }
    return await this.#options.tcp.dial(address, signal);
  }

  async #dialRdma(rdma: RdmaTransport, address: TransportAddress, signal: AbortSignal): Promise<Link> {
    const abort = new AbortController();
    const onAbort = () => abort.abort(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    const timer = this.#options.clock.after(this.#timing.dialMs, () =>
      abort.abort(new FsError('unreachable', { op: 'fabric.dial', detail: 'no RDMA connection in time' })),
    );
    try {
      return await rdma.dial(address, abort.signal);
    } finally {
      timer.cancel();
      signal.removeEventListener('abort', onAbort);
    }
  }

  #peer(node: number): PeerState {
    let peer = this.#peers.get(node);
    if (peer === undefined) {
      peer = { failures: 0, lastError: '', retryAtMs: 0, timer: null, withoutRdma: false };
      this.#peers.set(node, peer);
    }
    return peer;
  }

  #linkEnded(link: RdmaLink, failure: string | null, lifeMs: number): void {
    const node = link.peerNode === 0 ? this.#dialledFor.get(link) : link.peerNode;
    if (this.#closed || node === undefined) return;
    // Closed by this side before it carried anything: at the handshake's deadline, or because the peer said no.
    const mute = link.peerNode === 0 && lifeMs >= this.#timing.dialMs;
    const why = failure ?? (mute ? 'no handshake in time' : null);
    if (why === null || HARMLESS.has(why)) return;
    // He may have replaced it: the new one is there by then.
    const replaced = lifeMs >= this.#timing.youngMs || this.#rdma?.hasLinkWith(node) === true;
    if (ENDED_BY_PEER.has(why) && replaced) return;
    if (lifeMs >= this.#timing.lastedMs) this.#peer(node).failures = 0;
    this.#failed(node, why);
  }

  #failed(node: number, error: string): void {
    const peer = this.#peer(node);
    peer.failures++;
    peer.lastError = error;
    if (peer.failures < FAILURES_TO_FALL_BACK) return;
    if (peer.failures === FAILURES_TO_FALL_BACK) this.#options.counters.add('fabric.rdma.fallbacks');
    this.#retryLater(node, peer);
  }

  /** TCP for now; asked for a better link after a pause. */
  #retryLater(node: number, peer: PeerState): void {
    const { pauseFirstMs, pauseMaxMs } = this.#timing;
    const doublings = Math.min(20, Math.max(0, peer.failures - FAILURES_TO_FALL_BACK));
    const pauseMs = Math.min(pauseMaxMs, pauseFirstMs * 2 ** doublings);
    peer.retryAtMs = this.#now + pauseMs;
    peer.timer?.cancel();
    peer.timer = this.#options.clock.after(pauseMs, () => {
      peer.timer = null;
      if (!this.#closed) this.onBetter?.(node);
    });
  }

  // --- windows ---

  openWindow(peerNode: number, segments: readonly PoolSegment[], access: 'read' | 'write'): RemoteWindow {
    const name = this.#options.tcp.openWindow(peerNode, segments, access);
    if (this.#options.mode === 'off') return name;
    if (this.#rdma !== null) return this.#rdma.openNamed(name, peerNode, segments, access, true);
    return this.#windows.open(name, peerNode, segments, access, null);
  }

  async closeWindow(window: RemoteWindow): Promise<void> {
    const tcp = this.#options.tcp.closeWindow(window.subarray(0, IDENTITY_BYTES));
    await this.#windows.close(window);
    await tcp;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#probe?.cancel();
    for (const peer of this.#peers.values()) peer.timer?.cancel();
    this.#rdma?.close();
    this.#rdma = null;
    this.#options.tcp.close();
    this.#windows.clear();
  }
}

/** Ends that say nothing about the path: our own decision, or a key that was not good any more. */
const HARMLESS: ReadonlySet<string> = new Set(['cancelledTransfer', 'remoteAccessError', 'backlogFull']);
/** Whoever ends it for a fault of the path saw another status, and counts that. */
const ENDED_BY_PEER: ReadonlySet<string> = new Set(['flushed', 'closedByPeer']);
