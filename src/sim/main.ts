import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError, Option } from 'commander';
import { CLIENT_TRANSITIONS } from '../token-manager/token-client-events.js';
import { SERVER_TRANSITIONS } from '../token-manager/token-server-events.js';
import { crashExplorer, EXPLORER_SIZES, type ExplorerSize, serveExplorer } from './crash-explorer/command.js';
import { seedsFor } from './planted/planted-bug.js';
import { PLANTED_BUGS } from './planted/planted-bugs.js';
import { serveJobs, spreadJobs } from './processes.js';
import { runSeed, type SeedResult } from './run-seed.js';
import { MEMBERSHIP_TRANSITIONS } from './transitions.js';

/**
 * `npm run sim`: many seeds spread over the cores, one seed with its trace, or the planted bugs. Ends with `N passed, N failed`;
 * exit code 1 when anything failed.
 */
interface Job {
  readonly seed: number;
  readonly planted: string | null;
}
type Report = Pick<
  SeedResult,
  'seed' | 'violation' | 'digest' | 'lastEvents' | 'operations' | 'hits' | 'faults' | 'steps' | 'counters'
> & {
  readonly kind: string;
  readonly planted: string | null;
};

/** Below this many seeds chance may leave a transition out; then it is only told. */
const COVERAGE_SEEDS_MIN = 50;
const SEEDS_PER_BUG = 200;
const SEEDS_PER_BUG_QUICK = 40;

/**
 * What this world can't bring about, by name: nobody asks with nowait, or for what is held (a pin is tried first, in the same turn), the
 * fabric's sessions refuse messages of older lives before the machines see them, a node's next life begins when the one before is gone, and
 * no device comes or goes by which it is reached. The scenarios of src/token-manager and the tests of src/cluster fire each of them.
 */
const NOT_IN_THIS_WORLD = new Set([
  'client refusedNowait',
  'client pinnedAtOnce',
  'server requestRefusedNowait',
  'server messageFromOldLife',
  'membership regained:taken',
  'membership joining>fenced',
  'membership address',
]);
/** Races so narrow that a short run may miss them. */
const RARE = new Set([
  'client grantUnknown',
  'client refusedEpoch',
  'client messageFromOldLife',
  'server releaseStale',
  'server requestRefusedEpoch',
  'server messageToOldLife',
  'membership gap',
  'membership listFailed',
  'membership regained:unknown',
  'membership fenceAnswered:failed',
  'membership fallAnswered:failed',
  'membership viewSwapped:failed',
  'membership leaving>fenced',
]);
const RARE_SEEDS_MIN = 1000;

const wholeNumber = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError('a whole number is wanted');
  return value;
};

async function runJob({ seed, planted }: Job): Promise<Report> {
  const bug = planted === null ? undefined : PLANTED_BUGS.find(({ name }) => name === planted);
  const result = await runSeed(seed, bug === undefined ? {} : { planted: bug });
  const { violation, digest, lastEvents, operations, hits, faults, steps, counters } = result;
  return {
    seed,
    planted,
    kind: result.plan.kind,
    violation,
    digest,
    lastEvents,
    operations,
    hits,
    faults,
    steps,
    counters,
  };
}

/** Hands jobs to one process per core; `next` gives null when there are no more. */
const spread = (next: () => Job | null, done: (report: Report) => void): Promise<void> =>
  spreadJobs(fileURLToPath(import.meta.url), ['--serve'], next, done);

function tell(report: Report): void {
  const { seed, violation } = report;
  if (violation === null) return;
  console.log(`\nseed ${seed} (${report.kind}) FAILED: ${violation.check}: ${violation.text}`);
  for (const line of report.lastEvents) console.log(`  ${line}`);
  console.log(`replay: npm run sim -- --seed ${seed} --trace\n`);
}

function close(passed: number, failed: number): void {
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed === 0 ? 0 : 1;
}

async function manySeeds(count: number, from: number): Promise<void> {
  const startedMs = performance.now();
  const totals = new Map<string, number>();
  const sums = { operations: 0, hits: 0, faults: 0, steps: 0 };
  const failedSeeds: number[] = [];
  let seed = from;
  let ended = 0;
  await spread(
    () => (seed < from + count ? { seed: seed++, planted: null } : null),
    (report) => {
      ended++;
      tell(report);
      if (report.violation !== null) failedSeeds.push(report.seed);
      for (const [name, value] of Object.entries(report.counters)) totals.set(name, (totals.get(name) ?? 0) + value);
      sums.operations += report.operations;
      sums.hits += report.hits;
      sums.faults += report.faults;
      sums.steps += report.steps;
      if (ended % 50 === 0) console.log(`seeds ${ended} of ${count}, ${failedSeeds.length} failed`);
    },
  );
  const minutes = (performance.now() - startedMs) / 60_000;
  console.log(
    `sim: ${count} seeds from ${from}: ${sums.operations} operations, ${sums.hits} hits, ${sums.faults} faults, ${sums.steps} steps; ${(count / minutes).toFixed(0)} seeds per minute`,
  );
  const never: string[] = [];
  for (const [machine, prefix, names] of [
    ['client', 'tokens.client', CLIENT_TRANSITIONS],
    ['server', 'tokens.server', SERVER_TRANSITIONS],
    ['membership', 'membership', MEMBERSHIP_TRANSITIONS],
  ] as const) {
    const fired = names.map((name) => [name, totals.get(`${prefix}.${name}`) ?? 0] as const);
    console.log(
      `transitions of the ${prefix === machine ? '' : 'token '}${machine}: ${fired.map(([name, times]) => `${name} ${times}`).join(', ')}`,
    );
    const missing = fired.filter(([, times]) => times === 0).map(([name]) => `${machine} ${name}`);
    never.push(
      ...missing.filter((name) => !NOT_IN_THIS_WORLD.has(name) && (count >= RARE_SEEDS_MIN || !RARE.has(name))),
    );
  }
  const resent = totals.get('nsd.resent') ?? 0;
  console.log(`requests to NSD servers sent again while the first was under way: ${resent}`);
  if (resent === 0) never.push('nsd resent');
  const uncovered = count >= COVERAGE_SEEDS_MIN && never.length > 0;
  if (never.length > 0)
    console.log(`transitions that never fired: ${never.join(', ')}${uncovered ? '' : ' (few seeds)'}`);
  if (failedSeeds.length > 0) console.log(`failed seeds: ${failedSeeds.sort((a, b) => a - b).join(', ')}`);
  close(count - failedSeeds.length + (uncovered ? 0 : 1), failedSeeds.length + (uncovered ? 1 : 0));
}

async function oneSeed(seed: number, trace: boolean): Promise<void> {
  const result = await runSeed(seed, trace ? { onLine: (line) => console.log(line) } : {});
  if (!trace) for (const line of result.lastEvents) console.log(`  ${line}`);
  console.log(
    `seed ${seed} (${result.plan.kind}): ${result.violation === null ? 'clean' : `${result.violation.check}: ${result.violation.text}`}; ` +
      `${result.operations} operations, ${result.hits} hits, ${result.faults} faults, ${result.steps} steps, digest ${result.digest}`,
  );
  close(result.violation === null ? 1 : 0, result.violation === null ? 0 : 1);
}

/** Each bug until a seed finds it, which must be clean without it. */
async function plantedBugs(quick: boolean, only: string | undefined): Promise<void> {
  const seedsMax = quick ? SEEDS_PER_BUG_QUICK : SEEDS_PER_BUG;
  const bugs = PLANTED_BUGS.filter(({ name }) => only === undefined || name === only);
  const found = new Map<string, Report>();
  const queue = bugs.map((bug) => ({ bug, seeds: seedsFor(bug, quick), begun: 0 }));
  const tried = new Map<string, number>();
  await spread(
    () => {
      const open = queue.filter(({ bug, begun }) => !found.has(bug.name) && begun < seedsMax);
      // One seed at a time for each, as long as there are enough of them: most are found by the first.
      const job = open.find(({ bug, begun }) => begun === (tried.get(bug.name) ?? 0)) ?? open[0];
      if (job === undefined) return null;
      job.begun++;
      return { seed: job.seeds.next().value as number, planted: job.bug.name };
    },
    (report) => {
      const name = report.planted!;
      tried.set(name, (tried.get(name) ?? 0) + 1);
      if (report.violation === null || found.has(name)) return;
      found.set(name, report);
      const { check, text } = report.violation;
      console.log(
        `planted ${name}: found by seed ${report.seed} (after ${tried.get(name)}), ${check}: ${text.split('\n')[0]!.slice(0, 160)}`,
      );
    },
  );
  const suspect = await failingWithout([...new Set([...found.values()].map(({ seed }) => seed))]);
  for (const { name, what } of bugs) {
    const report = found.get(name);
    if (report !== undefined && suspect.has(report.seed)) {
      console.log(`planted ${name}: seed ${report.seed} fails without it too, and so proves nothing.`);
      found.delete(name);
    } else if (report === undefined)
      console.log(`planted ${name}: NOT found within ${tried.get(name) ?? 0} seeds. ${what}`);
  }
  close(found.size, bugs.length - found.size);
}

async function failingWithout(seeds: readonly number[]): Promise<Set<number>> {
  const failing = new Set<number>();
  let at = 0;
  await spread(
    () => (at < seeds.length ? { seed: seeds[at++]!, planted: null } : null),
    ({ seed, violation }) => {
      if (violation !== null) failing.add(seed);
    },
  );
  return failing;
}

if (process.argv[2] === '--serve') serveJobs(runJob);
else if (process.argv[2] === '--serve-explorer') serveExplorer();
else {
  const program = new Command('sim')
    .description('The cluster in one process: virtual time, faults, and every history checked.')
    .option('--seeds <count>', 'run so many seeds', wholeNumber)
    .option('--from <seed>', 'beginning with this one', wholeNumber, 1)
    .option('--seed <seed>', 'run one seed', wholeNumber)
    .option('--trace', 'with --seed: print its whole history')
    .option('--planted [name]', 'put each known bug into the nodes, and find it')
    .option('--quick', 'with --planted: few seeds for each')
    .option('--crash-explorer', 'crash small workloads at every device write, recover and judge them')
    .addOption(new Option('--size <size>', 'with --crash-explorer').choices(EXPLORER_SIZES).default('full'))
    .option('--only <workload>', 'with --crash-explorer: this one, deeply')
    .addHelpText(
      'after',
      '\nExamples:\n  npm run sim -- --seeds 100\n  npm run sim -- --seed 17 --trace\n  npm run sim -- --planted revoke-lost\n  npm run sim -- --crash-explorer --only synced:creat-new,rename-new-foo\n',
    );
  program.parse();
  const options = program.opts<{
    seeds?: number;
    from: number;
    seed?: number;
    trace?: boolean;
    planted?: boolean | string;
    quick?: boolean;
    crashExplorer?: boolean;
    size: ExplorerSize;
    only?: string;
  }>();
  if (options.crashExplorer === true) {
    const { passed, failed } = await crashExplorer(fileURLToPath(import.meta.url), options.size, {
      only: options.only,
      seed: options.seed ?? 1,
      planted: options.planted !== undefined,
    });
    close(passed, failed);
  } else if (options.planted !== undefined)
    await plantedBugs(options.quick === true, typeof options.planted === 'string' ? options.planted : undefined);
  else if (options.seed !== undefined) await oneSeed(options.seed, options.trace === true);
  else await manySeeds(options.seeds ?? 20, options.from);
}
