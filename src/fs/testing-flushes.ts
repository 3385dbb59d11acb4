/**
 * For each flush of the file system's (durable.ts) something that goes wrong without it: what it promises is done, then the power goes, and somebody
 * looks. Each gives what is wrong, or null.
 */
import { constants } from 'node:fs';
import { WHOLE } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { Flush } from './durable.js';
import { type FileSystem, type OpenFile, ROOT } from './file-system-api.js';
import { Settling } from './space-peers.js';
import { checkVolume, type TestNode, TestVolume, type TestVolumeOptions } from './testing.js';
import { type Fates, NOTHING_SURVIVES, VolatileNsds } from './testing-volatile.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;
/** Nothing is written that nobody asks for. */
const LAZY = { inodeWriteBehindMs: 3_600_000 };
/** So many that they come to lie on every NSD, the log's own and others. */
export const FILES = 6;
/** More than goes into the log. */
const bytesOf = (value: number, length = 150_000): Buffer => Buffer.alloc(length, value);

export class VolatileVolume {
  private constructor(
    readonly volume: TestVolume,
    readonly nsds: VolatileNsds,
  ) {}

  static async create(
    options: TestVolumeOptions = {},
    prepare: (nsds: VolatileNsds) => void = () => undefined,
  ): Promise<VolatileVolume> {
    let nsds: VolatileNsds | null = null;
    const volume = await TestVolume.create({
      blocks: [48, 48, 48],
      ...options,
      nsds: (blocks, pool) => {
        nsds = new VolatileNsds(blocks, pool);
        prepare(nsds);
        return nsds;
      },
    });
    return new VolatileVolume(volume, nsds!);
  }
  mount(node: number, settings = LAZY): Promise<TestNode> {
    return this.volume.mount(node, settings);
  }
  /** Of all nodes and all NSDs. */
  powerOff(nodes: readonly TestNode[], fates: Fates = NOTHING_SURVIVES): void {
    this.volume.powerOff(nodes);
    this.nsds.powerCut(fates);
  }
  /** After everybody has unmounted, or the power was off. */
  check(): Promise<string | null> {
    return checkAll(this.nsds);
  }
}

async function checkAll(nsds: VolatileNsds): Promise<string | null> {
  try {
    const { problems, lostSubBlocks, lostInodes } = await checkVolume({ nsds });
    if (problems.length > 0) return `${problems.length} problems, the first: ${JSON.stringify(problems[0])}`;
    return lostSubBlocks + lostInodes > 0 ? `${lostSubBlocks} sub-blocks and ${lostInodes} inodes are lost` : null;
  } catch (error) {
    return FsError.from(error, 'check').message;
  }
}

export async function make(fs: FileSystem, path: string, bytes: Uint8Array): Promise<OpenFile> {
  const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, bytes);
  return file;
}
/** Null: it is not there, or can't be read. */
export async function contentOf(fs: FileSystem, path: string): Promise<Buffer | string> {
  try {
    const file = await fs.open(path, O_RDONLY, 0, ROOT);
    const target = Buffer.alloc((await file.stat()).sizeBytes);
    await file.read(0, target);
    await file.close();
    return target;
  } catch (error) {
    return FsError.from(error, 'look').message;
  }
}
async function wrongContent(fs: FileSystem, path: string, expected: Uint8Array): Promise<string | null> {
  const found = await contentOf(fs, path);
  if (typeof found === 'string') return `${path}: ${found}`;
  if (found.equals(expected)) return null;
  const at = found.findIndex((byte, index) => byte !== expected[index]);
  return `${path}: ${found.length} bytes for ${expected.length}, other ones from ${at} on`;
}

/** Everything as promised, and sound, for whoever mounts it after the power was off. */
export async function look(it: VolatileVolume, promised: ReadonlyMap<string, Uint8Array>): Promise<string | null> {
  try {
    const { fs } = await it.mount(9);
    for (const [path, bytes] of promised) {
      const wrong = await wrongContent(fs, path, bytes);
      if (wrong !== null) return wrong;
    }
    await fs.unmount();
    return await it.check();
  } catch (error) {
    return FsError.from(error, 'mount').message;
  }
}

const paths = Array.from({ length: FILES }, (_, index) => `/f${index}`);
export const sixFiles = (value: number, length?: number): Map<string, Buffer> =>
  new Map(paths.map((path, index) => [path, bytesOf(value + index, length)]));

export async function makeAll(
  fs: FileSystem,
  files: ReadonlyMap<string, Uint8Array>,
  sync = true,
): Promise<OpenFile[]> {
  const made: OpenFile[] = [];
  for (const [path, bytes] of files) {
    const file = await make(fs, path, bytes);
    if (sync) await file.sync(false);
    made.push(file);
  }
  return made;
}
/** Write-behind: to the NSDs, unflushed, and clean in the cache. */
export const writeBehind = async ({ cache }: TestNode, ino: InodeNumber): Promise<void> => cache.get(ino)!.flush();

export type Scenario = (prepare: (nsds: VolatileNsds) => void) => Promise<string | null>;

async function syncedFiles(prepare: (nsds: VolatileNsds) => void): Promise<string | null> {
  const it = await VolatileVolume.create({}, prepare);
  const node = await it.mount(1);
  const files = sixFiles(1);
  await makeAll(node.fs, files);
  it.powerOff([node]);
  return look(it, files);
}

/** What a dead node wrote in place, and others have seen and synced. */
async function leftFiles(prepare: (nsds: VolatileNsds) => void): Promise<string | null> {
  const it = await VolatileVolume.create({}, prepare);
  await earlierFiles(it, 150_000);
  const one = await it.mount(1);
  // Before: a log that is used for the first time is cleared, and flushed.
  const two = await it.mount(2);
  const files = sixFiles(50);
  for (const [path, bytes] of files) {
    const file = await one.fs.open(path, O_RDWR, 0, ROOT);
    await file.write(0, bytes);
    await writeBehind(one, file.ino);
  }
  await it.volume.bury(one);
  for (const [path, bytes] of files) {
    const file = await two.fs.open(path, O_RDWR, 0, ROOT);
    const seen = Buffer.alloc(bytes.length);
    await file.read(0, seen);
    if (!seen.equals(bytes)) return `${path}: what a dead node had written is not there`;
    await file.sync(false);
  }
  it.powerOff([two]);
  return look(it, files);
}

/** Of an earlier node, durable and in place, and in nobody's memory. */
async function earlierFiles(it: VolatileVolume, length: number): Promise<Map<string, Buffer>> {
  const files = sixFiles(1, length);
  const first = await it.mount(1);
  await makeAll(first.fs, files);
  await first.fs.unmount();
  return files;
}

/** The others: testing-flushes-mending.ts. */
export type MendingFlush = 'resync' | 'repairZeros' | 'repair' | 'mendedCopy' | 'mendedSuperblock';

export const WORKING: Readonly<Record<Exclude<Flush, MendingFlush>, Scenario>> = {
  log: syncedFiles,
  exposure: syncedFiles,

  fsync: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    await earlierFiles(it, 150_000);
    const node = await it.mount(2);
    const files = sixFiles(50);
    for (const [path, bytes] of files) {
      const file = await node.fs.open(path, O_RDWR, 0, ROOT);
      await file.write(0, bytes);
      // Nothing but times is new about the inode.
      await file.sync(true);
    }
    it.powerOff([node]);
    return look(it, files);
  },

  tail: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    const node = await it.mount(1, { inodeWriteBehindMs: 1_000 });
    const files = sixFiles(1);
    for (const file of await makeAll(node.fs, files)) await file.close();
    for (let i = 0; i < 10; i++) await it.volume.clock.advance(1_000);
    it.powerOff([node]);
    return look(it, files);
  },

  handOver: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    const one = await it.mount(1);
    const files = new Map<string, Buffer>();
    for (let i = 0; i < FILES; i++) {
      await one.fs.mkdir(`/d${i}`, 0o755, ROOT);
      files.set(`/d${i}/f`, bytesOf(i + 1, 100));
    }
    await makeAll(one.fs, files);
    const two = await it.mount(2);
    for (let i = 0; i < FILES; i++) await two.fs.stat(`/d${i}/f`, ROOT);
    it.nsds.powerCut();
    const three = await it.mount(3);
    for (const [path, bytes] of files) {
      const wrong = await wrongContent(three.fs, path, bytes);
      if (wrong !== null) return wrong;
    }
    for (const { fs } of [one, two, three]) await fs.unmount();
    return it.check();
  },

  dataHandOver: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    const node = await it.mount(1);
    const open = await makeAll(node.fs, sixFiles(1));
    const files = sixFiles(50);
    for (const [index, file] of open.entries()) {
      await file.write(0, files.get(paths[index]!)!);
      // Its data token only: size and times may stay where they are.
      await node.tokens.revoke({ class: TokenClass.data, object: file.ino, range: WHOLE, keep: TokenMode.none });
    }
    it.nsds.powerCut();
    for (const [path, bytes] of files) {
      const wrong = await wrongContent(node.fs, path, bytes);
      if (wrong !== null) return wrong;
    }
    await node.fs.unmount();
    return it.check();
  },

  zeros: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    const files = await earlierFiles(it, 30_000);
    const node = await it.mount(1);
    const open: OpenFile[] = [];
    for (const [path, bytes] of files) {
      const file = await node.fs.open(path, O_RDWR, 0, ROOT);
      await file.allocate('punchHole', 8_192, 8_192);
      bytes.fill(0, 8_192, 16_384);
      open.push(file);
    }
    it.nsds.powerCut();
    for (const file of open) await file.sync(false);
    it.powerOff([node]);
    return look(it, files);
  },

  move: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    const before = await earlierFiles(it, 3_000);
    const node = await it.mount(2);
    const files = new Map<string, Buffer>();
    const open: OpenFile[] = [];
    for (const [path, bytes] of before) {
      const file = await node.fs.open(path, O_RDWR, 0, ROOT);
      // It leaves the inode for a block of its own; its first bytes are not in the cache.
      await file.write(100_000, bytesOf(9, 10));
      const whole = Buffer.alloc(100_010);
      bytes.copy(whole);
      whole.fill(9, 100_000);
      files.set(path, whole);
      open.push(file);
    }
    it.nsds.powerCut();
    for (const file of open) await file.sync(false);
    it.powerOff([node]);
    return look(it, files);
  },

  attributes: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    const node = await it.mount(1);
    const files = sixFiles(1, 100);
    for (const file of await makeAll(node.fs, files)) {
      await file.setXattr('user.long', bytesOf(7, 9_000), ROOT);
      await file.sync(false);
    }
    it.powerOff([node]);
    const wrong = await look(it, files);
    if (wrong !== null) return wrong;
    const { fs } = await it.mount(8);
    for (const path of paths) {
      const file = await fs.open(path, O_RDONLY, 0, ROOT);
      try {
        const found = Buffer.from(await file.getXattr('user.long', ROOT));
        if (!found.equals(bytesOf(7, 9_000))) return `${path}: other attributes`;
      } catch (error) {
        return FsError.from(error, 'getXattr').message;
      }
    }
    await fs.unmount();
    return it.check();
  },

  freed: async (prepare) => {
    const it = await VolatileVolume.create({ blocks: [16, 16, 16], mkfs: { expectedNodes: 1 } }, prepare);
    const node = await it.mount(1);
    for (const file of await makeAll(node.fs, sixFiles(1, 1_000_000))) await file.close();
    for (const path of paths) await node.fs.unlink(path, ROOT);
    await node.fs.settle(Settling.space);
    it.nsds.powerCut();
    return freshSpaceIsZeros(it, node);
  },

  region: async (prepare) => {
    const it = await VolatileVolume.create(
      { blocks: [16, 16, 16], mkfs: { expectedNodes: 4, regionBlocks: 16 } },
      prepare,
    );
    const one = await it.mount(1);
    for (const file of await makeAll(one.fs, sixFiles(1, 100))) {
      await file.write(0, bytesOf(1, 1_000_000));
      await writeBehind(one, file.ino);
    }
    // The log says nothing of that space.
    await it.volume.bury(one);
    const two = await it.mount(2);
    await two.fs.mkdir('/takes-the-region', 0o755, ROOT);
    it.nsds.powerCut();
    return freshSpaceIsZeros(it, two);
  },

  logState: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    await earlierFiles(it, 100);
    // Its log lies on another NSD than the table of logs, and nothing else is flushed on that.
    const node = await it.mount(1);
    const files = sixFiles(50, 100);
    for (const [path, bytes] of files) {
      const file = await node.fs.open(path, O_RDWR, 0, ROOT);
      await file.write(0, bytes);
      await file.sync(false);
    }
    it.powerOff([node]);
    return look(it, files);
  },

  logSpace: async (prepare) => {
    const it = await VolatileVolume.create({ mkfs: { expectedNodes: 1 } }, prepare);
    const one = await it.mount(1);
    await one.fs.unmount();
    // Its zeros are flushed later, and are lost now.
    let cut = false;
    it.nsds.beforeFlush((why) => {
      if (why === 'logCleared' && !cut) it.nsds.powerCut();
      cut ||= why === 'logCleared';
    });
    const two = await it.mount(2);
    it.powerOff([two]);
    return look(it, new Map());
  },

  logCleared: async (prepare) => {
    const ghost = await ghostLog();
    const it = await VolatileVolume.create({ mkfs: { expectedNodes: 1 } }, prepare);
    const one = await it.mount(1);
    await one.fs.unmount();
    // Whatever had the space before, it looks like a log of that name.
    let planted = false;
    it.nsds.beforeFlush((why) => {
      if (why === 'logSpace' && !planted)
        for (const { nsd, sector, bytes } of ghost) it.nsds.setSector(nsd, sector, bytes);
      planted ||= why === 'logSpace';
    });
    const two = await it.mount(2);
    it.powerOff([two]);
    const wrong = await look(it, new Map());
    if (wrong !== null) return wrong;
    const { fs } = await it.mount(8);
    const names = await fs.readdir('/', ROOT);
    await fs.unmount();
    return names.length === 0 ? null : `there is ${names[0]!.name}, of a log that nobody wrote`;
  },

  leftBehind: leftFiles,
  leftData: leftFiles,

  redo: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    const one = await it.mount(1);
    const files = sixFiles(1, 100);
    await makeAll(one.fs, files);
    await it.volume.bury(one);
    it.nsds.powerCut();
    return look(it, files);
  },

  mkfs: async (prepare) => {
    let began = false;
    let nsds: VolatileNsds | null = null;
    // The superblocks are there, and of the rest what was flushed before them.
    const making = VolatileVolume.create({}, (made) => {
      prepare(made);
      nsds = made;
      made.beforeFlush((why) => {
        began ||= why === 'superblock';
        if (why === 'superblock') made.powerCut((_, sector) => (sector === 0 ? 'present' : 'absent'));
      });
    });
    const outcome = await making.then(
      () => 'success',
      (error: unknown) => FsError.from(error, 'mkfs').reason,
    );
    if (!began || nsds === null) return 'no superblock was written';
    if (outcome !== 'writesLost') return `mkfs ended with ${outcome}`;
    return checkAll(nsds);
  },

  superblock: async (prepare) => {
    const it = await VolatileVolume.create({}, prepare);
    it.powerOff([]);
    return look(it, new Map());
  },
};

/** What the second node's log has in such a file system when that has made something. */
async function ghostLog(): Promise<{ nsd: NsdIndex; sector: number; bytes: Uint8Array }[]> {
  const it = await VolatileVolume.create({ mkfs: { expectedNodes: 1 } });
  const one = await it.mount(1);
  await one.fs.unmount();
  const before = it.nsds.devices.map((sectors) => new Set(sectors.keys()));
  const two = await it.mount(2);
  await two.fs.mkdir('/ghost', 0o755, ROOT);
  await two.fs.sync();
  return it.nsds.devices.flatMap((sectors, index) =>
    [...sectors]
      .filter(([sector]) => !before[index]!.has(sector))
      .map(([sector, bytes]) => ({ nsd: nsdIndex(index), sector, bytes: bytes.slice() })),
  );
}

/** Where nothing was written in a new file's space there are zeros, whoever had it before: all the space that there is. */
async function freshSpaceIsZeros(it: VolatileVolume, node: TestNode): Promise<string | null> {
  const files = new Map<string, Buffer>();
  for (let i = 0; ; i++) {
    let file: OpenFile;
    try {
      file = await node.fs.open(`/new${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
      await file.write(900_000, bytesOf(9, 10));
    } catch (error) {
      if (FsError.from(error, 'write').reason === 'noSpace') break;
      throw error;
    }
    await file.sync(false);
    await file.close();
    const whole = Buffer.alloc(900_010);
    whole.fill(9, 900_000);
    files.set(`/new${i}`, whole);
  }
  // Some of it for the log of whoever looks.
  await node.fs.unlink('/new0', ROOT);
  await node.fs.settle(Settling.space);
  await node.fs.sync();
  files.delete('/new0');
  it.powerOff([node]);
  return look(it, files);
}
