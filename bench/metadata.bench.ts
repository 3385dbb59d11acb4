/**
 * Metadata and small durable writes through the library, with two daemons that serve the NSDs:
 *   1. names: empty files made and removed, per second, and the token messages that cost;
 *   2. stat: of files that another node made, the first time and again;
 *   3. sync: 4 KiB written and synced, beside a bare write and flush of the same disk in the same seconds; sixteen writers beside one;
 *   4. replay: a full log of 64 MiB redone, over one NSD store;
 *   5. million (only when asked for: it takes minutes): names put into a directory of 1,000 entries, and of a million.
 * Run: npm run build && npm run bench -- metadata, or some of it: metadata:sync. Ratios are the result; absolute figures are the machine's.
 */
import { mkdir, mkdtemp, open, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { BlockEngine } from 'napi-nvme';
import { connect } from '../src/client/connect.js';
import type { FileSystemClient } from '../src/client/file-system-client.js';
import { adminSocketPath } from '../src/daemon/admin-api.js';
import { AdminClient } from '../src/daemon/admin-client.js';
import { devDown, devUp } from '../src/daemon/dev-cluster.js';
import { replay } from './replay.js';

const MIB = 2 ** 20;
const NAMES = 20_000;
const NAMES_PER_DIRECTORY = 1_000;
const DEPTH = 64;
const SYNCS = 400;
const WRITERS = 16;
const MILLION = Number(process.env['HOLDFAST_BENCH_MILLION'] ?? 1_000_000);
const LINKS_MAX = 60_000;

const quantile = (samples: readonly number[], q: number): number =>
  [...samples].sort((a, b) => a - b)[Math.min(samples.length - 1, Math.floor(samples.length * q))] ?? Number.NaN;
const row = (what: string, figure: string, ratio: number | null, goal: string): void =>
  console.log(
    `${what.padEnd(56)} ${figure.padStart(26)} ${(ratio === null ? '' : ratio.toFixed(2)).padStart(7)}  ${goal}`,
  );
const perSecond = (rate: number): string => `${Math.round(rate).toLocaleString('en-US')} per s`;

/** So many at once, until all have run; per second. */
async function rateOf(count: number, run: (i: number) => Promise<unknown>, depth = DEPTH): Promise<number> {
  const started = performance.now();
  let next = 0;
  await Promise.all(
    Array.from({ length: depth }, async () => {
      for (let i = next++; i < count; i = next++) await run(i);
    }),
  );
  return count / ((performance.now() - started) / 1000);
}
const counter = async (client: FileSystemClient, name: string): Promise<number> =>
  (await client.stats()).engine[name] ?? 0;

const nameOf = (root: string, i: number): string => `${root}/${Math.floor(i / NAMES_PER_DIRECTORY)}/${i}`;
async function directories(client: FileSystemClient, root: string, count: number): Promise<void> {
  for (let i = 0; i < count; i += NAMES_PER_DIRECTORY)
    await client.mkdir(path.posix.dirname(nameOf(root, i)), { recursive: true });
}

async function names(client: FileSystemClient): Promise<void> {
  for (const [round, count] of [NAMES / 2, NAMES].entries()) {
    const root = `/names-${round}`;
    await directories(client, root, count);
    const before = await counter(client, 'tokens.messagesOut');
    const created = await rateOf(count, (i) => client.writeFile(nameOf(root, i), '', { flag: 'wx' }));
    const between = await counter(client, 'tokens.messagesOut');
    const removed = await rateOf(count, (i) => client.unlink(nameOf(root, i)));
    const after = await counter(client, 'tokens.messagesOut');
    // The first round is for the compiler.
    if (round === 0) continue;
    const messages = (sent: number): string => `${(sent / count).toFixed(4)} token messages each; at least 20,000, 0`;
    row(`empty files made, ${DEPTH} at once`, perSecond(created), null, messages(between - before));
    row(`empty files removed, ${DEPTH} at once`, perSecond(removed), null, messages(after - between));
  }
}

async function stat(maker: FileSystemClient, looker: FileSystemClient): Promise<void> {
  const root = '/stat';
  await directories(maker, root, NAMES);
  await rateOf(NAMES, (i) => maker.writeFile(nameOf(root, i), '', { flag: 'wx' }));
  await maker.syncAll();
  const look = (i: number): Promise<unknown> => looker.stat(nameOf(root, i));
  row('stat of what another node made, cold', perSecond(await rateOf(NAMES, look)), null, 'at least 20,000');
  let hot = 0;
  for (let round = 0; round < 3; round++) hot = Math.max(hot, await rateOf(NAMES, look));
  row('stat of what another node made, hot', perSecond(hot), null, 'at least 500,000');
}

/** Microseconds of each of so many. */
async function timesOf(count: number, run: (i: number) => Promise<unknown>): Promise<number[]> {
  const samples: number[] = [];
  for (let i = 0; i < count; i++) {
    const started = performance.now();
    await run(i);
    samples.push((performance.now() - started) * 1000);
  }
  return samples;
}

async function sync(client: FileSystemClient, directory: string, copies: number): Promise<void> {
  const engine = new BlockEngine();
  const memory = engine.allocate(4096);
  const bare = path.join(directory, 'bare');
  await writeFile(bare, Buffer.alloc(4 * MIB));
  await truncate(bare, 4 * MIB);
  const device = await engine.open(bare, { direct: 'require' });
  const bytes = Buffer.alloc(4096, 0x5a);
  await client.mkdir('/sync');
  const files = await Promise.all(Array.from({ length: WRITERS }, (_, i) => client.open(`/sync/${i}`, 'w+')));
  for (const file of files) {
    await file.write(Buffer.alloc(MIB), 0, MIB, 0);
    await file.sync();
  }
  const device1 = async (i: number): Promise<void> => {
    await device.write((i % 1024) * 4096, memory, 0, 4096);
    await device.flush();
  };
  const file1 = async (i: number, writer = 0): Promise<void> => {
    await files[writer]!.write(bytes, 0, 4096, (i % 256) * 4096);
    await files[writer]!.sync();
  };
  const ratios: number[] = [];
  const alone: number[] = [];
  const below: number[] = [];
  const crowds: number[] = [];
  for (let round = 0; round < 6; round++) {
    const devices = await timesOf(SYNCS / 4, device1);
    const writes = await timesOf(SYNCS / 2, file1);
    devices.push(...(await timesOf(SYNCS / 4, device1)));
    const crowd = await rateOf(SYNCS * 2, (i) => file1(i, i % WRITERS), WRITERS);
    if (round === 0) continue;
    below.push(quantile(devices, 0.5));
    alone.push(quantile(writes, 0.5));
    ratios.push(alone.at(-1)! / below.at(-1)!);
    crowds.push((crowd * writes.reduce((sum, us) => sum + us, 0)) / writes.length / 1e6);
  }
  const us = (samples: readonly number[]): string => `${quantile(samples, 0.5).toFixed(0)} us`;
  row('4 KiB written and flushed on the disk itself, p50', us(below), null, '');
  const what = `${copies} ${copies === 1 ? 'copy' : 'copies'} of the log`;
  row(`4 KiB written and synced, ${what}, p50`, us(alone), quantile(ratios, 0.5), `at most ${copies + 1}.0`);
  row(`${WRITERS} writers of 4 KiB and sync, rate over one's`, '', quantile(crowds, 0.5), 'at least 5');
  const counted = (await client.stats()).engine;
  console.log(`log: ${counted['log.groups']} groups, ${counted['log.transactions']} transactions`);
  for (const file of files) await file.close();
  await engine.close();
}

/** Names of few files: what is measured is the directory, not the inodes. */
async function million(client: FileSystemClient): Promise<void> {
  await client.mkdir('/small');
  await client.mkdir('/large');
  const inodes = Math.ceil((MILLION + 40_000) / LINKS_MAX) + 1;
  for (let i = 0; i < inodes; i++) await client.writeFile(`/inode-${i}`, '');
  let linked = 0;
  const link = (to: string): Promise<void> => client.link(`/inode-${Math.floor(linked++ / LINKS_MAX)}`, to);
  await rateOf(1_000, (i) => link(`/small/warm-up ${i}`));
  let small = 0;
  for (let round = 0; round < 5; round++)
    small = Math.max(small, await rateOf(1_000, (i) => link(`/small/${round} ${i}`)));
  await rateOf(MILLION - 10_000, (i) => link(`/large/${i}`));
  const large = await rateOf(10_000, (i) => link(`/large/last ${i}`));
  row('names put into a directory of 1,000', perSecond(small), null, '');
  row(`names put into one of ${MILLION.toLocaleString('en-US')}`, perSecond(large), large / small, 'at least 0.5');
}

interface Cluster {
  readonly library: Parameters<typeof connect>[0];
  down(): Promise<void>;
}

/** Daemons with an NSD each, and a file system. `written`: their files have all their blocks, or a flush would mostly be the local file system's work. */
async function clusterOf(
  directory: string,
  nodes: number,
  metadataCopies: 1 | 2,
  nsdMib: number,
  written: boolean,
): Promise<Cluster> {
  const cluster = path.join(directory, `cluster-${nodes}-${nsdMib}`);
  await mkdir(cluster, { mode: 0o700 });
  const zeros = Buffer.alloc(MIB);
  for (let node = 1; written && node <= nodes; node++) {
    const file = await open(path.join(cluster, `node-${node}.nsd`), 'w', 0o600);
    for (let at = 0; at < nsdMib; at++) await file.write(zeros, 0, MIB, at * MIB);
    await file.sync();
    await file.close();
  }
  const { state } = await devUp({ dir: cluster, nodes, nsdSize: `${nsdMib}MiB`, pagePool: '128MiB' });
  const admin = await AdminClient.connect(adminSocketPath(state.nodes[0]!.socket));
  await admin.call('createFileSystem', { name: 'bench', metadataCopies });
  await admin.close();
  const keyFile = path.join(cluster, (await readdir(cluster)).find((name) => name.endsWith('.key'))!);
  const library = {
    cluster: { etcd: [state.etcd!.endpoint], name: state.clusterName, keyFile },
    fileSystem: 'bench',
    pagePoolBytes: 128 * MIB,
  };
  return { library, down: () => devDown(cluster, { clean: true }).then(() => undefined) };
}

async function inCluster(
  directory: string,
  nodes: number,
  metadataCopies: 1 | 2,
  nsdMib: number,
  written: boolean,
  body: (library: Cluster['library']) => Promise<void>,
): Promise<void> {
  const cluster = await clusterOf(directory, nodes, metadataCopies, nsdMib, written);
  try {
    await body(cluster.library);
  } finally {
    await cluster.down();
  }
}

async function main(parts: readonly string[]): Promise<void> {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-bench-'));
  const wanted = (part: string): boolean => parts.length === 0 || parts.includes(part);
  try {
    if (wanted('replay')) await replay(directory, row);
    if (wanted('names') || wanted('stat') || parts.includes('million'))
      await inCluster(directory, 2, 1, 4096, false, async (library) => {
        const client = await connect(library);
        const other = await connect(library);
        if (wanted('names')) await names(client);
        if (wanted('stat')) await stat(other, client);
        if (parts.includes('million')) await million(client);
        await other.close();
        await client.close();
      });
    if (wanted('sync'))
      for (const copies of [1, 2] as const)
        await inCluster(directory, copies, copies, 512, true, async (library) => {
          const client = await connect(library);
          await sync(client, directory, copies);
          await client.close();
        });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

await main(process.argv.slice(2));
