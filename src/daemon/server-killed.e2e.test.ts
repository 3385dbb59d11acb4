import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { below, chance, SeededRandom } from '../common/random.js';
import { type DaemonCluster, startDaemonCluster } from './testing/daemon-cluster.js';
import type { DaemonProcess } from './testing/daemon-process.js';
import { isStorageGone, LastingLoad } from './testing/lasting-load.js';

const full = process.env.HOLDFAST_TEST_FULL === '1';
const ROUNDS = full ? 200 : 5;
/** Operations of a victim's load before its daemon is killed. */
const STEPS_MIN = 4;
/** Each serves an NSD, which nobody else has a path to. Node 3 serves none, and lives. */
const SERVERS = [1, 2] as const;

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

test(
  `servers of NSDs are killed ${ROUNDS} times with what was not flushed, in the midst of what they and others do, come back, and nothing that was synced is lost`,
  async () => {
    // A kill costs what was not flushed, as a power cut would.
    const it = await startDaemonCluster({
      nsds: SERVERS.length,
      leaseTtl: '30s',
      fault: (nodeId) => ({ seed: nodeId, early: 0.2 }),
    });
    cluster = it;
    const random = new SeededRandom(20_261_122);
    const loads = [1, 2, 3].map(
      (nodeId) => new LastingLoad(nodeId === 1 ? '/of-one/a' : `/both/${nodeId}`, random.fork(), isStorageGone),
    );
    const first = [await it.start(1), await it.start(2), await it.start(3)];
    await it.createFileSystem();
    let fail: (error: unknown) => void = () => undefined;
    // A load's failure is the test's, at once.
    const failed = new Promise<never>((_, reject) => {
      fail = reject;
    });
    failed.catch(() => undefined);
    const step = <T>(doing: Promise<T>): Promise<T> => Promise.race([doing, failed]);
    const work = async (daemon: DaemonProcess): Promise<Node> => {
      const node: Node = { daemon, client: await daemon.connect(), isOver: false, working: Promise.resolve() };
      node.working = loads[daemon.nodeId - 1]!.run(node.client, () => node.isOver);
      node.working.catch(fail);
      return node;
    };
    const setUp = await first[2]!.connect();
    for (const directory of ['/of-one', '/both']) await setUp.mkdir(directory);
    await setUp.close();
    const nodes = new Map<number, Node>();
    for (const daemon of first) nodes.set(daemon.nodeId, await work(daemon));
    const admin = await first[2]!.admin();
    for (let round = 0; round < ROUNDS; round++) {
      const both = chance(random, 0.15);
      const victims = both ? SERVERS : [SERVERS[below(random, SERVERS.length)]!];
      // However slow the machine is: there is something to lose.
      for (const nodeId of victims) await step(loads[nodeId - 1]!.more(STEPS_MIN));
      await step(new Promise((resolve) => setTimeout(resolve, below(random, 400))));
      const before = victims.map((nodeId) => nodes.get(nodeId)!);
      for (const victim of before) victim.isOver = true;
      await Promise.all(before.map(({ daemon }) => daemon.kill()));
      // All of them at once, and before they are back: who is told to be dead is the life that was killed. Cleaning up after it takes its NSD, so it comes back meanwhile.
      const expelled = victims.map((nodeId) => step(admin.call('expel', { node: nodeId })));
      const daemons = await step(Promise.all(victims.map((nodeId) => it.start(nodeId))));
      await Promise.all(expelled);
      for (const victim of before) {
        // What was under way when its daemon was killed has waited for the next one, and ends.
        await step(victim.working);
        await victim.client.close();
      }
      // Whoever comes back has nothing in memory: what it reads is what the NSDs have.
      for (const daemon of daemons) nodes.set(daemon.nodeId, await step(work(daemon)));
      const reader = nodes.get(victims[0]!)!.client;
      for (const load of loads) await load.check(reader, `after round ${round}, ${victims.join(' and ')} killed`, step);
    }
    for (const node of nodes.values()) node.isOver = true;
    for (const { working, client } of nodes.values()) {
      await working;
      await client.close();
    }
    for (const { daemon } of nodes.values()) {
      const each = await daemon.admin();
      await each.call('unmount', {});
      each.close();
    }
    const report = await admin.call('checkFileSystem', { name: 'test' });
    expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(report.inodes).toBeGreaterThan(10);
    admin.close();
  },
  full ? 1_800_000 : 240_000,
);
