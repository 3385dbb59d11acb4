import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { below, SeededRandom } from '../common/random.js';
import { BLOCK_BYTES } from '../common/units.js';
import { type FileSystem, type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, TestVolume } from './testing.js';

const { O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_WRONLY } = constants;
const open = (fs: FileSystem, path: string, flags = O_RDWR): Promise<OpenFile> =>
  fs.open(path, O_CREAT | flags, 0o644, ROOT);
async function bytesOf(file: OpenFile): Promise<Buffer> {
  const bytes = Buffer.alloc((await file.stat()).sizeBytes, 0xee);
  expect(await file.read(0, bytes)).toBe(bytes.length);
  return bytes;
}
const sound = { problems: [], lostSubBlocks: 0, lostInodes: 0 };

test('holes of the source stay holes, what was under them in the target goes, and bytes come from wherever they are dirty', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const two = await volume.mount(2);
  const source = await open(one.fs, '/from');
  await source.truncate(20 * BLOCK_BYTES + 5);
  await source.write(3 * BLOCK_BYTES + 100, Buffer.from('one'));
  await source.write(20 * BLOCK_BYTES, Buffer.from('end'));
  const target = await open(two.fs, '/to');
  await target.write(0, Buffer.alloc(6 * BLOCK_BYTES, 9));
  const from = await open(two.fs, '/from', O_RDONLY);
  const length = 20 * BLOCK_BYTES + 5;
  expect(await from.copyRange(0, target, 1, 100 * BLOCK_BYTES)).toBe(length);
  const bytes = await bytesOf(target);
  expect(bytes[0]).toBe(9);
  expect(bytes.subarray(1).equals(await bytesOf(source))).toBe(true);
  expect((await target.stat()).allocatedBytes).toBeLessThan(8 * BLOCK_BYTES);
  expect(await from.copyRange(length, target, 0, 10)).toBe(0);
  for (const file of [source, target, from]) await file.close();
  await one.fs.unmount();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('ranges that overlap are EINVAL; handles must allow it', async () => {
  const volume = await TestVolume.create();
  const { fs } = await volume.mount();
  const file = await open(fs, '/f');
  await file.write(0, Buffer.from('abcdef'));
  for (const [from, to] of [
    [0, 0],
    [0, 5],
    [5, 0],
  ] as const)
    await expect(file.copyRange(from, file, to, 6)).rejects.toMatchObject({ code: 'EINVAL' });
  expect(await file.copyRange(0, file, 3, 3)).toBe(3);
  expect((await bytesOf(file)).toString()).toBe('abcabc');
  expect(await file.copyRange(0, file, 6, 6)).toBe(6);
  expect((await bytesOf(file)).toString()).toBe('abcabcabcabc');
  const writer = await open(fs, '/f', O_WRONLY);
  const reader = await open(fs, '/f', O_RDONLY);
  const appender = await open(fs, '/other', O_WRONLY | O_APPEND);
  const directory = await fs.open('/', O_RDONLY, 0, ROOT);
  await expect(writer.copyRange(0, file, 100, 1)).rejects.toMatchObject({ code: 'EBADF' });
  await expect(file.copyRange(0, reader, 100, 1)).rejects.toMatchObject({ code: 'EBADF' });
  await expect(file.copyRange(0, appender, 100, 1)).rejects.toMatchObject({ code: 'EBADF' });
  await expect(file.copyRange(0, directory, 0, 1)).rejects.toMatchObject({ code: 'EISDIR' });
  await expect(directory.copyRange(0, file, 0, 1)).rejects.toMatchObject({ code: 'EISDIR' });
  await expect(file.copyRange(0, writer, 2 ** 53 - 8192, 10)).rejects.toMatchObject({ code: 'EFBIG' });
  await fs.unmount();
});

test.each([1, 2, 3])(
  'T4: copies to and fro between two files on two nodes, with truncations among them, end, and are right (seed %d)',
  async (seed) => {
    const random = new SeededRandom(seed);
    const volume = await TestVolume.create({ poolPages: 1024 });
    const nodes = [await volume.mount(1), await volume.mount(2)];
    const files = await Promise.all(nodes.map(async ({ fs }) => [await open(fs, '/a'), await open(fs, '/b')] as const));
    await files[0]![0].write(0, Buffer.alloc(300_000, 1));
    await files[1]![1].write(0, Buffer.alloc(300_000, 2));
    const copies = (pair: readonly [OpenFile, OpenFile]) => async (): Promise<void> => {
      for (let i = 0; i < 15; i++) {
        const [from, to] = below(random, 2) === 0 ? pair : ([pair[1], pair[0]] as const);
        await from.copyRange(below(random, 200_000), to, below(random, 200_000), 1 + below(random, 150_000));
        if (below(random, 4) === 0) await to.truncate(below(random, 300_000));
      }
    };
    await Promise.all(files.flatMap((pair) => [copies(pair)(), copies(pair)()]));
    const model = [await bytesOf(files[0]![0]), await bytesOf(files[0]![1])];
    for (let i = 0; i < 30; i++) {
      const pair = files[below(random, 2)]!;
      const [from, to] = [below(random, 2), below(random, 2)];
      const [at, start, length] = [below(random, 300_000), below(random, 300_000), 1 + below(random, 150_000)];
      if (from === to && Math.abs(at - start) < length) continue;
      const bytes = model[from]!.subarray(at, at + length);
      expect(await pair[from]!.copyRange(at, pair[to]!, start, length)).toBe(bytes.length);
      if (bytes.length === 0) continue;
      const next = Buffer.alloc(Math.max(model[to]!.length, start + bytes.length));
      model[to]!.copy(next);
      bytes.copy(next, start);
      model[to] = next;
    }
    for (const side of [0, 1]) expect((await bytesOf(files[below(random, 2)]![side]!)).equals(model[side]!)).toBe(true);
    for (const { fs } of nodes) await fs.unmount();
    expect(await checkVolume(volume)).toMatchObject(sound);
  },
);
