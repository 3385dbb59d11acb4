/** Counts of sub-blocks that are wrong under good checksums, in a file system that is mounted and worked on: they cost a count, and no file. */
import { constants } from 'node:fs';
import { beforeAll, beforeEach, expect, test } from 'vitest';
import { Counters } from '../../common/counters.js';
import { silentLogger } from '../../common/logger.js';
import { ROOT } from '../file-system-api.js';
import { checkParts, checkVolume } from '../testing.js';
import { repairFileSystem } from './repair.js';
import { DamagedVolume } from './testing-damage.js';

const { O_RDWR } = constants;

let v: DamagedVolume;
beforeAll(async () => {
  v = await DamagedVolume.create();
});
beforeEach(() => v.restore());

const repaired = async (): Promise<string[]> => {
  const parts = { ...checkParts(v.volume), logger: silentLogger, counters: new Counters() };
  const { mended } = await repairFileSystem(parts, 2);
  expect(await checkVolume(v.volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
  return mended.map(({ kind }) => kind);
};

test.each([
  ['/a/block', 300_000],
  ['/a/sparse', 0],
])('%s with too few of them, cut: it is logged and counted, and the file stays', async (path, sizeBytes) => {
  v.editInode(path, (fields) => void (fields.allocatedSubBlocks = 1));
  const node = await v.volume.mount();
  const file = await node.fs.open(path, O_RDWR, 0, ROOT);
  await file.truncate(sizeBytes);
  await file.sync(false);
  await file.close();
  expect(node.counters.get('fs.subBlocksMiscounted')).toBeGreaterThan(0);
  await node.fs.unmount();
  const again = await v.volume.mount();
  expect((await again.fs.stat(path, ROOT)).sizeBytes).toBe(sizeBytes);
  await again.fs.unmount();
  await repaired();
});

test.each(['/a/block', '/a/sparse', '/attributes'])(
  '%s with none of them can lose what it has, and go',
  async (path) => {
    v.editInode(path, (fields) => void (fields.allocatedSubBlocks = 0));
    const node = await v.volume.mount();
    if (path === '/attributes') {
      await node.fs.setXattr(path, true, 'user.big', null, ROOT);
      expect((await node.fs.stat(path, ROOT)).allocatedBytes).toBe(0);
    }
    await node.fs.unlink(path, ROOT);
    await node.fs.unmount();
    expect(await repaired()).toEqual([]);
  },
);

test('more of them than there can be is refused, naming the inode; a repair counts them', async () => {
  v.editInode('/a/one', (fields) => void (fields.allocatedSubBlocks = 2 ** 52));
  const node = await v.volume.mount();
  await expect(node.fs.stat('/a/one', ROOT)).rejects.toMatchObject({
    code: 'EUCLEAN',
    object: `inode ${v.ino('/a/one')}`,
  });
  await node.fs.unmount();
  expect(await repaired()).toEqual(['inodeDamaged', 'spaceCount']);
});
