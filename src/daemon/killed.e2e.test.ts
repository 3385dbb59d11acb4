import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { deferred } from '../common/deferred.js';
import { below, chance, SeededRandom } from '../common/random.js';
import { type DaemonCluster, startDaemonCluster } from './testing/daemon-cluster.js';
import type { DaemonProcess } from './testing/daemon-process.js';
import { killLoad, type Promised } from './testing/kill-load.js';
import { KillRun, seedOr } from './testing/kill-run.js';

const full = process.env.HOLDFAST_TEST_FULL === '1';
const ROUNDS = full ? 200 : 20;
/** In one round of so many the power of all goes; the last one is such a round. */
const POWER_CUT_EVERY = 10;
/** In one round of so many everybody unmounts for a check; in the others the survivor goes on with what it has in memory. */
const CHECK_EVERY = 2;
/** Operations of the load before its daemon may be killed. */
const STEPS_MIN = 4;
/** The first two serve an NSD each, and hold back what is not flushed. The third is the one that is killed. */
const NODES = [1, 2, 3] as const;

let cluster: DaemonCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

/** Work of one client, until it is over. */
interface Load {
  isOver: boolean;
  readonly working: Promise<void>;
  readonly client: FileSystemClient;
}

test(`kill -9 at ${ROUNDS} random moments: told dead, redone by a survivor; or the power of all goes with what was not flushed: every synced byte is there, and the file system sound`, {
  // Each step has its own.
  timeout: 0,
}, async () => {
  const seed = seedOr(20_261_121);
  const run = new KillRun(seed);
  const it = await startDaemonCluster({ nsds: 2, leaseTtl: '30s', seed });
  cluster = it;
  run.of(it);
  const random = new SeededRandom(seed);
  const promised: Promised = new Map();
  const startAll = () => run.step('the daemons start', Promise.all(NODES.map((nodeId) => it.start(nodeId))));
  let daemons = await startAll();
  await run.step('the file system is made', it.createFileSystem());
  let survivor = await daemons[0]!.connect();
  for (const dir of ['/work', '/work/0', '/work/1', '/work/2', '/work/3']) await run.step(dir, survivor.mkdir(dir));

  /** Resolves when there is something to lose, however slow the machine is. */
  const load = async (client: FileSystemClient, dir: string): Promise<Load> => {
    let steps = 0;
    const begun = deferred<void>();
    const isOver = (): boolean => {
      if (++steps > STEPS_MIN) begun.resolve();
      return made.isOver;
    };
    const made = { isOver: false, client, working: Promise.resolve() };
    made.working = run.watch(killLoad(client, dir, random.fork(), promised, isOver));
    await run.step(`a load in ${dir}`, begun.promise);
    return made;
  };
  /** What was under way when its daemon was killed has waited for the next one, and ends. */
  const ended = async ({ working, client }: Load): Promise<void> => {
    await run.step('the load of a killed daemon ends', working);
    await run.step('its client closes', client.close());
  };
  const expel = async (): Promise<void> => {
    const admin = await daemons[0]!.admin();
    expect(await run.step('node 3 is told dead', admin.call('expel', { node: 3 }))).toMatchObject({
      nodeId: 3,
      done: true,
    });
    admin.close();
  };
  const readAll = async (): Promise<void> => {
    for (const [name, bytes] of promised)
      await run.step(`${name} is read`, async () =>
        expect((await survivor.readFile(name)).equals(bytes), 'it has what was synced').toBe(true),
      );
    // Not all of them every time.
    if (promised.size > 60) for (const name of [...promised.keys()].slice(0, 40)) promised.delete(name);
  };
  /** While nodes 1 and 2 use it. */
  const checkOnline = async (): Promise<void> => {
    const admin = await daemons[0]!.admin();
    const options = { name: 'test', repair: false, data: true, readBytesPerS: 0 };
    const report = await run.step('the online check', admin.call('checkOnline', options));
    await run.step('what the online check found', () => expect(report.findings).toEqual([]));
    admin.close();
  };
  const check = async (there: readonly DaemonProcess[]): Promise<void> => {
    const admins = await Promise.all(there.map((daemon) => daemon.admin()));
    for (const admin of admins) await run.step('all unmount', admin.call('unmount', {}));
    const report = await run.step('the check', admins[0]!.call('checkFileSystem', { name: 'test' }));
    await run.step('what the check found', () => {
      expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
      expect(report.inodes).toBeGreaterThan(run.round);
    });
    for (const admin of admins) admin.close();
  };

  let before: Load | null = null;
  for (run.round = 0; run.round < ROUNDS; run.round++) {
    const { round } = run;
    const isPowerCut = (round + 1) % POWER_CUT_EVERY === 0;
    if (before !== null) await ended(before);
    const victim = await load(await daemons[2]!.connect(), `/work/${round % 4}/${round}`);
    const steady = isPowerCut ? await load(survivor, `/work/${(round + 1) % 4}/${round}-steady`) : null;
    await run.step('a moment', new Promise((resolve) => setTimeout(resolve, below(random, 400))));
    victim.isOver = true;
    before = victim;
    // Also of those who have just redone its log.
    if (!isPowerCut || chance(random, 0.5)) {
      await daemons[2]!.kill();
      await expel();
    }
    if (steady === null) {
      await readAll();
      if (full) await checkOnline();
      if (round % CHECK_EVERY === 1) await check(daemons.slice(0, 2));
      daemons[2] = await run.step('node 3 starts', it.start(3));
      continue;
    }
    steady.isOver = true;
    await run.step('the power goes', it.powerCut());
    daemons = await startAll();
    for (const one of [steady, victim]) await ended(one);
    before = null;
    survivor = await run.step('the survivor connects', daemons[0]!.connect());
    await readAll();
    await check(daemons);
  }
  if (before !== null) await ended(before);
});
