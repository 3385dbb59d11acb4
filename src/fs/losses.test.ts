import { constants } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { nsdIndex } from '../common/ids.js';
import { SeededRandom } from '../common/random.js';
import { RANGE_END } from '../common/units.js';
import { FLUSHES, type Flush } from './durable.js';
import { ROOT } from './file-system-api.js';
import { LostWrites } from './lost-writes.js';
import { contentOf, make, VolatileVolume, writeBehind } from './testing-flushes.js';
import { SCENARIOS } from './testing-flushes-mending.js';
import { NOTHING_SURVIVES, randomFates } from './testing-volatile.js';

const { O_RDWR } = constants;
const full = process.env.HOLDFAST_TEST_FULL === '1';
const CONTENT = Buffer.alloc(200_000, 'what was written ');

describe('an NSD that loses what was not flushed, and comes back, under a node that lives (I8, I10)', () => {
  test('data that is clean in the cache is written again before fsync returns', async () => {
    const it = await VolatileVolume.create();
    const node = await it.mount(1);
    const file = await make(node.fs, '/f', CONTENT);
    await writeBehind(node, file.ino);
    it.nsds.powerCut();
    await file.sync(false);
    expect(node.counters.get('fs.lossesRewritten')).toBeGreaterThan(0);
    it.powerOff([node]);
    const { fs } = await it.mount(2);
    expect(await contentOf(fs, '/f')).toEqual(CONTENT);
    await fs.unmount();
    expect(await it.check()).toBeNull();
  });

  test('data that is in no cache any more is lost: each handle is told once, at fsync or close, which bytes of which NSD', async () => {
    const it = await VolatileVolume.create();
    const node = await it.mount(1);
    const file = await make(node.fs, '/f', CONTENT);
    await file.sync(false);
    const other = await node.fs.open('/f', O_RDWR, 0, ROOT);
    await file.write(40_960, Buffer.alloc(40_960, 'x'));
    await file.write(122_880, Buffer.alloc(100, 'y'));
    await writeBehind(node, file.ino);
    node.cache.get(file.ino)!.hint('dontNeed', { start: 0, end: 98_304 });
    it.nsds.powerCut();
    await expect(file.sync(false)).rejects.toMatchObject({
      code: 'EIO',
      reason: 'writesLost',
      detail: expect.stringMatching(/^bytes 40960 to 81920 were written, and NSD 0{8}-.* has lost them/),
    });
    await file.sync(false);
    // Nobody needs to hear of it any more.
    await (await node.fs.open('/f', O_RDWR, 0, ROOT)).sync(false);
    await file.close();
    await expect(other.close()).rejects.toMatchObject({ reason: 'writesLost' });
    it.powerOff([node]);
    const { fs } = await it.mount(2);
    const expected = Buffer.from(CONTENT);
    expected.fill('y', 122_880, 122_980);
    expect(await contentOf(fs, '/f')).toEqual(expected);
    await fs.unmount();
    expect(await it.check()).toBeNull();
  });

  test('zeros that a file shows are kept while they are written over for the first time: torn, they are zeros again, never EIO', async () => {
    const it = await VolatileVolume.create();
    const node = await it.mount(1);
    // A block with bytes at both ends, and a file that is longer than what it has.
    const file = await make(node.fs, '/f', CONTENT.subarray(0, 4096));
    await file.write(400_000, CONTENT.subarray(0, 4096));
    await file.sync(false);
    const expected = await contentOf(node.fs, '/f');
    await file.write(200_000, Buffer.alloc(4096, 'x'));
    await writeBehind(node, file.ino);
    it.powerOff([node], () => 'torn');
    const { fs } = await it.mount(2);
    expect(await contentOf(fs, '/f')).toEqual(expected);
    await fs.unmount();
    expect(await it.check()).toBeNull();
  });

  test('bytes written beside damaged ones: whoever has the file open is told at fsync or close, and nothing waits for them', async () => {
    const it = await VolatileVolume.create();
    const first = await it.mount(1);
    const made = await make(first.fs, '/f', CONTENT);
    await made.sync(false);
    const { nsdUuid, sector } = (await first.fs.locate('/f', 40_960, 4096, ROOT)).ranges[0]!;
    await made.close();
    await first.fs.unmount();
    it.nsds.damage(nsdIndex(Number(nsdUuid!.slice(-12)) - 1), sector!);
    const node = await it.mount(1);
    const file = await node.fs.open('/f', O_RDWR, 0, ROOT);
    await file.write(41_000, Buffer.from('lost'));
    await file.write(50_000, Buffer.from('kept'));
    await expect(file.sync(false)).rejects.toMatchObject({
      code: 'EIO',
      reason: 'writesLost',
      detail: expect.stringMatching(/^bytes 41000 to 41004 were written beside damaged ones/),
    });
    await file.sync(false);
    await file.close();
    const { fs } = await it.mount(2);
    const other = await fs.open('/f', O_RDWR, 0, ROOT);
    const target = Buffer.alloc(4);
    await other.read(50_000, target);
    expect(target.toString()).toBe('kept');
    await expect(other.read(41_000, target)).rejects.toMatchObject({ reason: 'checksumMismatch' });
    await other.close();
    for (const one of [fs, node.fs]) await one.unmount();
  });

  test('data that is in no cache any more is never read as what was there before: EIO, until the loss has been told', async () => {
    const it = await VolatileVolume.create();
    const node = await it.mount(1);
    const file = await make(node.fs, '/f', CONTENT);
    await file.sync(false);
    await file.write(40_960, Buffer.alloc(40_960, 'x'));
    await writeBehind(node, file.ino);
    const everything = { start: 0, end: RANGE_END };
    node.cache.get(file.ino)!.hint('dontNeed', everything);
    it.nsds.powerCut();
    const target = Buffer.alloc(4096);
    await expect(file.read(49_152, target)).rejects.toMatchObject({ code: 'EIO', reason: 'writesLost', op: 'read' });
    await file.read(131_072, target);
    expect(target).toEqual(CONTENT.subarray(131_072, 135_168));
    // What is written anew is read, on this node and with the old loss still to be told.
    await file.write(49_152, Buffer.alloc(4096, 'z'));
    await writeBehind(node, file.ino);
    node.cache.get(file.ino)!.hint('dontNeed', everything);
    await expect(file.sync(false)).rejects.toMatchObject({ reason: 'writesLost' });
    await file.read(40_960, target);
    expect(target).toEqual(CONTENT.subarray(40_960, 45_056));
    await file.read(49_152, target);
    expect(target).toEqual(Buffer.alloc(4096, 'z'));
    await file.close();
    await node.fs.unmount();
    expect(await it.check()).toBeNull();
  });

  test('a small write that was synced is read as it was synced, though its place lost it (S5)', async () => {
    const it = await VolatileVolume.create();
    const node = await it.mount(1, { inodeWriteBehindMs: 100 });
    const until = async (holds: () => boolean): Promise<void> => {
      for (let i = 0; !holds(); i++) {
        expect(i).toBeLessThan(10_000);
        await it.volume.clock.advance(10);
        await new Promise((resolve) => setImmediate(resolve));
      }
    };
    const file = await make(node.fs, '/f', CONTENT);
    await file.sync(false);
    await until(() => node.counters.get('log.checkpoints') > 0);
    await file.write(40_960, Buffer.alloc(8192, 'x'));
    await file.sync(false);
    expect(node.counters.get('log.dataSectors')).toBeGreaterThan(0);
    // In its place, not flushed there, and in no page.
    const before = node.counters.get('log.sectorsInPlace');
    await until(() => node.counters.get('log.sectorsInPlace') > before + 2);
    node.cache.get(file.ino)!.hint('dontNeed', { start: 0, end: RANGE_END });
    it.nsds.powerCut();
    const target = Buffer.alloc(8192);
    await file.read(40_960, target);
    expect(target).toEqual(Buffer.alloc(8192, 'x'));
    it.powerOff([node]);
    const { fs } = await it.mount(2);
    const expected = Buffer.from(CONTENT);
    expected.fill('x', 40_960, 49_152);
    expect(await contentOf(fs, '/f')).toEqual(expected);
    await fs.unmount();
    expect(await it.check()).toBeNull();
  });

  test('what was cut off or removed meanwhile is nobody’s loss', async () => {
    const it = await VolatileVolume.create();
    const node = await it.mount(1);
    const file = await make(node.fs, '/f', CONTENT);
    await writeBehind(node, file.ino);
    await file.truncate(5_000);
    node.cache.get(file.ino)!.hint('dontNeed', { start: 16_384, end: RANGE_END });
    it.nsds.powerCut();
    await file.sync(false);
    it.powerOff([node]);
    const { fs } = await it.mount(2);
    expect(await contentOf(fs, '/f')).toEqual(CONTENT.subarray(0, 5_000));
    await fs.unmount();
  });

  test('metadata in place that was lost is read as it was written, and is in place again before the log forgets it', async () => {
    const it = await VolatileVolume.create();
    const node = await it.mount(1);
    await node.fs.mkdir('/d', 0o755, ROOT);
    for (let i = 0; i < 20; i++) await (await make(node.fs, `/d/f${i}`, Buffer.alloc(100, i))).close();
    await node.fs.sync();
    // In place, and out of memory.
    for (const { ino } of [await node.fs.stat('/d', ROOT), await node.fs.stat('/', ROOT)]) {
      await writeBehind(node, ino);
      node.cache.get(ino)!.hint('dontNeed', { start: 0, end: RANGE_END });
    }
    it.nsds.powerCut(randomFates(new SeededRandom(3)));
    for (let i = 0; i < 20; i++) expect(await contentOf(node.fs, `/d/f${i}`)).toEqual(Buffer.alloc(100, i));
    for (let i = 20; i < 40; i++) await (await make(node.fs, `/d/f${i}`, Buffer.alloc(100, i))).close();
    await node.fs.unmount();
    expect(node.counters.get('log.sectorsLost')).toBeGreaterThan(0);
    it.nsds.powerCut(NOTHING_SURVIVES);
    const { fs } = await it.mount(2);
    for (let i = 0; i < 40; i++) expect(await contentOf(fs, `/d/f${i}`)).toEqual(Buffer.alloc(100, i));
    await fs.unmount();
    expect(await it.check()).toBeNull();
  });
});

test('a loss that nobody has been told of is told to who opens the file next', () => {
  const lost = new LostWrites();
  const before = lost.seen();
  const error = new FsError('writesLost', { op: 'fsync' });
  lost.add(error);
  const later = lost.seen();
  expect(lost.tell(later).error).toBe(error);
  expect(lost.tell(before)).toEqual({ error, seen: 1 });
  expect(lost.tell(1).error).toBeNull();
  expect(lost.tell(lost.seen()).error).toBeNull();
});

/** Nodes die in these with what they have not synced, or mkfs itself is hit. */
const LOSING: ReadonlySet<Flush> = new Set(['region', 'leftBehind', 'leftData', 'mkfs', 'superblock', 'exposure']);

describe('the power goes for a moment before a flush, and all is as if it had not', () => {
  test.each(FLUSHES.filter((why) => !LOSING.has(why)))('in what needs %s', async (why) => {
    let flushes = 0;
    await SCENARIOS[why]((nsds) => nsds.beforeFlush(() => void flushes++));
    // The first two are mkfs's.
    const moments = Array.from({ length: flushes - 2 }, (_, index) => index + 3);
    const step = full ? 1 : Math.ceil(moments.length / 5);
    for (let at = 0; at < moments.length; at += step) {
      const random = new SeededRandom(at);
      let flushed = 0;
      const wrong = await SCENARIOS[why]((nsds) =>
        nsds.beforeFlush(() => {
          if (++flushed === moments[at]) nsds.powerCut(randomFates(random));
        }),
      );
      expect(wrong, `before flush ${moments[at]} of ${flushes}`).toBeNull();
    }
  });
});
