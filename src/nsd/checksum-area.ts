import { invariant } from '../common/assert.js';
import type { Counters } from '../common/counters.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { Checksums } from './checksums.js';
import type { BlockDevice } from './nsd-api.js';
import {
  type ChecksumEntries,
  decodeChecksumSector,
  ENTRIES_PER_CHECKSUM_SECTOR,
  encodeChecksumSector,
  isLost,
  newEntries,
  readsAsZeros,
} from './nsd-layout.js';

/**
 * The checksum area of one open NSD: owns the cached checksum sectors, their loading, and the grouping of their writes.
 *
 * Invariants: an entry in memory is changed only after the data it speaks of is on the device, by the holder of that sector's
 * exclusive lock; a commit resolves only after a checksum sector that holds the entry is on the device; at most one
 * write of a checksum sector is under way at a time, made from a snapshot, so that the device never gets a mixed one.
 * Cached sectors are bounded, least recently used first out; those in use are never dropped (their number is bounded by the
 * operations in flight).
 *
 * Grouping: a commit waits for the data writes to the same checksum sector that were under way when it came, then one write carries
 * all of them. Writes that come later don't hold it up.
 *
 * Fault model: a torn checksum sector has each of its pieces old or new (nsd-layout.ts). A piece that can't be believed (corrupt,
 * misdirected), read twice to be sure, counts its entries as lost: reads report checksumMismatch, writes heal sector by sector. A failing device read is not cached. After a failed write the
 * entries stay as they are (they match the data on the device), and the next write of the sector carries them.
 */
interface Group {
  readonly index: number;
  entries: ChecksumEntries;
  /** Operations that use the group now; it stays in memory while there are any. */
  users: number;
  loading: Promise<void> | null;
  /** Data writes under way, by sequence, ascending. */
  readonly dataWrites: Set<number>;
  waiters: Deferred<void>[];
  /** The first waiter waits for data writes up to this sequence. */
  barrier: number;
  writing: boolean;
}

/** A group held by an operation. */
export interface ChecksumGroup {
  readonly index: number;
  readonly entries: ChecksumEntries;
}

export class ChecksumArea {
  readonly #groups = new Map<number, Group>();
  readonly #freeBuffers: PoolSegment[] = [];
  readonly #bufferWaiters: Deferred<PoolSegment>[] = [];
  #sequence = 0;

  constructor(
    private readonly parts: {
      readonly device: BlockDevice;
      readonly pool: PagePool;
      readonly checksums: Checksums;
      readonly counters: Counters;
      /** Of the NSD. */
      readonly uuid: Uint8Array;
      /** This area's own piece of the pool: waiting for a buffer then never waits for anyone's request. */
      readonly staging: PoolSegment;
      readonly cachedSectorsMax: number;
    },
  ) {
    const { staging } = parts;
    for (let at = 0; at + SECTOR_BYTES <= staging.lengthBytes; at += SECTOR_BYTES)
      this.#freeBuffers.push({ offsetBytes: staging.offsetBytes + at, lengthBytes: SECTOR_BYTES });
    invariant(this.#freeBuffers.length > 0, 'checksum area without staging space');
  }

  get cachedSectors(): number {
    return this.#groups.size;
  }

  /** Loads and holds the groups of data sectors [start, end). @throws {FsError} deviceError: then none is held. */
  async hold(start: number, end: number): Promise<ChecksumGroup[]> {
    const first = Math.floor(start / ENTRIES_PER_CHECKSUM_SECTOR);
    const last = Math.floor((end - 1) / ENTRIES_PER_CHECKSUM_SECTOR);
    const held: Group[] = [];
    try {
      for (let index = first; index <= last; index++) {
        const group = this.#group(index);
        group.users++;
        held.push(group);
      }
      for (const group of held) if (group.loading !== null) await group.loading;
    } catch (error) {
      this.drop(held);
      throw error;
    }
    return held;
  }

  drop(groups: readonly ChecksumGroup[]): void {
    for (const group of groups as readonly Group[]) {
      group.users--;
      invariant(group.users >= 0, 'checksum group dropped twice');
    }
    this.#evict();
  }

  /** A data write to these groups begins; commits of others wait for its end, if they come meanwhile. */
  beginData(groups: readonly ChecksumGroup[]): number {
    const sequence = ++this.#sequence;
    for (const group of groups as readonly Group[]) group.dataWrites.add(sequence);
    return sequence;
  }

  endData(groups: readonly ChecksumGroup[], sequence: number): void {
    for (const group of groups as readonly Group[]) {
      group.dataWrites.delete(sequence);
      this.#advance(group);
    }
  }

  /** Resolves when the groups' entries, as they are now, are on the device. Before `endData` of the same write. */
  async commit(groups: readonly ChecksumGroup[]): Promise<void> {
    const results = await Promise.allSettled(
      (groups as readonly Group[]).map((group) => {
        const waiter = deferred<void>();
        if (group.waiters.length === 0) group.barrier = this.#sequence;
        group.waiters.push(waiter);
        return waiter.promise;
      }),
    );
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  #group(index: number): Group {
    const known = this.#groups.get(index);
    if (known !== undefined) {
      // Map order is the order of use.
      this.#groups.delete(index);
      this.#groups.set(index, known);
      return known;
    }
    const group: Group = {
      index,
      entries: newEntries(),
      users: 0,
      loading: null,
      dataWrites: new Set(),
      waiters: [],
      barrier: 0,
      writing: false,
    };
    this.#groups.set(index, group);
    group.loading = this.#load(group).then(
      () => {
        group.loading = null;
      },
      (error: unknown) => {
        if (this.#groups.get(index) === group) this.#groups.delete(index);
        throw error;
      },
    );
    // Whoever holds the group awaits it; nobody may be left when all of them failed earlier.
    group.loading.catch(() => undefined);
    return group;
  }

  async #load(group: Group): Promise<void> {
    const { device, pool, checksums, counters, uuid } = this.parts;
    const buffer = await this.#takeBuffer();
    try {
      for (let attempt = 0; attempt < 2; attempt++) {
        await device.read((1 + group.index) * SECTOR_BYTES, buffer);
        counters.add('nsd.checksumSectorReads');
        const place = { nsd: uuid, index: group.index };
        const { entries, lostPieces } = decodeChecksumSector(place, checksums, pool.bytes, buffer.offsetBytes);
        group.entries = entries;
        if (lostPieces === 0) return;
        if (attempt > 0) counters.add('nsd.checksumPiecesLost', lostPieces);
      }
    } finally {
      this.#giveBuffer(buffer);
    }
  }

  #advance(group: Group): void {
    if (group.writing || group.waiters.length === 0) return;
    const [oldest] = group.dataWrites;
    if (oldest !== undefined && oldest <= group.barrier) return;
    group.writing = true;
    void this.#write(group);
  }

  async #write(group: Group): Promise<void> {
    const { device, pool, checksums, counters, uuid } = this.parts;
    const buffer = await this.#takeBuffer();
    const batch = group.waiters;
    group.waiters = [];
    let failure: { readonly error: unknown } | null = null;
    try {
      const place = { nsd: uuid, index: group.index };
      encodeChecksumSector(place, group.entries, checksums, pool.bytes, buffer.offsetBytes);
      await device.write((1 + group.index) * SECTOR_BYTES, buffer);
      counters.add('nsd.checksumSectorWrites');
    } catch (error) {
      failure = { error };
    }
    this.#giveBuffer(buffer);
    group.writing = false;
    for (const waiter of batch) {
      if (failure === null) waiter.resolve();
      else waiter.reject(failure.error);
    }
    this.#advance(group);
    this.#evict();
  }

  #evict(): void {
    if (this.#groups.size <= this.parts.cachedSectorsMax) return;
    for (const [index, group] of this.#groups) {
      if (group.users > 0 || group.loading !== null || group.writing || group.waiters.length > 0) continue;
      this.#groups.delete(index);
      if (this.#groups.size <= this.parts.cachedSectorsMax) return;
    }
  }

  #takeBuffer(): PoolSegment | Promise<PoolSegment> {
    const free = this.#freeBuffers.pop();
    if (free !== undefined) return free;
    const waiter = deferred<PoolSegment>();
    this.#bufferWaiters.push(waiter);
    return waiter.promise;
  }
  #giveBuffer(buffer: PoolSegment): void {
    const waiter = this.#bufferWaiters.shift();
    if (waiter === undefined) this.#freeBuffers.push(buffer);
    else waiter.resolve(buffer);
  }
}

/** The version word of a data sector, in the groups that were held for a range starting in group `firstGroup`. */
export function wordOf(groups: readonly ChecksumGroup[], sector: number): number {
  const [entries, at] = locate(groups, sector);
  return entries[at + 1]!;
}
export function entryOf(groups: readonly ChecksumGroup[], sector: number): { crc: number; word: number } {
  const [entries, at] = locate(groups, sector);
  return { crc: entries[at]!, word: entries[at + 1]! };
}
export function setEntry(groups: readonly ChecksumGroup[], sector: number, crc: number, word: number): void {
  invariant(!isLost(word), 'a lost entry is never written on purpose');
  const [entries, at] = locate(groups, sector);
  entries[at] = crc;
  entries[at + 1] = word;
}
/**
 * Data sectors [start, end), which the groups were held for, group by group: the group's entries, the place of the run's first crc
 * among them, the run's length, and how many sectors of the range come before it. For what is done to hundreds of sectors at once.
 */
export function forEachRun(
  groups: readonly ChecksumGroup[],
  start: number,
  end: number,
  use: (entries: ChecksumEntries, at: number, count: number, before: number) => void,
): void {
  for (let sector = start; sector < end; ) {
    const [entries, at] = locate(groups, sector);
    const count = Math.min(end - sector, ENTRIES_PER_CHECKSUM_SECTOR - at / 2);
    use(entries, at, count, sector - start);
    sector += count;
  }
}
function locate(groups: readonly ChecksumGroup[], sector: number): [ChecksumEntries, number] {
  const index = Math.floor(sector / ENTRIES_PER_CHECKSUM_SECTOR);
  const group = groups[index - groups[0]!.index];
  invariant(group !== undefined && group.index === index, 'checksum group is not held');
  return [group.entries, (sector - index * ENTRIES_PER_CHECKSUM_SECTOR) * 2];
}

/** How many of the sectors [start, end) read as zeros. */
export function zerosAmong(groups: readonly ChecksumGroup[], start: number, end: number): number {
  let zeros = 0;
  forEachRun(groups, start, end, (entries, at, count) => {
    for (let i = 0; i < count; i++) if (readsAsZeros(entries[at + 2 * i + 1]!)) zeros++;
  });
  return zeros;
}
