import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { below, chance, SeededRandom } from '../common/random.js';
import { type DaemonCluster, startDaemonCluster } from './testing/daemon-cluster.js';
import type { DaemonProcess } from './testing/daemon-process.js';
import { KillRun, seedOr } from './testing/kill-run.js';
import { isStorageGone, LastingLoad } from './testing/lasting-load.js';

const full = process.env.HOLDFAST_TEST_FULL === '1';
const ROUNDS = full ? 200 : 5;
/** Operations of a victim's load before its daemon is killed. */
const STEPS_MIN = 4;
/** Each serves an NSD, which nobody else has a path to. Node 3 serves none, and lives. */
const SERVERS = [1, 2] as const;
/** How likely servers lose power while those killed before are cleaned up after: all this time long at most. */
const AGAIN = 0.25;
const AGAIN_MS_MAX = 3_000;

let cluster: DaemonCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

/** A node's daemon, and the load on it. */
interface Node {
  daemon: DaemonProcess;
  client: FileSystemClient;
  isOver: boolean;
  working: Promise<void>;
}

test(`servers of NSDs are killed ${ROUNDS} times with what was not flushed, in the midst of what they and others do, come back, and nothing that was synced is lost`, {
  // Each step has its own.
  timeout: 0,
}, async () => {
  const seed = seedOr(20_261_122);
  const run = new KillRun(seed);
  const it = await startDaemonCluster({ nsds: SERVERS.length, leaseTtl: '30s', seed });
  cluster = it;
  run.of(it);
  const random = new SeededRandom(seed);
  const loads = [1, 2, 3].map(
    (nodeId) => new LastingLoad(nodeId === 1 ? '/of-one/a' : `/both/${nodeId}`, random.fork(), isStorageGone),
  );
  const first = [await it.start(1), await it.start(2), await it.start(3)];
  await run.step('the file system is made', it.createFileSystem());
  const work = async (daemon: DaemonProcess): Promise<Node> => {
    const node: Node = { daemon, client: await daemon.connect(), isOver: false, working: Promise.resolve() };
    node.working = run.watch(loads[daemon.nodeId - 1]!.run(node.client, () => node.isOver));
    return node;
  };
  const setUp = await first[2]!.connect();
  for (const directory of ['/of-one', '/both']) await setUp.mkdir(directory);
  await setUp.close();
  const nodes = new Map<number, Node>();
  for (const daemon of first) nodes.set(daemon.nodeId, await work(daemon));
  const admin = await first[2]!.admin();
  for (run.round = 0; run.round < ROUNDS; run.round++) {
    const both = chance(random, 0.15);
    const victims = both ? SERVERS : [SERVERS[below(random, SERVERS.length)]!];
    const who = victims.join(' and ');
    // However slow the machine is: there is something to lose.
    for (const nodeId of victims) await run.step(`node ${nodeId} works`, loads[nodeId - 1]!.more(STEPS_MIN));
    await run.step('a moment', new Promise((resolve) => setTimeout(resolve, below(random, 400))));
    const before = victims.map((nodeId) => nodes.get(nodeId)!);
    for (const victim of before) victim.isOver = true;
    await Promise.all(before.map(({ daemon }) => daemon.kill()));
    // All of them at once, and before they are back: who is told to be dead is the life that was killed. Cleaning up after it takes its NSD, so it comes back meanwhile.
    const expelled = victims.map((nodeId) => admin.call('expel', { node: nodeId }));
    if (chance(random, AGAIN)) {
      for (const nodeId of victims) it.launch(nodeId);
      await run.step(
        'a moment of recovery',
        new Promise((resolve) => setTimeout(resolve, below(random, AGAIN_MS_MAX))),
      );
      await run.step(`the power of ${who} goes`, it.powerCut(victims));
    }
    const daemons = await run.step(`${who} start again`, Promise.all(victims.map((nodeId) => it.start(nodeId))));
    await run.step(`${who} are told dead`, Promise.all(expelled));
    for (const victim of before) {
      // What was under way when its daemon was killed has waited for the next one, and ends.
      await run.step('the load of a killed daemon ends', victim.working);
      await victim.client.close();
    }
    // Whoever comes back has nothing in memory: what it reads is what the NSDs have.
    for (const daemon of daemons) nodes.set(daemon.nodeId, await run.step('work', work(daemon)));
    const reader = nodes.get(victims[0]!)!.client;
    for (const load of loads)
      await load.check(reader, `after ${who} were killed`, (doing) => run.step('what was synced is read', doing));
  }
  for (const node of nodes.values()) node.isOver = true;
  for (const { working, client } of nodes.values()) {
    await run.step('a load ends', working);
    await client.close();
  }
  for (const { daemon } of nodes.values()) {
    const each = await daemon.admin();
    await run.step('all unmount', each.call('unmount', {}));
    each.close();
  }
  const report = await run.step('the check', admin.call('checkFileSystem', { name: 'test' }));
  await run.step('what the check found', () => {
    expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(report.inodes).toBeGreaterThan(10);
  });
  admin.close();
});
