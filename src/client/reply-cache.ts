import type { FsErrorRecord } from '../common/errors.js';
import { FsError } from '../common/errors.js';
import type { OpName, Reply } from './ops.js';

/**
 * Executes each call of a session once, however often it is sent (F6). Calls are numbered by the client, upwards; with every
 * frame it says below which number it misses no answer any more, and now and then which ones it has above that.
 *
 * Invariants: a number that runs is not started again, whoever asks waits for the same outcome; outcomes of operations that
 * change something are kept until acknowledged; below the acknowledged number nothing is executed.
 */
export type Outcome = { readonly reply: Reply } | { readonly error: FsErrorRecord };

export class ReplyCache {
  readonly #running = new Map<number, Promise<Outcome>>();
  readonly #finished = new Map<number, Outcome>();
  #acknowledged = 0;

  constructor(readonly keptMax: number) {}

  get keptCount(): number {
    return this.#finished.size;
  }

  acknowledge(below: number): void {
    if (below <= this.#acknowledged) return;
    this.#acknowledged = below;
    for (const id of this.#finished.keys()) if (id < below) this.#finished.delete(id);
  }

  /** The client has these answers, though not yet all that are older: one slow call must not fill the cache with others'. */
  taken(ids: readonly number[]): void {
    for (const id of ids) this.#finished.delete(id);
  }

  /** `keep`: the outcome may not be had by doing it again. */
  run(id: number, op: OpName, keep: boolean, start: () => Promise<Outcome>): Promise<Outcome> {
    const finished = this.#finished.get(id);
    if (finished !== undefined) return Promise.resolve(finished);
    const running = this.#running.get(id);
    if (running !== undefined) return running;
    if (id < this.#acknowledged)
      throw new FsError('badFrame', { op, detail: `call ${id} was answered and acknowledged before` });
    if (keep && this.#finished.size + this.#running.size >= this.keptMax)
      throw new FsError('queueFull', { op, detail: `${this.keptMax} answers are not acknowledged yet` });
    const run = start().then((outcome) => {
      this.#running.delete(id);
      if (keep && id >= this.#acknowledged) this.#finished.set(id, outcome);
      return outcome;
    });
    this.#running.set(id, run);
    return run;
  }
}
