import type { Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import type { Incarnation, NodeId } from '../common/ids.js';
import type { PoolSegment } from '../native/page-pool.js';
import { FRAME_AT, FrameKind } from '../protocol/frame.js';
import type { MessageType } from '../protocol/message-types.js';
import type { NodeIdentity, Peer, RemoteWindow, RequestOptions, TransferOptions } from './fabric.js';
import { type HandshakePeer, Refusal, refusalError } from './handshake.js';
import type { Link, TransportAddress, TransportKind } from './link.js';
import { Session, type SessionHost, type SessionOwner } from './session.js';

/**
 * Another node, for as long as this process lives: the present session with it, and the work of getting it a link.
 *
 * Both sides may dial. A link is taken into use by its dialer when it is welcomed, by its acceptor when the dialer's
 * resume arrives on it; a dialer that has a link by then drops the new one instead. Should two survive all the same, the
 * one dialled by the node with the lower id stays. So both sides end with the same link, and a side that has lost its link
 * without the other noticing can replace it.
 *
 * Invariant: at most one session, bound to the newest incarnation met; incarnations up to the fence never get one.
 */
export interface RemotePeerHost extends SessionHost {
  /** Null: has no address, never dialled. */
  resolveAddress(node: NodeId): Promise<TransportAddress | null>;
  /** Connects and shakes hands. Rejects with a FsError; `HandshakeRefused` when the other side, or we, said no. */
  dialPeer(
    peer: RemotePeer,
    address: TransportAddress,
    signal: AbortSignal,
    transport?: TransportKind,
  ): Promise<DialledLink>;
  checkTransfer(window: RemoteWindow, windowOffsetBytes: number, local: readonly PoolSegment[]): number;
  peerChanged(peer: NodeIdentity, change: 'met' | 'replaced' | 'forgotten'): void;
  /** Uniform in [0, 1): spreads redials. */
  jitter(): number;
  readonly backoff: { readonly firstMs: number; readonly maxMs: number };
}

export interface DialledLink {
  readonly link: Link;
  readonly identity: HandshakePeer;
}

export class HandshakeRefused extends FsError {
  constructor(
    readonly refusal: Refusal,
    by: 'us' | 'them',
    object: string,
  ) {
    const error = refusalError(refusal, by, object);
    super(error.reason, { op: error.op, object, detail: error.detail });
  }
}

/** Refusals that time won't cure: requests fail with them at once instead of at their deadline. */
const LASTING: ReadonlySet<Refusal> = new Set([
  Refusal.wrongVersion,
  Refusal.wrongCluster,
  Refusal.wrongKey,
  Refusal.wrongNode,
  Refusal.fenced,
  Refusal.identityTaken,
]);

const LASTED_MS = 1000;
/** What a peer that holds the link gets to replace it. */
const THEIR_TURN_MS = 2000;

export class RemotePeer implements Peer, SessionOwner {
  readonly #host: RemotePeerHost;
  #session: Session | null = null;
  /** Newest incarnation met, with its process's instance. */
  #known: HandshakePeer | null = null;
  #fence = 0;
  #closed: FsError | null = null;

  #dial: AbortController | null = null;
  /** Our dial has reached the other side: from here on a lower id takes precedence. */
  #dialReached = false;
  #redial: Timer | null = null;
  #attempts = 0;
  #adoptedAtMs = 0;
  /** The present link was dialled by us and the other side has not spoken on it yet. */
  #dialledUnconfirmed = false;
  readonly #candidates = new Set<Link>();
  /** The present link is wanted as it is: a test measures it. */
  #held: 'us' | 'them' | null = null;

  constructor(
    host: RemotePeerHost,
    readonly nodeId: NodeId,
  ) {
    this.#host = host;
  }

  get peer(): Peer {
    return this;
  }
  get connected(): boolean {
    return this.#session?.connected ?? false;
  }

  /** Of the link that carries frames now. */
  get linkKind(): TransportKind | null {
    return this.#session?.linkKind ?? null;
  }

  request(type: MessageType, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    return (this.#session ?? this.#newSession()).request(type, body, options);
  }

  send(type: MessageType, body: Uint8Array): void {
    if (this.#closed !== null) throw this.#closed;
    (this.#session ?? this.#newSession()).send(type, body);
  }

  writeRemote(
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): Promise<void> {
    return this.#transfer(true, window, windowOffsetBytes, local, options);
  }

  readRemote(
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): Promise<void> {
    return this.#transfer(false, window, windowOffsetBytes, local, options);
  }

  async #transfer(
    writing: boolean,
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options: TransferOptions | undefined,
  ): Promise<void> {
    if (this.#closed !== null) throw this.#closed;
    if (this.#host.checkTransfer(window, windowOffsetBytes, local) === 0) return;
    await (this.#session ?? this.#newSession()).transfer(writing, window, windowOffsetBytes, local, options);
  }

  #newSession(): Session {
    this.#session = new Session(this.#host, this);
    return this.#session;
  }

  // --- who may talk ---

  /** Judges an authenticated hello. */
  admit(hello: HandshakePeer, dialledByUs: boolean): Refusal | null {
    if (this.#closed !== null) return Refusal.closing;
    if (hello.incarnation <= this.#fence) return Refusal.fenced;
    if (this.#known !== null) {
      if (hello.incarnation < this.#known.incarnation) return Refusal.fenced;
      if (hello.incarnation === this.#known.incarnation && hello.instance !== this.#known.instance) {
        return Refusal.identityTaken;
      }
    }
    if (!dialledByUs && this.#dialReached && this.#host.self.nodeId < this.nodeId) return Refusal.simultaneous;
    return null;
  }

  forget(upTo: Incarnation): void {
    if (upTo > this.#fence) this.#fence = upTo;
    const identity = this.#session?.identity ?? null;
    if (identity === null || identity.incarnation > upTo) return;
    const error = new FsError('fenced', {
      op: 'fabric.forget',
      object: `node ${this.nodeId}`,
      detail: `incarnation ${identity.incarnation} has been fenced`,
    });
    this.#endSession(error);
    this.#host.peerChanged(identity, 'forgotten');
  }

  close(error: FsError): void {
    this.#closed = error;
    for (const link of this.#candidates) link.close();
    this.#candidates.clear();
    this.#endSession(error);
  }

  #endSession(error: FsError): void {
    const session = this.#session;
    this.#session = null;
    this.#dialledUnconfirmed = false;
    this.stopDialling(error);
    session?.fail(error);
  }

  // --- links ---

  /** An accepted link whose handshake is done; `committed` is called when its dialer has committed to it or it is gone. */
  offer(link: Link, identity: HandshakePeer, committed: () => void): void {
    this.#candidates.add(link);
    const leave = () => {
      this.#candidates.delete(link);
      committed();
    };
    link.events = {
      onRecord: () => {
        leave();
        link.close();
      },
      onTransferDone: () => undefined,
      onClosed: leave,
      onFrames: (batch) => {
        leave();
        const first = batch.bytes[batch.offsets[0]! + FRAME_AT.kind];
        const oursStays = this.#dialledUnconfirmed && this.#host.self.nodeId < this.nodeId;
        if (first !== FrameKind.resume || oursStays || this.admit(identity, true) !== null) {
          this.#host.counters.add('fabric.linksDropped');
          link.close();
          return;
        }
        this.#adopt(link, identity);
        this.#dialledUnconfirmed = false;
        this.#session?.onFrames(batch);
      },
    };
  }

  #adopt(link: Link, identity: HandshakePeer): void {
    this.stopDialling(new FsError('busy', { op: 'fabric.dial', detail: 'another link was taken' }));
    this.#adoptedAtMs = this.#host.clock.nowMs();
    const bound = this.#session?.identity ?? null;
    if (bound !== null && bound.incarnation !== identity.incarnation) {
      const error = new FsError('fenced', {
        op: 'fabric.session',
        object: `node ${this.nodeId}`,
        detail: `incarnation ${bound.incarnation} was replaced by ${identity.incarnation}`,
      });
      this.#session?.fail(error);
      this.#session = null;
      this.#host.counters.add('fabric.incarnationsReplaced');
    }
    const changed = bound === null || bound.incarnation !== identity.incarnation;
    this.#known = identity;
    const session = this.#session ?? this.#newSession();
    if (changed) session.bind({ nodeId: identity.nodeId, incarnation: identity.incarnation });
    session.attach(link);
    this.#host.counters.add('fabric.linksAdopted');
    if (changed) this.#host.peerChanged(session.identity!, bound === null ? 'met' : 'replaced');
  }

  linkLost(session: Session, error: FsError): void {
    if (session !== this.#session) return;
    this.#host.logger.debug({ node: this.nodeId, error }, 'fabric: link lost');
    this.#dialledUnconfirmed = false;
    // A link that lasted earns an immediate redial; two sides that can't get along don't get to try in a tight loop.
    if (this.#host.clock.nowMs() - this.#adoptedAtMs >= LASTED_MS) this.#attempts = 0;
    if (this.#held !== 'them') {
      this.wantLink();
      return;
    }
    this.#redial?.cancel();
    this.#redial = this.#host.clock.after(THEIR_TURN_MS, () => {
      this.#redial = null;
      this.wantLink();
    });
  }

  // --- dialling ---

  wantLink(): void {
    if (this.#closed !== null || this.#dial !== null || this.#redial !== null) return;
    if (this.#session === null || this.#session.linked) return;
    const { firstMs, maxMs } = this.#host.backoff;
    // The first try goes out at once, the second after firstMs, then doubling.
    const delayMs =
      this.#attempts === 0 ? 0 : Math.min(maxMs, firstMs * 2 ** (this.#attempts - 1)) * (0.5 + this.#host.jitter() / 2);
    if (delayMs === 0) {
      void this.#tryDial();
      return;
    }
    this.#redial = this.#host.clock.after(delayMs, () => {
      this.#redial = null;
      void this.#tryDial();
    });
  }

  stopDialling(reason: FsError): void {
    this.#redial?.cancel();
    this.#redial = null;
    this.#dialReached = false;
    this.#dial?.abort(reason);
    this.#dial = null;
  }

  dialReached(): void {
    this.#dialReached = true;
  }

  /** A better transport may be had: dials beside the present link, which stays until the new one is there. */
  upgrade(): void {
    if (this.#held !== null || this.#closed !== null || this.#dial !== null) return;
    if (this.linkKind === null || this.linkKind === 'rdma') return;
    this.relink('rdma').catch((error: unknown) => {
      this.#host.logger.debug({ node: this.nodeId, error }, 'fabric: no better link');
    });
  }

  /**
   * While it is held, no better transport is looked for; whatever there was to be found then is tried when it ends. Held for them: a
   * link that goes is replaced by them; ours would come between.
   */
  hold(by: 'us' | 'them' | null): void {
    if (this.#held === by) return;
    this.#held = by;
    if (by === null) this.upgrade();
  }

  /** Comes before any link that is being dialled for. @throws {FsError} unreachable, closed, busy (another was asked for meanwhile): whatever link there was stays. */
  async relink(transport: TransportKind): Promise<void> {
    if (this.#closed !== null) throw this.#closed;
    if (this.#session === null) this.#newSession();
    const object = `node ${this.nodeId}`;
    this.stopDialling(new FsError('busy', { op: 'fabric.dial', object, detail: 'another link is asked for' }));
    const failure = await this.#tryDial(transport);
    if (failure !== null) throw failure;
  }

  /** @param transport Given: replaces the link there is. @returns why there is no new link, or null. */
  async #tryDial(transport?: TransportKind): Promise<FsError | null> {
    const dial = new AbortController();
    this.#dial = dial;
    this.#attempts++;
    let dialled: DialledLink | null = null;
    let failure: FsError | null = null;
    let failed = false;
    try {
      const address = await this.#host.resolveAddress(this.nodeId);
      if (address === null) failure = this.#noAddress();
      else if (!dial.signal.aborted) {
        dialled = await this.#host.dialPeer(this, address, dial.signal, transport);
      }
    } catch (error) {
      failure = FsError.from(error, 'fabric.dial', `node ${this.nodeId}`);
      failed = true;
    }
    if (dial !== this.#dial) {
      dialled?.link.close();
      return failure ?? new FsError('busy', { op: 'fabric.dial', detail: 'another link was taken' });
    }
    this.#dial = null;
    this.#dialReached = false;
    if (dialled !== null) return this.#onDialled(dialled, transport !== undefined);
    if (failed) this.#onDialFailed(failure!, transport !== undefined);
    if (this.#session !== null && (this.#session.hasWork || this.#session.identity !== null)) this.wantLink();
    return failure;
  }

  #noAddress(): FsError {
    return new FsError('unreachable', {
      op: 'fabric.dial',
      object: `node ${this.nodeId}`,
      detail: 'it has no address',
    });
  }

  #onDialled({ link, identity }: DialledLink, replacing: boolean): FsError | null {
    if (link.closed || (this.#session?.linked && !replacing)) {
      link.close();
      this.wantLink();
      return new FsError('connectionLost', { op: 'fabric.dial', object: link.name, detail: 'it ended at once' });
    }
    this.#adopt(link, identity);
    this.#dialledUnconfirmed = true;
    const session = this.#session!;
    const events = link.events;
    // The first frame of the other side confirms the link; from then on nothing stands between it and the session.
    link.events = {
      onRecord: (record) => events.onRecord(record),
      onTransferDone: (id, status) => events.onTransferDone(id, status),
      onClosed: (error, counter) => events.onClosed(error, counter),
      onFrames: (batch) => {
        this.#dialledUnconfirmed = false;
        link.events = session;
        session.onFrames(batch);
      },
    };
    return null;
  }

  #onDialFailed(error: FsError, replacing: boolean): void {
    this.#host.counters.add('fabric.dialsFailed');
    this.#host.logger.debug({ node: this.nodeId, error }, 'fabric: dial failed');
    // A link too many was refused; the present one says nothing of the kind.
    if (replacing || !(error instanceof HandshakeRefused) || !LASTING.has(error.refusal)) return;
    // Fenced, the session is over for good. Otherwise its stream is kept, should the other side come to its senses.
    if (error.refusal === Refusal.fenced || this.#session?.identity == null) {
      const session = this.#session;
      this.#session = null;
      session?.fail(error);
    } else {
      this.#session.failPending(error);
    }
  }
}
