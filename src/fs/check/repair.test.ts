import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Counters } from '../../common/counters.js';
import { nsdIndex } from '../../common/ids.js';
import { silentLogger } from '../../common/logger.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { copiesOf } from '../../nsd/copies.js';
import { ROOT } from '../file-system-api.js';
import { checkParts, checkVolume } from '../testing.js';
import { type RepairReport, repairFileSystem } from './repair.js';
import { type Contents, DamagedVolume, differences, hasContents, readContents } from './testing-damage.js';
import { findingOf, PLANTED, plantIn } from './testing-planted.js';

let v: DamagedVolume;
beforeAll(async () => {
  v = await DamagedVolume.create();
});
beforeEach(async () => {
  v.restore();
  await plantIn(v);
});

const repairOf = ({ volume }: DamagedVolume): Promise<RepairReport> =>
  repairFileSystem({ ...checkParts(volume), logger: silentLogger, counters: new Counters() }, 2);
const repair = (): Promise<RepairReport> => repairOf(v);

/** Not pointed to before. */
const isNew = (place: string): boolean => {
  const [nsd, sector] = place.split(':').map(Number);
  return !v.scan.space.has(nsdIndex(nsd!), sector!);
};

describe('a file system with', () => {
  test.each(PLANTED.map((planted) => [planted.what, planted] as const))('%s', async (_, planted) => {
    const allowed = new Set((await planted.changed?.()) ?? []);
    await planted.plant();
    const damaged = v.snapshot();
    const { findings } = await checkVolume(v.volume);
    expect(differences(damaged, v.snapshot())).toEqual([]);
    const found = findingOf(planted, findings, JSON.stringify(findings));

    const report = await repair();
    if (planted.mended === false) {
      expect(found.mend).toBeNull();
      expect(report.findings.map(({ kind }) => kind)).toContain(planted.kind);
      expect(differences(damaged, v.snapshot())).toEqual([]);
      return;
    }
    expect(found.mend).not.toBeNull();
    expect(report.findings).toEqual([]);
    expect(report.mended.map(({ kind }) => kind)).toContain(planted.kind);
    expect(await checkVolume(v.volume)).toMatchObject({ findings: [], problems: [], lostSubBlocks: 0, lostInodes: 0 });

    // Nothing else has changed.
    const isAllowed = (place: string): boolean => allowed.has(place) || (planted.usesSpace === true && isNew(place));
    expect(v.changed().filter((place) => !isAllowed(place))).toEqual([]);
    const contents: Contents = new Map(v.contents);
    planted.contents?.(contents);
    const node = await v.volume.mount();
    const now = await readContents(node.fs);
    // What its bytes were before nobody can say.
    if (planted.what === 'a pointer into a log') now.delete('/a/two');
    hasContents(now, contents);
    // It is good for more.
    await node.fs.mkdir('/new', 0o755, ROOT);
    await node.fs.unmount();
    expect(await checkVolume(v.volume)).toMatchObject({ findings: [] });
  });
});

describe('a file system with two copies of metadata, of which', () => {
  let two: DamagedVolume;
  beforeAll(async () => {
    two = await DamagedVolume.create({ metadataCopies: 2 });
  });
  beforeEach(() => two.restore());

  test.each([
    ['an inode', () => two.inodePlace('/a/one')],
    ['an indirect block', () => two.pointer('/a/sparse', 211)],
    ['a leaf', async () => (await two.leaves('/many'))[0]!.place],
    ['a block of attributes', () => two.attributesPointer('/attributes')],
    ['a sector of the allocation map', () => two.region(1)],
    ['a segment of the inode map', () => two.segment(1)],
    ['the descriptor of a log', () => two.logDescriptor(0)],
  ])(
    'one copy of %s is damaged: it is named, a check changes nothing, a repair writes it from the other',
    async (_, find) => {
      const place = await find();
      const copies = copiesOf(place.nsd);
      expect(copies.length).toBe(2);
      for (const nsd of copies)
        for (const damage of ['flip', 'rot', 'zeros'] as const) {
          two.restore();
          const copy = { nsd, sector: place.sector };
          if (damage === 'flip') two.flip(copy, 100);
          else if (damage === 'rot') two.rot(copy);
          else two.write(copy, new Uint8Array(SECTOR_BYTES).fill(1, 7, 9));
          const damaged = two.snapshot();
          const { findings } = await checkVolume(two.volume);
          expect(findings).toMatchObject([{ kind: 'copyDamaged', object: `sector ${place.sector} of NSD ${nsd}` }]);
          expect(differences(damaged, two.snapshot())).toEqual([]);
          const report = await repairOf(two);
          expect(report.findings).toEqual([]);
          expect(report.mended).toMatchObject([{ kind: 'copyDamaged' }]);
          expect(two.changed()).toEqual([]);
          expect(two.volume.nsds.shared.torn.size).toBe(0);
        }
    },
  );

  test('both copies are damaged is mended as what has one, and both are the same afterwards', async () => {
    const { place } = (await two.leaves('/many'))[0]!;
    for (const nsd of copiesOf(place.nsd)) two.rot({ nsd, sector: place.sector });
    const report = await repairOf(two);
    expect(report.findings).toEqual([]);
    expect(report.mended.map(({ kind }) => kind)).toContain('leafDamaged');
    const [a, b] = copiesOf(place.nsd).map((nsd) => two.read({ nsd, sector: place.sector }));
    expect(Buffer.compare(a!, b!)).toBe(0);
    expect(await checkVolume(two.volume)).toMatchObject({ findings: [] });
  });
});
