import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { SECTOR_BYTES } from '../common/units.js';
import type { SectorIo } from '../nsd/nsd-api.js';
import { type FileSystem, type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, TestVolume } from './testing.js';

const { O_CREAT, O_RDONLY, O_RDWR } = constants;
const NEVER = { inodeWriteBehindMs: 3_600_000 };
const FILES = 60;
const contentOf = (index: number): Buffer => Buffer.alloc(5000 + 700 * (index % 20), index + 1);

async function makeFiles(fs: FileSystem): Promise<OpenFile[]> {
  const files: OpenFile[] = [];
  for (let i = 0; i < FILES; i++) {
    const file = await fs.open(`/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
    await file.write(0, contentOf(i));
    files.push(file);
  }
  return files;
}

async function expectFiles(fs: FileSystem): Promise<void> {
  for (let i = 0; i < FILES; i++) {
    const file = await fs.open(`/f${i}`, O_RDONLY, 0, ROOT);
    const content = Buffer.alloc(contentOf(i).length);
    expect(await file.read(0, content)).toBe(content.length);
    expect(Buffer.compare(content, contentOf(i))).toBe(0);
    await file.close();
  }
}

test('the bytes of many small files go out in a few writes', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount(1, NEVER);
  const files = await makeFiles(node.fs);
  const { writes } = volume.nsds.shared;
  await node.fs.sync();
  // The files' bytes, the log, directories and maps: less than one for every fourth file.
  expect(volume.nsds.shared.writes - writes).toBeLessThan(FILES / 4);
  expect(node.counters.get('fs.joinedFiles')).toBe(FILES);
  volume.powerOff([node]);
  const { fs } = await volume.mount(2);
  await expectFiles(fs);
  await fs.unmount();
  for (const file of files) expect(file.ino).toBeGreaterThan(0);
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('a device that refuses the bytes of one file takes none of the others along: I10', async () => {
  const volume = await TestVolume.create({ blocks: [64] });
  const node = await volume.mount(1, NEVER);
  const { fs, counters } = node;
  const files = await makeFiles(fs);
  const bad = (await fs.locate('/f7', 0, 1, ROOT)).ranges[0]!.sector!;
  const covers = ({ sector, memory }: SectorIo): boolean =>
    sector <= bad && bad < sector + memory.lengthBytes / SECTOR_BYTES;
  volume.nsds.failWhen((op, io) => op === 'nsd.write' && covers(io));
  await expect(fs.sync()).rejects.toMatchObject({ code: 'EIO' });
  for (const file of files) if (file !== files[7]) expect(node.cache.get(file.ino)!.dirty).toBe(false);
  expect(node.cache.get(files[7]!.ino)!.dirty).toBe(true);
  volume.nsds.failWhen(null);
  await files[7]!.sync(false);
  expect(counters.get('fs.joinedWrites')).toBeGreaterThan(0);
  await expectFiles(fs);
  for (const file of files) await file.close();
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});
