import type { Clock } from '../common/clock.js';
import { FsError } from '../common/errors.js';

/** A number of slots and a bounded line of those who wait for one, served in order. */
export class Semaphore {
  #free: number;
  readonly #line = new Set<() => void>();

  constructor(
    slots: number,
    private readonly waitingMax: number,
  ) {
    this.#free = slots;
  }

  /**
   * Resolves with a slot; `release` must follow.
   * @throws {FsError} queueFull when the line is full, aborted, deadlinePassed at `deadlineMs` of the clock.
   */
  async acquire(op: string, clock: Clock, deadlineMs: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) throw aborted(op, signal);
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    if (this.#line.size >= this.waitingMax)
      throw new FsError('queueFull', { op, detail: `${this.waitingMax} requests wait already` });
    await new Promise<void>((resolve, reject) => {
      const leave = (error: FsError): void => {
        this.#line.delete(turn);
        timer.cancel();
        signal?.removeEventListener('abort', onAbort);
        reject(error);
      };
      const onAbort = (): void => leave(aborted(op, signal));
      const turn = (): void => {
        timer.cancel();
        signal?.removeEventListener('abort', onAbort);
        resolve();
      };
      const timer = clock.after(Math.max(0, deadlineMs - clock.nowMs()), () =>
        leave(new FsError('deadlinePassed', { op, detail: 'waiting for its turn among the requests in flight' })),
      );
      this.#line.add(turn);
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  release(): void {
    const [next] = this.#line;
    if (next === undefined) this.#free++;
    else {
      this.#line.delete(next);
      next();
    }
  }
}

const aborted = (op: string, signal: AbortSignal | undefined): FsError =>
  new FsError('aborted', { op, detail: 'the operation was aborted', cause: signal?.reason });
