import { constants } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { below, chance, pick, SeededRandom } from '../common/random.js';
import { BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { type OpenFile, ROOT } from './file-system-api.js';
import { segmentOf } from './layout.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;
const RECORD = 20_000;

async function mounted(count: number): Promise<{ volume: TestVolume; nodes: TestNode[]; files: OpenFile[] }> {
  const volume = await TestVolume.create({ blocks: [256, 256] });
  const nodes: TestNode[] = [];
  for (let i = 1; i <= count; i++) nodes.push(await volume.mount(i));
  await (await nodes[0]!.fs.open('/file', O_CREAT | O_RDWR, 0o644, ROOT)).close();
  const files = await Promise.all(nodes.map(({ fs }) => fs.open('/file', O_RDWR, 0, ROOT)));
  return { volume, nodes, files };
}

async function sound(volume: TestVolume, nodes: readonly TestNode[]): Promise<void> {
  for (const { fs } of nodes) await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: 0, lostSubBlocks: 0 });
}

/** Everybody writes own records in turn, interleaved as the event loop has it. */
async function writeRegions(files: readonly OpenFile[], bytesEach: number): Promise<void> {
  await Promise.all(
    files.map(async (file, index) => {
      for (let at = 0; at < bytesEach; at += RECORD)
        await file.write(index * bytesEach + at, Buffer.alloc(Math.min(RECORD, bytesEach - at), index + 1));
    }),
  );
}

test('four nodes write one file, each its own region, and exchange its status seldom', async () => {
  const { volume, nodes, files } = await mounted(4);
  const bytesEach = 3 * BLOCK_BYTES;
  await writeRegions(files, bytesEach);
  const revokes = nodes.reduce((sum, { counters }) => sum + counters.get('fs.statusRevokes'), 0);
  const shared = nodes.reduce((sum, { counters }) => sum + counters.get('fs.concurrentWrites'), 0);
  expect(shared).toBeGreaterThan(0);
  // Of 630 writes.
  expect(revokes).toBeLessThan(60);
  for (const file of files) expect((await file.stat()).sizeBytes).toBe(4 * bytesEach);
  const whole = Buffer.alloc(4 * bytesEach);
  for (const file of files) {
    expect(await file.read(0, whole)).toBe(whole.length);
    files.forEach((_, index) => {
      const region = whole.subarray(index * bytesEach, (index + 1) * bytesEach);
      expect(region.every((byte) => byte === index + 1)).toBe(true);
    });
  }
  for (const file of files) await file.close();
  await sound(volume, nodes);
});

test('I13: stat anywhere shows what any node has written, while all of them write', async () => {
  const { volume, nodes, files } = await mounted(3);
  let least = 0;
  let latestNs = 0n;
  let done = false;
  const watcher = (async () => {
    while (!done)
      for (const { fs } of nodes) {
        const [size, time] = [least, latestNs];
        const { sizeBytes, mtimeNs } = await fs.stat('/file', ROOT);
        expect(sizeBytes).toBeGreaterThanOrEqual(size);
        expect(mtimeNs).toBeGreaterThanOrEqual(time);
      }
  })();
  await Promise.all(
    files.map(async (file, index) => {
      for (let i = 0; i < 60; i++) {
        const at = (i * files.length + index) * 7000;
        const before = volume.clock.wallNs();
        await file.write(at, Buffer.alloc(7000, index + 1));
        least = Math.max(least, at + 7000);
        if (before > latestNs) latestNs = before;
      }
    }),
  );
  done = true;
  await watcher;
  expect((await files[0]!.stat()).sizeBytes).toBe(180 * 7000);
  for (const file of files) await file.close();
  await sound(volume, nodes);
});

test('hits of application threads write beside other nodes, and none of them reads past what its node knows', async () => {
  const { volume, nodes, files } = await mounted(2);
  await writeRegions(files, 2 * BLOCK_BYTES);
  // Both share it for writing, with pages that hits may write to.
  for (let i = 0; i < 3; i++)
    for (const [index, file] of files.entries()) await file.write(index * 2 * BLOCK_BYTES, Buffer.alloc(PAGE_BYTES, 9));
  const [one, two] = nodes as [TestNode, TestNode];
  expect(one.map.write(files[0]!.entry!, 100, Buffer.alloc(50, 7), 9_000_000_000_000_000_000n)).toBe(50);
  expect(two.map.write(files[1]!.entry!, 2 * BLOCK_BYTES, Buffer.alloc(50, 8), 5n)).toBe(50);
  expect(one.map.write(files[0]!.entry!, -1, Buffer.alloc(1), 5n)).toBeLessThan(0);
  const { sizeBytes, mtimeNs } = await two.fs.stat('/file', ROOT);
  expect(sizeBytes).toBe(4 * BLOCK_BYTES);
  expect(mtimeNs).toBe(9_000_000_000_000_000_000n);
  const target = Buffer.alloc(150);
  await files[1]!.read(0, target);
  expect(target.subarray(100).every((byte) => byte === 7)).toBe(true);
  for (const file of files) await file.close();
  await sound(volume, nodes);
});

test('I13: notes that come with exclusive status while an earlier revocation is being served are not passed over', async () => {
  const { volume, nodes, files } = await mounted(2);
  const [one, two] = nodes as [TestNode, TestNode];
  await writeRegions(files, BLOCK_BYTES);
  await files[0]!.write(0, Buffer.alloc(10, 3));
  await files[1]!.write(2 * BLOCK_BYTES, Buffer.alloc(10, 3));
  const { ino } = files[0]!;
  const range = { start: ino * SECTOR_BYTES, end: (ino + 1) * SECTOR_BYTES };
  expect(one.tokens.heldMode(TokenClass.status, segmentOf(ino), range.start)).toBe(TokenMode.concurrentWrite);
  await two.tokens.release(TokenClass.status, segmentOf(ino), range);
  await one.tokens.crossed(segmentOf(ino), range, TokenMode.shared);
  expect((await files[0]!.stat()).sizeBytes).toBe(2 * BLOCK_BYTES + 10);
  for (const file of files) await file.close();
  await sound(volume, nodes);
});

test('bytes of two nodes in one sector, written behind the end that the other one knows', async () => {
  const { volume, nodes, files } = await mounted(2);
  await writeRegions(files, BLOCK_BYTES);
  const at = 2 * BLOCK_BYTES + 100;
  // In turn, backwards: each writes before what the other one has written, in the same sector.
  for (let i = 9; i >= 0; i--) await files[i % 2]!.write(at + i * 10, Buffer.alloc(10, i + 1));
  const target = Buffer.alloc(100);
  expect(await files[0]!.read(at, target)).toBe(100);
  for (let i = 0; i < 10; i++) expect(target.subarray(i * 10, i * 10 + 10).every((byte) => byte === i + 1)).toBe(true);
  for (const file of files) await file.close();
  await sound(volume, nodes);
});

test('what goes out in the background makes no zeros of what others wrote behind the end that this node knows', async () => {
  const { volume, nodes, files } = await mounted(2);
  await writeRegions(files, BLOCK_BYTES);
  const at = 2 * BLOCK_BYTES;
  // From the beginning of the sector to the end that the writer knows: nothing has to be read for it if that is the end.
  for (let i = 9; i >= 0; i--) {
    await files[i % 2]!.write(at, Buffer.alloc((i + 1) * 10, i + 1));
    await nodes[i % 2]!.cache.flushAll();
  }
  const target = Buffer.alloc(100);
  expect(await files[0]!.read(at, target)).toBe(100);
  for (let i = 0; i < 10; i++) expect(target.subarray(i * 10, i * 10 + 10).every((byte) => byte === i + 1)).toBe(true);
  for (const file of files) await file.close();
  await sound(volume, nodes);
});

describe('deaths', () => {
  test('what a dead writer had not synced is lost, what the others wrote is not, and nothing comes back', async () => {
    const { volume, nodes, files } = await mounted(3);
    await writeRegions(files, BLOCK_BYTES);
    const end = 3 * BLOCK_BYTES;
    await files[0]!.write(end - 1000, Buffer.alloc(1000, 5));
    await files[1]!.write(end + 500_000, Buffer.alloc(1000, 6));
    await files[2]!.write(end + 800_000, Buffer.alloc(1000, 7));
    await nodes[2]!.cache.flushAll();
    await volume.bury(nodes[2]!);
    // Nobody has told of more than node 2 has.
    const { sizeBytes } = await files[0]!.stat();
    expect(sizeBytes).toBe(end + 501_000);
    // Growing over it shows zeros.
    await files[1]!.write(end + 900_000, Buffer.alloc(10, 8));
    const target = Buffer.alloc(1000);
    await files[0]!.read(end + 800_000, target);
    expect(target.every((byte) => byte === 0)).toBe(true);
    await files[0]!.read(end + 500_000, target);
    expect(target.every((byte) => byte === 6)).toBe(true);
    for (const file of files.slice(0, 2)) await file.close();
    await sound(volume, nodes.slice(0, 2));
  });

  test('I8: what fsync of one writer acknowledged is there after a power cut of all', async () => {
    const { volume, nodes, files } = await mounted(3);
    await writeRegions(files, BLOCK_BYTES);
    await files[1]!.write(3 * BLOCK_BYTES + 1000, Buffer.alloc(1000, 6));
    await files[1]!.sync(false);
    await files[0]!.write(3 * BLOCK_BYTES + 5000, Buffer.alloc(1000, 7));
    volume.powerOff(nodes);
    const again = await volume.mount(1);
    const file = await again.fs.open('/file', O_RDWR, 0, ROOT);
    expect((await file.stat()).sizeBytes).toBeGreaterThanOrEqual(3 * BLOCK_BYTES + 2000);
    const target = Buffer.alloc(1000);
    await file.read(3 * BLOCK_BYTES + 1000, target);
    expect(target.every((byte) => byte === 6)).toBe(true);
    await file.close();
    await sound(volume, [again]);
  });

  test('a note outlives whoever took it in and died before it was written down', async () => {
    const { volume, nodes, files } = await mounted(3);
    await writeRegions(files.slice(0, 2), BLOCK_BYTES);
    await files[1]!.write(2 * BLOCK_BYTES + 7000, Buffer.alloc(1000, 6));
    await files[0]!.write(10, Buffer.alloc(10, 1));
    expect((await files[2]!.stat()).sizeBytes).toBe(2 * BLOCK_BYTES + 8000);
    await volume.bury(nodes[2]!);
    expect((await files[0]!.stat()).sizeBytes).toBe(2 * BLOCK_BYTES + 8000);
    for (const file of files.slice(0, 2)) await file.close();
    await sound(volume, nodes.slice(0, 2));
  });
});

test.each([1, 2, 3, 4, 5, 6, 7, 8])(
  'three nodes write, read, truncate, append and stat one file as one (seed %i)',
  async (seed) => {
    const volume = await TestVolume.create({ blocks: [256, 256], seed });
    const nodes = [await volume.mount(1), await volume.mount(2), await volume.mount(3)];
    await (await nodes[0]!.fs.open('/file', O_CREAT | O_RDWR, 0o644, ROOT)).close();
    const files = await Promise.all(nodes.map(({ fs }) => fs.open('/file', O_RDWR, 0, ROOT)));
    const random = new SeededRandom(seed);
    let model = Buffer.alloc(0);
    const grow = (size: number): void => {
      if (size > model.length) model = Buffer.concat([model, Buffer.alloc(size - model.length)]);
    };
    for (let step = 0; step < 250; step++) {
      const file = pick(random, files);
      const at = below(random, chance(random, 0.1) ? 6 << 20 : 1 << 20);
      const length = 1 + below(random, chance(random, 0.2) ? 100_000 : 5_000);
      const what = random.next();
      if (what < 0.62) {
        const bytes = Buffer.alloc(length, 1 + (step % 255));
        await file.write(at, bytes);
        grow(at + length);
        bytes.copy(model, at);
      } else if (what < 0.82) {
        const target = Buffer.alloc(length);
        const count = await file.read(at, target);
        const expected = model.subarray(Math.min(at, model.length), Math.min(model.length, at + length));
        expect([step, count]).toEqual([step, expected.length]);
        expect(target.subarray(0, count).equals(expected)).toBe(true);
      } else if (what < 0.9) expect([step, (await file.stat()).sizeBytes]).toEqual([step, model.length]);
      else if (what < 0.93) {
        const size = below(random, model.length + 1000);
        await file.truncate(size);
        grow(size);
        model = Buffer.from(model.subarray(0, size));
      } else if (what < 0.95) {
        await file.write(null, Buffer.alloc(100, 3));
        model = Buffer.concat([model, Buffer.alloc(100, 3)]);
      } else if (what < 0.97) await file.sync(chance(random, 0.5));
      else await volume.clock.advance(7000);
    }
    const whole = Buffer.alloc(model.length + 1);
    expect(await files[1]!.read(0, whole)).toBe(model.length);
    expect(whole.subarray(0, model.length).equals(model)).toBe(true);
    for (const file of files) await file.close();
    await sound(volume, nodes);
  },
);
