/** Directories that contradict themselves, each structure whole by itself: whoever has it mounted neither goes round for ever nor loses more. */
import { constants } from 'node:fs';
import { beforeAll, beforeEach, expect, test } from 'vitest';
import { Counters } from '../../common/counters.js';
import { silentLogger } from '../../common/logger.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { POINTER_BYTES, readPointer, writePointer } from '../block-pointer.js';
import { type FileSystem, ROOT } from '../file-system-api.js';
import { INDIRECT_POINTERS_AT } from '../indirect-format.js';
import { ALLOCATION_MAP } from '../layout.js';
import { setU32 } from '../sector.js';
import { checkParts, checkVolume } from '../testing.js';
import { repairFileSystem } from './repair.js';
import { DamagedVolume, hasContents, readContents } from './testing-damage.js';

const { O_CREAT, O_RDWR } = constants;

let v: DamagedVolume;
beforeAll(async () => {
  v = await DamagedVolume.create();
});
beforeEach(() => v.restore());

async function repaired(): Promise<void> {
  const report = await repairFileSystem({ ...checkParts(v.volume), logger: silentLogger, counters: new Counters() }, 2);
  expect(report.findings).toEqual([]);
  expect(await checkVolume(v.volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
  const node = await v.volume.mount();
  hasContents(await readContents(node.fs), v.contents);
  await node.fs.unmount();
}
const create = async (fs: FileSystem, path: string): Promise<void> =>
  (await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT)).close();

test.each([
  ['of three directories', '/a/b/c'],
  ['of one directory', '/a'],
])('a loop %s by their parents ends a rename below it with EUCLEAN; other directories move', async (_, parent) => {
  v.editInode('/a', (fields) => void (fields.parent = v.ino(parent)));
  const node = await v.volume.mount();
  await expect(node.fs.rename('/many', '/a/b/c/many', ROOT)).rejects.toMatchObject({
    code: 'EUCLEAN',
    object: expect.stringMatching(/^directory \d+$/),
  });
  await node.fs.mkdir('/x', 0o755, ROOT);
  await node.fs.rename('/x', '/many/x', ROOT);
  await node.fs.rmdir('/many/x', ROOT);
  await node.fs.unmount();
  await repaired();
});

test('a leaf of less depth than it has is not split over the one that is there', async () => {
  const [leaf] = (await v.leaves('/many')).filter(({ index }) => index === 0);
  v.edit(leaf!.place, (bytes) => void bytes[40]!--);
  const node = await v.volume.mount();
  const made: string[] = [];
  const filled = (async () => {
    for (let i = 0; i < 400; i++) {
      await create(node.fs, `/many/more-${i}`);
      made.push(`/many/more-${i}`);
    }
  })();
  await expect(filled).rejects.toMatchObject({ code: 'EUCLEAN', object: `directory ${v.ino('/many')} leaf 0` });
  // All that were there are, and all that were made.
  for (const path of [...v.contents.keys()].filter((one) => one.startsWith('/many/'))) await node.fs.stat(path, ROOT);
  for (const path of made) await node.fs.unlink(path, ROOT);
  await node.fs.unmount();
  await repaired();
});

test('a directory of less depth than its leaves names one, and takes no name where nobody would look for it', async () => {
  v.editInode('/many', (fields) => void Object.assign(fields, { directoryDepth: 0, sizeBytes: SECTOR_BYTES }));
  const node = await v.volume.mount();
  const error = { code: 'EUCLEAN', object: `directory ${v.ino('/many')} leaf 0` };
  await expect(node.fs.stat('/many/file-with-a-name-7', ROOT)).rejects.toMatchObject(error);
  await expect(create(node.fs, '/many/new')).rejects.toMatchObject(error);
  await node.fs.unmount();
  await repaired();
});

test('an inode of an earlier life than its name is not taken for it', async () => {
  v.edit(v.inodePlace('/a/one'), (bytes) => setU32(bytes, 32, 0));
  const node = await v.volume.mount();
  await expect(node.fs.stat('/a/one', ROOT)).rejects.toMatchObject({ code: 'ESTALE' });
  await node.fs.stat('/a/two', ROOT);
  await node.fs.unmount();
  const { findings } = await checkVolume(v.volume);
  expect(findings.map(({ kind }) => kind)).toContain('entryDangling');
});

test.each([
  ['to its own indirect block', () => v.pointer('/a/sparse', 211)],
  ['to the indirect block of another level', () => v.pointer('/a/sparse', 212)],
  [
    'to a block that it has already',
    () => readPointer(v.read(v.pointer('/a/sparse', 211)), INDIRECT_POINTERS_AT + 19 * POINTER_BYTES)!,
  ],
  ["to another file's block", () => v.pointer('/a/block')],
  ['to a leaf', () => v.pointer('/many')],
  ['to the allocation map', () => v.scan.system.get(ALLOCATION_MAP)!.blocks.get(0)!],
])(
  'an indirect block with a pointer %s is named; each gets a place of its own, and nobody else loses anything',
  async (_, find) => {
    const home = v.pointer('/a/sparse', 211);
    v.edit(home, (bytes) => writePointer(bytes, INDIRECT_POINTERS_AT + 3 * POINTER_BYTES, find()));
    v.editInode('/a/sparse', (fields) => void (fields.allocatedSubBlocks += find().count));
    const { findings } = await checkVolume(v.volume);
    expect(findings).toMatchObject([
      { kind: 'spaceShared', object: expect.stringMatching(/sub-blocks \d+ to \d+ of NSD \d/) },
    ]);
    expect(findings[0]!.mend).not.toBeNull();
    await repaired();
  },
);
