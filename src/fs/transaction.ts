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
import { expose, inodeImage } from './inode-image.js';
import type { Extent } from './layout.js';
import type { LogRecord } from './log/log-records.js';
import { keyOf, type MetadataPlace } from './log/logged-sectors.js';
import type { LooseEnd } from './log/loose-ends.js';
import type { Volume } from './volume.js';

interface TouchedSector {
  readonly inode: Inode;
  readonly offsetBytes: number;
  readonly image: Uint8Array;
}

/** Of a regular file, what it was when the data that is durable by now began to be written. */
export interface Exposure {
  readonly inode: Inode;
  readonly image: Uint8Array;
  readonly indirects: readonly { readonly home: Extent; readonly sector: Uint8Array }[];
}

export class MetadataTransaction {
  readonly #volume: Volume;
  readonly #inodes = new Map<Inode, boolean>();
  readonly #sectors = new Map<Inode, Map<number, TouchedSector>>();
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
    this.#inodes.set(inode, true);
  }
  /** Nothing but its times changes: fdatasync may pass over it. */
  times(inode: Inode): void {
    if (!this.#inodes.has(inode)) this.#inodes.set(inode, false);
  }
  /** A sector of a metadata file (a directory's leaf, a map's) is now as these bytes, which are copied; the page cache knows them. */
  sector(inode: Inode, offsetBytes: number, bytes: Uint8Array): void {
    let sectors = this.#sectors.get(inode);
    if (sectors === undefined) {
      sectors = new Map();
      this.#sectors.set(inode, sectors);
    }
    sectors.set(offsetBytes, { inode, offsetBytes, image: bytes.slice() });
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
      if (metadata || count === 1)
        for (let at = sector; at < sector + count; at++) this.#volume.sectors.drop(keyOf({ nsd, sector: at }));
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
    for (const [inode, core] of this.#inodes) {
      volume.inodes.markDirty(inode, core);
      inode.pushState();
    }
    volume.counters.add('fs.transactions');
    const { log } = volume;
    if (log === null) return 0;
    const nowMs = volume.clock.nowMs();
    const records: LogRecord[] = [];
    const record = (place: MetadataPlace, image: Uint8Array): void => {
      const made = volume.sectors.record(place, image, nowMs);
      if (made !== null) records.push(made);
    };
    for (const sectors of this.#sectors.values())
      for (const { inode, offsetBytes, image } of sectors.values()) {
        const place = placeOf(inode, offsetBytes);
        invariant(place !== null, 'what was changed has space');
        record(place, image);
      }
    for (const { place, image } of this.#images) record(place, image);
    const settled: Extent[] = [];
    const given: Extent[] = [];
    for (const inode of this.#inodes.keys()) {
      if (!inode.unexposed) {
        for (const node of dirtyIndirects(inode)) {
          node.dirty = false;
          record(node.home, node.sector.slice());
        }
        settled.push(...inode.reserved.splice(0));
      }
      settled.push(...inode.attributeSpace.taken.splice(0));
      given.push(...inode.attributeSpace.given.splice(0));
      const image = inodeImage(volume, inode);
      record(inode.home, image);
      if (inode.holdsDataBack) inode.image = image;
    }
    for (const { inode, image, indirects } of this.#exposed) {
      for (const { home, sector } of indirects) record(home, sector);
      const now = inodeImage(volume, inode);
      expose(now, image);
      record(inode.home, now);
      inode.image = now;
    }
    // First: what was allocated and cut off again is in limbo for another reason from here on.
    if (settled.length > 0) records.push({ kind: 'settled', extents: settled });
    if (given.length > 0) records.push({ kind: 'limbo', extents: given });
    for (const change of this.#ends) records.push(change);
    if (records.length === 0) return log.appendedSequence;
    const sequence = log.append(records);
    if (given.length > 0) volume.frees.add(given, sequence);
    return sequence;
  }
}

/** Null: it has no space, or the pointer to it is not in memory. */
export function placeOf(inode: Inode, offsetBytes: number): MetadataPlace | null {
  const index = offsetBytes / SECTOR_BYTES;
  const inside = index % SUB_BLOCKS_PER_BLOCK;
  const pointer = findPointer(inode, Math.floor(index / SUB_BLOCKS_PER_BLOCK));
  if (!pointer || inside >= pointer.count) return null;
  return { nsd: pointer.nsd, sector: pointer.sector + inside, paged: { ino: inode.ino, offsetBytes } };
}
