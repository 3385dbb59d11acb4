import type { Clock, Timer } from '../common/clock.js';
import type { VerbsQueue } from './verbs-port.js';

/** One work request: how it is queued, and what follows when it has completed. */
export interface Work {
  /** Something waits for its completion: memory, a transfer, a window. */
  readonly awaited: boolean;
  queue(queue: VerbsQueue, id: number, signalled: boolean): void;
  done(): void;
}

/**
 * The sending side of a queue pair: numbers work requests, signals as few as will do, and holds a watch over those.
 *
 * Work completes in order, so one completion speaks for everything before it. The last request of a batch is signalled if anybody
 * waits for something in the batch, or when many have gone without.
 */
const UNSIGNALLED_MAX = 32;

export class WorkQueue {
  readonly #queue: VerbsQueue;
  readonly #clock: Clock;
  readonly #deadlineMs: number;
  readonly #onLate: () => void;
  readonly #batch: Work[] = [];
  /** Posted and not known to be done, from #head on; the id of the first is #firstId. */
  #posted: Work[] = [];
  #head = 0;
  #firstId = 1;
  #unsignalled = 0;
  #staged = false;
  /** Ids of signalled requests with the times they were posted at. */
  #watched: { id: number; atMs: number }[] = [];
  #timer: Timer | null = null;

  constructor(queue: VerbsQueue, clock: Clock, deadlineMs: number, onLate: () => void) {
    this.#queue = queue;
    this.#clock = clock;
    this.#deadlineMs = deadlineMs;
    this.#onLate = onLate;
  }

  get free(): number {
    return this.#queue.sendsFree - this.#batch.length;
  }
  get outstanding(): number {
    return this.#posted.length - this.#head;
  }

  /** Posted by the next `flush`. The caller has looked at `free`. */
  add(work: Work): void {
    this.#batch.push(work);
  }

  /**
   * Queues what was added, and leaves the posting to the next flush, together with what is added until then: one call of the device instead
   * of two. False: somebody waits for some of it, so nothing was done.
   */
  stage(): boolean {
    const batch = this.#batch;
    if (batch.some(({ awaited }) => awaited)) return false;
    for (const work of batch) {
      work.queue(this.#queue, this.#firstId + this.outstanding, false);
      this.#posted.push(work);
    }
    this.#unsignalled += batch.length;
    this.#staged ||= batch.length > 0;
    batch.length = 0;
    return true;
  }

  /** @throws {FsError} what the queue pair says. */
  flush(): void {
    const batch = this.#batch;
    if (batch.length === 0) {
      if (this.#staged) this.#queue.post();
      this.#staged = false;
      return;
    }
    this.#staged = false;
    let awaited = false;
    for (const work of batch) awaited ||= work.awaited;
    const signalled = awaited || this.#unsignalled + batch.length > UNSIGNALLED_MAX;
    const first = this.#firstId + this.outstanding;
    const last = batch.length - 1;
    for (let i = 0; i <= last; i++) {
      const work = batch[i]!;
      work.queue(this.#queue, first + i, signalled && i === last);
      this.#posted.push(work);
    }
    batch.length = 0;
    this.#unsignalled = signalled ? 0 : this.#unsignalled + last + 1;
    if (signalled) this.#watch(first + last);
    this.#queue.post();
  }

  /** Everything up to this id is done. False: nothing of the kind is under way. */
  completed(id: number): boolean {
    const count = id - this.#firstId + 1;
    if (!Number.isSafeInteger(id) || count < 1 || count > this.outstanding) return false;
    const from = this.#head;
    this.#head += count;
    this.#firstId = id + 1;
    while (this.#watched.length > 0 && this.#watched[0]!.id <= id) this.#watched.shift();
    for (let i = from; i < from + count; i++) this.#posted[i]!.done();
    if (this.#head === this.#posted.length) {
      this.#posted = [];
      this.#head = 0;
    } else if (this.#head > 1024) {
      this.#posted.splice(0, this.#head);
      this.#head = 0;
    }
    return true;
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
    this.#batch.length = 0;
  }

  #watch(id: number): void {
    this.#watched.push({ id, atMs: this.#clock.nowMs() });
    if (this.#timer === null) this.#arm(this.#deadlineMs);
  }

  #arm(delayMs: number): void {
    this.#timer = this.#clock.after(delayMs, () => {
      this.#timer = null;
      const oldest = this.#watched[0];
      if (oldest === undefined) return;
      const leftMs = oldest.atMs + this.#deadlineMs - this.#clock.nowMs();
      if (leftMs <= 0) this.#onLate();
      else this.#arm(leftMs);
    });
  }
}
