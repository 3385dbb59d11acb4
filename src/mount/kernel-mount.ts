import { constants } from 'node:os';
import { type ByteRange, WHOLE } from '../common/byte-range.js';
import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import { type Attributes, FileType } from '../fs/file-system-api.js';
import type { InodeCalls, KernelFileHandle } from '../fs/inode-calls.js';
import type { KernelCaches } from '../fs/kernel-caches.js';
import { errnoOf } from './errno.js';
import { FilePages, type PagesPort } from './file-pages.js';
import {
  FUSE_SESSION_DEFAULTS,
  type FuseAgreement,
  type FuseSession,
  type FuseSessionHandlers,
} from './fuse-session.js';
import { Handles } from './handles.js';
import { type KernelNode, KernelNodes } from './kernel-nodes.js';
import { LockOwners } from './lock-owners.js';
import { closeFile, serveRequest } from './serve-request.js';
import { invalInode, store } from './wire/notify.js';
import { NotifyCode } from './wire/protocol.js';
import { ReplyWriter } from './wire/reply.js';
import type { Request } from './wire/request.js';

/**
 * A mounted file system between its kernel and its node's engine: requests in, operations on inodes, answers out; and what the kernel keeps, taken
 * back before the tokens go that cover it (KernelCaches).
 *
 * Invariants: every request is answered exactly once, however its operation ends; FLUSH and RELEASE need no token to be answered (M7); the kernel
 * keeps pages only as file-pages.ts says, and neither names nor attributes: it asks at each use.
 * Fault model: the session ends at any time, with whatever is under way: operations go on to their ends, and their answers to nobody.
 */
export interface KernelMountParts {
  readonly inodes: InodeCalls;
  readonly syncAll: () => Promise<void>;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly readTimeoutMs?: number;
  readonly lateMs?: number;
}

const READ_TIMEOUT_MS = 30_000;
const LATE_MS = 3000;
const AFTER_TRUNCATION_MS = 2;
/** An answer: a listing, or an attribute's value. */
const REPLY_BYTES_MAX = (1 << 20) + 4096;
const { EINTR, EIO } = constants.errno;

/** What a request may need while it is under way. */
export interface UnderWay {
  readonly id: number;
  /** Made when somebody waits for it. */
  readonly signal: AbortSignal;
}

/** Requests that hold one of the large buffers, at most: some stay free for what must never wait. */
const LARGE_UNDER_WAY_MAX = FUSE_SESSION_DEFAULTS.largeSlots - 64;

class Interruptible implements UnderWay {
  #abort: AbortController | null = null;
  #aborted = false;
  constructor(readonly id: number) {}
  get signal(): AbortSignal {
    this.#abort ??= new AbortController();
    if (this.#aborted) this.#abort.abort();
    return this.#abort.signal;
  }
  interrupt(): void {
    this.#aborted = true;
    this.#abort?.abort();
  }
}

export class KernelMount implements FuseSessionHandlers, KernelCaches {
  readonly inodes: InodeCalls;
  readonly parts: KernelMountParts;
  readonly handles = new Handles();
  readonly owners = new LockOwners();
  readonly reply = new ReplyWriter(REPLY_BYTES_MAX);
  session!: FuseSession;
  nodes!: KernelNodes;
  readonly #underWay = new Map<number, Interruptible>();
  /** READs that fill pages, by request: how to make one give up. */
  readonly #reading = new Map<number, () => void>();
  readonly #ended = deferred<number>();
  readonly #agreed = deferred<FuseAgreement>();
  readonly #bytes: Uint8Array[] = [];

  constructor(parts: KernelMountParts) {
    this.parts = parts;
    this.inodes = parts.inodes;
  }

  /** Before the session starts. */
  attach(session: FuseSession): void {
    this.session = session;
    this.nodes = new KernelNodes(session, { ...this.inodes.root, type: FileType.directory });
  }

  /** Resolves with an errno when no more requests come. */
  get ended$(): Promise<number> {
    return this.#ended.promise;
  }
  get agreed$(): Promise<FuseAgreement> {
    return this.#agreed.promise;
  }
  agreed(agreement: FuseAgreement): void {
    this.#agreed.resolve(agreement);
  }
  ended(errno: number): void {
    this.#ended.resolve(errno);
  }
  forgotten(node: number): void {
    this.nodes.forgotten(node);
  }
  interrupted(id: number): void {
    this.count('interrupts');
    this.#underWay.get(id)?.interrupt();
    this.#reading.get(id)?.();
  }

  request(id: number, request: Request): void {
    const underWay = new Interruptible(id);
    this.#underWay.set(id, underWay);
    this.count(`requests.${request.op}`);
    serveRequest(this, request, underWay).then(
      () => this.#underWay.delete(id),
      (error: unknown) => {
        this.#underWay.delete(id);
        this.#failed(id, request, error);
      },
    );
  }
  #failed(id: number, request: Request, error: unknown): void {
    const errno = errnoOf(error);
    if (errno === EIO || !FsError.is(error)) {
      const what = error instanceof Error ? (error.stack ?? error.message) : String(error);
      this.parts.logger.warn(
        { op: request.op, node: request.header.node, error: what },
        'a request of the mount failed',
      );
    }
    this.session.answer(id, errno);
  }

  count(what: string, by = 1): void {
    this.parts.counters.add(`mount.${what}`, by);
  }

  /** Of WRITEs that may wait. */
  largeUnderWay = 0;
  get tooManyLarge(): boolean {
    return this.largeUnderWay >= LARGE_UNDER_WAY_MAX;
  }

  takeBytes(lengthBytes: number): Uint8Array {
    const kept = this.#bytes.at(-1);
    if (kept !== undefined && kept.length >= lengthBytes) {
      this.#bytes.pop();
      return kept;
    }
    return Buffer.allocUnsafeSlow(Math.max(lengthBytes, 1 << 17));
  }
  giveBytes(bytes: Uint8Array): void {
    if (this.#bytes.length < 16) this.#bytes.push(bytes);
  }

  // Pages

  readonly #port = (node: KernelNode): PagesPort => ({
    notify: (of) => this.#dropPages(node, of),
    readTimeoutMs: this.parts.readTimeoutMs ?? READ_TIMEOUT_MS,
    lateMs: this.parts.lateMs ?? LATE_MS,
    clock: this.parts.clock,
    late: () => {
      for (const giveUp of node.cuts) giveUp();
    },
    counted: (what) => this.count(what),
  });
  pagesOf(node: KernelNode): FilePages {
    node.pages ??= new FilePages(this.#port(node));
    return node.pages;
  }
  async #dropPages(node: KernelNode, of: ByteRange): Promise<void> {
    const length = of.end >= WHOLE.end ? 0 : of.end - of.start;
    try {
      await this.session.notify(NotifyCode.invalInode, invalInode(node.id, of.start, length));
    } catch (error) {
      // Full: the next attempt finds room, as each in the queue ends.
      if (!FsError.is(error) || error.reason !== 'queueFull') return;
      await new Promise((resolve) => this.parts.clock.after(1, () => resolve(undefined)));
      await this.#dropPages(node, of);
    }
  }

  /**
   * What an answer says of a file's size the kernel doesn't believe when anything else about it has changed since it asked; a reader of its pages
   * would then go by an older size. So a size that has grown is pushed, before it is told, with the last byte (M4). Not where a mapping
   * may be changing that byte at this moment: the push would undo it.
   */
  async pushSize({ ino, generation, sizeBytes }: Attributes): Promise<void> {
    const node = this.nodes.ofInode(ino);
    if (node?.generation !== generation) return;
    const [file] = node.files;
    const { pages } = node;
    const goesByIt = pages !== null && node.readers > 0 && !pages.mayBeStored;
    if (!goesByIt || file === undefined || sizeBytes <= node.sizeFloor) {
      node.sizeFloor = Math.min(node.sizeFloor, sizeBytes);
      return;
    }
    this.count('sizesPushed');
    // What was answered before, and has not been looked at yet, is not believed any more: no answer makes the file shorter again.
    await this.#tell(NotifyCode.invalInode, invalInode(node.id, -1, 0));
    if (await this.#pushByte(node, pages, file, sizeBytes - 1)) node.sizeFloor = Math.max(node.sizeFloor, sizeBytes);
  }
  #pushByte(node: KernelNode, pages: FilePages, file: KernelFileHandle, offset: number): Promise<boolean> {
    return new Promise((resolve) => {
      const serve = async (): Promise<void> => {
        const byte = new Uint8Array(1);
        try {
          const count = await file.readHeld(offset, byte);
          if (count === 1 && !pages.mayBeStored) await this.#tell(NotifyCode.store, store(node.id, offset, byte));
          resolve(count === 1);
        } catch {
          resolve(false);
        }
      };
      pages.read({
        file,
        range: { start: offset, end: offset + 1 },
        pushes: true,
        serve,
        refuse: () => resolve(false),
      });
    });
  }
  /** The kernel may have forgotten it, or the mount be gone: then it keeps nothing. */
  async #tell(code: number, payload: Uint8Array): Promise<void> {
    await this.session.notify(code, payload).catch(() => undefined);
  }

  /** A READ into the kernel's pages; answered when it resolves. */
  readPages(id: number, node: KernelNode, file: KernelFileHandle, of: ByteRange): Promise<void> {
    const done = deferred<void>();
    const over = (): void => {
      this.#reading.delete(id);
      done.resolve();
    };
    const serve = async (): Promise<void> => {
      const bytes = this.takeBytes(of.end - of.start);
      try {
        const count = await file.readHeld(of.start, bytes.subarray(0, of.end - of.start));
        // A short answer is the end of the file to the kernel.
        if (count < of.end - of.start) node.sizeFloor = Math.min(node.sizeFloor, of.start + count);
        this.session.answerBytes(id, bytes.subarray(0, count));
      } catch (error) {
        this.session.answer(id, errnoOf(error));
      } finally {
        this.giveBytes(bytes);
        over();
      }
    };
    const refuse = (error: 'again' | 'failed' | 'interrupted'): void => {
      this.session.answer(id, error === 'again' ? constants.errno.EAGAIN : error === 'failed' ? EIO : EINTR);
      over();
    };
    const pages = this.pagesOf(node);
    let reading: number | null = null;
    this.#reading.set(id, () => {
      if (reading !== null) pages.giveUp(reading);
    });
    reading = pages.read({ file, range: of, serve, refuse });
    return done.promise;
  }

  /** Everything that the kernel keeps, whatever is under way. */
  async dropEverything(): Promise<void> {
    const drops: Promise<void>[] = [];
    for (const node of this.nodes.all()) if (node.pages !== null) drops.push(this.#dropPages(node, WHOLE));
    await Promise.all(drops);
  }

  /** What the dead session's programs had open. */
  async closeHandles(): Promise<void> {
    await Promise.all(this.handles.takeAllFiles().map((handle) => closeFile(this, handle)));
  }

  #suspended: Promise<() => void>[] | null = null;
  /** Nothing may be kept for now. */
  suspend(): void {
    if (this.#suspended !== null) return;
    this.#suspended = [];
    for (const { pages } of this.nodes.all())
      if (pages !== null && !pages.knowsNothing) this.#suspended.push(pages.leaves(WHOLE, false, 0));
  }
  resume(): void {
    const suspended = this.#suspended ?? [];
    this.#suspended = null;
    for (const one of suspended) void one.then((left) => left());
  }

  // KernelCaches

  changing(ino: InodeNumber, of: ByteRange, held: ByteRange, kernelTruncates: boolean): Promise<() => void> | null {
    const pages = this.nodes.ofInode(ino)?.pages ?? null;
    if (pages === null) return null;
    if (!kernelTruncates) return pages.changing(of, held, false);
    // Until the kernel has the answer, and the new size with it, it would take what is missing of a page for zeros.
    return pages.changing(of, held, true).then((end) => () => void this.parts.clock.after(AFTER_TRUNCATION_MS, end));
  }
  watches(ino: InodeNumber): boolean {
    return (this.nodes.ofInode(ino)?.pages ?? null) !== null;
  }
  keeps(ino: InodeNumber): boolean {
    const pages = this.nodes.ofInode(ino)?.pages ?? null;
    return pages !== null && !pages.knowsNothing;
  }
  dataLeaves(ino: InodeNumber, of: ByteRange, keepsShared: boolean): Promise<() => void> | null {
    const pages = this.nodes.ofInode(ino)?.pages ?? null;
    return pages === null || pages.knowsNothing ? null : pages.leaves(of, keepsShared);
  }
  statusLeaves(first: number, end: number, keepsShared: boolean): Promise<() => void> | null {
    const leaving: Promise<() => void>[] = [];
    for (const pages of this.#pagesBetween(first, end)) leaving.push(pages.leaves(WHOLE, keepsShared));
    if (leaving.length === 0) return null;
    return Promise.all(leaving).then((left) => () => {
      for (const one of left) one();
    });
  }
  *#pagesBetween(first: number, end: number): Generator<FilePages> {
    if (end - first > this.nodes.size) {
      for (const { ino, pages } of this.nodes.all())
        if (pages !== null && !pages.knowsNothing && ino >= first && ino < end) yield pages;
      return;
    }
    for (let ino = first; ino < end; ino++) {
      const pages = this.nodes.ofInode(ino as InodeNumber)?.pages ?? null;
      if (pages !== null && !pages.knowsNothing) yield pages;
    }
  }
  changed(): void {}
}
