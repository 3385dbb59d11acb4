import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { counting, eventually } from './testing/counting.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

/** What is freed goes back soon; and nobody takes a region because somebody else is slow. */
const SOON = {
  fs: { inodeWriteBehindMs: 100, backgroundIntervalMs: 50, peersTimeoutMs: 60_000, managerTimeoutMs: 60_000 },
};
const MIB = 1 << 20;

let cluster: LocalCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

/** The maker makes files, the remover removes all but the last few, on and on. */
async function makeAndRemove(
  maker: FileSystemClient,
  remover: FileSystemClient,
  from: number,
  to: number,
): Promise<void> {
  for (let i = from; i < to; i++) {
    await maker.writeFile(`/f${i}`, Buffer.alloc(4 * MIB, i));
    if (i >= 8) await remover.unlink(`/f${i - 8}`);
  }
}

test.each(['a full node', 'a library, which nobody dials'])(
  'S6: what another node removes while %s goes on making takes no region away from it',
  async (who) => {
    cluster = await startLocalCluster({ nodes: 3, nsdBytes: 512 * MIB, settings: SOON });
    const { engines } = cluster;
    const library = { nodeId: null, listen: null, tokenServer: false, nsds: [], name: 'library' };
    if (who !== 'a full node') await cluster.start(3, library);
    const maker = who === 'a full node' ? 0 : 3;
    const [making, removing, third] = [maker, 1, 2].map((index) => cluster!.client(index)) as [
      FileSystemClient,
      FileSystemClient,
      FileSystemClient,
    ];
    // It takes a log of its own, where it has none yet.
    await making.mkdir('/d');
    const before = await third.statfs('/');
    await makeAndRemove(making, removing, 0, 20);
    const count = counting(engines);
    await makeAndRemove(making, removing, 20, 120);
    const since = count();
    expect(since.of(maker, 'fs.regionsLost')).toBe(0);
    await eventually('what was removed has come back', async () => {
      const { bfree, bsize } = await third.statfs('/');
      return (before.bfree - bfree) * bsize < 9 * 4 * MIB;
    });
    const after = count();
    expect(after.of(1, 'fs.shipments')).toBeGreaterThan(0);
    expect(after.of(maker, 'fs.shipmentsApplied')).toBeGreaterThan(0);
    expect(after.sum('fs.freesDisagreed')).toBe(0);
    // Everybody counts the same.
    await eventually('all nodes count the same', async () => {
      const counted = await Promise.all([making, removing, third].map((client) => client.statfs('/')));
      return new Set(counted.map(({ bfree }) => bfree)).size === 1;
    });
    for (let i = 112; i < 120; i++)
      expect((await third.readFile(`/f${i}`)).equals(Buffer.alloc(4 * MIB, i))).toBe(true);

    for (const engine of engines) await engine.unmount();
    const [found] = await engines[0]!.fileSystems();
    const report = await engines[0]!.node.check({ ...found!.record, name: found!.name });
    expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  },
);
