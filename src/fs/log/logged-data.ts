/**
 * Sectors of files whose bytes went into the log first (small synchronous writes), or may next: where they are and whose, for as long as this node
 * has the file's tokens.
 *
 * Such a sector is written in place from the log's own image, like an inode; until then what its NSD has is old, and reads look at the log first.
 * Invariant: a data sector whose version the log knows is in here; it is forgotten when the file's data or status token leaves (others may write it
 * from then on) and when its space is given up.
 */
import type { ByteRange } from '../../common/byte-range.js';
import type { InodeNumber } from '../../common/ids.js';
import { SECTOR_BYTES } from '../../common/units.js';
import type { LoggedSectors, SectorKey } from './logged-sectors.js';

export class LoggedData {
  /** Ranges whose tokens have left, or are about to: what was found out about sectors before is doubtful. */
  departures = 0;
  readonly #sectors: LoggedSectors;
  /** By file: the sector's number in the file. */
  readonly #files = new Map<InodeNumber, Map<SectorKey, number>>();
  readonly #owners = new Map<SectorKey, InodeNumber>();

  constructor(sectors: LoggedSectors) {
    this.#sectors = sectors;
  }

  get isEmpty(): boolean {
    return this.#owners.size === 0;
  }
  /** Whether there is a sector of the file that isn't in place. */
  isAhead(ino: InodeNumber): boolean {
    for (const key of this.#files.get(ino)?.keys() ?? []) if (this.#sectors.latest(key) !== undefined) return true;
    return false;
  }

  add(ino: InodeNumber, key: SectorKey, offsetBytes: number): void {
    const before = this.#owners.get(key);
    if (before !== undefined && before !== ino) this.#files.get(before)?.delete(key);
    this.#owners.set(key, ino);
    let keys = this.#files.get(ino);
    if (keys === undefined) {
      keys = new Map();
      this.#files.set(ino, keys);
    }
    keys.set(key, offsetBytes / SECTOR_BYTES);
  }

  /** Those of a file in a range of it. */
  keysIn(ino: InodeNumber, range: ByteRange): SectorKey[] {
    const found: SectorKey[] = [];
    for (const [key, sector] of this.#files.get(ino) ?? [])
      if (sector * SECTOR_BYTES < range.end && range.start < (sector + 1) * SECTOR_BYTES) found.push(key);
    return found;
  }

  /** Those that are in place, durably: nobody knows what others do to them from here on. */
  forget(keys: readonly SectorKey[]): void {
    for (const key of keys) {
      if (!this.#sectors.isSettled(key)) continue;
      this.#remove(key);
      this.#sectors.forget(key);
    }
  }
  /** The space is given up: what was there is not written any more. */
  drop(key: SectorKey): void {
    this.#remove(key);
    this.#sectors.drop(key);
  }

  #remove(key: SectorKey): void {
    const ino = this.#owners.get(key);
    if (ino === undefined) return;
    this.#owners.delete(key);
    const keys = this.#files.get(ino)!;
    keys.delete(key);
    if (keys.size === 0) this.#files.delete(ino);
  }

  /** What the log has of these sectors and their NSD may not have yet, taken down before they are read there; null when that is nothing. */
  aheadOf(places: Iterable<{ readonly key: SectorKey; readonly at: number }>): ((memory: Uint8Array) => void) | null {
    if (this.isEmpty) return null;
    const ahead: { readonly image: Uint8Array; readonly at: number }[] = [];
    for (const { key, at } of places) {
      const image = this.#owners.has(key) ? this.#sectors.latest(key) : undefined;
      if (image !== undefined) ahead.push({ image, at });
    }
    if (ahead.length === 0) return null;
    return (memory) => {
      for (const { image, at } of ahead) {
        memory.fill(0, at + image.length, at + SECTOR_BYTES);
        memory.set(image, at);
      }
    };
  }
}
