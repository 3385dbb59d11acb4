/** A file system with some of everything, unmounted, of which tests damage one thing at a time; every test gets it as it was. */
import { constants } from 'node:fs';
import { expect } from 'vitest';
import { type InodeNumber, type NsdIndex, nsdIndex } from '../../common/ids.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../../common/units.js';
import { copiesOf, firstCopy } from '../../nsd/copies.js';
import { readPointer } from '../block-pointer.js';
import { type FileSystem, FileType, ROOT } from '../file-system-api.js';
import { decodeInode, encodeInode, type InodeFields } from '../inode-format.js';
import { ALLOCATION_MAP, type Extent, INODE_MAP, ROOT_DIRECTORY } from '../layout.js';
import { leafEntries, leafExists, type NamedEntry } from '../leaf-format.js';
import { sealSector } from '../sector.js';
import { checkParts, TestVolume, testChecksums } from '../testing.js';
import { KEPT_AT } from '../xattr-format.js';
import { directoryBlocks } from './names.js';
import { Scan } from './scan.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;

export type Place = { readonly nsd: NsdIndex; readonly sector: number };
export type Image = readonly Map<number, Uint8Array>[];

/** Every path, and what is to be read there: a file's bytes, a link's target, null for a directory. */
export type Contents = Map<string, Buffer | string | null>;

export const MANY = 200;

async function fill(fs: FileSystem, contents: Contents, inos: Map<string, InodeNumber>): Promise<void> {
  const file = async (path: string, bytes: Buffer, offsetBytes = 0): Promise<void> => {
    const handle = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
    await handle.write(offsetBytes, bytes);
    await handle.close();
    if (offsetBytes === 0) contents.set(path, bytes);
  };
  const directory = async (path: string): Promise<void> => {
    await fs.mkdir(path, 0o755, ROOT);
    contents.set(path, null);
  };
  for (const path of ['/a', '/a/b', '/a/b/c', '/many']) await directory(path);
  for (let i = 0; i < MANY; i++) await file(`/many/file-with-a-name-${i}`, Buffer.from(`content ${i}`));
  await file('/a/one', Buffer.alloc(20_000, 1));
  await file('/a/two', Buffer.alloc(20_000, 2));
  await file('/a/block', Buffer.alloc(BLOCK_BYTES + 5, 3));
  await file('/a/b/tiny', Buffer.from('tiny'));
  await fs.link('/a/b/tiny', '/a/b/c/hard', ROOT);
  contents.set('/a/b/c/hard', Buffer.from('tiny'));
  // One block below an indirect block, and one below two levels of them.
  for (const block of [230, 211 + 252 + 300])
    await file('/a/sparse', Buffer.from(`block ${block}`), block * BLOCK_BYTES);
  await fs.symlink('a/one', '/link', ROOT);
  contents.set('/link', 'a/one');
  const target = `/${'long/'.repeat(760)}`;
  await fs.symlink(target, '/long-link', ROOT);
  contents.set('/long-link', target);
  await file('/attributes', Buffer.from('with attributes'));
  await fs.setXattr('/attributes', true, 'user.big', Buffer.alloc(6000, 7), ROOT);
  await fs.setXattr('/attributes', true, 'user.small', Buffer.from('small'), ROOT);
  for (const path of [...contents.keys(), '/a/sparse']) inos.set(path, (await fs.lstat(path, ROOT)).ino);
  inos.set('/', ROOT_DIRECTORY);
}

export async function readContents(fs: FileSystem): Promise<Contents> {
  const found: Contents = new Map();
  const visit = async (path: string): Promise<void> => {
    for (const { name, type } of await fs.readdir(path === '' ? '/' : path, ROOT)) {
      const child = `${path}/${name}`;
      if (type === FileType.directory) {
        found.set(child, null);
        await visit(child);
      } else if (type === FileType.symlink) found.set(child, await fs.readlink(child, ROOT));
      else {
        const { sizeBytes } = await fs.stat(child, ROOT);
        // The sparse one: its two blocks.
        if (sizeBytes > 100 * BLOCK_BYTES) {
          for (const block of [230, 763])
            found.set(`${child}:${block}`, await readAt(fs, child, block * BLOCK_BYTES, 9));
        } else found.set(child, await readAt(fs, child, 0, sizeBytes));
      }
    }
  };
  await visit('');
  return found;
}

/** What it had at first is there, and nothing else; what is compared byte by byte takes vitest seconds. */
export function hasContents(found: Contents, contents: Contents): void {
  expect([...found.keys()].sort()).toEqual([...contents.keys()].sort());
  hasAtLeast(found, contents);
}
export function hasAtLeast(found: Contents, contents: Contents): void {
  for (const [path, content] of contents) {
    const now = found.get(path);
    const isSame = Buffer.isBuffer(now) && Buffer.isBuffer(content) ? now.equals(content) : now === content;
    expect(isSame, path).toBe(true);
  }
}

async function readAt(fs: FileSystem, path: string, offsetBytes: number, lengthBytes: number): Promise<Buffer> {
  const handle = await fs.open(path, O_RDONLY, 0, ROOT);
  const bytes = Buffer.alloc(lengthBytes);
  await handle.read(offsetBytes, bytes);
  await handle.close();
  return bytes;
}

/** The file system as tests see it to damage it. */
export class DamagedVolume {
  private constructor(
    readonly volume: TestVolume,
    readonly scan: Scan,
    readonly inos: ReadonlyMap<string, InodeNumber>,
    readonly contents: Contents,
    readonly image: Image,
    readonly words: readonly Map<number, number>[],
  ) {}

  static async create(
    mkfs: { readonly metadataCopies?: 1 | 2; readonly segmentCount?: number } = {},
    by = 1,
  ): Promise<DamagedVolume> {
    const volume = await TestVolume.create({
      blocks: [40, 40],
      mkfs: { segmentCount: 2, regionBlocks: 8, expectedNodes: 2, ...mkfs },
    });
    const inos = new Map<string, InodeNumber>();
    const node = await volume.mount(by);
    await fill(node.fs, new Map(), inos);
    const contents = await readContents(node.fs);
    await node.fs.unmount();
    const scan = await Scan.run(checkParts(volume), 2, {});
    if (scan.foundCount > 0) throw new Error(`it is not sound: ${scan.found[0]!.object} ${scan.found[0]!.detail}`);
    return new DamagedVolume(
      volume,
      scan,
      inos,
      contents,
      copyOf(volume.nsds.devices),
      volume.nsds.shared.words.map((words) => new Map(words)),
    );
  }

  /** As it was made. */
  restore(): void {
    const { devices, shared } = this.volume.nsds;
    for (const [nsd, device] of devices.entries()) {
      device.clear();
      for (const [sector, bytes] of this.image[nsd]!) device.set(sector, bytes.slice());
      shared.torn.clear();
      shared.words[nsd]!.clear();
      for (const [sector, word] of this.words[nsd]!) shared.words[nsd]!.set(sector, word);
    }
  }

  ino(path: string): InodeNumber {
    return this.inos.get(path)!;
  }
  inodePlace(path: string | number): Place {
    return this.scan.inodes.home(typeof path === 'string' ? this.ino(path) : (path as InodeNumber))!;
  }
  /** Of an inode as it was before any damage. */
  attributesPointer(path: string): Extent {
    const { nsd, sector } = this.inodePlace(path);
    return readPointer(this.image[firstCopy(nsd)]!.get(sector)!, KEPT_AT + 8)!;
  }
  logDescriptor(slot: number): Place {
    const { nsd, sector } = this.scan.logs.table!;
    return { nsd, sector: sector + slot };
  }
  region(index: number): Place {
    return this.scan.systemSector(ALLOCATION_MAP, index)!;
  }
  segment(index: number): Place {
    return this.scan.systemSector(INODE_MAP, index)!;
  }
  read({ nsd, sector }: Place): Uint8Array {
    return this.volume.nsds.sector(firstCopy(nsd), sector).slice();
  }
  write({ nsd, sector }: Place, bytes: Uint8Array): void {
    for (const copy of copiesOf(nsd)) this.volume.nsds.setSector(copy, sector, bytes);
  }
  /** Under a checksum that fits, unless told otherwise. */
  edit(place: Place, change: (bytes: Uint8Array) => void, sealed = true): void {
    const bytes = this.read(place);
    change(bytes);
    if (sealed) sealSector(bytes, testChecksums);
    this.write(place, bytes);
  }
  flip(place: Place, byte: number, bit = 0): void {
    this.edit(place, (bytes) => void (bytes[byte] = bytes[byte]! ^ (1 << bit)), false);
  }
  rot({ nsd, sector }: Place): void {
    for (const copy of copiesOf(nsd)) this.volume.nsds.shared.torn.add(`${copy}/${sector}`);
  }
  fields(path: string | number): InodeFields {
    const ino = typeof path === 'string' ? this.ino(path) : (path as InodeNumber);
    return decodeInode(ino, this.read(this.inodePlace(path)), this.scan.fsId, this.scan.geometry, testChecksums)!;
  }
  editInode(path: string | number, change: (fields: InodeFields) => void): void {
    const ino = typeof path === 'string' ? this.ino(path) : (path as InodeNumber);
    const fields = this.fields(path);
    change(fields);
    this.edit(this.inodePlace(path), (bytes) => encodeInode(ino, fields, bytes, this.scan.fsId));
  }
  /** The first pointer of an inode's area, or another one. */
  pointer(path: string, entry = 0) {
    return readPointer(this.fields(path).area, entry * 16)!;
  }
  async leaves(
    path: string,
  ): Promise<{ readonly index: number; readonly place: Place; readonly entries: NamedEntry[] }[]> {
    const found: { index: number; place: Place; entries: NamedEntry[] }[] = [];
    for (const { block, extent } of await directoryBlocks(this.scan, this.ino(path)))
      for (let at = 0; at < extent.count; at++) {
        const place = { nsd: extent.nsd, sector: extent.sector + at };
        const leaf = this.read(place);
        if (leafExists(leaf)) found.push({ index: block * 256 + at, place, entries: leafEntries(leaf) });
      }
    return found;
  }
  /** The leaf with this name. */
  async leafOf(directory: string, name: string): Promise<{ readonly place: Place; readonly entry: NamedEntry }> {
    for (const { place, entries } of await this.leaves(directory))
      for (const entry of entries) if (Buffer.from(entry.name).toString() === name) return { place, entry };
    throw new Error(`${name} is not in ${directory}`);
  }

  /** `nsd:sector` of what is not as it was before it was damaged. */
  changed(): string[] {
    return differences(this.image, this.volume.nsds.devices);
  }
  snapshot(): Image {
    return copyOf(this.volume.nsds.devices);
  }
}

/** `nsd:sector` of what is not the same. */
export function differences(a: Image, b: Image): string[] {
  const different: string[] = [];
  for (const [nsd, device] of b.entries())
    for (const sector of new Set([...device.keys(), ...a[nsd]!.keys()]))
      if (Buffer.compare(a[nsd]!.get(sector) ?? ZEROS, device.get(sector) ?? ZEROS) !== 0)
        different.push(`${nsd}:${sector}`);
  return different.sort();
}

const ZEROS = new Uint8Array(SECTOR_BYTES);
const copyOf = (devices: readonly Map<number, Uint8Array>[]): Image =>
  devices.map((device) => new Map([...device].map(([sector, bytes]) => [sector, bytes.slice()])));

export const copyTexts = ({ nsd, sector }: Place): string[] =>
  copiesOf(nsd).map((copy) => placeText({ nsd: copy, sector }));
export const placeText = ({ nsd, sector }: Place): string => `${nsd}:${sector}`;
export const extentTexts = ({ nsd, sector, count }: Extent): string[] =>
  Array.from({ length: count }, (_, i) => `${nsd}:${sector + i}`);
export const mapPlaces = (volume: DamagedVolume): string[] =>
  [
    ...Array.from({ length: volume.scan.geometry.regionCount * 2 }, (_, index) => copyTexts(volume.region(index))),
    ...Array.from({ length: volume.scan.geometry.segmentCount }, (_, index) => copyTexts(volume.segment(index))),
  ].flat();
export { ALLOCATION_MAP, INODE_MAP, nsdIndex };
