import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { startLocalCluster } from './testing/local-cluster.js';

test('who uses the file system while it is unmounted waits, and nothing that was written is hurt', async () => {
  const it = await startLocalCluster({ nodes: 1, nsdBytes: 256 << 20, pagePoolBytes: 32 << 20 });
  try {
    const engine = it.engines[0]!;
    const client = it.client(0);
    const contents = Array.from({ length: 8 }, () => randomBytes(1 << 20));
    for (let round = 0; round < 3; round++) {
      await Promise.all(contents.map((bytes, i) => client.writeFile(`/before-${round}-${i}`, bytes)));
      const unmounted = engine.unmount();
      const used = contents.map((bytes, i) => client.writeFile(`/during-${round}-${i}`, bytes));
      await Promise.all([unmounted, ...used]);
      await engine.unmount();
      for (const [i, bytes] of contents.entries())
        for (const name of [`/before-${round}-${i}`, `/during-${round}-${i}`])
          expect((await client.readFile(name)).equals(bytes), name).toBe(true);
    }
    expect((await client.readdir('/')).length).toBe(3 * 16);
  } finally {
    await it.close();
  }
});
