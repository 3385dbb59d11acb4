import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { O_TMPFILE, ROOT } from './file-system-api.js';
import { checkVolume, TestVolume } from './testing.js';

const { O_EXCL, O_RDWR } = constants;
const NAMELESS = O_TMPFILE | O_RDWR;
const sound = { problems: [], lostSubBlocks: 0, lostInodes: 0 };

test('a file without a name is freed at its last close, and when its node dies', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const before = await one.fs.statfs();
  const file = await one.fs.open('/', NAMELESS, 0o600, ROOT);
  await file.write(0, Buffer.alloc(100_000, 1));
  expect(await file.stat()).toMatchObject({ nlink: 0, sizeBytes: 100_000, mode: 0o600 });
  expect(await one.fs.readdir('/', ROOT)).toEqual([]);
  await file.close();
  const lost = await one.fs.open('/', NAMELESS, 0o600, ROOT);
  await lost.write(0, Buffer.alloc(300_000, 1));
  await lost.sync(false);
  const two = await volume.mount(2);
  await volume.bury(one);
  await two.fs.sync();
  expect((await two.fs.statfs()).totalInodes).toBe(before.totalInodes);
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ ...sound, inodes: 6 });
});

test('I8: one that got a name and was synced is there after a power cut, with all of its bytes; one that was not is gone', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const files = [await one.fs.open('/', NAMELESS, 0o644, ROOT), await one.fs.open('/', NAMELESS, 0o644, ROOT)];
  for (const file of files) await file.write(0, Buffer.alloc(50_000, 7));
  await files[0]!.link('/named', ROOT);
  await files[0]!.sync(false);
  await files[1]!.sync(false);
  volume.powerOff([one]);
  const two = await volume.mount(2);
  expect((await two.fs.readdir('/', ROOT)).map(({ name }) => name)).toEqual(['named']);
  expect(await two.fs.stat('/named', ROOT)).toMatchObject({ nlink: 1, sizeBytes: 50_000 });
  const file = await two.fs.open('/named', O_RDWR, 0, ROOT);
  const bytes = Buffer.alloc(50_000);
  await file.read(0, bytes);
  expect(bytes.every((byte) => byte === 7)).toBe(true);
  await file.close();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ ...sound, inodes: 7 });
});

test('what has a name is a file like any other, for other nodes too; one that was removed, or may have none, gets none', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const two = await volume.mount(2);
  const file = await one.fs.open('/', NAMELESS, 0o644, ROOT);
  await file.write(0, Buffer.from('text'));
  await file.link('/a', ROOT);
  await file.link('/b', ROOT);
  await expect(file.link('/a', ROOT)).rejects.toMatchObject({ code: 'EEXIST' });
  expect(await two.fs.stat('/b', ROOT)).toMatchObject({ nlink: 2, sizeBytes: 4 });
  await two.fs.unlink('/a', ROOT);
  await two.fs.unlink('/b', ROOT);
  expect((await file.stat()).nlink).toBe(0);
  await expect(file.link('/c', ROOT)).rejects.toMatchObject({ code: 'ENOENT' });
  const exclusive = await two.fs.open('/', NAMELESS | O_EXCL, 0o644, ROOT);
  await expect(exclusive.link('/d', ROOT)).rejects.toMatchObject({ code: 'ENOENT' });
  const directory = await two.fs.open('/', constants.O_RDONLY, 0, ROOT);
  await expect(directory.link('/e', ROOT)).rejects.toMatchObject({ code: 'EPERM' });
  for (const open of [file, exclusive, directory]) await open.close();
  await one.fs.unmount();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ ...sound, inodes: 6 });
});
