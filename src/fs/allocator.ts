/**
 * Allocation of sub-blocks: the regions that this node holds, and what is free in them.
 *
 * A region may be allocated from while its exclusive data token (on its sectors of the allocation map file) is pinned, and it
 * is pinned for one synchronous moment at a time, or while its own sectors are read. So a revoke of a region always ends, and an operation may wait for a region
 * with pins on files in hand: nobody who holds up a region waits for a file.
 * Invariant: the summary of a region is in `#held` only while no revoke of its token has been served since it was read.
 * A free sub-block reads as zeros: free-queue.ts sees to it for what is given back, and taking a region for what a dead node left.
 */
import type { PageView } from '../cache/page-cache-api.js';
import { invariant } from '../common/assert.js';
import { isDamage } from '../common/damage.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { copiesOf, firstCopy, mirrored, secondCopy } from '../nsd/copies.js';
import { durably } from './durable.js';
import { DISCARD_EXTENTS_MAX } from './free-queue.js';
import {
  ALLOCATION_MAP,
  type Extent,
  type Geometry,
  regionOf,
  regionRange,
  regionSectorRange,
  regionSectorsRange,
} from './layout.js';
import {
  bitmapAt,
  blockFree,
  countBits,
  fillBits,
  findRun,
  freeRuns,
  regionFree,
  setRegionFree,
} from './map-formats.js';
import { Mutex } from './mutex.js';
import { RegionFinder } from './space/region-finder.js';
import type { RegionReport } from './space/shipment.js';
import { type SettledPeers, Settling } from './space-peers.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

interface HeldRegion {
  readonly region: number;
  free: number;
  /** By NSD * regionBlocks + block: free sub-blocks, and the shortest run known not to be there. */
  readonly blockFree: Uint16Array;
  readonly runMissing: Uint16Array;
}

interface Wanted {
  readonly preferred: NsdIndex;
  readonly count: number;
  readonly copies: 1 | 2;
}

/** Low-discrepancy spread of nodes over the regions: neighbours in node id start far from each other. */
const GOLDEN = 0.6180339887498949;

export class Allocator {
  readonly #volume: Volume;
  readonly #held = new Map<number, HeldRegion>();
  readonly #acquiring = new Mutex();
  readonly #firstRegion: number;
  readonly #finder: RegionFinder;
  /** Being taken: its summary is right, and nothing is allocated from it yet. */
  #taking: HeldRegion | null = null;
  /** By copies. Nothing was found for so many: no reason to look again for what is only wished for. */
  readonly #scarce = new Map<number, { readonly untilMs: number; readonly count: number }>();
  /** By copies. Every region was looked through for `count` sub-blocks in a row after the others had answered so, and there were none. */
  readonly #full = new Map<number, { readonly mark: string; readonly count: number }>();

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#firstRegion = Math.floor(((volume.parts.nodeId * GOLDEN) % 1) * volume.geometry.regionCount);
    this.#finder = new RegionFinder(volume, this.#firstRegion);
  }

  /** The token of these sectors is leaving: nothing is allocated from their regions any more. */
  forget(range: { start: number; end: number }): void {
    for (const region of this.#held.keys()) {
      const sectors = regionRange(this.#volume.geometry, region);
      if (sectors.start < range.end && range.start < sectors.end) {
        this.#finder.left(region, this.#report(this.#held.get(region)!).free);
        this.#held.delete(region);
        this.#volume.counters.add('fs.regionsLost');
      }
    }
  }

  /** The allocation manager hears what others may want to know. */
  tellManager(): Promise<void> {
    return this.#finder.tell(this.#reports());
  }
  #reports(): RegionReport[] {
    return [...this.#held.values()].map((held) => this.#report(held));
  }
  #report({ region, free: subBlocks, blockFree, runMissing }: HeldRegion): RegionReport {
    let inRow = 0;
    for (let at = 0; at < blockFree.length; at++)
      inRow = Math.max(inRow, Math.min(blockFree[at]!, runMissing[at]! - 1));
    return { region, free: { subBlocks, inRow } };
  }

  get regionsHeld(): number {
    return this.#held.size;
  }
  /** Free sub-blocks by region, where this node knows better than the device. */
  heldFree(): ReadonlyMap<number, number> {
    return new Map([...this.#held].map(([region, held]) => [region, held.free]));
  }

  /**
   * A run of `count` sub-blocks inside one block. Blocks of a file go round over the NSDs; fragments are packed one behind the other.
   * @param urgently false: it would be good to have, and nobody else is troubled for it.
   * @throws {FsError} noSpace
   */
  allocate(ino: InodeNumber, block: number, count: number, urgently = true): Promise<Extent> {
    return this.#allocate(ino, { preferred: this.#preferred(ino, block), count, copies: 1 }, urgently);
  }
  /** The same for metadata and logs, with as many copies as the file system has of them. */
  allocateMetadata(ino: InodeNumber, block: number, count: number, urgently = true): Promise<Extent> {
    const copies = this.#volume.geometry.metadataCopies;
    return this.#allocate(ino, { preferred: this.#preferred(ino, block), count, copies }, urgently);
  }

  #preferred(ino: InodeNumber, block: number): NsdIndex {
    return nsdIndex((ino + block) % this.#volume.geometry.nsdCount);
  }

  async #allocate(ino: InodeNumber, wanted: Wanted, urgently: boolean): Promise<Extent> {
    const found = this.#tryHeld(wanted);
    if (found !== null) return found;
    return this.#acquiring.run(async () => {
      let asked: SettledPeers | null = null;
      for (let attempt = 0; ; attempt++) {
        const again = this.#tryHeld(wanted) ?? (await this.#waitHeld(wanted));
        if (again !== null) return again;
        const known = urgently ? this.#knownFull(wanted, asked) : this.#knownScarce(wanted);
        const looked = known ? 'full' : await this.#takeRegion(wanted, urgently);
        if (typeof looked === 'object') return looked;
        // What this node has freed but not yet given back counts before "full" is said; then what the others have.
        if (attempt < 3 && (await this.#volume.frees.reclaim())) continue;
        if (asked === null && urgently) {
          asked = await this.#volume.parts.peers.settle(Settling.space, this.#volume.settings.peersTimeoutMs);
          continue;
        }
        if (!known && looked === 'full' && asked !== null && asked.mark !== null)
          this.#full.set(wanted.copies, { mark: asked.mark, count: wanted.count });
        throw this.#noSpace(ino, wanted);
      }
    });
  }

  #knownFull({ count, copies }: Wanted, asked: SettledPeers | null): boolean {
    const full = this.#full.get(copies);
    if (full === undefined || count < full.count) return false;
    return asked === null || asked.mark === full.mark;
  }
  #knownScarce({ count, copies }: Wanted): boolean {
    const scarce = this.#scarce.get(copies);
    return scarce !== undefined && count >= scarce.count && this.#volume.clock.nowMs() < scarce.untilMs;
  }

  #noSpace(ino: InodeNumber, { count, copies }: Wanted): FsError {
    this.#volume.counters.add('fs.noSpace');
    const where = copies === 1 ? '' : ' at the same place of two NSDs';
    const detail = `the file system is full: no ${count} free sub-blocks of 4 KiB in a row${where}`;
    return new FsError('noSpace', { op: 'allocate', object: `inode ${ino}`, detail });
  }

  /** Makes an extent longer where it is. False: what follows is in use, or its region is not held. */
  tryExtend(extent: Extent, count: number): boolean {
    const { geometry } = this.#volume;
    const first = extent.sector % SUB_BLOCKS_PER_BLOCK;
    if (first + count > SUB_BLOCKS_PER_BLOCK) return false;
    const held = this.#held.get(regionOf(geometry, extent.sector));
    if (held === undefined) return false;
    const block = Math.floor(extent.sector / SUB_BLOCKS_PER_BLOCK) % geometry.regionBlocks;
    const more = count - extent.count;
    const copies = copiesOf(extent.nsd);
    if (copies.some((nsd) => held.blockFree[nsd * geometry.regionBlocks + block]! < more)) return false;
    if (copies.length === 1 && this.#volume.copyStates.stateOf(extent.nsd) !== 'up') return false;
    const done = this.#pinned(held, extent.nsd, (sectors) => {
      if (sectors.some((sector) => countBits(sector, block, first + extent.count, more, 0) !== more)) return false;
      this.#mark(held, sectors, extent.nsd, block, first + extent.count, more);
      return true;
    });
    return done === true;
  }

  /** In the map too, also if it is there already, but perhaps not durably: space that was promised before there was a log. */
  markUsed(extent: Extent): Promise<void> {
    return this.#setUsed(extent, 1);
  }
  /** What was allocated for a log that does not come to be: nobody has written there. */
  markFree(extent: Extent): Promise<void> {
    return this.#setUsed(extent, 0);
  }

  async #setUsed({ nsd, sector, count }: Extent, used: 0 | 1): Promise<void> {
    const volume = this.#volume;
    const { geometry } = volume;
    const region = regionOf(geometry, sector);
    const range = regionSectorsRange(geometry, region, nsd);
    const pins = await volume.pin([volume.dataItem(ALLOCATION_MAP, regionRange(geometry, region))], undefined);
    try {
      await volume.mapFile(ALLOCATION_MAP).withBytes(range, 'exclusive', (view) => {
        for (const copy of copiesOf(nsd)) {
          const { start } = regionSectorRange(geometry, region, copy);
          const bits = view.bytes(start, SECTOR_BYTES);
          const block = Math.floor(sector / SUB_BLOCKS_PER_BLOCK) % geometry.regionBlocks;
          const changed = countBits(bits, block, sector % SUB_BLOCKS_PER_BLOCK, count, used === 1 ? 0 : 1);
          fillBits(bits, block, sector % SUB_BLOCKS_PER_BLOCK, count, used);
          setRegionFree(bits, regionFree(bits) + (used === 1 ? -changed : changed));
          view.changed(start, SECTOR_BYTES);
          this.#held.delete(region);
        }
      });
    } finally {
      pins.release();
    }
  }

  /** Space was freed in a region: "full" may be wrong now. */
  freed(region: number, nsd: NsdIndex, block: number, count: number): void {
    this.#full.clear();
    this.#scarce.clear();
    const held = this.#held.get(region) ?? (this.#taking?.region === region ? this.#taking : undefined);
    if (held === undefined) {
      this.#finder.left(region, null);
      return;
    }
    this.#finder.moreIn(region);
    const at = nsd * this.#volume.geometry.regionBlocks + block;
    held.free += count;
    held.blockFree[at] = held.blockFree[at]! + count;
    held.runMissing[at] = SUB_BLOCKS_PER_BLOCK + 1;
  }

  #tryHeld(wanted: Wanted): Extent | null {
    for (const held of this.#held.values()) {
      if (held.free < wanted.count * wanted.copies) continue;
      for (const nsd of this.#homes(wanted)) {
        if (this.#pickBlock(held, nsd, wanted.count) === null) continue;
        const extent = this.#pinned(held, nsd, (sectors) => this.#carve(held, sectors, nsd, wanted.count));
        if (extent) return extent;
      }
    }
    return null;
  }

  /** Where it may be, what is best first: from the preferred NSD on; a second copy in another failure group. What is stale only if it must be (S5). */
  *#homes({ preferred, copies }: Wanted): Generator<NsdIndex> {
    const { nsdCount } = this.#volume.geometry;
    const isUp = (nsd: NsdIndex): boolean => this.#volume.copyStates.stateOf(nsd) === 'up';
    const nsds = Array.from({ length: nsdCount }, (_, i) => nsdIndex((preferred + i) % nsdCount));
    // Alone on an NSD that has to be brought up to date, it could not be: nobody would know what is free there.
    if (copies === 1) yield* nsds.filter(isUp);
    else {
      const late: NsdIndex[] = [];
      for (const first of nsds)
        for (const second of secondsFor(this.#volume.geometry, first)) {
          if (isUp(first) && isUp(second)) yield mirrored(first, second);
          else if (isUp(first) || isUp(second)) late.push(mirrored(first, second));
        }
      yield* late;
    }
  }

  /** For a whole block one that is wholly free; for a fragment one that is begun already, else a fresh one. */
  #pickBlock(held: HeldRegion, nsd: NsdIndex, count: number, tried?: ReadonlySet<number>): number | null {
    const { regionBlocks } = this.#volume.geometry;
    const first = firstCopy(nsd) * regionBlocks;
    const second = secondCopy(nsd);
    let fresh: number | null = null;
    for (let block = 0; block < regionBlocks; block++) {
      let free = held.blockFree[first + block]!;
      if (free < count || held.runMissing[first + block]! <= count) continue;
      if (second !== null) {
        const there = second * regionBlocks + block;
        if (held.blockFree[there]! < count || held.runMissing[there]! <= count || tried?.has(block)) continue;
        free = Math.min(free, held.blockFree[there]!);
      }
      if (free < SUB_BLOCKS_PER_BLOCK) return block;
      if (count === SUB_BLOCKS_PER_BLOCK) return block;
      fresh ??= block;
    }
    return fresh;
  }

  #carve(held: HeldRegion, sectors: readonly Uint8Array[], nsd: NsdIndex, count: number): Extent | null {
    const { regionBlocks } = this.#volume.geometry;
    const tried = new Set<number>();
    for (;;) {
      const block = this.#pickBlock(held, nsd, count, tried);
      if (block === null) return null;
      const first = findRun(usedInAny(sectors, block), block, count);
      if (first < 0) {
        if (sectors.length === 1) held.runMissing[nsd * regionBlocks + block] = count;
        tried.add(block);
        continue;
      }
      this.#mark(held, sectors, nsd, block, first, count);
      const base = (held.region * regionBlocks + block) * SUB_BLOCKS_PER_BLOCK;
      return { nsd, sector: base + first, count };
    }
  }

  /** On every copy, in one transaction. */
  #mark(
    held: HeldRegion,
    sectors: readonly Uint8Array[],
    nsd: NsdIndex,
    block: number,
    first: number,
    count: number,
  ): void {
    const { geometry, systemFiles, counters } = this.#volume;
    const transaction = new MetadataTransaction(this.#volume);
    for (const [index, copy] of copiesOf(nsd).entries()) {
      const sector = sectors[index]!;
      invariant(countBits(sector, block, first, count, 0) === count, 'only free sub-blocks are allocated');
      fillBits(sector, block, first, count, 1);
      setRegionFree(sector, regionFree(sector) - count);
      held.free -= count;
      const at = copy * geometry.regionBlocks + block;
      held.blockFree[at] = held.blockFree[at]! - count;
      const { start } = regionSectorRange(geometry, held.region, copy);
      transaction.sector(systemFiles.get(ALLOCATION_MAP)!, start, sector);
    }
    const base = (held.region * geometry.regionBlocks + block) * SUB_BLOCKS_PER_BLOCK;
    transaction.limbo([{ nsd, sector: base + first, count }]);
    transaction.commit();
    counters.add('fs.subBlocksAllocated', count);
  }

  /** The map's sectors of these copies, while their bytes are in hand; those that `use` took from are changed afterwards. */
  #use<T>(held: HeldRegion, nsd: NsdIndex, view: PageView, use: (sectors: readonly Uint8Array[]) => T): T {
    const starts = copiesOf(nsd).map((copy) => regionSectorRange(this.#volume.geometry, held.region, copy).start);
    const sectors = starts.map((start) => view.bytes(start, SECTOR_BYTES));
    const before = sectors.map(regionFree);
    const value = use(sectors);
    starts.forEach((start, index) => {
      if (regionFree(sectors[index]!) !== before[index]) view.changed(start, SECTOR_BYTES);
    });
    return value;
  }

  /** One synchronous moment with the region's token pinned and its sectors in hand; undefined when either can't be had at once. */
  #pinned<T>(held: HeldRegion, nsd: NsdIndex, use: (sectors: readonly Uint8Array[]) => T): T | undefined {
    const volume = this.#volume;
    const pins = volume.parts.tokens.tryPin([
      volume.dataItem(ALLOCATION_MAP, regionRange(volume.geometry, held.region)),
    ]);
    if (pins === null) return undefined;
    try {
      const range = regionSectorsRange(volume.geometry, held.region, nsd);
      const done = volume
        .mapFile(ALLOCATION_MAP)
        .tryWithBytes(range, 'exclusive', (view) => this.#use(held, nsd, view, use));
      return done?.value;
    } finally {
      pins.release();
    }
  }

  /** The same with waiting: the sector is being written out, or fell out of the cache, or the token is on its way elsewhere. */
  async #waitHeld(wanted: Wanted): Promise<Extent | null> {
    const volume = this.#volume;
    for (const held of [...this.#held.values()]) {
      if (held.free < wanted.count * wanted.copies) continue;
      for (const nsd of this.#homes(wanted)) {
        if (this.#held.get(held.region) !== held) break;
        if (this.#pickBlock(held, nsd, wanted.count) === null) continue;
        const pins = volume.parts.tokens.tryPin([
          volume.dataItem(ALLOCATION_MAP, regionRange(volume.geometry, held.region)),
        ]);
        if (pins === null) break;
        try {
          const extent = await this.#carveIn(held, nsd, wanted.count);
          if (extent !== null) return extent;
        } catch (error) {
          if (!isDamage(error)) throw error;
          this.#damaged(held.region, error);
        } finally {
          pins.release();
        }
      }
    }
    return null;
  }

  /** Nothing is allocated from it; what is in it can be read and written. */
  #damaged(region: number, error: FsError): void {
    this.#held.delete(region);
    this.#finder.left(region, { subBlocks: 0, inRow: 0 });
    this.#volume.counters.add('fs.regionsDamaged');
    this.#volume.parts.logger.error({ region, error: error.message }, 'a region of the allocation map is damaged');
  }

  /** With the region pinned; waits for its sectors. */
  async #carvePinned(held: HeldRegion, wanted: Wanted): Promise<Extent | null> {
    for (const nsd of this.#homes(wanted)) {
      if (this.#pickBlock(held, nsd, wanted.count) === null) continue;
      const extent = await this.#carveIn(held, nsd, wanted.count);
      if (extent !== null) return extent;
    }
    return null;
  }

  #carveIn(held: HeldRegion, nsd: NsdIndex, count: number): Promise<Extent | null> {
    const range = regionSectorsRange(this.#volume.geometry, held.region, nsd);
    return this.#volume
      .mapFile(ALLOCATION_MAP)
      .withBytes(range, 'exclusive', (view) =>
        this.#use(held, nsd, view, (sectors) => this.#carve(held, sectors, nsd, count)),
      );
  }

  /** Out of a further region, which it gets. `unsure`: there is nothing in those that could be had in time. */
  async #takeRegion(wanted: Wanted, urgently: boolean): Promise<Extent | 'full' | 'unsure'> {
    const found = await this.#finder.find(
      wanted,
      urgently,
      () => this.#reports(),
      async (region) => {
        const extent = await this.#attemptRegion(region, wanted);
        return extent === 'busy' ? null : extent;
      },
    );
    if (found === 'unknown') return this.#lookThrough(wanted);
    if (found !== 'none') return found;
    this.#looked(wanted);
    return 'full';
  }

  /** Only who has looked remembers: an answer out of memory doesn't make the memory last longer. */
  #looked({ copies, count }: Wanted): void {
    const { clock, settings } = this.#volume;
    this.#scarce.set(copies, { untilMs: clock.nowMs() + settings.scarceMemoryMs, count });
  }

  /** *busy*: it couldn't be had in time. */
  async #attemptRegion(region: number, wanted: Wanted): Promise<Extent | null | 'busy'> {
    if (this.#held.has(region)) return null;
    try {
      return await this.#tryRegion(region, wanted);
    } catch (error) {
      if (isDamage(error)) {
        this.#damaged(region, error);
        return null;
      }
      if (!FsError.is(error) || (error.reason !== 'tokenDeadline' && error.reason !== 'tokenRefused')) throw error;
      this.#volume.counters.add('fs.regionsBusy');
      return 'busy';
    }
  }

  /** All of them, one after the other: what is found is what there is. */
  async #lookThrough(wanted: Wanted): Promise<Extent | 'full' | 'unsure'> {
    const volume = this.#volume;
    let looked: 'full' | 'unsure' = 'full';
    const { regionCount } = volume.geometry;
    for (let i = 0; i < regionCount; i++) {
      const region = (this.#firstRegion + i) % regionCount;
      const extent = await this.#attemptRegion(region, wanted);
      if (extent === 'busy') looked = 'unsure';
      else if (extent !== null) return extent;
    }
    this.#looked(wanted);
    return looked;
  }

  /** What is wanted is taken under the same pin (T3): whoever waits for the region, or a server that is short of ranges, may call it back at once, every time. */
  async #tryRegion(region: number, wanted: Wanted): Promise<Extent | null> {
    const volume = this.#volume;
    const { geometry, settings } = volume;
    const range = regionRange(geometry, region);
    const pins = await volume.parts.tokens.acquire([volume.dataItem(ALLOCATION_MAP, range)], {
      timeoutMs: settings.regionTimeoutMs,
    });
    try {
      const held: HeldRegion = {
        region,
        free: 0,
        blockFree: new Uint16Array(geometry.nsdCount * geometry.regionBlocks),
        runMissing: new Uint16Array(geometry.nsdCount * geometry.regionBlocks).fill(SUB_BLOCKS_PER_BLOCK + 1),
      };
      await volume.mapFile(ALLOCATION_MAP).withBytes(range, 'shared', (view) => {
        for (let nsd = 0; nsd < geometry.nsdCount; nsd++) {
          const sector = view.bytes(range.start + nsd * SECTOR_BYTES, SECTOR_BYTES);
          for (let block = 0; block < geometry.regionBlocks; block++) {
            const free = blockFree(sector, block);
            held.blockFree[nsd * geometry.regionBlocks + block] = free;
            held.free += free;
          }
        }
        // In the same turn: what is freed from here on is counted.
        this.#taking = held;
      });
      if (held.free < wanted.count * wanted.copies || !this.#couldServe(held, wanted)) {
        this.#finder.left(region, this.#report(held).free);
        return null;
      }
      await this.#clearFree(region, range.start);
      this.#held.set(region, held);
      volume.counters.add('fs.regionsTaken');
      return await this.#carvePinned(held, wanted);
    } finally {
      this.#taking = null;
      pins.release();
    }
  }

  /**
   * What is free reads as zeros, also where a node died that had written to sub-blocks of this region and had not made its
   * allocations durable: nobody points to them, and whoever gets them next must not find its bytes there. Nobody else can
   * allocate from the region meanwhile: its token is pinned.
   */
  async #clearFree(region: number, start: number): Promise<void> {
    const { geometry, parts } = this.#volume;
    const extents: { nsd: NsdIndex; sector: number; sectorCount: number }[] = [];
    for (let index = 0; index < geometry.nsdCount; index++) {
      // Whoever brings it up to date does that.
      if (this.#volume.copyStates.stateOf(nsdIndex(index)) === 'stale') continue;
      const at = start + index * SECTOR_BYTES;
      const map = await this.#volume
        .mapFile(ALLOCATION_MAP)
        .withBytes({ start: at, end: at + SECTOR_BYTES }, 'shared', (view) => view.bytes(at, SECTOR_BYTES).slice());
      const first = region * geometry.regionBlocks * SUB_BLOCKS_PER_BLOCK;
      for (const { from, count } of freeRuns(map, geometry.regionBlocks))
        extents.push({ nsd: nsdIndex(index), sector: first + from, sectorCount: count });
    }
    await durably(parts.nsds, [...new Set(extents.map(({ nsd }) => nsd))], 'region', async () => {
      for (let at = 0; at < extents.length; at += DISCARD_EXTENTS_MAX)
        await parts.nsds.discard(extents.slice(at, at + DISCARD_EXTENTS_MAX));
    });
  }

  #couldServe(held: HeldRegion, wanted: Wanted): boolean {
    for (const nsd of this.#homes(wanted)) if (this.#pickBlock(held, nsd, wanted.count) !== null) return true;
    return false;
  }
}

/** The NSDs that may have the second copy: of another failure group, if there is one. */
export function secondsFor({ nsdCount, failureGroups }: Geometry, first: NsdIndex): NsdIndex[] {
  const others = Array.from({ length: nsdCount - 1 }, (_, i) => nsdIndex((first + 1 + i) % nsdCount));
  const elsewhere = others.filter((nsd) => failureGroups[nsd] !== failureGroups[first]);
  return elsewhere.length > 0 ? elsewhere : others;
}

/** The sector of the map, or one in which the bits of this block are set that are set in either. */
function usedInAny(sectors: readonly Uint8Array[], block: number): Uint8Array {
  if (sectors.length === 1) return sectors[0]!;
  const used = new Uint8Array(SECTOR_BYTES);
  for (const sector of sectors) for (let at = bitmapAt(block); at < bitmapAt(block + 1); at++) used[at]! |= sector[at]!;
  return used;
}
