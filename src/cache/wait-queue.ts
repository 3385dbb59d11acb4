import type { Clock, Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';

/**
 * Waiting for something that comes in counts (slots, room for dirty pages, transfers in flight): first come, first served,
 * a bounded number of waiters, and every wait ends: served, aborted, at its deadline, or refused because the cache went away.
 *
 * Who makes more of it available calls `pump`; a waiter behind one that can't be served waits too, so nobody starves.
 * Fault model: none of its own; errors of `tryTake` are its caller's.
 */
export interface WaitQueueOptions<T> {
  readonly clock: Clock;
  /** What is waited for, for messages: 'a free page'. */
  readonly what: string;
  /** Who waits, for messages; without it, the cache. */
  readonly op?: string;
  readonly object?: string;
  readonly waitersMax: number;
  /** Null when what is waited for always comes, in the time of a device. */
  readonly deadlineMs: number | null;
  /** Takes `count` of it now, or null. */
  readonly tryTake: (count: number) => T | null;
  /** Somebody begins to wait: hurry up whoever makes more. */
  readonly onWait?: (count: number) => void;
  /** Why it takes so long, when that is known: the cause of a deadline that passed. */
  readonly causeOfDelay?: () => unknown;
}

interface Waiter<T> {
  readonly count: number;
  readonly resolve: (value: T) => void;
  readonly reject: (error: unknown) => void;
  readonly end: () => void;
}

export class WaitQueue<T> {
  readonly #options: WaitQueueOptions<T>;
  readonly #waiters: Waiter<T>[] = [];

  constructor(options: WaitQueueOptions<T>) {
    this.#options = options;
  }

  get length(): number {
    return this.#waiters.length;
  }
  /** How much the waiters want in all. */
  get wanted(): number {
    return this.#waiters.reduce((sum, waiter) => sum + waiter.count, 0);
  }

  /** Taken at once, unless others wait already. */
  takeNow(count: number): T | null {
    return this.#waiters.length === 0 ? this.#options.tryTake(count) : null;
  }

  /**
   * `deadlineMs`: other than the usual one.
   * @throws {FsError} queueFull when too many wait, deadlinePassed, aborted, or what `rejectAll` was called with.
   */
  take(count: number, signal?: AbortSignal, deadlineMs: number | null = this.#options.deadlineMs): Promise<T> {
    const now = this.takeNow(count);
    return now === null ? this.#wait(count, signal, false, deadlineMs) : Promise.resolve(now);
  }
  /** Before everybody who waits. */
  takeUrgent(count: number): Promise<T> {
    const now = this.#options.tryTake(count);
    return now === null ? this.#wait(count, undefined, true, this.#options.deadlineMs) : Promise.resolve(now);
  }

  #wait(count: number, signal: AbortSignal | undefined, urgent: boolean, deadlineMs: number | null): Promise<T> {
    const { clock, what, waitersMax, op = 'cache.wait', object } = this.#options;
    const aborted = (): FsError => abortedError(what, signal, op, object);
    if (signal?.aborted) return Promise.reject(aborted());
    if (this.#waiters.length >= waitersMax)
      return Promise.reject(new FsError('queueFull', { op, object, detail: `too many wait for ${what}` }));
    return new Promise<T>((resolve, reject) => {
      let timer: Timer | null = null;
      const fail = (error: unknown): void => {
        const at = this.#waiters.indexOf(waiter);
        if (at < 0) return;
        this.#waiters.splice(at, 1);
        waiter.end();
        reject(error);
        // Whoever was behind may be wanting less.
        this.pump();
      };
      const onAbort = (): void => fail(aborted());
      const waiter: Waiter<T> = {
        count,
        resolve,
        reject,
        end: () => {
          timer?.cancel();
          signal?.removeEventListener('abort', onAbort);
        },
      };
      if (urgent) this.#waiters.unshift(waiter);
      else this.#waiters.push(waiter);
      signal?.addEventListener('abort', onAbort, { once: true });
      if (deadlineMs !== null && Number.isFinite(deadlineMs)) {
        timer = clock.after(deadlineMs, () => {
          const cause = this.#options.causeOfDelay?.();
          // Errors cross threads without their causes.
          const why = cause instanceof Error ? `: ${cause.message}` : '';
          fail(
            new FsError('deadlinePassed', { op, object, detail: `no ${what} within ${deadlineMs} ms${why}`, cause }),
          );
        });
      }
      this.#options.onWait?.(count);
    });
  }

  /** Serves from the front as far as it goes. */
  pump(): void {
    for (let first = this.#waiters[0]; first !== undefined; first = this.#waiters[0]) {
      const taken = this.#options.tryTake(first.count);
      if (taken === null) return;
      this.#waiters.shift();
      first.end();
      first.resolve(taken);
    }
  }

  rejectAll(error: unknown): void {
    for (const waiter of this.#waiters.splice(0)) {
      waiter.end();
      waiter.reject(error);
    }
  }
}

export function abortedError(what: string, signal?: AbortSignal, op = 'cache.wait', object?: string): FsError {
  return new FsError('aborted', {
    op,
    object,
    detail: `aborted while waiting for ${what}`,
    cause: signal?.reason,
  });
}

/** The promise, or a rejection as soon as the signal fires; what the promise stands for goes on all the same. */
export function abortable<T>(promise: Promise<T>, what: string, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  if (signal.aborted) return Promise.reject(abortedError(what, signal));
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => reject(abortedError(what, signal));
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
