import type { Clock } from '../common/clock.js';
import { bootTimeMs, wallClockNs } from '../native/core.js';

/** The machine's time: CLOCK_BOOTTIME, so that a lease runs out while the machine sleeps (F2); timers of the event loop. */
export const systemClock: Clock = {
  nowMs: bootTimeMs,
  wallNs: wallClockNs,
  after: (delayMs, fire) => {
    const timer = setTimeout(fire, Math.max(0, delayMs));
    return { cancel: () => clearTimeout(timer) };
  },
};
