import { NOTHING_PLANTED, type PlantedBug } from './planted/planted-bug.js';
import { planSeed, type SeedPlan } from './seed-plan.js';
import { textOf } from './trace.js';
import { watchMembership } from './transitions.js';
import { type Violation, ViolationError } from './violation.js';
import { World } from './world.js';

/** One seed, from its plan to its verdict; in this process, whatever else runs in it. */
export interface SeedResult {
  readonly seed: number;
  readonly plan: SeedPlan;
  readonly violation: Violation | null;
  /** Of the trace: the same for the same seed, always. */
  readonly digest: string;
  /** Of a failure: the last events of the object concerned. */
  readonly lastEvents: readonly string[];
  readonly operations: number;
  readonly hits: number;
  readonly faults: number;
  readonly steps: number;
  readonly virtualMs: number;
  readonly realMs: number;
  readonly counters: Readonly<Record<string, number>>;
  readonly errors: Readonly<Record<string, number>>;
}

const LAST_EVENTS = 60;

export async function runSeed(
  seed: number,
  options: {
    readonly planted?: PlantedBug;
    readonly onLine?: (line: string) => void;
    readonly lastEvents?: number;
  } = {},
): Promise<SeedResult> {
  const plan = planSeed(seed);
  const startedMs = performance.now();
  const fired = new Map<string, number>();
  const unwatch = watchMembership(fired);
  const world = new World(plan, options.planted ?? NOTHING_PLANTED);
  // A rejection that nobody waits for would end the process; here it is a finding.
  const onRejection = (reason: unknown): void => world.broken(reason, 'a rejection that nobody handles');
  process.on('unhandledRejection', onRejection);
  let violation: Violation | null = null;
  try {
    await world.run();
  } catch (error) {
    if (error instanceof ViolationError) violation = error.violation;
    else
      violation = {
        check: 'run',
        ino: 0,
        text: error instanceof Error ? (error.stack ?? error.message) : String(error),
      };
    for (const life of world.nodes.values()) life.kill();
  } finally {
    process.off('unhandledRejection', onRejection);
    unwatch();
  }
  if (options.onLine !== undefined) for (const line of world.trace.lines) options.onLine(textOf(line));
  return {
    seed,
    plan,
    violation,
    digest: world.trace.digest,
    lastEvents: violation === null ? [] : world.trace.last(options.lastEvents ?? LAST_EVENTS, violation.ino),
    operations: world.workload.ended,
    hits: world.workload.hits,
    faults: world.faults.applied,
    steps: world.scheduler.steps,
    virtualMs: world.scheduler.nowMs(),
    realMs: performance.now() - startedMs,
    counters: { ...world.counters(), ...Object.fromEntries(fired) },
    errors: Object.fromEntries(world.errors),
  };
}
