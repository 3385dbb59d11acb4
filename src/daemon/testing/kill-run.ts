import { performance } from 'node:perf_hooks';
import type { DaemonCluster } from './daemon-cluster.js';

/** For what hangs: each thing that is waited for has so long, however many there are. */
const STEP_DEADLINE_MS = 180_000;
const LOG_TAIL_CHARS = 1_500;

/** Of a test's random moments and choices: its own, or the one that is to be looked at again. */
export const seedOr = (own: number): number => Number(process.env.HOLDFAST_SEED ?? own);

/**
 * A long test that kills daemons, as a row of steps. Each has a deadline of its own, so that none is needed that would have to be guessed for all of them
 * together; what fails says at which step of which round, with which seed, and what the daemons said last.
 */
export class KillRun {
  /** Since 0; -1 before the first. */
  round = -1;
  readonly #failed: Promise<never>;
  #fail!: (error: unknown) => void;
  readonly #begunMs = performance.now();
  #cluster: DaemonCluster | null = null;

  constructor(readonly seed: number) {
    this.#failed = new Promise<never>((_, reject) => {
      this.#fail = reject;
    });
    // Every step asks.
    this.#failed.catch(() => undefined);
  }

  /** Whose daemons are asked what they said, when something fails. */
  of(cluster: DaemonCluster): void {
    this.#cluster = cluster;
  }

  /** A load that fails fails the test: at once, not when somebody waits for it. */
  watch<T>(working: Promise<T>): Promise<T> {
    working.catch((error: unknown) => this.#fail(error));
    return working;
  }

  async step<T>(what: string, doing: Promise<T> | (() => T | Promise<T>)): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`did not end within ${STEP_DEADLINE_MS} ms`)), STEP_DEADLINE_MS);
    });
    try {
      return await Promise.race([typeof doing === 'function' ? doing() : doing, this.#failed, late]);
    } catch (error) {
      throw this.#told(what, error);
    } finally {
      clearTimeout(timer);
    }
  }

  #told(step: string, error: unknown): Error {
    if (error instanceof Told) return error;
    const seconds = ((performance.now() - this.#begunMs) / 1000).toFixed(0);
    const what = error instanceof Error ? error.message : String(error);
    const said = this.#cluster === null ? '' : `\n${this.#cluster.logs(LOG_TAIL_CHARS)}`;
    return new Told(`round ${this.round}, ${step} (HOLDFAST_SEED=${this.seed}, after ${seconds} s): ${what}${said}`, {
      cause: error,
    });
  }
}

class Told extends Error {}
