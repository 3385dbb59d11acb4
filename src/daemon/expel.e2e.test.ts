import { randomBytes } from 'node:crypto';
import { afterEach, expect, test } from 'vitest';
import { nodeId } from '../common/ids.js';
import { lifeState } from './node-recovery.js';
import { eventually } from './testing/counting.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

let cluster: LocalCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

/** Nobody has it mounted: everything fits together, nothing is lost. */
async function checkSound({ engines }: LocalCluster, mounted: readonly number[]): Promise<void> {
  for (const index of mounted) await engines[index]!.unmount();
  const [found] = await engines[0]!.fileSystems();
  const report = await engines[0]!.node.check({ ...found!.record, name: found!.name });
  expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
}

test('F1: a node that an operator says is dead is out at once; what it synced is there, nothing else of it is lost or half', async () => {
  cluster = await startLocalCluster({ nodes: 3, nsds: 2, nsdBytes: 128 << 20, leaseTtlMs: 60_000 });
  const { engines } = cluster;
  const [one, , three] = [0, 1, 2].map((index) => cluster!.client(index));
  await three!.mkdir('/d');
  const kept = randomBytes(500_000);
  for (let i = 0; i < 20; i++) {
    const file = await three!.open(`/d/synced-${i}`, 'w+');
    await file.write(kept.subarray(0, 20_000 * (i + 1)), 0, 20_000 * (i + 1), 0);
    await file.sync();
    await file.close();
  }
  for (let i = 0; i < 20; i++) await three!.writeFile(`/d/not-${i}`, kept.subarray(0, 30_000));
  const life = await engines[0]!.membership.expel(nodeId(3));
  await eventually(
    'its tokens have fallen',
    async () => lifeState(engines[0]!.membership.view, 3, life.incarnation) === 'gone',
  );
  const names = await one!.readdir('/d');
  for (let i = 0; i < 20; i++)
    expect((await one!.readFile(`/d/synced-${i}`)).equals(kept.subarray(0, 20_000 * (i + 1)))).toBe(true);
  // Of the others any may be there, none with bytes that were never written.
  for (const name of names.filter((one) => one.startsWith('not-'))) {
    const found = await one!.readFile(`/d/${name}`);
    expect(found.equals(kept.subarray(0, found.length))).toBe(true);
  }
  await expect(three!.readFile('/d/synced-0')).rejects.toMatchObject({ code: 'ESTALE' });
  await one!.writeFile('/d/after', 'it goes on');
  await expect(engines[0]!.membership.expel(nodeId(3))).rejects.toMatchObject({ reason: 'notFound' });
  await expect(engines[0]!.membership.expel(nodeId(1))).rejects.toMatchObject({ reason: 'notPermitted' });
  await checkSound(cluster, [0, 1]);
});

test('a file system is not checked while somebody has it mounted', async () => {
  cluster = await startLocalCluster({ nodes: 2, nsdBytes: 64 << 20 });
  await cluster.client(1).writeFile('/f', 'x');
  const [found] = await cluster.engines[0]!.fileSystems();
  const identity = { ...found!.record, name: found!.name };
  await expect(cluster.engines[0]!.node.check(identity)).rejects.toMatchObject({ code: 'EBUSY' });
  await checkSound(cluster, [0, 1]);
});
