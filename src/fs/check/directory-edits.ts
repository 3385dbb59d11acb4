/**
 * A directory as a repair changes it: names in, names out, leaves made anew. The same hashing as directory.ts, on devices instead of pages.
 *
 * Cut anywhere, no name is lost that was there: a leaf that splits writes its upper half first, and what is then there twice is found as such.
 * Limit: a directory grows here only where its pointers are in its inode (the first 211 MiB of its leaves).
 */
import { FsError } from '../../common/errors.js';
import type { InodeNumber } from '../../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { type BlockPointer, blockPointer } from '../block-pointer.js';
import { FileType } from '../file-system-api.js';
import { DIRECT_POINTERS, type InodeFields } from '../inode-format.js';
import type { Extent } from '../layout.js';
import {
  appendEntry,
  entryAt,
  entryBytes,
  findEntry,
  formatLeaf,
  hashName,
  LEAF_CAPACITY_BYTES,
  LEAF_ENTRIES_AT,
  type LeafEntry,
  leafDepth,
  leafEntries,
  leafExists,
  leafUsedBytes,
  type NamedEntry,
  removeEntry,
} from '../leaf-format.js';
import type { SectorEdits } from './check-storage.js';
import { FreeSpace } from './free-space.js';
import { editInode, readInode, setPointerAt } from './inode-edits.js';
import type { DirectoryFacts } from './inode-facts.js';
import { type PointerSite, walkPointers } from './pointer-walk.js';
import type { Mending, Scan } from './scan.js';

export class DirectoryEdits {
  readonly #scan: Scan;
  readonly #edits: SectorEdits;
  readonly #ino: InodeNumber;
  #fields: InodeFields;
  readonly #blocks = new Map<number, { readonly pointer: BlockPointer; readonly site: PointerSite }>();

  private constructor(scan: Scan, edits: SectorEdits, ino: InodeNumber, fields: InodeFields) {
    this.#scan = scan;
    this.#edits = edits;
    this.#ino = ino;
    this.#fields = fields;
  }

  static async open(scan: Scan, edits: SectorEdits, ino: InodeNumber): Promise<DirectoryEdits> {
    // Pointers are walked on the devices.
    await edits.commit();
    const fields = await readInode(scan, edits, ino);
    if (fields === null) throw new FsError('corrupt', { op: 'fs.repair', object: `directory ${ino}` });
    const directory = new DirectoryEdits(scan, edits, ino, fields);
    await walkPointers(scan, ino, fields, {
      block: (block, pointer, site) => void directory.#blocks.set(block, { pointer, site }),
      indirect: () => undefined,
      broken: () => undefined,
    });
    return directory;
  }

  async lookup(name: Uint8Array): Promise<LeafEntry | null> {
    const hash = hashName(name, this.#fields.directorySeed);
    const index = await this.#leafOf(hash);
    const leaf = index === null ? null : await this.#leaf(index);
    if (leaf === null) return null;
    const at = findEntry(leaf, hash, name);
    return at < 0 ? null : entryAt(leaf, at);
  }

  /** False: there is something of that name. */
  async insert(name: Uint8Array, entry: LeafEntry): Promise<boolean> {
    if ((await this.lookup(name)) !== null) return false;
    const hash = hashName(name, this.#fields.directorySeed);
    for (;;) {
      const index = await this.#leafOf(hash);
      if (index === null) {
        await this.rebuildLeaf(0, 0, []);
        continue;
      }
      const leaf = (await this.#leaf(index))!;
      if (leafUsedBytes(leaf) + entryBytes(name.length) > LEAF_CAPACITY_BYTES) {
        await this.#split(index);
        continue;
      }
      appendEntry(leaf, hash, name, entry);
      await this.count(1, entry.type === FileType.directory ? 1 : 0);
      return true;
    }
  }

  count(entries: number, directories: number): Promise<void> {
    return this.#change((fields) => {
      fields.directoryEntries = Math.max(0, fields.directoryEntries + entries);
      fields.nlink = Math.max(0, fields.nlink + directories);
    });
  }

  /** Exactly these entries. */
  async rebuildLeaf(index: number, depth: number, entries: readonly NamedEntry[]): Promise<void> {
    const { nsd, sector } = await this.#place(index);
    const leaf = new Uint8Array(SECTOR_BYTES);
    formatLeaf(leaf, this.#ino, index, depth, this.#fields.generation, this.#scan.fsId);
    for (const entry of entries) appendEntry(leaf, entry.hash, entry.name, entry);
    this.#edits.put(nsd, sector, leaf);
    await this.#change((fields) => {
      fields.sizeBytes = Math.max(fields.sizeBytes, (index + 1) * SECTOR_BYTES);
      fields.directoryDepth = Math.max(fields.directoryDepth, depth);
    });
  }

  async #split(index: number): Promise<void> {
    const full = (await this.#leaf(index))!;
    const depth = leafDepth(full);
    const halves = [0, 1].map((half) => leafEntries(full).filter(({ hash }) => ((hash >>> depth) & 1) === half));
    await this.rebuildLeaf(index + 2 ** depth, depth + 1, halves[1]!);
    await this.#edits.commit();
    await this.rebuildLeaf(index, depth + 1, halves[0]!);
    await this.#edits.commit();
  }

  async #change(change: (fields: InodeFields) => void): Promise<void> {
    await editInode(this.#scan, this.#edits, this.#ino, (fields) => {
      change(fields);
      this.#fields = { ...fields };
    });
  }

  async #leafOf(hash: number): Promise<number | null> {
    for (let depth = this.#fields.directoryDepth; depth >= 0; depth--) {
      const index = (hash & (2 ** depth - 1)) >>> 0;
      const leaf = await this.#leaf(index);
      if (leaf !== null) return index;
    }
    return null;
  }

  async #leaf(index: number): Promise<Uint8Array | null> {
    const at = this.#at(index);
    const leaf = at === null ? null : await this.#edits.open(at.nsd, at.sector);
    return leaf !== null && leafExists(leaf) ? leaf : null;
  }

  #at(index: number): Extent | null {
    const block = this.#blocks.get(Math.floor(index / SUB_BLOCKS_PER_BLOCK));
    const within = index % SUB_BLOCKS_PER_BLOCK;
    if (block === undefined || within >= block.pointer.count) return null;
    return { nsd: block.pointer.nsd, sector: block.pointer.sector + within, count: 1 };
  }

  /** Where a leaf is, with space for it. A fragment that is too small moves: its old place is found to be lost. */
  async #place(index: number): Promise<Extent> {
    const present = this.#at(index);
    if (present !== null) return present;
    const block = Math.floor(index / SUB_BLOCKS_PER_BLOCK);
    const before = this.#blocks.get(block);
    const site = before?.site ?? { kind: 'area', entry: block };
    if (before === undefined && block >= DIRECT_POINTERS)
      throw new FsError('fileTooBig', { op: 'fs.repair', object: `directory ${this.#ino}`, detail: `leaf ${index}` });
    const extent = await new FreeSpace(this.#scan).take(
      2 ** Math.ceil(Math.log2((index % SUB_BLOCKS_PER_BLOCK) + 1)),
      this.#scan.geometry.metadataCopies,
    );
    for (let at = 0; at < extent.count; at++) {
      const from = before !== undefined && at < before.pointer.count ? before.pointer : null;
      const bytes = from === null ? null : await this.#edits.open(from.nsd, from.sector + at);
      this.#edits.put(extent.nsd, extent.sector + at, bytes?.slice() ?? new Uint8Array(SECTOR_BYTES));
    }
    await this.#edits.commit();
    const pointer = blockPointer(extent, before?.pointer.birthEpoch ?? 1, before?.pointer.placementClass ?? 0);
    await setPointerAt(this.#scan, this.#edits, this.#ino, site, pointer);
    await this.#change((fields) => {
      fields.allocatedSubBlocks += extent.count - (before?.pointer.count ?? 0);
    });
    this.#blocks.set(block, { pointer, site });
    await this.#edits.commit();
    return this.#at(index)!;
  }
}

/** Exactly this entry, among several of its name. */
export async function editEntry(
  edits: SectorEdits,
  home: Extent,
  wanted: NamedEntry,
  change: (leaf: Uint8Array, at: number) => void,
): Promise<boolean> {
  const leaf = await edits.open(home.nsd, home.sector);
  if (leaf === null || !leafExists(leaf)) return false;
  const end = LEAF_ENTRIES_AT + leafUsedBytes(leaf);
  let last = -1;
  for (let at = LEAF_ENTRIES_AT; at < end; at += entryBytes(leaf[at + 17]!)) {
    const { ino, generation } = entryAt(leaf, at);
    const name = leaf.subarray(at + entryBytes(0), at + entryBytes(leaf[at + 17]!));
    if (ino === wanted.ino && generation === wanted.generation && Buffer.compare(name, wanted.name) === 0) last = at;
  }
  if (last >= 0) change(leaf, last);
  return last >= 0;
}

/** With the directory's counts. */
export const removeFrom =
  (scan: Scan, home: Extent, { ino }: DirectoryFacts, entry: NamedEntry): Mending =>
  async (edits) => {
    if (!(await editEntry(edits, home, entry, removeEntry))) return;
    await editInode(scan, edits, ino, (fields) => {
      fields.directoryEntries = Math.max(0, fields.directoryEntries - 1);
    });
  };
