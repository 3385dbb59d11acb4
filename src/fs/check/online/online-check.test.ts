import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { nsdIndex } from '../../../common/ids.js';
import { SECTOR_BYTES } from '../../../common/units.js';
import { copiesOf } from '../../../nsd/copies.js';
import { ROOT } from '../../file-system-api.js';
import { checkVolume, type TestNode, TestVolume, turns } from '../../testing.js';
import { DamagedVolume } from '../testing-damage.js';
import { findingOf, PLANTED, plantIn } from '../testing-planted.js';
import type { OnlineReport } from './online-report.js';
import { TestLoad } from './testing-load.js';

const OPERATIONS = process.env.HOLDFAST_TEST_FULL === '1' ? 3_000 : 300;

const TICK_MS = 500;
const TURNS_PER_TICK = 200;

const reportText = (report: OnlineReport): string => JSON.stringify(report.findings);

/** A node checks while others work, and with `too` works itself. */
async function underLoad<T>(
  volume: TestVolume,
  load: { readonly seed: number; readonly quiet?: boolean; readonly too?: boolean; readonly mayFail?: boolean },
  check: (node: TestNode, load: TestLoad) => Promise<T>,
): Promise<T> {
  const nodes = [await volume.mount(1), await volume.mount(2), await volume.mount(3)];
  const [first, , third] = nodes as [TestNode, TestNode, TestNode];
  const paths = ['/load', '/load/one', '/load/two'];
  let isUsable = load.quiet !== true;
  if (isUsable)
    for (const path of paths)
      await first.fs.mkdir(path, 0o755, ROOT).catch(() => {
        isUsable = false;
      });
  const working = isUsable ? nodes.slice(0, load.too === true ? 3 : 2) : [];
  const running = new TestLoad(
    working.map(({ fs }) => fs),
    paths,
    load.seed,
    () => load.mayFail === true,
  );
  // Their backgrounds write out and free meanwhile.
  const ticking = new AbortController();
  const ticks = (async () => {
    while (!ticking.signal.aborted) {
      await volume.clock.advance(TICK_MS);
      for (let i = 0; i < TURNS_PER_TICK; i++) await turns();
    }
  })();
  try {
    return await check(third, running);
  } finally {
    ticking.abort();
    await ticks;
    await running.stop();
    if (load.mayFail === true) volume.powerOff(nodes);
    else for (const { fs } of nodes) await fs.unmount();
  }
}

describe('while two nodes work in it, a file system with', () => {
  let v: DamagedVolume;
  beforeAll(async () => {
    v = await DamagedVolume.create();
  });
  beforeEach(async () => {
    v.restore();
    await plantIn(v);
  });
  const found = PLANTED.filter(({ onlyOffline }) => onlyOffline === undefined);

  test.each(found.map((planted) => [planted.what, planted] as const))(
    '%s: it is found and named',
    async (_, planted) => {
      await planted.plant();
      const load = { seed: 1, mayFail: true, quiet: planted.usedUp === true };
      const report = await underLoad(v.volume, load, ({ fs }) => fs.checkOnline());
      const one = findingOf(planted, report.findings, reportText(report));
      expect(one.mend === null).toBe(planted.kind !== 'superblockCopy');
    },
  );
});

describe('what a check of a mounted file system can not see it says:', () => {
  let v: DamagedVolume;
  beforeAll(async () => {
    v = await DamagedVolume.create();
  });
  beforeEach(async () => {
    v.restore();
    await plantIn(v);
  });
  const quiet = { seed: 1, quiet: true };
  const countsOf = async (): Promise<Map<string, number>> => {
    const report = await underLoad(v.volume, quiet, ({ fs }) => fs.checkOnline());
    expect(report.findings).toEqual([]);
    return new Map(report.notChecked.map(({ kind, count }) => [kind, count]));
  };

  test.each([
    ['lost space', 'lostSpace', 30],
    ['a lost number', 'lostNumbers', 1],
    ['a mark of shipped frees that is ahead of its log', 'freeMarks', 0],
  ] as const)('%s', async (what, kind, more) => {
    const sound = await countsOf();
    v.restore();
    await PLANTED.find((planted) => planted.what === what)!.plant();
    const counts = await countsOf();
    expect(counts.get(kind)! - (sound.get(kind) ?? 0)).toBe(more);
    expect(counts.get(kind)).toBeGreaterThan(0);
  });

  test('an orphan, which may be a file that is open; logs of those who are there; bytes, when they are not asked for', async () => {
    await PLANTED.find(({ kind }) => kind === 'orphan')!.plant();
    const counts = await countsOf();
    expect(counts.get('nameless')).toBe(1);
    expect(counts.get('logs')).toBe(3);
    expect(counts.get('data')).toBeGreaterThan(200);
  });

  test('a name in a leaf that is damaged: nothing is said of what it names', async () => {
    await PLANTED.find(({ what }) => what === 'a leaf that can not be read')!.plant();
    const report = await underLoad(v.volume, quiet, ({ fs }) => fs.checkOnline());
    expect(report.findings.map(({ kind }) => kind)).toEqual(['leafDamaged']);
    expect(report.notChecked.find(({ kind }) => kind === 'hidden')!.count).toBeGreaterThan(10);
  });

  test("a file's bytes are read when that is asked for, and what can't be is named", async () => {
    const block = v.pointer('/a/block');
    v.rot({ nsd: block.nsd, sector: block.sector + 100 });
    const report = await underLoad(v.volume, { seed: 2, mayFail: true }, ({ fs }) => fs.checkOnline({ data: true }));
    expect(report.findings).toMatchObject([
      {
        kind: 'dataUnreadable',
        object: `inode ${v.ino('/a/block')}, sectors ${block.sector + 100} of NSD ${block.nsd}`,
      },
    ]);
    expect(report.findings[0]!.path).toBe('/a/block');
  });

  test("a damaged descriptor of a log that nobody uses is found, of one in use its node's is not waited for", async () => {
    const report = await underLoad(v.volume, quiet, ({ fs }) => {
      v.edit(v.logDescriptor(200), (bytes) => bytes.fill(7));
      return fs.checkOnline();
    });
    expect(report.findings).toMatchObject([{ kind: 'logDescriptorDamaged', object: 'log 200' }]);
  });
});

describe('with two copies of metadata, of which one is damaged while nodes work: it is named, and with repair written from the other:', () => {
  let two: DamagedVolume;
  beforeAll(async () => {
    two = await DamagedVolume.create({ metadataCopies: 2 });
  });
  beforeEach(() => two.restore());

  test.each([
    ['an inode', () => two.inodePlace('/a/one'), false],
    ['an indirect block', () => two.pointer('/a/sparse', 211), true],
    ['a leaf', async () => (await two.leaves('/many'))[0]!.place, true],
    ['a block of attributes', () => two.attributesPointer('/attributes'), true],
    ['a sector of the allocation map', () => two.region(1), true],
    ['a segment of the inode map', () => two.segment(1), true],
    ['the descriptor of a log', () => two.logDescriptor(200), true],
    ['a superblock', () => ({ nsd: nsdIndex(0), sector: 0 }), true],
  ] as const)('%s', async (_, find, quiet) => {
    const { nsd, sector } = await find();
    for (const copy of copiesOf(nsd)) {
      two.restore();
      const place = { nsd: copy, sector };
      const whole = two.read(place);
      const load = { seed: 3, quiet, mayFail: true };
      await underLoad(two.volume, load, async ({ fs }) => {
        two.flip(place, 100);
        const object = sector === 0 ? `superblock copy on NSD ${copy}` : `sector ${sector} of NSD ${copy}`;
        const found = await fs.checkOnline();
        expect(found.findings.map((finding) => finding.object)).toEqual([object]);
        expect(found.findings[0]!.mend).toBe('written anew from the other copy');
        const mended = await fs.checkOnline({ repair: true });
        expect(mended.findings).toEqual([]);
        expect(mended.mended.map((finding) => finding.object)).toEqual([object]);
        expect(Buffer.compare(two.read(place), whole)).toBe(0);
        expect((await fs.checkOnline()).findings).toEqual([]);
      });
    }
  });
});

describe('a check that is under way', () => {
  test('is called off, by who asked for it or by unmounting, and leaves nothing pinned; a second one is refused', async () => {
    const volume = await TestVolume.create({ blocks: [64, 64], mkfs: { segmentCount: 2, regionBlocks: 8 } });
    const [node, other] = [await volume.mount(1), await volume.mount(2)];
    for (let i = 0; i < 20; i++) await node.fs.mkdir(`/directory-${i}`, 0o755, ROOT);
    const calling = new AbortController();
    let phase = '';
    const running = node.fs.checkOnline({
      signal: calling.signal,
      onProgress: (progress) => {
        phase = progress.phase;
        if (phase === 'directories') calling.abort();
      },
    });
    await expect(node.fs.checkOnline()).rejects.toMatchObject({ reason: 'busy' });
    await expect(running).rejects.toMatchObject({ reason: 'aborted' });
    expect(phase).toBe('directories');
    // Whoever wants its tokens gets them.
    for (let i = 0; i < 20; i++) await other.fs.rename(`/directory-${i}`, `/renamed-${i}`, ROOT);

    const atUnmount = node.fs.checkOnline({ onProgress: () => void node.fs.unmount() });
    await expect(atUnmount).rejects.toMatchObject({ reason: 'aborted' });
    await node.fs.unmount();
    await other.fs.unmount();
    expect((await checkVolume(volume)).findings).toEqual([]);
  });

  test('reads no faster than it may', async () => {
    const volume = await TestVolume.create({ blocks: [64, 64], mkfs: { segmentCount: 2, regionBlocks: 8 } });
    const node = await volume.mount(1);
    let done = false;
    const beganMs = volume.clock.nowMs();
    const running = node.fs.checkOnline({ readBytesPerS: 1 << 20 }).finally(() => {
      done = true;
    });
    while (!done) await volume.clock.advance(50);
    const { sectorsRead } = await running;
    expect(sectorsRead).toBeGreaterThan(256);
    expect(((volume.clock.nowMs() - beganMs) / 1000) * (1 << 20)).toBeGreaterThan(0.9 * sectorsRead * SECTOR_BYTES);
    await node.fs.unmount();
  });
});

describe('no false finding while', () => {
  test.each([
    ['three nodes work, one copy of metadata', 1, 1],
    ['three nodes work, two copies of metadata', 2, 2],
  ] as const)('%s', async (_, metadataCopies, seed) => {
    const volume = await TestVolume.create({
      blocks: [64, 64],
      mkfs: { segmentCount: 2, regionBlocks: 8, metadataCopies },
    });
    const reports = await underLoad(volume, { seed, too: true }, async ({ fs }, load) => {
      const made: OnlineReport[] = [];
      while (load.operations < OPERATIONS) made.push(await fs.checkOnline());
      return made;
    });
    for (const report of reports) expect(report.findings).toEqual([]);
    expect(reports.length).toBeGreaterThan(0);
    expect((await checkVolume(volume)).findings).toEqual([]);
  });
});
