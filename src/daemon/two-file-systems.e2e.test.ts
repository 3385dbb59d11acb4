import { afterEach, expect, test } from 'vitest';
import { nodeId } from '../common/ids.js';
import { counting } from './testing/counting.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

let cluster: LocalCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

test('two file systems of one cluster share token servers and no token: the same inodes, no revoke between them', async () => {
  // The first and the third node use the one, the second the other; its id lets it create in the same segment of 64 as the first.
  cluster = await startLocalCluster({
    fileSystem: null,
    nsdBytes: 256 << 20,
    configure: (index) => (index === 1 ? { fileSystem: 'beta', nodeId: nodeId(64) } : { fileSystem: 'alpha' }),
  });
  const { engines } = cluster;
  const alpha = await engines[0]!.createFileSystem('alpha', ['nsd1']);
  const beta = await engines[0]!.createFileSystem('beta', ['nsd2']);
  expect([alpha.number, beta.number]).toEqual([0, 1]);

  const [one, two, three] = [cluster.client(0), cluster.client(1), cluster.client(2)];
  await Promise.all([one.mkdir('/d'), two.mkdir('/d')]);
  const count = counting(engines);
  const numbers: number[][] = [[], []];
  for (let i = 0; i < 20; i++) {
    // In turn, so that each would call the other one's tokens back each time.
    for (const [which, client] of [one, two].entries()) {
      await client.writeFile(`/d/f${i}`, `${which} wrote ${i}`);
      numbers[which]!.push((await client.stat(`/d/f${i}`)).ino);
    }
  }
  expect(numbers[0]).toEqual(numbers[1]);
  for (let i = 0; i < 20; i++) {
    expect(await one.readFile(`/d/f${i}`, 'utf8')).toBe(`0 wrote ${i}`);
    expect(await two.readFile(`/d/f${i}`, 'utf8')).toBe(`1 wrote ${i}`);
  }
  expect(count().sum('tokens.revokesServed')).toBe(0);

  // What shows that revokes are counted: the same file system on a third node.
  expect(await three.readFile('/d/f0', 'utf8')).toBe('0 wrote 0');
  const since = count();
  expect(since.of(0, 'tokens.revokesServed')).toBeGreaterThan(0);
  expect(since.of(1, 'tokens.revokesServed')).toBe(0);
  for (const engine of engines) expect(engine.metrics.get('tokens.violations')).toBe(0);
});
