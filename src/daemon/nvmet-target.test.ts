import { expect, test } from 'vitest';
import { NvmetTarget } from './nvmet-target.js';

const NQN = 'nqn.2026-01.org.example:disk-for-node2';

test('a subsystem is shut by taking its export away, and stays shut when it is asked for again', async () => {
  const there = new Set([NQN]);
  const asked: string[] = [];
  const target = new NvmetTarget({
    unexport: async (nqn) => {
      asked.push(nqn);
      return there.delete(nqn);
    },
  });
  await target.shutOut(NQN);
  await target.shutOut(NQN);
  expect(asked).toEqual([NQN, NQN]);
});

test('a subsystem that was never there proves nothing: its name may be wrong', async () => {
  const target = new NvmetTarget({ unexport: async () => false });
  await expect(target.shutOut(NQN)).rejects.toMatchObject({ reason: 'nsdUnavailable', object: NQN });
});

test('commands that do not end are no proof either, and the next attempt may succeed', async () => {
  let drains = false;
  const target = new NvmetTarget({
    unexport: () => (drains ? Promise.resolve(true) : Promise.reject(new Error('ETIMEDOUT: does not drain'))),
  });
  await expect(target.shutOut(NQN)).rejects.toMatchObject({
    reason: 'nsdUnavailable',
    message: expect.stringContaining('does not drain') as string,
  });
  drains = true;
  await target.shutOut(NQN);
});
