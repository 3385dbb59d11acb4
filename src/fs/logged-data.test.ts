import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { WHOLE } from '../common/byte-range.js';
import { below, SeededRandom } from '../common/random.js';
import { type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume, turns } from './testing.js';

/** Small synchronous writes: into the log first, to their place later. */
const { O_CREAT, O_RDWR } = constants;
const NEVER_OLD = { inodeWriteBehindMs: 3_600_000 };
const LOG = { mkfs: { logBytes: 4 << 20 } };
const KIB = 1024;

const openFile = (node: TestNode, path: string): Promise<OpenFile> => node.fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
async function contentOf(node: TestNode, path: string): Promise<Buffer> {
  const file = await node.fs.open(path, constants.O_RDONLY, 0, ROOT);
  const { sizeBytes } = await file.stat();
  const bytes = Buffer.alloc(sizeBytes);
  await file.read(0, bytes);
  await file.close();
  return bytes;
}
/** A file of 64 KiB in place, and nothing of it in the log. */
async function settled(node: TestNode, path: string): Promise<OpenFile> {
  const file = await openFile(node, path);
  await file.write(0, Buffer.alloc(64 * KIB, 1));
  await node.fs.sync();
  return file;
}
const dropPages = async (file: OpenFile): Promise<void> => {
  file.hint('dontNeed', 0, WHOLE.end);
  for (let i = 0; i < 20; i++) await turns();
};

test('I8: a small synced write is in the log and not in place, is read from there, and survives its node', async () => {
  const volume = await TestVolume.create(LOG);
  const node = await volume.mount(1, NEVER_OLD);
  const file = await settled(node, '/f');
  const before = node.counters.get('log.dataSectors');
  await file.write(8 * KIB, Buffer.alloc(4 * KIB, 2));
  const flushes = node.nsds.flushes.length;
  await file.sync(false);
  expect(node.counters.get('log.dataSectors') - before).toBe(1);
  expect(node.nsds.flushes.length - flushes).toBe(1);
  const inPlace = volume.nsds.devices.some((device) =>
    [...device.values()].some((sector) => sector.every((byte) => byte === 2)),
  );
  expect(inPlace).toBe(false);
  await dropPages(file);
  const read = Buffer.alloc(4 * KIB);
  await file.read(8 * KIB, read);
  expect(read.every((byte) => byte === 2)).toBe(true);
  await volume.bury(node);
  const other = await volume.mount(2);
  const expected = Buffer.alloc(64 * KIB, 1);
  expected.fill(2, 8 * KIB, 12 * KIB);
  expect((await contentOf(other, '/f')).equals(expected)).toBe(true);
  await other.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0 });
});

test('T6, L2: before its token leaves it is in place; what the next holder wrote is not redone over', async () => {
  const volume = await TestVolume.create(LOG);
  const [one, two] = [await volume.mount(1, NEVER_OLD), await volume.mount(2, NEVER_OLD)];
  const file = await settled(one, '/f');
  await file.write(0, Buffer.alloc(4 * KIB, 2));
  await file.sync(false);
  await file.write(4 * KIB, Buffer.alloc(4 * KIB, 3));
  await file.sync(true);
  const theirs = await openFile(two, '/f');
  const read = Buffer.alloc(8 * KIB);
  await theirs.read(0, read);
  expect([read[0], read[4 * KIB]]).toEqual([2, 3]);
  await theirs.write(0, Buffer.alloc(4 * KIB, 4));
  await theirs.sync(false);
  await volume.bury(one);
  await volume.bury(two);
  const third = await volume.mount(3);
  const content = await contentOf(third, '/f');
  expect([content[0], content[4 * KIB], content[8 * KIB]]).toEqual([4, 3, 1]);
});

test('what was cut off or removed after it was synced is not redone into space that is another file’s by now', async () => {
  const volume = await TestVolume.create(LOG);
  const node = await volume.mount(1, NEVER_OLD);
  const cut = await settled(node, '/cut');
  const gone = await settled(node, '/gone');
  for (const file of [cut, gone])
    for (let at = 0; at < 64 * KIB; at += 16 * KIB) {
      await file.write(at, Buffer.alloc(4 * KIB, 2));
      await file.sync(false);
    }
  await cut.truncate(4 * KIB);
  await gone.close();
  await node.fs.unlink('/gone', ROOT);
  await node.fs.sync();
  await volume.clock.advance(10_000);
  const next = await openFile(node, '/next');
  await next.write(0, Buffer.alloc(400 * KIB, 5));
  await next.sync(false);
  await cut.truncate(64 * KIB);
  await cut.sync(false);
  await volume.bury(node);
  const other = await volume.mount(2);
  const content = await contentOf(other, '/cut');
  expect(content.subarray(0, 4 * KIB).every((byte) => byte === 2)).toBe(true);
  expect(content.subarray(4 * KIB).every((byte) => byte === 0)).toBe(true);
  expect((await contentOf(other, '/next')).every((byte) => byte === 5)).toBe(true);
  await other.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0 });
});

test('what is too much for the log goes to its place, and a log that is full of data is emptied', async () => {
  const volume = await TestVolume.create({ mkfs: { logBytes: 1 << 20 } });
  const node = await volume.mount(1, NEVER_OLD);
  const file = await settled(node, '/f');
  const before = node.counters.get('log.dataSectors');
  await file.write(0, Buffer.alloc(64 * KIB, 2));
  await file.sync(false);
  expect(node.counters.get('log.dataSectors')).toBe(before);
  for (let i = 0; i < 600; i++) {
    await file.write((i % 16) * 4 * KIB, Buffer.alloc(4 * KIB, i));
    await file.sync(false);
  }
  expect(node.counters.get('log.checkpoints')).toBeGreaterThan(0);
  await volume.bury(node);
  const other = await volume.mount(2);
  const content = await contentOf(other, '/f');
  for (let i = 584; i < 600; i++) expect(content[(i % 16) * 4 * KIB]).toBe(i & 0xff);
});

/** Two nodes and some files, of which every one has a model. */
test.each([1, 2, 3, 4])(
  'synced bytes survive any death, in any order of writes, cuts, removals and moves (seed %d)',
  async (seed) => {
    const random = new SeededRandom(seed);
    const volume = await TestVolume.create({ blocks: [96, 96], ...LOG });
    const keeper = await volume.mount(9);
    const models = new Map<string, { bytes: Buffer; synced: boolean }>();
    for (let life = 0; life < 3; life++) {
      const nodes = [await volume.mount(1, NEVER_OLD), await volume.mount(2)];
      for (let step = 0; step < 150; step++) {
        const node = nodes[below(random, 2)]!;
        const path = `/f${below(random, 5)}`;
        const model = models.get(path) ?? { bytes: Buffer.alloc(0), synced: false };
        const what = below(random, 12);
        if (what === 0 && models.has(path)) {
          await node.fs.unlink(path, ROOT);
          // Durable with the next sync of anything.
          models.delete(path);
          const other = await openFile(node, '/sync');
          await other.sync(false);
          await other.close();
          continue;
        }
        const file = await openFile(node, path);
        if (what === 1) {
          const size = below(random, 200_000);
          await file.truncate(size);
          const bytes = Buffer.alloc(size);
          model.bytes.copy(bytes);
          model.bytes = bytes;
        } else if (what === 2) await dropPages(file);
        else if (what === 3) await volume.clock.advance(below(random, 8_000));
        else if (what < 9) {
          const at = below(random, Math.min(150_000, model.bytes.length + 20_000));
          const length = 1 + below(random, below(random, 4) === 0 ? 90_000 : 9_000);
          const written = Buffer.alloc(length, 1 + below(random, 255));
          await file.write(at, written);
          const bytes = Buffer.alloc(Math.max(model.bytes.length, at + length));
          model.bytes.copy(bytes);
          written.copy(bytes, at);
          model.bytes = bytes;
        }
        const read = Buffer.alloc(model.bytes.length);
        expect((await file.stat()).sizeBytes).toBe(read.length);
        await file.read(0, read);
        expect(read.equals(model.bytes)).toBe(true);
        await file.sync(false);
        models.set(path, model);
        await file.close();
      }
      for (const node of nodes) await volume.bury(node);
      for (const [path, { bytes }] of models) {
        const found = await contentOf(keeper, path);
        expect(found.equals(bytes) ? path : `${path} differs`).toBe(path);
      }
    }
    await keeper.fs.unmount();
    expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  },
);
