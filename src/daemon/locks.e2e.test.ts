import { pathToFileURL } from 'node:url';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { connectThrough } from '../client/connect.js';
import type { FileSystemClient } from '../client/file-system-client.js';
import { lockList } from './admin.js';
import { built } from './testing/child.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

/** File locks and open files between a library, which is a node of its own, and clients of three daemons. */
let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startLocalCluster({ leaseTtlMs: 30_000 });
});
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});
afterAll(async () => {
  await cluster?.close();
});

async function connectLibrary(): Promise<FileSystemClient> {
  const { etcd, clusterName, keyFile } = cluster;
  const fs = await connectThrough(
    { cluster: { etcd: [etcd], name: clusterName, keyFile }, fileSystem: 'test', pagePoolBytes: 64 << 20 },
    { entry: pathToFileURL(built('client/worker.js')) },
    pathToFileURL(built('daemon/engine.js')),
  );
  cleanups.push(() => fs.close());
  return fs;
}

test('fcntl and flock: locks stand between nodes, waiters get their turn, and a circle is told', async () => {
  const [library, daemon] = [await connectLibrary(), cluster.client(1)];
  await library.writeFile('/locked', 'some bytes');
  const [a, b] = [await library.open('/locked', 'r+'), await daemon.open('/locked', 'r+')];
  await a.lock({ start: 0, length: 10 });
  await expect(b.lock({ start: 9, length: 2 })).rejects.toMatchObject({ code: 'EAGAIN', syscall: 'lock' });
  expect(await b.getLock({ start: 9 })).toMatchObject({ type: 'write', start: 0, length: 10, pid: process.pid });
  await b.lock({ start: 10 });
  const waits = b.lock({ start: 0, length: 10, wait: true });
  // Either may be the one that is told; the other gets what it waits for.
  const circle = a.lock({ start: 20, length: 1, wait: true });
  const results = await Promise.allSettled([
    waits.catch(async (error: unknown) => {
      await b.unlock();
      throw error;
    }),
    circle.catch(async (error: unknown) => {
      await a.unlock();
      throw error;
    }),
  ]);
  const told = results.filter((result) => result.status === 'rejected');
  expect(told).toHaveLength(1);
  expect(told[0]!.reason).toMatchObject({ code: 'EDEADLK' });
  await a.close();
  await b.unlock();
  await b.lock({});
  await b.close();

  const [c, d] = [await library.open('/locked', 'r'), await daemon.open('/locked', 'r')];
  await c.flock('shared');
  await d.flock('shared');
  await expect(d.flock('exclusive')).rejects.toMatchObject({ code: 'EAGAIN' });
  const aborter = new AbortController();
  const aborted = d.flock('exclusive', { wait: true, signal: aborter.signal });
  aborter.abort();
  await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
  await expect(d.flock('exclusive', { wait: true, timeoutMs: 1 })).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  const closing = expect(d.flock('exclusive', { wait: true })).rejects.toMatchObject({ code: 'EBADF' });
  await d.close();
  await closing;
  await expect(c.lock({ type: 'write' })).rejects.toMatchObject({ code: 'EBADF' });
  await expect(c.lock({ start: -1 })).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' });
  await c.close();
});

test('the tools see who holds and who waits, libraries included, and share modes; and where a file is', async () => {
  const [library, daemon] = [await connectLibrary(), cluster.client(1)];
  await library.writeFile('/listed', Buffer.alloc(5000, 1));
  const { ino } = await library.stat('/listed');
  const [a, b] = [await library.open('/listed', 'r+'), await daemon.open('/listed', 'r+')];
  await a.lock({ start: 0, length: 10 });
  await b.flock('shared');
  const waits = b.lock({ start: 5, length: 1, wait: true });
  await library.writeFile('/denied', '');
  const alone = await library.open('/denied', 'r', 0, { deny: 'write' });
  const listed = async () => {
    const { locks, silent } = await lockList(cluster.engines[2]!);
    expect(silent).toEqual([]);
    return locks;
  };
  const ofFile = async () => (await listed()).filter((lock) => lock.inode === ino);
  await expect.poll(async () => (await ofFile()).length).toBe(3);
  const locks = await listed();
  const own = { fileSystem: 'test', inode: ino, pid: process.pid };
  for (const line of [
    { ...own, kind: 'process', state: 'held', type: 'write', start: 0, end: 10 },
    { ...own, node: 2, kind: 'process', state: 'waiting', start: 5, end: 6 },
    { ...own, node: 2, kind: 'flock', state: 'held', type: 'read', end: null },
    { kind: 'share', type: 'denies write', pid: null },
  ])
    expect(locks).toContainEqual(expect.objectContaining(line));
  const [where] = await daemon.locate('/listed');
  expect(where).toMatchObject({ kind: 'data', offset: 0, length: 5000 });
  expect([1, 2, 3]).toContain(where!.node);
  await a.close();
  await waits;
  await b.close();
  await alone.close();
});

test('a shared-write file: many nodes append records through its owner, and every record is there once', async () => {
  const writers = [await connectLibrary(), cluster.client(0), cluster.client(1), cluster.client(2)];
  await writers[0]!.mkdir('/queue');
  await writers[1]!.setSharedWrite('/queue', true);
  await writers[2]!.writeFile('/queue/file', '');
  const counts = (): number =>
    cluster.engines.reduce((sum, engine) => sum + (engine.counters()['fs.sharedServed'] ?? 0), 0);
  const before = counts();
  await Promise.all(
    writers.map(async (fs, i) => {
      await using handle = await fs.open('/queue/file', 'a+');
      for (let round = 0; round < 25; round++) await handle.write(`${i}:${String(round).padStart(2, '0')}\n`);
      await handle.sync();
    }),
  );
  // One of them is the owner.
  expect(counts() - before).toBeGreaterThanOrEqual(3 * 25);
  for (const fs of writers) {
    const records = (await fs.readFile('/queue/file', 'utf8')).split('\n').slice(0, -1);
    expect(new Set(records).size).toBe(100);
    expect(records.length).toBe(100);
  }
});

test('what one node locks alone costs no message, between two it costs one request each', async () => {
  const [library, daemon] = [await connectLibrary(), cluster.client(1)];
  await library.writeFile('/counted', '');
  const [a, b] = [await library.open('/counted', 'r+'), await daemon.open('/counted', 'r+')];
  await a.lock({});
  const requests = async (): Promise<number> => (await library.stats()).engine['locks.requests'] ?? 0;
  const alone = await requests();
  for (let i = 0; i < 50; i++) {
    await a.unlock();
    await a.lock({ start: i, length: 1 });
  }
  expect(await requests()).toBe(alone);
  await b.lock({ start: 100, length: 1 });
  const shared = await requests();
  for (let i = 0; i < 5; i++) await a.lock({ start: 200 + i, length: 1 });
  expect((await requests()) - shared).toBe(5);
  await a.close();
  await b.close();
});

test('a file that another node removes is read and written until its last close', async () => {
  const [library, daemon] = [await connectLibrary(), cluster.client(1)];
  await library.writeFile('/open', Buffer.alloc(3 << 20, 7));
  const file = await daemon.open('/open', 'r+');
  await library.unlink('/open');
  await expect(daemon.stat('/open')).rejects.toMatchObject({ code: 'ENOENT' });
  await file.write(Buffer.from([9]), 0, 1, 1 << 20);
  const target = Buffer.alloc(2);
  await file.read(target, 0, 2, (1 << 20) - 1);
  expect([...target]).toEqual([7, 9]);
  expect((await file.stat()).nlink).toBe(0);
  await file.close();
});

test('share modes between nodes, again and again on one file', async () => {
  const [library, daemon] = [await connectLibrary(), cluster.client(1)];
  await library.writeFile('/shared', 'x');
  const cases = [
    ['r', undefined, 'r', undefined, true],
    ['r', 'write', 'r', 'write', true],
    ['r', 'write', 'r+', undefined, false],
    ['r+', undefined, 'r', 'write', false],
    ['r+', 'write', 'r', undefined, true],
    ['r+', 'write', 'r', 'write', false],
    ['r', undefined, 'r', 'readwrite', false],
  ] as const;
  for (const [flags, deny, otherFlags, otherDeny, together] of [...cases, ...cases]) {
    for (const [a, b] of [
      [library, daemon],
      [daemon, library],
      [daemon, daemon],
    ] as const) {
      const first = await a.open('/shared', flags, 0, { deny });
      const second = b.open('/shared', otherFlags, 0, { deny: otherDeny });
      if (together) await (await second).close();
      else await expect(second).rejects.toMatchObject({ code: 'EBUSY', path: '/shared' });
      await first.close();
      await (await b.open('/shared', otherFlags, 0, { deny: otherDeny })).close();
    }
  }
  const keeps = await daemon.open('/shared', 'r', 0, { deny: 'write' });
  const waits = library.writeFile('/shared', 'y').catch((error: unknown) => (error as { code: string }).code);
  expect(await waits).toBe('EBUSY');
  const later = library.open('/shared', 'r+', 0, { busyTimeoutMs: 60_000 });
  await keeps.close();
  await (await later).close();
});
