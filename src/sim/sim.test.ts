import { describe, expect, it } from 'vitest';
import { PLANTED_BUGS } from './planted/planted-bugs.js';
import { runSeed } from './run-seed.js';

describe('the simulator', () => {
  it('replays a seed exactly: the same events in the same order', async () => {
    for (const seed of [1, 4, 7]) {
      const first = await runSeed(seed);
      const second = await runSeed(seed);
      expect(second.digest).toBe(first.digest);
      expect(second.steps).toBe(first.steps);
    }
  });

  it('gives every seed three nodes, 500 operations and two faults at least', async () => {
    for (const seed of [2, 3, 4]) {
      const result = await runSeed(seed);
      expect(result.violation).toBeNull();
      expect(result.plan.nodeCount).toBeGreaterThanOrEqual(3);
      expect(result.operations).toBeGreaterThanOrEqual(500);
      expect(result.faults).toBeGreaterThanOrEqual(2);
    }
  });

  it('says what happened last to the object of a failure', async () => {
    const bug = PLANTED_BUGS.find(({ name }) => name === 'revoke-lost')!;
    const result = await runSeed(1, { planted: bug });
    expect(result.violation).not.toBeNull();
    expect(result.lastEvents.length).toBeGreaterThan(10);
  });
});
