import { constants } from 'node:fs';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Counters } from '../../common/counters.js';
import { silentLogger } from '../../common/logger.js';
import { BLOCK_BYTES } from '../../common/units.js';
import { type FileSystem, ROOT } from '../file-system-api.js';
import { setU16, setU32 } from '../sector.js';
import { checkParts, checkVolume } from '../testing.js';
import { repairFileSystem } from './repair.js';
import { DamagedVolume, hasAtLeast, type Place, readContents } from './testing-damage.js';
import { DAMAGES, type Damage, OLD_GENERATION } from './testing-damages.js';

const { O_CREAT, O_RDWR } = constants;

let v: DamagedVolume;
beforeAll(async () => {
  // Of segments more than one page of the cache has: those in one page are read together, and one that is damaged hides its neighbours.
  v = await DamagedVolume.create({ segmentCount: 8 });
});
beforeEach(() => v.restore());

const bound = (kinds: Record<string, Damage>): [string, number, (place: Place) => void][] =>
  Object.entries(kinds).map(([what, damage], number) => [what, number, (place) => damage(v, place)]);
const kinds = bound({
  ...DAMAGES,
  'an old generation': OLD_GENERATION,
  'impossible counts': (volume, place) => volume.edit(place, (bytes) => setU32(bytes, 40, 0xfffffff0)),
});
const logKinds = bound({
  ...DAMAGES,
  'impossible lengths': (volume, place) => volume.edit(place, (bytes) => setU16(bytes, 44, 60_000)),
  'an unknown state': (volume, place) => volume.edit(place, (bytes) => void (bytes[40] = 77)),
});
/** One of them for each kind of damage, each of them for some kind; in the full size all for all. */
const FULL = process.env.HOLDFAST_TEST_FULL === '1';
const someOf = (count: number, number: number): number[] =>
  FULL ? Array.from({ length: count }, (_, i) => i) : [number % count];

async function write(fs: FileSystem, path: string, bytes: number): Promise<void> {
  const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  try {
    await file.write(0, Buffer.alloc(bytes, 9));
    await file.sync(false);
  } finally {
    await file.close();
  }
}

async function repaired(): Promise<void> {
  await repairFileSystem({ ...checkParts(v.volume), logger: silentLogger, counters: new Counters() }, 2);
  expect(await checkVolume(v.volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
}

async function hasEverything(): Promise<void> {
  const node = await v.volume.mount(3);
  hasAtLeast(await readContents(node.fs), v.contents);
  await node.fs.unmount();
}

describe.each(kinds)('of the allocation map, with %s,', (_, number, damage) => {
  test('one region less is allocated from; all else goes on, and a repair makes it anew', async () => {
    const regions = v.scan.geometry.regionCount;
    for (const region of someOf(regions, number)) {
      v.restore();
      damage(v.region(region * v.scan.geometry.nsdCount));
      const node = await v.volume.mount();
      await write(node.fs, '/new', 3 * BLOCK_BYTES);
      await node.fs.truncate('/a/block', 10, ROOT);
      await node.fs.truncate('/a/block', BLOCK_BYTES + 5, ROOT);
      expect((await node.fs.statfs()).freeBytes).toBeGreaterThan(0);
      await node.fs.unlink('/new', ROOT);
      await node.fs.unmount();
      // What could not be given back there is nobody's until then; who mounts goes on without.
      const again = await v.volume.mount(2);
      await write(again.fs, '/again', BLOCK_BYTES);
      await again.fs.unlink('/again', ROOT);
      await write(again.fs, '/a/block', BLOCK_BYTES + 5);
      await again.fs.unmount();
      await repaired();
    }
    const node = await v.volume.mount(3);
    expect((await readContents(node.fs)).size).toBe(v.contents.size);
    await node.fs.unmount();
  });

  test('all regions at once: ENOSPC for what needs space, and only for that', async () => {
    const { regionCount, nsdCount } = v.scan.geometry;
    for (let index = 0; index < regionCount * nsdCount; index++) damage(v.region(index));
    await v.volume.mount().then(
      async (node) => {
        await expect(write(node.fs, '/new', 3 * BLOCK_BYTES)).rejects.toMatchObject({ code: 'ENOSPC' });
        expect((await readContents(node.fs)).size).toBeGreaterThanOrEqual(v.contents.size);
        await node.fs.unmount();
      },
      (error: unknown) => {
        throw error;
      },
    );
    await repaired();
    await hasEverything();
  });
});

describe.each(kinds)('of the inode map, with %s,', (_, number, damage) => {
  test('one segment less is created in; all else goes on, and a repair makes it anew', async () => {
    for (const segment of someOf(2, number)) {
      v.restore();
      damage(v.segment(segment));
      const node = await v.volume.mount();
      await write(node.fs, '/new', 100);
      await node.fs.unlink('/many/file-with-a-name-7', ROOT);
      await node.fs.statfs();
      await node.fs.unmount();
      const again = await v.volume.mount(2);
      await write(again.fs, '/newer', 100);
      for (const path of ['/new', '/newer']) await again.fs.unlink(path, ROOT);
      await write(again.fs, '/many/file-with-a-name-7', 9);
      await again.fs.unmount();
      await repaired();
    }
  });

  test('all segments at once: ENOSPC for what is created, and only for that', async () => {
    for (let segment = 0; segment < 8; segment++) damage(v.segment(segment));
    const node = await v.volume.mount();
    await expect(write(node.fs, '/new', 100)).rejects.toMatchObject({ code: 'ENOSPC', reason: 'noInodes' });
    await write(node.fs, '/a/one', 5 * BLOCK_BYTES);
    await node.fs.unmount();
    await repaired();
  });
});

describe.each(logKinds)("of the table of logs, with a log's descriptor that has %s,", (_, __, damage) => {
  test('nobody mounts as if it were not there: it is named; who is there goes on; a repair says what is lost', async () => {
    const node = await v.volume.mount(1);
    damage(v.logDescriptor(5));
    await expect(v.volume.mount(2)).rejects.toMatchObject({ code: 'EUCLEAN', object: 'log 5' });
    await write(node.fs, '/new', 100);
    await node.fs.unlink('/new', ROOT);
    // Of its own it says again what it is.
    damage(v.logDescriptor(0));
    await node.fs.sync();
    await node.fs.unmount();
    await expect(v.volume.mount(2)).rejects.toMatchObject({ code: 'EUCLEAN', object: 'log 5' });
    await repaired();
    await hasEverything();
  });

  test('of a node that died, its recovery says so, and does not go on as if it had logged nothing', async () => {
    const node = await v.volume.mount(1);
    await write(node.fs, '/new', 100);
    damage(v.logDescriptor(0));
    node.nsds.cut();
    await expect(v.volume.recover(node)).rejects.toMatchObject({ code: 'EUCLEAN', object: 'log 0' });
    v.volume.powerOff([node]);
    await expect(v.volume.mount(2)).rejects.toMatchObject({ code: 'EUCLEAN', object: 'log 0' });
    await repaired();
    const again = await v.volume.mount(2);
    expect((await readContents(again.fs)).size).toBeGreaterThanOrEqual(v.contents.size);
    await again.fs.unmount();
  });
});
