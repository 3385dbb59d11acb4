import { execFile } from 'node:child_process';
import * as nodeFs from 'node:fs/promises';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { connectThrough } from '../client/connect.js';
import { connectSocket } from '../client/connect-socket.js';
import type { EngineConfig } from '../client/engine-contract.js';
import type { FileSystemClient } from '../client/file-system-client.js';
import { serveSocket } from '../client/socket-server.js';
import { Cutter } from '../client/testing/cutter.js';
import { freePorts } from '../cluster/private-etcd.js';
import { built, type Child, projectRoot, startChild } from './testing/child.js';
import { counting, eventually } from './testing/counting.js';
import { type FsPromises, runProgram } from './testing/fs-program.js';
import type { LibraryProgramArguments } from './testing/library-program.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';
import type { SyncProgramArguments, SyncProgramHits } from './testing/sync-program.js';
import { TcpCutter } from './testing/tcp-cutter.js';

/** The library against a real cluster: connect() joins as a node of this process, its engine in a worker that runs as it was built. */
const run = promisify(execFile);
/** Node 2 is reached through a wire that can be cut. */
let wire: TcpCutter;
let cluster: LocalCluster;
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'holdfast-library-'));
  const [listening, advertised] = (await freePorts(2)) as [number, number];
  wire = await TcpCutter.start(advertised, listening);
  cluster = await startLocalCluster({
    configure: (index) =>
      index === 1
        ? {
            listen: { host: '127.0.0.1', port: listening },
            advertise: { host: '127.0.0.1', port: advertised },
          }
        : {},
  });
});
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});
afterAll(async () => {
  await cluster?.close();
  await wire?.stop();
  await rm(folder, { recursive: true, force: true });
});

function libraryConfig(): EngineConfig {
  const { etcd, clusterName, keyFile } = cluster;
  return { cluster: { etcd: [etcd], name: clusterName, keyFile }, fileSystem: 'test', pagePoolBytes: 64 << 20 };
}
async function connectLibrary(): Promise<FileSystemClient> {
  const fs = await connectThrough(
    libraryConfig(),
    { entry: pathToFileURL(built('client/worker.js')) },
    pathToFileURL(built('daemon/engine.js')),
  );
  cleanups.push(() => fs.close());
  return fs;
}

async function copyOut(fs: FileSystemClient, from: string, to: string): Promise<void> {
  await mkdir(to, { recursive: true });
  for (const entry of await fs.readdir(from, { withFileTypes: true })) {
    const [source, target] = [`${from}/${entry.name}`, path.join(to, entry.name)];
    if (entry.isDirectory()) await copyOut(fs, source, target);
    else await writeFile(target, await fs.readFile(source));
  }
}

test('a program written for fs.promises sees on Holdfast what it sees on a local file system', async () => {
  const local = await mkdtemp(path.join(folder, 'program-'));
  const expected = await runProgram(nodeFs, local);
  const fs = await connectLibrary();
  await fs.mkdir('/program');
  const seen = await runProgram(fs as unknown as FsPromises, '/program');
  expect(seen).toEqual(expected);
  // And it is all there on another node.
  expect((await cluster.client(0).readdir('/program')).sort()).toEqual(
    (await nodeFs.readdir(local))
      .sort()
      .map((name) => (name.startsWith('temporary-') ? expect.stringMatching(/^temporary-/) : name)),
  );
});

test("isomorphic-git's example joins the cluster, ends by itself, and git finds its repository clean after copying out", async () => {
  const example = path.join(projectRoot, 'examples', 'isomorphic-git.mjs');
  const { etcd, clusterName, keyFile } = cluster;
  const { stdout } = await run(
    process.execPath,
    [example, '--etcd', etcd, '--cluster', clusterName, '--key', keyFile, '--fs', 'test'],
    { cwd: projectRoot },
  );
  expect(stdout).toContain('Add a program');
  const out = path.join(folder, 'repository');
  // From a node that the program never spoke to by name.
  await copyOut(cluster.client(2), '/example.git-work', out);
  await run('git', ['-C', out, 'fsck', '--strict', '--full']);
  expect((await run('git', ['-C', out, 'status', '--porcelain'])).stdout).toBe('');
  expect((await run('git', ['-C', out, 'log', '--format=%s', 'idea'])).stdout).toBe(
    'Add a program\nSay where this is kept\n',
  );
});

test('synchronous reads and writes of what is cached are hits, without a message; a miss waits for the engine', async () => {
  const args: SyncProgramArguments = { config: libraryConfig(), path: '/hits', hits: 1000, pages: 64 };
  const child = startChild('daemon/testing/sync-program', [JSON.stringify(args)]);
  cleanups.push(() => child.kill());
  const hits = await child.message<SyncProgramHits>('hits');
  expect(hits).toEqual({ kind: 'hits', readHits: 1000, writeHits: 1000, tokenMessages: 0, fabricMessages: 0 });
  // What was hit is what the others read.
  const other = cluster.client(0);
  const whole = await other.readFile('/hits');
  for (let i = 1000 - 64; i < 1000; i++) expect(whole[(i % 64) * 4096]).toBe(i & 0x7f);
  await other.writeFile('/hits', Buffer.alloc(64 * 4096, 77));
  child.send({ kind: 'changed' });
  expect(await child.message('missed')).toEqual({ kind: 'missed', bytesRead: 4096, first: 77, last: 77 });
  await child.message('closed');
  expect(await child.exited).toBe(0);
  expect((await other.readFile('/hits')).subarray(4096, 4096 + 22).toString('latin1')).toBe('written synchronouslyM');
});

test('handles and operations survive cut connections between nodes; nothing is lost or done twice', async () => {
  const fs = await connectLibrary();
  const other = cluster.client(1);
  const [ours, theirs] = [await fs.open('/cut', 'a+'), await other.open('/cut', 'a+')];
  const count = counting(cluster.engines);
  let expected = '';
  for (let i = 0; i < 30; i++) {
    if (i % 6 === 5) wire.cut();
    const record = `${i},`;
    await (i % 2 === 0 ? ours : theirs).write(record);
    expected += record;
    if (i % 10 === 9) expect(await (i % 20 === 9 ? other : fs).readFile('/cut', 'utf8')).toBe(expected);
  }
  expect(wire.cuts).toBeGreaterThan(0);
  expect(await fs.readFile('/cut', 'utf8')).toBe(expected);
  expect(count().sum('fabric.linksAdopted')).toBeGreaterThan(0);
  await Promise.all([ours.close(), theirs.close()]);
});

test("a proxied client's handles survive a cut socket and a daemon that comes back", async () => {
  const engine = cluster.engines[0]!;
  const socket = path.join(folder, 'daemon.sock');
  let server = await serveSocket(socket, engine.fileSystem, {});
  cleanups.push(() => server.close());
  const cutter = await Cutter.start(path.join(folder, 'cut.sock'), socket);
  cleanups.push(() => cutter.stop());
  const fs = await connectSocket(cutter.path);
  cleanups.push(() => fs.close());
  const file = await fs.open('/proxied', 'w+');
  await file.write(Buffer.from('before '));
  cutter.cut();
  await file.write(Buffer.from('after the cut '));
  expect(await fs.readFile('/proxied', 'utf8')).toBe('before after the cut ');
  await server.close();
  // A handle is its inode's, not its name's.
  await cluster.client(2).rename('/proxied', '/renamed');
  server = await serveSocket(socket, engine.fileSystem, {});
  await file.write(Buffer.from('after the return'));
  expect(await fs.readFile('/renamed', 'utf8')).toBe('before after the cut after the return');
  await server.close();
  await cluster.client(2).unlink('/renamed');
  server = await serveSocket(socket, engine.fileSystem, {});
  await expect(file.write(Buffer.from('to nobody'))).rejects.toMatchObject({ code: 'ESTALE' });
  await file.close();
});

test('a library process killed with dirty exclusive tokens holds the others up until its lease is out, and no longer', async () => {
  const args: LibraryProgramArguments = {
    config: libraryConfig(),
    directory: '/killed',
    files: 5,
    fileBytes: 100_000,
    computeUntil: null,
  };
  const child: Child = startChild('daemon/testing/library-program', [JSON.stringify(args)]);
  cleanups.push(() => child.kill());
  await child.message('written');
  const before = cluster.engines[0]!.membership.view.nodes.size;
  const client = cluster.client(1);
  // Known to the others before it dies: what was not written out is lost with it, names included.
  expect((await client.readdir('/killed')).length).toBe(5);
  await child.kill();
  // These wait for a holder that never answers, then go on.
  await Promise.all(
    Array.from({ length: 5 }, async (_, i) => {
      const file = await client.open(`/killed/${i}`, 'r+');
      const content = await file.readFile();
      // It is as it last reached the NSDs: short, or the whole; never bytes that nobody wrote.
      expect(content.every((byte) => byte === i + 1)).toBe(true);
      await file.write(Buffer.from('mine'), 0, 4, 0);
      await file.close();
    }),
  );
  for (let i = 0; i < 5; i++)
    expect((await cluster.client(2).readFile(`/killed/${i}`)).subarray(0, 4).toString()).toBe('mine');
  await eventually('the dead node is in nobody’s view', () =>
    cluster.engines.every((engine) => engine.membership.view.nodes.size === before - 1),
  );
  for (const engine of cluster.engines) expect(engine.membership.expelling).toEqual([]);
  await client.rm('/killed', { recursive: true });
});
