import { describe, expect, test } from 'vitest';
import { FLUSHES } from './durable.js';
import { SCENARIOS } from './testing-flushes.js';
import type { VolatileNsds } from './testing-volatile.js';

describe('each flush that the file system makes is needed (I8)', () => {
  test.each(FLUSHES)('%s: with it nothing is lost, without it the power cut is noticed', async (why) => {
    let nsds: VolatileNsds | null = null;
    expect(await SCENARIOS[why]((made) => void (nsds = made))).toBeNull();
    expect(nsds!.flushesFor(why)).toBeGreaterThan(0);
    expect(await SCENARIOS[why]((made) => made.leaveOut(why))).not.toBeNull();
  });
});
