/** Time and timers, handed in everywhere: the daemon's is CLOCK_BOOTTIME, the simulator's is virtual. */
export interface Clock {
  /** Monotonic, in milliseconds with a fraction; runs through suspends. The base of every deadline and lease. */
  nowMs(): number;
  /** Wall clock in nanoseconds since 1970, for the times of inodes only. */
  wallNs(): bigint;
  /** Calls `fire` once, not before `delayMs` has passed. Never calls it from inside `after`. */
  after(delayMs: number, fire: () => void): Timer;
}

export interface Timer {
  cancel(): void;
}

export const sleep = (clock: Clock, delayMs: number): Promise<void> =>
  new Promise((resolve) => {
    clock.after(delayMs, resolve);
  });
