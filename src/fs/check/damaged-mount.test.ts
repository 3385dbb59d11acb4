import { constants } from 'node:fs';
import { beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { TwinCacheMap } from '../../cache/cache-map-twin.js';
import { FsError } from '../../common/errors.js';
import { nsdIndex } from '../../common/ids.js';
import { type FileSystem, ROOT } from '../file-system-api.js';
import { ALLOCATION_MAP, INODE_FILE, INODE_MAP, LOG_TABLE } from '../layout.js';
import { setU16, setU32 } from '../sector.js';
import { checkVolume } from '../testing.js';
import { type Contents, DamagedVolume, type Place, placeText, readContents } from './testing-damage.js';
import { DAMAGES as ANY, type Damage, OLD_GENERATION as OLD } from './testing-damages.js';

const { O_RDONLY } = constants;

let v: DamagedVolume;
beforeAll(async () => {
  v = await DamagedVolume.create();
});
beforeEach(() => v.restore());

const here =
  (damage: Damage) =>
  (place: Place): void =>
    damage(v, place);
const DAMAGES = Object.fromEntries(Object.entries(ANY).map(([what, damage]) => [what, here(damage)]));
const OLD_GENERATION = here(OLD);
const SUPERBLOCK: typeof DAMAGES = {
  ...DAMAGES,
  'an impossible number of NSDs': (place) => v.edit(place, (bytes) => setU32(bytes, 160 + 4 + 4, 60_000)),
  'a name of impossible length': (place) => v.edit(place, (bytes) => setU32(bytes, 160, 60_000)),
  'no segments': (place) => v.edit(place, (bytes) => setU32(bytes, 76, 0)),
  'too many blocks in a region': (place) => v.edit(place, (bytes) => setU32(bytes, 72, 5_000)),
};

interface Structure {
  readonly find: () => Promise<Place> | Place;
  readonly use: (fs: FileSystem) => Promise<unknown>;
  /** The object that the error names, unless the NSD says it first (a checksum). */
  readonly object: RegExp;
  readonly also: Record<string, (place: Place) => void>;
  /** Paths that may be unreadable. */
  readonly hurt: (path: string) => boolean;
}

const readAt = async (fs: FileSystem, path: string, offsetBytes: number): Promise<void> => {
  const file = await fs.open(path, O_RDONLY, 0, ROOT);
  try {
    await file.read(offsetBytes, Buffer.alloc(10));
  } finally {
    await file.close();
  }
};

const STRUCTURES: Record<string, Structure> = {
  'an inode': {
    find: () => v.inodePlace('/a/one'),
    use: (fs) => fs.stat('/a/one', ROOT),
    object: /inode \d+/,
    also: { 'impossible lengths': (place) => v.edit(place, (bytes) => setU16(bytes, 108, 65_000)) },
    hurt: (path) => path === '/a/one',
  },
  'an indirect block': {
    find: () => v.pointer('/a/sparse', 211),
    use: (fs) => readAt(fs, '/a/sparse', 230 << 20),
    object: /inode \d+, indirect block of level 1/,
    also: {
      'an old generation': OLD_GENERATION,
      'a pointer to itself': (place) =>
        v.edit(place, (bytes) => {
          bytes[40] = 2;
        }),
      'a pointer beyond its NSD': (place) => v.edit(place, (bytes) => setU32(bytes, 64 + 19 * 16 + 12, 70_000)),
    },
    hurt: (path) => path.startsWith('/a/sparse'),
  },
  'a leaf': {
    find: async () => (await v.leaves('/many'))[0]!.place,
    use: (fs) => fs.readdir('/many', ROOT),
    object: /directory \d+ leaf 0/,
    also: {
      'an old generation': OLD_GENERATION,
      'impossible lengths': (place) => v.edit(place, (bytes) => setU16(bytes, 44, 60_000)),
    },
    hurt: (path) => path.startsWith('/many'),
  },
  'a block of attributes': {
    find: () => v.attributesPointer('/attributes'),
    use: (fs) => fs.getXattr('/attributes', true, 'user.big', ROOT),
    object: /inode \d+/,
    also: {
      'an old generation': OLD_GENERATION,
      'impossible lengths': (place) => v.edit(place, (bytes) => setU32(bytes, 64 + 2, 60_000)),
    },
    hurt: () => false,
  },
};

async function readRest(fs: FileSystem, hurt: (path: string) => boolean): Promise<Contents> {
  const rest: Contents = new Map();
  for (const [path, content] of v.contents) {
    if (hurt(path) || content === null || typeof content === 'string' || path.includes(':')) continue;
    const file = await fs.open(path, O_RDONLY, 0, ROOT);
    const bytes = Buffer.alloc(content.length);
    await file.read(0, bytes);
    await file.close();
    rest.set(path, bytes);
    expect(bytes.equals(content), path).toBe(true);
  }
  return rest;
}

describe.each(Object.entries(STRUCTURES))('under a mount, %s with', (_, { find, use, object, also, hurt }) => {
  test.each(Object.entries({ ...DAMAGES, ...also }))(
    '%s is refused, naming it; nothing else is hurt, and what is mended is there again',
    async (what, damage) => {
      damage(await find());
      const node = await v.volume.mount();
      for (let twice = 0; twice < 2; twice++) {
        const error: unknown = await use(node.fs).then(
          () => null,
          (thrown: unknown) => thrown,
        );
        if (!FsError.is(error)) throw new Error(`no error of ours: ${String(error)}`);
        const isUnreadable = what === 'bytes without their checksum';
        expect(error.code).toBe(isUnreadable ? 'EIO' : 'EUCLEAN');
        expect(error.object).toMatch(isUnreadable ? /nsd \d+ sector \d+/ : object);
      }
      expect((await readRest(node.fs, hurt)).size).toBeGreaterThan(3);
      await node.fs.unmount();
      v.restore();
      const again = await v.volume.mount();
      await use(again.fs);
      await again.fs.unmount();
    },
  );
});

describe('what a mount can not do without:', () => {
  test.each([
    ['every copy of the superblock', () => [0, 1].map((nsd) => ({ nsd: nsdIndex(nsd), sector: 0 })), /superblock/],
    ["the inode file's own inode", () => [v.inodePlace(INODE_FILE)], /inode 1/],
    ["the allocation map's inode", () => [v.inodePlace(ALLOCATION_MAP)], /inode 3/],
    ["the inode map's inode", () => [v.inodePlace(INODE_MAP)], /inode 4/],
    ['the inode of the table of logs', () => [v.inodePlace(LOG_TABLE)], /inode 6/],
  ] as const)('%s, damaged, is named; with it mended the file system is there as it was', async (_, find, object) => {
    const damages = object.source === 'superblock' ? SUPERBLOCK : DAMAGES;
    for (const [what, damage] of Object.entries(damages)) {
      v.restore();
      for (const place of find()) damage(place);
      const error: unknown = await v.volume.mount().then(
        () => null,
        (thrown: unknown) => thrown,
      );
      if (!FsError.is(error)) throw new Error(`no error of ours with ${what}: ${String(error)}`);
      expect(['EUCLEAN', 'EIO']).toContain(error.code);
      if (error.code === 'EUCLEAN') expect(error.object).toMatch(object);
    }
    v.restore();
    const node = await v.volume.mount();
    expect((await readContents(node.fs)).size).toBe(v.contents.size);
    await node.fs.unmount();
  });

  test('a mount that fails gives back what it had taken of the cache map, and leaves no log open', async () => {
    const opened = vi.spyOn(TwinCacheMap.prototype, 'openEntry');
    const closed = vi.spyOn(TwinCacheMap.prototype, 'closeEntry');
    // Its maps' inodes are attached by then.
    v.volume.nsds.failWhen(
      (op, { nsd, sector }) => op === 'nsd.write' && `${nsd}:${sector}` === placeText(v.logDescriptor(0)),
    );
    await expect(v.volume.mount()).rejects.toMatchObject({ reason: 'deviceError' });
    v.volume.nsds.failWhen(null);
    expect(opened.mock.calls.length).toBeGreaterThanOrEqual(2);
    expect(closed.mock.calls.length).toBe(opened.mock.calls.length);
    vi.restoreAllMocks();
    expect(await checkVolume(v.volume)).toMatchObject({ findings: [] });
  });

  test('one good copy of the superblock is enough', async () => {
    for (const damage of Object.values({ ...SUPERBLOCK, 'an old generation': OLD_GENERATION })) {
      v.restore();
      damage({ nsd: nsdIndex(0), sector: 0 });
      const node = await v.volume.mount();
      await node.fs.stat('/a/one', ROOT);
      await node.fs.unmount();
    }
  });
});
