import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { nsdIndex } from '../common/ids.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import { ROOT } from './file-system-api.js';
import { TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;

test('every byte of a file is somewhere: what is said of a sector is what its NSD has there', async () => {
  const volume = await TestVolume.create({ blocks: [64, 64] });
  const one = await volume.mount(1);
  const two = await volume.mount(2);
  const file = await one.fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.truncate(2000 * BLOCK_BYTES + 5);
  for (const block of [0, 1, 500, 2000]) await file.write(block * BLOCK_BYTES, Buffer.alloc(5, block + 1));
  const { ranges, nextBytes } = await two.fs.locate('/f', 0, 2 ** 53 - 1, ROOT);
  await one.fs.sync();
  expect(nextBytes).toBeNull();
  let at = 0;
  const nsds = new Set<string>();
  for (const { kind, offsetBytes, lengthBytes, nsdUuid, sector } of ranges) {
    expect(offsetBytes).toBe(at);
    at += lengthBytes;
    const bytes = Buffer.alloc(5);
    await file.read(offsetBytes, bytes);
    if (kind === 'hole') {
      expect(bytes.equals(Buffer.alloc(5))).toBe(true);
      continue;
    }
    nsds.add(nsdUuid!);
    const nsd = nsdIndex(one.fs.superblock.nsds.findIndex(({ uuid }) => uuid === nsdUuid));
    expect(Buffer.from(volume.nsds.sector(nsd, sector!).subarray(0, 5)).equals(bytes)).toBe(true);
  }
  expect(at).toBe(2000 * BLOCK_BYTES + 5);
  expect(nsds.size).toBe(2);
  expect(ranges.filter(({ kind }) => kind === 'data').length).toBe(4);
  const inside = await two.fs.locate('/f', BLOCK_BYTES + SECTOR_BYTES + 1, 10, ROOT);
  const block = ranges.find(({ offsetBytes }) => offsetBytes === BLOCK_BYTES)!;
  expect(inside.ranges).toEqual([
    { ...block, offsetBytes: BLOCK_BYTES + SECTOR_BYTES + 1, lengthBytes: 10, sector: block.sector! + 1 },
  ]);
  expect(await two.fs.locate('/f', 2000 * BLOCK_BYTES + 5, 10, ROOT)).toEqual({ ranges: [], nextBytes: null });
});

test('short files are in the inode, long answers come in parts, directories and what may not be read are refused', async () => {
  const volume = await TestVolume.create({ blocks: [1400] });
  const { fs } = await volume.mount();
  const file = await fs.open('/short', O_CREAT | O_RDWR, 0o600, ROOT);
  await file.write(0, Buffer.from('text'));
  expect((await fs.locate('/short', 1, 2 ** 40, ROOT)).ranges).toMatchObject([
    { kind: 'inline', offsetBytes: 1, lengthBytes: 3, nsdUuid: null },
  ]);
  await file.allocate('allocate', 0, 1100 * BLOCK_BYTES);
  const first = await fs.locate('/short', 0, 2 ** 40, ROOT);
  expect([first.ranges.length, first.nextBytes]).toEqual([1024, 1024 * BLOCK_BYTES]);
  const rest = await fs.locate('/short', first.nextBytes!, 2 ** 40, ROOT);
  expect([rest.ranges.length, rest.nextBytes]).toEqual([76, null]);
  await expect(fs.locate('/', 0, 1, ROOT)).rejects.toMatchObject({ code: 'EISDIR' });
  await expect(fs.locate('/short', 0, 1, { ...ROOT, uid: 7, gid: 7 })).rejects.toMatchObject({ code: 'EACCES' });
  await fs.unmount();
});
