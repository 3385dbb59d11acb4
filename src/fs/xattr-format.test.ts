import { describe, expect, test } from 'vitest';
import { inodeNumber, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { AclTag, decodeAcl, encodeAcl } from './acl.js';
import { ROOT } from './file-system-api.js';
import { checkVolume, TestVolume, testChecksums } from './testing.js';
import {
  decodeXattrBlock,
  encodeEntries,
  encodeKept,
  encodeXattrBlock,
  KEPT_BYTES,
  keptBlock,
  keptEntries,
  keptFault,
  placeEntries,
  sectorsFor,
  type XattrEntry,
  XattrSpace,
} from './xattr-format.js';

const geometry = {
  nsdCount: 2,
  nsdBlocks: [64, 64],
  regionBlocks: 16,
  regionCount: 4,
  segmentCount: 1,
  failureGroups: [0, 0],
  metadataCopies: 1 as const,
};
const entry = (name: string, bytes: number, space: XattrEntry['space'] = XattrSpace.user): XattrEntry => ({
  space,
  name,
  value: new Uint8Array(bytes).fill(bytes),
});
const block = (lengthBytes: number, sector = 300) => ({
  pointer: { nsd: nsdIndex(1), sector, count: sectorsFor(lengthBytes), birthEpoch: 3, placementClass: 0, flags: 0 },
  lengthBytes,
});

describe('the kept area', () => {
  test('holds what it was given, access lists first, and the rest goes to the block', () => {
    const acl = entry('', 300, XattrSpace.accessAcl);
    const entries = [entry('small', 3), entry('large', 500), acl];
    const placed = placeEntries(entries)!;
    expect(placed.inline).toEqual([acl, entries[0]]);
    expect(placed.block).toEqual([entries[1]]);
    const kept = encodeKept(placed.inline, block(510), placed.block);
    expect(kept).toHaveLength(KEPT_BYTES);
    expect(keptFault(kept, geometry)).toBeNull();
    expect(keptEntries(kept)).toEqual(placed.inline);
    expect(keptBlock(kept)).toEqual(block(510));
    expect(encodeKept([], null, [])).toHaveLength(0);
    expect(placeEntries(Array.from({ length: 17 }, (_, i) => entry(`n${i}`, 65_536)))).toBeNull();
  });

  test('that contradicts itself is refused', () => {
    const good = encodeKept([entry('name', 5)], block(5000), [entry('other', 4990)]);
    const broken = (change: (kept: Uint8Array) => void): string | null => {
      const kept = good.slice();
      change(kept);
      return keptFault(kept, geometry);
    };
    expect(broken((kept) => kept.fill(0xff, 0, 2))).toMatch('bytes of attributes');
    expect(broken((kept) => void (kept[0]! += 1))).toMatch('cut off');
    expect(broken((kept) => void (kept[24] = 0))).toMatch('space 0');
    expect(broken((kept) => void (kept[24] = 99))).toMatch('space 99');
    expect(broken((kept) => kept.fill(0xff, 26, 30))).toMatch('cut off');
    expect(broken((kept) => void (kept[25] = 255))).toMatch('cut off');
    expect(broken((kept) => void (kept[7] = 1))).toMatch('bytes of attributes in 2 sub-blocks');
    expect(broken((kept) => void (kept[8] = 9))).toMatch('NSD 9 of 2');
    expect(broken((kept) => kept.fill(0, 18, 24))).toMatch('block 0 of 64');
    expect(broken((kept) => kept.fill(0, 8, 24))).toMatch('a block that is not there');
  });
});

describe('the block', () => {
  const owner = { ino: inodeNumber(77), generation: 4 };
  const entries = [entry('first', 5000), entry('second', 1)];
  const bytes = encodeEntries(entries);
  const written = (): Uint8Array => {
    const sectors = new Uint8Array(sectorsFor(bytes.length) * SECTOR_BYTES);
    encodeXattrBlock(bytes, owner, sectors, 9n, testChecksums);
    return sectors;
  };

  test('gives back what was written', () => {
    expect(decodeXattrBlock(written(), owner, bytes.length, 9n, testChecksums)).toEqual(entries);
  });

  test('of another inode, life, file system or place, or with flipped bits, is refused', () => {
    const refused = (read: () => unknown, why: string) => {
      expect(read).toThrow(why);
      expect(read).toThrow(expect.objectContaining({ code: 'EUCLEAN' }));
    };
    refused(
      () => decodeXattrBlock(written(), { ...owner, ino: inodeNumber(78) }, bytes.length, 9n, testChecksums),
      'belongs to',
    );
    refused(
      () => decodeXattrBlock(written(), { ...owner, generation: 5 }, bytes.length, 9n, testChecksums),
      'another life',
    );
    refused(() => decodeXattrBlock(written(), owner, bytes.length, 8n, testChecksums), 'another file system');
    refused(() => decodeXattrBlock(written().slice(SECTOR_BYTES), owner, 100, 9n, testChecksums), 'is number 1');
    const flipped = written();
    flipped[4500]! ^= 16;
    refused(() => decodeXattrBlock(flipped, owner, bytes.length, 9n, testChecksums), 'CRC32C');
  });

  test('that does not verify is an error of the call that needs it, and of a check nothing else', async () => {
    const volume = await TestVolume.create();
    const { fs } = await volume.mount(1);
    await fs.mkdir('/d', 0o777, ROOT);
    const acl = encodeAcl([
      { tag: AclTag.owner, permissions: 7, id: 0 },
      ...Array.from({ length: 100 }, (_, i) => ({ tag: AclTag.user, permissions: 7, id: 1000 + i })),
      { tag: AclTag.group, permissions: 7, id: 0 },
      { tag: AclTag.mask, permissions: 7, id: 0 },
      { tag: AclTag.others, permissions: 0, id: 0 },
    ]);
    await fs.setXattr('/d', true, 'system.posix_acl_access', acl, ROOT);
    expect((await fs.stat('/d', ROOT)).allocatedBytes).toBe(4096);
    await fs.unmount();
    expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0 });
    for (const device of volume.nsds.devices)
      for (const sector of device.values())
        if (Buffer.from(sector.subarray(0, 4)).toString() === 'HWX1') sector[100]! ^= 1;
    const again = await volume.mount(2);
    await expect(again.fs.readdir('/d', { uid: 1000, gid: 1000, groups: [], umask: 0 })).rejects.toMatchObject({
      code: 'EUCLEAN',
    });
    expect(await again.fs.readdir('/', ROOT)).toHaveLength(1);
    await again.fs.unmount();
  });
});

test('access lists of any bytes are decoded or refused, and what is decoded is encoded the same', () => {
  let state = 12345;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % below;
  };
  let decoded = 0;
  for (let round = 0; round < 3000; round++) {
    const bytes = new Uint8Array(4 + 8 * random(6) + (random(10) === 0 ? 1 : 0));
    bytes[0] = random(20) === 0 ? 1 : 2;
    for (let at = 4; at + 8 <= bytes.length; at += 8) {
      bytes[at] = [1, 2, 4, 8, 16, 32][Math.min(5, (at - 4) / 8 + random(2))]!;
      bytes[at + 2] = random(9);
      bytes.fill(0xff, at + 4, at + 8);
      if (bytes[at] === 2 || bytes[at] === 8) bytes[at + 5] = random(5);
    }
    try {
      const acl = decodeAcl(bytes, 'test', 'x');
      if (acl === null) continue;
      decoded++;
      expect(Buffer.compare(encodeAcl(acl), bytes)).toBe(0);
    } catch (error) {
      expect(['EINVAL', 'ENOTSUP']).toContain((error as { code: string }).code);
    }
  }
  expect(decoded).toBeGreaterThan(10);
});
