import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { below, SeededRandom } from '../common/random.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import { type AllocateMode, type FileSystem, type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;
const open = (fs: FileSystem, path = '/f'): Promise<OpenFile> => fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);

async function bytesOf(file: OpenFile, start = 0, end?: number): Promise<Buffer> {
  const to = end ?? (await file.stat()).sizeBytes;
  const bytes = Buffer.alloc(to - start, 0xee);
  expect(await file.read(start, bytes)).toBe(to - start);
  return bytes;
}
const isZero = (bytes: Buffer): boolean => bytes.every((byte) => byte === 0);
const sound = { problems: [], lostSubBlocks: 0, lostInodes: 0 };

/** Where data is, as pairs of offsets. */
async function dataOf(file: OpenFile): Promise<[number, number][]> {
  const found: [number, number][] = [];
  for (let at = 0; ; ) {
    const start = await file.seek(at, 'data').catch((error: { code?: string }) => {
      expect(error.code).toBe('ENXIO');
      return null;
    });
    if (start === null) return found;
    at = await file.seek(start, 'hole');
    expect(at).toBeGreaterThan(start);
    found.push([start, at]);
  }
}

test('what was allocated can be written when the file system is full, and ENOSPC comes at the call that asks for too much', async () => {
  const volume = await TestVolume.create({ blocks: [24], poolPages: 4096 });
  const { fs } = await volume.mount();
  const file = await open(fs);
  await file.allocate('allocate', 0, 6 * BLOCK_BYTES);
  expect((await file.stat()).sizeBytes).toBe(6 * BLOCK_BYTES);
  const other = await open(fs, '/other');
  await other.write(0, Buffer.from('short'));
  for (const [at, length, keepSize] of [
    [0, 100 * BLOCK_BYTES, false],
    [3, 24 * BLOCK_BYTES, true],
    [0, 2 ** 52, false],
  ] as const)
    await expect(other.allocate('allocate', at, length, { keepSize })).rejects.toMatchObject({ code: 'ENOSPC' });
  expect(await other.stat()).toMatchObject({ sizeBytes: 5 });
  for (let i = 0; ; i++) {
    const filler = await open(fs, `/filler${i}`);
    const full = await filler.write(0, Buffer.alloc(BLOCK_BYTES, 1)).then(
      () => false,
      () => true,
    );
    await filler.close();
    if (full) break;
    // What the refused calls had got is there again.
    expect(i).toBeLessThan(24);
  }
  expect(isZero(await bytesOf(file))).toBe(true);
  for (let at = 0; at < 6; at++) await file.write(at * BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, at + 1));
  for (let at = 0; at < 6; at++) expect((await bytesOf(file))[at * BLOCK_BYTES + 77]).toBe(at + 1);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('space behind the end stays when the file is closed, until it is truncated', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const file = await open(one.fs);
  await file.write(0, Buffer.from('text'));
  await file.allocate('allocate', 0, 3 * BLOCK_BYTES, { keepSize: true });
  await file.close();
  await one.fs.unmount();
  const two = await volume.mount(2);
  expect(await two.fs.stat('/f', ROOT)).toMatchObject({ sizeBytes: 4, allocatedBytes: 3 * BLOCK_BYTES });
  await two.fs.truncate('/f', 4, ROOT);
  expect((await two.fs.stat('/f', ROOT)).allocatedBytes).toBe(SECTOR_BYTES);
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('space behind the end outlives the node that may have written there, which nobody ever sees', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const file = await open(one.fs);
  await file.write(0, Buffer.alloc(10_000, 1));
  await file.allocate('allocate', 0, 2 * BLOCK_BYTES, { keepSize: true });
  await file.sync(false);
  await file.write(10_000, Buffer.alloc(BLOCK_BYTES, 2));
  await one.cache.get(file.ino)!.flush();
  await volume.bury(one);
  const two = await volume.mount(2);
  const again = await open(two.fs);
  expect(await again.stat()).toMatchObject({ sizeBytes: 10_000, allocatedBytes: 2 * BLOCK_BYTES });
  await again.truncate(BLOCK_BYTES + 10_000);
  const bytes = await bytesOf(again);
  expect(bytes.subarray(0, 10_000).every((byte) => byte === 1)).toBe(true);
  expect(isZero(bytes.subarray(10_000))).toBe(true);
  await again.close();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('a hole gives the space of whole blocks back, and other nodes see its zeros at once', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const two = await volume.mount(2);
  const mine = await open(one.fs);
  const theirs = await open(two.fs);
  await mine.write(0, Buffer.alloc(4 * BLOCK_BYTES, 7));
  await bytesOf(theirs);
  const [from, to] = [BLOCK_BYTES - 5000, 3 * BLOCK_BYTES + 5000];
  await mine.allocate('punchHole', from, to - from);
  for (const file of [theirs, mine]) {
    const bytes = await bytesOf(file);
    expect(bytes.length).toBe(4 * BLOCK_BYTES);
    expect(isZero(bytes.subarray(from, to))).toBe(true);
    expect(bytes.subarray(0, from).every((byte) => byte === 7)).toBe(true);
    expect(bytes.subarray(to).every((byte) => byte === 7)).toBe(true);
  }
  // The first block ends a sector earlier; the fourth begins with zeros.
  expect((await theirs.stat()).allocatedBytes).toBe(2 * BLOCK_BYTES - SECTOR_BYTES);
  expect(await dataOf(theirs)).toEqual([
    [0, BLOCK_BYTES - SECTOR_BYTES],
    [3 * BLOCK_BYTES, 4 * BLOCK_BYTES],
  ]);
  await theirs.write(2 * BLOCK_BYTES, Buffer.from('x'));
  expect((await bytesOf(mine, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 2)).toString()).toBe('x\0');
  await mine.close();
  await theirs.close();
  await one.fs.unmount();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('I8: a hole or zeros that were synced are there after a power cut, what was not synced is old or zeros', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const file = await open(one.fs);
  await file.write(0, Buffer.alloc(5 * BLOCK_BYTES, 7));
  await file.sync(false);
  await file.allocate('punchHole', 0, BLOCK_BYTES + 8192);
  await file.allocate('zeroRange', 2 * BLOCK_BYTES + 1, BLOCK_BYTES);
  await file.sync(false);
  await file.allocate('punchHole', 4 * BLOCK_BYTES, BLOCK_BYTES);
  volume.powerOff([one]);
  const two = await volume.mount(2);
  const again = await open(two.fs);
  const bytes = await bytesOf(again);
  expect(bytes.length).toBe(5 * BLOCK_BYTES);
  expect(isZero(bytes.subarray(0, BLOCK_BYTES + 8192))).toBe(true);
  expect(bytes[BLOCK_BYTES + 8192]).toBe(7);
  expect(isZero(bytes.subarray(2 * BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 1))).toBe(true);
  expect(bytes[2 * BLOCK_BYTES]).toBe(7);
  expect([0, 7]).toContain(bytes[4 * BLOCK_BYTES]);
  await again.close();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('bytes of a file are not moved: EOPNOTSUPP; and what is no range is EINVAL, what is too far EFBIG', async () => {
  const volume = await TestVolume.create();
  const { fs } = await volume.mount();
  const file = await open(fs);
  for (const mode of ['collapseRange', 'insertRange'] as const)
    await expect(file.allocate(mode, 0, BLOCK_BYTES)).rejects.toMatchObject({ code: 'ENOTSUP' });
  await expect(file.allocate('allocate', 0, 0)).rejects.toMatchObject({ code: 'EINVAL' });
  await expect(file.allocate('allocate', -1, 1)).rejects.toMatchObject({ code: 'EINVAL' });
  await expect(file.allocate('allocate', 2 ** 53 - 8192, 1)).rejects.toMatchObject({ code: 'EFBIG' });
  const reader = await fs.open('/f', constants.O_RDONLY, 0, ROOT);
  await expect(reader.allocate('allocate', 0, 1)).rejects.toMatchObject({ code: 'EBADF' });
  const directory = await fs.open('/', constants.O_RDONLY, 0, ROOT);
  await expect(directory.seek(0, 'hole')).rejects.toMatchObject({ code: 'EINVAL' });
  await fs.unmount();
});

const MODES: readonly AllocateMode[] = ['allocate', 'punchHole', 'zeroRange'];
/** Often at the borders of things. */
const offset = (random: SeededRandom, max: number): number => {
  const unit = [1, SECTOR_BYTES, BLOCK_BYTES][below(random, 3)]!;
  return Math.min(max, Math.max(0, below(random, Math.ceil(max / unit) + 1) * unit + [-1, 0, 0, 1][below(random, 4)]!));
};

test.each([1, 2, 3, 4, 5, 6])(
  'two nodes that write, cut, punch and allocate one file see what a file in memory would show (seed %d)',
  async (seed) => {
    const random = new SeededRandom(seed);
    const volume = await TestVolume.create({ blocks: [64, 64], poolPages: 1024 });
    const nodes: TestNode[] = [await volume.mount(1), await volume.mount(2)];
    const files = [await open(nodes[0]!.fs), await open(nodes[1]!.fs)];
    let model = Buffer.alloc(0);
    const resize = (size: number): void => {
      const next = Buffer.alloc(size);
      model.copy(next, 0, 0, Math.min(size, model.length));
      model = next;
    };
    const limit = seed % 2 === 0 ? 12_000 : 4 * BLOCK_BYTES;
    for (let step = 0; step < 120; step++) {
      const file = files[below(random, 2)]!;
      const start = offset(random, limit);
      const end = Math.max(start + 1, offset(random, limit));
      switch (below(random, 6)) {
        case 0:
        case 1: {
          const bytes = Buffer.alloc(Math.min(end - start, 200_000), step + 1);
          await file.write(start, bytes);
          if (start + bytes.length > model.length) resize(start + bytes.length);
          bytes.copy(model, start);
          break;
        }
        case 2:
          if (below(random, 3) > 0) break;
          await file.truncate(start);
          resize(start);
          break;
        case 3:
          await nodes[below(random, 2)]!.tokens.revokeAll();
          break;
        default: {
          const mode = MODES[below(random, 3)]!;
          const keepSize = below(random, 2) === 0;
          await file.allocate(mode, start, end - start, { keepSize });
          if (mode !== 'allocate') model.fill(0, Math.min(start, model.length), Math.min(end, model.length));
          if (mode !== 'punchHole' && !keepSize && end > model.length) resize(end);
        }
      }
      if (step % 10 !== 9) continue;
      const reader = files[below(random, 2)]!;
      expect((await bytesOf(reader)).equals(model)).toBe(true);
      let from = 0;
      for (const [dataStart, dataEnd] of await dataOf(reader)) {
        expect(isZero(model.subarray(from, dataStart))).toBe(true);
        from = dataEnd;
      }
      expect(isZero(model.subarray(from))).toBe(true);
    }
    // Each node's own changes.
    for (const file of files) await file.sync(false);
    volume.powerOff(nodes);
    const last = await volume.mount(3);
    const file = await open(last.fs);
    expect((await bytesOf(file)).equals(model)).toBe(true);
    await last.fs.unlink('/f', ROOT);
    await file.close();
    await last.fs.unmount();
    expect(await checkVolume(volume)).toMatchObject(sound);
  },
);
