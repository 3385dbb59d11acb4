import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { nsdIndex } from '../common/ids.js';
import { below, type Random, SeededRandom } from '../common/random.js';
import { BLOCK_BYTES } from '../common/units.js';
import { copiesOf, firstCopy, mirrored, secondCopy } from '../nsd/copies.js';
import { ROOT } from './file-system-api.js';
import { ALLOCATION_MAP, type Extent } from './layout.js';
import { allMetadata, metadataOf } from './metadata-extents.js';
import { readSuperblock } from './mount.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;
const TWO_COPIES = { blocks: [48, 48, 48], mkfs: { metadataCopies: 2 as const } };

async function put(node: TestNode, path: string, bytes: Buffer): Promise<void> {
  const file = await node.fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, bytes);
  await file.sync(false);
  await file.close();
}

async function contentOf(node: TestNode, path: string): Promise<Buffer> {
  const file = await node.fs.open(path, O_RDONLY, 0, ROOT);
  const bytes = Buffer.alloc((await file.stat()).sizeBytes);
  await file.read(0, bytes);
  await file.close();
  return bytes;
}

/** Directories, names, attributes, files of all sizes; some go again. */
async function load(node: TestNode, random: Random, rounds = 40): Promise<Map<string, Buffer>> {
  const there = new Map<string, Buffer>();
  for (let i = 0; i < rounds; i++) {
    const directory = `/d${node.life.nodeId}-${i % 5}`;
    if (i < 5) await node.fs.mkdir(directory, 0o755, ROOT);
    const path = `${directory}/file-${i}`;
    const bytes = Buffer.alloc(1 + below(random, [100, 5_000, 300_000][below(random, 3)]!), i + 1);
    await put(node, path, bytes);
    there.set(path, bytes);
    if (below(random, 4) === 0) {
      await node.fs.unlink(path, ROOT);
      there.delete(path);
    }
  }
  return there;
}

/** Sectors of metadata that are not the same on both copies. */
async function differences(volume: TestVolume): Promise<string[]> {
  const found: string[] = [];
  for (const { nsd, sector, count } of await allMetadata(volume.storage())) {
    const [first, second] = copiesOf(nsd);
    expect(second).toBeDefined();
    for (let at = sector; at < sector + count; at++)
      if (Buffer.compare(volume.nsds.sector(first!, at), volume.nsds.sector(second!, at)) !== 0)
        found.push(`sector ${at} of NSDs ${first} and ${second}`);
  }
  return found;
}

test('one number names one NSD or two', () => {
  const both = mirrored(nsdIndex(3), nsdIndex(95));
  expect([firstCopy(both), secondCopy(both)]).toEqual([3, 95]);
  expect(copiesOf(both)).toEqual([3, 95]);
  expect(copiesOf(nsdIndex(3))).toEqual([3]);
  expect(secondCopy(nsdIndex(3))).toBeNull();
});

test('metadata has two copies in two failure groups, which are equal when all is written', async () => {
  const volume = await TestVolume.create(TWO_COPIES);
  const node = await volume.mount();
  const there = await load(node, new SeededRandom(1));
  await node.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  expect(await differences(volume)).toEqual([]);
  const again = await volume.mount();
  for (const [path, bytes] of there) expect(await contentOf(again, path)).toEqual(bytes);
  await again.fs.unmount();
});

test('a sector that one copy has lost is read from the other, and mended', async () => {
  const volume = await TestVolume.create(TWO_COPIES);
  const node = await volume.mount();
  const there = await load(node, new SeededRandom(2));
  await node.fs.unmount();
  // Of every NSD every third sector of metadata: of each sector one copy at most.
  const metadata = await allMetadata(volume.storage());
  const lost = new Set<string>();
  for (const { nsd, sector, count } of metadata)
    for (let at = sector; at < sector + count; at++) lost.add(`${copiesOf(nsd)[at % 2]} ${at}`);
  volume.nsds.failWhen((op, io) => {
    for (let at = io.sector; at < io.sector + io.memory.lengthBytes / 4096; at++) {
      if (op === 'nsd.write') lost.delete(`${io.nsd} ${at}`);
      if (op === 'nsd.read' && lost.has(`${io.nsd} ${at}`)) return true;
    }
    return false;
  });
  const again = await volume.mount();
  for (const [path, bytes] of there) expect(await contentOf(again, path)).toEqual(bytes);
  expect(again.counters.get('nsd.copiesMended')).toBeGreaterThan(0);
  await again.fs.unmount();
  volume.nsds.failWhen(null);
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  expect(await differences(volume)).toEqual([]);
});

test('after recovery both copies are equal, wherever the node was cut off between them (I11)', async () => {
  for (let seed = 1; seed <= 4; seed++) {
    const volume = await TestVolume.create({ ...TWO_COPIES, seed });
    const node = await volume.mount();
    const other = await volume.mount(2);
    const random = new SeededRandom(seed);
    const there = await load(node, random, 20);
    // From here on one NSD gets nothing any more of what this node writes: it died between the two copies.
    const deaf = below(random, 3);
    let dead = false;
    node.nsds.deafen((io) => io.nsd === deaf);
    const more = load({ ...node, life: { ...node.life, nodeId: 9 } }, random, 20).catch(() => undefined);
    for (let turn = 0; turn < 20 + 60 * seed && !dead; turn++) await new Promise((resolve) => setImmediate(resolve));
    dead = true;
    await volume.bury(node);
    await Promise.race([more, new Promise((resolve) => setImmediate(resolve))]);
    for (const [path, bytes] of there) expect(await contentOf(other, path)).toEqual(bytes);
    await other.fs.unmount();
    expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(await differences(volume), `seed ${seed}`).toEqual([]);
  }
}, 60_000);

async function until(volume: TestVolume, condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    if (i > 20_000) throw new Error('it never came to that');
    await (i % 100 === 99 ? volume.clock.advance(500) : new Promise((resolve) => setImmediate(resolve)));
  }
}

test('an NSD that is away is marked stale, work goes on, and when it is back everything comes to it (S5)', async () => {
  for (let seed = 1; seed <= 3; seed++) {
    const volume = await TestVolume.create({ ...TWO_COPIES, seed });
    const node = await volume.mount();
    const other = await volume.mount(2);
    const random = new SeededRandom(seed);
    const there = await load(node, random, 15);
    const away = nsdIndex(below(random, 3));
    // Metadata alone: what has one copy is away with its NSD.
    volume.nsds.away.add(away);
    for (let i = 0; i < 30; i++) {
      const one = i % 2 === 0 ? node : other;
      await one.fs.mkdir(`/away${seed}-${i}`, 0o755, ROOT);
      const file = await one.fs.open(`/away${seed}-${i}/empty`, O_CREAT | O_RDWR, 0o644, ROOT);
      await file.close();
      if (i % 3 === 0) await one.fs.setXattr(`/away${seed}-${i}/empty`, true, 'user.a', Buffer.alloc(6_000, i), ROOT);
      if (i % 5 === 0 && i > 0) await one.fs.rename(`/away${seed}-${i}/empty`, `/away${seed}-${i - 1}/moved`, ROOT);
    }
    await node.fs.sync();
    expect(volume.copies.stateOf(away)).toBe('stale');
    expect(volume.copies.marks).toEqual([away]);
    volume.nsds.away.delete(away);
    volume.copies.changed();
    // Both go on meanwhile.
    for (let i = 0; i < 15; i++) await (i % 2 === 0 ? node : other).fs.mkdir(`/back${seed}-${i}`, 0o755, ROOT);
    await until(volume, () => volume.copies.stateOf(away) === 'up');
    for (const [path, bytes] of there) expect(await contentOf(other, path)).toEqual(bytes);
    await other.fs.unmount();
    await node.fs.unmount();
    expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(await differences(volume), `seed ${seed}`).toEqual([]);
  }
}, 60_000);

test('a node dies while an NSD is stale: its log is redone from the other copy, and the NSD comes back', async () => {
  const volume = await TestVolume.create(TWO_COPIES);
  const node = await volume.mount();
  const other = await volume.mount(2);
  const away = nsdIndex(1);
  for (let i = 0; i < 10; i++) await node.fs.mkdir(`/before${i}`, 0o755, ROOT);
  await node.fs.sync();
  volume.nsds.away.add(away);
  for (let i = 0; i < 10; i++) await node.fs.mkdir(`/after${i}`, 0o755, ROOT);
  await node.fs.sync();
  await volume.bury(node);
  for (let i = 0; i < 10; i++) expect((await other.fs.stat(`/after${i}`, ROOT)).nlink).toBe(2);
  volume.nsds.away.delete(away);
  volume.copies.changed();
  await until(volume, () => volume.copies.stateOf(away) === 'up');
  await other.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  expect(await differences(volume)).toEqual([]);
});

test('the last copy that is up to date is never given up: what needs it waits, and fails', async () => {
  const volume = await TestVolume.create({ ...TWO_COPIES, blocks: [48, 48] });
  const node = await volume.mount();
  await node.fs.mkdir('/one', 0o755, ROOT);
  volume.nsds.away.add(nsdIndex(0));
  await node.fs.mkdir('/two', 0o755, ROOT);
  await node.fs.sync();
  expect(volume.copies.marks).toEqual([0]);
  volume.nsds.away.add(nsdIndex(1));
  await node.fs.mkdir('/three', 0o755, ROOT).catch(() => undefined);
  await expect(node.fs.sync()).rejects.toMatchObject({ code: 'EIO' });
  expect(volume.copies.marks).toEqual([0]);
  volume.nsds.away.clear();
  volume.copies.changed();
  await until(volume, () => volume.copies.stateOf(nsdIndex(0)) === 'up');
  await node.fs.sync();
  await node.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [] });
  expect(await differences(volume)).toEqual([]);
});

test('metadata that can not be read now is not passed over; what is damaged is, and named', async () => {
  const volume = await TestVolume.create(TWO_COPIES);
  const node = await volume.mount();
  const file = await node.fs.open('/sparse', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(230 * BLOCK_BYTES, Buffer.from('below an indirect block'));
  const { ino } = await file.stat();
  await file.close();
  await node.fs.unmount();
  const storage = volume.storage();
  const ofFile = async (): Promise<(Extent | null)[]> => {
    const extents: (Extent | null)[] = [];
    for await (const found of metadataOf(storage, await readSuperblock(storage)))
      if (found.ino === ino && found.kind === 'owned') extents.push(found.extent);
    return extents;
  };
  const [indirect] = await ofFile();
  volume.nsds.failWhen((op, io) => op === 'nsd.read' && io.sector === indirect!.sector);
  await expect(ofFile()).rejects.toMatchObject({ code: 'EIO', reason: 'deviceError' });
  volume.nsds.failWhen(null);
  for (const copy of copiesOf(indirect!.nsd)) volume.nsds.setSector(copy, indirect!.sector, Buffer.alloc(4096, 7));
  expect(await ofFile()).toEqual([null]);
});

test("a copy does not come up while the inode of a map is damaged: what it has can't be compared", async () => {
  const volume = await TestVolume.create(TWO_COPIES);
  const node = await volume.mount();
  for (let i = 0; i < 10; i++) await node.fs.mkdir(`/before${i}`, 0o755, ROOT);
  await node.fs.sync();
  const { inodeFile } = node.fs.superblock;
  const place = inodeFile.sector + ALLOCATION_MAP;
  const before = copiesOf(inodeFile.nsd).map((nsd) => ({ nsd, bytes: volume.nsds.sector(nsd, place).slice() }));
  const away = nsdIndex(1);
  volume.nsds.away.add(away);
  await node.fs.mkdir('/one', 0o755, ROOT);
  await node.fs.sync();
  expect(volume.copies.stateOf(away)).toBe('stale');
  for (const { nsd, bytes } of before)
    volume.nsds.setSector(
      nsd,
      place,
      bytes.map((byte, at) => (at === 44 ? 99 : byte)),
    );
  volume.nsds.away.delete(away);
  volume.copies.changed();
  await until(volume, () => node.counters.get('resync.failed') > 0);
  expect(volume.copies.stateOf(away)).toBe('resync');
  for (const { nsd, bytes } of before) volume.nsds.setSector(nsd, place, bytes);
  volume.copies.changed();
  await until(volume, () => volume.copies.stateOf(away) === 'up');
  await node.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});
