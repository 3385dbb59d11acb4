import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { nsdIndex } from '../common/ids.js';
import { below, SeededRandom } from '../common/random.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import { type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_DIRECT, O_RDWR, O_SYNC } = constants;
const sound = { problems: [], lostSubBlocks: 0, lostInodes: 0 };
const open = ({ fs }: TestNode, flags = 0): Promise<OpenFile> => fs.open('/f', O_CREAT | O_RDWR | flags, 0o644, ROOT);

async function bytesOf(file: OpenFile, start: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length, 0xee);
  return bytes.subarray(0, await file.read(start, bytes));
}

test('direct reads and writes see what is dirty here and elsewhere, and are seen at once', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const two = await volume.mount(2);
  const cached = await open(one);
  const direct = await open(one, O_DIRECT);
  const elsewhere = await open(two);
  const directElsewhere = await open(two, O_DIRECT);
  expect(direct.entry).toBeNull();
  await cached.write(0, Buffer.alloc(20_000, 1));
  expect((await bytesOf(direct, 0, 32_768)).equals(Buffer.alloc(20_000, 1))).toBe(true);
  expect((await bytesOf(directElsewhere, 16_384, 8192)).equals(Buffer.alloc(3616, 1))).toBe(true);
  await bytesOf(elsewhere, 0, 20_000);
  await cached.write(4096, Buffer.alloc(10, 9));
  await direct.write(4096, Buffer.alloc(8192, 2));
  for (const file of [cached, direct, elsewhere, directElsewhere]) {
    const bytes = await bytesOf(file, 0, 32_768);
    expect(bytes.length).toBe(20_000);
    expect([bytes[0], bytes[4096], bytes[12_287], bytes[12_288], bytes[19_999]]).toEqual([1, 2, 2, 1, 1]);
  }
  await directElsewhere.write(2 * BLOCK_BYTES, Buffer.alloc(3 * BLOCK_BYTES, 3));
  expect((await cached.stat()).sizeBytes).toBe(5 * BLOCK_BYTES);
  const bytes = await bytesOf(cached, 0, 5 * BLOCK_BYTES);
  expect(bytes.subarray(20_000, 2 * BLOCK_BYTES).every((byte) => byte === 0)).toBe(true);
  expect(bytes.subarray(2 * BLOCK_BYTES).every((byte) => byte === 3)).toBe(true);
  for (const file of [cached, direct, elsewhere, directElsewhere]) await file.close();
  await one.fs.unmount();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('EINVAL for what is not whole sectors; an append needs an end that is', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount();
  const direct = await open(node, O_DIRECT | O_SYNC);
  const wrong = { code: 'EINVAL' };
  await expect(direct.write(1, Buffer.alloc(4096))).rejects.toMatchObject(wrong);
  await expect(direct.write(0, Buffer.alloc(4095))).rejects.toMatchObject(wrong);
  await expect(direct.read(512, Buffer.alloc(4096))).rejects.toMatchObject(wrong);
  await expect(direct.read(0, Buffer.alloc(100))).rejects.toMatchObject(wrong);
  await direct.write(null, Buffer.alloc(4096, 1));
  await direct.write(null, Buffer.alloc(4096, 2));
  expect((await bytesOf(direct, 4096, 4096))[0]).toBe(2);
  expect(await direct.read(8192, Buffer.alloc(4096))).toBe(0);
  await direct.truncate(8000);
  await expect(direct.write(null, Buffer.alloc(4096))).rejects.toMatchObject(wrong);
  await direct.close();
  await node.fs.unmount();
});

test('what a direct write that failed put behind the end is never seen', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount();
  const direct = await open(node, O_DIRECT);
  await direct.write(0, Buffer.alloc(4096, 1));
  await direct.sync(false);
  let writes = 0;
  volume.nsds.failWhen((op) => op === 'nsd.write' && ++writes === 4);
  await expect(direct.write(4096, Buffer.alloc(3 * BLOCK_BYTES, 2))).rejects.toMatchObject({ code: 'EIO' });
  volume.nsds.failWhen(null);
  expect((await direct.stat()).sizeBytes).toBe(4096);
  await direct.truncate(2 * BLOCK_BYTES);
  expect((await bytesOf(direct, 4096, BLOCK_BYTES)).every((byte) => byte === 0)).toBe(true);
  await direct.close();
  await node.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('what it could not take back either is never seen, not even by another node', async () => {
  const volume = await TestVolume.create();
  const [one, two] = [await volume.mount(1), await volume.mount(2)];
  const direct = await open(one, O_DIRECT);
  await direct.write(0, Buffer.alloc(4096, 1));
  await direct.sync(false);
  let writes = 0;
  volume.nsds.failWhen((op) => {
    if (op !== 'nsd.write' || ++writes < 4) return false;
    for (const nsd of volume.nsds.blocks.keys()) volume.nsds.away.add(nsdIndex(nsd));
    return true;
  });
  await expect(direct.write(4096, Buffer.alloc(3 * BLOCK_BYTES, 2))).rejects.toMatchObject({ code: 'EIO' });
  volume.nsds.failWhen(null);
  volume.nsds.away.clear();
  const other = await open(two);
  await other.truncate(2 * BLOCK_BYTES);
  expect((await bytesOf(other, 4096, BLOCK_BYTES)).every((byte) => byte === 0)).toBe(true);
  for (const file of [direct, other]) await file.close();
  for (const { fs } of [one, two]) await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test.each([1, 2, 3])('direct and cached users of one file on two nodes see one file (seed %d)', async (seed) => {
  const random = new SeededRandom(seed);
  const volume = await TestVolume.create({ poolPages: 512 });
  const nodes = [await volume.mount(1), await volume.mount(2)];
  const files: OpenFile[] = [];
  for (const node of nodes) files.push(await open(node), await open(node, O_DIRECT));
  const model = Buffer.alloc(3 * BLOCK_BYTES);
  let size = 0;
  for (let step = 0; step < 150; step++) {
    const file = files[below(random, 4)]!;
    const start = below(random, model.length / SECTOR_BYTES) * SECTOR_BYTES;
    const length = Math.min(model.length - start, (1 + below(random, 40)) * SECTOR_BYTES);
    if (below(random, 2) === 0) {
      const bytes = Buffer.alloc(length, step + 1);
      await file.write(start, bytes);
      bytes.copy(model, start);
      size = Math.max(size, start + length);
    } else {
      const end = Math.max(start, Math.min(size, start + length));
      expect((await bytesOf(file, start, length)).equals(model.subarray(start, end))).toBe(true);
    }
    if (step % 40 === 39) await nodes[below(random, 2)]!.tokens.revokeAll();
  }
  for (const file of files) await file.sync(false);
  volume.powerOff(nodes);
  const last = await volume.mount(3);
  expect((await bytesOf(await open(last), 0, model.length)).equals(model.subarray(0, size))).toBe(true);
  await last.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});
