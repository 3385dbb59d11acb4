import { expect, test } from 'vitest';
import { nsdIndex } from '../common/ids.js';
import { turns } from './testing.js';
import { contentOf, make, VolatileVolume, writeBehind } from './testing-flushes.js';

const CONTENT = Buffer.alloc(20_000, 'what was written ');

test('the end of a log that its NSD loses while it is redone is not redone: whoever settles that log, or redoes it again, does not find it (L3)', async () => {
  const it = await VolatileVolume.create();
  const node = await it.mount(1);
  const other = await it.mount(2);
  const file = await make(node.fs, '/f', CONTENT);
  await writeBehind(node, file.ino);
  // The space of the first is in limbo, durably.
  await (await make(node.fs, '/g', CONTENT)).sync(false);
  let lost = 0;
  it.nsds.beforeFlush((why) => {
    // The record that exposes it is written, and the node is gone before it is flushed.
    if (why === 'log' && lost === 0) node.nsds.cut();
    // Twice: what was read for the second time may go as well.
    if (why === 'leftBehind' && lost < 2) {
      lost++;
      it.nsds.powerCut();
    }
  });
  void file.sync(false);
  for (let i = 0; i < 20; i++) await turns();
  await it.volume.bury(node);
  expect(lost).toBe(2);
  expect(await contentOf(other.fs, '/f')).toEqual(Buffer.alloc(0));
  expect(await contentOf(other.fs, '/g')).toEqual(CONTENT);
  await other.fs.unmount();
  expect(await it.check()).toBeNull();
});

test('the end of a log that only one copy has, which comes back while it is redone, is redone (L3)', async () => {
  // A copy of node 3's log is there, and none of the table of logs.
  const late = nsdIndex(2);
  const it = await VolatileVolume.create({ mkfs: { metadataCopies: 2 } });
  const node = await it.mount(3);
  const other = await it.mount(1);
  const file = await make(node.fs, '/f', CONTENT);
  await writeBehind(node, file.ino);
  await (await make(node.fs, '/g', CONTENT)).sync(false);
  node.nsds.deafen((io) => io.nsd !== late);
  it.nsds.beforeFlush((why) => {
    if (why === 'log') node.nsds.cut();
    if (why === 'leftBehind') it.nsds.away.clear();
  });
  void file.sync(false);
  for (let i = 0; i < 20; i++) await turns();
  it.nsds.away.add(late);
  await it.volume.bury(node);
  expect(it.volume.copies.marks).toEqual([]);
  for (const path of ['/f', '/g']) expect(await contentOf(other.fs, path)).toEqual(CONTENT);
  await other.fs.unmount();
  expect(await it.check()).toBeNull();
});
