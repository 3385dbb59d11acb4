import { open } from 'node:fs/promises';
import { afterEach, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { silentLogger } from '../common/logger.js';
import { daemonAdmin, identityOf } from './admin.js';
import type { DaemonConfig } from './config-schema.js';
import type { NodeEngine } from './engine.js';
import { Mounts } from './mounts.js';
import { systemClock } from './system-clock.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

let cluster: LocalCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

const adminOf = (made: LocalCluster, index: number) => {
  const engine = made.engines[index]!;
  const mounts = new Mounts({ clock: systemClock, counters: engine.metrics, logger: silentLogger }, async (name) =>
    engine.node.mount(await identityOf(engine, name)),
  );
  return daemonAdmin(engine, { name: `node${index + 1}` } as DaemonConfig, mounts);
};

test('a creation that fails midway gives its NSDs back, and the next one has them; one that was cut off leaves them free', async () => {
  cluster = await startLocalCluster({ nodes: 2, nsdBytes: 64 << 20, fileSystem: null });
  const [engine] = cluster.engines;
  const format = engine!.node.format.bind(engine!.node);
  engine!.node.format = async (...given) => {
    await format(...given);
    throw new FsError('deviceError', { op: 'mkfs', detail: 'just before the end' });
  };
  await expect(engine!.createFileSystem('data')).rejects.toMatchObject({ reason: 'deviceError' });
  const claimedBy = ({ membership }: NodeEngine): number =>
    [...membership.view.nsds.values()].filter(({ fsUuid }) => fsUuid !== null).length;
  const until = async (on: NodeEngine, holds: () => boolean): Promise<void> => {
    while (!holds()) await new Promise<void>((resolve) => on.membership.onChange(() => resolve()));
  };
  // What was given back is seen a moment later.
  await until(engine!, () => claimedBy(engine!) === 0);
  // It dies there: nobody cleans up after it.
  engine!.node.format = () => new Promise(() => undefined);
  void engine!.createFileSystem('data').catch(() => undefined);
  const second = cluster.engines[1]!;
  await until(second, () => claimedBy(second) === 2);
  await expect(second.createFileSystem('data')).rejects.toMatchObject({ reason: 'notFound' });
  await engine!.close();
  await cluster.start(0);
  const made = await cluster.engines[1]!.createFileSystem('data');
  expect(made.nsds.length).toBe(2);
  await cluster.client(0).writeFile('/file', 'content');
  // What the headers say fits: they start again.
  await cluster.stopNodes();
  for (const index of [0, 1]) await cluster.start(index);
  expect(String(await cluster.client(1).readFile('/file'))).toBe('content');
});

test('fs check --repair: not while somebody has it mounted; mends what bits have flipped on the device; then it is mounted again', async () => {
  cluster = await startLocalCluster({ nodes: 2, nsds: 1, nsdBytes: 64 << 20 });
  const [first, second] = cluster.engines;
  await cluster.client(1).mkdir('/directory');
  await cluster.client(1).writeFile('/directory/file', 'content');
  await expect(adminOf(cluster, 0).call('repairFileSystem', { name: 'test' })).rejects.toMatchObject({
    reason: 'busy',
    detail: 'node 2 has it mounted: unmount it first',
  });
  await second!.unmount();
  expect(await adminOf(cluster, 0).call('checkFileSystem', { name: 'test' })).toMatchObject({ findings: [] });

  // A bit of the first leaf there is, beside its checksum.
  await cluster.stopNodes();
  const device = await open(cluster.nsdPath(0), 'r+');
  const bytes = Buffer.alloc(64 << 20);
  await device.read(bytes, 0, bytes.length, 0);
  let at = bytes.indexOf('HWD1');
  // Not in a log.
  while (at % 4096 !== 0) at = bytes.indexOf('HWD1', at + 1);
  await device.write(Buffer.of(bytes[at + 60]! ^ 1), 0, 1, at + 60);
  await device.close();
  for (const index of [0, 1]) await cluster.start(index);

  const admin = adminOf(cluster, 1);
  const report = await admin.call('checkFileSystem', { name: 'test' });
  expect(report.findings.map(({ kind }) => kind)).toContain('leafDamaged');
  const repaired = await admin.call('repairFileSystem', { name: 'test' });
  expect(repaired).toMatchObject({ findings: [] });
  expect(repaired.mended.map(({ kind }) => kind)).toContain('leafDamaged');
  const client = cluster.client(0);
  expect(await client.readdir('/')).toEqual(['lost+found']);
  const [moved] = await client.readdir('/lost+found');
  const inside = await client.readdir(`/lost+found/${moved}`).catch(() => null);
  expect(
    String(await client.readFile(inside === null ? `/lost+found/${moved}` : `/lost+found/${moved}/${inside[0]}`)),
  ).toBe('content');
  await first?.close().catch(() => undefined);
});
