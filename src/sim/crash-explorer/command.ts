import { serveJobs, spreadJobs } from '../processes.js';
import { type Explored, type ExploreOptions, Explorer } from './explore.js';
import { PLANTED_ORDERS, type PlantedOrder } from './planted-order.js';
import { exhaustive, sampled, type Workload, workloadById } from './workloads.js';

/** `npm run sim -- --crash-explorer`: lists the workloads, spreads them over the cores, and tells. */
export const EXPLORER_SIZES = ['short', 'full'] as const;
export type ExplorerSize = (typeof EXPLORER_SIZES)[number];

interface Job {
  readonly workload: string;
  readonly options: ExploreOptions;
}

/** How much of what, and below how many states a run has failed: it then did not look at what it says. */
interface Size {
  /** Every so many of the lists of one that begin with something else; 1: all of them. */
  readonly onesEvery: number;
  /** Every so many of the lists of two. */
  readonly pairsEvery: number;
  readonly triples: number;
  readonly one: ExploreOptions['depth'];
  readonly more: ExploreOptions['depth'];
  readonly againShare: number;
  readonly statesMin: number;
}
const SIZES: Readonly<Record<ExplorerSize, Size>> = {
  short: {
    onesEvery: 6,
    pairsEvery: 80,
    triples: 20,
    one: { extremes: 1, random: 0, aloneMax: 0 },
    more: { extremes: 0, random: 1, aloneMax: 0 },
    againShare: 0.05,
    statesMin: 3_000,
  },
  full: {
    onesEvery: 1,
    pairsEvery: 1,
    triples: 300,
    one: { extremes: 2, random: 3, aloneMax: 6 },
    more: { extremes: 0, random: 1, aloneMax: 0 },
    againShare: 0.03,
    statesMin: 150_000,
  },
};
/** All that can be listed of one and of two operations. A run of the full size that has others was given another list than it says. */
export const WORKLOADS = { ones: 103, pairs: 4_984 } as const;
const DEEP: ExploreOptions['depth'] = { extremes: 2, random: 20, aloneMax: 12 };
const FAILURES_TOLD = 20;

/** In a child. */
export function serveExplorer(): void {
  const explorer = new Explorer();
  serveJobs(({ workload, options }: Job) => explorer.explore(workloadById(workload)!, options));
}

function* every<T>(list: Iterable<T>, nth: number, seed: number): Generator<T> {
  let index = seed;
  for (const one of list) if (index++ % nth === 0) yield one;
}
function* first<T>(list: Iterable<T>, count: number): Generator<T> {
  if (count === 0) return;
  let taken = 0;
  for (const one of list) {
    yield one;
    if (++taken >= count) return;
  }
}

export async function crashExplorer(
  program: string,
  size: ExplorerSize,
  { only, seed, planted }: { readonly only?: string | undefined; readonly seed: number; readonly planted: boolean },
): Promise<{ passed: number; failed: number }> {
  if (planted) return plantedOrders(seed);
  if (only !== undefined) return exploreOne(only, seed);
  const { onesEvery, pairsEvery, triples, one, more, againShare, statesMin } = SIZES[size];
  const options = { againShare, seed };
  const ones = [...exhaustive(1)];
  const variants = [
    ...every(exhaustive(1, 'copies'), onesEvery, seed),
    ...every(exhaustive(1, 'crowded'), onesEvery, seed),
  ];
  const pairs = [...every(exhaustive(2), pairsEvery, seed)];
  const threes = [...first(sampled(seed), triples)];
  // The longest first: they end together.
  const jobs: Job[] = [
    ...[...ones, ...variants].map(({ id }) => ({ workload: id, options: { ...options, depth: one } })),
    ...[...pairs, ...threes].map(({ id }) => ({ workload: id, options: { ...options, depth: more } })),
  ];
  const startedMs = performance.now();
  const failed: Explored[] = [];
  const sums = { moments: 0, states: 0, distinct: 0, again: 0 };
  let ended = 0;
  let begun = 0;
  await spreadJobs<Job, Explored>(
    program,
    ['--serve-explorer'],
    () => jobs[begun++] ?? null,
    (explored) => {
      for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += explored[name];
      if (explored.violation !== null) {
        failed.push(explored);
        if (failed.length <= FAILURES_TOLD) tell(explored, seed);
      }
      if (++ended % 500 === 0)
        console.log(`workloads ${ended} of ${jobs.length}, ${sums.states} crash states, ${failed.length} failed`);
    },
  );
  const seconds = (performance.now() - startedMs) / 1000;
  const lists = `${ones.length} of one operation, ${variants.length} of one with two copies or a crowded inode file, ${pairs.length} of two${pairsEvery === 1 ? '' : ` (every ${pairsEvery}th)`}, ${threes.length} sampled of three`;
  console.log(`sim: crash explorer: ${jobs.length} workloads: ${lists}`);
  console.log(
    `sim: crash explorer: ${sums.moments} moments, ${sums.states} crash states, ${sums.distinct} different on the disks, ${sums.again} recoveries cut off; ${(sums.distinct / seconds).toFixed(0)} per second`,
  );
  const listed = ones.length === WORKLOADS.ones && (pairsEvery > 1 || pairs.length === WORKLOADS.pairs);
  const tooFew = sums.states < statesMin || !listed;
  if (tooFew)
    console.log(
      `sim: crash explorer: ${WORKLOADS.ones} workloads of one operation, ${WORKLOADS.pairs} of two and at least ${statesMin} crash states were expected`,
    );
  return { passed: jobs.length - failed.length + (tooFew ? 0 : 1), failed: failed.length + (tooFew ? 1 : 0) };
}

function tell({ id, violation }: Explored, seed: number): void {
  console.log(`\nworkload ${id} FAILED: ${violation}`);
  console.log(`replay: npm run sim -- --crash-explorer --seed ${seed} --only '${id}'\n`);
}

async function exploreOne(id: string, seed: number): Promise<{ passed: number; failed: number }> {
  const workload = workloadById(id);
  if (workload === null) {
    console.log(`there is no workload ${id}`);
    return { passed: 0, failed: 1 };
  }
  const explored = await new Explorer().explore(workload, { depth: DEEP, againShare: 0.1, seed });
  if (explored.violation !== null) tell(explored, seed);
  const { moments, states, distinct, again } = explored;
  console.log(
    `workload ${id}: ${moments} moments, ${states} crash states, ${distinct} different, ${again} recoveries cut off`,
  );
  return explored.violation === null ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

/** Each of the mistakes, until a workload of one operation finds it. */
async function plantedOrders(seed: number): Promise<{ passed: number; failed: number }> {
  const explorer = new Explorer();
  const workloads: Workload[] = [...exhaustive(1)];
  let found = 0;
  const names = Object.keys(PLANTED_ORDERS) as PlantedOrder[];
  for (const name of names) {
    const result = await findPlanted(explorer, workloads, name, seed);
    if (result.violation !== null) found++;
    const how =
      result.violation === null
        ? `NOT found. ${PLANTED_ORDERS[name]}`
        : `found by ${result.id}, ${result.violation.split('\n')[0]}`;
    console.log(`planted ${name}: ${how}`);
  }
  return { passed: found, failed: names.length - found };
}

/** The first workload that shows it and is clean without it. */
export async function findPlanted(
  explorer: Explorer,
  workloads: readonly Workload[],
  planted: PlantedOrder,
  seed: number,
): Promise<{ readonly id: string; readonly violation: string | null }> {
  const options = { depth: SIZES.full.one, againShare: 0, seed };
  for (const workload of workloads) {
    const { id, violation } = await explorer.explore(workload, { ...options, planted });
    if (violation === null) continue;
    if ((await explorer.explore(workload, options)).violation === null) return { id, violation };
  }
  return { id: '', violation: null };
}
