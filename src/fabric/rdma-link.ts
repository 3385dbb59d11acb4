import type { Clock, Timer } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { incarnation, nodeId } from '../common/ids.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { TransferStatus } from '../protocol/frame.js';
import type { NodeIdentity, RemoteWindow, TransferOptions } from './fabric.js';
import type { FrameBatch, Link, LinkEvents } from './link.js';
import { BindWork, InvalidateWork, OneSided } from './rdma-one-sided.js';
import { donePayload, Pieces, remove, type Transfer } from './rdma-pieces.js';
import { UnitReceiver } from './rdma-receiver.js';
import { UnitSender } from './rdma-sender.js';
import type { RdmaSettings } from './rdma-settings.js';
import type { BindingLink, WindowPool, WindowTable } from './rdma-windows.js';
import {
  BIND_BY_MESSAGES,
  type Greeting,
  PREFIX_BYTES,
  type Prefix,
  RUN_BYTES,
  type Run,
  readKeys,
  readPrefix,
  readRuns,
  UnitKind,
  writePrefix,
  writeRuns,
} from './rdma-wire.js';
import { WorkQueue } from './rdma-work.js';
import { slice } from './segments.js';
import type { VerbsCompletions, VerbsEvents, VerbsMemory, VerbsPort, VerbsQueue, VerbsWindow } from './verbs-port.js';

/**
 * A link over one reliable connected queue pair. Messages are units in SENDs, under credit; bulk is one-sided under keys that the
 * owner of a window bound for this link, or, where that doesn't pay or isn't possible, pieces in messages.
 *
 * Invariants: local memory is named in posted work only while the queue pair lives, so ending the link frees it all at once; that is
 * how a transfer with posted work is cancelled. What a window's owner copies for messages it looks up anew for each piece.
 * Fault model: the peer may send anything, vanish, or use keys that are not good any more; completions may never come.
 * Each ends this link and nothing else; the session goes on over another.
 */
export interface RdmaLinkHost {
  readonly clock: Clock;
  readonly counters: Counters;
  readonly port: VerbsPort;
  readonly pagePool: PagePool;
  readonly windows: WindowTable;
  readonly windowPool: WindowPool;
  readonly settings: RdmaSettings;
  /** Receives, then slots for sends. */
  takeMemory(): VerbsMemory;
  giveMemory(memory: VerbsMemory): void;
  linkGone(link: RdmaLink): void;
}

const noEvents: LinkEvents = {
  onRecord: () => undefined,
  onFrames: () => undefined,
  onTransferDone: () => undefined,
  onClosed: () => undefined,
};

const LINGER_MS_MAX = 1000;
/** Work requests kept free for messages and windows when bulk is posted. */
const SENDS_RESERVED = 32;

export class RdmaLink implements Link, VerbsEvents, BindingLink {
  readonly kind = 'rdma';
  closed = false;
  /** Why it ended; null while it lives, and when this side closed it. */
  failure: string | null = null;
  events: LinkEvents = noEvents;
  /** Both greetings, the dialer's first. */
  channelBinding: Uint8Array = new Uint8Array(0);
  readonly linkNumber: number;
  readonly #host: RdmaLinkHost;
  readonly #memory: VerbsMemory;
  readonly #transfers = new Map<number, Transfer>();
  #starting: Transfer[] = [];
  readonly #bulk: OneSided[] = [];
  #bulkBytes = 0;
  readonly #pieces: Pieces;
  /** Of writes that have been added to the work whole. */
  readonly #ordered: (() => void)[] = [];
  readonly #invalidates: { windows: readonly VerbsWindow[]; done: () => void }[] = [];
  #queue: VerbsQueue | null = null;
  #work: WorkQueue | null = null;
  #sender: UnitSender | null = null;
  readonly #receiver: UnitReceiver;
  #peer: Greeting | null = null;
  #peerNode = 0;
  #reposted = 0;

  constructor(
    host: RdmaLinkHost,
    linkNumber: number,
    readonly name: string,
  ) {
    this.#host = host;
    this.linkNumber = linkNumber;
    this.#memory = host.takeMemory();
    this.#pieces = new Pieces(host.windows, host.pagePool, this.#memory, host.counters);
    this.#receiver = new UnitReceiver(
      this.#memory,
      host.settings.unitBytes,
      (batch) => this.#deliver(batch),
      (kind, view, at, payloadBytes) => this.#take(kind, view, at, payloadBytes),
    );
  }

  get pool(): WindowPool {
    return this.#host.windowPool;
  }
  get peerNode(): number {
    return this.#peerNode;
  }
  /** Who the peer said to be when it connected; the handshake proves it. */
  get claimed(): NodeIdentity | null {
    if (this.#peer === null) return null;
    return { nodeId: nodeId(this.#peer.nodeId), incarnation: incarnation(this.#peer.incarnation) };
  }

  // --- coming up ---

  /** Before the connection is made: from here on messages can arrive. */
  prepare(queue: VerbsQueue): void {
    const { receives, unitBytes } = this.#host.settings;
    this.#queue = queue;
    queue.events = this;
    for (let i = 0; i < receives; i++) queue.receive(i, this.#memory, i * unitBytes, unitBytes);
    queue.post();
    this.#reposted = receives;
  }

  greeted(peer: Greeting, channelBinding: Uint8Array): void {
    const { clock, settings } = this.#host;
    const queue = this.#queue!;
    this.#peer = peer;
    this.channelBinding = channelBinding;
    this.#work = new WorkQueue(queue, clock, settings.workDeadlineMs, () =>
      this.#fail('workDeadline', 'deadlinePassed', 'the device did not complete a work request in time'),
    );
    this.#sender = new UnitSender(
      this.#work,
      queue,
      this.#memory,
      settings.receives * settings.unitBytes,
      settings.sendSlots,
      Math.min(settings.unitBytes, peer.unitBytesMax),
      peer.receives,
      () => this.#reposted >>> 0,
    );
  }

  startFrames(peerNode: number): void {
    this.#peerNode = peerNode;
  }

  // --- messages out ---

  sendRecord(record: Uint8Array): void {
    if (this.closed) return;
    if (this.#sender!.record(record)) this.#pump();
    else this.#overflow();
  }

  send(bytes: Uint8Array, start: number, end: number): void {
    if (this.closed) return;
    if (this.#sender!.frames(bytes, start, end)) this.#pump();
    else this.#overflow();
  }

  #unit(kind: UnitKind, write: (bytes: Uint8Array, view: DataView, at: number) => number): void {
    if (!this.#sender!.unit(kind, write)) this.#overflow();
  }

  #overflow(): void {
    this.#fail('backlogFull', 'queueFull', 'the other side does not read what it is sent');
  }

  /** Everything that there is room for, in one post. */
  #pump(): void {
    if (this.closed) return;
    const work = this.#work!;
    const sender = this.#sender!;
    while (this.#invalidates.length > 0 && work.free >= this.#invalidates[0]!.windows.length) {
      const { windows, done } = this.#invalidates.shift()!;
      for (let i = 0; i < windows.length; i++) {
        work.add(new InvalidateWork(windows[i]!, i === windows.length - 1 ? done : null));
      }
    }
    sender.pump();
    this.#pumpBulk(work);
    this.#pieces.pump(sender, this.#peerNode);
    sender.tellCredit(this.#host.settings.receives >> 1);
    this.#post();
    // Whatever is sent from here on is behind them.
    for (const onOrdered of this.#ordered.splice(0)) if (!this.closed) onOrdered();
  }

  #post(later = false): void {
    try {
      if (later && this.#work!.stage()) return;
      this.#work!.flush();
      this.#sender!.posted();
    } catch (error) {
      this.#failLater('postRefused', FsError.from(error, 'fabric.rdma', this.name));
    }
  }

  // --- transfers ---

  write(
    id: number,
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): void {
    this.#begin(id, true, window, windowOffsetBytes, local, options);
  }

  read(id: number, window: RemoteWindow, windowOffsetBytes: number, local: readonly PoolSegment[]): void {
    this.#begin(id, false, window, windowOffsetBytes, local, undefined);
  }

  #begin(
    id: number,
    writing: boolean,
    name: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options: TransferOptions | undefined,
  ): void {
    if (this.closed) return;
    const lengthBytes = local.reduce((sum, segment) => sum + segment.lengthBytes, 0);
    const transfer: Transfer = {
      id,
      writing,
      name: name.slice(),
      windowOffsetBytes,
      local: [...local],
      lengthBytes,
      options,
      oneSided: null,
      movedBytes: 0,
    };
    this.#transfers.set(id, transfer);
    this.#starting.push(transfer);
  }

  flush(): void {
    if (this.closed) return;
    const starting = this.#starting;
    this.#starting = [];
    for (const transfer of starting) if (this.#transfers.get(transfer.id) === transfer) this.#start(transfer);
    this.#pump();
  }

  #start(transfer: Transfer): void {
    const keys = readKeys(transfer.name);
    if (keys !== null && keys.linkNumber === this.#peer!.linkNumber) {
      this.#startOneSided(transfer, keys.runs);
      return;
    }
    if (transfer.lengthBytes <= this.#host.settings.oneSidedAboveBytes || !this.#peer!.windows) {
      this.#startByMessages(transfer);
      return;
    }
    this.#host.counters.add('fabric.rdma.keysAsked');
    this.#unit(UnitKind.bindRequest, (bytes, view, at) => {
      writePrefix(bytes, view, at, transfer.id, transfer.writing ? 2 : 1, transfer.name, 0, 0);
      return PREFIX_BYTES;
    });
  }

  #startOneSided(transfer: Transfer, runs: readonly Run[]): void {
    const windowBytes = runs.reduce((sum, run) => sum + run.lengthBytes, 0);
    if (transfer.windowOffsetBytes + transfer.lengthBytes > windowBytes) {
      this.#later(() => this.#finish(transfer, TransferStatus.outOfBounds));
      return;
    }
    const { id, writing, windowOffsetBytes, local, lengthBytes } = transfer;
    transfer.oneSided = new OneSided(id, writing, runs, windowOffsetBytes, local, lengthBytes);
    this.#bulk.push(transfer.oneSided);
  }

  #startByMessages(transfer: Transfer): void {
    if (transfer.writing) {
      this.#pieces.write(transfer);
      return;
    }
    this.#unit(UnitKind.readRequest, (bytes, view, at) => {
      writePrefix(bytes, view, at, transfer.id, 0, transfer.name, transfer.windowOffsetBytes, transfer.lengthBytes);
      return PREFIX_BYTES;
    });
  }

  #finish(transfer: Transfer, status: TransferStatus): void {
    if (this.#transfers.get(transfer.id) !== transfer) return;
    this.#transfers.delete(transfer.id);
    this.events.onTransferDone(transfer.id, status);
  }

  #pumpBulk(work: WorkQueue): void {
    const { settings, port } = this.#host;
    // Windows to be closed go first, or a large one could wait for ever.
    if (this.#invalidates.length > 0) return;
    while (this.#bulk.length > 0 && this.#bulkBytes < settings.bulkBytesMax && work.free > SENDS_RESERVED) {
      const head = this.#bulk[0]!;
      const piece = head.next(settings.pieceBytes, port.limits.segmentsMax, (bytes) => this.#moved(head, bytes));
      this.#bulkBytes += piece.bytes;
      work.add(piece);
      if (!head.finished) continue;
      this.#bulk.shift();
      this.#inOrder(head);
    }
  }

  /** The queue pair carries out its work in order: what is sent behind a write arrives behind it (IBTA 9.5, transaction ordering). */
  #inOrder({ id, writing }: OneSided): void {
    const onOrdered = writing ? this.#transfers.get(id)?.options?.onOrdered : undefined;
    if (onOrdered !== undefined) this.#ordered.push(onOrdered);
  }

  #moved(of: OneSided, bytes: number): void {
    this.#bulkBytes -= bytes;
    of.doneBytes += bytes;
    this.#host.counters.add(of.writing ? 'fabric.rdma.bytesWritten' : 'fabric.rdma.bytesRead', bytes);
    if (of.doneBytes < of.lengthBytes) return;
    const transfer = this.#transfers.get(of.id);
    if (transfer?.oneSided === of) this.#finish(transfer, TransferStatus.landed);
  }

  cancel(id: number): void {
    const transfer = this.#transfers.get(id);
    if (transfer === undefined || this.closed) return;
    this.#transfers.delete(id);
    const { oneSided } = transfer;
    if (oneSided !== null) {
      if (oneSided.postedBytes > oneSided.doneBytes) {
        // The device reads or writes the segments until the queue pair is gone.
        this.#fail('cancelledTransfer', 'connectionLost', 'a transfer under way was cancelled');
        return;
      }
      remove(this.#bulk, oneSided);
    }
    this.#pieces.forget(transfer);
    remove(this.#starting, transfer);
  }

  // --- windows of ours, for the table ---

  bindRuns(
    windows: readonly VerbsWindow[],
    runs: readonly PoolSegment[],
    access: 'read' | 'write',
    withNextMessage: boolean,
  ): Run[] | null {
    if (this.closed || this.#work === null || this.#work.free < windows.length) return null;
    for (let i = 0; i < windows.length; i++) {
      const { offsetBytes, lengthBytes } = runs[i]!;
      this.#work.add(new BindWork(windows[i]!, offsetBytes, lengthBytes, access));
    }
    this.#post(withNextMessage);
    if (this.closed) return null;
    this.#host.counters.add('fabric.rdma.windowsBound', windows.length);
    const { poolAddress } = this.#host.port;
    return runs.map((run, i) => ({
      address: poolAddress + run.offsetBytes,
      lengthBytes: run.lengthBytes,
      key: windows[i]!.key,
    }));
  }

  invalidate(windows: readonly VerbsWindow[], done: () => void): void {
    this.#invalidates.push({ windows, done });
    this.#pump();
  }

  // --- what comes in ---

  onCompletions(completions: VerbsCompletions): void {
    let failure: string | null = null;
    const { count } = completions;
    for (let i = 0; i < count && !this.closed; i++) {
      const status = completions.status(i);
      if (status !== 'success') {
        if (failure === null || failure === 'flushed') failure = status;
      } else if (!completions.isReceive(i) && !(this.#work?.completed(completions.id(i)) ?? false)) {
        this.#fail('unknownCompletion', 'badFrame', 'a completion of work that was not posted');
      }
    }
    const { receives, unitBytes } = this.#host.settings;
    const queue = this.#queue!;
    let consumed = 0;
    for (let i = 0; i < count && !this.closed; i++) {
      if (!completions.isReceive(i) || completions.status(i) !== 'success') continue;
      const id = completions.id(i);
      const lengthBytes = completions.lengthBytes(i);
      if (!(id >= 0 && id < receives) || lengthBytes > unitBytes || this.#sender === null) {
        this.#fail('unknownCompletion', 'badFrame', 'a receive that was not posted');
        return;
      }
      const wrong = this.#receiver.take(id * unitBytes, lengthBytes, (limit) =>
        this.#sender!.creditTo(limit, this.#peer!.receives),
      );
      if (this.closed) return;
      if (wrong !== null) {
        this.#fail(
          wrong,
          wrong === 'badChecksum' ? 'badChecksum' : 'badFrame',
          `what the peer sent can't be: ${wrong}`,
        );
        return;
      }
      consumed++;
    }
    if (!this.closed) this.#receiver.flush();
    if (this.closed) return;
    if (failure !== null) {
      this.#fail(failure, 'connectionLost', `the queue pair failed: ${failure}`);
      return;
    }
    if (consumed > 0) {
      try {
        for (let i = 0; i < count; i++) {
          const id = completions.id(i);
          if (completions.isReceive(i)) queue.receive(id, this.#memory, id * unitBytes, unitBytes);
        }
        queue.post();
      } catch (error) {
        this.#failLater('postRefused', FsError.from(error, 'fabric.rdma', this.name));
        return;
      }
      this.#reposted += consumed;
    }
    this.#pump();
  }

  #deliver(batch: FrameBatch): void {
    if (!this.closed) this.events.onFrames(batch);
  }

  /** Units that carry no frames. Returns what is wrong. */
  #take(kind: UnitKind, view: DataView, at: number, payloadBytes: number): string | null {
    if (this.closed) return null;
    if (kind === UnitKind.record) {
      if (payloadBytes !== 128) return 'badLength';
      this.events.onRecord(this.#memory.bytes.slice(at, at + payloadBytes));
      return null;
    }
    if (payloadBytes < PREFIX_BYTES || this.#peerNode === 0) return 'badLength';
    const prefix = readPrefix(view, at);
    const identity = this.#memory.bytes.subarray(at + 8, at + 24);
    const dataBytes = payloadBytes - PREFIX_BYTES;
    switch (kind) {
      case UnitKind.write:
        if (dataBytes !== prefix.lengthBytes || dataBytes === 0) return 'badLength';
        return this.#answered(prefix.transfer, this.#pieces.take(prefix, identity, at, this.#peerNode));
      case UnitKind.readData:
        return dataBytes === prefix.lengthBytes && dataBytes > 0 ? this.#takeReadData(prefix, at) : 'badLength';
      case UnitKind.readRequest:
        if (dataBytes !== 0 || prefix.lengthBytes === 0) return 'badLength';
        return this.#pieces.answer(prefix, identity.slice()) ? null : 'crowd';
      case UnitKind.done:
        return dataBytes === 0 ? this.#takeDone(prefix) : 'badLength';
      case UnitKind.bindRequest:
        return dataBytes === 0 ? this.#takeBindRequest(prefix, identity) : 'badLength';
      case UnitKind.bindAnswer:
        if (dataBytes !== prefix.lengthBytes * RUN_BYTES) return 'badLength';
        return this.#takeBindAnswer(prefix, readRuns(view, at + PREFIX_BYTES, prefix.lengthBytes));
      default:
        return 'badKind';
    }
  }

  #answered(transfer: number, status: TransferStatus | null): null {
    if (status !== null) this.#unit(UnitKind.done, donePayload(transfer, status));
    return null;
  }

  #takeReadData(prefix: Prefix, at: number): string | null {
    const transfer = this.#pending(prefix.transfer);
    if (transfer === null) return null;
    const { offsetBytes, lengthBytes } = prefix;
    if (transfer.writing || transfer.oneSided !== null || offsetBytes !== transfer.movedBytes) return 'badTransfer';
    if (offsetBytes + lengthBytes > transfer.lengthBytes) return 'badTransfer';
    this.#pieces.copyIn(at, lengthBytes, slice(transfer.local, offsetBytes, lengthBytes));
    transfer.movedBytes += lengthBytes;
    if (transfer.movedBytes === transfer.lengthBytes) this.#finish(transfer, TransferStatus.landed);
    return null;
  }

  #takeDone(prefix: Prefix): string | null {
    const transfer = this.#pending(prefix.transfer);
    if (transfer === null) return null;
    if (prefix.detail > TransferStatus.outOfBounds || transfer.oneSided !== null) return 'badTransfer';
    const landed = prefix.detail === TransferStatus.landed;
    if (landed && !(transfer.writing && transfer.movedBytes === transfer.lengthBytes)) return 'badTransfer';
    this.#pieces.forget(transfer);
    this.#finish(transfer, prefix.detail as TransferStatus);
    return null;
  }

  /** Answers may come for what was cancelled meanwhile; that is counted and nothing else. */
  #pending(id: number): Transfer | null {
    const transfer = this.#transfers.get(id);
    if (transfer !== undefined) return transfer;
    this.#host.counters.add('fabric.rdma.lateAnswers');
    return null;
  }

  #takeBindRequest(prefix: Prefix, identity: Uint8Array): string | null {
    if (prefix.detail !== 1 && prefix.detail !== 2) return 'badTransfer';
    const runsMax = Math.floor((this.#sender!.payloadBytesMax - PREFIX_BYTES) / RUN_BYTES);
    const access = prefix.detail === 1 ? 'read' : 'write';
    const keys = this.#host.windows.keysFor(identity, this.#peerNode, access, this, runsMax);
    if (this.closed) return null;
    const status = keys === null ? BIND_BY_MESSAGES : typeof keys === 'number' ? keys : TransferStatus.landed;
    const runs = keys === null || typeof keys === 'number' ? [] : keys;
    this.#unit(UnitKind.bindAnswer, (bytes, view, at) => {
      writePrefix(bytes, view, at, prefix.transfer, status, null, 0, runs.length);
      writeRuns(view, at + PREFIX_BYTES, runs);
      return PREFIX_BYTES + runs.length * RUN_BYTES;
    });
    return null;
  }

  #takeBindAnswer(prefix: Prefix, runs: readonly Run[]): string | null {
    const transfer = this.#pending(prefix.transfer);
    if (transfer === null) return null;
    if (transfer.oneSided !== null || transfer.movedBytes > 0) return 'badTransfer';
    switch (prefix.detail) {
      case TransferStatus.landed:
        if (runs.length === 0) return 'badTransfer';
        this.#startOneSided(transfer, runs);
        return null;
      case BIND_BY_MESSAGES:
        this.#startByMessages(transfer);
        return null;
      case TransferStatus.windowUnknown:
      case TransferStatus.windowDenied:
        this.#finish(transfer, prefix.detail);
        return null;
      default:
        return 'badTransfer';
    }
  }

  // --- the end ---

  onClosed(error: FsError): void {
    if (this.closed) return;
    this.failure = error.reason === 'deviceError' ? 'deviceGone' : 'closedByPeer';
    this.#end();
    this.events.onClosed(error, this.failure);
  }

  /** Ends the link at once; the news comes later, since this may be inside of a call into the link. */
  #fail(
    counter: string,
    reason: 'connectionLost' | 'deadlinePassed' | 'badFrame' | 'badChecksum' | 'queueFull',
    detail: string,
  ): void {
    this.#failLater(counter, new FsError(reason, { op: 'fabric.link', object: this.name, detail }));
  }

  #failLater(counter: string, error: FsError): void {
    if (this.closed) return;
    this.failure = counter;
    this.#end();
    this.#news = this.#host.clock.after(0, () => this.events.onClosed(error, counter));
  }
  /** Of its end, under way to whoever uses it. */
  #news: Timer | null = null;

  #later(run: () => void): void {
    this.#host.clock.after(0, () => {
      if (!this.closed) run();
    });
  }

  close(): void {
    // It may have failed a moment ago, and be replaced already: whoever closes it hears nothing of it any more.
    this.#news?.cancel();
    if (!this.closed && this.#peerNode === 0 && (this.#work?.outstanding ?? 0) > 0) this.#linger();
    else this.#end();
  }

  /** Ended during the handshake: the last record, a refusal maybe, gets its chance to arrive. Nothing else is under way then. */
  #linger(): void {
    const { clock, settings } = this.#host;
    this.closed = true;
    const queue = this.#queue!;
    const work = this.#work!;
    work.stop();
    const over = () => {
      timer.cancel();
      this.#release();
    };
    const timer = clock.after(Math.min(LINGER_MS_MAX, settings.workDeadlineMs), over);
    queue.events = {
      onClosed: over,
      onCompletions: (completions) => {
        for (let i = 0; i < completions.count; i++) {
          if (completions.isReceive(i)) continue;
          if (completions.status(i) !== 'success' || !work.completed(completions.id(i))) return over();
        }
        if (work.outstanding === 0) over();
      },
    };
    this.#lingering = over;
  }
  #lingering: (() => void) | null = null;

  /** The transport ends. */
  destroy(): void {
    this.#lingering?.();
    this.#end();
  }

  #end(): void {
    if (this.closed) return;
    this.closed = true;
    this.#release();
  }

  #release(): void {
    this.#lingering = null;
    this.#work?.stop();
    // Windows first: soft-RoCE waits for them, without end, when it destroys the queue pair that they are bound on.
    this.#host.windows.linkGone(this);
    this.#queue?.close();
    // From here on nothing lands anywhere: local segments, windows and message buffers are free.
    this.#transfers.clear();
    this.#bulk.length = 0;
    this.#pieces.clear();
    this.#invalidates.length = 0;
    this.#host.giveMemory(this.#memory);
    this.#host.linkGone(this);
  }
}
