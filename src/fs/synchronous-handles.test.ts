/** O_DSYNC, O_SYNC, and how much of what they write goes into the log first. */
import { constants } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { SECTOR_BYTES } from '../common/units.js';
import { type OpenFile, ROOT } from './file-system-api.js';
import { type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_DSYNC, O_RDONLY, O_RDWR, O_SYNC } = constants;
/** Nothing is written that nobody asks for. */
const LAZY = { inodeWriteBehindMs: 3_600_000 };
const BEFORE = Buffer.alloc(5 * SECTOR_BYTES, 1);
const AFTER = Buffer.alloc(2 * SECTOR_BYTES, 2);

async function lazily(): Promise<{ volume: TestVolume; node: TestNode; open: (flags: number) => Promise<OpenFile> }> {
  const volume = await TestVolume.create();
  const node = await volume.mount(1, LAZY);
  for (const path of ['/f', '/source']) {
    const file = await node.fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
    await file.write(0, path === '/f' ? BEFORE : AFTER);
    await file.close();
  }
  await node.fs.sync();
  return { volume, node, open: (flags) => node.fs.open('/f', O_RDWR | flags, 0, ROOT) };
}

const OPERATIONS: Record<string, (file: OpenFile, node: TestNode, at: number) => Promise<unknown>> = {
  write: (file, _, at) => file.write(at, AFTER),
  fallocate: (file, _, at) => file.allocate('allocate', at, AFTER.length),
  'fallocate of zeros': (file, _, at) => file.allocate('zeroRange', at, AFTER.length),
  copy_file_range: async (file, { fs }, at) => {
    const source = await fs.open('/source', O_RDONLY, 0, ROOT);
    await source.copyRange(0, file, at, AFTER.length);
    await source.close();
  },
};
const FLAGS = { 'no flag': 0, O_DSYNC, O_SYNC };
const CASES = Object.keys(OPERATIONS).flatMap((operation) =>
  Object.keys(FLAGS).map((flag) => [operation, flag] as [string, keyof typeof FLAGS]),
);

describe.each(CASES)('%s through a handle with %s', (operation, flag) => {
  const isSynchronous = flag !== 'no flag';

  test('that makes the file longer is durable when it returns, or is not', async () => {
    const { volume, node, open } = await lazily();
    const file = await open(FLAGS[flag]);
    const logWrites = node.counters.get('log.groups');
    await OPERATIONS[operation]!(file, node, BEFORE.length);
    expect(node.counters.get('log.groups') > logWrites).toBe(isSynchronous);
    volume.powerOff([node]);
    const { fs } = await volume.mount(2);
    const { sizeBytes } = await fs.stat('/f', ROOT);
    expect(sizeBytes).toBe(BEFORE.length + (isSynchronous ? AFTER.length : 0));
    const bytes = Buffer.alloc(AFTER.length);
    const found = await fs.open('/f', O_RDONLY, 0, ROOT);
    await found.read(BEFORE.length, bytes);
    const written = isSynchronous && !operation.startsWith('fallocate');
    expect(bytes.equals(written ? AFTER : Buffer.alloc(AFTER.length))).toBe(true);
    await fs.unmount();
  });

  test('that changes bytes and times alone is durable, of the times with O_SYNC alone', async () => {
    const { volume, node, open } = await lazily();
    const file = await open(FLAGS[flag]);
    const before = await file.stat();
    await OPERATIONS[operation]!(file, node, 0);
    const after = await file.stat();
    expect(after.mtimeNs > before.mtimeNs).toBe(true);
    volume.powerOff([node]);
    const { fs } = await volume.mount(2);
    const { mtimeNs } = await fs.stat('/f', ROOT);
    if (flag === 'O_SYNC') expect(mtimeNs).toBe(after.mtimeNs);
    if (flag === 'no flag') expect(mtimeNs).toBe(before.mtimeNs);
    const bytes = Buffer.alloc(AFTER.length);
    const found = await fs.open('/f', O_RDONLY, 0, ROOT);
    await found.read(0, bytes);
    // Without a flag either may be there: zeros are, since they are discards.
    if (isSynchronous) expect(bytes[0]).toBe({ fallocate: BEFORE[0], 'fallocate of zeros': 0 }[operation] ?? AFTER[0]);
    else if (operation !== 'fallocate of zeros') expect(bytes[0]).toBe(BEFORE[0]);
    expect(bytes.equals(Buffer.alloc(bytes.length, bytes[0]))).toBe(true);
    await fs.unmount();
  });
});

describe('of what a synchronous write finds dirty, up to logWriteBytesMax goes into the log, and needs no flush of its own', () => {
  test.each([
    [0, 1, 0],
    [2 * SECTOR_BYTES, 2, 2],
    [2 * SECTOR_BYTES, 3, 0],
    [4 * SECTOR_BYTES, 3, 3],
  ])('at most %d bytes: of %d sectors %d', async (logWriteBytesMax, sectors, logged) => {
    const volume = await TestVolume.create();
    const node = await volume.mount(1, { ...LAZY, logWriteBytesMax });
    const file = await node.fs.open('/f', O_CREAT | O_RDWR | O_DSYNC, 0o644, ROOT);
    await file.write(0, BEFORE);
    await node.fs.sync();
    const before = node.counters.get('log.dataSectors');
    await file.write(0, Buffer.alloc(sectors * SECTOR_BYTES, 3));
    expect(node.counters.get('log.dataSectors') - before).toBe(logged);
    await node.fs.unmount();
  });
});
