import { describe, expect, test } from 'vitest';
import { nodeId } from '../../common/ids.js';
import { below, SeededRandom } from '../../common/random.js';
import { type RegionHolder, RegionMachine } from './region-machine.js';
import type { RegionAnswer, RegionAsk, RegionReport } from './shipment.js';

const holder = (first: number, end: number, node: number): RegionHolder => ({ first, end, node: nodeId(node) });
const report = (region: number, subBlocks: number, inRow = Math.min(subBlocks, 256)): RegionReport => ({
  region,
  free: { subBlocks, inRow },
});

/** Questions of one file system of 8 regions. */
function manager() {
  const machine = new RegionMachine();
  return (
    from: number,
    ask: Partial<RegionAsk> & { readonly holders?: readonly RegionHolder[]; readonly nowMs?: number } = {},
  ): RegionAnswer | null => {
    const { holders = [], nowMs = 0, ...rest } = ask;
    const whole = { regionCount: 8, regionBytes: 4096, count: 16, first: 0, tried: [], reports: [], ...rest };
    return machine.step({ type: 'asked', from: nodeId(from), ask: whole, holders }, nowMs);
  };
}

describe('the allocation manager', () => {
  test('begins with nothing known and names the region that is nearest to where the asker wants to be', () => {
    expect(manager()(1, { first: 5 })).toEqual({ kind: 'free', region: 5 });
  });

  test('goes round at the end', () => {
    const ask = manager();
    expect(ask(1, { first: 7, holders: [holder(7, 8, 2)] })).toEqual({ kind: 'free', region: 0 });
  });

  test('names each asker another one, for a while', () => {
    const ask = manager();
    expect(ask(1)).toEqual({ kind: 'free', region: 0 });
    expect(ask(2)).toEqual({ kind: 'free', region: 1 });
    expect(ask(3)).toEqual({ kind: 'free', region: 2 });
    // Who was promised one, and asks again, hears the same.
    expect(ask(1)).toEqual({ kind: 'free', region: 0 });
    expect(ask(2, { nowMs: 10_000 })).toEqual({ kind: 'free', region: 0 });
  });

  test('passes over what is held, what was tried, and what is known to have too little in a row', () => {
    const ask = manager();
    const holders = [holder(0, 2, 2)];
    expect(ask(1, { holders, tried: [2], reports: [report(3, 500, 15)] })).toEqual({ kind: 'free', region: 4 });
    expect(ask(1, { holders, tried: [2], count: 15 })).toEqual({ kind: 'free', region: 3 });
  });

  test('names a region of the asker itself, which it holds and does not allocate from yet', () => {
    expect(manager()(1, { holders: [holder(0, 1, 1)] })).toEqual({ kind: 'free', region: 0 });
  });

  test('names one of another node only when there is no other: the one that has most free', () => {
    const ask = manager();
    const holders = [holder(0, 4, 2), holder(4, 8, 3)];
    ask(2, { count: 0, holders, reports: [report(1, 100), report(2, 300)] });
    ask(3, { count: 0, holders, reports: [report(5, 200), report(6, 400, 8)] });
    expect(ask(1, { holders })).toEqual({ kind: 'held', region: 2, holder: 2 });
    expect(ask(1, { holders, tried: [2] })).toEqual({ kind: 'held', region: 5, holder: 3 });
  });

  test('says full when it knows of each region that there is too little, until somebody tells of more', () => {
    const ask = manager();
    const reports = Array.from({ length: 8 }, (_, region) => report(region, 10));
    expect(ask(1, { reports })).toEqual({ kind: 'full' });
    expect(ask(2)).toEqual({ kind: 'full' });
    expect(ask(2, { reports: [{ region: 3, free: null }] })).toEqual({ kind: 'free', region: 3 });
  });

  test('a report alone is not answered, and reports of regions that there are not are passed over', () => {
    expect(manager()(1, { count: 0, reports: [report(9, 9), report(2 ** 31, 1)] })).toBeNull();
  });

  test('whatever it is told, it names a region that there is, and never one that was tried', () => {
    const random = new SeededRandom(7);
    const ask = manager();
    for (let i = 0; i < 5_000; i++) {
      const holders: RegionHolder[] = [];
      for (let at = 0; at < 8; ) {
        const end = at + 1 + below(random, 3);
        if (below(random, 2) === 0) holders.push(holder(at, Math.min(8, end), 1 + below(random, 4)));
        at = end;
      }
      const tried = Array.from({ length: below(random, 4) }, () => below(random, 8));
      const reports = Array.from({ length: below(random, 3) }, () => report(below(random, 12), below(random, 300)));
      const from = 1 + below(random, 4);
      const answer = ask(from, {
        holders,
        tried,
        reports,
        first: below(random, 8),
        count: 1 + below(random, 256),
        nowMs: i * 50,
      });
      if (answer === null || answer.kind === 'full') continue;
      expect(answer.region).toBeLessThan(8);
      expect(tried).not.toContain(answer.region);
      const held = holders.find(({ first, end }) => first <= answer.region && answer.region < end)?.node;
      if (answer.kind === 'free') expect(held ?? from).toBe(from);
      else expect(answer.holder).not.toBe(from);
    }
  });
});
