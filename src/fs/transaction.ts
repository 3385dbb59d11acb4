/**
 * One change of metadata: every inode and sector that it touches, marked together in one synchronous turn. The log hooks in
 * here: what `commit` sees is one record.
 */
import type { InodeNumber } from '../common/ids.js';
import type { Inode } from './inode.js';
import type { Volume } from './volume.js';

export interface TouchedSector {
  readonly owner: InodeNumber;
  readonly offsetBytes: number;
}

export class MetadataTransaction {
  readonly #volume: Volume;
  readonly #inodes = new Map<Inode, boolean>();
  readonly #sectors: TouchedSector[] = [];
  /** One time for everything that it changes. */
  readonly nowNs: bigint;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.nowNs = volume.now();
  }

  /** Its fields, area or indirect blocks change. */
  inode(inode: Inode): void {
    this.#inodes.set(inode, true);
  }
  /** Nothing but its times changes: fdatasync may pass over it. */
  times(inode: Inode): void {
    if (!this.#inodes.has(inode)) this.#inodes.set(inode, false);
  }
  /** A directory's leaf changes; the page cache knows the bytes. */
  sector(owner: InodeNumber, offsetBytes: number): void {
    this.#sectors.push({ owner, offsetBytes });
  }

  get touchedInodes(): Inode[] {
    return [...this.#inodes.keys()];
  }
  get touchedSectors(): readonly TouchedSector[] {
    return this.#sectors;
  }

  /** Everything is in memory already; from here on it is dirty. */
  commit(): void {
    for (const [inode, core] of this.#inodes) {
      this.#volume.inodes.markDirty(inode, core);
      inode.pushState();
    }
    this.#volume.counters.add('fs.transactions');
  }
}
