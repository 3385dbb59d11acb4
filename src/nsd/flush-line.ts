import { type Deferred, deferred } from '../common/deferred.js';

/**
 * The flushes of one device, one after the other; whoever comes while one is under way shares the next with all others who do (group commit).
 *
 * Invariant: `flush` resolves only after a flush that began after the call. A write that had ended when `begun` was n is covered by
 * flush n + 1 and later ones, not by flush n.
 * Fault model: a flush that fails, fails for all who share it, and covers nothing.
 */
export class FlushLine {
  #begun = 0;
  #underWay = false;
  #next: Deferred<void> | null = null;

  constructor(
    private readonly device: { flush(): Promise<void> },
    /** Flush `number` has ended well. Before anyone who waits for it hears of it. */
    private readonly onEnded: (number: number) => void,
  ) {}

  /** The number of the last flush that has begun. */
  get begun(): number {
    return this.#begun;
  }

  flush(): Promise<void> {
    this.#next ??= deferred();
    const { promise } = this.#next;
    if (!this.#underWay) void this.#run();
    return promise;
  }

  async #run(): Promise<void> {
    this.#underWay = true;
    for (;;) {
      const mine = this.#next;
      if (mine === null) break;
      this.#next = null;
      const number = ++this.#begun;
      try {
        await this.device.flush();
        this.onEnded(number);
        mine.resolve();
      } catch (error) {
        mine.reject(error);
      }
    }
    this.#underWay = false;
  }
}
