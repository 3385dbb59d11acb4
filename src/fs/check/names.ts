/**
 * Directories: every leaf, every name in it, and what it names.
 *
 * Which leaves there are says how deep each must be: a leaf i of depth d has split into i and i + 2^d, never to be joined again. So the depth of a leaf
 * that is lost is known from those beside it.
 */
import type { InodeNumber } from '../../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { FileType } from '../file-system-api.js';
import { DIRECTORY_DEPTH_MAX, decodeInode } from '../inode-format.js';
import { type Extent, FIRST_USER_INODE } from '../layout.js';
import { hashName, leafDepth, leafEntries, leafExists, leafFault, type NamedEntry } from '../leaf-format.js';
import type { SectorReader } from './check-storage.js';
import { DirectoryEdits, editEntry, removeFrom } from './directory-edits.js';
import type { DirectoryFacts } from './inode-facts.js';
import { UNREADABLE } from './inodes.js';
import { salvageEntries } from './leaf-salvage.js';
import { walkPointers } from './pointer-walk.js';
import type { Scan } from './scan.js';

export async function checkNames(scan: Scan): Promise<void> {
  const { directories } = scan.inodes;
  let done = 0;
  for (const directory of directories.values()) {
    if (done++ % 256 === 0) scan.progress('directories', done, directories.size);
    const leaves = await Leaves.of(scan, directory);
    checkShape(scan, directory, leaves);
    await leaves.each((leaf, index, home) => checkLeaf(scan, directory, leaves, leaf, index, home));
  }
}

/** Blocks of a directory's file. */
export async function directoryBlocks(
  scan: Scan,
  ino: InodeNumber,
): Promise<{ readonly block: number; readonly extent: Extent }[]> {
  const home = scan.inodes.home(ino);
  const sector = home === null ? null : await scan.storage.readOne(home.nsd, home.sector);
  const fields = sector === null ? null : decodeInode(ino, sector, scan.fsId, scan.geometry, scan.checksums);
  const blocks: { block: number; extent: Extent }[] = [];
  if (fields !== null)
    await walkPointers(scan, ino, fields, {
      block: (block, pointer) => void blocks.push({ block, extent: pointer }),
      indirect: () => undefined,
      broken: () => undefined,
    });
  return blocks;
}

type UseLeaf = (leaf: Uint8Array | null, index: number, home: Extent) => void;

/** Which leaves there are, and how deep they have to be. */
export class Leaves {
  readonly #storage: SectorReader;
  readonly #blocks: readonly { readonly block: number; readonly extent: Extent }[];
  /** Those that exist, damaged or not. */
  readonly indexes = new Set<number>();
  maxDepth = 0;

  private constructor(storage: SectorReader, blocks: readonly { readonly block: number; readonly extent: Extent }[]) {
    this.#storage = storage;
    this.#blocks = blocks;
  }

  static async of(scan: Scan, directory: DirectoryFacts): Promise<Leaves> {
    return Leaves.in(scan.storage, await directoryBlocks(scan, directory.ino));
  }
  static async in(
    storage: SectorReader,
    blocks: readonly { readonly block: number; readonly extent: Extent }[],
  ): Promise<Leaves> {
    const leaves = new Leaves(storage, blocks);
    await leaves.each((leaf, index) => {
      if (leaf === null || leaf.some((byte) => byte !== 0)) leaves.indexes.add(index);
    });
    for (const index of leaves.indexes) leaves.maxDepth = Math.max(leaves.maxDepth, leaves.depthOf(index));
    return leaves;
  }

  async each(use: UseLeaf): Promise<void> {
    for (const { block, extent } of this.#blocks)
      await this.#storage.each(extent, extent.count, (leaf, at) =>
        use(leaf, block * SUB_BLOCKS_PER_BLOCK + at, { nsd: extent.nsd, sector: extent.sector + at, count: 1 }),
      );
  }

  depthOf(index: number): number {
    let depth = bitLength(index);
    while (depth < DIRECTORY_DEPTH_MAX && this.indexes.has(index + 2 ** depth)) depth++;
    return depth;
  }

  /** Where a lookup ends; null: there is none. */
  leafOf(hash: number): number | null {
    for (let depth = this.maxDepth; depth >= 0; depth--) {
      const index = (hash & (2 ** depth - 1)) >>> 0;
      if (this.indexes.has(index)) return index;
    }
    return null;
  }

  /** Leaves that those that exist have split from, and that are not there. */
  missing(): number[] {
    const missing = new Set<number>();
    for (const index of this.indexes)
      for (let at = index; at > 0; ) {
        at -= 2 ** (bitLength(at) - 1);
        if (!this.indexes.has(at)) missing.add(at);
      }
    return [...missing].sort((a, b) => a - b);
  }
}

const bitLength = (value: number): number => (value === 0 ? 0 : 32 - Math.clz32(value));

const leafObject = ({ ino }: DirectoryFacts, index: number): string => `directory ${ino} leaf ${index}`;

function checkShape(scan: Scan, directory: DirectoryFacts, leaves: Leaves): void {
  directory.foundDepth = leaves.maxDepth;
  for (const index of leaves.indexes) directory.foundBytes = Math.max(directory.foundBytes, (index + 1) * SECTOR_BYTES);
  for (const index of leaves.missing())
    scan.report(
      'leafDamaged',
      { object: leafObject(directory, index), ino: directory.ino },
      'is missing: what was named in it goes to /lost+found',
      'made anew, empty',
      async (edits) =>
        (await DirectoryEdits.open(scan, edits, directory.ino)).rebuildLeaf(index, leaves.depthOf(index), []),
    );
}

function checkLeaf(
  scan: Scan,
  directory: DirectoryFacts,
  leaves: Leaves,
  leaf: Uint8Array | null,
  index: number,
  home: Extent,
): void {
  const about = { object: leafObject(directory, index), ino: directory.ino };
  const depth = leaves.depthOf(index);
  const fault = leaf === null ? UNREADABLE : leafFault(leaf, directory, index, scan.fsId, scan.checksums);
  if (leaf === null || fault !== null) {
    const saved = leaf === null ? [] : salvageEntries(leaf, directory.seed, (entry) => isThere(scan, entry));
    const kept = saved.filter((entry) => leaves.leafOf(entry.hash) === index);
    scan.report(
      'leafDamaged',
      about,
      `${fault}: what is named in it and can not be made out goes to /lost+found`,
      `made anew with ${kept.length} names that can be made out`,
      async (edits) => (await DirectoryEdits.open(scan, edits, directory.ino)).rebuildLeaf(index, depth, kept),
    );
    for (const entry of kept) countEntry(scan, directory, entry, home);
    return;
  }
  if (!leafExists(leaf)) return;
  const entries = leafEntries(leaf);
  if (leafDepth(leaf) !== depth)
    scan.report(
      'leafDepth',
      about,
      `has depth ${leafDepth(leaf)} instead of ${depth}`,
      `${depth} written`,
      async (edits) => {
        const now = await edits.open(home.nsd, home.sector);
        if (now !== null) now[40] = depth;
      },
    );
  const names = new Set<string>();
  for (const entry of entries) checkEntry(scan, directory, leaves, entry, index, home, names);
}

const isThere = (scan: Scan, { ino, generation, type }: Pick<NamedEntry, 'ino' | 'generation' | 'type'>): boolean =>
  ino >= FIRST_USER_INODE && scan.inodes.type(ino) === type && scan.inodes.generation(ino) === generation;

function checkEntry(
  scan: Scan,
  directory: DirectoryFacts,
  leaves: Leaves,
  entry: NamedEntry,
  index: number,
  home: Extent,
  names: Set<string>,
): void {
  const text = Buffer.from(entry.name).toString('utf8');
  const about = { object: `name '${text}' in directory ${directory.ino}`, ino: directory.ino };
  const remove = removeFrom(scan, home, directory, entry);
  directory.foundEntries++;
  const key = Buffer.from(entry.name).toString('latin1');
  if (names.has(key)) {
    scan.report('entryTwice', about, `is there twice, once as inode ${entry.ino}`, 'that one removed', remove);
    return;
  }
  names.add(key);
  if (entry.name.includes(0) || entry.name.includes(0x2f) || text === '.' || text === '..') {
    scan.report('entryBadName', about, `is no name, and names inode ${entry.ino}`, 'removed', remove);
    return;
  }
  if (scan.damaged.has(entry.ino)) return;
  const { ino, generation, type } = entry;
  if (ino < FIRST_USER_INODE || scan.inodes.type(ino) === 0 || scan.inodes.generation(ino) !== generation) {
    scan.report(
      'entryDangling',
      about,
      `names inode ${ino} of generation ${generation}, which is not there`,
      'removed',
      remove,
    );
    return;
  }
  if (hashName(entry.name, directory.seed) !== entry.hash || leaves.leafOf(entry.hash) !== index)
    scan.report(
      'entryMisplaced',
      about,
      `is in leaf ${index}, where nobody looks for it`,
      'moved to its leaf',
      async (edits) => {
        const into = await DirectoryEdits.open(scan, edits, directory.ino);
        // In its new place before it leaves the old one.
        const moved = await into.insert(entry.name, { ino, generation, type });
        await edits.commit();
        await remove(edits);
        if (moved && type === FileType.directory) await into.count(0, -1);
      },
    );
  if (scan.inodes.type(ino) !== type)
    scan.report(
      'entryType',
      about,
      `has type ${type}, its inode ${scan.inodes.type(ino)}`,
      'the type of its inode written',
      async (edits) => {
        await editEntry(edits, home, entry, (leaf, at) => {
          leaf[at + 16] = scan.inodes.type(ino);
        });
      },
    );
  countEntry(scan, directory, entry, home);
}

function countEntry(scan: Scan, directory: DirectoryFacts, entry: NamedEntry, home: Extent): void {
  const target = scan.inodes.directories.get(entry.ino);
  if (target === undefined) {
    if (scan.inodes.home(entry.ino) !== null) scan.inodes.addName(entry.ino);
    return;
  }
  const here = { directory, entry, home };
  const before = scan.namings.get(entry.ino);
  if (before === undefined) {
    directory.foundDirectories++;
    scan.namings.set(entry.ino, here);
    target.namedIn = directory.ino;
    target.name = entry.name;
    return;
  }
  // The one that the directory itself speaks of stays.
  const stays = before.directory.ino !== target.parent && directory.ino === target.parent ? here : before;
  const goes = stays === here ? before : here;
  scan.namings.set(entry.ino, stays);
  target.namedIn = stays.directory.ino;
  target.name = stays.entry.name;
  if (stays === here) {
    directory.foundDirectories++;
    before.directory.foundDirectories--;
  }
  const text = Buffer.from(goes.entry.name).toString('utf8');
  scan.report(
    'directoryTwice',
    { object: `name '${text}' in directory ${goes.directory.ino}`, ino: goes.directory.ino },
    `is a second name of directory ${entry.ino}`,
    'removed',
    removeFrom(scan, goes.home, goes.directory, goes.entry),
  );
}

/** A name of a directory, and where it is. */
export interface Naming {
  readonly directory: DirectoryFacts;
  readonly entry: NamedEntry;
  readonly home: Extent;
}
