import { invariant } from '../common/assert.js';
import type { Clock, Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';

/**
 * Virtual time. Owns the queue of everything that will happen in a simulated world; nothing in the world happens outside of it.
 * Events fire in order of time, and of arrival within the same instant. After each event all promise continuations that it set
 * off run to their end before the next one, so one seed gives one history. The world's code must not await anything real.
 */
export class Scheduler implements Clock {
  #nowMs = 0;
  #sequence = 0;
  #steps = 0;
  readonly #heap: Event[] = [];
  readonly #wallStartNs: bigint;

  constructor(wallStartNs = 1_700_000_000_000_000_000n) {
    this.#wallStartNs = wallStartNs;
  }

  nowMs(): number {
    return this.#nowMs;
  }
  wallNs(): bigint {
    return this.#wallStartNs + BigInt(Math.round(this.#nowMs * 1e6));
  }
  get steps(): number {
    return this.#steps;
  }

  after(delayMs: number, fire: () => void): Timer {
    const event: Event = { atMs: this.#later(delayMs), sequence: this.#sequence++, fire };
    this.#push(event);
    return {
      cancel: () => {
        event.fire = null;
      },
    };
  }

  /**
   * Runs until `done` resolves. After each event `check` runs, when everything that the event set off has settled.
   * @throws what `done` rejects with; FsError internal when nothing is left to happen or `stepsMax` is passed (a hang, I12).
   */
  async run<T>(done: Promise<T>, options: { stepsMax: number; check?: () => void }): Promise<T> {
    let outcome: { value: T } | { error: unknown } | undefined;
    done.then(
      (value) => {
        outcome = { value };
      },
      (error: unknown) => {
        outcome = { error };
      },
    );
    await settle();
    while (outcome === undefined) {
      const event = this.#pop();
      if (event === undefined)
        throw new FsError('internal', {
          op: 'sim',
          detail: 'nothing left to happen, yet not done: somebody waits for ever',
        });
      if (event.fire === null) continue;
      invariant(event.atMs >= this.#nowMs, 'time goes forward');
      this.#nowMs = event.atMs;
      this.#steps++;
      if (this.#steps > options.stepsMax)
        throw new FsError('internal', { op: 'sim', detail: `not done after ${options.stepsMax} steps` });
      event.fire();
      await settle();
      options.check?.();
    }
    if ('error' in outcome) throw outcome.error;
    return outcome.value;
  }

  /** Whole ticks, rounded up: sums and differences of times are exact, and what waits for a moment never wakes before it. */
  #later(delayMs: number): number {
    if (!(delayMs > 0)) return this.#nowMs;
    return Math.max(this.#nowMs + TICK_MS, Math.ceil((this.#nowMs + delayMs) / TICK_MS) * TICK_MS);
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): Event | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined || heap.length === 0) return top;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return top;
  }
}

const TICK_MS = 2 ** -20;

interface Event {
  readonly atMs: number;
  readonly sequence: number;
  fire: (() => void) | null;
}

const before = (a: Event, b: Event): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.sequence < b.sequence);

/** All promise continuations run before a macrotask does: this is the one real wait, and it carries no information. */
const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
