import { InvariantError } from '../common/assert.js';
import type { Clock, Timer } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { epoch as asEpoch } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { PoolSegment } from '../native/page-pool.js';
import {
  FRAME_AT,
  FRAME_HEADER_BYTES,
  FRAME_KIND_STREAM_MAX,
  FrameKind,
  getU64,
  TransferStatus,
  writeFrameHeader,
} from '../protocol/frame.js';
import type { MessageType } from '../protocol/message-types.js';
import {
  type IncomingMessage,
  MESSAGE_BODY_BYTES_MAX,
  type MessageHandler,
  type NodeIdentity,
  type Peer,
  type RemoteWindow,
  type RequestHandler,
  type RequestOptions,
  type TransferOptions,
} from './fabric.js';
import type { FrameBatch, Link, LinkEvents, TransportKind } from './link.js';
import { SendQueue } from './send-queue.js';
import { decodeError, encodeError, transferError } from './wire-errors.js';

/**
 * A session: two incarnations talking, over one link after another. It makes the stream reliable, ordered and
 * exactly-once, requests executed once, transfers retried.
 *
 * - Every message, request and reply has a sequence in its direction's stream. The receiver takes exactly the next one;
 *   after a break both sides say in `resume` what they have, and the rest is sent again. So a request is executed once,
 *   and a reply survives in the queue until its receiver has acknowledged it: the unacknowledged queue is the reply cache
 *   of rule F6, keyed by incarnation (the session) and sequence.
 * - Acknowledgements ride on whatever goes back, else alone after ackDelayMs or a quarter of the credit.
 * - Credit: no more than creditMessages beyond what the other side has acknowledged are under way. What doesn't fit
 *   waits in the bounded queue; what doesn't fit there is refused with queueFull. Replies are never refused: there are at
 *   most as many as requests in execution, which requestsExecutingMax bounds (beyond it a request is answered queueFull;
 *   holding it back instead would hold up the very messages that may be needed to finish the others).
 * - One-sided transfers belong to a link; on a new one they start over, which is harmless while the window is open.
 *   writeRemote resolves on the other side's word that the bytes have landed. (Resolving when queued would save a round
 *   trip, but then a break would leave a later message ahead of bytes that nobody sends again.)
 *
 * Fault model: links end at any byte. A frame that passed its checksum may still lie; sequence, acknowledgement, epoch,
 * incarnation and request number are checked, and a link on which one is impossible is closed and counted.
 */
export interface SessionLimits {
  /** Messages the other side may send beyond what we acknowledged; 1 to 65535. */
  readonly creditMessages: number;
  readonly queueMessagesMax: number;
  readonly queueBytesMax: number;
  readonly requestsExecutingMax: number;
  readonly transfersMax: number;
  readonly ackDelayMs: number;
  /** A link on which nothing is acknowledged for so long is given up. */
  readonly linkStallMs: number;
  /** A transfer that has not ended by then fails with deadlinePassed. */
  readonly transferTimeoutMs: number;
}

export const DEFAULT_SESSION_LIMITS: SessionLimits = {
  creditMessages: 8192,
  queueMessagesMax: 65536,
  queueBytesMax: 64 * 1024 * 1024,
  requestsExecutingMax: 16384,
  transfersMax: 4096,
  ackDelayMs: 10,
  linkStallMs: 10_000,
  transferTimeoutMs: 30_000,
};

/** What this node began to send to other nodes, ever; to itself doesn't count. Fields, because they change with every message. */
export interface Traffic {
  /** Messages, requests and replies. */
  messagesOut: number;
  /** One-sided reads and writes. */
  transfersOut: number;
}

/** What a session needs from the fabric around it. */
export interface SessionHost {
  readonly self: NodeIdentity;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly limits: SessionLimits;
  readonly epoch: number;
  readonly traffic: Traffic;
  /** By message type. */
  readonly messageHandlers: readonly (MessageHandler | undefined)[];
  readonly requestHandlers: readonly (RequestHandler | undefined)[];
  /** Calls it at the end of the present turn of JS. */
  defer(run: () => void): void;
}

/** What a session asks of the peer it belongs to. */
export interface SessionOwner {
  readonly peer: Peer;
  /** There is something to send and no link. */
  wantLink(): void;
  linkLost(session: Session, error: FsError): void;
}

interface PendingRequest {
  readonly resolve: (body: Uint8Array) => void;
  readonly reject: (error: unknown) => void;
  readonly type: MessageType;
  readonly deadlineMs: number;
  readonly signal: AbortSignal | undefined;
  readonly onAbort: (() => void) | undefined;
}

interface Transfer {
  readonly writing: boolean;
  readonly window: RemoteWindow;
  readonly windowOffsetBytes: number;
  readonly local: readonly PoolSegment[];
  readonly options: TransferOptions | undefined;
  readonly deadlineMs: number;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

const isPromise = (value: Uint8Array | Promise<Uint8Array>): value is Promise<Uint8Array> =>
  typeof (value as { then?: unknown }).then === 'function';

export class Session implements LinkEvents {
  readonly #host: SessionHost;
  readonly #owner: SessionOwner;
  readonly #queue = new SendQueue();
  readonly #pending = new Map<number, PendingRequest>();
  readonly #transfers = new Map<number, Transfer>();
  readonly #flushBound = () => this.#flush();
  readonly #scratch = new Uint8Array(FRAME_HEADER_BYTES);
  readonly #scratchView = new DataView(this.#scratch.buffer);

  #identity: NodeIdentity | null = null;
  #link: Link | null = null;
  /** The other side's resume has come on this link: the stream flows. */
  #resumed = false;
  #failure: FsError | null = null;

  /** Highest sequence received in order, and what of it the other side has been told. */
  #received = 0;
  #ackSent = 0;
  #sendLimit = 0;
  #peerEpoch = 0;
  #requestSequence = 0;
  #peerRequestSequence = 0;
  #executing = 0;
  #transferId = 0;
  #transfersQueued = false;

  #flushScheduled = false;
  #ackTimer: Timer | null = null;
  #stallTimer: Timer | null = null;
  #stallAcked = 0;
  #deadlineTimer: Timer | null = null;
  #deadlineAt = Number.POSITIVE_INFINITY;

  constructor(host: SessionHost, owner: SessionOwner) {
    this.#host = host;
    this.#owner = owner;
  }

  /** Null until the peer has been met. */
  get identity(): NodeIdentity | null {
    return this.#identity;
  }
  get connected(): boolean {
    return this.#resumed;
  }
  get linked(): boolean {
    return this.#link !== null;
  }
  get linkKind(): TransportKind | null {
    return this.#resumed ? (this.#link?.kind ?? null) : null;
  }
  get failure(): FsError | null {
    return this.#failure;
  }
  get hasWork(): boolean {
    return this.#queue.countUnacked > 0 || this.#transfers.size > 0;
  }

  bind(identity: NodeIdentity): void {
    this.#identity = identity;
  }

  // --- sending ---

  send(type: MessageType, body: Uint8Array): void {
    const error = this.#refusal('fabric.send', body);
    if (error !== null) throw error;
    this.#append(FrameKind.message, 0, type, body);
  }

  request(type: MessageType, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    const error = this.#refusal('fabric.request', body);
    if (error !== null) return Promise.reject(error);
    const signal = options.signal;
    if (signal?.aborted) return Promise.reject(abortedError(signal));
    return new Promise((resolve, reject) => {
      const sequence = ++this.#requestSequence;
      const deadlineMs = this.#host.clock.nowMs() + options.timeoutMs;
      let onAbort: (() => void) | undefined;
      if (signal !== undefined) {
        onAbort = () => this.#settle(sequence)?.reject(abortedError(signal));
        signal.addEventListener('abort', onAbort, { once: true });
      }
      this.#pending.set(sequence, { resolve, reject, type, deadlineMs, signal, onAbort });
      if (deadlineMs < this.#deadlineAt) this.#armDeadline(deadlineMs);
      this.#append(FrameKind.request, sequence, type, body);
    });
  }

  transfer(
    writing: boolean,
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (this.#transfers.size >= this.#host.limits.transfersMax) {
      return Promise.reject(queueFullError('fabric.transfer', 'too many transfers under way'));
    }
    return new Promise((resolve, reject) => {
      this.#host.traffic.transfersOut++;
      this.#transferId = (this.#transferId % 0xffffffff) + 1;
      const id = this.#transferId;
      const deadlineMs = this.#host.clock.nowMs() + this.#host.limits.transferTimeoutMs;
      const transfer: Transfer = { writing, window, windowOffsetBytes, local, options, deadlineMs, resolve, reject };
      this.#transfers.set(id, transfer);
      if (deadlineMs < this.#deadlineAt) this.#armDeadline(deadlineMs);
      if (this.#resumed) {
        this.#startTransfer(this.#link!, id, transfer);
      } else if (this.#link === null) {
        this.#owner.wantLink();
      }
    });
  }

  #startTransfer(link: Link, id: number, transfer: Transfer): void {
    const { window, windowOffsetBytes, local, options } = transfer;
    link[transfer.writing ? 'write' : 'read'](id, window, windowOffsetBytes, local, options);
    this.#transfersQueued = true;
    this.#scheduleFlush();
  }

  #refusal(op: string, body: Uint8Array): FsError | null {
    if (this.#failure !== null) return this.#failure;
    if (body.length > MESSAGE_BODY_BYTES_MAX) {
      return new FsError('tooLarge', { op, detail: `a body of ${body.length} bytes` });
    }
    const limits = this.#host.limits;
    if (this.#queue.countUnacked >= limits.queueMessagesMax || this.#queue.bytesHeld > limits.queueBytesMax) {
      this.#host.counters.add('fabric.queueFull');
      return queueFullError(op, 'the peer takes in less than it is sent');
    }
    return null;
  }

  #append(kind: number, requestSequence: number, type: number, body: Uint8Array): void {
    const host = this.#host;
    this.#ackSent = this.#received;
    host.traffic.messagesOut++;
    this.#queue.append(
      kind,
      host.epoch,
      host.self.incarnation,
      this.#received,
      requestSequence,
      type,
      host.limits.creditMessages,
      body,
    );
    if (this.#link !== null) {
      if (!this.#flushScheduled) this.#scheduleFlush();
    } else {
      this.#owner.wantLink();
    }
  }

  #scheduleFlush(): void {
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    this.#host.defer(this.#flushBound);
  }

  #flush(): void {
    this.#flushScheduled = false;
    const link = this.#link;
    if (link === null || !this.#resumed) return;
    if (this.#queue.hasUnsent) {
      if (!this.#queue.flush(link, this.#sendLimit)) this.#host.counters.add('fabric.creditStalls');
      if (this.#stallTimer === null) this.#watchForStall();
    }
    if (this.#received - this.#ackSent >= this.#host.limits.creditMessages >> 2) this.#sendBare(FrameKind.ack);
    if (this.#transfersQueued) {
      this.#transfersQueued = false;
      link.flush();
    }
  }

  /** A frame outside of the stream: resume or ack. */
  #sendBare(kind: number): void {
    const link = this.#link;
    if (link === null) return;
    this.#ackSent = this.#received;
    writeFrameHeader(this.#scratchView, 0, 0, {
      kind,
      epoch: this.#host.epoch,
      incarnation: this.#host.self.incarnation,
      sequence: 0,
      ack: this.#received,
      requestSequence: 0,
      messageType: 0,
      creditMessages: this.#host.limits.creditMessages,
    });
    link.send(this.#scratch, 0, FRAME_HEADER_BYTES);
  }

  #watchForStall(): void {
    this.#stallAcked = this.#queue.acked;
    this.#stallTimer = this.#host.clock.after(this.#host.limits.linkStallMs, () => {
      this.#stallTimer = null;
      if (this.#link === null || this.#queue.inFlight === 0) return;
      if (this.#queue.acked !== this.#stallAcked) return this.#watchForStall();
      this.#break('linkStalled', 'nothing was acknowledged for too long');
    });
  }

  // --- links ---

  /** Takes over an authenticated link and greets on it. Any link it had is dropped. */
  attach(link: Link): void {
    this.#dropLink();
    this.#link = link;
    link.events = this;
    this.#sendBare(FrameKind.resume);
  }

  /** Ends the session: every request and transfer fails with this error, and so does whatever is asked of it later. */
  fail(error: FsError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    const dropped = this.#queue.countUnacked;
    if (dropped > 0) this.#host.counters.add('fabric.messagesDropped', dropped);
    this.#dropLink();
    this.#deadlineTimer?.cancel();
    this.#deadlineTimer = null;
    this.failPending(error);
  }

  /** Requests and transfers only; the stream stays. */
  failPending(error: FsError): void {
    for (const sequence of [...this.#pending.keys()]) this.#settle(sequence)?.reject(error);
    for (const [id, transfer] of [...this.#transfers]) {
      this.#transfers.delete(id);
      this.#link?.cancel(id);
      transfer.reject(error);
    }
  }

  #dropLink(): void {
    this.#link?.close();
    this.#link = null;
    this.#resumed = false;
    this.#transfersQueued = false;
    this.#ackTimer?.cancel();
    this.#ackTimer = null;
    this.#stallTimer?.cancel();
    this.#stallTimer = null;
  }

  #break(counter: string, detail: string): void {
    this.#host.counters.add(`fabric.${counter}`);
    const error = new FsError('connectionLost', { op: 'fabric.session', object: this.#link?.name, detail });
    this.#dropLink();
    this.#owner.linkLost(this, error);
  }

  /** The other side sent what can't be: nothing on this link is believed any more. */
  #violation(counter: string, detail: string): void {
    this.#host.logger.warn({ link: this.#link?.name, counter }, `fabric: ${detail}`);
    this.#break(counter, detail);
  }

  onRecord(): void {
    this.#violation('refusedRecord', 'a handshake record after the handshake');
  }

  onClosed(error: FsError, counter: string): void {
    this.#host.counters.add(`fabric.linkEnd.${counter}`);
    this.#dropLink();
    this.#owner.linkLost(this, error);
  }

  onTransferDone(id: number, status: TransferStatus): void {
    const transfer = this.#transfers.get(id);
    if (transfer === undefined) return; // ended here meanwhile
    this.#transfers.delete(id);
    if (status === TransferStatus.landed) {
      transfer.resolve();
      return;
    }
    this.#link?.cancel(id);
    this.#host.counters.add('fabric.transfersRefused');
    transfer.reject(transferError(status, transfer.writing));
  }

  // --- receiving ---

  onFrames(batch: FrameBatch): void {
    const link = this.#link;
    const { view, bytes, offsets, count } = batch;
    const peerIncarnation = this.#identity!.incarnation as number;
    for (let i = 0; i < count; i++) {
      const at = offsets[i]!;
      const kind = bytes[at + FRAME_AT.kind]!;
      if (view.getUint32(at + FRAME_AT.incarnation, true) !== peerIncarnation) {
        this.#violation('refusedIncarnation', 'a frame of another incarnation');
        return;
      }
      const ack = getU64(view, at + FRAME_AT.ack);
      if (ack > this.#queue.sentEver) {
        this.#violation('refusedAck', `acknowledges ${ack}, sent were ${this.#queue.sentEver}`);
        return;
      }
      if (!this.#resumed) {
        if (kind !== FrameKind.resume) {
          this.#violation('refusedResume', 'a frame before resume');
          return;
        }
        this.#onResume(ack, view.getUint16(at + FRAME_AT.creditMessages, true));
        continue;
      }
      this.#queue.acknowledge(ack);
      const limit = ack + view.getUint16(at + FRAME_AT.creditMessages, true);
      if (limit > this.#sendLimit) this.#sendLimit = limit;
      if (kind <= FRAME_KIND_STREAM_MAX) {
        const sequence = getU64(view, at + FRAME_AT.sequence);
        if (sequence !== this.#received + 1) {
          const replayed = sequence <= this.#received;
          this.#violation(replayed ? 'refusedReplay' : 'refusedGap', `sequence ${sequence} after ${this.#received}`);
          return;
        }
        const epoch = view.getUint32(at + FRAME_AT.epoch, true);
        if (epoch < this.#peerEpoch) {
          this.#violation('refusedEpoch', `epoch ${epoch} after ${this.#peerEpoch}`);
          return;
        }
        this.#peerEpoch = epoch;
        // Taken before it is handled: whatever the handler does, it is not handled again.
        this.#received = sequence;
        const body = at + FRAME_HEADER_BYTES;
        this.#take(
          kind,
          epoch,
          getU64(view, at + FRAME_AT.requestSequence),
          view.getUint16(at + FRAME_AT.messageType, true),
          bytes.subarray(body, body + view.getUint32(at + FRAME_AT.bodyBytes, true)),
        );
        // The handler may have closed or replaced the link. The rest was not acknowledged and comes again.
        if (this.#link !== link) return;
      } else if (kind !== FrameKind.ack) {
        this.#violation('refusedKind', `frame kind ${kind} out of place`);
        return;
      }
    }
    if (this.#queue.hasUnsent) this.#scheduleFlush();
    const owed = this.#received - this.#ackSent;
    if (owed === 0) return;
    if (owed >= this.#host.limits.creditMessages >> 2) this.#scheduleFlush();
    else if (this.#ackTimer === null) this.#armAck();
  }

  #armAck(): void {
    this.#ackTimer = this.#host.clock.after(this.#host.limits.ackDelayMs, () => {
      this.#ackTimer = null;
      if (this.#resumed && this.#received !== this.#ackSent) this.#sendBare(FrameKind.ack);
    });
  }

  #onResume(ack: number, credit: number): void {
    this.#resumed = true;
    this.#queue.acknowledge(ack);
    this.#sendLimit = ack + credit;
    this.#queue.rewind();
    if (this.#queue.countUnacked > 0) this.#host.counters.add('fabric.messagesResumed', this.#queue.countUnacked);
    for (const [id, transfer] of this.#transfers) this.#startTransfer(this.#link!, id, transfer);
    this.#scheduleFlush();
  }

  #take(kind: number, epoch: number, requestSequence: number, type: number, body: Uint8Array): void {
    switch (kind) {
      case FrameKind.reply: {
        const pending = this.#settle(requestSequence);
        if (pending === undefined) this.#host.counters.add('fabric.lateReplies');
        else pending.resolve(copyOf(body));
        return;
      }
      case FrameKind.request:
        this.#execute(epoch, requestSequence, type as MessageType, body);
        return;
      case FrameKind.message: {
        const handler = this.#host.messageHandlers[type];
        if (handler === undefined) {
          this.#host.counters.add('fabric.refusedType');
          return;
        }
        try {
          handler(this.#incoming(epoch, body));
        } catch (error) {
          this.#handlerThrew(type, error);
        }
        return;
      }
      default:
        this.#settle(requestSequence)?.reject(decodeError(body));
    }
  }

  #incoming(epoch: number, body: Uint8Array): IncomingMessage {
    return { from: this.#identity!, epoch: asEpoch(epoch), body, peer: this.#owner.peer };
  }

  #execute(epoch: number, requestSequence: number, type: MessageType, body: Uint8Array): void {
    if (requestSequence <= this.#peerRequestSequence) {
      this.#violation('refusedRequestReplay', `request ${requestSequence} after ${this.#peerRequestSequence}`);
      return;
    }
    this.#peerRequestSequence = requestSequence;
    const handler = this.#host.requestHandlers[type];
    if (handler === undefined) {
      this.#host.counters.add('fabric.refusedType');
      const error = new FsError('notSupported', {
        op: 'fabric.request',
        detail: `no handler for message type ${type}`,
      });
      this.#replyError(requestSequence, type, error);
      return;
    }
    if (this.#executing >= this.#host.limits.requestsExecutingMax) {
      this.#host.counters.add('fabric.requestsRefused');
      this.#replyError(requestSequence, type, queueFullError('fabric.request', 'too many requests in execution'));
      return;
    }
    let result: Uint8Array | Promise<Uint8Array>;
    try {
      result = handler(this.#incoming(epoch, body));
    } catch (error) {
      this.#replyError(requestSequence, type, error);
      return;
    }
    if (!isPromise(result)) {
      this.#reply(requestSequence, type, result);
      return;
    }
    this.#executing++;
    result.then(
      (reply) => {
        this.#executing--;
        this.#reply(requestSequence, type, reply);
      },
      (error: unknown) => {
        this.#executing--;
        this.#replyError(requestSequence, type, error);
      },
    );
  }

  #reply(requestSequence: number, type: MessageType, body: Uint8Array): void {
    if (this.#failure !== null) return;
    if (body.length > MESSAGE_BODY_BYTES_MAX) {
      const error = new FsError('tooLarge', { op: 'fabric.reply', detail: `a reply of ${body.length} bytes` });
      this.#replyError(requestSequence, type, error);
      return;
    }
    this.#append(FrameKind.reply, requestSequence, type, body);
  }

  #replyError(requestSequence: number, type: number, error: unknown): void {
    if (error instanceof InvariantError) this.#handlerThrew(type, error);
    if (this.#failure !== null) return;
    this.#append(FrameKind.replyError, requestSequence, type, encodeError(FsError.from(error, 'fabric.request')));
  }

  #handlerThrew(type: number, error: unknown): void {
    this.#host.counters.add('fabric.handlerErrors');
    this.#host.logger.error({ error, type }, 'fabric: a message handler threw');
    if (!(error instanceof InvariantError)) return;
    // A broken invariant is the process's affair (F7), not this message's.
    this.#host.defer(() => {
      throw error;
    });
  }

  // --- deadlines ---

  #settle(sequence: number): PendingRequest | undefined {
    const pending = this.#pending.get(sequence);
    if (pending === undefined) return undefined;
    this.#pending.delete(sequence);
    if (pending.onAbort !== undefined) pending.signal!.removeEventListener('abort', pending.onAbort);
    return pending;
  }

  /** One timer for all deadlines, at the earliest of them. */
  #armDeadline(atMs: number): void {
    this.#deadlineTimer?.cancel();
    this.#deadlineAt = atMs;
    this.#deadlineTimer = this.#host.clock.after(Math.max(0, atMs - this.#host.clock.nowMs()), () => {
      this.#deadlineTimer = null;
      this.#deadlineAt = Number.POSITIVE_INFINITY;
      this.#expire();
    });
  }

  #expire(): void {
    const now = this.#host.clock.nowMs();
    let next = Number.POSITIVE_INFINITY;
    for (const [sequence, pending] of this.#pending) {
      if (pending.deadlineMs <= now) {
        this.#host.counters.add('fabric.deadlinesPassed');
        this.#settle(sequence)?.reject(this.#deadlineError(`request of type ${pending.type}`));
      } else {
        next = Math.min(next, pending.deadlineMs);
      }
    }
    for (const [id, transfer] of this.#transfers) {
      if (transfer.deadlineMs <= now) {
        this.#transfers.delete(id);
        this.#link?.cancel(id);
        this.#host.counters.add('fabric.deadlinesPassed');
        transfer.reject(this.#deadlineError(transfer.writing ? 'remote write' : 'remote read'));
      } else {
        next = Math.min(next, transfer.deadlineMs);
      }
    }
    if (next < this.#deadlineAt) this.#armDeadline(next);
  }

  #deadlineError(what: string): FsError {
    const node = this.#owner.peer.nodeId;
    return new FsError('deadlinePassed', {
      op: 'fabric.request',
      object: `node ${node}`,
      detail: `${what}: no answer ${this.#resumed ? 'in time' : 'in time, and no connection'}`,
    });
  }
}

/** Out of the link's buffer: the copy a requester may keep. */
function copyOf(body: Uint8Array): Uint8Array {
  const copy = new Uint8Array(body.length);
  copy.set(body);
  return copy;
}

const abortedError = (signal: AbortSignal): FsError =>
  new FsError('aborted', { op: 'fabric.request', detail: 'the request was aborted', cause: signal.reason });

const queueFullError = (op: string, detail: string): FsError => new FsError('queueFull', { op, detail });
