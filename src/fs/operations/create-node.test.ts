import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { inodeNumber, type NsdIndex } from '../../common/ids.js';
import { FileType, ROOT } from '../file-system-api.js';
import { decodeInode, encodeInode, type InodeFields } from '../inode-format.js';
import { ROOT_DIRECTORY } from '../layout.js';
import { type MetadataOf, metadataOf } from '../metadata-extents.js';
import { sealSector } from '../sector.js';
import { fsIdOf, type Superblock } from '../superblock.js';
import { TestVolume, testChecksums } from '../testing.js';

const { O_CREAT, O_RDWR } = constants;

/** What inodes have in place, once nobody has the file system mounted. */
async function onDevice(volume: TestVolume, superblock: Superblock) {
  const { fsUuid, geometry } = superblock;
  const blocks: MetadataOf[] = [];
  for await (const found of metadataOf(volume.storage(), superblock)) if (found.kind === 'inodes') blocks.push(found);
  const placeOf = (ino: number): [NsdIndex, number] => {
    const { extent, first } = blocks.find((block) => ino >= block.first && ino < block.first + block.extent!.count)!;
    return [extent!.nsd, extent!.sector + ino - first];
  };
  return {
    read: (ino: number): InodeFields =>
      decodeInode(inodeNumber(ino), volume.nsds.sector(...placeOf(ino)), fsIdOf(fsUuid), geometry, testChecksums)!,
    write: (ino: number, fields: InodeFields): void => {
      const sector = volume.nsds.sector(...placeOf(ino)).slice();
      encodeInode(inodeNumber(ino), fields, sector, fsIdOf(fsUuid));
      sealSector(sector, testChecksums);
      volume.nsds.setSector(...placeOf(ino), sector);
    },
  };
}

test('what is made in a directory gets its project id and its placement class, and passes them on', async () => {
  const volume = await TestVolume.create();
  const before = await volume.mount();
  await before.fs.unmount();
  const { read, write } = await onDevice(volume, before.fs.superblock);
  write(ROOT_DIRECTORY, { ...read(ROOT_DIRECTORY), projectId: 0xf0000001, placementClass: 7 });
  const { fs } = await volume.mount(2);
  await fs.mkdir('/d', 0o755, ROOT);
  await fs.mkdir('/d/below', 0o755, ROOT);
  await (await fs.open('/d/below/file', O_CREAT | O_RDWR, 0o644, ROOT)).close();
  await fs.symlink('file', '/d/below/link', ROOT);
  await fs.mknod('/d/below/fifo', FileType.fifo, 0o644, 0, ROOT);
  const made = ['/d', '/d/below', '/d/below/file', '/d/below/link', '/d/below/fifo'];
  const inos: number[] = [];
  for (const path of made) inos.push((await fs.lstat(path, ROOT)).ino);
  await fs.unmount();
  const after = await onDevice(volume, fs.superblock);
  for (const [i, ino] of inos.entries())
    expect(after.read(ino), made[i]).toMatchObject({ projectId: 0xf0000001, placementClass: 7 });
});
