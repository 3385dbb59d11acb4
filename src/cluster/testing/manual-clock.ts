import type { Clock, Timer } from '../../common/clock.js';

/** A clock that stands until a test moves it. Timers of one moment fire in the order in which they were set. */
export class ManualClock implements Clock {
  #nowMs = 0;
  #next = 0;
  #timers: { readonly atMs: number; readonly order: number; readonly fire: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }
  wallNs(): bigint {
    return BigInt(Math.round(this.#nowMs * 1e6));
  }
  after(delayMs: number, fire: () => void): Timer {
    const timer = { atMs: this.#nowMs + Math.max(0, delayMs), order: this.#next++, fire };
    this.#timers.push(timer);
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((other) => other !== timer);
      },
    };
  }

  /** Fires everything due until `durationMs` has passed, letting promises settle after every timer. */
  async advance(durationMs: number): Promise<void> {
    const end = this.#nowMs + durationMs;
    await settle();
    for (;;) {
      const due = this.#timers
        .filter((timer) => timer.atMs <= end)
        .sort((a, b) => a.atMs - b.atMs || a.order - b.order)[0];
      if (due === undefined) break;
      this.#timers = this.#timers.filter((other) => other !== due);
      this.#nowMs = Math.max(this.#nowMs, due.atMs);
      due.fire();
      await settle();
    }
    this.#nowMs = end;
  }

  /** Until `promise` is settled, in steps; fails after `limitMs` of virtual time. */
  async run<T>(promise: Promise<T>, limitMs = 120_000): Promise<T> {
    let settled = false;
    const watched = promise.finally(() => {
      settled = true;
    });
    watched.catch(() => undefined);
    const end = this.#nowMs + limitMs;
    while (!settled) {
      if (this.#nowMs > end) throw new Error(`nothing happened within ${limitMs} ms of virtual time`);
      await this.advance(10);
    }
    return watched;
  }
}

/** Lets every promise that can settle without a timer do so: microtasks only, a bounded chain of them. */
async function settle(): Promise<void> {
  for (let i = 0; i < 50; i++) await Promise.resolve();
}
