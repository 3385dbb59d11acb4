/**
 * What a cluster of three daemons on this machine does, each figure beside a baseline of the same run:
 *   1. a token granted without conflict, and with one clean holder, in round trips of a 64-byte message at p50;
 *   2. one file written and read cold over three NSDs, against the least of bulk over TCP and the devices under it;
 *   3. the import of a tree of small files, in files per second;
 *   4. conflicting reads while the holder's application computes, p99;
 *   5. four nodes writing one file, against four files, and the sizes that a fifth sees.
 * Run: npm run build && npm run bench -- cluster, or only some of it: cluster:sequential (also tokens, computing, import, one-file). Ratios are the
 * result; absolute figures are the machine's.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { connect } from '../src/client/connect.js';
import { connectSocket } from '../src/client/connect-socket.js';
import type { FileSystemClient } from '../src/client/file-system-client.js';
import { nodeId } from '../src/common/ids.js';
import { RANGE_END } from '../src/common/units.js';
import { adminSocketPath } from '../src/daemon/admin-api.js';
import { AdminClient } from '../src/daemon/admin-client.js';
import { devDown, devUp } from '../src/daemon/dev-cluster.js';
import { type NodeEngine, startNode } from '../src/daemon/engine.js';
import { MessageType } from '../src/protocol/message-types.js';
import { serverOf } from '../src/token-manager/placement.js';
import { INODES_PER_SEGMENT, TokenClass, type TokenItem, TokenMode } from '../src/token-manager/token.js';
import { tokenViewOf } from '../src/token-manager/token-view.js';
import { oneFile } from './one-file.js';
import { sequential } from './sequential.js';

const MIB = 2 ** 20;
const ROUND_TRIPS = 4000;
const WARM_UP = 4000;

const quantile = (sorted: readonly number[], q: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN;
const row = (what: string, figure: string, ratio: number | null, goal: string): void =>
  console.log(
    `${what.padEnd(52)} ${figure.padStart(22)} ${(ratio === null ? '' : ratio.toFixed(2)).padStart(7)}  ${goal}`,
  );

async function times(count: number, run: (i: number) => Promise<unknown>): Promise<number[]> {
  const samples: number[] = [];
  for (let i = 0; i < count; i++) {
    const started = performance.now();
    await run(i);
    samples.push((performance.now() - started) * 1000);
  }
  return samples.sort((a, b) => a - b);
}

/** Inodes that nobody uses, whose tokens the daemon with this id serves: tokens need no inode behind them. */
function objectsServedBy(engine: NodeEngine, server: number, count: number): number[] {
  const { servers } = tokenViewOf(engine.membership.view);
  const objects: number[] = [];
  for (let segment = 40; objects.length < count; segment++) {
    if (serverOf(servers, TokenClass.status, segment)?.nodeId !== server) continue;
    for (let i = 0; i < INODES_PER_SEGMENT && objects.length < count; i++)
      objects.push(segment * INODES_PER_SEGMENT + i);
  }
  return objects;
}
const whole = (object: number, mode: TokenMode): TokenItem => ({
  class: TokenClass.data,
  object,
  mode,
  required: { start: 0, end: 4096 },
  desired: { start: 0, end: RANGE_END },
});

/** Tokens of these objects, taken by another process, which has nothing else to do. */
async function heldBy(child: ChildProcess, objects: readonly number[]): Promise<void> {
  const held = new Promise((resolve) => child.once('message', resolve));
  child.send(objects);
  await held;
}

/** In a process of its own, as a holder is: takes what it is told to, until the parent hangs up. */
async function holderChild(config: Parameters<typeof startNode>[0]): Promise<void> {
  const engine = await startNode(config);
  process.on('message', async (objects: number[]) => {
    for (const object of objects) (await engine.node.tokens.acquire([whole(object, TokenMode.exclusive)])).release();
    process.send!('held');
  });
  process.once('disconnect', () => void engine.close().finally(() => process.exit(0)));
  process.send!('ready');
}

async function tokens(config: Parameters<typeof startNode>[0]): Promise<void> {
  const holder = fork(fileURLToPath(import.meta.url), [
    '--holder',
    JSON.stringify({ ...config, name: 'bench-holder' }),
  ]);
  await new Promise((resolve) => holder.once('message', resolve));
  const engine = await startNode({ ...config, name: 'bench-requester' });
  const server = engine.membership.view.tokenServers[0]!;
  const peer = engine.fabric.peer(nodeId(server));
  const body = new Uint8Array(64);
  const objects = objectsServedBy(engine, server, 2 * (WARM_UP + ROUND_TRIPS));
  const pings: number[] = [];
  const grants: number[] = [];
  const stolen: number[] = [];
  const acquire = async (object: number): Promise<void> =>
    (await engine.node.tokens.acquire([whole(object, TokenMode.exclusive)])).release();
  // In alternation, so that a change of the machine's mood meets all three.
  for (let at = 0; at < objects.length; at += 200) {
    const free = objects.slice(at, at + 100);
    const taken = objects.slice(at + 100, at + 200);
    await heldBy(holder, taken);
    pings.push(...(await times(100, () => peer.request(MessageType.ping, body, { timeoutMs: 5000 }))));
    grants.push(...(await times(100, (i) => acquire(free[i]!))));
    stolen.push(...(await times(100, (i) => acquire(taken[i]!))));
    // A daemon runs for months: the first thousands are not yet compiled code.
    if (at < 2 * WARM_UP) for (const samples of [pings, grants, stolen]) samples.length = 0;
  }
  const gone = new Promise((resolve) => holder.once('exit', resolve));
  holder.disconnect();
  await gone;
  await engine.close();
  const p50 = (samples: number[]): number =>
    quantile(
      samples.sort((a, b) => a - b),
      0.5,
    );
  const trip = p50(pings);
  row('message round trip, 64 B, p50', `${trip.toFixed(0)} us`, null, '');
  row('grant without conflict, p50', `${p50(grants).toFixed(0)} us`, p50(grants) / trip, 'at most 2.0 round trips');
  row(
    'grant with one clean holder, p50',
    `${p50(stolen).toFixed(0)} us`,
    p50(stolen) / trip,
    'at most 3.5 round trips',
  );
}

async function importTree(client: FileSystemClient): Promise<void> {
  const { readFileSync, readdirSync } = await import('node:fs');
  const files: string[] = [];
  const directories: string[] = [];
  const walk = (from: string, to: string): void => {
    for (const entry of readdirSync(from, { withFileTypes: true })) {
      if (entry.isDirectory()) {
        directories.push(`${to}/${entry.name}`);
        walk(`${from}/${entry.name}`, `${to}/${entry.name}`);
      } else if (entry.isFile()) files.push(`${to}/${entry.name}`);
    }
  };
  walk('/usr/include', '');
  files.length = Math.min(files.length, 6000);
  const started = performance.now();
  for (const directory of directories) await client.mkdir(`/tree${directory}`, { recursive: true });
  let next = 0;
  await Promise.all(
    Array.from({ length: 64 }, async () => {
      for (let i = next++; i < files.length; i = next++)
        await client.writeFile(`/tree${files[i]}`, readFileSync(`/usr/include${files[i]}`));
    }),
  );
  const perSecond = (files.length + directories.length) / ((performance.now() - started) / 1000);
  row(
    `import of ${files.length} files through a daemon`,
    `${perSecond.toFixed(0)} files/s`,
    null,
    'at least 3,000 files/s',
  );
}

const COMPUTE_MS = Number(process.env['HOLDFAST_BENCH_COMPUTE_MS'] ?? 8000);

/** In a process of its own: takes a file, dirties it, and computes without yielding, over and over. */
async function computeChild(options: Parameters<typeof connect>[0]): Promise<void> {
  const fs = await connect(options);
  const file = await fs.open('/computing', 'w+');
  await file.write(Buffer.alloc(64 * 1024, 1), 0, 64 * 1024, 0);
  process.send!('computing');
  const end = performance.now() + COMPUTE_MS;
  let x = 0;
  const bytes = Buffer.alloc(4096, 2);
  while (performance.now() < end) {
    for (let i = 0; i < 1e6; i++) x = (x * 31 + i) | 0;
    // A program that works on its file now and then takes the token back.
    file.writeSync(bytes, 0, 4096, (Math.abs(x) % 16) * 4096);
  }
  await file.close();
  await fs.close();
  process.exit(0);
}

async function computing(reader: FileSystemClient, options: Parameters<typeof connect>[0]): Promise<void> {
  const child = fork(fileURLToPath(import.meta.url), ['--compute', JSON.stringify(options)], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  await new Promise((resolve) => child.once('message', resolve));
  const file = await reader.open('/computing', 'r');
  const samples: number[] = [];
  const block = Buffer.alloc(4096);
  const end = performance.now() + COMPUTE_MS * 0.9;
  // The pause lets the holder take its token back, so that every read conflicts and none is a hit.
  while (performance.now() < end) {
    samples.push(...(await times(1, () => file.read(block, 0, 4096, 0))));
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await file.close();
  await exited;
  samples.sort((a, b) => a - b);
  row('conflicting read while the holder computes, p50', `${(quantile(samples, 0.5) / 1000).toFixed(2)} ms`, null, '');
  row(
    'conflicting read while the holder computes, p99',
    `${(quantile(samples, 0.99) / 1000).toFixed(2)} ms`,
    null,
    'at most 50 ms',
  );
}

async function main(parts: readonly string[]): Promise<void> {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-bench-'));
  const cluster = path.join(directory, 'cluster');
  try {
    const { state } = await devUp({ dir: cluster, nodes: 3, nsdSize: '2GiB', pagePool: '256MiB' });
    const admin = await AdminClient.connect(adminSocketPath(state.nodes[0]!.socket));
    await admin.call('createFileSystem', { name: 'bench', metadataCopies: 1 });
    await admin.close();
    const etcd = [state.etcd!.endpoint];
    const keyFile = (await readdir(cluster))
      .filter((name) => name.endsWith('.key'))
      .map((name) => path.join(cluster, name))[0]!;
    const library = {
      cluster: { etcd, name: state.clusterName, keyFile },
      fileSystem: 'bench',
      pagePoolBytes: 128 * MIB,
    };
    const base = {
      clusterName: state.clusterName,
      etcd,
      keyFile,
      nodeId: null,
      listen: null,
      tokenServer: false,
      leaseTtlMs: 5000,
      nsds: [],
      fileSystem: 'bench',
      name: 'bench',
    };
    const wanted = (part: string): boolean => parts.length === 0 || parts.includes(part);
    if (wanted('tokens')) await tokens({ ...base, pagePoolBytes: 32 * MIB });
    const daemonPids = state.nodes.map(({ process: daemon }) => daemon!.pid);
    if (wanted('sequential')) await sequential({ directory, daemonPids, library, row });
    if (wanted('computing')) {
      const reader = await connect(library);
      await computing(reader, library);
      await reader.close();
    }
    if (wanted('one-file')) await oneFile({ library, row });
    if (wanted('import')) {
      const proxied = await connectSocket(state.nodes[0]!.socket);
      await importTree(proxied);
      await proxied.close();
    }
  } finally {
    await devDown(cluster, { clean: true });
    await rm(directory, { recursive: true, force: true });
  }
}

if (process.argv[2] === '--holder') await holderChild(JSON.parse(process.argv[3]!) as Parameters<typeof startNode>[0]);
else if (process.argv[2] === '--compute')
  await computeChild(JSON.parse(process.argv[3]!) as Parameters<typeof connect>[0]);
else await main(process.argv.slice(2));
