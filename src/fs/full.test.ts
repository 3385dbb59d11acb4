/** Space is reserved before a write says that it has succeeded: when a file system gets full under several nodes, none of what was acknowledged is lost. */
import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { SeededRandom } from '../common/random.js';
import { BLOCK_BYTES } from '../common/units.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';
import { type FileSystem, FileType, type OpenFile, ROOT } from './file-system-api.js';
import { FIRST_USER_INODE, INODE_MAP } from './layout.js';
import { setInodeUsed, setSegmentFree } from './map-formats.js';
import { Magic, sealSector, sectorFault } from './sector.js';
import { fsIdOf } from './superblock.js';
import { checkVolume, type TestNode, TestVolume, testChecksums } from './testing.js';

const { O_CREAT, O_RDWR } = constants;
const SEEDS = process.env.HOLDFAST_TEST_FULL === '1' ? 20 : 2;

/** Of one file: what was acknowledged, byte by byte. */
interface Written {
  readonly path: string;
  readonly file: OpenFile;
  readonly bytes: Buffer;
  end: number;
}

const open = async (fs: FileSystem, path: string): Promise<Written> => ({
  path,
  file: await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT),
  bytes: Buffer.alloc(8 * BLOCK_BYTES),
  end: 0,
});

/** Appends, small and large, to several files in turn, until nothing fits any more; every other time a hole is left, or something is written over. */
async function fill(files: readonly Written[], random: SeededRandom): Promise<number> {
  let refused = 0;
  for (let turn = 0; refused < 12; turn++) {
    const one = files[turn % files.length]!;
    const length = 1 + Math.floor(random.next() * (random.next() < 0.3 ? BLOCK_BYTES : 9_000));
    const over = random.next() < 0.2;
    const at = over ? Math.floor(random.next() * one.end) : one.end + (random.next() < 0.1 ? 5_000 : 0);
    if (at + length > one.bytes.length) {
      refused++;
      continue;
    }
    const content = Buffer.alloc(length, 1 + (turn % 255));
    try {
      await one.file.write(at, content);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
      // What is there already has its space.
      if (over && at + length <= one.end && !one.bytes.subarray(at, at + length).includes(0)) throw error;
      refused++;
      continue;
    }
    content.copy(one.bytes, at);
    one.end = Math.max(one.end, at + length);
    if (random.next() < 0.05) await one.file.sync(false);
  }
  return refused;
}

test.each(Array.from({ length: SEEDS }, (_, i) => i + 1))(
  'what two nodes were told that they had written while they filled it up together is there, after each unmounted (seed %d)',
  async (seed) => {
    const volume = await TestVolume.create({ blocks: [14, 14], poolPages: 4096, mkfs: { expectedNodes: 2 } });
    const nodes = [await volume.mount(1), await volume.mount(2)];
    const written: Written[] = [];
    await Promise.all(
      nodes.map(async ({ fs }, i) => {
        const files = [await open(fs, `/${i}-a`), await open(fs, `/${i}-b`), await open(fs, `/${i}-c`)];
        written.push(...files);
        await fill(files, new SeededRandom(seed * 10 + i));
      }),
    );
    for (const { file } of written) {
      await file.sync(false);
      await file.close();
    }
    for (const { fs } of nodes) await fs.unmount();
    expect(await checkVolume(volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
    const { fs } = await volume.mount(1);
    for (const { path, bytes, end } of written) {
      expect((await fs.stat(path, ROOT)).sizeBytes, path).toBe(end);
      const file = await fs.open(path, O_RDWR, 0, ROOT);
      const now = Buffer.alloc(end);
      await file.read(0, now);
      expect(now.equals(bytes.subarray(0, end)), path).toBe(true);
      await file.close();
    }
    for (const { path } of written) await fs.unlink(path, ROOT);
    await fs.unmount();
    expect(await checkVolume(volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
  },
);

test('two nodes that run out of inodes at once get all there are, each number once, and say ENOSPC at what needs one more', async () => {
  const volume = await TestVolume.create({ blocks: [64], mkfs: { segmentCount: 1 } });
  const before = await volume.mount(1);
  await before.fs.unmount();
  // Most of them are somebody's.
  const LEFT = 400;
  const owner = { magic: Magic.segment, fsId: fsIdOf(before.fs.superblock.fsUuid), owner: INODE_MAP, index: 0 };
  for (const device of volume.nsds.devices)
    for (const sector of device.values()) {
      if (sectorFault(sector, owner, testChecksums) !== null) continue;
      for (let slot = LEFT + FIRST_USER_INODE; slot < INODES_PER_SEGMENT; slot++) setInodeUsed(sector, slot, true);
      setSegmentFree(sector, LEFT);
      sealSector(sector, testChecksums);
    }
  const nodes = [await volume.mount(1), await volume.mount(2)];
  const fill = async ({ fs }: TestNode, prefix: string): Promise<number> => {
    await fs.mkdir(prefix, 0o755, ROOT);
    for (let made = 0; ; made += 16) {
      const some = await Promise.allSettled(
        Array.from({ length: 16 }, (_, i) => fs.mknod(`${prefix}/${made + i}`, FileType.fifo, 0o644, 0, ROOT)),
      );
      const refused = some.filter((one) => one.status === 'rejected');
      for (const { reason } of refused) expect(reason).toMatchObject({ code: 'ENOSPC', reason: 'noInodes' });
      if (refused.length > 0) return made + 16 - refused.length;
    }
  };
  const made = await Promise.all(nodes.map((node, i) => fill(node, `/by-${i}`)));
  expect(made[0]! + made[1]!).toBe(LEFT - nodes.length);
  // One that goes on one node makes room for one on the other.
  await nodes[0]!.fs.unlink('/by-0/0', ROOT);
  await nodes[1]!.fs.mknod('/by-1/again', FileType.fifo, 0o644, 0, ROOT);
  for (const { fs } of nodes) await fs.unmount();
  const others = INODES_PER_SEGMENT - FIRST_USER_INODE - LEFT;
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: others, lostSubBlocks: 0 });
});

test('a node without a log of its own mounts a full file system with the log of one that is not there, and can make room', async () => {
  const volume = await TestVolume.create({ blocks: [14, 14], poolPages: 4096, mkfs: { expectedNodes: 1 } });
  const one = await volume.mount(1);
  // Blocks, then what is smaller.
  let isFull = false;
  for (let lengthBytes = BLOCK_BYTES, i = 0; lengthBytes >= 16_384; lengthBytes /= 4, isFull = false)
    for (; !isFull; i++) {
      const file = await one.fs.open(`/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
      isFull = await file.write(0, Buffer.alloc(lengthBytes, 1)).then(
        () => false,
        () => true,
      );
      await file.close();
    }
  // Room for a piece of a log, and not for all of one.
  await one.fs.unlink('/f1', ROOT);
  await one.fs.unmount();
  const wanted = { logBytes: 3 * BLOCK_BYTES };
  const two = await volume.mount(2, wanted);
  expect(two.counters.get('fs.noSpace')).toBe(1);
  const third = await volume.mount(3, wanted).then(
    () => 'mounted',
    (error: unknown) => (error as { code: string }).code,
  );
  expect(third).toBe('ENOSPC');
  await two.fs.unlink('/f2', ROOT);
  await two.fs.unmount();
  const nodes = [await volume.mount(1), await volume.mount(2)];
  for (const { fs } of nodes) await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});
