import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { nextSectorVersion } from '../common/sector-version.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import { INODES_PER_SEGMENT, TokenClass, TokenMode } from '../token-manager/token.js';
import { ROOT } from './file-system-api.js';
import { nthSegment } from './inode-numbers.js';
import { metadataOf } from './metadata-extents.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;

test.each([1, 2, 3, 6, 64, 65, 100])(
  "of %d segments each node uses every one once, the one that is everybody's last",
  (segments) => {
    for (const node of [1, 2, 7, 200]) {
      const order = Array.from({ length: segments }, (_, n) => nthSegment(node, n, segments));
      expect(new Set(order).size).toBe(segments);
      expect(order.at(-1)).toBe(0);
      // And then anew.
      expect(nthSegment(node, segments, segments)).toBe(order[0]);
    }
  },
);

test('eight nodes side by side have three segments each before they meet', () => {
  const used = new Set<number>();
  for (let node = 1; node <= 8; node++) for (let n = 0; n < 3; n++) used.add(nthSegment(node, n, 64));
  expect(used.size).toBe(24);
});

test('batches of numbers grow while they are used up, and a segment that is used up leads to the next without anybody waiting', async () => {
  const volume = await TestVolume.create({ blocks: [2048], mkfs: { segmentCount: 4 } });
  const { fs, counters } = await volume.mount();
  const inos: number[] = [];
  for (let i = 0; inos.length < INODES_PER_SEGMENT + 50; i++) {
    if (i % 1000 === 0) await fs.mkdir(`/d${i}`, 0o755, ROOT);
    const file = await fs.open(`/d${i - (i % 1000)}/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
    inos.push(file.ino);
    await file.close();
  }
  expect(new Set(inos.map((ino) => Math.floor(ino / INODES_PER_SEGMENT)))).toHaveProperty('size', 2);
  // 256, 512, and then 1024 at a time.
  expect(counters.get('fs.numberBatches')).toBeLessThanOrEqual(8);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('where the inode file has no room for a large batch it gets a small one', async () => {
  const volume = await TestVolume.create({ blocks: [512], mkfs: { segmentCount: 4 } });
  const { fs, counters } = await volume.mount();
  const create = async (name: string): Promise<void> => (await fs.open(name, O_CREAT | O_RDWR, 0o644, ROOT)).close();
  await create('/first');
  const filler = await fs.open('/filler', O_CREAT | O_RDWR, 0o644, ROOT);
  let blocks = 0;
  for (const step of [64, 1])
    try {
      for (;;) {
        await filler.allocate('allocate', blocks * BLOCK_BYTES, step * BLOCK_BYTES);
        blocks += step;
      }
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
    }
  // One block is left.
  await filler.truncate((blocks - 1) * BLOCK_BYTES);
  await fs.sync();
  await fs.statfs();
  for (let i = 0; i < 400; i++) await create(`/f${i}`);
  expect(counters.get('fs.numberBatchesCut')).toBe(1);
  await filler.close();
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: 0 });
});

/** As one who makes a copy good: what is there once more, of a later version, under the token that orders the writes of that sector. */
async function writeAnew(volume: TestVolume, node: TestNode, ino: number): Promise<void> {
  const range = { start: ino * SECTOR_BYTES, end: (ino + 1) * SECTOR_BYTES };
  const object = Math.floor(ino / INODES_PER_SEGMENT);
  const item = { class: TokenClass.status, object, mode: TokenMode.exclusive, required: range, desired: range };
  const pins = await node.tokens.acquire([item]);
  const storage = volume.storage();
  for await (const { kind, extent, first } of metadataOf(storage, node.fs.superblock)) {
    if (kind !== 'inodes' || extent === null || ino < first || first + extent.count <= ino) continue;
    const place = { nsd: extent.nsd, sector: extent.sector + ino - first };
    const memory = storage.arena.tryAllocate(SECTOR_BYTES)!;
    const versions = new Uint32Array(1);
    await storage.nsds.read([{ ...place, memory, versions }]);
    await storage.nsds.write([{ ...place, memory, versions: versions.map(nextSectorVersion) }]);
    await storage.nsds.flush([place.nsd]);
  }
  pins.release();
}

test('a file made under a number in stock that another node has made good meanwhile is there after its node died (I8)', async () => {
  const volume = await TestVolume.create({ mkfs: { metadataCopies: 2 } });
  const node = await volume.mount();
  const other = await volume.mount(2);
  const create = async (name: string): Promise<number> => {
    const file = await node.fs.open(name, O_CREAT | O_RDWR, 0o644, ROOT);
    await file.sync(false);
    await file.close();
    return file.ino;
  };
  const first = await create('/first');
  // For the second time it is of a number whose token this node has not.
  for (const number of [first + 1, first + 2, first + 1]) await writeAnew(volume, other, number);
  expect([await create('/second'), await create('/third')]).toEqual([first + 1, first + 2]);
  await volume.bury(node);
  for (const name of ['/first', '/second', '/third']) expect((await other.fs.stat(name, ROOT)).nlink).toBe(1);
  await other.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [] });
});
