/**
 * Corruptions of a file system, each planted by itself: what they are called, which finding names them, and what mending may change. Tests say in which volume
 * (`plantIn`) before they use any.
 */
import { expect } from 'vitest';
import { inodeNumber, nsdIndex } from '../../common/ids.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { blockPointer, readPointer, writePointer } from '../block-pointer.js';
import { FileType } from '../file-system-api.js';
import { INDIRECT_POINTERS_AT } from '../indirect-format.js';
import { ALLOCATION_MAP, INODE_FILE, RENAME_LOCK } from '../layout.js';
import { appendEntry, entryBytes, findEntry, hashName, removeEntry } from '../leaf-format.js';
import { encodeDescriptor, LogState } from '../log/log-table.js';
import {
  fillBits,
  inodeUsed,
  regionFree,
  segmentFree,
  setFreedThrough,
  setInodeUsed,
  setRegionFree,
  setSegmentFree,
  setSegmentGeneration,
} from '../map-formats.js';
import { setI64, setU16, setU32 } from '../sector.js';
import { decodeSuperblock, encodeSuperblock } from '../superblock.js';
import { testChecksums } from '../testing.js';
import type { Finding, FindingKind } from './findings.js';
import { type Contents, type DamagedVolume, extentTexts, mapPlaces, type Place, placeText } from './testing-damage.js';

let v: DamagedVolume;
let namesOfLeaf: string[] = [];
let firstNameOfLeaf = '';

/** As it was made. */
export async function plantIn(volume: DamagedVolume): Promise<void> {
  v = volume;
  namesOfLeaf = (await v.leaves('/many'))[0]!.entries.map(({ name }) => Buffer.from(name).toString());
  firstNameOfLeaf = namesOfLeaf[0]!;
}

export interface Planted {
  readonly what: string;
  readonly kind: FindingKind;
  /** Of the object that is named. */
  readonly object: RegExp | (() => string);
  readonly path?: string;
  readonly plant: () => Promise<void> | void;
  /** Places that may be other than before the damage, asked before that; absent: none, it is as it was, byte by byte. */
  readonly changed?: () => Promise<readonly string[]> | readonly string[];
  /** So may be what was free. */
  readonly usesSpace?: true;
  /** What is there afterwards, beside what was. */
  readonly contents?: (contents: Contents) => void;
  readonly mended?: false;
  /** Why no check of a mounted file system finds it; absent: it does. */
  readonly onlyOffline?: string;
  /** Whoever creates something next takes it for free, and makes something else of it. */
  readonly usedUp?: true;
}

/** The finding that names what was planted. @param report what is said when there is none */
export function findingOf<F extends Omit<Finding, 'kind'> & { readonly kind: string }>(
  planted: Planted,
  findings: readonly F[],
  report: string,
): F {
  const found = findings.find(({ kind }) => kind === planted.kind);
  expect(found, report).toBeDefined();
  if (typeof planted.object === 'function') expect(found!.object).toBe(planted.object());
  else expect(found!.object).toMatch(planted.object);
  if (planted.path !== undefined) expect(found!.path).toBe(planted.path);
  return found!;
}

const firstLog = (): Place => v.logDescriptor(0);
const hash = (name: string, directory = '/many'): number =>
  hashName(Buffer.from(name), v.fields(directory).directorySeed);
const indirectOf = (path: string, level = 1): Place => v.pointer(path, 211 + level - 1);
const blockBelow = (indirect: Place, slot: number) => readPointer(v.read(indirect), INDIRECT_POINTERS_AT + slot * 16)!;
const firstLeaf = async (): Promise<Place> => (await v.leaves('/many'))[0]!.place;
const dropEntry = async (directory: string, name: string): Promise<void> => {
  const { place, entry } = await v.leafOf(directory, name);
  v.edit(place, (leaf) => removeEntry(leaf, findEntry(leaf, entry.hash, entry.name)));
  v.editInode(directory, (fields) => void fields.directoryEntries--);
};
const addEntry = async (place: Place, directory: string, name: string, ino: number, type: number): Promise<void> => {
  const generation = v.fields(ino).generation;
  v.edit(place, (leaf) =>
    appendEntry(leaf, hash(name, directory), Buffer.from(name), { ino: inodeNumber(ino), generation, type: type as 1 }),
  );
  v.editInode(directory, (fields) => void fields.directoryEntries++);
};
/** Where /lost+found comes to be, and its entry. */
const lostAndFound = async (): Promise<string[]> => {
  const root = v.pointer('/');
  const free = [...Array(256).keys()].find((ino) => ino >= 16 && v.scan.inodes.type(inodeNumber(ino)) === 0)!;
  return [...extentTexts(root), placeText(v.inodePlace('/')), placeText(v.inodePlace(free)), ...mapPlaces(v)];
};

/** What a repair does about a file whose inode is nobody's any more. */
const withoutItsInode: Pick<Planted, 'changed' | 'contents'> = {
  changed: async () => [
    placeText(v.inodePlace('/a/two')),
    placeText(v.inodePlace('/a')),
    placeText((await v.leafOf('/a', 'two')).place),
    ...extentTexts(v.pointer('/a/two')),
    ...mapPlaces(v),
  ],
  contents: (contents) => void contents.delete('/a/two'),
};

export const PLANTED: readonly Planted[] = [
  {
    what: 'a superblock copy with a flipped bit',
    kind: 'superblockCopy',
    object: /superblock copy on NSD 1/,
    plant: () => v.flip({ nsd: nsdIndex(1), sector: 0 }, 200),
  },
  {
    what: "a superblock copy with another file system's UUID",
    kind: 'superblockCopy',
    object: /superblock copy on NSD 0/,
    plant: () => {
      const place = { nsd: nsdIndex(0), sector: 0 };
      const own = decodeSuperblock(v.read(place), testChecksums);
      v.write(
        place,
        encodeSuperblock({ ...own, fsUuid: 'aaaaaaaa-0a19-4857-8e6d-5c4b3a291807', generation: 0 }, testChecksums),
      );
    },
  },
  {
    what: 'a superblock copy of an old generation',
    kind: 'superblockCopy',
    object: /superblock copy on NSD 1/,
    plant: () => v.edit({ nsd: nsdIndex(1), sector: 0 }, (bytes) => setU32(bytes, 32, 0)),
  },
  {
    what: "the inode file's own inode with a flipped bit",
    onlyOffline: 'nobody can mount it',
    kind: 'systemInode',
    object: /inode 1$/,
    plant: () => v.flip(v.inodePlace(INODE_FILE), 44),
    changed: () => [placeText(v.inodePlace(INODE_FILE))],
  },
  {
    what: "the allocation map's inode that is gone",
    onlyOffline: 'nobody can mount it',
    kind: 'systemInode',
    object: /inode 3$/,
    plant: () => v.write(v.inodePlace(ALLOCATION_MAP), new Uint8Array(SECTOR_BYTES)),
    changed: () => [placeText(v.inodePlace(ALLOCATION_MAP))],
  },
  {
    what: 'the inode of the rename lock that is gone',
    kind: 'systemInode',
    object: /inode 5$/,
    plant: () => v.write(v.inodePlace(RENAME_LOCK), new Uint8Array(SECTOR_BYTES)),
    changed: () => [placeText(v.inodePlace(RENAME_LOCK))],
  },
  {
    what: 'a root directory that is gone',
    usesSpace: true,
    kind: 'inodeUnreadable',
    object: /inode 2$/,
    plant: () => v.rot(v.inodePlace('/')),
    changed: async () => [...(await lostAndFound()), ...['/a', '/many'].map((path) => placeText(v.inodePlace(path)))],
    contents: (contents) => {
      const before = [...contents];
      contents.clear();
      contents.set('/lost+found', null);
      for (const [path, content] of before) {
        const [, top, ...rest] = path.split('/');
        contents.set(['/lost+found', String(v.ino(`/${top!.split(':')[0]}`)), ...rest].join('/'), content);
      }
    },
  },
  {
    what: 'an inode with a flipped bit',
    kind: 'inodeDamaged',
    object: () => `inode ${v.ino('/a/one')}`,
    path: '/a/one',
    plant: () => v.flip(v.inodePlace('/a/one'), 44, 3),
    changed: () => [placeText(v.inodePlace('/a/one'))],
  },
  {
    what: 'an inode with a wrong magic',
    kind: 'inodeDamaged',
    object: () => `inode ${v.ino('/a/one')}`,
    path: '/a/one',
    plant: () => v.flip(v.inodePlace('/a/one'), 0, 7),
  },
  {
    what: 'an inode with impossible lengths',
    kind: 'inodeDamaged',
    object: () => `inode ${v.ino('/a/one')}`,
    path: '/a/one',
    plant: () => v.edit(v.inodePlace('/a/one'), (bytes) => setU16(bytes, 108, 65_000)),
    changed: () => [placeText(v.inodePlace('/a/one'))],
  },
  {
    what: 'an inode with a pointer beyond its NSD',
    kind: 'inodeDamaged',
    object: () => `inode ${v.ino('/a/block')}`,
    path: '/a/block',
    plant: () => v.edit(v.inodePlace('/a/block'), (bytes) => setU32(bytes, 640 + 16 + 12, 70_000)),
    changed: () => [placeText(v.inodePlace('/a/block')), ...extentTexts(v.pointer('/a/block', 1)), ...mapPlaces(v)],
    contents: (contents) => {
      const bytes = Buffer.from(contents.get('/a/block') as Buffer);
      bytes.fill(0, 1 << 20);
      contents.set('/a/block', bytes);
    },
  },
  {
    what: "an inode of another file system's",
    kind: 'inodeDamaged',
    object: () => `inode ${v.ino('/a/two')}`,
    path: '/a/two',
    plant: () => v.edit(v.inodePlace('/a/two'), (bytes) => setI64(bytes, 8, 77n)),
    ...withoutItsInode,
  },
  {
    what: 'an inode that can not be read',
    kind: 'inodeUnreadable',
    object: () => `inode ${v.ino('/a/two')}`,
    path: '/a/two',
    plant: () => v.rot(v.inodePlace('/a/two')),
    ...withoutItsInode,
  },
  {
    what: 'an indirect block with a wrong magic',
    kind: 'indirectDamaged',
    object: /indirect block of level 1 from block 211 on/,
    path: '/a/sparse',
    plant: () => v.flip(indirectOf('/a/sparse'), 1),
  },
  {
    what: 'an indirect block of an old generation',
    kind: 'indirectDamaged',
    object: /indirect block of level 1 from block 211 on/,
    path: '/a/sparse',
    plant: () => v.edit(indirectOf('/a/sparse'), (bytes) => setU32(bytes, 32, 0)),
  },
  {
    what: 'an indirect block that is lost',
    kind: 'indirectDamaged',
    object: /indirect block of level 1 from block 211 on/,
    path: '/a/sparse',
    plant: () => v.rot(indirectOf('/a/sparse')),
    changed: () => [
      placeText(v.inodePlace('/a/sparse')),
      placeText(indirectOf('/a/sparse')),
      ...extentTexts(v.pointer('/a/sparse', 211)),
      ...extentTexts(blockBelow(indirectOf('/a/sparse'), 230 - 211)),
      ...mapPlaces(v),
    ],
    contents: (contents) => contents.set('/a/sparse:230', Buffer.alloc(9)),
  },
  {
    what: 'a loop of indirect blocks',
    kind: 'indirectDamaged',
    object: /indirect block of level 1 from block 463 on/,
    path: '/a/sparse',
    plant: () => {
      const home = v.pointer('/a/sparse', 212);
      v.edit(home, (bytes) => writePointer(bytes, INDIRECT_POINTERS_AT, home));
    },
    changed: () => [placeText(indirectOf('/a/sparse', 2))],
  },
  {
    what: 'a block of attributes with a flipped bit',
    kind: 'attributesDamaged',
    object: () => `attributes of inode ${v.ino('/attributes')}`,
    path: '/attributes',
    plant: () => v.flip(attributesPointer('/attributes'), 1000),
    changed: () => [
      placeText(v.inodePlace('/attributes')),
      ...extentTexts(attributesPointer('/attributes')),
      ...mapPlaces(v),
    ],
  },
  {
    what: 'the target of a long link that is lost',
    kind: 'attributesDamaged',
    object: () => `attributes of inode ${v.ino('/long-link')}`,
    path: '/long-link',
    plant: () => v.rot(attributesPointer('/long-link')),
    changed: async () => [
      placeText(v.inodePlace('/long-link')),
      ...extentTexts(attributesPointer('/long-link')),
      placeText(v.inodePlace('/')),
      placeText((await v.leafOf('/', 'long-link')).place),
      ...mapPlaces(v),
    ],
    contents: (contents) => void contents.delete('/long-link'),
  },
  {
    what: 'a block of two files',
    usesSpace: true,
    kind: 'spaceShared',
    object: /sub-blocks \d+ to \d+ of NSD \d/,
    path: '/a/two',
    plant: () => v.editInode('/a/two', (fields) => void (fields.area = v.fields('/a/one').area)),
    changed: () => [placeText(v.inodePlace('/a/two')), ...mapPlaces(v), ...extentTexts(v.pointer('/a/two'))],
    contents: (contents) => contents.set('/a/two', contents.get('/a/one')!),
  },
  {
    what: 'a pointer into a log',
    usesSpace: true,
    kind: 'spaceShared',
    object: /sub-blocks \d+ to \d+ of NSD \d/,
    path: '/a/two',
    plant: () => {
      const { nsd, sector } = v.scan.logs.extents[0]!;
      v.editInode('/a/two', (fields) => void writePointer(fields.area, 0, blockPointer({ nsd, sector, count: 8 }, 1)));
    },
    changed: () => [placeText(v.inodePlace('/a/two')), ...mapPlaces(v), ...extentTexts(v.pointer('/a/two'))],
    contents: (contents) => void contents.delete('/a/two'),
  },
  {
    what: 'a wrong count of sub-blocks',
    kind: 'spaceCount',
    object: () => `inode ${v.ino('/a/block')}`,
    path: '/a/block',
    plant: () => v.editInode('/a/block', (fields) => void (fields.allocatedSubBlocks += 3)),
  },
  {
    what: 'a leaf with a flipped bit',
    kind: 'leafDamaged',
    object: () => `directory ${v.ino('/many')} leaf 0`,
    path: '/many',
    plant: async () => v.flip(await firstLeaf(), 4000),
    changed: async () => [placeText(await firstLeaf())],
  },
  {
    what: 'a leaf with a wrong magic',
    kind: 'leafDamaged',
    object: () => `directory ${v.ino('/many')} leaf 0`,
    path: '/many',
    plant: async () => v.flip(await firstLeaf(), 2, 1),
  },
  {
    what: 'a leaf of which a name was damaged',
    usesSpace: true,
    kind: 'leafDamaged',
    object: () => `directory ${v.ino('/many')} leaf 0`,
    path: '/many',
    plant: async () => v.flip(await firstLeaf(), 48 + entryBytes(0) + 2),
    changed: async () => [placeText(await firstLeaf()), placeText(v.inodePlace('/many')), ...(await lostAndFound())],
    contents: (contents) => intoLostAndFound(contents, [firstNameOfLeaf]),
  },
  {
    what: 'a leaf of an old generation',
    kind: 'leafDamaged',
    object: () => `directory ${v.ino('/many')} leaf 0`,
    path: '/many',
    plant: async () => v.edit(await firstLeaf(), (bytes) => setU32(bytes, 32, 0)),
  },
  {
    what: 'a leaf that can not be read',
    usesSpace: true,
    kind: 'leafDamaged',
    object: () => `directory ${v.ino('/many')} leaf 0`,
    path: '/many',
    plant: async () => v.rot(await firstLeaf()),
    changed: async () => [placeText(await firstLeaf()), placeText(v.inodePlace('/many')), ...(await lostAndFound())],
    contents: (contents) => intoLostAndFound(contents, namesOfLeaf),
  },
  {
    what: 'a leaf that is zeros',
    usesSpace: true,
    kind: 'leafDamaged',
    object: () => `directory ${v.ino('/many')} leaf 0`,
    path: '/many',
    plant: async () => v.write(await firstLeaf(), new Uint8Array(SECTOR_BYTES)),
    changed: async () => [placeText(await firstLeaf()), placeText(v.inodePlace('/many')), ...(await lostAndFound())],
    contents: (contents) => intoLostAndFound(contents, namesOfLeaf),
  },
  {
    what: 'a leaf of a wrong depth',
    kind: 'leafDepth',
    object: () => `directory ${v.ino('/many')} leaf 0`,
    path: '/many',
    plant: async () => v.edit(await firstLeaf(), (bytes) => void bytes[40]!++),
  },
  {
    what: 'a name of an inode that is not there',
    kind: 'entryDangling',
    object: /name 'ghost' in directory \d+/,
    path: '/a',
    plant: async () => {
      const { place } = (await v.leaves('/a'))[0]!;
      await addEntry(place, '/a', 'ghost', v.ino('/a/one'), FileType.regular);
      const { entry } = await v.leafOf('/a', 'ghost');
      v.edit(place, (leaf) => setU32(leaf, findEntry(leaf, entry.hash, entry.name) + 12, 99));
    },
  },
  {
    what: 'a name that is there twice',
    kind: 'entryTwice',
    object: /name 'one' in directory \d+/,
    path: '/a',
    plant: async () => addEntry((await v.leaves('/a'))[0]!.place, '/a', 'one', v.ino('/a/one'), FileType.regular),
  },
  {
    what: 'a name in a leaf where nobody looks for it',
    kind: 'entryMisplaced',
    object: /name 'file-with-a-name-7' in directory \d+/,
    path: '/many',
    plant: async () => {
      const { place, entry } = await v.leafOf('/many', 'file-with-a-name-7');
      const other = (await v.leaves('/many')).find((leaf) => placeText(leaf.place) !== placeText(place))!;
      v.edit(place, (leaf) => removeEntry(leaf, findEntry(leaf, entry.hash, entry.name)));
      v.edit(other.place, (leaf) => appendEntry(leaf, entry.hash, entry.name, entry));
    },
    changed: async () => [placeText((await v.leafOf('/many', 'file-with-a-name-7')).place)],
  },
  {
    what: 'a name of a wrong type',
    kind: 'entryType',
    object: /name 'one' in directory \d+/,
    path: '/a',
    plant: async () => {
      const { place, entry } = await v.leafOf('/a', 'one');
      v.edit(place, (leaf) => void (leaf[findEntry(leaf, entry.hash, entry.name) + 16] = FileType.fifo));
    },
  },
  {
    what: 'a name that is none',
    kind: 'entryBadName',
    object: /name 'x\/y' in directory \d+/,
    path: '/a',
    plant: async () => {
      await addEntry((await v.leaves('/a'))[0]!.place, '/a', 'x/y', v.ino('/a/one'), FileType.regular);
    },
  },
  {
    what: 'a directory with two names',
    kind: 'directoryTwice',
    object: /name 'again' in directory \d+/,
    path: '/a',
    plant: async () => addEntry((await v.leaves('/a'))[0]!.place, '/a', 'again', v.ino('/a/b/c'), FileType.directory),
  },
  {
    what: 'a loop of directories',
    usesSpace: true,
    kind: 'directoryLoop',
    object: () => `inode ${v.ino('/a')}`,
    plant: async () => {
      await dropEntry('/', 'a');
      v.editInode('/', (fields) => void fields.nlink--);
      await addEntry((await v.leaves('/a/b/c'))[0]!.place, '/a/b/c', 'loop', v.ino('/a'), FileType.directory);
      v.editInode('/a/b/c', (fields) => void fields.nlink++);
      v.editInode('/a', (fields) => void (fields.parent = v.ino('/a/b/c')));
    },
    changed: async () => [...(await lostAndFound()), placeText(v.inodePlace('/a'))],
    contents: (contents) => {
      contents.set('/lost+found', null);
      for (const [path, content] of [...contents])
        if (path === '/a' || path.startsWith('/a/')) {
          contents.delete(path);
          contents.set(`/lost+found/${v.ino('/a')}${path.slice(2)}`, content);
        }
    },
  },
  {
    what: 'a directory that nothing names',
    usesSpace: true,
    kind: 'directoryDetached',
    object: () => `inode ${v.ino('/a/b/c')}`,
    plant: async () => {
      await dropEntry('/a/b', 'c');
      v.editInode('/a/b', (fields) => void fields.nlink--);
    },
    changed: async () => [
      ...(await lostAndFound()),
      ...['/a/b', '/a/b/c'].map((path) => placeText(v.inodePlace(path))),
      ...(await v.leaves('/a/b')).map(({ place }) => placeText(place)),
    ],
    contents: (contents) => {
      contents.set('/lost+found', null);
      contents.set(`/lost+found/${v.ino('/a/b/c')}`, null);
      contents.set(`/lost+found/${v.ino('/a/b/c')}/hard`, contents.get('/a/b/c/hard')!);
      contents.delete('/a/b/c/hard');
      contents.delete('/a/b/c');
    },
  },
  {
    what: 'a file that nothing names',
    usesSpace: true,
    kind: 'fileDetached',
    object: () => `inode ${v.ino('/a/two')}`,
    plant: () => dropEntry('/a', 'two'),
    changed: async () => [
      ...(await lostAndFound()),
      placeText(v.inodePlace('/a')),
      ...(await v.leaves('/a')).map(({ place }) => placeText(place)),
    ],
    contents: (contents) => {
      contents.set('/lost+found', null);
      contents.set(`/lost+found/${v.ino('/a/two')}`, contents.get('/a/two')!);
      contents.delete('/a/two');
    },
  },
  {
    what: 'an orphan',
    onlyOffline: 'somebody may have it open',
    kind: 'orphan',
    object: () => `inode ${v.ino('/a/two')}`,
    plant: async () => {
      await dropEntry('/a', 'two');
      v.editInode('/a/two', (fields) => void (fields.nlink = 0));
    },
    changed: async () => [
      ...['/a', '/a/two'].map((path) => placeText(v.inodePlace(path))),
      ...(await v.leaves('/a')).map(({ place }) => placeText(place)),
      ...mapPlaces(v),
      ...extentTexts(twoBefore()),
    ],
    contents: (contents) => void contents.delete('/a/two'),
  },
  {
    what: 'a wrong link count',
    kind: 'linkCount',
    object: () => `inode ${v.ino('/a/b/tiny')}`,
    plant: () => v.editInode('/a/b/tiny', (fields) => void (fields.nlink = 5)),
  },
  {
    what: 'a wrong link count of a directory',
    kind: 'linkCount',
    object: () => `inode ${v.ino('/a')}`,
    path: '/a',
    plant: () => v.editInode('/a', (fields) => void (fields.nlink = 2)),
  },
  {
    what: 'a wrong parent',
    kind: 'parentWrong',
    object: () => `inode ${v.ino('/a/b/c')}`,
    path: '/a/b/c',
    plant: () => v.editInode('/a/b/c', (fields) => void (fields.parent = v.ino('/many'))),
  },
  {
    what: 'a wrong count of names',
    kind: 'directoryCount',
    object: () => `inode ${v.ino('/many')}`,
    path: '/many',
    plant: () => v.editInode('/many', (fields) => void (fields.directoryEntries = 0)),
  },
  {
    what: 'a wrong depth of a directory',
    kind: 'directoryCount',
    object: () => `inode ${v.ino('/many')}`,
    path: '/many',
    plant: () => v.editInode('/many', (fields) => void (fields.directoryDepth = 0)),
  },
  {
    what: 'space that is used and marked as free',
    usedUp: true,
    kind: 'spaceFreeButUsed',
    object: /allocation map sector \d+/,
    plant: () => markSpace(v.pointer('/a/one'), 0),
  },
  {
    what: 'a mark of shipped frees that is ahead of its log',
    onlyOffline: 'logs go on',
    kind: 'freeMarkAhead',
    object: /allocation map sector 0 /,
    plant: () => v.edit(v.region(0), (bytes) => setFreedThrough(bytes, 7, 1_000_000)),
  },
  {
    what: 'lost space',
    onlyOffline: 'some node may have it on its way',
    kind: 'spaceLost',
    object: /allocation map sector \d+/,
    plant: () => markSpace({ nsd: nsdIndex(1), sector: 39 * 256 + 17, count: 30 }, 1),
  },
  {
    what: 'a sector of the allocation map with a flipped bit',
    kind: 'regionDamaged',
    object: /allocation map sector 1 /,
    plant: () => v.flip(v.region(1), 100),
  },
  {
    what: 'a sector of the allocation map that can not be read',
    kind: 'regionDamaged',
    object: /allocation map sector 1 /,
    plant: () => v.rot(v.region(1)),
  },
  {
    what: 'a segment of the inode map with a wrong count',
    kind: 'segmentDamaged',
    object: /inode map segment 1$/,
    plant: () => v.edit(v.segment(1), (bytes) => setU32(bytes, 40, 9)),
    changed: () => [placeText(v.segment(1))],
  },
  {
    what: 'a number that is in use and marked as free',
    usedUp: true,
    kind: 'numberFreeButUsed',
    object: /inode map segment 1$/,
    plant: () => markNumber(v.ino('/a/one'), false),
  },
  {
    what: 'a lost number',
    onlyOffline: 'some node may have it',
    kind: 'numberLost',
    object: /inode map segment 1$/,
    plant: () => markNumber(8190, true),
  },
  {
    what: 'a generation that has been before',
    usedUp: true,
    kind: 'generationLow',
    object: /inode map segment 1$/,
    plant: () => v.edit(v.segment(1), (bytes) => setSegmentGeneration(bytes, 0)),
    changed: () => [placeText(v.segment(1))],
  },
  {
    what: "a log's descriptor with impossible lengths",
    onlyOffline: 'nobody can mount it',
    kind: 'logDescriptorDamaged',
    object: /log 0$/,
    plant: () => v.edit(firstLog(), (bytes) => setU16(bytes, 44, 60_000)),
    changed: () => [placeText(firstLog()), ...mapPlaces(v), ...v.scan.logs.descriptors[0]!.pieces.flatMap(extentTexts)],
  },
  {
    what: 'a log that was not settled',
    onlyOffline: 'who mounts settles it',
    kind: 'logNotEnded',
    object: /log 0$/,
    plant: () => {
      const descriptor = v.scan.logs.descriptors[0]!;
      v.edit(firstLog(), (bytes) =>
        bytes.set(encodeDescriptor({ ...descriptor, state: LogState.replayed }, v.scan.fsId, 1)),
      );
    },
    changed: () => [placeText(firstLog())],
  },
];

const attributesPointer = (path: string) => v.attributesPointer(path);
const readU32 = (bytes: Uint8Array, at: number): number =>
  new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
const twoBefore = () => {
  const home = v.inodePlace('/a/two');
  const image = v.image[home.nsd]!.get(home.sector)!;
  return { nsd: nsdIndex(image[640]! | (image[641]! << 8)), sector: readU32(image, 650), count: image[648]! };
};
function markSpace({ nsd, sector, count }: { nsd: number; sector: number; count: number }, value: 0 | 1): void {
  const { regionBlocks, nsdCount } = v.scan.geometry;
  const block = Math.floor(sector / 256);
  v.edit(v.region(Math.floor(block / regionBlocks) * nsdCount + nsd), (bytes) => {
    fillBits(bytes, block % regionBlocks, sector % 256, count, value);
    setRegionFree(bytes, regionFree(bytes) + (value === 1 ? -count : count));
  });
}
function markNumber(ino: number, used: boolean): void {
  v.edit(v.segment(Math.floor(ino / 4096)), (bytes) => {
    if (inodeUsed(bytes, ino % 4096) === used) throw new Error(`number ${ino} is so already`);
    setInodeUsed(bytes, ino % 4096, used);
    setSegmentFree(bytes, segmentFree(bytes) + (used ? -1 : 1));
  });
}

function intoLostAndFound(contents: Contents, names: readonly string[]): void {
  contents.set('/lost+found', null);
  for (const given of names) {
    const name = given === '' ? firstNameOfLeaf : given;
    contents.set(`/lost+found/${v.ino(`/many/${name}`)}`, contents.get(`/many/${name}`)!);
    contents.delete(`/many/${name}`);
  }
}
