import { randomBytes as cryptoRandomBytes } from 'node:crypto';
import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { type Epoch, epoch, type Incarnation, type NodeId, nodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { MessageType } from '../protocol/message-types.js';
import {
  type Fabric,
  type MessageHandler,
  type NodeIdentity,
  type Peer,
  REMOTE_WINDOW_BYTES_MAX,
  type RemoteWindow,
  type RequestHandler,
  WINDOW_BYTES_MAX,
  type Window,
} from './fabric.js';
import { Handshake, type HandshakePeer, INSTANCE_BYTES, Refusal, refusalName } from './handshake.js';
import { type Link, type Transport, type TransportAddress, type TransportKind, WINDOW_SEGMENTS_MAX } from './link.js';
import { LoopbackPeer } from './loopback.js';
import { type DialledLink, HandshakeRefused, RemotePeer, type RemotePeerHost } from './remote-peer.js';
import { DEFAULT_SESSION_LIMITS, type SessionLimits, type Traffic } from './session.js';

/**
 * One node's fabric: its peers, its handlers, the doors (listening and dialling) and the handshakes at them.
 *
 * Invariants: nothing that came over a link is looked at before its handshake is done; a peer's frames reach only the
 * session of the incarnation that authenticated. The epoch only moves up.
 * Fault model: anyone may connect and send anything; handshakes have a deadline and their number is bounded.
 */
export interface FabricNodeOptions {
  readonly self: NodeIdentity;
  readonly clusterId: string;
  /** The cluster's shared secret, at least 16 bytes. */
  readonly clusterKey: Buffer;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly counters: Counters;
  /** Belongs to the fabric from now on: closed with it. */
  readonly transport: Transport;
  readonly pool: PagePool;
  /** Null: this node is never dialled, it dials us. */
  readonly resolveAddress: (node: NodeId) => Promise<TransportAddress | null>;
  /** For nonces; the simulator hands in its seeded one. */
  readonly randomBytes?: ((count: number) => Uint8Array) | undefined;
  /** Runs something at the end of the present turn; process.nextTick, which comes after promises that are due. */
  readonly defer?: ((run: () => void) => void) | undefined;
  readonly limits?: Partial<SessionLimits> | undefined;
  readonly backoff?: { readonly firstMs: number; readonly maxMs: number } | undefined;
  readonly handshakeTimeoutMs?: number | undefined;
  readonly handshakesMax?: number | undefined;
  /** Tests only: speak another version of the handshake. */
  readonly handshakeVersion?: number | undefined;
}

export interface PeerStatus {
  readonly nodeId: NodeId;
  readonly connected: boolean;
  readonly transport: TransportKind | null;
  /** Why this transport, in words. */
  readonly reason: string;
}

const MESSAGE_TYPE_MAX = 0xffff;
const U32_MAX = 0xffffffff;

export class FabricNode implements Fabric, RemotePeerHost {
  readonly self: NodeIdentity;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly limits: SessionLimits;
  readonly traffic: Traffic = { messagesOut: 0, transfersOut: 0 };
  readonly backoff: { readonly firstMs: number; readonly maxMs: number };
  readonly messageHandlers: (MessageHandler | undefined)[] = [];
  readonly requestHandlers: (RequestHandler | undefined)[] = [];
  readonly defer: (run: () => void) => void;

  readonly #options: FabricNodeOptions;
  readonly #transport: Transport;
  readonly #randomBytes: (count: number) => Uint8Array;
  readonly #instance: Uint8Array;
  readonly #handshakeTimeoutMs: number;
  readonly #handshakesMax: number;
  readonly #remotes = new Map<NodeId, RemotePeer>();
  readonly #loopback: LoopbackPeer;
  readonly #listeners: ((peer: NodeIdentity, change: 'met' | 'replaced' | 'forgotten') => void)[] = [];
  readonly #greeting = new Set<Link>();
  #epoch = 0;
  #closed: FsError | null = null;
  #leaving: FsError | null = null;

  constructor(options: FabricNodeOptions) {
    const { self } = options;
    const invalid = (detail: string) => new FsError('invalidArgument', { op: 'fabric.create', detail });
    if (!(Number.isInteger(self.nodeId) && self.nodeId >= 1 && self.nodeId <= 0xffff)) throw invalid('node id');
    if (!(Number.isInteger(self.incarnation) && self.incarnation >= 1 && self.incarnation <= U32_MAX)) {
      throw invalid('incarnation');
    }
    if (options.clusterKey.length < 16) throw invalid('the cluster key is shorter than 16 bytes');
    this.self = self;
    this.clock = options.clock;
    this.counters = options.counters;
    this.logger = options.logger;
    this.limits = { ...DEFAULT_SESSION_LIMITS, ...options.limits };
    this.backoff = options.backoff ?? { firstMs: 20, maxMs: 2000 };
    this.defer = options.defer ?? process.nextTick;
    this.#options = options;
    this.#transport = options.transport;
    this.#randomBytes = options.randomBytes ?? cryptoRandomBytes;
    this.#instance = this.#randomBytes(INSTANCE_BYTES).slice();
    this.#handshakeTimeoutMs = options.handshakeTimeoutMs ?? 5000;
    this.#handshakesMax = options.handshakesMax ?? 256;
    this.#loopback = new LoopbackPeer(this, options.pool);
    this.#transport.onBetter = (node) => this.#remotes.get(nodeId(node))?.upgrade();
  }

  get epoch(): Epoch {
    return epoch(this.#epoch);
  }

  setEpoch(value: Epoch): void {
    if (!(Number.isInteger(value) && value >= 0 && value <= U32_MAX)) {
      throw new FsError('invalidArgument', { op: 'fabric.setEpoch', detail: `epoch ${value}` });
    }
    if (value > this.#epoch) this.#epoch = value;
  }

  peer(node: NodeId): Peer {
    return node === this.self.nodeId ? this.#loopback : this.#remote(node);
  }

  #remote(node: NodeId): RemotePeer {
    let remote = this.#remotes.get(node);
    if (remote === undefined) {
      if (!(Number.isInteger(node) && node >= 1 && node <= 0xffff)) {
        throw new FsError('invalidArgument', { op: 'fabric.peer', detail: `node id ${node}` });
      }
      remote = new RemotePeer(this, node);
      if (this.#closed !== null) remote.close(this.#closed);
      this.#remotes.set(node, remote);
    }
    return remote;
  }

  handleRequests(type: MessageType, handler: RequestHandler): void {
    this.#claim(this.requestHandlers, type);
    this.requestHandlers[type] = handler;
  }

  handleMessages(type: MessageType, handler: MessageHandler): void {
    this.#claim(this.messageHandlers, type);
    this.messageHandlers[type] = handler;
  }

  #claim(table: readonly unknown[], type: number): void {
    if (!(type >= 0 && type <= MESSAGE_TYPE_MAX) || table[type] !== undefined) {
      throw new FsError('invalidArgument', {
        op: 'fabric.handle',
        detail: `message type ${type} has a handler already`,
      });
    }
  }

  onPeerChange(listener: (peer: NodeIdentity, change: 'met' | 'replaced' | 'forgotten') => void): void {
    this.#listeners.push(listener);
  }

  forget(node: NodeId, upTo: Incarnation): void {
    if (node !== this.self.nodeId) this.#remote(node).forget(upTo);
  }

  expose(peer: NodeId, segments: readonly PoolSegment[], access: 'read' | 'write'): Window {
    const invalid = (detail: string) => new FsError('invalidArgument', { op: 'fabric.expose', detail });
    if (this.#closed !== null) throw this.#closed;
    if (segments.length === 0 || segments.length > WINDOW_SEGMENTS_MAX) throw invalid(`${segments.length} segments`);
    const lengthBytes = this.#checkSegments(segments, invalid);
    if (lengthBytes > WINDOW_BYTES_MAX) throw invalid(`${lengthBytes} bytes in one window`);
    if (peer === this.self.nodeId) {
      const remote = this.#loopback.openWindow(segments, access);
      return { remote, lengthBytes, close: async () => this.#loopback.closeWindow(remote) };
    }
    const remote = this.#transport.openWindow(peer, segments, access);
    return { remote, lengthBytes, close: () => this.#transport.closeWindow(remote) };
  }

  #checkSegments(segments: readonly PoolSegment[], invalid: (detail: string) => FsError): number {
    const poolBytes = this.#options.pool.lengthBytes;
    let total = 0;
    for (const { offsetBytes, lengthBytes } of segments) {
      const inside = offsetBytes >= 0 && lengthBytes > 0 && offsetBytes + lengthBytes <= poolBytes;
      if (!inside || !Number.isInteger(offsetBytes) || !Number.isInteger(lengthBytes)) {
        throw invalid(`segment ${offsetBytes}+${lengthBytes} of a pool of ${poolBytes}`);
      }
      total += lengthBytes;
    }
    return total;
  }

  /** For peers: what they may hand to a transfer. @returns its length in bytes. @throws {FsError} invalidArgument. */
  checkTransfer(window: RemoteWindow, windowOffsetBytes: number, local: readonly PoolSegment[]): number {
    const invalid = (detail: string) => new FsError('invalidArgument', { op: 'fabric.transfer', detail });
    if (window.length < 16 || window.length > REMOTE_WINDOW_BYTES_MAX) throw invalid('not the name of a window');
    if (!Number.isSafeInteger(windowOffsetBytes) || windowOffsetBytes < 0) throw invalid(`offset ${windowOffsetBytes}`);
    if (local.length > WINDOW_SEGMENTS_MAX) throw invalid(`${local.length} segments`);
    const lengthBytes = this.#checkSegments(local, invalid);
    if (lengthBytes > WINDOW_BYTES_MAX) throw invalid(`${lengthBytes} bytes in one transfer`);
    return lengthBytes;
  }

  /**
   * From now on this node dials nobody, but goes on answering: said before it takes itself out of the view. Who has seen it gone fences it and
   * closes the link; dialled again, both sides would report a fenced node knocking.
   */
  leave(): void {
    const error = new FsError('unreachable', { op: 'fabric.dial', detail: 'this node is leaving the cluster' });
    this.#leaving = error;
    for (const remote of this.#remotes.values()) remote.stopDialling(error);
  }

  async close(): Promise<void> {
    if (this.#closed !== null) return;
    const error = new FsError('closed', { op: 'fabric', detail: 'the fabric is closed' });
    this.#closed = error;
    for (const link of this.#greeting) link.close();
    this.#greeting.clear();
    for (const remote of this.#remotes.values()) remote.close(error);
    this.#loopback.close(error);
    this.#transport.close();
  }

  // --- doors ---

  /** Lets others in. Port 0 takes any; resolves to the address in use. */
  listen(address: TransportAddress): Promise<TransportAddress> {
    return this.#transport.listen(address, (link) => this.#onAccepted(link));
  }

  #onAccepted(link: Link): void {
    if (this.#closed !== null || this.#greeting.size >= this.#handshakesMax) {
      this.counters.add('fabric.refusedCrowd');
      link.close();
      return;
    }
    this.#greeting.add(link);
    const over = () => {
      timer.cancel();
      this.#greeting.delete(link);
    };
    const timer = this.clock.after(this.#handshakeTimeoutMs, () => {
      this.#greeting.delete(link);
      if (link.closed) return;
      this.counters.add('fabric.refusedHandshake.deadline');
      link.close();
    });
    const handshake = this.#handshake('acceptor', undefined, link);
    link.events = {
      onFrames: () => undefined,
      onTransferDone: () => undefined,
      onClosed: over,
      onRecord: (record) => {
        const step = handshake.onRecord(record);
        for (const answer of step.send) link.sendRecord(answer);
        if (step.is === 'going') return;
        if (step.is === 'refused') {
          over();
          this.#countRefusal(step.refusal, step.by, step.claimedNode);
          link.close();
          return;
        }
        // The deadline also covers the dialer's commitment.
        link.startFrames(step.peer.nodeId);
        this.#remote(step.peer.nodeId).offer(link, step.peer, over);
      },
    };
  }

  dialPeer(
    peer: RemotePeer,
    address: TransportAddress,
    signal: AbortSignal,
    transport?: TransportKind,
  ): Promise<DialledLink> {
    const object = `node ${peer.nodeId} at ${address.host}:${address.port}`;
    if (this.#leaving !== null) return Promise.reject(this.#leaving);
    return new Promise((resolve, reject) => {
      const deadline = new AbortController();
      let link: Link | null = null;
      let settled = false;
      const settle = (run: () => void) => {
        if (settled) return;
        settled = true;
        timer.cancel();
        signal.removeEventListener('abort', onAbort);
        if (link !== null) this.#greeting.delete(link);
        run();
      };
      const fail = (error: unknown) =>
        settle(() => {
          deadline.abort(error);
          link?.close();
          reject(error);
        });
      const onAbort = () => fail(signal.reason);
      const timer = this.clock.after(this.#handshakeTimeoutMs, () => {
        this.counters.add('fabric.handshakeDeadlines');
        fail(new FsError('unreachable', { op: 'fabric.dial', object, detail: 'no handshake in time' }));
      });
      signal.addEventListener('abort', onAbort, { once: true });
      this.#transport.dial(address, deadline.signal, { peerNode: peer.nodeId, transport }).then((made) => {
        if (settled) return made.close();
        link = made;
        this.#greeting.add(made);
        peer.dialReached();
        this.#greet(made, peer, object, fail, (identity) => settle(() => resolve({ link: made, identity })));
      }, fail);
    });
  }

  #greet(
    link: Link,
    peer: RemotePeer,
    object: string,
    fail: (error: FsError) => void,
    done: (identity: HandshakePeer) => void,
  ): void {
    const handshake = this.#handshake('dialer', peer.nodeId, link);
    link.events = {
      onFrames: () => undefined,
      onTransferDone: () => undefined,
      onClosed: (error) => fail(error),
      onRecord: (record) => {
        const step = handshake.onRecord(record);
        for (const answer of step.send) link.sendRecord(answer);
        if (step.is === 'refused') {
          this.#countRefusal(step.refusal, step.by, peer.nodeId);
          fail(new HandshakeRefused(step.refusal, step.by, object));
        } else if (step.is === 'done') {
          link.startFrames(peer.nodeId);
          done(step.peer);
        }
      },
    };
    for (const record of handshake.start()) link.sendRecord(record);
  }

  #handshake(role: 'dialer' | 'acceptor', wanted: NodeId | undefined, link: Link): Handshake {
    return new Handshake({
      role,
      self: this.self,
      clusterId: this.#options.clusterId,
      clusterKey: this.#options.clusterKey,
      instance: this.#instance,
      randomBytes: this.#randomBytes,
      wanted,
      version: this.#options.handshakeVersion,
      channelBinding: link.channelBinding,
      claimed: link.claimed,
      admit: (hello) => this.#remote(hello.nodeId).admit(hello, role === 'dialer'),
    });
  }

  #countRefusal(refusal: Refusal, by: 'us' | 'them', node: number | null): void {
    const name = refusalName(refusal);
    this.counters.add(`fabric.${by === 'us' ? 'refusedHandshake' : 'handshakeRefused'}.${name}`);
    if (refusal !== Refusal.simultaneous) {
      this.logger.warn({ node, refusal: name, by }, 'fabric: handshake refused');
    }
  }

  /** The peers met so far and what connects us. */
  peers(): PeerStatus[] {
    return [...this.#remotes.values()].map((remote) => ({
      nodeId: remote.nodeId,
      connected: remote.connected,
      transport: remote.linkKind,
      reason: this.#transport.describe?.(remote.nodeId, remote.linkKind) ?? '',
    }));
  }

  /** Replaces the link with a peer by one over this transport. @throws {FsError} unreachable: the present link stays. */
  relink(node: NodeId, transport: TransportKind): Promise<void> {
    return this.#remote(node).relink(transport);
  }

  /** A peer can be reached in a better way than before, perhaps. */
  lookForBetter(node: NodeId): void {
    this.#remotes.get(node)?.upgrade();
  }

  /** The link with a peer is not replaced by a better one, at our or their wish, until this is null again. */
  holdLink(node: NodeId, by: 'us' | 'them' | null): void {
    this.#remote(node).hold(by);
  }

  // --- for peers ---

  resolveAddress(node: NodeId): Promise<TransportAddress | null> {
    return this.#options.resolveAddress(node);
  }

  peerChanged(peer: NodeIdentity, change: 'met' | 'replaced' | 'forgotten'): void {
    for (const listener of this.#listeners) listener(peer, change);
  }

  jitter(): number {
    return this.#randomBytes(1)[0]! / 256;
  }
}
