import { afterEach, expect, test } from 'vitest';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

let cluster: LocalCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

const NAMES = Array.from({ length: 20 }, (_, index) => `/d/f${index}`);

/** The last of three nodes has synced files, which are in its log only, and can't unmount. */
async function withLogLeft(): Promise<LocalCluster> {
  const it = await startLocalCluster({ nsds: 2, nsdBytes: 128 << 20, pagePoolBytes: 32 << 20 });
  cluster = it;
  await it.client(0).mkdir('/d');
  const writer = it.client(2);
  for (const name of NAMES) {
    const file = await writer.open(name, 'w');
    await file.write(Buffer.from(name));
    await file.sync();
    await file.close();
  }
  it.engines[2]!.node.cache!.flushAll = () => Promise.reject(new Error('an NSD fails'));
  await expect(it.engines[2]!.unmount()).rejects.toThrow('an NSD fails');
  return it;
}

async function expectAll(it: LocalCluster, index: number): Promise<void> {
  for (const name of NAMES) expect(await it.client(index).readFile(name, 'utf8')).toBe(name);
}

test('a node that could not unmount, and leaves, has its log redone by the others: what it had synced is there (I8)', async () => {
  const it = await withLogLeft();
  await it.engines[2]!.close();
  await expectAll(it, 0);
  expect(it.engines[0]!.counters()['recovery.logs']).toBe(1);
});

test('a node that could not unmount gives no token up: whoever asks for one makes it end, and gets what it had synced', async () => {
  const it = await withLogLeft();
  const ended = new Promise<void>((resolve) => it.engines[2]!.onFailure(() => resolve(it.engines[2]!.close())));
  await Promise.all([expectAll(it, 0), ended]);
});
