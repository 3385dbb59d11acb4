import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;
const FILES = 6;

/** Two nodes; one that has removed what it had written, and whose space nobody has got back. */
async function withSpaceInLimbo(): Promise<{ volume: TestVolume; node: TestNode; other: TestNode }> {
  const volume = await TestVolume.create({
    blocks: [48, 48],
    mkfs: { regionBlocks: 8 },
    settings: { inodeWriteBehindMs: 3_600_000 },
  });
  const node = await volume.mount();
  const other = await volume.mount(2);
  for (let i = 0; i < FILES; i++) {
    const file = await node.fs.open(`/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
    await file.write(0, Buffer.alloc(3_000_000, i + 1));
    await file.sync(false);
    await file.close();
  }
  for (let i = 0; i < FILES; i++) await node.fs.unlink(`/f${i}`, ROOT);
  const directory = await node.fs.open('/', constants.O_RDONLY, 0, ROOT);
  await directory.sync(false);
  await directory.close();
  return { volume, node, other };
}

async function soundAfter(volume: TestVolume, other: TestNode): Promise<void> {
  expect(other.counters.get('fs.freesDisagreed')).toBe(0);
  await other.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
}

test('what dead nodes left is settled once, though several of them fall at the same moment', async () => {
  const { volume, node, other } = await withSpaceInLimbo();
  const settle = other.fs.settleLeft.bind(other.fs);
  // One for each life that falls.
  other.fs.settleLeft = async () => void (await Promise.all([settle(), settle(), settle()]));
  await volume.bury(node);
  await soundAfter(volume, other);
});

test('a settlement that could not be brought to its end goes on where it stopped, on whichever node', async () => {
  const { volume, node, other } = await withSpaceInLimbo();
  const third = await volume.mount(3);
  const discard = other.nsds.discard.bind(other.nsds);
  let discards = 0;
  // The first step succeeds.
  other.nsds.discard = (extents) =>
    ++discards > 1 ? Promise.reject(new FsError('nsdUnavailable', { op: 'nsd.discard' })) : discard(extents);
  await expect(volume.bury(node)).rejects.toMatchObject({ reason: 'nsdUnavailable' });
  other.nsds.discard = discard;
  await third.fs.settleLeft();
  expect(third.counters.get('fs.freesDisagreed')).toBe(0);
  expect(third.counters.get('recovery.settled')).toBeGreaterThan(0);
  await third.fs.unmount();
  await soundAfter(volume, other);
});
