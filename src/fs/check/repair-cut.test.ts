import { beforeAll, expect, test } from 'vitest';
import { Counters } from '../../common/counters.js';
import { FsError } from '../../common/errors.js';
import { silentLogger } from '../../common/logger.js';
import { checkParts, checkVolume, type RamNsds } from '../testing.js';
import { repairFileSystem } from './repair.js';
import { DamagedVolume, readContents } from './testing-damage.js';

let v: DamagedVolume;
beforeAll(async () => {
  v = await DamagedVolume.create();
});

/** Much at once: names lost, misplaced and twice, inodes gone, space shared and lost. */
async function plant(): Promise<void> {
  v.restore();
  const leaves = await v.leaves('/many');
  v.rot(leaves[0]!.place);
  v.rot(v.inodePlace('/a/two'));
  v.editInode('/a/block', (fields) => void (fields.area = v.fields('/a/one').area));
  v.editInode('/a/b/c', (fields) => void (fields.parent = v.ino('/many')));
  v.editInode('/a/b/tiny', (fields) => void (fields.nlink = 9));
  v.rot(v.region(0));
  v.rot(v.segment(1));
}

const repair = (nsds?: RamNsds) =>
  repairFileSystem(
    {
      ...checkParts(v.volume),
      ...(nsds === undefined ? {} : { nsds }),
      logger: silentLogger,
      counters: new Counters(),
    },
    2,
  );

async function contents(): Promise<string[]> {
  const node = await v.volume.mount();
  const found = await readContents(node.fs);
  await node.fs.unmount();
  return [...found].map(([path, content]) => `${path} ${content === null ? '' : content.length}`).sort();
}

test('L3 in its spirit: a repair that is cut off after any of its writes is gone on with by the next, and nothing more is lost', async () => {
  await plant();
  const whole = await repair();
  expect(whole.findings).toEqual([]);
  const expected = await contents();
  expect((await repair()).mended).toEqual([]);
  expect(whole.sectorsWritten).toBeGreaterThan(20);

  // All of the first, then some of what follows.
  for (let cutAfter = 0; cutAfter < whole.sectorsWritten; cutAfter += cutAfter < 12 ? 1 : 7) {
    await plant();
    let writes = 0;
    v.volume.nsds.failWhen((op) => op === 'nsd.write' && writes++ >= cutAfter);
    await expect(repair()).rejects.toSatisfy((error) => FsError.is(error) && error.reason === 'deviceError');
    v.volume.nsds.failWhen(null);
    expect((await repair()).findings).toEqual([]);
    expect(await checkVolume(v.volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(await contents()).toEqual(expected);
  }
});
