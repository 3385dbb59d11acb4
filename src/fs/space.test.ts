import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { nsdIndex } from '../common/ids.js';
import { BLOCK_BYTES } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { type FileSystem, FileType, O_TMPFILE, ROOT } from './file-system-api.js';
import { ALLOCATION_MAP } from './layout.js';
import { checkVolume, TestVolume, turns } from './testing.js';

const { O_CREAT, O_RDWR, O_RDONLY, O_EXCL } = constants;

async function put(fs: FileSystem, path: string, content: Uint8Array, offset = 0): Promise<void> {
  const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  try {
    await file.write(offset, content);
  } finally {
    await file.close();
  }
}
async function get(fs: FileSystem, path: string): Promise<Buffer> {
  const file = await fs.open(path, O_RDONLY, 0, ROOT);
  const content = Buffer.alloc((await file.stat()).sizeBytes);
  await file.read(0, content);
  await file.close();
  return content;
}

test('a full file system says ENOSPC at the write that does not fit, loses nothing, and takes writes again after a removal', async () => {
  const volume = await TestVolume.create({ blocks: [12, 12], poolPages: 4096 });
  const { fs } = await volume.mount();
  const written: string[] = [];
  for (let i = 0; ; i++) {
    const path = `/f${i}`;
    try {
      await put(fs, path, Buffer.alloc(BLOCK_BYTES, i + 1));
      written.push(path);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
      expect((await fs.stat(path, ROOT)).sizeBytes).toBe(0);
      break;
    }
    expect(i).toBeLessThan(40);
  }
  expect(written.length).toBeGreaterThan(10);
  for (const [i, path] of written.entries()) expect((await get(fs, path)).every((byte) => byte === i + 1)).toBe(true);
  await fs.unlink(written[3]!, ROOT);
  await put(fs, '/again', Buffer.alloc(BLOCK_BYTES, 99));
  await fs.unmount();
  const report = await checkVolume(volume);
  expect(report.problems).toEqual([]);
  expect(report).toMatchObject({ lostSubBlocks: 0, lostInodes: 0 });
  const again = await volume.mount(2);
  expect((await get(again.fs, '/again')).every((byte) => byte === 99)).toBe(true);
  await again.fs.unmount();
});

/** Fills it up; the paths of what got in. */
async function fill(fs: FileSystem, prefix: string): Promise<string[]> {
  for (const written: string[] = []; ; ) {
    const path = `${prefix}${written.length}`;
    try {
      await put(fs, path, Buffer.alloc(BLOCK_BYTES, written.length + 1));
      written.push(path);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
      return written;
    }
  }
}

test('what another node has just freed is there for the next write: nobody waits for a clock', async () => {
  // The clock of these tests stands still: nothing happens in the background.
  const volume = await TestVolume.create({ blocks: [14, 14], poolPages: 4096 });
  const [one, two] = [await volume.mount(1), await volume.mount(2)];
  const written = await fill(one.fs, '/f');
  expect(written.length).toBeGreaterThan(10);
  for (let round = 0; round < 3; round++) {
    await expect(put(one.fs, '/more', Buffer.alloc(BLOCK_BYTES, 1))).rejects.toMatchObject({ code: 'ENOSPC' });
    await two.fs.unlink(written[round]!, ROOT);
    await put(one.fs, `/again${round}`, Buffer.alloc(BLOCK_BYTES, 77 + round));
  }
  // What is cut off a file comes back too.
  await two.fs.truncate(written[5]!, 0, ROOT);
  await put(one.fs, '/again3', Buffer.alloc(BLOCK_BYTES, 80));
  for (let round = 0; round < 4; round++)
    expect((await get(two.fs, `/again${round}`)).every((byte) => byte === 77 + round)).toBe(true);
  for (const { fs } of [one, two]) await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('T3: a region that is called back as soon as it is there serves what it was taken for', async () => {
  const volume = await TestVolume.create({ blocks: [64] });
  const { fs, tokens } = await volume.mount();
  let over = false;
  const writing = (async () => {
    for (let i = 0; i < 5; i++) await put(fs, `/f${i}`, Buffer.alloc(20_000, i + 1));
  })().finally(() => {
    over = true;
  });
  const map = { start: 0, end: Number.MAX_SAFE_INTEGER };
  for (let round = 0; !over && round < 2000; round++) {
    await turns();
    await tokens.revoke({ class: TokenClass.data, object: ALLOCATION_MAP, range: map, keep: TokenMode.none });
  }
  expect(over).toBe(true);
  await writing;
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0 });
});

test('a full file system is not looked through again as long as nobody has freed anything', async () => {
  const volume = await TestVolume.create({ blocks: [14, 14], poolPages: 4096 });
  const [one, two] = [await volume.mount(1), await volume.mount(2)];
  await two.fs.mkdir('/d', 0o755, ROOT);
  const written = await fill(one.fs, '/f');
  const more = (): Promise<void> => put(one.fs, '/more', Buffer.alloc(BLOCK_BYTES, 1));
  await expect(more()).rejects.toMatchObject({ code: 'ENOSPC' });
  const asked = volume.arbiter.messages;
  for (let i = 0; i < 10; i++) await expect(more()).rejects.toMatchObject({ code: 'ENOSPC' });
  expect(volume.arbiter.messages).toBe(asked);
  await two.fs.unlink(written[0]!, ROOT);
  await more();
  for (const { fs } of [one, two]) await fs.unmount();
});

test("statfs counts what other nodes have written and freed, and not yet brought to the devices' maps", async () => {
  const volume = await TestVolume.create({ blocks: [32, 32], poolPages: 4096 });
  const [one, two] = [await volume.mount(1), await volume.mount(2)];
  const before = await one.fs.statfs();
  await put(two.fs, '/f', Buffer.alloc(5 * BLOCK_BYTES, 1));
  const full = await one.fs.statfs();
  expect(before.freeBytes - full.freeBytes).toBeGreaterThanOrEqual(5 * BLOCK_BYTES);
  expect(before.freeInodes - full.freeInodes).toBe(1);
  expect(await two.fs.statfs()).toEqual(full);
  await two.fs.unlink('/f', ROOT);
  const after = await one.fs.statfs();
  expect(after.freeBytes - full.freeBytes).toBeGreaterThanOrEqual(5 * BLOCK_BYTES);
  expect(after.freeInodes).toBe(before.freeInodes);
  for (const { fs } of [one, two]) await fs.unmount();
});

test('inode numbers that another node has in stock are there for the next create', async () => {
  const volume = await TestVolume.create({ blocks: [64], mkfs: { segmentCount: 1 } });
  const [one, two] = [await volume.mount(1), await volume.mount(2, { inodeBatch: 4096 })];
  const create = async (fs: FileSystem, name: string): Promise<void> =>
    (await fs.open(name, O_CREAT | O_RDWR | O_EXCL, 0o644, ROOT)).close();
  // All that there are.
  await create(two.fs, '/theirs');
  await create(one.fs, '/ours');
  await create(two.fs, '/theirs too');
  await two.fs.unlink('/theirs', ROOT);
  await create(one.fs, '/ours too');
  for (const { fs } of [one, two]) await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: 0 });
});
test.each([1, 1.25, 2])(
  'what was reserved in front of a sequential writer goes back when it closes a file of %d MiB',
  async (mebibytes) => {
    const { fs } = await (await TestVolume.create()).mount();
    const file = await fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
    for (let at = 0; at < mebibytes * BLOCK_BYTES; at += BLOCK_BYTES / 16) {
      await file.write(at, Buffer.alloc(BLOCK_BYTES / 16, 1));
      await turns();
    }
    expect((await file.stat()).allocatedBytes).toBeGreaterThan(mebibytes * BLOCK_BYTES);
    await file.close();
    expect((await fs.stat('/f', ROOT)).allocatedBytes).toBe(mebibytes * BLOCK_BYTES);
    await fs.unmount();
  },
);

test('when whole blocks are scattered, fragments are used to the end', async () => {
  const volume = await TestVolume.create({ blocks: [10] });
  const { fs } = await volume.mount();
  let small = 0;
  try {
    for (; small < 5000; small++) await put(fs, `/s${small}`, Buffer.alloc(20_000, small & 0xff));
  } catch (error) {
    expect(error).toMatchObject({ code: 'ENOSPC' });
  }
  expect(small).toBeGreaterThan(130);
  expect((await fs.statfs()).freeBytes).toBeLessThan(BLOCK_BYTES);
  for (let i = 0; i < small; i += 17) expect((await get(fs, `/s${i}`))[19_999]).toBe(i & 0xff);
  await fs.unmount();
  expect((await checkVolume(volume)).problems).toEqual([]);
});

test('a file system out of inodes says ENOSPC, and creates again after a removal', async () => {
  const volume = await TestVolume.create({ blocks: [64], mkfs: { segmentCount: 1 } });
  const { fs } = await volume.mount();
  const create = async (i: number): Promise<void> =>
    (await fs.open(`/f${i}`, O_CREAT | O_RDWR | O_EXCL, 0o644, ROOT)).close();
  let made = 0;
  await expect(
    (async () => {
      for (; ; made++) await create(made);
    })(),
  ).rejects.toMatchObject({ code: 'ENOSPC', reason: 'noInodes' });
  expect(made).toBe(4096 - 16);
  // At whatever makes an inode, and nothing of it stays; what makes none goes on.
  const before = await fs.stat('/', ROOT);
  const none = { code: 'ENOSPC', reason: 'noInodes' };
  await expect(fs.mkdir('/none', 0o755, ROOT)).rejects.toMatchObject(none);
  await expect(fs.symlink('to', '/none', ROOT)).rejects.toMatchObject(none);
  await expect(fs.mknod('/none', FileType.fifo, 0o644, 0, ROOT)).rejects.toMatchObject(none);
  await expect(fs.open('/', O_TMPFILE | O_RDWR, 0o644, ROOT)).rejects.toMatchObject(none);
  await expect(fs.stat('/none', ROOT)).rejects.toMatchObject({ code: 'ENOENT' });
  const { nlink, mtimeNs, sizeBytes } = await fs.stat('/', ROOT);
  expect({ nlink, mtimeNs, sizeBytes }).toEqual({
    nlink: before.nlink,
    mtimeNs: before.mtimeNs,
    sizeBytes: before.sizeBytes,
  });
  await put(fs, '/f8', Buffer.alloc(100_000, 8));
  await fs.link('/f8', '/f8 too', ROOT);
  await fs.rename('/f9', '/f9 still', ROOT);
  expect((await fs.readdir('/', ROOT)).length).toBe(made + 1);
  await fs.unlink('/f7', ROOT);
  await create(7);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: 0 });
});

test('a sparse file of 5 TiB has few blocks, holes of zeros, and gives all back', async () => {
  const volume = await TestVolume.create({ blocks: [64] });
  const { fs } = await volume.mount();
  const offsets = [0, 300 * BLOCK_BYTES, 70_000 * BLOCK_BYTES + 77, 5 * 2 ** 40];
  for (const offset of offsets) await put(fs, '/sparse', Buffer.from('here'), offset);
  await fs.unmount();
  expect((await checkVolume(volume)).problems).toEqual([]);
  const again = await volume.mount(2);
  const { sizeBytes, allocatedBytes } = await again.fs.stat('/sparse', ROOT);
  expect(sizeBytes).toBe(5 * 2 ** 40 + 4);
  expect(allocatedBytes).toBeLessThan(5 * BLOCK_BYTES);
  const file = await again.fs.open('/sparse', O_RDONLY, 0, ROOT);
  for (const offset of offsets) {
    const content = Buffer.alloc(4);
    await file.read(offset, content);
    expect(content.toString()).toBe('here');
  }
  const hole = Buffer.alloc(8192, 1);
  expect(await file.read(1000 * BLOCK_BYTES, hole)).toBe(8192);
  expect(hole.every((byte) => byte === 0)).toBe(true);
  await file.close();
  await again.fs.truncate('/sparse', 301 * BLOCK_BYTES, ROOT);
  await again.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0 });
  const third = await volume.mount(3);
  await third.fs.unlink('/sparse', ROOT);
  await third.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, inodes: 6 });
});

test('a block that is used again never shows what was in it', async () => {
  const volume = await TestVolume.create({ blocks: [13] });
  const { fs, tokens } = await volume.mount();
  for (let round = 0; round < 4; round++) {
    await put(fs, '/secret', Buffer.alloc(3 * BLOCK_BYTES, 0xaa));
    await fs.sync();
    await fs.unlink('/secret', ROOT);
    await put(fs, '/public', Buffer.from('x'), 2 * BLOCK_BYTES + 5000);
    await put(fs, '/public', Buffer.from('y'), 3 * BLOCK_BYTES - 1);
    await tokens.revokeAll();
    const content = await get(fs, '/public');
    expect(content.filter((byte) => byte !== 0).toString()).toBe('xy');
    await fs.unlink('/public', ROOT);
  }
  await fs.unmount();
});

test('what a node wrote whose allocations died with it never shows: who takes the region clears what is free in it', async () => {
  const volume = await TestVolume.create({ blocks: [17] });
  const dead = await volume.mount(1);
  const lost = await dead.fs.open('/lost', O_CREAT | O_RDWR, 0o644, ROOT);
  await dead.fs.sync();
  await lost.write(0, Buffer.alloc(4 * BLOCK_BYTES, 0xdd));
  await dead.cache.get(lost.ino)!.flush();
  await volume.bury(dead);
  const { fs, tokens } = await volume.mount(2);
  // All that is free, a byte at the end of each block.
  let blocks = 0;
  for (let full = false; !full; )
    await put(fs, '/public', Buffer.from('x'), (blocks + 1) * BLOCK_BYTES - 1).then(
      () => blocks++,
      (error: { code?: string }) => {
        expect(error.code).toBe('ENOSPC');
        full = true;
      },
    );
  expect(blocks).toBeGreaterThan(5);
  await tokens.revokeAll();
  const content = await get(fs, '/public');
  expect(content.filter((byte) => byte !== 0).toString()).toBe('x'.repeat(blocks));
  await fs.unmount();
  expect((await checkVolume(volume)).problems).toEqual([]);
});

test('a file removed while open lives until its last close', async () => {
  const volume = await TestVolume.create();
  const { fs } = await volume.mount();
  await put(fs, '/f', Buffer.alloc(100_000, 7));
  const file = await fs.open('/f', O_RDWR, 0, ROOT);
  await fs.unlink('/f', ROOT);
  await put(fs, '/f', Buffer.from('another'));
  const content = Buffer.alloc(100_000);
  expect(await file.read(0, content)).toBe(100_000);
  expect(content.every((byte) => byte === 7)).toBe(true);
  expect((await file.stat()).nlink).toBe(0);
  await file.write(0, Buffer.from('still writable'));
  await file.close();
  expect((await get(fs, '/f')).toString()).toBe('another');
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('corrupt sectors are named, and nothing else suffers', async () => {
  const volume = await TestVolume.create({ blocks: [64] });
  const first = await volume.mount();
  await first.fs.mkdir('/d', 0o755, ROOT);
  await put(first.fs, '/d/f', Buffer.from('content'));
  await put(first.fs, '/other', Buffer.from('fine'));
  const { ino } = await first.fs.stat('/d/f', ROOT);
  const directory = (await first.fs.stat('/d', ROOT)).ino;
  await first.fs.unmount();
  const spoil = (magic: string, owner: number): void => {
    for (const [sector, bytes] of volume.nsds.devices[0]!)
      if (Buffer.from(bytes.subarray(0, 4)).toString() === magic && Buffer.from(bytes).readUInt32LE(16) === owner) {
        const copy = bytes.slice();
        copy[1000] = copy[1000]! ^ 1;
        volume.nsds.setSector(nsdIndex(0), sector, copy);
      }
  };
  spoil('HWI1', ino);
  const second = await volume.mount(2);
  await expect(second.fs.stat('/d/f', ROOT)).rejects.toMatchObject({ code: 'EUCLEAN', object: `inode ${ino}` });
  expect((await get(second.fs, '/other')).toString()).toBe('fine');
  await second.fs.unmount();
  spoil('HWD1', directory);
  const third = await volume.mount(3);
  await expect(third.fs.readdir('/d', ROOT)).rejects.toMatchObject({
    code: 'EUCLEAN',
    object: `directory ${directory} leaf 0`,
  });
  await third.fs.unmount();
  spoil('HWS1', 0);
  await expect(volume.mount(4)).rejects.toMatchObject({ code: 'EUCLEAN', object: 'superblock' });
});

test('a device that fails for a while loses nothing', async () => {
  const volume = await TestVolume.create();
  const { fs } = await volume.mount();
  await put(fs, '/f', Buffer.alloc(200_000, 5));
  volume.nsds.failWhen((op) => op === 'nsd.write');
  const file = await fs.open('/f', O_RDWR, 0, ROOT);
  await expect(file.sync(false)).rejects.toMatchObject({ code: 'EIO' });
  volume.nsds.failWhen(null);
  await file.sync(false);
  await file.close();
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  const again = await volume.mount(2);
  expect((await get(again.fs, '/f')).every((byte) => byte === 5)).toBe(true);
  await again.fs.unmount();
});
