import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { SeededRandom } from '../common/random.js';
import { BLOCK_BYTES } from '../common/units.js';
import { type FileSystem, type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume, turns } from './testing.js';
import { randomFates, VolatileNsds } from './testing-volatile.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;
const FULL = process.env['HOLDFAST_TEST_FULL'] === '1';

/** Steps of a few blocks, and transactions that a step just fits into. */
const SMALL = { stepExtentsMax: 8, transactionBytesMax: 48 * 1024, inodeWriteBehindMs: 3_600_000 };
const sound = { problems: [], lostSubBlocks: 0, lostInodes: 0 };

/** A file with blocks of its own in its inode and below an indirect block, and bytes at its beginning, in its middle and at its end. */
async function makeFile(fs: FileSystem, path: string, from: number, blocks: number): Promise<OpenFile> {
  const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  await file.allocate('allocate', from * BLOCK_BYTES, blocks * BLOCK_BYTES);
  await file.write(0, Buffer.from('first'));
  for (const block of [from + 3, from + (blocks >> 1), from + blocks - 1])
    await file.write(block * BLOCK_BYTES, Buffer.from(`in block ${block}`));
  await file.sync(false);
  return file;
}

async function textAt(file: OpenFile, offset: number, length: number): Promise<string> {
  const bytes = Buffer.alloc(length, 1);
  return bytes.subarray(0, await file.read(offset, bytes)).toString();
}

/** With the inode file and the root as long as they are going to be. */
async function freeAtFirst(fs: FileSystem): Promise<number> {
  await (await fs.open('/first', O_CREAT | O_RDWR, 0o644, ROOT)).close();
  await fs.unlink('/first', ROOT);
  return freeOf(fs);
}
const freeOf = async (fs: FileSystem): Promise<number> => (await fs.statfs()).freeBytes;

const absent = (fs: FileSystem, path: string): Promise<boolean> =>
  fs.stat(path, ROOT).then(
    () => false,
    (error: { code?: string }) => error.code === 'ENOENT',
  );

async function until(isSo: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await isSo())) await turns();
}

test('a file with more space than one transaction gives up is gone at once, and its space comes back in steps', async () => {
  const volume = await TestVolume.create({ blocks: [300, 300], settings: SMALL });
  const { fs, counters } = await volume.mount();
  const before = await freeAtFirst(fs);
  await (await makeFile(fs, '/f', 0, 400)).close();
  await fs.unlink('/f', ROOT);
  expect(await absent(fs, '/f')).toBe(true);
  expect(counters.get('fs.inodesFreed')).toBe(1);
  await until(() => counters.get('fs.inodesFreed') === 2);
  expect(counters.get('fs.cutSteps')).toBeGreaterThan(40);
  expect(await freeOf(fs)).toBe(before);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('a truncation that takes steps has its size at once; what was behind it is never seen again, however soon the file grows', async () => {
  const volume = await TestVolume.create({ blocks: [300, 300], settings: SMALL });
  const one = await volume.mount(1);
  const before = await freeAtFirst(one.fs);
  const file = await makeFile(one.fs, '/f', 0, 400);
  const two = await volume.mount(2);
  const other = await two.fs.open('/f', O_RDWR, 0, ROOT);
  await file.truncate(5);
  expect((await file.stat()).sizeBytes).toBe(5);
  expect((await file.stat()).allocatedBytes).toBeGreaterThan(300 * BLOCK_BYTES);
  // What a sequential writer would get ahead aside. The middle of it is not waited for by those who only look.
  const steps: number[] = [];
  for (let left = Number.POSITIVE_INFINITY; left > 2 * BLOCK_BYTES; ) {
    const stat = await other.stat();
    expect(stat.sizeBytes).toBe(5);
    expect(await textAt(other, 0, 100)).toBe('first');
    expect(await textAt(other, 200 * BLOCK_BYTES, 100)).toBe('');
    left = stat.allocatedBytes;
    steps.push(left);
    await turns();
  }
  // At least one that is neither the first nor the last.
  expect(new Set(steps).size).toBeGreaterThan(2);
  await until(async () => (await file.stat()).allocatedBytes <= 2 * BLOCK_BYTES);
  // And once more, with a writer that comes in the midst, from elsewhere.
  await file.allocate('allocate', 0, 400 * BLOCK_BYTES);
  await file.write(399 * BLOCK_BYTES, Buffer.from('old'));
  await file.truncate(2);
  await other.write(399 * BLOCK_BYTES + 1, Buffer.from('new'));
  for (const at of [file, other]) {
    expect(await textAt(at, 399 * BLOCK_BYTES, 10)).toBe('\0new');
    expect(await textAt(at, 0, 5)).toBe('fi\0\0\0');
    expect(await textAt(at, 200 * BLOCK_BYTES, 8)).toBe('\0'.repeat(8));
  }
  await file.close();
  await other.close();
  await two.fs.unlink('/f', ROOT);
  await until(async () => (await freeOf(one.fs)) === before);
  await one.fs.unmount();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('what is being cut may lose its name, be removed while it is open, and go back to the map in time for who needs room', async () => {
  const volume = await TestVolume.create({ blocks: [300], settings: SMALL });
  const { fs } = await volume.mount();
  const before = await freeAtFirst(fs);
  const file = await makeFile(fs, '/f', 0, 230);
  await file.truncate(1);
  await fs.unlink('/f', ROOT);
  expect(await textAt(file, 0, 10)).toBe('f');
  await file.write(100 * BLOCK_BYTES, Buffer.from('more'));
  expect(await textAt(file, 100 * BLOCK_BYTES - 1, 5)).toBe('\0more');
  await file.close();
  // ENOSPC is said by nobody while space is on its way back.
  await (await makeFile(fs, '/g', 0, 230)).close();
  await fs.unlink('/g', ROOT);
  await (await makeFile(fs, '/h', 0, 230)).close();
  await fs.truncate('/h', 0, ROOT);
  await (await makeFile(fs, '/i', 0, 230)).close();
  await fs.unlink('/h', ROOT);
  await fs.unlink('/i', ROOT);
  await until(async () => (await freeOf(fs)) === before);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

/** After so many of the node's writes nothing of it reaches a device any more. */
function dieAfter({ nsds }: TestNode, writes: number): () => boolean {
  let count = 0;
  let dead = false;
  nsds.deafen(() => {
    if (++count <= writes) return false;
    dead = true;
    nsds.cut();
    return true;
  });
  return () => dead;
}

test.each([
  ['an unlink', (fs: FileSystem) => fs.unlink('/f', ROOT)],
  ['a truncation', (fs: FileSystem) => fs.truncate('/f', 3, ROOT)],
])(
  '%s that dies after any of its writes is brought to its end by who recovers it, or by the next mount',
  async (what, change) => {
    let ended = false;
    for (let writes = 0; !ended; writes += FULL || writes < 8 ? 1 : 3) {
      const volume = await TestVolume.create({
        blocks: [96],
        mkfs: { logBytes: 256 * 1024 },
        settings: SMALL,
        nsds: (blocks, pool) => new VolatileNsds(blocks, pool),
      });
      // Somebody is there, or the power is cut: then of what was not flushed some is there, some not, some torn.
      const survivor = writes % 2 === 0 ? await volume.mount(9) : null;
      const node = await volume.mount(1);
      // Some of it below an indirect block.
      await (await makeFile(node.fs, '/f', 200, 30)).close();
      const isDead = dieAfter(node, writes);
      let done = false;
      const gone = (async () => {
        await change(node.fs);
        await node.fs.sync();
        await until(() => node.fs.usage().dirtyInodes === 0 || isDead());
        done = true;
      })();
      gone.catch(() => undefined);
      for (let i = 0; i < 3_000 && !isDead() && !done; i++) await turns();
      for (let i = 0; i < 20; i++) await turns();
      ended = !isDead();
      if (survivor === null) {
        volume.powerOff([node]);
        (volume.nsds as VolatileNsds).powerCut(randomFates(new SeededRandom(writes)));
      } else await volume.bury(node);
      const { fs } = survivor ?? (await volume.mount(2));
      if (what === 'an unlink' && (await absent(fs, '/f')))
        expect((await freeOf(fs)) / BLOCK_BYTES).toBeGreaterThan(60);
      if (what === 'a truncation') {
        const { sizeBytes, allocatedBytes } = await fs.stat('/f', ROOT);
        expect([3, 230 * BLOCK_BYTES]).toContain(sizeBytes);
        if (sizeBytes === 3) expect(allocatedBytes).toBeLessThanOrEqual(BLOCK_BYTES);
        const file = await fs.open('/f', O_RDWR, 0, ROOT);
        await file.truncate(3);
        await file.truncate(230 * BLOCK_BYTES);
        for (const block of [203, 215, 229]) expect(await textAt(file, block * BLOCK_BYTES, 3)).toBe('\0\0\0');
        await file.close();
      }
      await fs.unmount();
      expect(await checkVolume(volume)).toMatchObject(sound);
    }
  },
);

test('a node that leaves in the midst, others go on: nothing is lost, and nothing has to wait for it', async () => {
  const volume = await TestVolume.create({ blocks: [300, 300], settings: SMALL });
  const one = await volume.mount(1);
  await (await makeFile(one.fs, '/f', 0, 400)).close();
  await one.fs.truncate('/f', 0, ROOT);
  await one.fs.unmount();
  const two = await volume.mount(2);
  await two.fs.unlink('/f', ROOT);
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

test('a file whose blocks were written here and there is exposed in transactions of bounded size', async () => {
  const volume = await TestVolume.create({ blocks: [400], settings: SMALL });
  const { fs } = await volume.mount();
  const file = await fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
  for (let i = 0; i < 100; i++) await file.write((300 + 260 * i) * BLOCK_BYTES, Buffer.from(`block ${i}`));
  for (let i = 0; i < 100; i += 2) await file.allocate('punchHole', (300 + 260 * i) * BLOCK_BYTES, BLOCK_BYTES);
  await file.sync(false);
  for (let i = 1; i < 100; i += 2)
    expect(await textAt(file, (300 + 260 * i) * BLOCK_BYTES, 7 + Number(i > 9))).toBe(`block ${i}`);
  await file.close();
  await fs.unmount();
  const again = await volume.mount(2);
  const there = await again.fs.open('/f', O_RDONLY, 0, ROOT);
  expect(await textAt(there, (300 + 260 * 51) * BLOCK_BYTES, 8)).toBe('block 51');
  await there.close();
  await again.fs.unlink('/f', ROOT);
  await again.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
});

const BLOCKS = FULL ? 200_000 : 4_000;
test(`a file of ${BLOCKS} blocks is truncated, punched and removed, with transactions as long as they may be`, async () => {
  const volume = await TestVolume.create({ blocks: [BLOCKS, BLOCKS >> 2] });
  const { fs, counters } = await volume.mount();
  const before = await freeAtFirst(fs);
  const file = await fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.allocate('allocate', 0, BLOCKS * BLOCK_BYTES);
  await file.allocate('punchHole', BLOCK_BYTES, (BLOCKS / 4) * BLOCK_BYTES);
  await file.truncate((BLOCKS / 2) * BLOCK_BYTES);
  await file.allocate('allocate', 0, BLOCKS * BLOCK_BYTES);
  await file.truncate(0);
  await file.allocate('allocate', 0, BLOCKS * BLOCK_BYTES);
  await file.close();
  await fs.unlink('/f', ROOT);
  await until(() => counters.get('fs.inodesFreed') === 2);
  expect(await freeOf(fs)).toBe(before);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
}, 600_000);
