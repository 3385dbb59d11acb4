import { constants } from 'node:os';
import { invariant } from '../common/assert.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import {
  FUSE_EVENT_NUMBERS,
  FUSE_NOT_YOURS,
  FuseEvent,
  type FuseNativeCounters,
  type FuseSessionRef,
  loadFuseAddon,
} from '../native/fuse.js';
import { NOTHING } from './wire/notify.js';
import { NotifyCode } from './wire/protocol.js';
import type { ReplyWriter } from './wire/reply.js';
import { type Request, RequestMemory } from './wire/request.js';

/**
 * One mount's transport as the mount sees it: requests in, answers and notifications out, nodes, and what is answered in C.
 *
 * Every request is answered exactly once, whatever happens to it; a second answer is a broken invariant here, not the kernel's to find.
 * Fault model: the kernel may drop a request (its answer is refused, counted), abort the connection (`ended`), or send bytes
 * that don't decode (answered with the codec's errno, here).
 */
export interface FuseSessionSettings {
  readonly smallSlots: number;
  readonly largeSlots: number;
  readonly writeBytesMax: number;
  readonly readAheadBytes: number;
  readonly backgroundMax: number;
  readonly notifierThreads: number;
  readonly notificationsMax: number;
  readonly attributesMax: number;
  readonly namesMax: number;
  readonly nodesMax: number;
  readonly handlesMax: number;
}
export const FUSE_SESSION_DEFAULTS: FuseSessionSettings = {
  smallSlots: 4096,
  largeSlots: 256,
  writeBytesMax: 1 << 20,
  readAheadBytes: 1 << 20,
  backgroundMax: 64,
  notifierThreads: 4,
  notificationsMax: 4096,
  attributesMax: 1 << 17,
  namesMax: 1 << 17,
  nodesMax: 1 << 22,
  handlesMax: 1 << 18,
};

export interface FuseAgreement {
  readonly minor: number;
  readonly flags: number;
  readonly flags2: number;
}

export interface FuseSessionHandlers {
  /** Answered through the session, now or later; bytes in it are good until then. */
  request(id: number, request: Request): void;
  /** Whoever waits for this request was told to give up; it is still to be answered. */
  interrupted(id: number): void;
  /** The kernel doesn't know a node any more. */
  forgotten(node: number): void;
  agreed(agreement: FuseAgreement): void;
  /** No more requests come on one of the devices: unmounted (ENODEV) or aborted (ECONNABORTED). */
  ended(errno: number): void;
}

const EVENTS_AT_ONCE = 256;

export class FuseSession {
  readonly #addon = loadFuseAddon();
  readonly #ref: FuseSessionRef;
  readonly #events = new Float64Array(EVENTS_AT_ONCE * FUSE_EVENT_NUMBERS);
  readonly #memory: RequestMemory;
  readonly #notifications = new Map<number, Deferred<number>>();
  #nextNotification = 1;
  readonly #closed = deferred<void>();
  #closing = false;

  /** A ledger for a new mount: its descriptor, which is the caller's to close. */
  static createLedger(settings: FuseSessionSettings = FUSE_SESSION_DEFAULTS): number {
    return loadFuseAddon().createLedger(
      settings.smallSlots + settings.largeSlots,
      settings.nodesMax,
      settings.handlesMax,
    );
  }

  /** Descriptors are duplicated: the caller's stay his. `pool`: what `answerPool` names. */
  constructor(
    devices: readonly number[],
    ledger: number,
    pool: ArrayBuffer,
    settings: FuseSessionSettings,
    readonly handlers: FuseSessionHandlers,
  ) {
    this.#ref = this.#addon.createSession(
      devices,
      ledger,
      Float64Array.of(
        settings.smallSlots,
        settings.largeSlots,
        settings.writeBytesMax,
        settings.readAheadBytes,
        settings.backgroundMax,
        settings.notifierThreads,
        settings.notificationsMax,
        settings.attributesMax,
        settings.namesMax,
      ),
      this.#events,
      pool,
      (count) => this.#take(count),
      () => this.#closed.resolve(),
    );
    this.#memory = new RequestMemory(this.#addon.slotMemory(this.#ref));
  }

  start(): void {
    this.#addon.start(this.#ref);
  }
  /** One more reader, with a descriptor of its own. @throws {FsError} internal. */
  addReader(): void {
    const errno = this.#addon.addReader(this.#ref);
    if (errno !== 0) throw new FsError('internal', { op: 'mount.addReader', detail: `errno ${errno}` });
  }
  /** For a guard or a later daemon: valid while this session isn't closed. */
  descriptors(): number[] {
    return this.#addon.descriptors(this.#ref);
  }
  ledgerMemory(): ArrayBuffer {
    return this.#addon.ledgerMemory(this.#ref);
  }

  #take(count: number): void {
    for (let i = 0; i < count; i++) {
      const at = i * FUSE_EVENT_NUMBERS;
      const a = this.#events[at + 1]!;
      const b = this.#events[at + 2]!;
      const c = this.#events[at + 3]!;
      switch (this.#events[at]) {
        case FuseEvent.request:
          this.#request(a, b, c);
          break;
        case FuseEvent.interrupt:
          this.handlers.interrupted(a);
          break;
        case FuseEvent.forgotten:
          this.handlers.forgotten(a);
          break;
        case FuseEvent.notified:
          this.#notifications.get(a)?.resolve(b);
          this.#notifications.delete(a);
          break;
        case FuseEvent.agreed:
          this.handlers.agreed({ minor: a, flags: b, flags2: c });
          break;
        default:
          this.handlers.ended(a);
      }
    }
  }

  #request(id: number, offset: number, lengthBytes: number): void {
    // Closed from within this batch: it was, or is being, answered there.
    if (this.#closing) return;
    const request = this.#memory.decode(offset, lengthBytes);
    if (request.op === 'refused') this.answer(id, request.errno);
    else this.handlers.request(id, request);
  }

  /** Without a body: 0, or an errno. True when the kernel took it. */
  answer(id: number, errno: number): boolean {
    return this.#answered(id, this.#closing ? 0 : this.#addon.answer(this.#ref, id, errno, NOTHING, 0));
  }
  answerWith(id: number, body: ReplyWriter): boolean {
    if (this.#closing) return false;
    return this.#answered(id, this.#addon.answer(this.#ref, id, 0, body.bytes, body.lengthBytes));
  }
  answerBytes(id: number, bytes: Uint8Array): boolean {
    if (this.#closing) return false;
    return this.#answered(id, this.#addon.answer(this.#ref, id, 0, bytes, bytes.length));
  }
  /** Pieces of the pool, (offset, length) each, in order. They may be reused when this returns. */
  answerPool(id: number, segments: Float64Array): boolean {
    if (this.#closing) return false;
    return this.#answered(id, this.#addon.answerPool(this.#ref, id, segments));
  }
  #answered(id: number, result: number): boolean {
    // A session that refuses has answered all that was out.
    invariant(result !== FUSE_NOT_YOURS || this.#refusing, `request ${id} is answered a second time`);
    return result === 0;
  }

  /**
   * Resolves with the kernel's errno: 0, or ENOENT where it had nothing of the kind; ECANCELED when the session closed first.
   * It may wait for requests that hold the kernel's locks (M2): never to be awaited by what must answer one.
   * @throws {FsError} queueFull.
   */
  async notify(code: number, payload: Uint8Array): Promise<number> {
    const done = deferred<number>();
    const id = this.#nextNotification++;
    this.#notifications.set(id, done);
    if (this.#closing || !this.#addon.notify(this.#ref, id, code, payload)) {
      this.#notifications.delete(id);
      throw new FsError(this.#closing ? 'closed' : 'queueFull', { op: 'mount.notify', object: `code ${code}` });
    }
    return done.promise;
  }
  /** All names of the mount are looked up again (M2: the last resort). */
  expireAllNames(): Promise<number> {
    return this.notify(NotifyCode.incEpoch, NOTHING);
  }
  /** Requests that an earlier daemon had taken come again. */
  resend(): Promise<number> {
    return this.notify(NotifyCode.resend, NOTHING);
  }

  // Nodes, and what the reader answers by itself

  setRoot(inode: number, generation: number): void {
    this.#addon.nodeRoot(this.#ref, inode, generation);
  }
  /** @throws {FsError} tooManyOpenFiles when the table is full. */
  addNode(inode: number, generation: number): number {
    const node = this.#addon.nodeAdd(this.#ref, inode, generation);
    if (node === 0) throw new FsError('tooManyOpenFiles', { op: 'mount.addNode', object: `inode ${inode}` });
    return node;
  }
  /** Before the answer that tells the kernel of it. */
  lookedUp(node: number, count = 1): void {
    invariant(this.#addon.nodeLookedUp(this.#ref, node, count), `node ${node} is not live`);
  }
  /** False when the kernel knows it (again). */
  removeNode(node: number): boolean {
    return this.#addon.nodeRemove(this.#ref, node);
  }
  /** From now on the reader answers GETATTR and STATX of it, and LOOKUPs that find it. `attributes`: as ReplyWriter.known makes them. */
  putAttributes(node: number, attributes: ReplyWriter): boolean {
    return this.#addon.putAttributes(this.#ref, node, attributes.bytes.subarray(0, attributes.lengthBytes));
  }
  /** `child` 0: no such name. `validSeconds` 0: the kernel asks at each use. */
  putName(directory: number, name: string, child: number, validSeconds: number): boolean {
    return this.#addon.putName(this.#ref, directory, Buffer.from(name), child, validSeconds);
  }
  /** A node's attributes and the names in it. When it returns, no answer made of them is still to be sent (M4). */
  takeBack(node: number): void {
    if (!this.#closing) this.#addon.takeBack(this.#ref, node);
  }
  takeBackAttributes(node: number): void {
    if (!this.#closing) this.#addon.takeBackAttributes(this.#ref, node);
  }
  takeBackName(directory: number, name: string): void {
    if (!this.#closing) this.#addon.takeBackName(this.#ref, directory, Buffer.from(name));
  }
  /** CLOCK_BOOTTIME milliseconds; the reader's answers end there (I2). */
  setLeaseDeadline(deadlineMs: number): void {
    if (!this.#closing) this.#addon.setLeaseDeadline(this.#ref, deadlineMs);
  }

  counters(): FuseNativeCounters {
    return this.#addon.counters(this.#ref);
  }

  #refusing = false;
  /** Everything is answered with this errno from now on, what is out too; FLUSH and RELEASE with success (M7). */
  refuse(errno: number = constants.errno.ENOTCONN): void {
    this.#refusing = true;
    this.#addon.refuse(this.#ref, errno);
  }

  /** Answers what is out with ENOTCONN and ends; the mount goes on if somebody else has its descriptor. */
  close(): Promise<void> {
    if (!this.#closing) {
      this.#closing = true;
      this.#refusing = true;
      this.#addon.close(this.#ref);
    }
    return this.#closed.promise;
  }
}
