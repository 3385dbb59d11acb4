import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { BLOCK_BYTES } from '../common/units.js';
import { type OpenFile, ROOT } from './file-system-api.js';
import { FILE_BYTES_MAX } from './indirect-format.js';
import { checkVolume, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;

/** Below each kind of pointer there is, the last byte of a file that can be included. */
const OFFSETS = [
  0,
  210 * BLOCK_BYTES,
  211 * BLOCK_BYTES + 5,
  1_000 * BLOCK_BYTES + 9_000,
  100_000 * BLOCK_BYTES,
  17_000_000 * BLOCK_BYTES + 1,
  (2 ** 32 - 1) * BLOCK_BYTES,
  2 ** 32 * BLOCK_BYTES + 4_095,
  FILE_BYTES_MAX - 4,
];

async function bytesAt(file: OpenFile, offset: number, length: number): Promise<string> {
  const bytes = Buffer.alloc(length, 1);
  expect(await file.read(offset, bytes)).toBe(length);
  return bytes.toString();
}

test('a file has bytes wherever a safe integer can name them, beyond 2^32 blocks too, and gives all its space back', async () => {
  const volume = await TestVolume.create({ blocks: [128] });
  const one = await volume.mount(1);
  const file = await one.fs.open('/huge', O_CREAT | O_RDWR, 0o644, ROOT);
  for (const [i, offset] of OFFSETS.entries()) await file.write(offset, Buffer.from(`at ${i}`));
  await file.sync(false);
  const two = await volume.mount(2);
  const other = await two.fs.open('/huge', O_RDWR, 0, ROOT);
  expect(await other.stat()).toMatchObject({ sizeBytes: FILE_BYTES_MAX });
  for (const at of [one, two]) {
    const read = at === one ? file : other;
    for (const [i, offset] of OFFSETS.entries()) expect(await bytesAt(read, offset, 4)).toBe(`at ${i}`);
    expect(await bytesAt(read, 2 ** 51, 4)).toBe('\0\0\0\0');
  }
  // Nine blocks, and at most five indirect ones above each.
  expect((await other.stat()).allocatedBytes).toBeLessThanOrEqual(9 * (BLOCK_BYTES + 5 * 4096));
  await other.truncate(2 ** 32 * BLOCK_BYTES + 4_097);
  expect(await bytesAt(file, OFFSETS[7]!, 2)).toBe('at');
  expect(await file.read(OFFSETS[8]!, Buffer.alloc(4))).toBe(0);
  await file.truncate(FILE_BYTES_MAX);
  expect(await bytesAt(other, OFFSETS[7]!, 4)).toBe('at\0\0');
  expect(await bytesAt(other, OFFSETS[8]!, 4)).toBe('\0\0\0\0');
  await other.truncate(17_000_000 * BLOCK_BYTES);
  expect((await file.stat()).allocatedBytes).toBeLessThanOrEqual(5 * (BLOCK_BYTES + 3 * 4096));
  await volume.bury(one);
  await other.close();
  await two.fs.unmount();
  const three = await volume.mount(3);
  await three.fs.unlink('/huge', ROOT);
  await three.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('EFBIG for what would end behind the last offset, and for offsets that no safe integer is', async () => {
  const volume = await TestVolume.create();
  const { fs } = await volume.mount();
  const file = await fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
  const tooBig = { code: 'EFBIG' };
  for (const offset of [FILE_BYTES_MAX - 1, FILE_BYTES_MAX, 2 ** 53, 2 ** 60])
    await expect(file.write(offset, Buffer.from('xy'))).rejects.toMatchObject(tooBig);
  for (const size of [FILE_BYTES_MAX + 1, 2 ** 53, 2 ** 60])
    await expect(file.truncate(size)).rejects.toMatchObject(tooBig);
  await expect(file.write(-1, Buffer.from('x'))).rejects.toMatchObject({ code: 'EINVAL' });
  await file.truncate(FILE_BYTES_MAX - 1);
  await file.write(null, Buffer.from('x'));
  await expect(file.write(null, Buffer.from('x'))).rejects.toMatchObject(tooBig);
  expect((await file.stat()).sizeBytes).toBe(FILE_BYTES_MAX);
  await file.close();
  await fs.unmount();
});
