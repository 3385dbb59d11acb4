import { type ByteRange, roundOut } from '../common/byte-range.js';
import type { Clock, Timer } from '../common/clock.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { type DataEffect, type DataEvent, DataMachine, type ReadError } from './data-machine.js';
import { RangeSet } from './range-set.js';

/**
 * One file's pages in the kernel: carries out what data-machine.ts says.
 *
 * Invariant: what the machine takes for held is held. It learns of a token when one is pinned, and loses it in `leaves`, before the token goes; so it may know
 * of less than there is, never of more.
 * Fault model: a notification that fails (the kernel has forgotten the inode, the mount is gone) has found nothing to take back.
 */
/** Tokens that don't leave before it is released. */
export interface Held {
  release(): void;
}
export interface PagesFile {
  heldAround(offsetBytes: number, exclusive: boolean): ByteRange | null;
  tryHold(range: ByteRange, exclusive: boolean): Held | null;
  hold(range: ByteRange, exclusive: boolean, options: { signal: AbortSignal; timeoutMs: number }): Promise<Held>;
}

export interface PagesPort {
  /** Resolves when the kernel has none of the range, however. */
  notify(range: ByteRange): Promise<void>;
  /** After which a READ that waits fails: the locks on its pages hold up others (M7). */
  readonly readTimeoutMs: number;
  /** After which READs that keep a token from leaving fail (T7). */
  readonly lateMs: number;
  readonly clock: Clock;
  /** A token can't leave, and the kernel may be waiting for us in turn. */
  late(): void;
  counted(what: 'pagesDropped' | 'readsParked' | 'readsRefused' | 'launderedLost'): void;
}

export interface PagesRead {
  readonly file: PagesFile;
  readonly range: ByteRange;
  /** Of what is put into the kernel's pages unasked. */
  readonly pushes?: boolean;
  /** Reads under tokens that are held, and answers. */
  serve(): Promise<void>;
  refuse(error: ReadError): void;
}

interface Waiting extends PagesRead {
  wanting: AbortController | null;
}

export class FilePages {
  readonly #machine = new DataMachine();
  readonly #port: PagesPort;
  #shared = new RangeSet();
  #exclusive = new RangeSet();
  #nextId = 1;
  readonly #reads = new Map<number, Waiting>();
  /** Of writes, opens and revokes. */
  readonly #waiting = new Map<number, Deferred<void>>();
  readonly #laundered = new Map<number, { apply: () => void; lost: () => void }>();

  constructor(port: PagesPort) {
    this.#port = port;
  }

  /** No token of the file is relied on here, and nothing is under way. */
  get knowsNothing(): boolean {
    return this.#machine.isIdle && this.#shared.isEmpty;
  }

  /** A mapping may be changing its pages. */
  get mayBeStored(): boolean {
    return this.#machine.wantsExclusive;
  }

  /** A READ into the kernel's pages. Its id, for `giveUp`. */
  read(read: PagesRead): number {
    const id = this.#nextId++;
    this.#reads.set(id, { ...read, wanting: null });
    const exclusive = this.#machine.wantsExclusive;
    const pins = read.file.tryHold(read.range, exclusive);
    if (pins !== null) {
      this.#learn(read.file.heldAround(read.range.start, exclusive) ?? read.range, exclusive, []);
      this.#learn(read.range, exclusive, []);
    }
    if (read.pushes === true) this.#step({ type: 'push', id, range: read.range });
    else this.#step({ type: 'read', id, range: read.range, cached: true });
    pins?.release();
    return id;
  }
  giveUp(id: number): void {
    this.#step({ type: 'giveUp', id, error: 'interrupted' });
  }

  /**
   * Bytes are about to change here. Resolves when the kernel has none of them; what it resolves with lets them come back. `silent`: the kernel cuts them off
   * by itself.
   */
  async changing(range: ByteRange, held: ByteRange, silent: boolean): Promise<() => void> {
    const id = this.#nextId++;
    // Whoever changes them has them pinned, exclusively.
    this.#learn(held, true, []);
    this.#learn(range, true, []);
    const dropped = this.#wait(id);
    this.#step({ type: 'write', id, range, silent });
    await dropped;
    return () => this.#step({ type: 'applied', id });
  }

  /** A stored page, written back. Never waits for a token. */
  laundered(range: ByteRange, apply: () => void, lost: () => void): void {
    const id = this.#nextId++;
    this.#laundered.set(id, { apply, lost });
    this.#step({ type: 'laundered', id, range });
  }

  /** A token is about to leave. What it resolves with is called when it has left. */
  async leaves(range: ByteRange, keepShared: boolean, lateMs = this.#port.lateMs): Promise<() => void> {
    const id = this.#nextId++;
    const dropped = this.#wait(id);
    this.#step({ type: 'revoke', id, range, keepShared });
    const late: Timer = this.#port.clock.after(lateMs, () => {
      this.#step({ type: 'late', id });
      this.#port.late();
    });
    await dropped;
    late.cancel();
    return () => {
      const gone = roundOut(range);
      this.#exclusive.remove(gone);
      if (!keepShared) this.#shared.remove(gone);
      this.#step({ type: 'released', id, held: this.#held() });
    };
  }

  /** Resolves when the open may be answered. */
  async writableOpened(): Promise<void> {
    const id = this.#nextId++;
    const opened = this.#wait(id);
    this.#step({ type: 'writableOpened', id });
    await opened;
  }
  writableClosed(): void {
    this.#step({ type: 'writableClosed' });
  }

  #held() {
    return { shared: [...this.#shared], exclusive: [...this.#exclusive] };
  }
  #learn(range: ByteRange, exclusive: boolean, wants: readonly number[]): void {
    const held = roundOut(range);
    const known = exclusive ? this.#exclusive.covers(held) : this.#shared.covers(held);
    if (known && wants.length === 0) return;
    this.#shared.add(held);
    if (exclusive) this.#exclusive.add(held);
    this.#step({ type: 'granted', held: this.#held(), wants });
  }
  #wait(id: number): Promise<void> {
    const done = deferred<void>();
    this.#waiting.set(id, done);
    return done.promise;
  }
  #done(id: number): void {
    this.#waiting.get(id)?.resolve();
    this.#waiting.delete(id);
  }

  #step(event: DataEvent): void {
    for (const effect of this.#machine.step(event)) this.#carryOut(effect);
  }

  #carryOut(effect: DataEffect): void {
    switch (effect.type) {
      case 'serve':
        void this.#serve(effect.id);
        break;
      case 'refuse': {
        const read = this.#reads.get(effect.id);
        this.#reads.delete(effect.id);
        this.#port.counted('readsRefused');
        read?.refuse(effect.error);
        break;
      }
      case 'want':
        this.#port.counted('readsParked');
        void this.#want(effect.id, effect.range, effect.exclusive);
        break;
      case 'unwant':
        this.#reads.get(effect.id)?.wanting?.abort();
        break;
      case 'apply': {
        const page = this.#laundered.get(effect.id);
        this.#laundered.delete(effect.id);
        if (page !== undefined) page.apply();
        else this.#done(effect.id);
        break;
      }
      case 'lost':
        this.#port.counted('launderedLost');
        this.#laundered.get(effect.id)?.lost();
        this.#laundered.delete(effect.id);
        break;
      case 'notify':
        this.#port.counted('pagesDropped');
        void this.#port
          .notify(effect.range)
          .then(() => this.#step({ type: 'notified', notification: effect.notification }));
        break;
      default:
        this.#done(effect.id);
    }
  }

  async #serve(id: number): Promise<void> {
    const read = this.#reads.get(id)!;
    try {
      await read.serve();
    } finally {
      this.#reads.delete(id);
      this.#step({ type: 'served', id });
    }
  }

  /** In place of what it wanted before. */
  async #want(id: number, range: ByteRange, exclusive: boolean): Promise<void> {
    const read = this.#reads.get(id)!;
    read.wanting?.abort();
    const wanting = new AbortController();
    read.wanting = wanting;
    let pins: Held;
    try {
      pins = await read.file.hold(range, exclusive, { signal: wanting.signal, timeoutMs: this.#port.readTimeoutMs });
    } catch {
      if (read.wanting === wanting && !wanting.signal.aborted) this.#step({ type: 'giveUp', id, error: 'failed' });
      return;
    }
    // In this turn what is granted is held, and what the machine does with it begins.
    if (read.wanting === wanting && !wanting.signal.aborted) this.#learn(range, exclusive, [id]);
    pins.release();
  }
}
