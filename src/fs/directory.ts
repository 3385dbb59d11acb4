/**
 * Directories: extensible hashing (Fagin et al., 1979) over the sectors of a sparse file, as in GPFS.
 *
 * The leaf of a name has the index (hash & (2^d - 1)) for the greatest d, up to the directory's depth, whose leaf exists; a leaf that
 * was never written is zeros. A full leaf of local depth d splits into its index and index + 2^d. There is no table to double.
 * Invariant: a change is made in one synchronous turn, under the exclusive data and status tokens of the directory; so operations of this node
 * need no lock among themselves, they look again in the turn in which they change.
 */

import type { CachedFile } from '../cache/page-cache-api.js';
import { invariant } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { findBlock } from './block-map.js';
import { isReserved, reserve } from './file-space.js';
import type { Inode } from './inode.js';
import { DIRECTORY_DEPTH_MAX } from './inode-format.js';
import { isUserInode } from './layout.js';
import {
  appendEntry,
  entryAt,
  entryBytes,
  findEntry,
  formatLeaf,
  hashName,
  LEAF_CAPACITY_BYTES,
  type LeafEntry,
  leafDepth,
  leafEntries,
  leafExists,
  leafUsedBytes,
  type NamedEntry,
  removeEntry,
  setEntryAt,
} from './leaf-format.js';
import { keyOf } from './log/logged-sectors.js';
import { corrupt } from './sector.js';
import { MetadataTransaction, placeOf } from './transaction.js';
import type { Volume } from './volume.js';

/** A name, with what every step of an operation needs of it. */
export interface HashedName {
  readonly text: string;
  readonly bytes: Uint8Array;
}
export const hashedName = (text: string): HashedName => ({ text, bytes: Buffer.from(text, 'utf8') });

/** What has to happen (with waiting) before a change can be tried again. */
export type Needed =
  | { readonly kind: 'load'; readonly index: number; readonly mode: 'shared' | 'exclusive' }
  | { readonly kind: 'split'; readonly index: number; readonly roomBytes: number };

/** Leaves loaded at once when a directory is listed. */
const LIST_CHUNK_LEAVES = 64;
const ABSENT = -1;

const blockOf = (index: number): number => Math.floor(index / SUB_BLOCKS_PER_BLOCK);
const leafRange = (index: number) => ({ start: index * SECTOR_BYTES, end: (index + 1) * SECTOR_BYTES });

export class Directory {
  readonly #volume: Volume;
  readonly #file: CachedFile;

  /** With the status and data tokens pinned, for as long as they are. */
  constructor(
    volume: Volume,
    readonly inode: Inode,
  ) {
    this.#volume = volume;
    this.#file = volume.inodes.attach(inode);
  }

  async lookup(name: HashedName): Promise<LeafEntry | null> {
    for (;;) {
      const found = this.tryLookup(name);
      if (found === null || !('kind' in found)) return found;
      await this.advance(found);
    }
  }

  tryLookup(name: HashedName): LeafEntry | null | Needed {
    if (this.inode.directoryEntries === 0) return null;
    const hash = hashName(name.bytes, this.inode.directorySeed);
    const found = this.#tryPlaced(hash, (leaf) => {
      const at = findEntry(leaf, hash, name.bytes);
      return at < 0 ? null : entryAt(leaf, at);
    });
    if (found === null || 'kind' in found) return found;
    return found.value === null ? null : this.#checked(name, found.value);
  }

  /** Whoever follows a name trusts it with the inode: one of the file system's own would be given away, or taken apart. */
  #checked(name: HashedName, entry: LeafEntry): LeafEntry {
    if (isUserInode(entry.ino, this.#volume.geometry)) return entry;
    throw corrupt('directory.read', `name '${name.text}' in directory ${this.inode.ino}`, `names inode ${entry.ino}`);
  }

  /** Null: done. The name is not there (the caller has just looked, in this turn). */
  tryInsert(name: HashedName, entry: LeafEntry, transaction: MetadataTransaction): Needed | null {
    const hash = hashName(name.bytes, this.inode.directorySeed);
    const place = this.#tryPlace(hash);
    if (typeof place !== 'number') return place;
    const index = place === ABSENT ? 0 : place;
    // The first leaf of a directory: it may be cached as the hole that it still is.
    if (!isReserved(this.inode, leafRange(index))) return { kind: 'load', index, mode: 'exclusive' };
    const done = this.#tryLeaf(index, 'exclusive', (leaf, changed) => {
      if (!leafExists(leaf)) formatLeaf(leaf, this.inode.ino, 0, 0, this.inode.generation, this.#volume.fsId);
      if (leafUsedBytes(leaf) + entryBytes(name.bytes.length) > LEAF_CAPACITY_BYTES) return false;
      appendEntry(leaf, hash, name.bytes, entry);
      changed(transaction);
      return true;
    });
    if (done === undefined) return { kind: 'load', index, mode: 'exclusive' };
    if (!done.value) return { kind: 'split', index, roomBytes: entryBytes(name.bytes.length) };
    this.inode.directoryEntries++;
    this.inode.sizeBytes = Math.max(this.inode.sizeBytes, SECTOR_BYTES);
    this.#changed(transaction);
    return null;
  }

  /** Null: done. The name is there. */
  tryRemove(name: HashedName, transaction: MetadataTransaction): Needed | null {
    const needed = this.#tryChange(name, transaction, (leaf, at) => {
      removeEntry(leaf, at);
    });
    if (needed === null) this.inode.directoryEntries--;
    return needed;
  }

  /** Null: done. The name is there, and names something else from now on. */
  tryReplace(name: HashedName, entry: LeafEntry, transaction: MetadataTransaction): Needed | null {
    return this.#tryChange(name, transaction, (leaf, at) => {
      setEntryAt(leaf, at, entry);
    });
  }

  /** Everything in it, in no order. Changes of this node meanwhile are in it or not; nothing is twice. */
  async list(): Promise<NamedEntry[]> {
    const found = new Map<string, NamedEntry>();
    for (let index = 0; index * SECTOR_BYTES < this.inode.sizeBytes; index++) {
      const leaf = this.#tryLeaf(index, 'shared', (bytes) => (leafExists(bytes) ? leafEntries(bytes) : []));
      if (leaf === undefined) {
        // Most of a directory that was split unevenly is holes.
        const block = await findBlock(this.#volume, this.inode, blockOf(index), (pointer) => pointer !== null);
        if (block === null) break;
        index = Math.max(index, block * SUB_BLOCKS_PER_BLOCK);
        const end = Math.min(this.inode.sizeBytes, (index + LIST_CHUNK_LEAVES) * SECTOR_BYTES);
        if (index * SECTOR_BYTES >= end) break;
        await this.#file.withBytes({ start: index * SECTOR_BYTES, end }, 'shared', () => undefined);
        index--;
        continue;
      }
      for (const entry of leaf.value) found.set(Buffer.from(entry.name).toString('latin1'), entry);
    }
    return [...found.values()];
  }

  /**
   * The waiting part: what was found to be missing is there afterwards, most likely; the caller tries again.
   * One at a time for each directory. Two that waited for the same page took it in turns, each finding it taken by the other when it
   * came to look again, and neither got on.
   */
  advance(needed: Needed): Promise<void> {
    return this.inode.directoryGate.run(async () => {
      if (needed.kind === 'split') return this.#split(needed.index, needed.roomBytes);
      const range = leafRange(needed.index);
      if (needed.mode === 'exclusive') await this.#prepare(needed.index);
      await this.#file.withBytes(range, needed.mode, () => undefined);
    });
  }

  /** A leaf has space, and the log knows its sector's version. */
  async #prepare(index: number): Promise<void> {
    await reserve(this.#volume, this.inode, leafRange(index));
    if (!this.#unknown(index)) return;
    const place = placeOf(this.inode, index * SECTOR_BYTES);
    if (place !== null) await this.#volume.learnVersions([{ ...place, count: 1 }]);
  }

  /** The index of the leaf that a hash belongs to, ABSENT in a directory without leaves. */
  #tryPlace(hash: number): number | Needed {
    const placed = this.#tryPlaced(hash, (_, index) => index);
    if (placed === null) return ABSENT;
    return 'kind' in placed ? placed : placed.value;
  }

  /**
   * With the leaf that a hash belongs to; null: the directory has no leaves. A leaf that is not there costs a read as well, so the search begins where
   * most leaves are: one that is there and hasn't split further is the right one, whatever there is of greater depth.
   */
  #tryPlaced<T>(hash: number, use: (leaf: Uint8Array, index: number) => T): { value: T } | null | Needed {
    const { directoryDepth } = this.inode;
    const likely = likelyDepth(this.inode);
    for (let depth = likely, isGuess = likely < directoryDepth; depth >= 0; depth--) {
      const index = indexAt(hash, depth);
      const found = this.#tryLeaf(index, 'shared', (leaf) => {
        if (!leafExists(leaf)) return ABSENT;
        this.#checkDepth(leaf, index);
        if (isGuess && indexAt(hash, leafDepth(leaf)) !== index) return ABSENT;
        return { value: use(leaf, index) };
      });
      if (found === undefined) return { kind: 'load', index, mode: 'shared' };
      if (found.value !== ABSENT) return found.value;
      if (isGuess) depth = directoryDepth + 1;
      isGuess = false;
    }
    return null;
  }

  /** A directory of less depth than one of its leaves would look for names where they are not. */
  #checkDepth(leaf: Uint8Array, index: number): void {
    const { ino, directoryDepth } = this.inode;
    if (leafDepth(leaf) > directoryDepth)
      throw corrupt(
        'lookup',
        `directory ${ino} leaf ${index}`,
        `has depth ${leafDepth(leaf)}, its directory ${directoryDepth}`,
      );
  }

  #tryChange(
    name: HashedName,
    transaction: MetadataTransaction,
    change: (leaf: Uint8Array, at: number) => void,
  ): Needed | null {
    const hash = hashName(name.bytes, this.inode.directorySeed);
    const index = this.#tryPlace(hash);
    if (typeof index !== 'number') return index;
    invariant(index !== ABSENT, 'a name that was found is in a leaf');
    const done = this.#tryLeaf(index, 'exclusive', (leaf, changed) => {
      const at = findEntry(leaf, hash, name.bytes);
      invariant(at >= 0, 'a name that was found in this turn is there');
      change(leaf, at);
      changed(transaction);
    });
    if (done === undefined) return { kind: 'load', index, mode: 'exclusive' };
    this.#changed(transaction);
    return null;
  }

  #changed(transaction: MetadataTransaction): void {
    this.inode.mtimeNs = transaction.nowNs;
    this.inode.ctimeNs = transaction.nowNs;
    transaction.inode(this.inode);
  }

  /** Undefined: to be loaded. A leaf that is to be changed has its version known to the log. */
  #tryLeaf<T>(
    index: number,
    mode: 'shared' | 'exclusive',
    use: (leaf: Uint8Array, changed: (transaction: MetadataTransaction) => void) => T,
  ): { value: T } | undefined {
    const range = leafRange(index);
    if (mode === 'exclusive' && this.#unknown(index)) return undefined;
    return this.#file.tryWithBytes(range, mode, (view) => {
      const leaf = view.bytes(range.start, SECTOR_BYTES);
      return use(leaf, (transaction) => {
        view.changed(range.start, SECTOR_BYTES);
        transaction.sector(this.inode, range.start, leaf);
      });
    });
  }

  #unknown(index: number): boolean {
    const place = placeOf(this.inode, index * SECTOR_BYTES);
    return place === null || !this.#volume.sectors.knows(keyOf(place));
  }

  /**
   * Many inserts may find the same leaf full in the same turn: only the first of them splits it, the others see that there is
   * room now. (Splitting once for each ran through all depths.)
   */
  async #split(index: number, roomBytes: number): Promise<void> {
    for (;;) {
      await this.#file.withBytes(leafRange(index), 'exclusive', () => undefined);
      const before = this.#tryLeaf(index, 'shared', (leaf) => leaf.slice());
      if (before === undefined) continue;
      if (leafUsedBytes(before.value) + roomBytes <= LEAF_CAPACITY_BYTES) return;
      const depth = leafDepth(before.value);
      if (depth >= DIRECTORY_DEPTH_MAX)
        throw new FsError('noSpace', { op: 'create', object: `directory ${this.inode.ino}`, detail: 'too many names' });
      const sibling = index + 2 ** depth;
      await this.#prepare(index);
      await this.#prepare(sibling);
      await this.#file.withBytes(leafRange(sibling), 'exclusive', () => undefined);
      if (this.#trySplit(index, sibling, depth)) return;
    }
  }

  /** Both leaves in one turn. True also when somebody else was faster. */
  #trySplit(index: number, sibling: number, depth: number): boolean {
    const now = this.#tryLeaf(index, 'shared', (leaf) => leaf.slice());
    if (now === undefined) return false;
    if (leafDepth(now.value) !== depth) return true;
    const taken = this.#tryLeaf(sibling, 'shared', leafExists);
    if (taken === undefined) return false;
    const { ino, generation } = this.inode;
    if (taken.value)
      throw corrupt(
        'create',
        `directory ${ino} leaf ${index}`,
        `has depth ${depth}, and leaf ${sibling} is there already`,
      );
    const low = new Uint8Array(SECTOR_BYTES);
    const high = new Uint8Array(SECTOR_BYTES);
    formatLeaf(low, ino, index, depth + 1, generation, this.#volume.fsId);
    formatLeaf(high, ino, sibling, depth + 1, generation, this.#volume.fsId);
    for (const entry of leafEntries(now.value))
      appendEntry((entry.hash >>> depth) & 1 ? high : low, entry.hash, entry.name, entry);
    const transaction = new MetadataTransaction(this.#volume);
    const put = (at: number, bytes: Uint8Array): boolean =>
      this.#tryLeaf(at, 'exclusive', (leaf, changed) => {
        leaf.set(bytes);
        changed(transaction);
      }) !== undefined;
    if (!put(sibling, high)) return false;
    if (!put(index, low)) {
      put(sibling, new Uint8Array(SECTOR_BYTES));
      transaction.commit();
      return false;
    }
    this.inode.directoryDepth = Math.max(this.inode.directoryDepth, depth + 1);
    this.inode.sizeBytes = Math.max(this.inode.sizeBytes, (sibling + 1) * SECTOR_BYTES);
    transaction.inode(this.inode);
    transaction.commit();
    this.#volume.counters.add('fs.leafSplits');
    return true;
  }
}

/**
 * Where a search begins. The last round of splits has hardly begun, or nearly ended, in most directories: the size, which is that of the last leaf, tells
 * which, as leaves split in no order.
 */
function likelyDepth({ directoryDepth, sizeBytes }: Inode): number {
  const missing = 2 ** directoryDepth - sizeBytes / SECTOR_BYTES;
  return missing >= 2 ? directoryDepth - 1 : directoryDepth;
}

/** 24 bits of the hash at most pick a leaf. */
const indexAt = (hash: number, depth: number): number => hash & ((1 << depth) - 1);
