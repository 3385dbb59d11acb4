import { afterEach, expect, test } from 'vitest';
import { deferred } from '../common/deferred.js';
import { below, SeededRandom } from '../common/random.js';
import { startDaemonCluster } from './testing/daemon-cluster.js';
import { killLoad, type Promised } from './testing/kill-load.js';

const full = process.env.HOLDFAST_TEST_FULL === '1';
const ROUNDS = full ? 200 : 20;
/** Operations of the load before its daemon may be killed. */
const STEPS_MIN = 4;

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

test(
  `kill -9 at ${ROUNDS} random moments: told dead, redone by a survivor, every synced byte there, and a sound file system in the end`,
  async () => {
    const cluster = await startDaemonCluster({ nsds: 2, leaseTtl: '30s' });
    cleanups.push(() => cluster.close());
    const { start } = cluster;
    const one = await start(1);
    const two = await start(2);
    const admin = await one.admin();
    cleanups.push(async () => admin.close());
    await cluster.createFileSystem();
    const survivor = await one.connect();
    for (const dir of ['/work', '/work/0', '/work/1', '/work/2', '/work/3']) await survivor.mkdir(dir);
    const random = new SeededRandom(20_261_121);
    const promised: Promised = new Map();
    let before = async (): Promise<void> => undefined;
    for (let round = 0; round < ROUNDS; round++) {
      const victim = await start(3);
      // What was under way when its daemon was killed has waited for this one, and ends.
      await before();
      const client = await victim.connect();
      let over = false;
      let steps = 0;
      const begun = deferred<void>();
      const working = killLoad(client, `/work/${round % 4}/${round}`, random.fork(), promised, () => {
        if (++steps > STEPS_MIN) begun.resolve();
        return over;
      });
      // However slow the machine is: there is something to lose.
      await Promise.race([begun.promise, working]);
      await new Promise((resolve) => setTimeout(resolve, below(random, 400)));
      over = true;
      await victim.kill();
      before = async () => {
        await working;
        await client.close();
      };
      expect(await admin.call('expel', { node: 3 })).toMatchObject({ nodeId: 3, done: true });
      for (const [name, bytes] of promised)
        expect((await survivor.readFile(name)).equals(bytes), `${name} after round ${round}`).toBe(true);
      // Not all of them every time.
      if (promised.size > 60) for (const name of [...promised.keys()].slice(0, 40)) promised.delete(name);
    }
    const three = await start(3);
    await before();
    await survivor.close();
    for (const daemon of [three, two, one]) {
      const each = await daemon.admin();
      await each.call('unmount', {});
      each.close();
    }
    const report = await admin.call('checkFileSystem', { name: 'test' });
    expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(report.inodes).toBeGreaterThan(ROUNDS);
  },
  full ? 1_800_000 : 240_000,
);
