import { pathToFileURL } from 'node:url';
import { afterEach, expect, test } from 'vitest';
import { connectThrough } from '../client/connect.js';
import { range } from '../common/byte-range.js';
import { deferred } from '../common/deferred.js';
import { type NodeId, nodeId } from '../common/ids.js';
import { MessageType } from '../protocol/message-types.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { encodeToClient } from '../token-manager/token-messages.js';
import { built } from './testing/child.js';
import { eventually } from './testing/counting.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

/** F7: a broken invariant. A node that may cache what is wrong fences itself and says why; the others go on. */
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

/** What a token server says when two nodes hold the same and neither falls. */
function contradict(cluster: LocalCluster, to: NodeId): void {
  const { fabric, membership } = cluster.engines[0]!;
  const life = membership.view.nodes.get(to)!;
  const about = { class: TokenClass.data, object: 7, mode: TokenMode.exclusive, range: range(0, 4096) };
  const items = [{ kind: 'contradiction' as const, ...about, other: nodeId(9) }];
  for (const body of encodeToClient({ epoch: fabric.epoch, toIncarnation: life.incarnation, items }))
    fabric.peer(to).send(MessageType.tokenToClient, body);
}

test('a daemon whose tokens contradict those of another fences itself and ends; the others go on', async () => {
  const cluster = await startLocalCluster({ nodes: 2, nsds: 1, nsdBytes: 128 << 20, pagePoolBytes: 32 << 20 });
  cleanups.push(() => cluster.close());
  const victim = cluster.engines[1]!;
  const client = cluster.client(1);
  const file = await client.open('/file', 'w+');
  await file.write('dirty');
  const failed = deferred<Error>();
  victim.onFailure((why) => failed.resolve(why));
  contradict(cluster, nodeId(2));
  expect((await failed.promise).message).toMatch(/this node and node 9 both hold/);
  expect(victim.counters()['tokens.violations']).toBe(1);
  await expect(file.read(Buffer.alloc(5), 0, 5, 0)).rejects.toThrow();
  // What the process does then.
  await victim.close();
  await cluster.client(0).writeFile('/file', 'theirs');
  expect(await cluster.client(0).readFile('/file', 'utf8')).toBe('theirs');
});

test('a library whose tokens contradict those of a node fails its handles with why; its program lives on', async () => {
  const cluster = await startLocalCluster({ nodes: 1, nsdBytes: 128 << 20, pagePoolBytes: 32 << 20 });
  cleanups.push(() => cluster.close());
  const { etcd, clusterName, keyFile } = cluster;
  const fs = await connectThrough(
    {
      cluster: { etcd: [etcd], name: clusterName, keyFile },
      fileSystem: 'test',
      nodeName: 'library',
      pagePoolBytes: 32 << 20,
    },
    { entry: pathToFileURL(built('client/worker.js')) },
    pathToFileURL(built('daemon/engine.js')),
  );
  cleanups.push(() => fs.close());
  const file = await fs.open('/file', 'w+');
  await file.write('dirty');
  const { membership } = cluster.engines[0]!;
  const self = [...membership.view.nodes.values()].find(({ name }) => name === 'library')!;
  contradict(cluster, self.nodeId);
  await eventually('its handles fail', () => file.stat().then(...([() => false, () => true] as const)));
  await expect(file.stat()).rejects.toThrow(/both hold/);
  expect(() => file.readSync(Buffer.alloc(5), 0, 5, 0)).toThrow(/both hold/);
  await expect(fs.readFile('/file')).rejects.toThrow(/both hold/);
  await cluster.client(0).writeFile('/file', 'theirs');
  expect(await cluster.client(0).readFile('/file', 'utf8')).toBe('theirs');
});
