import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

/** Nothing is shipped because of its age: only who asks for it gets it. */
const NOTHING_GETS_OLD = { fs: { inodeWriteBehindMs: 3_600_000, backgroundIntervalMs: 3_600_000 } };
const MIB = 1 << 20;

let cluster: LocalCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});

/** Fills it up; the paths of what got in. */
async function fill(client: FileSystemClient, prefix: string): Promise<string[]> {
  for (const written: string[] = []; ; ) {
    const path = `${prefix}${written.length}`;
    try {
      await client.writeFile(path, Buffer.alloc(4 * MIB, written.length + 1));
      written.push(path);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
      await client.unlink(path);
      return written;
    }
  }
}

test('in a full file system the next write finds what any other node has just freed, libraries too', async () => {
  // With one copy: what its inode takes is small beside the file whose place it gets.
  const format = { metadataCopies: 1 as const };
  cluster = await startLocalCluster({ nodes: 2, nsdBytes: 64 * MIB, settings: NOTHING_GETS_OLD, format });
  const { engines } = cluster;
  // Two nodes that are never dialled: they can't reach each other but through a full node.
  for (const index of [2, 3])
    await cluster.start(index, { nodeId: null, listen: null, tokenServer: false, nsds: [], name: `library${index}` });
  const clients = [0, 1, 2, 3].map((index) => cluster!.client(index));
  const before = await clients[1]!.statfs('/');
  const written = await fill(clients[0]!, '/f');
  expect(written.length).toBeGreaterThan(10);
  const pairs = [
    [0, 1],
    [0, 2],
    [3, 1],
    [2, 3],
  ] as const;
  for (const [writer, remover] of pairs) {
    await clients[remover]!.unlink(written.pop()!);
    const path = `/by${writer}after${remover}`;
    await clients[writer]!.writeFile(path, Buffer.alloc(4 * MIB, 10 * writer + remover));
    const read = await clients[remover]!.readFile(path);
    expect(read.equals(Buffer.alloc(4 * MIB, 10 * writer + remover))).toBe(true);
    written.unshift(path);
    await clients[writer]!.writeFile('/too-much', Buffer.alloc(4 * MIB)).then(
      () => expect.fail('it is full'),
      (error) => expect(error).toMatchObject({ code: 'ENOSPC' }),
    );
    await clients[writer]!.unlink('/too-much');
  }
  expect(engines.reduce((sum, engine) => sum + engine.metrics.get('fs.peersSilent'), 0)).toBe(0);

  for (const path of written) await clients[3]!.unlink(path);
  const after = await clients[1]!.statfs('/');
  // But for the directory's leaves, and the inode file, which grows by a block where each node creates.
  expect(before.bfree - after.bfree).toBeLessThan((4 * MIB) / before.bsize + 64);
});
