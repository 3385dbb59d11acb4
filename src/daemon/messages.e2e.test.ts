import { afterEach, expect, test } from 'vitest';
import { ROOT } from '../fs/file-system-api.js';
import { counting, eventually } from './testing/counting.js';
import { type LocalCluster, type LocalClusterOptions, startLocalCluster } from './testing/local-cluster.js';

/**
 * What the design promises about messages, asserted from counters: `tokens.messagesOut` counts every message of the token protocol,
 * those to the node itself too; `fabric.messagesOut` and `fabric.transfersOut` whatever a node began to send to another one.
 *
 * Writing out is input and output, not a price of coherence: where messages are counted, nothing gets old enough for it.
 */
const NOTHING_GETS_OLD = {
  cache: { writeBehindAgeMs: 3_600_000, workingIdleMs: 3_600_000 },
  fs: { inodeWriteBehindMs: 3_600_000 },
};

let cluster: LocalCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
});
async function start(options: LocalClusterOptions = {}): Promise<LocalCluster> {
  cluster = await startLocalCluster({ settings: NOTHING_GETS_OLD, ...options });
  return cluster;
}

/** The token messages of a moment ago have been answered, and nobody sends any more. */
async function quiet({ engines }: LocalCluster): Promise<void> {
  let last = -1;
  await eventually('no token message is under way', () => {
    const out = engines.reduce((sum, engine) => sum + engine.metrics.get('tokens.messagesOut'), 0);
    const arrived = engines.reduce((sum, engine) => sum + engine.metrics.get('tokens.messagesIn'), 0);
    const still = out === last && arrived === out;
    last = out;
    return still;
  });
}

const bytes = (length: number, seed: number): Buffer => Buffer.alloc(length, seed);

test('ten thousand re-reads, rewrites and re-opens of an unshared file cost no message', async () => {
  const it = await start();
  const client = it.client(0);
  const other = it.client(1);
  // The others are there and have the same directory in use.
  await other.writeFile('/theirs', 'something');
  await client.mkdir('/mine');
  await client.writeFile('/mine/file', bytes(256 << 10, 1));
  const file = await client.open('/mine/file', 'r+');
  const target = Buffer.alloc(4096);
  await file.read(target, 0, 4096, 0);
  await quiet(it);

  const count = counting(it.engines);
  for (let i = 0; i < 10_000; i++) {
    const at = (i * 4096) % (256 << 10);
    const { bytesRead } = await file.read(target, 0, 4096, at);
    expect(bytesRead).toBe(4096);
  }
  for (let i = 0; i < 10_000; i++) {
    target.fill(i & 0xff);
    await file.write(target, 0, 4096, (i * 4096) % (256 << 10));
  }
  for (let i = 0; i < 10_000; i++) {
    const again = await client.open('/mine/file', 'r+');
    await again.close();
  }
  const since = count();
  expect(since.sum('tokens.messagesOut')).toBe(0);
  expect(since.sum('fabric.messagesOut')).toBe(0);
  expect(since.sum('fabric.transfersOut')).toBe(0);
  expect(since.of(0, 'map.readHits')).toBe(10_000);
  expect(since.of(0, 'map.writeHits')).toBeGreaterThan(9_000);
  await file.close();
});

test('the same through the engine, without the map of hits, costs no message either', async () => {
  const it = await start();
  const { fileSystem } = it.engines[0]!;
  const file = await fileSystem.open('/file', 0o102, 0o644, ROOT);
  const piece = bytes(4096, 7);
  for (let at = 0; at < 256 << 10; at += 4096) await file.write(at, piece);
  await quiet(it);
  const count = counting(it.engines);
  for (let i = 0; i < 10_000; i++) {
    const at = (i * 4096) % (256 << 10);
    if (i % 2 === 0) await file.read(at, piece);
    else await file.write(at, piece);
  }
  const since = count();
  expect(since.sum('tokens.messagesOut')).toBe(0);
  expect(since.sum('fabric.messagesOut')).toBe(0);
  await file.close();
});

test('creating, writing and closing two thousand small files costs a handful of token messages', async () => {
  const it = await start();
  const client = it.client(0);
  const content = bytes(6000, 5);
  const create = async (directory: string, count: number): Promise<void> => {
    await client.mkdir(directory);
    let next = 0;
    const lane = async (): Promise<void> => {
      for (let i = next++; i < count; i = next++) {
        const file = await client.open(`${directory}/f${i}`, 'wx');
        await file.write(content, 0, content.length, 0);
        await file.close();
      }
    };
    await Promise.all(Array.from({ length: 16 }, lane));
  };
  // Batches of inode numbers have grown by then.
  await create('/warm-up', 800);
  await quiet(it);

  const count = counting(it.engines);
  await create('/measured', 2000);
  await quiet(it);
  const since = count();
  // Two for each batch of 1024 numbers; and for allocation regions, if one is used up.
  expect(since.sum('tokens.messagesOut')).toBeLessThanOrEqual(10);
});

test("a second node's first conflicting access to an open file is 1 request, 1 revoke, 1 answer, 1 grant", async () => {
  // All tokens are served by the third node, so that every message is between two of them.
  const it = await start({ configure: (index) => ({ tokenServer: index === 2 }) });
  const [one, two] = [it.client(0), it.client(1)];
  const writer = await one.open('/file', 'w+');
  await writer.write(bytes(64 << 10, 1), 0, 64 << 10, 0);
  const reader = await two.open('/file', 'r');
  await reader.read(Buffer.alloc(10), 0, 10, 0);
  // Node 1 has status and data exclusively again, and bytes that nobody else has seen.
  await writer.write(bytes(64 << 10, 2), 0, 64 << 10, 0);
  await quiet(it);

  const count = counting(it.engines);
  const target = Buffer.alloc(64 << 10);
  const { bytesRead } = await reader.read(target, 0, target.length, 0);
  expect(bytesRead).toBe(target.length);
  expect(target.equals(bytes(64 << 10, 2))).toBe(true);
  await quiet(it);
  const since = count();
  expect({
    request: since.of(1, 'tokens.messagesOut'),
    revokeAndGrant: since.of(2, 'tokens.messagesOut'),
    answer: since.of(0, 'tokens.messagesOut'),
  }).toEqual({ request: 1, revokeAndGrant: 2, answer: 1 });
  // Status and data travel together.
  expect(since.of(0, 'tokens.revokesServed')).toBe(2);
  expect(since.of(1, 'tokens.grants')).toBe(2);
  await writer.close();
  await reader.close();
});

test('eight sequential writers on eight segments of one file exchange data tokens at most twice each, and its status only for space', async () => {
  const writers = 8;
  const segmentBytes = 1 << 20;
  const recordBytes = 32 << 10;
  const it = await start({ nodes: writers, nsds: 3, nsdBytes: 256 << 20, pagePoolBytes: 32 << 20 });
  const clients = it.engines.map((_, index) => it.client(index));
  await clients[0]!.writeFile('/file', '');
  const files = await Promise.all(clients.map((client) => client.open('/file', 'r+')));
  const count = counting(it.engines);
  await Promise.all(
    files.map(async (file, index) => {
      const record = bytes(recordBytes, index + 1);
      for (let at = 0; at < segmentBytes; at += recordBytes)
        await file.write(record, 0, recordBytes, index * segmentBytes + at);
    }),
  );
  const since = count();
  const exchanges = it.engines.map((_, index) => since.of(index, 'cache.revokes'));
  process.stdout.write(
    `eight writers: ${since.sum('cache.revokes')} data revokes (${exchanges.join(' ')}), ` +
      `${since.sum('fs.statusRevokes')} status revokes, ${since.sum('tokens.messagesOut')} token messages\n`,
  );
  expect(since.sum('cache.revokes')).toBeLessThanOrEqual(2 * writers);
  // Of 256 writes; each writer comes to space exclusively, and every other one may be called back for it.
  expect(since.sum('fs.statusRevokes')).toBeLessThanOrEqual(writers * writers);
  expect(since.sum('fs.concurrentWrites')).toBeGreaterThanOrEqual(writers / 2);
  const whole = await clients[7]!.readFile('/file');
  expect(whole.length).toBe(writers * segmentBytes);
  for (let index = 0; index < writers; index++) {
    const part = whole.subarray(index * segmentBytes, (index + 1) * segmentBytes);
    expect(part.equals(bytes(segmentBytes, index + 1))).toBe(true);
  }
  await Promise.all(files.map((file) => file.close()));
});
