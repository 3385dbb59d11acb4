import { constants } from 'node:fs';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Counters } from '../../../common/counters.js';
import { FsError } from '../../../common/errors.js';
import { silentLogger } from '../../../common/logger.js';
import { ROOT } from '../../file-system-api.js';
import { ALLOCATION_MAP, INODE_FILE, INODE_MAP, LOG_TABLE } from '../../layout.js';
import { checkParts, checkVolume, type TestNode } from '../../testing.js';
import { repairFileSystem } from '../repair.js';
import { DamagedVolume, type Place } from '../testing-damage.js';

const { O_CREAT, O_RDWR } = constants;
const FILES = [INODE_FILE, ALLOCATION_MAP, INODE_MAP, LOG_TABLE];

let v: DamagedVolume;
beforeAll(async () => {
  v = await DamagedVolume.create({ segmentCount: 40 }, 20);
});
beforeEach(() => v.restore());

const repair = () => repairFileSystem({ ...checkParts(v.volume), logger: silentLogger, counters: new Counters() }, 2);

async function writeFile({ fs }: TestNode, path: string, text: string): Promise<void> {
  const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.from(text));
  await file.sync(false);
  await file.close();
}
async function readFile({ fs }: TestNode, path: string): Promise<string> {
  const file = await fs.open(path, O_RDWR, 0, ROOT);
  const bytes = Buffer.alloc((await fs.stat(path, ROOT)).sizeBytes);
  await file.read(0, bytes);
  await file.close();
  return bytes.toString();
}

test('L3 in its spirit: a repair of system inodes that is cut off after any of its writes is gone on with by the next', async () => {
  const plant = (): void => {
    v.restore();
    for (const ino of FILES) v.rot(v.inodePlace(ino));
  };
  plant();
  const { sectorsWritten } = await repair();
  expect(sectorsWritten).toBeGreaterThan(4);
  // All of the first, then some of what follows.
  const step = process.env.HOLDFAST_TEST_FULL === '1' ? 1 : 3;
  for (let cutAfter = 0; cutAfter < sectorsWritten; cutAfter += cutAfter < 6 ? 1 : step) {
    plant();
    let writes = 0;
    v.volume.nsds.failWhen((op) => op === 'nsd.write' && writes++ >= cutAfter);
    await expect(repair()).rejects.toSatisfy((error) => FsError.is(error) && error.reason === 'deviceError');
    v.volume.nsds.failWhen(null);
    expect((await repair()).findings).toEqual([]);
  }
  expect(await checkVolume(v.volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
  const node = await v.volume.mount();
  expect(await readFile(node, '/a/b/tiny')).toBe('tiny');
  await node.fs.unmount();
});

test('what a node that died had logged is redone first, also how the inode file had grown, and also where the table of logs is not to be found by its inode', async () => {
  const node = await v.volume.mount(2);
  await writeFile(node, '/new', 'in a block of the inode file that only its log knows of');
  v.volume.powerOff([node]);
  for (const ino of FILES) v.rot(v.inodePlace(ino));
  const report = await repair();
  expect(report).toMatchObject({ findings: [], logsRedone: 1 });
  const again = await v.volume.mount(3);
  expect(await readFile(again, '/new')).toMatch(/only its log knows of/);
  expect(await readFile(again, '/a/b/tiny')).toBe('tiny');
  await again.fs.unmount();
});

describe('while it is mounted', () => {
  test.each([
    ['the inode file', INODE_FILE],
    ['the allocation map', ALLOCATION_MAP],
    ['the inode map', INODE_MAP],
    ['the table of logs', LOG_TABLE],
  ])('damage to the inode of %s is named, and whoever has it mounted goes on', async (_, ino) => {
    const node = await v.volume.mount();
    v.rot(v.inodePlace(ino));
    const report = await node.fs.checkOnline();
    expect(report.findings).toMatchObject([{ kind: 'systemInode', object: `inode ${ino}`, mend: null }]);
    await writeFile(node, '/new', 'goes on');
    expect(await readFile(node, '/new')).toBe('goes on');
    await node.fs.unmount();
    expect((await repair()).findings).toEqual([]);
    const again = await v.volume.mount();
    expect(await readFile(again, '/new')).toBe('goes on');
    await again.fs.unmount();
  });

  test('damage to an indirect block of the inode file is named, and nothing is said of the inodes below it', async () => {
    const node = await v.volume.mount();
    v.rot(v.scan.system.get(INODE_FILE)!.indirects[0]! as Place);
    const report = await node.fs.checkOnline();
    expect(report.findings).toMatchObject([{ kind: 'indirectDamaged', object: expect.stringMatching(/^inode 1, /) }]);
    await node.fs.unmount();
  });
});
