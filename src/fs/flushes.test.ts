import { describe, expect, test } from 'vitest';
import { nsdIndex } from '../common/ids.js';
import { FLUSHES } from './durable.js';
import { ROOT } from './file-system-api.js';
import { VolatileVolume } from './testing-flushes.js';
import { SCENARIOS } from './testing-flushes-mending.js';
import type { VolatileNsds } from './testing-volatile.js';

describe('each flush that the file system makes is needed (I8)', () => {
  test.each(FLUSHES)('%s: with it nothing is lost, without it the power cut is noticed', async (why) => {
    let nsds: VolatileNsds | null = null;
    expect(await SCENARIOS[why]((made) => void (nsds = made))).toBeNull();
    expect(nsds!.flushesFor(why)).toBeGreaterThan(0);
    expect(await SCENARIOS[why]((made) => made.leaveOut(why))).not.toBeNull();
  });
});

describe('what is flushed is durable on both copies', () => {
  const TWO_COPIES = { mkfs: { metadataCopies: 2 as const } };
  const paths = Array.from({ length: 6 }, (_, index) => `/d${index}`);

  test('in place: after a power cut they are the same, and no log has to say so', async () => {
    const it = await VolatileVolume.create(TWO_COPIES);
    const { fs } = await it.mount(1);
    for (const path of paths) await fs.mkdir(path, 0o755, ROOT);
    await fs.unmount();
    it.nsds.powerCut();
    expect(await it.check()).toBeNull();
  });

  test.each([0, 1, 2])('in the log: after a power cut it is there without NSD %d', async (gone) => {
    const it = await VolatileVolume.create(TWO_COPIES);
    const node = await it.mount(1);
    for (const path of paths) await node.fs.mkdir(path, 0o755, ROOT);
    await node.fs.sync();
    it.powerOff([node]);
    it.nsds.away.add(nsdIndex(gone));
    const { fs } = await it.mount(2);
    for (const path of paths) expect((await fs.stat(path, ROOT)).nlink).toBe(2);
    await fs.unmount();
  });
});
