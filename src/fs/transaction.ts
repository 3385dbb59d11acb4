/**
 * One change of metadata: every inode and sector that it touches, marked together in one synchronous turn. It becomes one transaction of the
 * node's log: after a crash all of it is there, or nothing.
 *
 * Of a regular file that has data on its way, a transaction logs attributes only: its size, its pointers and its inline bytes are exposed by
 * the inode's own write-out, after the data has reached the NSDs durably (L1).
 */
import { invariant } from '../common/assert.js';
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { dirtyIndirects, findPointer } from './block-map.js';
import type { Inode } from './inode.js';
import { inodeImage } from './inode-image.js';
import type { Extent } from './layout.js';
import type { TransactionWriter } from './log/log-records.js';
import { keyOf, type MetadataPlace } from './log/logged-sectors.js';
import type { LooseEnd } from './log/loose-ends.js';
import type { Volume } from './volume.js';

interface TouchedSector {
  readonly inode: Inode;
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
}

/** Of a regular file, what it was when the data that is durable by now began to be written. */
export interface Exposure {
  readonly inode: Inode;
  readonly image: Uint8Array;
  readonly indirects: readonly { readonly home: Extent; readonly sector: Uint8Array }[];
}

export class MetadataTransaction {
  readonly #volume: Volume;
  // A few of each at most: looking through them is cheaper than a map.
  readonly #inodes: Inode[] = [];
  readonly #onlyTimes: Inode[] = [];
  readonly #sectors: TouchedSector[] = [];
  readonly #ends: LooseEnd[] = [];
  readonly #exposed: Exposure[] = [];
  readonly #images: { readonly place: MetadataPlace; readonly image: Uint8Array }[] = [];
  #nowNs: bigint | null = null;

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  /** One time for everything that it changes. */
  get nowNs(): bigint {
    this.#nowNs ??= this.#volume.now();
    return this.#nowNs;
  }

  /** Its fields, area or indirect blocks change. */
  inode(inode: Inode): void {
    if (!this.#inodes.includes(inode)) this.#inodes.push(inode);
    const at = this.#onlyTimes.indexOf(inode);
    if (at >= 0) this.#onlyTimes.splice(at, 1);
  }
  /** Nothing but its times changes: fdatasync may pass over it. */
  times(inode: Inode): void {
    if (this.#inodes.includes(inode)) return;
    this.#inodes.push(inode);
    this.#onlyTimes.push(inode);
  }
  /** A sector of a metadata file (a directory's leaf, a map's) is in these bytes, as they are at the commit in this turn; the page cache knows them. */
  sector(inode: Inode, offsetBytes: number, bytes: Uint8Array): void {
    for (const touched of this.#sectors)
      if (touched.inode === inode && touched.offsetBytes === offsetBytes && touched.bytes === bytes) return;
    this.#sectors.push({ inode, offsetBytes, bytes });
  }
  /** Its size, pointers and inline bytes may be known as the image says; everything else about it is as it is now. */
  expose(exposure: Exposure): void {
    this.#exposed.push(exposure);
  }
  /** A sector that is neither an inode's nor a page's. */
  image(place: MetadataPlace, image: Uint8Array): void {
    this.#images.push({ place, image });
  }
  /** What recovery would have to bring to an end, or no longer has to. */
  looseEnd(change: LooseEnd): void {
    this.#ends.push(change);
  }
  /** Sub-blocks that are marked as used and that nothing points to. `metadata`: they held some, of which nothing is written any more. */
  limbo(extents: readonly Extent[], metadata = false): void {
    if (extents.length === 0) return;
    this.#ends.push({ kind: 'limbo', extents });
    for (const { nsd, sector, count } of extents)
      if (metadata || count === 1 || !this.#volume.logged.isEmpty)
        for (let at = sector; at < sector + count; at++) this.#volume.logged.drop(keyOf({ nsd, sector: at }));
  }
  /** They are pointed to from here on, or free. */
  settled(extents: readonly Extent[]): void {
    if (extents.length > 0) this.#ends.push({ kind: 'settled', extents });
  }
  numbers(kind: 'numbersTaken' | 'numbersSettled', first: InodeNumber, count = 1): void {
    this.#ends.push({ kind, first, count });
  }

  /** Everything is in memory already; from here on it is logged, in order. Returns the transaction's number in the log. */
  commit(): number {
    const volume = this.#volume;
    for (const inode of this.#inodes) {
      volume.inodes.markDirty(inode, !this.#onlyTimes.includes(inode));
      inode.pushState();
    }
    volume.counters.add('fs.transactions');
    const { log } = volume;
    if (log === null) return 0;
    const { writer } = log;
    const nowMs = volume.clock.nowMs();
    writer.clear();
    for (const { inode, offsetBytes, bytes } of this.#sectors) {
      const place = placeOf(inode, offsetBytes);
      invariant(place !== null, 'what was changed has space');
      volume.sectors.record(place, bytes, nowMs, writer);
    }
    for (const { place, image } of this.#images) volume.sectors.record(place, image, nowMs, writer);
    const ends: LooseEnd[] = [];
    let settled: Extent[] | null = null;
    let given: Extent[] | null = null;
    for (const inode of this.#inodes) {
      if (!inode.unexposed) {
        if (!inode.isInline) this.#recordIndirects(inode, nowMs, writer);
        settled = moved(inode.reserved, settled);
      }
      const space = inode.movedAttributeSpace;
      if (space !== null) {
        settled = moved(space.taken, settled);
        given = moved(space.given, given);
      }
      const image = inodeImage(volume, inode);
      volume.sectors.record(inode.home, image, nowMs, writer);
      inode.image = inode.unexposed ? image.slice() : null;
    }
    for (const { inode, image, indirects } of this.#exposed) {
      for (const { home, sector } of indirects) volume.sectors.record(home, sector, nowMs, writer);
      const now = inodeImage(volume, inode, image);
      volume.sectors.record(inode.home, now, nowMs, writer);
      inode.image = inode.unexposed ? now.slice() : null;
    }
    // First: what was allocated and cut off again is in limbo for another reason from here on.
    if (settled !== null) ends.push({ kind: 'settled', extents: settled });
    if (given !== null) ends.push({ kind: 'limbo', extents: given });
    for (const change of this.#ends) ends.push(change);
    for (const change of ends) writer.record(change);
    if (writer.isEmpty) return log.appendedSequence;
    const sequence = log.append(ends);
    if (given !== null) volume.frees.add(given, sequence);
    return sequence;
  }

  #recordIndirects(inode: Inode, nowMs: number, writer: TransactionWriter): void {
    for (const node of dirtyIndirects(inode)) {
      node.dirty = false;
      this.#volume.sectors.record(node.home, node.sector, nowMs, writer);
    }
    inode.dirtyIndirects = 0;
  }
}

/** What is in a list of an inode's goes to the transaction's. */
function moved(from: Extent[], to: Extent[] | null): Extent[] | null {
  if (from.length === 0) return to;
  const list = to ?? [];
  list.push(...from);
  from.length = 0;
  return list;
}

/** Null: it has no space, or the pointer to it is not in memory. */
export function placeOf(inode: Inode, offsetBytes: number): MetadataPlace | null {
  const index = offsetBytes / SECTOR_BYTES;
  const inside = index % SUB_BLOCKS_PER_BLOCK;
  const pointer = findPointer(inode, Math.floor(index / SUB_BLOCKS_PER_BLOCK));
  if (!pointer || inside >= pointer.count) return null;
  return { nsd: pointer.nsd, sector: pointer.sector + inside, paged: { ino: inode.ino, offsetBytes } };
}
