import { constants } from 'node:fs';
import { beforeEach, describe, expect, test } from 'vitest';
import { Stamps } from '../cache/stamps.js';
import { FsError } from '../common/errors.js';
import { type Credentials, ROOT } from '../fs/file-system-api.js';
import { type TestNode, TestVolume } from '../fs/testing.js';
import { RememberedStats } from './remembered-stats.js';

/** What a thread remembers of an engine's answers, against what this node and another one do meanwhile (I2, I13). */
const { O_CREAT, O_EXCL, O_RDWR, O_RDONLY } = constants;
const SOMEBODY: Credentials = { uid: 1000, gid: 1000, groups: [], umask: 0o022 };
const PATH = '/d/e/file';

let volume: TestVolume;
let node: TestNode;
let other: TestNode;
let stamps: Stamps;
let nowMs: number;
let remembered: RememberedStats;

const make = async (on: TestNode, path: string): Promise<void> => {
  await (await on.fs.open(path, O_CREAT | O_EXCL | O_RDWR, 0o644, ROOT)).close();
};
const remember = (path: string, follow = true, who = ROOT): boolean => {
  const found = node.fs.tryStat(path, follow, who);
  if (found?.stamps) remembered.put(path, found.attributes, found.stamps);
  return found?.stamps != null;
};

beforeEach(async () => {
  volume = await TestVolume.create();
  stamps = new Stamps();
  nowMs = 1000;
  stamps.setLeaseDeadline(1_000_000);
  remembered = new RememberedStats(stamps, () => nowMs);
  node = await volume.mount(1, {}, stamps);
  other = await volume.mount(2);
  await node.fs.mkdir('/d', 0o755, ROOT);
  await node.fs.mkdir('/d/e', 0o755, ROOT);
  for (const path of [PATH, '/d/e/beside', '/d/beside']) await make(node, path);
  await node.fs.sync();
  await node.fs.stat(PATH, ROOT);
  expect(remember(PATH)).toBe(true);
});

test('an answer is told again while nothing changes, and is a new object each time', async () => {
  await node.fs.stat('/d/e/beside', ROOT);
  const [one, two] = [remembered.get(PATH, true), remembered.get(PATH, false)];
  expect(one?.attributes).toEqual(await node.fs.stat(PATH, ROOT));
  expect(one?.stats()).toEqual(two?.stats());
  expect(one?.stats().mtime).not.toBe(two?.stats().mtime);
});

describe('it is forgotten when this node, or another one, changes what it was made of', () => {
  const changes: [string, (by: TestNode) => Promise<unknown>][] = [
    ['the file goes', ({ fs }) => fs.unlink(PATH, ROOT)],
    ['the file has another name', ({ fs }) => fs.rename(PATH, '/d/e/new', ROOT)],
    ['another file gets its name', ({ fs }) => fs.rename('/d/beside', PATH, ROOT)],
    ['a directory on the way has another name', ({ fs }) => fs.rename('/d/e', '/d/f', ROOT)],
    ['a directory on the way is closed', ({ fs }) => fs.setAttributes('/d', { mode: 0o700 }, true, ROOT)],
    ['its mode', ({ fs }) => fs.setAttributes(PATH, { mode: 0o600 }, true, ROOT)],
    ['its times', ({ fs }) => fs.setAttributes(PATH, { atimeNs: 1n, mtimeNs: 2n }, true, ROOT)],
    ['its size', ({ fs }) => fs.truncate(PATH, 100_000, ROOT)],
    ['its links', ({ fs }) => fs.link(PATH, '/d/link', ROOT)],
    ['its extended attributes', ({ fs }) => fs.setXattr(PATH, true, 'user.a', Buffer.from('b'), ROOT)],
    [
      'its bytes',
      async ({ fs }) => {
        const file = await fs.open(PATH, O_RDWR, 0, ROOT);
        await file.write(0, Buffer.alloc(10_000, 1));
        await file.close();
      },
    ],
  ];
  for (const [name, change] of changes)
    for (const where of ['here', 'elsewhere'])
      test(`${name}, ${where}`, async () => {
        await change(where === 'here' ? node : other);
        expect(remembered.get(PATH, true)).toBeUndefined();
      });
});

test('a read is told, whether its time is written down or only remembered', async () => {
  for (const who of [node, other]) {
    const file = await who.fs.open(PATH, O_RDONLY, 0, ROOT);
    await file.read(0, new Uint8Array(1));
    await file.close();
    const { atimeNs } = await node.fs.stat(PATH, ROOT);
    expect(remembered.get(PATH, true)?.attributes.atimeNs ?? atimeNs).toBe(atimeNs);
    remember(PATH);
  }
});

test('an open file is not remembered: hits change it without a word', async () => {
  const file = await node.fs.open(PATH, O_RDWR, 0, ROOT);
  expect(remembered.get(PATH, true)).toBeUndefined();
  expect(node.fs.tryStat(PATH, true, ROOT)?.stamps).toBeNull();
  await file.close();
  expect(remember(PATH)).toBe(true);
});

test('a file that other nodes write beside this one is not remembered, and what they wrote is told', async () => {
  const files = await Promise.all([node, other].map(({ fs }) => fs.open(PATH, O_RDWR, 0, ROOT)));
  for (let round = 1; round <= 3; round++) {
    for (const [index, file] of files.entries())
      await file.write((2 * round + index) * 100_000, Buffer.alloc(10_000, round));
    expect(remembered.get(PATH, true)).toBeUndefined();
    expect(node.fs.tryStat(PATH, true, ROOT)?.stamps ?? null).toBeNull();
  }
  await files[0]!.close();
  await node.fs.stat(PATH, ROOT);
  remember(PATH);
  await files[1]!.write(900_000, Buffer.alloc(10));
  expect(remembered.get(PATH, true)).toBeUndefined();
  await files[1]!.close();
  await node.fs.stat(PATH, ROOT);
  expect(remember(PATH)).toBe(true);
  expect(remembered.get(PATH, true)?.attributes.sizeBytes).toBe(900_010);
});

test('F3: nothing is told when the lease has run out, or after the engine ended', () => {
  nowMs = 999_000;
  expect(remembered.get(PATH, true)).toBeDefined();
  nowMs = 1_000_000;
  expect(remembered.get(PATH, true)).toBeUndefined();
  nowMs = 1000;
  expect(remember(PATH)).toBe(true);
  expect(remembered.get(PATH, true)).toBeDefined();
  stamps.end();
  stamps.setLeaseDeadline(1_000_000);
  expect(remembered.get(PATH, true)).toBeUndefined();
});

test('nothing is told after unmounting', async () => {
  await node.fs.unmount();
  expect(remembered.get(PATH, true)).toBeUndefined();
  expect(node.fs.tryStat(PATH, true, ROOT)).toBeNull();
});

test('links are walked, and remembered as themselves only', async () => {
  await node.fs.symlink(PATH, '/d/link', ROOT);
  await node.fs.lstat('/d/link', ROOT);
  expect(node.fs.tryStat('/d/link', true, ROOT)).toBeNull();
  expect(remember('/d/link', false)).toBe(true);
  expect(remembered.get('/d/link', true)).toBeUndefined();
  expect(remembered.get('/d/link', false)?.stats().isSymbolicLink()).toBe(true);
  for (const path of ['/d/link/..', '/d/../d/e', '/d//e', '/d/e/', 'd'])
    expect(node.fs.tryStat(path, true, ROOT)).toBeNull();
  expect(remember('/')).toBe(true);
});

test('who may not pass a directory is refused as by the walk', async () => {
  await node.fs.setAttributes('/d', { mode: 0o700 }, true, ROOT);
  expect(() => node.fs.tryStat(PATH, true, SOMEBODY)).toThrow(FsError);
  await expect(node.fs.stat(PATH, SOMEBODY)).rejects.toMatchObject({ code: 'EACCES' });
  expect(() => node.fs.tryStat(`${PATH}/x`, true, ROOT)).toThrow(expect.objectContaining({ code: 'ENOTDIR' }));
  expect(node.fs.tryStat('/d/none', true, ROOT)).toBeNull();
});

test('what is asked for stays, the rest goes with its generation', () => {
  const found = node.fs.tryStat(PATH, true, ROOT)!;
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 32_000; i++) remembered.put(`/${round} ${i}`, found.attributes, found.stamps!);
    expect(remembered.get(PATH, true)).toBeDefined();
  }
  expect(remembered.get('/0 0', true)).toBeUndefined();
});
