import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { eventually } from './testing/counting.js';
import { startDaemonCluster } from './testing/daemon-cluster.js';

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

/** Names, and files that are small enough to be in their inodes: metadata, of which there are two copies. Every one is synced. */
async function work(client: FileSystemClient, dir: string, done: Set<string>, isOver: () => boolean): Promise<void> {
  await client.mkdir(dir);
  for (let i = 0; !isOver() && i < 5_000; i++) {
    const name = `${dir}/${i}`;
    const file = await client.open(name, 'w');
    await file.write(Buffer.from(name), 0, name.length, 0);
    await file.sync();
    await file.close();
    if (i % 3 === 2) {
      await client.rename(name, `${name}-moved`);
      await client.setxattr(`${name}-moved`, 'user.of', Buffer.from(name));
    }
    done.add(name);
  }
}

const contentOf = (client: FileSystemClient, name: string): Promise<string> =>
  client.readFile(name, 'utf8').catch(() => client.readFile(`${name}-moved`, 'utf8'));

test('the daemon that serves one copy is killed under load: the others go on, and when it is back the copies are equal (S5)', async () => {
  const cluster = await startDaemonCluster({ nsds: 3, leaseTtl: '30s' });
  cleanups.push(() => cluster.close());
  const { start } = cluster;
  const one = await start(1);
  const two = await start(2);
  const three = await start(3);
  const admin = await one.admin();
  cleanups.push(async () => admin.close());
  const copiesOf = async (name: string): Promise<string> =>
    (await admin.call('nsds', {})).find((nsd) => nsd.name === name)!.copies;
  await cluster.createFileSystem(2);
  const clients = [await one.connect(), await two.connect()];
  const third = await three.connect();
  await third.writeFile('/before', 'of the one that dies');
  const synced = await third.open('/before', 'r+');
  await synced.sync();

  let over = false;
  const done = clients.map(() => new Set<string>());
  const working = clients.map((client, i) => work(client, `/of${i}`, done[i]!, () => over));
  await eventually('there is work', async () => done.every((names) => names.size > 10));
  await three.kill();
  expect(await admin.call('expel', { node: 3 })).toMatchObject({ nodeId: 3, done: true });
  const before = done.map((names) => names.size);
  await eventually('both go on', async () => done.every((names, i) => names.size > before[i]! + 10));
  expect(await copiesOf('nsd3')).toBe('stale');
  expect((await admin.call('status', {})).staleNsds).toEqual([{ nsd: 'nsd3', state: 'stale' }]);
  for (const client of clients) expect(await client.readFile('/before', 'utf8')).toBe('of the one that dies');

  const back = await start(3);
  await eventually('the copy is up to date', async () => (await copiesOf('nsd3')) === 'up');
  over = true;
  await Promise.all(working);
  const again = await back.connect();
  for (const names of done) for (const name of names) expect(await contentOf(again, name)).toBe(name);
  await third.close().catch(() => undefined);
  await again.close();
  for (const client of clients) await client.close();
  for (const daemon of [back, two, one]) {
    const each = await daemon.admin();
    await each.call('unmount', {});
    each.close();
  }
  // A check reads both copies, and says where they differ.
  expect(await admin.call('checkFileSystem', { name: 'test' })).toMatchObject({
    problems: [],
    lostSubBlocks: 0,
    lostInodes: 0,
  });
}, 240_000);
