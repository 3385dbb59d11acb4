import type { Clock, Timer } from '../common/clock.js';

/**
 * One node's thread, as the world sees it: the only way by which anything from outside (time, the network, the disks, the cluster
 * store) gets in. Owns what has happened and has not been noticed yet.
 *
 * Invariants: what enters runs in the order in which it happened; while the node is paused nothing runs and nothing is lost; when
 * it is dead nothing runs any more. Fault model: the node may throw; who throws is told to the world, and the world goes on.
 */
interface Held {
  run: (() => void) | null;
}

export class NodeGate implements Clock {
  #state: 'running' | 'paused' | 'dead' = 'running';
  #held: Held[] = [];
  #pumping = false;

  constructor(
    private readonly world: Clock,
    private readonly onThrow: (error: unknown) => void,
  ) {}

  get dead(): boolean {
    return this.#state === 'dead';
  }
  get paused(): boolean {
    return this.#state === 'paused';
  }

  nowMs(): number {
    return this.world.nowMs();
  }
  wallNs(): bigint {
    return this.world.wallNs();
  }

  after(delayMs: number, fire: () => void): Timer {
    const held: Held = { run: fire };
    const timer = this.world.after(delayMs, () => this.#enter(held));
    return {
      cancel: () => {
        held.run = null;
        timer.cancel();
      },
    };
  }

  /** Runs it in the node's thread: now, when the node goes on, or never. */
  enter(run: () => void): void {
    this.#enter({ run });
  }

  /** The same outcome, noticed when the node gets to it. */
  pass<T>(outcome: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      outcome.then(
        (value) => this.enter(() => resolve(value)),
        (error: unknown) => this.enter(() => reject(error)),
      );
    });
  }

  pause(): void {
    if (this.#state === 'running') this.#state = 'paused';
  }
  resume(): void {
    if (this.#state !== 'paused') return;
    this.#state = 'running';
    this.#pump();
  }
  kill(): void {
    this.#state = 'dead';
    this.#held = [];
  }

  #enter(held: Held): void {
    if (this.#state === 'dead') return;
    if (this.#state === 'paused' || this.#held.length > 0) this.#held.push(held);
    else this.#run(held);
  }

  /** What was held up is worked off one by one, each with everything that it sets off. */
  #pump(): void {
    if (this.#pumping || this.#held.length === 0) return;
    this.#pumping = true;
    this.world.after(0, () => {
      this.#pumping = false;
      if (this.#state !== 'running') return;
      // It stays at the head while it runs, so that what it brings in queues up behind the others.
      const [first] = this.#held;
      if (first !== undefined) this.#run(first);
      this.#held.shift();
      this.#pump();
    });
  }

  #run(held: Held): void {
    const { run } = held;
    held.run = null;
    if (run === null) return;
    try {
      run();
    } catch (error) {
      this.onThrow(error);
    }
  }
}
