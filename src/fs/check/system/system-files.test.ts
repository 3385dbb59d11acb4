import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Counters } from '../../../common/counters.js';
import { nsdIndex } from '../../../common/ids.js';
import { silentLogger } from '../../../common/logger.js';
import { SECTOR_BYTES } from '../../../common/units.js';
import { copiesOf } from '../../../nsd/copies.js';
import { EMPTY_AREA } from '../../inode-format.js';
import { ALLOCATION_MAP, type Extent, INODE_FILE, INODE_MAP, LOG_TABLE } from '../../layout.js';
import { isZero, setI64, setU16, setU32 } from '../../sector.js';
import { checkParts, checkVolume } from '../../testing.js';
import type { Finding } from '../findings.js';
import { walkPointers } from '../pointer-walk.js';
import { type RepairReport, repairFileSystem } from '../repair.js';
import {
  copyTexts,
  DamagedVolume,
  differences,
  hasContents,
  mapPlaces,
  type Place,
  readContents,
} from '../testing-damage.js';

const FULL = process.env.HOLDFAST_TEST_FULL === '1';

const FILES = [
  ['the inode file', INODE_FILE],
  ['the allocation map', ALLOCATION_MAP],
  ['the inode map', INODE_MAP],
  ['the table of logs', LOG_TABLE],
] as const;

type Damage = (v: DamagedVolume, ino: number) => void;
const DAMAGES: Record<string, Damage> = {
  'can not be read': (v, ino) => v.rot(v.inodePlace(ino)),
  'is zeros': (v, ino) => v.write(v.inodePlace(ino), new Uint8Array(SECTOR_BYTES)),
  'is of another file system': (v, ino) => v.edit(v.inodePlace(ino), (bytes) => setI64(bytes, 8, 99n)),
  "is in another's place": (v, ino) => v.edit(v.inodePlace(ino), (bytes) => setU32(bytes, 24, 7)),
  'has impossible lengths': (v, ino) => v.edit(v.inodePlace(ino), (bytes) => setU16(bytes, 108, 60_000)),
  'has a flipped bit in a pointer': (v, ino) => v.flip(v.inodePlace(ino), 640 + 11),
  'has no pointers, under a good checksum': (v, ino) => v.editInode(ino, (fields) => void (fields.area = EMPTY_AREA)),
  'points to what is not its, under a good checksum': (v, ino) =>
    v.editInode(ino, (fields) => void (fields.area = v.fields('/a/block').area)),
};

/** What is tried on two copies, in the short size. */
const BOTH = new Set(FULL ? Object.keys(DAMAGES) : ['can not be read', 'has a flipped bit in a pointer']);

const repair = ({ volume }: DamagedVolume): Promise<RepairReport> =>
  repairFileSystem({ ...checkParts(volume), logger: silentLogger, counters: new Counters() }, 2);

/** A block of the inode file in which no inode has ever been is nowhere to be seen when no pointer leads to it: it is given back. */
const isUsed = (v: DamagedVolume, { nsd, sector, count }: Extent): boolean =>
  Array.from({ length: count }, (_, i) => v.read({ nsd, sector: sector + i })).some((bytes) => !isZero(bytes));
const isGivenBack = ({ kind }: Finding): boolean => kind === 'spaceLost';

/** What of an inode is not a matter of time. */
async function essence(v: DamagedVolume, ino: number): Promise<unknown> {
  const fields = v.fields(ino);
  const pointers: string[] = [];
  await walkPointers(v.scan, INODE_FILE, fields, {
    block: (block, { nsd, sector, count }) => {
      if (isUsed(v, { nsd, sector, count }))
        pointers.push(`${block}: ${copiesOf(nsd).toSorted().join('+')} ${sector} ${count}`);
    },
    indirect: ({ level, firstBlock }) => pointers.push(`level ${level} from ${firstBlock}`),
    broken: (_, why) => pointers.push(why),
  });
  const { type, mode, nlink, sizeBytes, flags, generation } = fields;
  // The inode file ends with the last block that there is.
  return { type, mode, nlink, sizeBytes: ino === INODE_FILE ? 0 : sizeBytes, flags, generation, pointers };
}

async function hasEverything(v: DamagedVolume): Promise<void> {
  const node = await v.volume.mount();
  const now = await readContents(node.fs);
  await node.fs.unmount();
  hasContents(now, v.contents);
}

async function isMended(v: DamagedVolume, ino: number, damage: Damage): Promise<void> {
  v.restore();
  const before = await essence(v, ino);
  damage(v, ino);
  const damaged = v.snapshot();
  const { findings } = await checkVolume(v.volume);
  expect(findings.filter((one) => !isGivenBack(one))).toMatchObject([
    { kind: 'systemInode', object: `inode ${ino}`, mend: expect.stringMatching(/made anew/) },
  ]);
  expect(differences(damaged, v.snapshot())).toEqual([]);
  const report = await repair(v);
  expect(report.findings).toEqual([]);
  expect(report.mended.filter((one) => !isGivenBack(one))).toMatchObject([{ kind: 'systemInode' }]);
  const other = report.mended.filter(isGivenBack);
  expect(other.length).toBeLessThanOrEqual(ino === INODE_FILE ? copiesOf(v.inodePlace(ino).nsd).length : 0);
  const places = copyTexts(v.inodePlace(ino));
  if (other.length > 0) places.push(...mapPlaces(v));
  expect(v.changed().filter((place) => !places.includes(place))).toEqual([]);
  expect(await essence(v, ino)).toEqual(before);
  expect(v.volume.nsds.shared.torn.size).toBe(0);
}

describe.each([
  ['one copy', 1],
  ['two copies', 2],
] as const)('in a file system with %s of metadata, both damaged where there are two,', (_, metadataCopies) => {
  let v: DamagedVolume;
  beforeAll(async () => {
    v = await DamagedVolume.create({ metadataCopies });
  });
  beforeEach(() => v.restore());

  test.each(FILES)('the inode of %s is named, and made anew as it was; nothing else is touched', async (_, ino) => {
    for (const [what, damage] of Object.entries(DAMAGES).filter(([what]) => metadataCopies === 1 || BOTH.has(what)))
      await isMended(v, ino, damage).catch((error: unknown) => {
        throw new Error(`of one that ${what}`, { cause: error });
      });
  });

  test('all of them at once are, and everything is there', async () => {
    for (const [, ino] of FILES) v.rot(v.inodePlace(ino));
    const report = await repair(v);
    expect(report.findings).toEqual([]);
    const mended = report.mended.filter((one) => !isGivenBack(one)).map(({ object }) => object);
    expect(mended.sort()).toEqual(['inode 1', 'inode 3', 'inode 4', 'inode 6']);
    expect(await checkVolume(v.volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
    await hasEverything(v);
  });
});

describe('in a file system of which', () => {
  let v: DamagedVolume;
  beforeAll(async () => {
    // The segment in which node 20 creates lies below an indirect block of the inode file.
    v = await DamagedVolume.create({ segmentCount: 40 }, 20);
  });
  beforeEach(() => v.restore());
  const damagedInode = () => v.rot(v.inodePlace(INODE_FILE));

  const indirect = (): Place => v.scan.system.get(INODE_FILE)!.indirects[0]!;

  test('an indirect block of the inode file is damaged, it is made anew in its place, and nothing else', async () => {
    for (const damage of [() => v.rot(indirect()), () => v.edit(indirect(), (bytes) => setU32(bytes, 32, 0))]) {
      v.restore();
      damage();
      const report = await repair(v);
      expect(report.findings).toEqual([]);
      expect(report.mended[0]).toMatchObject({ kind: 'systemInode', object: 'inode 1' });
      expect(report.mended[0]!.detail).toMatch(/indirect block of level 1 from block 211 on/);
      const may = [...copyTexts(indirect()), ...copyTexts(v.inodePlace(INODE_FILE)), ...mapPlaces(v)];
      expect(v.changed().filter((place) => !may.includes(place))).toEqual([]);
    }
    await hasEverything(v);
  });

  test('the inode of the inode file is damaged, its indirect blocks get a new place; the old one is given back', async () => {
    damagedInode();
    const report = await repair(v);
    expect(report.findings).toEqual([]);
    expect(await checkVolume(v.volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
    await hasEverything(v);
  });

  /** Its second block, or what looks like it, as the bytes of a file that somebody owns. */
  const blockOf = (home: Place): Uint8Array[] =>
    Array.from({ length: 256 }, (_, i) => v.read({ nsd: home.nsd, sector: home.sector + i }));
  const secondBlock = (): Place => {
    const { nsd, sector } = v.inodePlace(v.ino('/a/one'));
    return { nsd, sector: sector - (v.ino('/a/one') % 256) };
  };

  test("somebody keeps a copy of the inode file's blocks in a file, the copy is told from the original", async () => {
    const to = v.pointer('/a/block');
    for (const [i, bytes] of blockOf(secondBlock()).entries()) v.write({ nsd: to.nsd, sector: to.sector + i }, bytes);
    damagedInode();
    const report = await repair(v);
    expect(report.findings).toEqual([]);
    const node = await v.volume.mount();
    const now = await readContents(node.fs);
    await node.fs.unmount();
    expect([...now.keys()].sort()).toEqual([...v.contents.keys()].sort());
    expect(
      (now.get('/a/block') as Buffer).subarray(0, 100).equals(Buffer.from(blockOf(secondBlock())[0]!.subarray(0, 100))),
    ).toBe(true);
  });

  test('a block of the inode file is there twice, and nothing tells which it is: that is said, and nothing is touched', async () => {
    const free = { nsd: nsdIndex(0), sector: 38 * 256 };
    for (const [i, bytes] of blockOf(secondBlock()).entries())
      v.write({ nsd: free.nsd, sector: free.sector + i }, bytes);
    for (let index = 0; index < v.scan.geometry.regionCount * v.scan.geometry.nsdCount; index++) v.rot(v.region(index));
    damagedInode();
    const damaged = v.snapshot();
    const report = await repair(v);
    expect(report.findings).toMatchObject([
      {
        kind: 'systemInode',
        object: 'inode 1',
        mend: null,
        detail: expect.stringMatching(/block \d+ of it is at sector \d+ of NSD \d and at sector \d+ of NSD \d/),
      },
    ]);
    expect(differences(damaged, v.snapshot())).toEqual([]);
  });

  test.each([
    ['the allocation map', ALLOCATION_MAP],
    ['the table of logs', LOG_TABLE],
  ])('nothing is left of %s or its inode, the rest is believed where mkfs puts it', async (_, ino) => {
    const { nsd, sector, count } = v.scan.system.get(ino)!.blocks.get(0)!;
    for (let i = 0; i < count; i++) v.rot({ nsd, sector: sector + i });
    v.rot(v.inodePlace(ino));
    const report = await repair(v);
    expect(report.findings).toEqual([]);
    await hasEverything(v);
  });

  test('nothing is left of any of the maps, it is said what is not found, and nothing is touched', async () => {
    for (const ino of [ALLOCATION_MAP, INODE_MAP, LOG_TABLE]) {
      const { nsd, sector, count } = v.scan.system.get(ino)!.blocks.get(0)!;
      for (let i = 0; i < count; i++) v.rot({ nsd, sector: sector + i });
      v.rot(v.inodePlace(ino));
    }
    const damaged = v.snapshot();
    const report = await repair(v);
    expect(report.findings.map(({ kind, object }) => `${kind} ${object}`)).toEqual(
      [3, 4, 6].map((ino) => `systemInode inode ${ino}`),
    );
    for (const { mend, detail } of report.findings) {
      expect(mend).toBeNull();
      expect(detail).toMatch(/nothing of its block 0 is found, neither where mkfs puts it nor elsewhere/);
    }
    expect(differences(damaged, v.snapshot())).toEqual([]);
  });
});
