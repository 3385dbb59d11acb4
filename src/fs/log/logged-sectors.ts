/**
 * Metadata sectors of which the log has records, and how far they have got.
 *
 * Owns, for every metadata sector in memory, the version that the next record about it names; and for each sector with records that may not be
 * durable in place yet, which transaction recovery would have to begin with.
 * States of a sector: *dirty* (records, not in place) -> *writing* -> *unflushed* (in place, in the NSD's volatile cache) -> forgotten, at the
 * NSD's flush, or dirty again if the NSD lost something since the write began. A record that comes while it is being written makes it dirty
 * anew beside that, with a full image.
 * Invariant: a sector is written in place only with what its durable records say (L1); whoever writes waits for `force` first.
 */
import { invariant } from '../../common/assert.js';
import { type Deferred, deferred } from '../../common/deferred.js';
import { type InodeNumber, type NsdIndex, nsdIndex } from '../../common/ids.js';
import { isVersionBefore, nextSectorVersion } from '../../common/sector-version.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { NSD_BLOCKS_MAX } from '../layout.js';
import type { TransactionWriter } from './log-records.js';
import { findRuns, wordsOf } from './sector-delta.js';

export interface MetadataPlace {
  readonly nsd: NsdIndex;
  readonly sector: number;
  /** In the page cache: the file that it is a page of, and where. Absent: the log's own image is what is written in place. */
  readonly paged?: { readonly ino: InodeNumber; readonly offsetBytes: number };
  /** A file's bytes: no header, not sealed. */
  readonly raw?: boolean;
}

export type SectorKey = number;
const SECTORS_MAX = NSD_BLOCKS_MAX * SUB_BLOCKS_PER_BLOCK;
/** Neighbours have successive keys, and the same copies. */
export const keyAt = (nsd: number, sector: number): SectorKey => nsd * SECTORS_MAX + sector;
export const keyOf = ({ nsd, sector }: { readonly nsd: number; readonly sector: number }): SectorKey =>
  keyAt(nsd, sector);
export const nsdOf = (key: SectorKey): NsdIndex => nsdIndex(Math.floor(key / SECTORS_MAX));
export const sectorOf = (key: SectorKey): number => key % SECTORS_MAX;

export interface DirtySector {
  readonly key: SectorKey;
  readonly place: MetadataPlace;
  /** As the last record left it, changed with each; may be shorter than the sector, the rest is zeros. */
  image: Uint8Array;
  words: Int32Array;
  /** Transactions: the first that is not in place, the last. 0: appended in this very turn. */
  first: number;
  last: number;
  readonly sinceMs: number;
  /** It was in place and got lost: the log's own image is what is written again, for its page may be clean, or gone. */
  byImage?: boolean;
}

/** In place, and a power cut of its NSD may take it away. */
export interface UnflushedSector {
  readonly dirty: DirtySector;
  readonly version: number;
  /** Of the NSD, when the write began. */
  readonly losses: number;
}

/** A write in place, under way. */
export interface SectorWrite {
  readonly key: SectorKey;
  readonly place: MetadataPlace;
  /** Null: no record since it was last written; the bytes are the page's. */
  readonly dirty: DirtySector | null;
  readonly version: number;
  readonly losses: number;
  readonly ended: Deferred<void>;
  /** Freed meanwhile: nobody needs what comes of it. */
  dropped: boolean;
}

const NO_BYTES = new Uint8Array(0);
const NOTHING = new Int32Array(0);
/** Images grow by so much. */
const IMAGE_STEP_BYTES = 256;

/** Behind them are zeros, as behind `from` there are in the image that it is compared to. */
function wordsUsed(words: Int32Array, from: number): number {
  let used = words.length;
  while (used > from && words[used - 1] === 0) used--;
  return used;
}

function hold(dirty: DirtySector, words: Int32Array): void {
  if (words.length > dirty.words.length) {
    const bytes = Math.min(SECTOR_BYTES, Math.ceil((words.length * 4) / IMAGE_STEP_BYTES) * IMAGE_STEP_BYTES);
    dirty.image = new Uint8Array(bytes);
    dirty.words = wordsOf(dirty.image);
  } else if (words.length < dirty.words.length) dirty.words.fill(0, words.length);
  dirty.words.set(words);
}

export class LoggedSectors {
  readonly #versions = new Map<SectorKey, number>();
  readonly #dirty = new Map<SectorKey, DirtySector>();
  readonly #writing = new Map<SectorKey, SectorWrite>();
  readonly #unflushed = new Map<SectorKey, UnflushedSector>();
  /** To be forgotten as soon as nothing of them is on its way. */
  readonly #forgotten = new Set<SectorKey>();
  #recorded: DirtySector[] = [];

  constructor(private readonly lossesOf: (nsd: NsdIndex) => number = () => 0) {}

  /** Read from its NSD, or newly allocated there; a read that began before a write of ours tells of the past. */
  learn(key: SectorKey, version: number): void {
    this.#forgotten.delete(key);
    const known = this.#versions.get(key);
    if (known === undefined || isVersionBefore(known, version)) this.#versions.set(key, version);
  }
  /** Of its last write, as far as this node knows. */
  version(key: SectorKey): number {
    return this.#versions.get(key) ?? 0;
  }
  knows(key: SectorKey): boolean {
    return this.#versions.has(key);
  }
  versionOf(key: SectorKey): number | undefined {
    return this.#versions.get(key);
  }
  /** What the log says of it is in place, durably. */
  isSettled(key: SectorKey): boolean {
    return !this.#dirty.has(key) && !this.#writing.has(key) && !this.#unflushed.has(key);
  }
  /** Out of memory, or somebody else's: nothing of it is dirty. */
  forget(key: SectorKey): void {
    if (this.#dirty.has(key) || this.#writing.has(key) || this.#unflushed.has(key)) this.#forgotten.add(key);
    else this.#versions.delete(key);
  }
  /** Freed: what it was is not written any more. */
  drop(key: SectorKey): void {
    const writing = this.#writing.get(key);
    if (writing !== undefined) writing.dropped = true;
    this.#dirty.delete(key);
    this.#unflushed.delete(key);
    this.#versions.delete(key);
    this.#forgotten.delete(key);
  }

  dirty(key: SectorKey): DirtySector | undefined {
    return this.#dirty.get(key);
  }
  /** What the sector says, where its NSD doesn't say so yet. */
  latest(key: SectorKey): Uint8Array | undefined {
    return (this.#dirty.get(key) ?? this.#writing.get(key)?.dirty)?.image;
  }
  /** What the sector should say, if its NSD, which has this version, has lost what was written; else undefined. */
  newest(key: SectorKey, version: number): Uint8Array | undefined {
    const unflushed = this.#unflushed.get(key);
    if (unflushed !== undefined && isVersionBefore(version, unflushed.version))
      return this.latest(key) ?? unflushed.dirty.image;
    const writing = this.#writing.get(key);
    if (writing?.dirty && isVersionBefore(version, writing.version)) return this.latest(key);
    const dirty = this.#dirty.get(key);
    return dirty?.byImage ? dirty.image : undefined;
  }
  /** Bytes of this version are of before what is in place by now: it was lost, and written again while they were read. */
  isPast(key: SectorKey, version: number): boolean {
    const known = this.#versions.get(key);
    return known !== undefined && isVersionBefore(version, known) && this.isSettled(key);
  }
  /** Since when the one longest dirty is; infinite when nothing is. */
  oldestMs(): number {
    // Entered in the order in which they became dirty.
    for (const { sinceMs } of this.#dirty.values()) return sinceMs;
    return Number.POSITIVE_INFINITY;
  }
  all(): IterableIterator<DirtySector> {
    return this.#dirty.values();
  }
  isWriting(key: SectorKey): boolean {
    return this.#writing.has(key);
  }
  /** Resolves when the write of it that is under way has ended, well or not. */
  writeEnded(key: SectorKey): Promise<void> | undefined {
    return this.#writing.get(key)?.ended.promise;
  }

  /**
   * Writes the record of a sector that is as `now` says, which may be shorter than a sector (the rest is zeros) and is copied. False: that is
   * nothing new. Then `appended`, in the same turn.
   */
  record(place: MetadataPlace, now: Uint8Array, nowMs: number, into: TransactionWriter): boolean {
    const key = keyOf(place);
    const base = this.#versions.get(key);
    invariant(base !== undefined, 'the version of a sector is known before it is changed');
    let dirty = this.#dirty.get(key);
    const full = dirty === undefined;
    const all = wordsOf(now);
    const words = all.subarray(0, wordsUsed(all, dirty?.words.length ?? 0));
    const raw = place.raw === true;
    const runCount = findRuns(dirty?.words ?? NOTHING, words, raw);
    if (dirty === undefined) {
      dirty = { key, place, image: NO_BYTES, words: NOTHING, first: 0, last: 0, sinceMs: nowMs };
      this.#dirty.set(key, dirty);
    } else if (runCount === 0) return false;
    into.runs({ nsd: place.nsd, sector: place.sector, base, full, raw }, now, runCount);
    hold(dirty, words);
    this.#recorded.push(dirty);
    return true;
  }

  /** The records made in this turn are in this transaction. */
  appended(sequence: number): void {
    for (const dirty of this.#recorded) {
      if (dirty.first === 0) dirty.first = sequence;
      dirty.last = sequence;
    }
    this.#recorded = [];
  }

  /** The image, or the page as it is in this turn, goes to its place. One write of a sector at a time. */
  beginWrite(place: MetadataPlace): SectorWrite {
    const key = keyOf(place);
    invariant(!this.#writing.has(key), `one write at a time of sector ${place.sector} of NSD ${place.nsd}`);
    const dirty = this.#dirty.get(key) ?? null;
    const version = nextSectorVersion(this.#versions.get(key) ?? 0);
    this.#dirty.delete(key);
    this.#versions.set(key, version);
    const losses = this.lossesOf(place.nsd);
    const write = { key, place, dirty, version, losses, ended: deferred<void>(), dropped: false };
    this.#writing.set(key, write);
    return write;
  }

  endWrite(write: SectorWrite, succeeded: boolean): void {
    const { dirty, key, version, losses, ended, dropped } = write;
    this.#writing.delete(key);
    ended.resolve();
    if (dropped) return;
    const before = this.#unflushed.get(key);
    if (dirty === null) {
      // What it says now may be later than the image; that is right only if this write is lost, and nobody has it to be written again.
      if (succeeded && before !== undefined) this.#unflushed.set(key, { dirty: before.dirty, version, losses });
      return;
    }
    if (!succeeded) {
      this.#again(dirty);
      return;
    }
    // Recovery needs what it would have needed, until the flush.
    if (before !== undefined) dirty.first = Math.min(dirty.first, before.dirty.first);
    this.#unflushed.set(key, { dirty, version, losses });
  }
  #again(dirty: DirtySector): void {
    const since = this.#dirty.get(dirty.key);
    if (since === undefined) this.#dirty.set(dirty.key, dirty);
    else since.first = Math.min(since.first, dirty.first);
  }

  /** No write in place is on its way to these any more. */
  async writesEnded(
    extents: readonly { readonly nsd: NsdIndex; readonly sector: number; readonly count: number }[],
  ): Promise<void> {
    for (const { ended, place } of [...this.#writing.values()])
      if (
        extents.some(
          ({ nsd, sector, count }) => nsd === place.nsd && sector <= place.sector && place.sector < sector + count,
        )
      )
        await ended.promise;
  }

  /** In place and not flushed, of these NSDs; to be handed to `flushed` after a flush of them. */
  unflushedOn(nsds: ReadonlySet<NsdIndex>): UnflushedSector[] {
    return [...this.#unflushed.values()].filter(({ dirty }) => nsds.has(dirty.place.nsd));
  }
  unflushedNsds(): Set<NsdIndex> {
    return new Set([...this.#unflushed.values()].map(({ dirty }) => dirty.place.nsd));
  }
  isUnflushed(key: SectorKey): boolean {
    return this.#unflushed.has(key);
  }
  /** Its bytes are not durable in place though nothing new is to be written: a flush is due, or what was lost is to be written again, or is on its way. */
  isUndurable(key: SectorKey): boolean {
    return this.#unflushed.has(key) || this.#dirty.get(key)?.byImage === true || this.isOnItsWay(key);
  }
  /** A write in place of what has records is under way. */
  isOnItsWay(key: SectorKey): boolean {
    return (this.#writing.get(key)?.dirty ?? null) !== null;
  }
  /** Sectors of a file in the page cache whose bytes an NSD may not have durably though their pages are clean. */
  undurable(ino: InodeNumber, range: { readonly start: number; readonly end: number }): SectorKey[] {
    const found: SectorKey[] = [];
    const look = ({ key, place: { paged } }: DirtySector): void => {
      if (paged?.ino === ino && range.start <= paged.offsetBytes && paged.offsetBytes < range.end) found.push(key);
    };
    for (const { dirty } of this.#unflushed.values()) look(dirty);
    for (const dirty of this.#dirty.values()) if (dirty.byImage) look(dirty);
    for (const { dirty } of this.#writing.values()) if (dirty !== null) look(dirty);
    return [...new Set(found)];
  }

  /**
   * A flush that began when these had been written has succeeded. Those that were lost before it are returned: dirty again, or on their way again with
   * what came later.
   */
  flushed(sectors: readonly UnflushedSector[]): SectorKey[] {
    const lost: SectorKey[] = [];
    for (const sector of sectors) {
      const { key, place } = sector.dirty;
      // Freed, or written anew meanwhile.
      if (this.#unflushed.get(key) !== sector) continue;
      this.#unflushed.delete(key);
      if (this.lossesOf(place.nsd) !== sector.losses) {
        lost.push(key);
        const newer = this.#writing.get(key)?.dirty ?? null;
        if (newer === null) {
          sector.dirty.byImage = true;
          this.#again(sector.dirty);
        } else newer.first = Math.min(newer.first, sector.dirty.first);
      } else if (this.#forgotten.delete(key)) this.forget(key);
    }
    return lost;
  }

  /** The first transaction that recovery would need; infinite when there is none. */
  needed(): number {
    let needed = Number.POSITIVE_INFINITY;
    for (const { first } of this.#dirty.values()) if (first > 0) needed = Math.min(needed, first);
    for (const { dirty } of this.#writing.values()) if (dirty !== null) needed = Math.min(needed, dirty.first);
    for (const { dirty } of this.#unflushed.values()) needed = Math.min(needed, dirty.first);
    return needed;
  }
}
