import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { inodeNumber, nsdIndex } from '../common/ids.js';
import { fuzzRuns } from '../common/testing/fuzz.js';
import { SECTOR_BYTES } from '../common/units.js';
import { blockPointer, pointerFault, pointersFault, readPointer, writePointer } from './block-pointer.js';
import { checkIndirect, FILE_BLOCKS_MAX, formatIndirect, pointerPlace } from './indirect-format.js';
import { Inode } from './inode.js';
import { decodeInode, encodeInode, type InodeFields, InodeFlag } from './inode-format.js';
import type { Geometry } from './layout.js';
import { appendEntry, findEntry, formatLeaf, hashName, leafFault, removeEntry } from './leaf-format.js';
import { blockFree, fillBits, findRun, formatRegion, formatSegment, regionFault, segmentFault } from './map-formats.js';
import { sealSector } from './sector.js';
import { decodeSuperblock, encodeSuperblock, fsIdOf, type Superblock } from './superblock.js';
import { TEST_FS_UUID, testChecksums } from './testing.js';
import {
  decodeXattrBlock,
  encodeKept,
  encodeXattrBlock,
  keptFault,
  type XattrEntry,
  XattrSpace,
} from './xattr-format.js';

const geometry: Geometry = {
  nsdCount: 2,
  nsdBlocks: [100, 90],
  regionBlocks: 8,
  regionCount: 13,
  segmentCount: 64,
  failureGroups: [1, 2],
  metadataCopies: 1,
};
const fsId = fsIdOf(TEST_FS_UUID);
const superblock: Superblock = {
  fsUuid: TEST_FS_UUID,
  name: 'a name',
  formatVersion: 1,
  incompatibleFeatures: 0,
  readOnlyCompatibleFeatures: 0,
  compatibleFeatures: 0x90000001,
  generation: 3,
  birthtimeNs: 17n,
  nsds: [
    { uuid: '00000000-0000-4000-8000-000000000001', blocks: 100, failureGroup: 1 },
    { uuid: '00000000-0000-4000-8000-000000000002', blocks: 90, failureGroup: 2 },
  ],
  geometry,
  inodeFile: blockPointer({ nsd: nsdIndex(1), sector: 256, count: 256 }, 1),
};

/** No two fields alike, none zero, each as wide as it may be. */
function sampleFields(): InodeFields {
  const attributes: XattrEntry[] = [{ space: XattrSpace.user, name: 'comment', value: Buffer.from('a value') }];
  const area = new Uint8Array(32);
  writePointer(area, 16, superblock.inodeFile);
  return {
    type: 1,
    mode: 0o7641,
    uid: 0xf0000001,
    gid: 0xf0000002,
    nlink: 0xf0000003,
    sizeBytes: 2 ** 52 + 4,
    atimeNs: -(2n ** 62n) - 5n,
    mtimeNs: -(2n ** 62n) - 6n,
    ctimeNs: 2n ** 62n + 7n,
    birthtimeNs: 2n ** 62n + 8n,
    rdev: 2 ** 52 + 9,
    flags: InodeFlag.keepsSpace | InodeFlag.sharedWrite,
    placementClass: 0xfa,
    generation: 0xf0000005,
    allocatedSubBlocks: 2 ** 40 + 11,
    parent: inodeNumber(2 ** 35 + 12),
    directoryDepth: 13,
    directorySeed: 0xf000000e,
    directoryEntries: 0xf000000f,
    projectId: 0xf0000010,
    tailEpoch: 0xf0000011,
    kept: encodeKept(attributes, null, []),
    area,
  };
}
const sealed = (fill: (sector: Uint8Array) => void): Uint8Array => {
  const sector = new Uint8Array(SECTOR_BYTES);
  fill(sector);
  sealSector(sector, testChecksums);
  return sector;
};
const leaf = sealed((sector) => {
  formatLeaf(sector, inodeNumber(9), 1, 1, 1, fsId);
  for (let i = 0; i < 20; i++)
    appendEntry(sector, i, Buffer.from(`name-${i}`), { ino: inodeNumber(100 + i), generation: 1, type: 1 });
});
const encodedInode = (): Uint8Array => {
  const sector = new Uint8Array(SECTOR_BYTES);
  encodeInode(inodeNumber(77), sampleFields(), sector, fsId);
  sealSector(sector, testChecksums);
  return sector;
};

const attributeBlock = new Uint8Array(SECTOR_BYTES);
const oneAttribute = Uint8Array.from([XattrSpace.user, 1, 1, 0, 0, 0, 0x61, 7]);
encodeXattrBlock(oneAttribute, { ino: inodeNumber(77), generation: 5 }, attributeBlock, fsId, testChecksums);

/** Every decoder, as it is used: what it says of a sector is good, bad, or never written. */
const decoders: Record<string, { good: Uint8Array; decode: (sector: Uint8Array) => boolean }> = {
  superblock: {
    good: encodeSuperblock(superblock, testChecksums),
    decode: (sector) => decodeSuperblock(sector, testChecksums) !== null,
  },
  inode: {
    good: encodedInode(),
    decode: (sector) => decodeInode(inodeNumber(77), sector, fsId, geometry, testChecksums) !== null,
  },
  indirect: {
    good: sealed((sector) => sector.set(formatIndirect(inodeNumber(77), 1, 213, 5, fsId))),
    decode: (sector) => {
      checkIndirect({ ino: inodeNumber(77), generation: 5 }, 1, 213, sector, fsId, geometry, testChecksums);
      return true;
    },
  },
  leaf: {
    good: leaf,
    decode: (sector) => leafFault(sector, { ino: inodeNumber(9), generation: 1 }, 1, fsId, testChecksums) === null,
  },
  region: {
    good: sealed((sector) => formatRegion(sector, 12, nsdIndex(1), geometry, fsId)),
    decode: (sector) => regionFault(sector, 25, geometry, fsId, testChecksums) === null,
  },
  'block of attributes': {
    good: attributeBlock,
    decode: (sector) => {
      decodeXattrBlock(sector, { ino: inodeNumber(77), generation: 5 }, 8, fsId, testChecksums);
      return true;
    },
  },
  segment: {
    good: sealed((sector) => formatSegment(sector, 7, fsId)),
    decode: (sector) => segmentFault(sector, 7, fsId, testChecksums) === null,
  },
};

describe.each(Object.entries(decoders))('the decoder of a %s', (_, { good, decode }) => {
  test('accepts what the encoder wrote', () => {
    expect(decode(good.slice())).toBe(true);
  });
  test('refuses every flipped bit', () => {
    fc.assert(
      fc.property(fc.nat(SECTOR_BYTES * 8 - 1), (bit) => {
        const sector = good.slice();
        sector[bit >> 3] = sector[bit >> 3]! ^ (1 << (bit & 7));
        expect(refused(sector)).toBe(true);
      }),
    );
  });
  test('refuses reserved bytes of its header that are not zero', () => {
    for (let at = 36; at < 40; at++) {
      const sector = good.slice();
      sector[at] = 1;
      sealSector(sector, testChecksums);
      expect(refused(sector)).toBe(true);
    }
  });
  test('survives any bytes, even under a good checksum', () => {
    const edit = fc.tuple(fc.nat(SECTOR_BYTES - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 60 }), fc.boolean(), (edits, low) => {
        const sector = good.slice();
        for (const [at, value] of edits) sector[low ? 8 + (at % 200) : at] = value;
        sealSector(sector, testChecksums);
        refused(sector);
      }),
      fuzzRuns(500, Object.keys(decoders).length * 2),
    );
    fc.assert(
      fc.property(fc.uint8Array({ minLength: SECTOR_BYTES, maxLength: SECTOR_BYTES }), (bytes) => refused(bytes)),
      fuzzRuns(100, Object.keys(decoders).length * 2),
    );
  });
  const refused = (sector: Uint8Array): boolean => {
    try {
      return !decode(sector);
    } catch (error) {
      expect(FsError.is(error) && ['corrupt', 'wrongFormat'].includes(error.reason)).toBe(true);
      return true;
    }
  };
});

test('an inode comes back from its sector as it was', () => {
  expect(decodeInode(inodeNumber(77), encodedInode(), fsId, geometry, testChecksums)).toEqual(sampleFields());
  const inode = new Inode(inodeNumber(77));
  inode.assign(sampleFields());
  expect(inode).toMatchObject(sampleFields());
});

test('a superblock comes back as it was', () => {
  expect(decodeSuperblock(encodeSuperblock(superblock, testChecksums), testChecksums)).toEqual(superblock);
});

test('reserved bytes of a superblock are zero, or it is damaged', () => {
  const good = encodeSuperblock(superblock, testChecksums);
  const end = SECTOR_BYTES - 1 - [...good].reverse().findIndex((byte) => byte !== 0);
  for (const at of [97, 99, 108, 159, end + 4, SECTOR_BYTES - 1]) {
    const sector = good.slice();
    sector[at] = 1;
    sealSector(sector, testChecksums);
    expect(() => decodeSuperblock(sector, testChecksums), `byte ${at}`).toThrow('reserved bytes are not zero');
  }
});

test('a pointer with a flag is refused wherever it is', () => {
  const flagged = { ...superblock.inodeFile, flags: 4 };
  expect(pointerFault(flagged, geometry)).toBe('pointer with flags 4');
  const bytes = new Uint8Array(32);
  writePointer(bytes, 16, flagged);
  expect(pointersFault(bytes, 0, 2, geometry)).toBe('pointer with flags 4 (entry 1)');
  const kept = encodeKept([], { pointer: { ...flagged, count: 1 }, lengthBytes: 100 }, []);
  expect(keptFault(kept, geometry)).toBe('pointer with flags 4');
});

test('block pointers come back as they were, and wild ones are found out', () => {
  fc.assert(
    fc.property(
      fc.nat(65535),
      fc.nat(2 ** 48 - 1),
      fc.integer({ min: 1, max: 256 }),
      fc.nat(2 ** 32 - 1),
      (nsd, sector, count, birth) => {
        const pointer = blockPointer({ nsd: nsdIndex(nsd), sector, count }, birth, 3);
        const bytes = new Uint8Array(16);
        writePointer(bytes, 0, pointer);
        expect(readPointer(bytes, 0)).toEqual(pointer);
        const inside = nsd < 2 && sector >= 256 && sector + count <= geometry.nsdBlocks[nsd]! * 256;
        if (pointerFault(pointer, geometry) === null)
          expect(inside && Math.floor(sector / 256) === Math.floor((sector + count - 1) / 256)).toBe(true);
      },
    ),
  );
});

test('every block of a file has one place in the tree of pointers', () => {
  for (const [block, level, root, firstBlock] of [
    [0, 0, 0, 0],
    [210, 0, 210, 210],
    [211, 1, 211, 211],
    [462, 1, 211, 211],
    [463, 2, 212, 463],
    [463 + 252 ** 2, 3, 213, 463 + 252 ** 2],
    [463 + 252 ** 2 + 252 ** 3, 4, 214, 463 + 252 ** 2 + 252 ** 3],
    [463 + 252 ** 2 + 252 ** 3 + 252 ** 4 - 1, 4, 214, 463 + 252 ** 2 + 252 ** 3],
    [2 ** 32, 5, 215, 463 + 252 ** 2 + 252 ** 3 + 252 ** 4],
    [FILE_BLOCKS_MAX - 1, 5, 215, 463 + 252 ** 2 + 252 ** 3 + 252 ** 4],
  ] as const)
    expect(pointerPlace(block)).toEqual({ level, root, firstBlock });
});

test('runs of free sub-blocks are found wherever they are', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(255), fc.integer({ min: 1, max: 40 })), { maxLength: 20 }),
      fc.integer({ min: 1, max: 256 }),
      (used, count) => {
        const sector = new Uint8Array(SECTOR_BYTES);
        const bits = new Array<boolean>(256).fill(false);
        for (const [first, length] of used)
          for (let i = first; i < Math.min(256, first + length); i++) {
            bits[i] = true;
            fillBits(sector, 3, i, 1, 1);
          }
        let expected = -1;
        for (let first = 0; first + count <= 256 && expected < 0; first++)
          if (bits.slice(first, first + count).every((bit) => !bit)) expected = first;
        expect(findRun(sector, 3, count)).toBe(expected);
        expect(blockFree(sector, 3)).toBe(bits.filter((bit) => !bit).length);
      },
    ),
  );
});

test('a leaf holds what was appended and not removed', () => {
  const name = fc
    .string({ minLength: 1, maxLength: 20, unit: 'grapheme' })
    .filter((text) => Buffer.byteLength(text) <= 60);
  fc.assert(
    fc.property(fc.array(fc.tuple(name, fc.boolean()), { maxLength: 40 }), (steps) => {
      const sector = new Uint8Array(SECTOR_BYTES);
      formatLeaf(sector, inodeNumber(9), 0, 0, 1, fsId);
      const present = new Map<string, number>();
      for (const [i, [text, remove]] of steps.entries()) {
        const bytes = Buffer.from(text);
        const hash = hashName(bytes, 42);
        const at = findEntry(sector, hash, bytes);
        expect(at >= 0).toBe(present.has(text));
        if (at >= 0 && remove) {
          removeEntry(sector, at);
          present.delete(text);
        } else if (at < 0) {
          appendEntry(sector, hash, bytes, { ino: inodeNumber(100 + i), generation: 1, type: 1 });
          present.set(text, i);
        }
      }
      sealSector(sector, testChecksums);
      expect(leafFault(sector, { ino: inodeNumber(9), generation: 1 }, 0, fsId, testChecksums)).toBeNull();
    }),
  );
});

test('MurmurHash3 gives its published values', () => {
  expect(hashName(Buffer.from(''), 0)).toBe(0);
  expect(hashName(Buffer.from(''), 1)).toBe(0x514e28b7);
  expect(hashName(Buffer.from('test'), 0)).toBe(0xba6bd213);
  expect(hashName(Buffer.from('Hello, world!'), 0)).toBe(0xc0363e43);
});
