/** Which calls a full file system refuses (ENOSPC), what they leave behind, and which go on. */
import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import { type FileSystem, type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;
const longName = (index: number): string => `${index}`.padStart(250, 'n');

const make = (fs: FileSystem, path: string): Promise<OpenFile> => fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
async function put(fs: FileSystem, path: string, bytes: Uint8Array): Promise<void> {
  const file = await make(fs, path);
  await file.write(0, bytes);
  await file.close();
}
/** Grows by so many bytes at a time until there is no space for more. */
async function grow(file: OpenFile, stepBytes: number): Promise<void> {
  const step = Buffer.alloc(stepBytes, 9);
  let { sizeBytes: at } = await file.stat();
  try {
    for (; ; at += stepBytes) await file.write(at, step);
  } catch (error) {
    expect(error).toMatchObject({ code: 'ENOSPC' });
  }
}

test('in a file system without a free sub-block each call that needs one says ENOSPC and changes nothing; all others go on', async () => {
  const volume = await TestVolume.create({ blocks: [10], poolPages: 2048 });
  const { fs } = await volume.mount();
  await put(fs, '/small', Buffer.alloc(100, 1));
  await put(fs, '/large', Buffer.alloc(3 * SECTOR_BYTES, 2));
  await put(fs, '/gone', Buffer.alloc(20 * SECTOR_BYTES, 3));
  await fs.mkdir('/empty', 0o755, ROOT);
  await fs.mkdir('/d', 0o755, ROOT);
  // One leaf, without room for another one of these.
  for (let i = 0; i < 15; i++) await fs.link('/small', `/d/${longName(i)}`, ROOT);
  const sparse = await make(fs, '/sparse');
  await sparse.write(3 * BLOCK_BYTES, Buffer.alloc(10, 4));
  const [small, large, hog, rest] = [
    await make(fs, '/small'),
    await make(fs, '/large'),
    await make(fs, '/hog'),
    await make(fs, '/rest'),
  ];
  await fs.sync();
  await grow(hog, BLOCK_BYTES);
  await grow(rest, 16 * SECTOR_BYTES);
  await grow(rest, SECTOR_BYTES);
  await grow(hog, SECTOR_BYTES);

  const refused: Record<string, () => Promise<unknown>> = {
    'a write that no longer fits into the inode': () => small.write(100, Buffer.alloc(SECTOR_BYTES, 5)),
    'a write into a hole': () => sparse.write(BLOCK_BYTES, Buffer.alloc(10, 5)),
    'an append': () => large.write(null, Buffer.alloc(BLOCK_BYTES, 5)),
    fallocate: () => small.allocate('allocate', 0, 4 * SECTOR_BYTES),
    'fallocate that keeps the size': () => large.allocate('allocate', BLOCK_BYTES, SECTOR_BYTES, { keepSize: true }),
    'zeros with space': () => sparse.allocate('zeroRange', 2 * BLOCK_BYTES, SECTOR_BYTES),
    copy_file_range: () => large.copyRange(0, sparse, BLOCK_BYTES, 2 * SECTOR_BYTES),
    'large attributes': () => fs.setXattr('/small', true, 'user.large', Buffer.alloc(3000, 6), ROOT),
    'a link with a long target': () => fs.symlink('t'.repeat(4000), '/link', ROOT),
    'a name in a directory that has none': () => fs.mkdir('/empty/first', 0o755, ROOT),
    'a file in a full leaf': () => make(fs, `/d/${longName(99)}`),
    'a directory in a full leaf': () => fs.mkdir(`/d/${longName(99)}`, 0o755, ROOT),
    'a link in a full leaf': () => fs.link('/large', `/d/${longName(99)}`, ROOT),
    'a rename into a full leaf': () => fs.rename('/large', `/d/${longName(99)}`, ROOT),
  };
  const paths = ['/', '/small', '/large', '/sparse', '/empty', '/d'];
  const look = async () =>
    Promise.all(
      paths.map(async (path) => {
        const { atimeNs: _, ...rest } = await fs.stat(path, ROOT);
        return { path, ...rest, names: path.endsWith('d') || path === '/' ? await fs.readdir(path, ROOT) : [] };
      }),
    );
  const before = await look();
  for (const [what, call] of Object.entries(refused)) {
    await expect(call(), what).rejects.toMatchObject({ code: 'ENOSPC' });
    expect(await look(), what).toEqual(before);
  }

  await large.write(SECTOR_BYTES, Buffer.alloc(SECTOR_BYTES, 7));
  await small.write(0, Buffer.alloc(200, 7));
  await small.sync(false);
  await fs.setAttributes('/small', { mode: 0o600 }, true, ROOT);
  await fs.setXattr('/small', true, 'user.small', Buffer.from('fits'), ROOT);
  await fs.symlink('short', '/link', ROOT);
  await fs.mkdir('/new', 0o755, ROOT);
  await fs.rename('/d', '/new', ROOT);
  await fs.truncate('/small', 3000, ROOT);
  await fs.truncate('/large', BLOCK_BYTES, ROOT);
  await fs.sync();
  // With space there is again, what was refused is done.
  await fs.unlink('/gone', ROOT);
  await fs.setXattr('/small', true, 'user.large', Buffer.alloc(3000, 6), ROOT);
  await fs.mkdir('/empty/first', 0o755, ROOT);
  await fs.link('/large', `/new/${longName(99)}`, ROOT);
  for (const file of [sparse, small, large, hog, rest]) await file.close();
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: 0, lostSubBlocks: 0 });
});
