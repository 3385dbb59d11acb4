import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { BLOCK_BYTES } from '../common/units.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';
import { ROOT } from './file-system-api.js';
import { nthSegment } from './inode-numbers.js';
import { checkVolume, TestVolume } from './testing.js';

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
