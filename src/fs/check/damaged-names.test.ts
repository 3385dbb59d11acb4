/** What names and inodes say of each other, wrong under good checksums, in a file system that is mounted and worked on. */
import { constants } from 'node:fs';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Counters } from '../../common/counters.js';
import { inodeNumber } from '../../common/ids.js';
import { silentLogger } from '../../common/logger.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { type FileSystem, FileType, ROOT } from '../file-system-api.js';
import { DIRECTORY_DEPTH_MAX, InodeFlag } from '../inode-format.js';
import { ALLOCATION_MAP, INODE_FILE } from '../layout.js';
import { appendEntry, findEntry, hashName } from '../leaf-format.js';
import { setU32 } from '../sector.js';
import { checkParts, checkVolume, type TestNode } from '../testing.js';
import { repairFileSystem } from './repair.js';
import { DamagedVolume, readContents } from './testing-damage.js';

const { O_RDONLY, O_RDWR } = constants;

let v: DamagedVolume;
beforeAll(async () => {
  v = await DamagedVolume.create();
});
beforeEach(() => v.restore());

async function mounted(use: (fs: FileSystem, node: TestNode) => Promise<void>): Promise<void> {
  const node = await v.volume.mount();
  await use(node.fs, node);
  await node.fs.unmount();
}
async function repaired(): Promise<void> {
  const parts = { ...checkParts(v.volume), logger: silentLogger, counters: new Counters() };
  await repairFileSystem(parts, 2);
  expect(await checkVolume(v.volume)).toMatchObject({ findings: [] });
}
const corrupt = (object: string) => ({ code: 'EUCLEAN', reason: 'corrupt', object });

describe('a directory whose parent is', () => {
  test.each([
    ['itself', () => v.ino('/a/b')],
    ['an inode of the file system', () => INODE_FILE],
    ['no inode', () => inodeNumber(2 ** 40)],
  ])('%s: it has no "..", and is named', async (_, parent) => {
    v.editInode('/a/b', (fields) => void (fields.parent = parent()));
    await mounted(async (fs) => {
      const named = corrupt(`directory ${v.ino('/a/b')}`);
      await expect(fs.stat('/a/b/../one', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rename('/many', '/a/b/c/many', ROOT)).rejects.toMatchObject(named);
      expect((await fs.stat('/a/b/tiny', ROOT)).ino).toBe(v.ino('/a/b/tiny'));
    });
  });
});

describe('a directory with an impossible length', () => {
  test.each([
    ['of 2^50 bytes', 2 ** 50],
    ['that is no multiple of a leaf', 4_097],
  ])('%s is refused, naming it; a repair finds the right one', async (_, sizeBytes) => {
    const before = v.fields('/many');
    v.editInode('/many', (fields) => void (fields.sizeBytes = sizeBytes));
    await mounted(async (fs) => {
      await expect(fs.readdir('/many', ROOT)).rejects.toMatchObject(corrupt(`inode ${v.ino('/many')}`));
      await expect(fs.readdir('/', ROOT)).resolves.toHaveLength(5);
    });
    await repaired();
    expect(v.fields('/many')).toEqual(before);
  });

  test('in its own inode is refused, naming it; a repair keeps what it has', async () => {
    const before = v.fields('/many');
    v.edit(v.inodePlace('/many'), (bytes) => setU32(bytes, 104, InodeFlag.inline));
    await mounted(async (fs) => {
      await expect(fs.readdir('/many', ROOT)).rejects.toMatchObject(corrupt(`inode ${v.ino('/many')}`));
    });
    await repaired();
    expect(v.fields('/many')).toEqual(before);
  });

  test('with the greatest depth to go with it, it is read: it is holes', async () => {
    v.editInode('/many', (fields) => {
      fields.directoryDepth = DIRECTORY_DEPTH_MAX;
      fields.sizeBytes = 2 ** DIRECTORY_DEPTH_MAX * SECTOR_BYTES;
    });
    await mounted(async (fs) => {
      expect(await fs.readdir('/many', ROOT)).toHaveLength(200);
    });
  });
});

describe('a name of', () => {
  const plant = async (ino: number, type: FileType): Promise<void> => {
    const name = Buffer.from('bad');
    const hash = hashName(name, v.fields('/a').directorySeed);
    const { place } = (await v.leaves('/a'))[0]!;
    v.edit(place, (leaf) => appendEntry(leaf, hash, name, { ino: inodeNumber(ino), generation: 1, type }));
    v.editInode('/a', (fields) => void fields.directoryEntries++);
  };
  test.each([
    ['the inode file', INODE_FILE],
    ['the allocation map', ALLOCATION_MAP],
    ['the root', 2],
    ['an impossible number', 2 ** 50],
  ])('%s leads nowhere: it is named, whatever is tried, and nothing is lost', async (_, ino) => {
    const type = ino === 2 ? FileType.directory : FileType.regular;
    await plant(ino, type);
    await mounted(async (fs) => {
      const named = corrupt(`name 'bad' in directory ${v.ino('/a')}`);
      await expect(fs.lstat('/a/bad', ROOT)).rejects.toMatchObject(named);
      await expect(fs.open('/a/bad', O_RDWR, 0, ROOT)).rejects.toMatchObject(named);
      await expect(fs.unlink('/a/bad', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rmdir('/a/bad', ROOT)).rejects.toMatchObject(named);
      await expect(fs.link('/a/bad', '/a/further', ROOT)).rejects.toMatchObject(named);
      await expect(fs.link('/a/one', '/a/bad', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rename('/a/bad', '/a/further', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rename('/a/one', '/a/bad', ROOT)).rejects.toMatchObject(named);
      await expect(fs.stat('/a/bad/below', ROOT)).rejects.toMatchObject(named);
      const file = await fs.open('/a/one', O_RDONLY, 0, ROOT);
      await file.close();
    });
    await repaired();
    await mounted(async (fs) => {
      expect([...(await readContents(fs)).keys()].sort()).toEqual([...v.contents.keys()].sort());
    });
  });

  test('another type than its inode has can neither go nor move', async () => {
    const { place, entry } = await v.leafOf('/a', 'b');
    v.edit(place, (leaf) => void (leaf[findEntry(leaf, entry.hash, entry.name) + 16] = FileType.regular));
    await mounted(async (fs) => {
      const named = corrupt(`name 'b' in directory ${v.ino('/a')}`);
      await expect(fs.rename('/a/b', '/many/b', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rename('/a/one', '/a/b', ROOT)).rejects.toMatchObject({ code: expect.any(String) });
    });
    await repaired();
    expect((await v.leafOf('/a', 'b')).entry).toEqual(entry);
  });
});

describe('a link count', () => {
  test('of 0 of a file that is named: it can neither be removed nor replaced nor moved, and is named', async () => {
    v.editInode('/a/two', (fields) => void (fields.nlink = 0));
    await mounted(async (fs) => {
      const named = corrupt(`inode ${v.ino('/a/two')}`);
      await expect(fs.unlink('/a/two', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rename('/a/one', '/a/two', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rename('/a/two', '/a/further', ROOT)).rejects.toMatchObject(named);
      await fs.unlink('/a/block', ROOT);
    });
    await repaired();
    await mounted(async (fs) => {
      expect((await readContents(fs)).get('/a/two')).toEqual(v.contents.get('/a/two'));
    });
  });

  test('of a directory that leaves out the directories in it: none of them goes', async () => {
    v.editInode('/a/b', (fields) => void (fields.nlink = 2));
    await mounted(async (fs) => {
      const named = corrupt(`inode ${v.ino('/a/b')}`);
      await fs.unlink('/a/b/c/hard', ROOT);
      await expect(fs.rmdir('/a/b/c', ROOT)).rejects.toMatchObject(named);
      await expect(fs.rename('/a/b/c', '/a/c', ROOT)).rejects.toMatchObject(named);
      expect(await fs.readdir('/a/b', ROOT)).toHaveLength(2);
    });
    await repaired();
  });
});
