import { expect, test } from 'vitest';
import { findPlanted, WORKLOADS } from './command.js';
import { Explorer } from './explore.js';
import { PLANTED_ORDERS, type PlantedOrder } from './planted-order.js';
import { exhaustive, sampled, type Workload, workloadById } from './workloads.js';

const named = (...ids: string[]): Workload[] => ids.map((id) => workloadById(id)!);

/** Per mistake, a workload that is likely to show it, and some more. */
const SHOWN_BY: Readonly<Record<PlantedOrder, Workload[]>> = {
  'log-not-flushed': named('synced:mkdir-D', 'lazy:creat-new'),
  'data-not-flushed': named(
    'synced:symlink-sym',
    'lazy:symlink-sym',
    'lazy:setxattr-foo-big-6000',
    'synced:append-B.big-5000',
  ),
  'in-place-before-log': named('lazy:creat-new', 'synced:rename-A.C-E'),
  'exposed-before-data': named('lazy:creat-new', 'synced:append-A.foo-4000'),
};

test.each(Object.keys(PLANTED_ORDERS) as PlantedOrder[])(
  'a mistake in the order of writes is found, and its workload is clean without it: %s',
  async (planted) => {
    const { violation } = await findPlanted(new Explorer(), SHOWN_BY[planted], planted, 1);
    expect(violation).not.toBe(null);
  },
);

test('I8, I9: a careful replacement of a file is there or not, at every moment, and when recovery dies in the midst', async () => {
  const explorer = new Explorer();
  const workload = workloadById('synced:creat-new,write-new-0-6000,rename-new-foo')!;
  const options = { depth: { extremes: 1, random: 1, aloneMax: 0 } as const, againShare: 0.2, seed: 1 };
  const explored = await explorer.explore(workload, options);
  expect(explored.violation).toBe(null);
  expect(explored.states).toBeGreaterThan(20);
  expect(explored.again).toBeGreaterThan(0);
  // The same seed comes to the same.
  expect(await explorer.explore(workload, options)).toEqual(explored);
});

test('every list of one and of two operations that can be done is there, once, and is found again by its name', () => {
  const ones = [...exhaustive(1)];
  const pairs = [...exhaustive(2)];
  const ids = [...ones, ...pairs].map(({ id }) => id);
  expect(new Set(ids).size).toBe(ids.length);
  expect({ ones: ones.length, pairs: pairs.length }).toEqual(WORKLOADS);
  expect([...exhaustive(1, 'copies')].length + [...exhaustive(1, 'crowded')].length).toBe(115);
  for (const id of ids.slice(-20)) expect(workloadById(id)?.id).toBe(id);
  const kinds = new Set([...ones, ...pairs].flatMap(({ operations }) => operations.map(({ kind }) => kind)));
  expect(kinds).toEqual(
    new Set(
      'creat mkdir link symlink rename unlink rmdir write append truncate fallocate setxattr fsync sync'.split(' '),
    ),
  );
});

test('longer lists are drawn from the seed', () => {
  const draw = (seed: number): string[] => {
    const ids: string[] = [];
    for (const { id } of sampled(seed)) if (ids.push(id) === 20) break;
    return ids;
  };
  expect(draw(1)).toEqual(draw(1));
  expect(draw(1)).not.toEqual(draw(2));
});
