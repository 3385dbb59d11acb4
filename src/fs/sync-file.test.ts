import { constants } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { type FileSystem, ROOT } from './file-system-api.js';
import { TestVolume, turns } from './testing.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;
const CONTENT = Buffer.alloc(70_000, 'what was synced ');

async function create(fs: FileSystem, path: string) {
  const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, CONTENT);
  return file;
}
/** Null: there is no such name. */
async function content(fs: FileSystem, path: string): Promise<Buffer | null> {
  try {
    const file = await fs.open(path, O_RDONLY, 0, ROOT);
    const target = Buffer.alloc(CONTENT.length + 1);
    const length = await file.read(0, target);
    await file.close();
    return target.subarray(0, length);
  } catch (error) {
    if ((error as { code?: string }).code === 'ENOENT') return null;
    throw error;
  }
}
/** Nothing is written that nobody asks for. */
const LAZY = { inodeWriteBehindMs: 3_600_000 };

describe('what was synced is found by its name when its node has died (I8)', () => {
  test.each([
    ['fsync', false],
    ['fdatasync', true],
  ])('%s of a new file, in directories as new as itself', async (_, dataOnly) => {
    const volume = await TestVolume.create();
    const node = await volume.mount(1, LAZY);
    await node.fs.mkdir('/new', 0o755, ROOT);
    await node.fs.mkdir('/new/newer', 0o755, ROOT);
    const file = await create(node.fs, '/new/newer/file');
    await create(node.fs, '/new/newer/other');
    await file.sync(dataOnly);
    await volume.bury(node);
    const { fs } = await volume.mount(2);
    expect((await content(fs, '/new/newer/file'))?.equals(CONTENT)).toBe(true);
    await fs.unmount();
  });

  test('fsync of a file that got another name, or moved', async () => {
    const volume = await TestVolume.create();
    const node = await volume.mount(1, LAZY);
    await node.fs.mkdir('/from', 0o755, ROOT);
    await node.fs.mkdir('/to', 0o755, ROOT);
    const moved = await create(node.fs, '/from/moved');
    const linked = await create(node.fs, '/from/linked');
    await node.fs.sync();
    await node.fs.rename('/from/moved', '/to/moved', ROOT);
    await node.fs.link('/from/linked', '/to/linked', ROOT);
    await moved.sync(false);
    await linked.sync(false);
    await volume.bury(node);
    const { fs } = await volume.mount(2);
    expect(await content(fs, '/from/moved')).toBeNull();
    for (const name of ['/to/moved', '/to/linked', '/from/linked'])
      expect((await content(fs, name))?.equals(CONTENT)).toBe(true);
    await fs.unmount();
  });

  test('directories that were moved into each other in turn are synced once each', async () => {
    const { fs } = await (await TestVolume.create()).mount(1, LAZY);
    await fs.mkdir('/a', 0o755, ROOT);
    await fs.mkdir('/b', 0o755, ROOT);
    await fs.rename('/b', '/a/b', ROOT);
    await fs.rename('/a/b', '/b', ROOT);
    await fs.rename('/a', '/b/a', ROOT);
    const file = await create(fs, '/b/a/file');
    await file.sync(false);
    await fs.unmount();
  });

  test('a second fsync writes nothing again', async () => {
    const { fs, nsds } = await (await TestVolume.create()).mount(1, LAZY);
    const file = await create(fs, '/file');
    await file.sync(false);
    const before = nsds.shared.writes;
    await file.sync(false);
    expect(nsds.shared.writes - before).toBe(0);
    await fs.unmount();
  });
});

test('wherever fsync breaks off, a name on the devices has its file behind it', async () => {
  let outcomes = '';
  for (let writes = 0; !outcomes.endsWith('+'); writes++) {
    const volume = await TestVolume.create();
    const node = await volume.mount(1, LAZY);
    const file = await create(node.fs, '/file');
    let left = writes;
    volume.nsds.failWhen((op) => op === 'nsd.write' && --left < 0);
    const synced = await file.sync(false).then(
      () => true,
      () => false,
    );
    volume.nsds.failWhen(null);
    await volume.bury(node);
    const { fs } = await volume.mount(2);
    const found = await content(fs, '/file');
    if (found !== null) expect(found.equals(CONTENT)).toBe(true);
    if (synced) expect(found).not.toBeNull();
    outcomes += synced ? '+' : '-';
    await fs.unmount();
    expect(writes).toBeLessThan(100);
  }
  expect(outcomes).toMatch(/^-+\+$/);
});

test('what a node wrote is durable before it lets another one in: that one flushes nothing for it', async () => {
  const volume = await TestVolume.create({ blocks: [64, 64, 64] });
  const one = await volume.mount(1, LAZY);
  const mine = await create(one.fs, '/shared');
  const two = await volume.mount(2, LAZY);
  const theirs = await two.fs.open('/shared', O_RDWR, 0, ROOT);
  // Node 1 writes it out to let node 2 in (L1, L2).
  await theirs.stat();
  expect(one.nsds.flushes.flat()).toContain(mine.ino % 3);
  await theirs.write(0, Buffer.alloc(10, 1));
  await theirs.sync(false);
  two.nsds.flushes.length = 0;
  await theirs.sync(false);
  expect(two.nsds.flushes).toEqual([]);
  one.nsds.flushes.length = 0;
  await mine.sync(false);
  expect(one.nsds.flushes).toEqual([]);
});

/** Closed: what comes waits, until it is let through, the first first. */
class Gate {
  closed = false;
  readonly waiting: (() => void)[] = [];
  pass(): Promise<void> {
    return this.closed ? new Promise((resolve) => this.waiting.push(resolve)) : Promise.resolve();
  }
  async somebody(count = 1): Promise<void> {
    while (this.waiting.length < count) await turns();
  }
  open(): void {
    this.closed = false;
    for (const go of this.waiting.splice(0)) go();
  }
}

describe('fsyncs of one file at the same time', () => {
  /** An NSD with a cache: what a flush covers is what had been written when it began. */
  async function volatileCaches() {
    const volume = await TestVolume.create({ blocks: [64] });
    const node = await volume.mount(1, LAZY);
    const { nsds } = node;
    let writes = 0;
    let durable = 0;
    const flushes = new Gate();
    const transfers = new Gate();
    const [write, flush] = [nsds.write.bind(nsds), nsds.flush.bind(nsds)];
    // What is written with a flush of its own is durable by itself.
    nsds.write = async (ios, options) => {
      await transfers.pass();
      await write(ios, options);
      if (options?.flush === undefined) writes++;
    };
    nsds.flush = async (which) => {
      const covered = writes;
      await flushes.pass();
      await flush(which);
      durable = Math.max(durable, covered);
    };
    return { ...node, flushes, transfers, allDurable: () => durable === writes };
  }

  test('share what is written and flushed, and none waits for a clock', async () => {
    const it = await volatileCaches();
    const file = await create(it.fs, '/file');
    const again = await it.fs.open('/file', O_RDWR, 0, ROOT);
    // The clock of these tests stands still: who waits for a timer waits for ever.
    await Promise.all([file.sync(false), again.sync(false), file.sync(true), again.sync(true)]);
    expect(it.allDurable()).toBe(true);
    for (const one of [file, again]) await one.close();
  });

  test('none is done before the flush that covers its bytes, whoever began that', async () => {
    const it = await volatileCaches();
    const file = await create(it.fs, '/file');
    it.flushes.closed = true;
    const first = file.sync(false);
    await it.flushes.somebody();
    let acknowledged = false;
    const second = file.sync(false).then(() => {
      acknowledged = true;
    });
    for (let i = 0; i < 20; i++) await turns();
    expect(acknowledged).toBe(false);
    it.flushes.open();
    await Promise.all([first, second]);
    expect(it.allDurable()).toBe(true);
  });

  test('one takes over what the flush of another one failed to do', async () => {
    const it = await volatileCaches();
    const file = await create(it.fs, '/file');
    const flush = it.nsds.flush;
    it.nsds.flush = async () => {
      it.nsds.flush = flush;
      await turns();
      throw new FsError('deviceError', { op: 'nsd.flush' });
    };
    const [first, second] = await Promise.allSettled([file.sync(false), file.sync(false)]);
    expect([first.status, second.status]).toEqual(['rejected', 'fulfilled']);
    expect(it.allDurable()).toBe(true);
  });

  test('a write that ends after a flush began is not covered by it', async () => {
    const it = await volatileCaches();
    const file = await create(it.fs, '/file');
    await file.sync(false);
    await file.write(0, Buffer.alloc(10, 1));
    await it.cache.get(file.ino)!.flush();
    it.transfers.closed = true;
    const first = file.sync(false);
    await it.transfers.somebody();
    // The first one is at the inode; what is written now is not its business, and on its way when it flushes.
    await file.write(20_000, Buffer.alloc(10, 2));
    const background = it.cache.get(file.ino)!.flush();
    await it.transfers.somebody(2);
    it.transfers.waiting.shift()!();
    await first;
    it.transfers.open();
    await background;
    // Nothing of the inode but times has changed: there is only the flush to be done.
    await file.sync(true);
    expect(it.allDurable()).toBe(true);
  });
});
