import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { below, pick, SeededRandom } from '../common/random.js';
import { ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR, O_APPEND, O_EXCL, O_TRUNC } = constants;

/** Every error that a lost race may give. */
const RACES = new Set(['ENOENT', 'EEXIST', 'ENOTEMPTY', 'ENOTDIR', 'EISDIR', 'EINVAL', 'ESTALE', 'EPERM']);

async function anything(node: TestNode, random: SeededRandom): Promise<void> {
  const { fs } = node;
  const names = ['a', 'b', 'c'];
  const path = (): string => `/${Array.from({ length: 1 + below(random, 3) }, () => pick(random, names)).join('/')}`;
  const content = Buffer.alloc(
    below(random, 2) === 0 ? below(random, 9000) : below(random, 1_400_000),
    1 + below(random, 250),
  );
  switch (below(random, 9)) {
    case 0:
    case 1: {
      const flags = pick(random, [0, O_APPEND, O_EXCL, O_TRUNC]);
      const file = await fs.open(path(), O_CREAT | O_RDWR | flags, 0o644, ROOT);
      try {
        await file.write(below(random, 3) * 4096, content);
        if (below(random, 3) === 0) await file.sync(false);
        await file.read(0, Buffer.alloc(20_000));
        if (below(random, 4) === 0) await file.truncate(below(random, 20_000));
      } finally {
        await file.close();
      }
      return;
    }
    case 2:
    case 3:
      return fs.mkdir(path(), 0o755, ROOT);
    case 4:
      return fs.unlink(path(), ROOT);
    case 5:
      return fs.rmdir(path(), ROOT);
    case 6:
      return fs.rename(path(), path(), ROOT);
    case 7:
      return fs.link(path(), path(), ROOT);
    default: {
      await fs.readdir(path(), ROOT);
    }
  }
}

test.each([1, 2, 3, 4, 5, 6])(
  'operations side by side on three nodes leave a sound file system (seed %i)',
  async (seed) => {
    const volume = await TestVolume.create({ blocks: [120, 120], seed, mkfs: { regionBlocks: 8 } });
    const nodes = [await volume.mount(1), await volume.mount(2), await volume.mount(3)];
    const random = new SeededRandom(seed);
    const workers = nodes.flatMap((node) =>
      Array.from({ length: 3 }, async () => {
        const own = random.fork();
        for (let i = 0; i < 60; i++) {
          try {
            await anything(node, own);
          } catch (error) {
            if (!FsError.is(error) || !RACES.has(error.code)) throw error;
          }
        }
      }),
    );
    let done = false;
    const all = Promise.all(workers).finally(() => {
      done = true;
    });
    const ticking = (async () => {
      while (!done) await volume.clock.advance(50);
    })();
    await all;
    await ticking;
    for (const { fs } of nodes) await fs.unmount();
    const report = await checkVolume(volume);
    expect(report.problems).toEqual([]);
    expect(report).toMatchObject({ lostSubBlocks: 0, lostInodes: 0 });
  },
);

test('appends of two nodes to one file never overlap', async () => {
  const volume = await TestVolume.create();
  const nodes = [await volume.mount(1), await volume.mount(2)];
  await (await nodes[0]!.fs.open('/log', O_CREAT | O_RDWR, 0o644, ROOT)).close();
  await Promise.all(
    nodes.flatMap(({ fs }, index) =>
      [0, 1].map(async (writer) => {
        const file = await fs.open('/log', O_RDWR | O_APPEND, 0, ROOT);
        for (let i = 0; i < 50; i++) await file.write(null, Buffer.alloc(100, 1 + index * 2 + writer));
        await file.close();
      }),
    ),
  );
  const file = await nodes[1]!.fs.open('/log', O_RDWR, 0, ROOT);
  const content = Buffer.alloc(30_000);
  expect(await file.read(0, content)).toBe(20_000);
  await file.close();
  const counts = new Map<number, number>();
  for (let at = 0; at < 20_000; at += 100) {
    const stamp = content[at]!;
    expect(content.subarray(at, at + 100).every((byte) => byte === stamp)).toBe(true);
    counts.set(stamp, (counts.get(stamp) ?? 0) + 1);
  }
  expect([...counts.values()]).toEqual([50, 50, 50, 50]);
  for (const { fs } of nodes) await fs.unmount();
});

test('two nodes that create in directories of their own ask for tokens a bounded number of times', async () => {
  const volume = await TestVolume.create({ blocks: [256, 256] });
  const nodes = [await volume.mount(1), await volume.mount(2)];
  for (const [i, { fs }] of nodes.entries()) await fs.mkdir(`/n${i}`, 0o755, ROOT);
  const create = async ({ fs }: TestNode, prefix: string): Promise<void> => {
    for (let i = 0; i < 300; i++) await (await fs.open(`${prefix}-${i}`, O_CREAT | O_RDWR, 0o644, ROOT)).close();
  };
  await Promise.all(nodes.map((node, i) => create(node, `/n${i}/warm`)));
  const before = nodes.map(({ tokens }) => tokens.requests);
  await Promise.all(nodes.map((node, i) => create(node, `/n${i}/hot`)));
  // For the blocks that the inode file grows by, one for 256 inodes; nothing per file.
  for (const [i, { tokens }] of nodes.entries()) expect(tokens.requests - before[i]!).toBeLessThan(10);
  for (const { fs } of nodes) await fs.unmount();
});
