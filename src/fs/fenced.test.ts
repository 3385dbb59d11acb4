import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { ROOT } from './file-system-api.js';
import { type TestNode, TestVolume } from './testing.js';

const { O_CREAT, O_RDWR } = constants;

const outcome = (operation: Promise<unknown>): Promise<unknown> =>
  operation.then(
    () => 'done',
    (error: unknown) => (error as { code?: string }).code,
  );

/** What a node does that learns of its expulsion. */
function fence({ fs, cache }: TestNode): Promise<void> {
  fs.abandon();
  cache.dropEverything();
  return cache.close();
}

test('operations that a fence finds under way, and later ones, fail with ESTALE (F3)', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount();
  const file = await node.fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.alloc(10_000, 1));
  await file.sync(false);
  // The other two wait for the truncation, which waits for its last sector.
  node.cache.get(file.ino)!.hint('dontNeed', { start: 0, end: 1 << 20 });
  const truncation = outcome(file.truncate(5_000));
  const write = outcome(file.write(2_000_000, Buffer.alloc(10, 2)));
  const read = outcome(file.read(0, Buffer.alloc(10_000)));
  await Promise.resolve();
  await fence(node);
  expect(await Promise.all([truncation, write, read])).toEqual(['ESTALE', 'ESTALE', 'ESTALE']);
  expect(await outcome(file.write(0, Buffer.alloc(10)))).toBe('ESTALE');
  expect(await outcome(file.sync(false))).toBe('ESTALE');
});

test('an fsync that a fence finds waiting for the inode does not succeed (I10)', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount();
  const file = await node.fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.alloc(10_000, 1));
  await file.sync(false);
  await file.setAttributes({ mode: 0o600 }, ROOT);
  const writing = new Promise<void>((resolve) => {
    volume.nsds.failWhen((op) => {
      if (op === 'nsd.write') resolve();
      return false;
    });
  });
  const first = outcome(file.sync(false));
  await writing;
  // Waits for the first one's write of the inode, which takes a turn of the event loop.
  const second = outcome(file.sync(false));
  for (let i = 0; i < 20; i++) await Promise.resolve();
  await fence(node);
  expect(await Promise.all([first, second])).toEqual(['ESTALE', 'ESTALE']);
});
