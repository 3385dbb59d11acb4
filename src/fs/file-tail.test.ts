import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { SECTOR_BYTES } from '../common/units.js';
import { type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;
const SIZE = 3 * SECTOR_BYTES + 1000;

const open = (node: TestNode): Promise<OpenFile> => node.fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
async function bytesOf(file: OpenFile, start: number, end: number): Promise<Buffer> {
  const bytes = Buffer.alloc(end - start, 0xee);
  expect(await file.read(start, bytes)).toBe(end - start);
  return bytes;
}

/** Node 1 syncs SIZE bytes, then writes behind them; the data reaches the NSDs, the inode doesn't, and it dies. */
async function cutShort(volume: TestVolume): Promise<void> {
  const node = await volume.mount(1);
  const file = await open(node);
  await file.write(0, Buffer.alloc(SIZE, 1));
  await node.fs.sync();
  await file.write(SIZE, Buffer.alloc(2 * SECTOR_BYTES, 0xdd));
  await node.cache.get(file.ino)!.flush();
  await volume.bury(node);
}

const growths = {
  'a write behind a gap': (file: OpenFile) => file.write(SIZE + 5000, Buffer.alloc(1, 2)),
  'a truncation upwards': (file: OpenFile) => file.truncate(SIZE + 5001),
  'an append, then a truncation': async (file: OpenFile) => {
    await file.write(null, Buffer.alloc(10, 0));
    await file.truncate(SIZE + 5001);
  },
};
for (const [name, grow] of Object.entries(growths)) {
  test(`${name}: what a dead node left behind the end reads as zeros, here and elsewhere`, async () => {
    const volume = await TestVolume.create();
    await cutShort(volume);
    const two = await volume.mount(2);
    const file = await open(two);
    expect((await file.stat()).sizeBytes).toBe(SIZE);
    await bytesOf(file, 0, SIZE);
    await grow(file);
    const gap = (from: OpenFile) => bytesOf(from, SIZE, SIZE + 5000);
    expect((await gap(file)).every((byte) => byte === 0)).toBe(true);
    const three = await volume.mount(3);
    const other = await open(three);
    expect((await gap(other)).every((byte) => byte === 0)).toBe(true);
    expect((await bytesOf(other, 0, SIZE)).every((byte) => byte === 1)).toBe(true);
    await file.close();
    await other.close();
    await two.fs.unmount();
    await three.fs.unmount();
    expect((await checkVolume(volume)).problems).toEqual([]);
  });
}

test.each(['the node itself', 'another node'])(
  '%s finds zeros where a failed write left bytes behind the end',
  async (who) => {
    const volume = await TestVolume.create();
    const node = await volume.mount(1);
    const file = await open(node);
    await file.write(0, Buffer.alloc(SIZE, 1));
    await node.fs.sync();
    // A piece is in, the next one fails, and the first can't be taken back.
    const cached = node.cache.get(file.ino)!;
    await cached.write(SIZE, Buffer.alloc(2 * SECTOR_BYTES, 0xdd), { onCopied: () => undefined });
    await cached.flush();
    node.backing.leftBehindEnd(file.ino);
    const grower = who === 'another node' ? await volume.mount(2) : node;
    const other = await open(grower);
    await other.truncate(SIZE + 5000);
    expect((await bytesOf(other, SIZE, SIZE + 5000)).every((byte) => byte === 0)).toBe(true);
    expect((await bytesOf(file, SIZE, SIZE + 5000)).every((byte) => byte === 0)).toBe(true);
    expect((await bytesOf(file, 0, SIZE)).every((byte) => byte === 1)).toBe(true);
  },
);

test('while the tail is in doubt no hit writes; afterwards the doubt is over for every node of the epoch', async () => {
  const volume = await TestVolume.create();
  await cutShort(volume);
  const two = await volume.mount(2);
  const file = await open(two);
  await bytesOf(file, 0, SIZE);
  const entry = two.cache.get(file.ino)!.entry!;
  expect(two.map.write(entry, SIZE + 4000, Buffer.alloc(1), 0n)).toBeLessThan(0);
  await file.write(0, Buffer.alloc(1, 1));
  expect(two.counters.get('fs.tailsCleared')).toBe(1);
  const three = await volume.mount(3);
  const other = await open(three);
  await other.write(SIZE + 100, Buffer.alloc(1, 3));
  expect(three.counters.get('fs.tailsCleared')).toBe(0);
  expect((await bytesOf(file, SIZE, SIZE + 100)).every((byte) => byte === 0)).toBe(true);
});

test('a dead node whose successor dies before it wrote anything leaves the doubt', async () => {
  const volume = await TestVolume.create();
  await cutShort(volume);
  const two = await volume.mount(2);
  const touched = await open(two);
  await touched.setAttributes({ mode: 0o600 }, ROOT);
  await touched.sync(false);
  await volume.bury(two);
  const three = await volume.mount(3);
  const file = await open(three);
  await file.truncate(SIZE + 5000);
  expect((await bytesOf(file, SIZE, SIZE + 5000)).every((byte) => byte === 0)).toBe(true);
});

test('a small file that a truncation makes longer has its zeros in the inode, whatever is logged of it next', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount(1);
  const file = await open(node);
  await file.write(0, Buffer.alloc(165, 1));
  await file.sync(false);
  await file.truncate(1657);
  await file.sync(false);
  await node.fs.link('/f', '/g', ROOT);
  await file.close();
  await node.fs.unmount();
  const next = await volume.mount(2);
  const found = await bytesOf(await next.fs.open('/g', O_RDWR, 0, ROOT), 0, 1657);
  expect(found.equals(Buffer.concat([Buffer.alloc(165, 1), Buffer.alloc(1657 - 165)]))).toBe(true);
  await next.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [] });
});
