import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { Counters } from '../common/counters.js';
import { deferred } from '../common/deferred.js';
import { nsdIndex } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { below, SeededRandom } from '../common/random.js';
import { type FileSystem, type OpOptions, ROOT } from './file-system-api.js';
import { INODE_FILE } from './layout.js';
import { recoverLife } from './recovery.js';
import { fsIdOf } from './superblock.js';
import { checkVolume, type TestNode, TestVolume, turns } from './testing.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;

async function contentOf(fs: FileSystem, path: string): Promise<Buffer | null> {
  try {
    const file = await fs.open(path, O_RDONLY, 0, ROOT);
    const { sizeBytes } = await file.stat();
    const bytes = Buffer.alloc(sizeBytes);
    await file.read(0, bytes);
    await file.close();
    return bytes;
  } catch (error) {
    if ((error as { code?: string }).code === 'ENOENT') return null;
    throw error;
  }
}

/** Names and contents that were synced, and are not changed any more. */
type Promised = Map<string, Buffer>;

/** Files come, grow, move, are linked, cut and removed; some are synced and left alone from then on. Until the node is dead. */
async function live(node: TestNode, random: SeededRandom, promised: Promised, isDead: () => boolean): Promise<void> {
  const { fs } = node;
  const names: string[] = [];
  for (let i = 0; !isDead(); i++) {
    const any = (): string => names[below(random, names.length)]!;
    try {
      switch (names.length < 3 ? 0 : below(random, 9)) {
        case 0:
        case 1:
        case 2: {
          const name = `/d${below(random, 3)}/f${node.life.nodeId}-${i}`;
          const file = await fs.open(name, O_CREAT | O_RDWR, 0o644, ROOT);
          const bytes = Buffer.alloc(1 + below(random, [100, 5_000, 60_000, 1_300_000][below(random, 4)]!), i + 1);
          await file.write(0, bytes);
          if (below(random, 3) === 0) {
            await file.sync(false);
            promised.set(name, bytes);
          } else names.push(name);
          await file.close();
          break;
        }
        case 3:
          await fs.truncate(any(), below(random, 80_000), ROOT);
          break;
        case 4: {
          const to = `/d${below(random, 3)}/r${node.life.nodeId}-${i}`;
          const at = below(random, names.length);
          await fs.rename(names[at]!, to, ROOT);
          names[at] = to;
          break;
        }
        case 5: {
          const to = `/d${below(random, 3)}/l${node.life.nodeId}-${i}`;
          await fs.link(any(), to, ROOT);
          names.push(to);
          break;
        }
        case 6:
        case 7:
          await fs.unlink(names.splice(below(random, names.length), 1)[0]!, ROOT);
          break;
        case 8:
          await fs.mkdir(`/d${below(random, 3)}/sub${node.life.nodeId}-${i}`, 0o755, ROOT);
          break;
      }
    } catch (error) {
      if (!isDead()) throw error;
    }
  }
}

test.each([1, 2, 3, 4, 5, 6])(
  'a node that dies in the midst leaves a sound file system with everything that was synced, nothing lost or half (seed %d)',
  async (seed) => {
    const random = new SeededRandom(seed);
    const volume = await TestVolume.create({ blocks: [96, 96], mkfs: { logBytes: 512 * 1024 } });
    const setUp = await volume.mount(9);
    for (const name of ['/d0', '/d1', '/d2']) await setUp.fs.mkdir(name, 0o755, ROOT);
    const promised: Promised = new Map();
    for (let life = 0; life < 3; life++) {
      const node = await volume.mount(1 + life);
      let dead = false;
      const until = 150 + below(random, 500);
      void live(node, random.fork(), promised, () => dead).catch(() => undefined);
      for (let turn = 0; turn < until; turn++) {
        await turns();
        if (turn % 50 === 0) await volume.clock.advance(500);
      }
      dead = true;
      await volume.bury(node);
      for (const [name, bytes] of promised) {
        const found = await contentOf(setUp.fs, name);
        expect(found === null ? name : found.equals(bytes)).toBe(true);
      }
    }
    await setUp.fs.unmount();
    const report = await checkVolume(volume);
    expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(promised.size).toBeGreaterThan(0);
  },
);

test('L3: recovery that is done twice changes nothing, and one that dies in the midst is begun anew', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount(1, { inodeWriteBehindMs: 3_600_000 });
  await node.fs.mkdir('/d', 0o755, ROOT);
  const file = await node.fs.open('/d/f', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.alloc(30_000, 7));
  await file.sync(false);
  node.nsds.cut();
  let writes = 0;
  volume.nsds.failWhen((op) => op === 'nsd.write' && ++writes === 2);
  await expect(volume.recover(node)).rejects.toMatchObject({ code: 'EIO' });
  volume.nsds.failWhen(null);
  const images = () => volume.nsds.devices.map((device) => new Map(device));
  const second = await volume.recover(node);
  expect(second.sectorsRedone).toBeGreaterThan(0);
  const after = images();
  expect(await volume.recover(node)).toMatchObject({ logs: 0, sectorsRedone: 0 });
  expect(images()).toEqual(after);
  await volume.bury(node);
  const { fs } = await volume.mount(2);
  expect((await contentOf(fs, '/d/f'))?.equals(Buffer.alloc(30_000, 7))).toBe(true);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('all nodes are gone: the first mount redoes all logs, and what several nodes did to one directory is in order', async () => {
  const volume = await TestVolume.create();
  const settings = { inodeWriteBehindMs: 3_600_000 };
  const nodes = [await volume.mount(1, settings), await volume.mount(2, settings), await volume.mount(3, settings)];
  await nodes[0]!.fs.mkdir('/d', 0o755, ROOT);
  for (let i = 0; i < 30; i++) {
    const file = await nodes[i % 3]!.fs.open(`/d/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
    await file.write(0, Buffer.alloc(10 + 700 * i, i + 1));
    await file.sync(false);
    await file.close();
  }
  volume.powerOff(nodes);
  const { fs } = await volume.mount(4);
  for (let i = 0; i < 30; i++)
    expect((await contentOf(fs, `/d/f${i}`))?.equals(Buffer.alloc(10 + 700 * i, i + 1))).toBe(true);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('what a write in place has torn is made good before anybody needs it: the inode file, when it was growing, first of all', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount(1, { inodeWriteBehindMs: 3_600_000, inodeBatch: 16 });
  for (let i = 0; node.counters.get('fs.inodeBlocksAdded') === 0; i++)
    await (await node.fs.open(`/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT)).close();
  await node.fs.sync();
  volume.powerOff([node]);
  const { nsd, sector } = node.fs.superblock.inodeFile;
  volume.nsds.tear(nsd, sector + INODE_FILE);
  const { fs } = await volume.mount(2);
  expect((await fs.stat('/f0', ROOT)).nlink).toBe(1);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('a log that is nearly full is emptied while operations wait, and goes on', async () => {
  const volume = await TestVolume.create({ mkfs: { logBytes: 256 * 1024 } });
  const node = await volume.mount(1, { inodeWriteBehindMs: 3_600_000 });
  let over = false;
  const writing = Promise.all(
    Array.from({ length: 8 }, async (_, writer) => {
      for (let i = 0; i < 120; i++) {
        const file = await node.fs.open(`/f${writer}-${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
        await file.write(0, Buffer.alloc(3000, i));
        if (i % 10 === 0) await file.sync(false);
        await file.close();
      }
    }),
  ).finally(() => {
    over = true;
  });
  while (!over) await volume.clock.advance(20);
  await writing;
  expect(node.counters.get('log.checkpoints')).toBeGreaterThan(0);
  expect(node.counters.get('log.waitsForRoom')).toBeGreaterThan(0);
  await node.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0, inodes: 6 + 960 });
});

test('I12: while the NSDs of a full log are away every wait for room ends, at its deadline or by its signal, and what was done stays', async () => {
  const volume = await TestVolume.create({ mkfs: { logBytes: 256 * 1024 } });
  const node = await volume.mount(1, { inodeWriteBehindMs: 3_600_000 });
  await (await node.fs.open('/f', O_CREAT | O_RDWR, 0o600, ROOT)).close();
  await node.fs.sync();
  volume.nsds.away.add(nsdIndex(0)).add(nsdIndex(1));
  let changed = 0;
  const change = (options: OpOptions): Promise<unknown> =>
    node.fs.setAttributes('/f', { mtimeNs: BigInt(changed + 1) }, true, ROOT, options).then(() => changed++);
  const waits = () => node.counters.get('log.waitsForRoom') > 0;
  const abort = new AbortController();
  let first = change({ signal: abort.signal });
  for (; !waits(); first = change({ signal: abort.signal })) await first;
  abort.abort();
  await expect(first).rejects.toMatchObject({ code: 'ABORT_ERR', op: 'log.enter' });
  expect(changed).toBeGreaterThan(10);

  const told = (ms: number) => ({
    code: 'ETIMEDOUT',
    object: 'log 0',
    message: expect.stringMatching(`no room in the log within ${ms} ms: EIO: no server has a path to it, .* 'nsd \\d'`),
  });
  const over: string[] = [];
  const impatient = change({ timeoutMs: 5000 }).catch((error: unknown) => over.push('impatient') && error);
  const usual = node.fs.mkdir('/d', 0o755, ROOT).catch((error: unknown) => over.push('usual') && error);
  await volume.clock.advance(4900);
  expect(over).toEqual([]);
  await volume.clock.advance(200);
  expect(over).toEqual(['impatient']);
  await volume.clock.advance(25_000);
  expect(await impatient).toMatchObject(told(5000));
  expect(await usual).toMatchObject(told(30_000));

  const patient = change({});
  await volume.clock.advance(1000);
  volume.nsds.away.clear();
  await volume.clock.advance(5000);
  await patient;
  await node.fs.unmount();
  const { fs } = await volume.mount(2);
  expect((await fs.stat('/f', ROOT)).mtimeNs).toBe(BigInt(changed));
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('I12: what could not be exposed for want of room in the log is exposed later, with nothing lost', async () => {
  const volume = await TestVolume.create({ mkfs: { logBytes: 256 * 1024 } });
  const before = await volume.mount(1);
  const names = Array.from({ length: 200 }, (_, i) => `/f${i}`);
  // Those in their inodes fill the log, and the others have space that is to be settled.
  const contents = names.map((_, i) => Buffer.alloc(i < 100 ? 3000 : 5000, i + 1));
  for (const name of names) await (await before.fs.open(name, O_CREAT | O_RDWR, 0o644, ROOT)).close();
  await before.fs.unmount();
  const node = await volume.mount(1);
  for (const [i, name] of names.entries()) {
    const file = await node.fs.open(name, O_RDWR, 0, ROOT);
    await file.write(0, contents[i]!);
    await file.close();
  }
  volume.nsds.failWhen((op, { selfChecking }) => op === 'nsd.write' && selfChecking === true);
  // The background tries, and after its deadline once more.
  const waits = () => node.counters.get('log.waitsForRoom');
  for (let ms = 0; waits() < 2 && ms < 120_000; ms += 1000) await volume.clock.advance(1000);
  expect(waits()).toBeGreaterThanOrEqual(2);
  volume.nsds.failWhen(null);
  await volume.clock.advance(40_000);
  // The first one may tell of what is mended since.
  await node.fs.sync().catch(() => node.fs.sync());
  volume.powerOff([node]);
  const { fs } = await volume.mount(2);
  for (const [i, name] of names.entries()) expect((await contentOf(fs, name))?.equals(contents[i]!), name).toBe(true);
  for (const name of names) await fs.unlink(name, ROOT);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ findings: [], problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

/** Begins to redo the log of a node that is gone, and is kept waiting by an NSD, as by one whose server is on its way back. */
async function beginLate(volume: TestVolume, { fs: { superblock }, life }: TestNode) {
  const storage = volume.storage();
  const flush = storage.nsds.flush.bind(storage.nsds);
  const waits = deferred<void>();
  const goes = deferred<void>();
  storage.nsds.flush = async (...args) => {
    waits.resolve();
    await goes.promise;
    return flush(...args);
  };
  const { geometry, inodeFile } = superblock;
  const fsId = fsIdOf(superblock.fsUuid);
  const ended = recoverLife(
    { ...storage, fsId, geometry, inodeFile, logger: silentLogger, counters: new Counters() },
    life,
  );
  await waits.promise;
  return {
    goOn: () => {
      goes.resolve();
      return ended;
    },
  };
}

test('who redoes a log late, when others have redone and settled it, changes nothing (L3)', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount(1);
  const other = await volume.mount(2);
  for (let i = 0; i < 5; i++) {
    const file = await node.fs.open(`/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
    await file.write(0, Buffer.alloc(300_000, i));
    await file.sync(false);
    await file.write(300_000, Buffer.alloc(300_000, i));
  }
  await node.fs.sync();
  for (let i = 0; i < 3; i++) await node.fs.unlink(`/f${i}`, ROOT);
  node.nsds.cut();
  const late = await beginLate(volume, node);
  await volume.bury(node);
  expect(other.counters.get('recovery.settled')).toBeGreaterThan(0);
  expect(await late.goOn()).toMatchObject({ logs: 0 });
  await other.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ findings: [], problems: [], lostSubBlocks: 0, lostInodes: 0 });
});

test('the next life of a node has its log and its inode numbers for itself, though the log of the one before is redone late (L3)', async () => {
  const volume = await TestVolume.create();
  const node = await volume.mount(1);
  const other = await volume.mount(2);
  const create = async (by: TestNode, name: string): Promise<void> => {
    const file = await by.fs.open(name, O_CREAT | O_RDWR, 0o644, ROOT);
    await file.write(0, Buffer.from(name));
    await file.sync(false);
    await file.close();
  };
  await create(node, '/first');
  node.nsds.cut();
  const late = await beginLate(volume, node);
  await volume.bury(node);
  const next = await volume.mount(1);
  for (let i = 0; i < 100; i++) await create(next, `/next${i}`);
  await late.goOn();
  await other.fs.settleLeft();
  for (let i = 100; i < 200; i++) await create(next, `/next${i}`);
  await volume.bury(next);
  const third = await volume.mount(1);
  for (let i = 200; i < 300; i++) await create(third, `/next${i}`);
  for (let i = 0; i < 300; i++) {
    const { sizeBytes } = await other.fs.lstat(`/next${i}`, ROOT);
    expect(sizeBytes, `/next${i}`).toBe(`/next${i}`.length);
  }
  await third.fs.unmount();
  await other.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ findings: [], problems: [], lostSubBlocks: 0, lostInodes: 0 });
});
