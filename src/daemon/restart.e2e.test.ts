import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { deferred } from '../common/deferred.js';
import { eventually } from './testing/counting.js';
import { startDaemonCluster } from './testing/daemon-cluster.js';
import { type DaemonProcess, launchDaemon } from './testing/daemon-process.js';
import { startLocalCluster } from './testing/local-cluster.js';

/** What is durable is there again, however the nodes ended. There is no log yet: what wasn't synced may be lost with its node. */
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

test('everything survives a clean stop and start of all nodes, twice; synced or not', async () => {
  const it = await startLocalCluster({ nsdBytes: 128 << 20, pagePoolBytes: 32 << 20 });
  cleanups.push(() => it.close());
  const small = Buffer.from('small enough for its inode');
  const large = randomBytes((5 << 20) + 123);
  for (let round = 0; round < 2; round++) {
    const clients = [0, 1, 2].map((index) => it.client(index));
    const dir = `/round${round}`;
    await clients[0]!.mkdir(dir);
    await Promise.all(
      clients.map(async (client, index) => {
        for (let i = 0; i < 30; i++) await client.writeFile(`${dir}/small-${index}-${i}`, small);
        await client.writeFile(`${dir}/large-${index}`, large);
        await client.symlink(`large-${index}`, `${dir}/link-${index}`);
        await client.chmod(`${dir}/large-${index}`, 0o640);
        await client.truncate(`${dir}/small-${index}-0`, 5);
        await client.rename(`${dir}/small-${index}-1`, `${dir}/renamed-${index}`);
        await client.unlink(`${dir}/small-${index}-2`);
        if (index === 0) await client.syncAll();
      }),
    );
    await it.stopNodes();
    for (const index of [2, 0, 1]) await it.start(index);
    for (let back = 0; back <= round; back++) await verify(it.client(back), `/round${back}`);
  }

  async function verify(client: FileSystemClient, dir: string): Promise<void> {
    expect((await client.readdir(dir)).length).toBe(3 * 31);
    for (let index = 0; index < 3; index++) {
      expect((await client.readFile(`${dir}/link-${index}`)).equals(large)).toBe(true);
      expect((await client.stat(`${dir}/large-${index}`)).mode & 0o7777).toBe(0o640);
      expect(await client.readFile(`${dir}/small-${index}-0`, 'utf8')).toBe('small');
      expect((await client.readFile(`${dir}/renamed-${index}`)).equals(small)).toBe(true);
      await expect(client.stat(`${dir}/small-${index}-2`)).rejects.toMatchObject({ code: 'ENOENT' });
      for (let i = 3; i < 30; i++)
        expect((await client.readFile(`${dir}/small-${index}-${i}`)).equals(small)).toBe(true);
    }
  }
});

/** Daemons as processes; `nsds` of them have one. */
async function daemons(nsds: number, count: number) {
  const cluster = await startDaemonCluster({ nsds, leaseTtl: '5s' });
  cleanups.push(() => cluster.close());
  const { start, launch } = cluster;
  const all: DaemonProcess[] = [];
  for (let id = 1; id <= count; id++) all.push(await start(id));
  await cluster.createFileSystem();
  const connect = async (daemon: DaemonProcess): Promise<FileSystemClient> => {
    const client = await daemon.connect();
    cleanups.push(() => client.close());
    return client;
  };
  return { all, start, launch, connect };
}

test('a daemon killed after fsync: the others go on when its lease is out, with every byte that was synced', async () => {
  const { all, start, connect } = await daemons(2, 3);
  const [one, two, three] = await Promise.all(all.map(connect));
  await one!.mkdir('/kept');
  const synced = randomBytes(700_000);
  const file = await three!.open('/kept/synced', 'w+');
  await file.write(synced, 0, synced.length, 0);
  await file.sync();
  await three!.syncAll();
  // More, over it and behind it, that never reached a device: allowed to be lost, not allowed to be half there elsewhere.
  await three!.writeFile('/kept/unsynced', 'dirty');
  await file.write(Buffer.alloc(1000, 7), 0, 1000, 2_000_000);
  await all[2]!.kill();

  // Node 3 held these exclusively.
  const [found, listing] = await Promise.all([one!.readFile('/kept/synced'), two!.readdir('/kept')]);
  expect(found.subarray(0, synced.length).equals(synced)).toBe(true);
  expect(listing).toContain('synced');
  await one!.writeFile('/kept/theirs', 'written by node 1');
  expect(await two!.readFile('/kept/theirs', 'utf8')).toBe('written by node 1');

  const again = await connect(await start(3));
  expect((await again.readFile('/kept/synced')).subarray(0, synced.length).equals(synced)).toBe(true);
  await again.appendFile('/kept/theirs', ' and by node 3');
  expect(await two!.readFile('/kept/theirs', 'utf8')).toBe('written by node 1 and by node 3');
});

test('a daemon killed with its NSD after fsync: when it is back, everything synced is', async () => {
  const { all, start, connect } = await daemons(3, 3);
  const [one, , three] = await Promise.all(all.map(connect));
  await three!.mkdir('/kept');
  const contents = Array.from({ length: 6 }, (_, i) => randomBytes(300_000 * (i + 1)));
  const handles = [];
  for (const i of contents.keys()) handles.push(await three!.open(`/kept/${i}`, 'w+'));
  for (const [i, handle] of handles.entries()) {
    await handle.write(contents[i]!, 0, contents[i]!.length, 0);
    if (i % 2 === 0) await handle.sync();
    else await handle.datasync();
  }
  await all[2]!.kill();
  const back = await connect(await start(3));
  for (const client of [back, one!])
    for (const [i, content] of contents.entries())
      expect((await client.readFile(`/kept/${i}`)).equals(content)).toBe(true);
  // And a clean end of all of them, one after the other.
  await back.writeFile('/kept/last', 'the end');
  for (const daemon of [all[1]!, all[0]!]) expect(await daemon.stop()).toBe(0);
});

describe('a daemon told to stop before it was up ends well', () => {
  test('while its store does not answer', async () => {
    const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-restart-'));
    cleanups.push(() => rm(directory, { recursive: true, force: true }));
    const keyFile = path.join(directory, 'key');
    await writeFile(keyFile, randomBytes(32), { mode: 0o600 });
    const sockets = new Set<Socket>();
    const asked = deferred<void>();
    const silent = createServer((socket) => {
      sockets.add(socket.on('error', () => undefined));
      asked.resolve();
    });
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    cleanups.push(async () => {
      for (const socket of sockets) socket.destroy();
      silent.close();
    });
    const address = silent.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    const etcd = `http://127.0.0.1:${port}`;
    const daemon = launchDaemon({ directory, etcd, keyFile, leaseTtl: '2s', nodeId: 1, nsd: false });
    cleanups.push(() => daemon.kill());
    await asked.promise;
    expect(await daemon.stop()).toBe(0);
    expect(daemon.log()).toContain('stopped before it was up');
    expect(daemon.log()).not.toContain('"level":60');
  });

  test('while it waits for the lease of its last life; then it starts as if it had never tried', async () => {
    const { all, launch, start } = await daemons(1, 2);
    await all[1]!.kill();
    const before = all[1]!.log().length;
    const daemon = launch(2);
    const said = (): string => daemon.log().slice(before);
    await eventually('it is starting', () => said().includes('"starting"'));
    expect(await daemon.stop()).toBe(0);
    expect(said()).toContain('stopped before it was up');
    const again = await start(2);
    expect(await again.stop()).toBe(0);
    expect(await all[0]!.stop()).toBe(0);
  });
});
