/**
 * Allocation of sub-blocks: the regions that this node holds, and what is free in them.
 *
 * A region may be allocated from while its exclusive data token (on its sectors of the allocation map file) is pinned, and it
 * is pinned for one synchronous moment at a time, or while its own sectors are read. So a revoke of a region always ends, and an operation may wait for a region
 * with pins on files in hand: nobody who holds up a region waits for a file.
 * Invariant: the summary of a region is in `#held` only while no revoke of its token has been served since it was read.
 * A free sub-block reads as zeros: free-queue.ts sees to it for what is given back, and taking a region for what a dead node left.
 */
import { invariant } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { DISCARD_EXTENTS_MAX } from './free-queue.js';
import { ALLOCATION_MAP, type Extent, regionOf, regionRange, regionSectorRange } from './layout.js';
import { blockFree, countBits, fillBits, findRun, freeRuns, regionFree, setRegionFree } from './map-formats.js';
import { Mutex } from './mutex.js';
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

/** Low-discrepancy spread of nodes over the regions: neighbours in node id start far from each other. */
const GOLDEN = 0.6180339887498949;

export class Allocator {
  readonly #volume: Volume;
  readonly #held = new Map<number, HeldRegion>();
  readonly #acquiring = new Mutex();
  readonly #firstRegion: number;
  /** Nothing was found for so many: no reason to look again for what is only wished for. */
  #scarce: { readonly untilMs: number; readonly count: number } | null = null;
  /** Every region was looked through for `count` sub-blocks in a row after the others had answered so, and there were none. */
  #full: { readonly mark: string; readonly count: number } | null = null;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#firstRegion = Math.floor(((volume.parts.nodeId * GOLDEN) % 1) * volume.geometry.regionCount);
  }

  /** The token of these sectors is leaving: nothing is allocated from their regions any more. */
  forget(range: { start: number; end: number }): void {
    for (const region of this.#held.keys()) {
      const sectors = regionRange(this.#volume.geometry, region);
      if (sectors.start < range.end && range.start < sectors.end) this.#held.delete(region);
    }
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
  async allocate(ino: InodeNumber, block: number, count: number, urgently = true): Promise<Extent> {
    const preferred = nsdIndex((ino + block) % this.#volume.geometry.nsdCount);
    const found = this.#tryHeld(preferred, count);
    if (found !== null) return found;
    return this.#acquiring.run(async () => {
      let asked: SettledPeers | null = null;
      for (let attempt = 0; ; attempt++) {
        const again = this.#tryHeld(preferred, count) ?? (await this.#waitHeld(preferred, count));
        if (again !== null) return again;
        const known = urgently ? this.#knownFull(count, asked) : this.#knownScarce(count);
        const looked = known ? 'full' : await this.#takeRegion(preferred, count);
        if (typeof looked === 'object') return looked;
        // What this node has freed but not yet given back counts before "full" is said; then what the others have.
        if (attempt < 3 && (await this.#volume.frees.reclaim())) continue;
        if (asked === null && urgently) {
          asked = await this.#volume.parts.peers.settle(Settling.space, this.#volume.settings.peersTimeoutMs);
          continue;
        }
        if (!known && looked === 'full' && asked !== null && asked.mark !== null)
          this.#full = { mark: asked.mark, count };
        throw this.#noSpace(ino, count);
      }
    });
  }

  #knownFull(count: number, asked: SettledPeers | null): boolean {
    if (this.#full === null || count < this.#full.count) return false;
    return asked === null || asked.mark === this.#full.mark;
  }
  #knownScarce(count: number): boolean {
    return this.#scarce !== null && count >= this.#scarce.count && this.#volume.clock.nowMs() < this.#scarce.untilMs;
  }

  #noSpace(ino: InodeNumber, count: number): FsError {
    this.#volume.counters.add('fs.noSpace');
    const detail = `the file system is full: no ${count} free sub-blocks of 4 KiB in a row`;
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
    if (held.blockFree[extent.nsd * geometry.regionBlocks + block]! < more) return false;
    const done = this.#pinned(held, extent.nsd, (sector) => {
      if (countBits(sector, block, first + extent.count, more, 0) !== more) return false;
      this.#mark(held, sector, extent.nsd, block, first + extent.count, more);
      return true;
    });
    return done === true;
  }

  /** In the map too, if it isn't: space that was promised before there was a log. */
  async markUsed({ nsd, sector, count }: Extent): Promise<void> {
    const volume = this.#volume;
    const { geometry } = volume;
    const region = regionOf(geometry, sector);
    const range = regionSectorRange(geometry, region, nsd);
    const pins = await volume.pin([volume.dataItem(ALLOCATION_MAP, regionRange(geometry, region))], undefined);
    try {
      await volume.mapFile(ALLOCATION_MAP).withBytes(range, 'exclusive', (view) => {
        const bits = view.bytes(range.start, SECTOR_BYTES);
        const block = Math.floor(sector / SUB_BLOCKS_PER_BLOCK) % geometry.regionBlocks;
        const free = countBits(bits, block, sector % SUB_BLOCKS_PER_BLOCK, count, 0);
        if (free === 0) return;
        fillBits(bits, block, sector % SUB_BLOCKS_PER_BLOCK, count, 1);
        setRegionFree(bits, regionFree(bits) - free);
        view.changed(range.start, SECTOR_BYTES);
        this.#held.delete(region);
      });
    } finally {
      pins.release();
    }
  }

  /** Space was freed in a region: "full" may be wrong now. */
  freed(region: number, nsd: NsdIndex, block: number, count: number): void {
    this.#full = null;
    this.#scarce = null;
    const held = this.#held.get(region);
    if (held === undefined) return;
    const at = nsd * this.#volume.geometry.regionBlocks + block;
    held.free += count;
    held.blockFree[at] = held.blockFree[at]! + count;
    held.runMissing[at] = SUB_BLOCKS_PER_BLOCK + 1;
  }

  #tryHeld(preferred: NsdIndex, count: number): Extent | null {
    for (const held of this.#held.values()) {
      if (held.free < count) continue;
      const found = this.#search(held, preferred, count, (nsd, use) => this.#pinned(held, nsd, use));
      if (found !== null) return found;
    }
    return null;
  }

  /** Walks the NSDs from the preferred one on; `enter` gives the sector's bytes, or undefined when they can't be had now. */
  #search(
    held: HeldRegion,
    preferred: NsdIndex,
    count: number,
    enter: (nsd: NsdIndex, use: (sector: Uint8Array) => Extent | null) => Extent | null | undefined,
  ): Extent | null {
    const { nsdCount } = this.#volume.geometry;
    for (let i = 0; i < nsdCount; i++) {
      const nsd = nsdIndex((preferred + i) % nsdCount);
      if (this.#pickBlock(held, nsd, count) === null) continue;
      const extent = enter(nsd, (sector) => this.#carve(held, sector, nsd, count));
      if (extent) return extent;
    }
    return null;
  }

  /** For a whole block one that is wholly free; for a fragment one that is begun already, else a fresh one. */
  #pickBlock(held: HeldRegion, nsd: NsdIndex, count: number): number | null {
    const { regionBlocks } = this.#volume.geometry;
    let fresh: number | null = null;
    for (let block = 0; block < regionBlocks; block++) {
      const at = nsd * regionBlocks + block;
      const free = held.blockFree[at]!;
      if (free < count || held.runMissing[at]! <= count) continue;
      if (free < SUB_BLOCKS_PER_BLOCK) return block;
      if (count === SUB_BLOCKS_PER_BLOCK) return block;
      fresh ??= block;
    }
    return fresh;
  }

  #carve(held: HeldRegion, sector: Uint8Array, nsd: NsdIndex, count: number): Extent | null {
    const { regionBlocks } = this.#volume.geometry;
    for (;;) {
      const block = this.#pickBlock(held, nsd, count);
      if (block === null) return null;
      const first = findRun(sector, block, count);
      if (first < 0) {
        held.runMissing[nsd * regionBlocks + block] = count;
        continue;
      }
      this.#mark(held, sector, nsd, block, first, count);
      const base = (held.region * regionBlocks + block) * SUB_BLOCKS_PER_BLOCK;
      return { nsd, sector: base + first, count };
    }
  }

  #mark(held: HeldRegion, sector: Uint8Array, nsd: NsdIndex, block: number, first: number, count: number): void {
    invariant(countBits(sector, block, first, count, 0) === count, 'only free sub-blocks are allocated');
    fillBits(sector, block, first, count, 1);
    setRegionFree(sector, regionFree(sector) - count);
    held.free -= count;
    const at = nsd * this.#volume.geometry.regionBlocks + block;
    held.blockFree[at] = held.blockFree[at]! - count;
    const { geometry, systemFiles, counters } = this.#volume;
    const transaction = new MetadataTransaction(this.#volume);
    const base = (held.region * geometry.regionBlocks + block) * SUB_BLOCKS_PER_BLOCK;
    transaction.sector(systemFiles.get(ALLOCATION_MAP)!, regionSectorRange(geometry, held.region, nsd).start, sector);
    transaction.limbo([{ nsd, sector: base + first, count }]);
    transaction.commit();
    counters.add('fs.subBlocksAllocated', count);
  }

  /** One synchronous moment with the region's token pinned and its sector in hand; undefined when either can't be had at once. */
  #pinned<T>(held: HeldRegion, nsd: NsdIndex, use: (sector: Uint8Array) => T): T | undefined {
    const volume = this.#volume;
    const { start } = regionSectorRange(volume.geometry, held.region, nsd);
    const range = { start, end: start + SECTOR_BYTES };
    const pins = volume.parts.tokens.tryPin([
      volume.dataItem(ALLOCATION_MAP, regionRange(volume.geometry, held.region)),
    ]);
    if (pins === null) return undefined;
    try {
      const done = volume.mapFile(ALLOCATION_MAP).tryWithBytes(range, 'exclusive', (view) => {
        const sector = view.bytes(start, SECTOR_BYTES);
        const before = regionFree(sector);
        const value = use(sector);
        if (regionFree(sector) !== before) view.changed(start, SECTOR_BYTES);
        return value;
      });
      return done?.value;
    } finally {
      pins.release();
    }
  }

  /** The same with waiting: the sector is being written out, or fell out of the cache, or the token is on its way elsewhere. */
  async #waitHeld(preferred: NsdIndex, count: number): Promise<Extent | null> {
    const volume = this.#volume;
    for (const held of [...this.#held.values()]) {
      if (held.free < count) continue;
      for (let i = 0; i < volume.geometry.nsdCount; i++) {
        const nsd = nsdIndex((preferred + i) % volume.geometry.nsdCount);
        if (this.#held.get(held.region) !== held) break;
        if (this.#pickBlock(held, nsd, count) === null) continue;
        const pins = volume.parts.tokens.tryPin([
          volume.dataItem(ALLOCATION_MAP, regionRange(volume.geometry, held.region)),
        ]);
        if (pins === null) break;
        try {
          const extent = await this.#carveIn(held, nsd, count);
          if (extent !== null) return extent;
        } finally {
          pins.release();
        }
      }
    }
    return null;
  }

  /** With the region pinned; waits for its sectors. */
  async #carvePinned(held: HeldRegion, preferred: NsdIndex, count: number): Promise<Extent | null> {
    const { nsdCount } = this.#volume.geometry;
    for (let i = 0; i < nsdCount; i++) {
      const nsd = nsdIndex((preferred + i) % nsdCount);
      if (this.#pickBlock(held, nsd, count) === null) continue;
      const extent = await this.#carveIn(held, nsd, count);
      if (extent !== null) return extent;
    }
    return null;
  }

  #carveIn(held: HeldRegion, nsd: NsdIndex, count: number): Promise<Extent | null> {
    const range = regionSectorRange(this.#volume.geometry, held.region, nsd);
    return this.#volume.mapFile(ALLOCATION_MAP).withBytes(range, 'exclusive', (view) => {
      const carved = this.#carve(held, view.bytes(range.start, SECTOR_BYTES), nsd, count);
      if (carved !== null) view.changed(range.start, SECTOR_BYTES);
      return carved;
    });
  }

  /** Out of a further region, which it gets. `unsure`: there is nothing in those that could be had in time. */
  async #takeRegion(preferred: NsdIndex, count: number): Promise<Extent | 'full' | 'unsure'> {
    const volume = this.#volume;
    let looked: 'full' | 'unsure' = 'full';
    const { regionCount } = volume.geometry;
    for (let i = 0; i < regionCount; i++) {
      const region = (this.#firstRegion + i) % regionCount;
      if (this.#held.has(region)) continue;
      try {
        const extent = await this.#tryRegion(region, preferred, count);
        if (extent !== null) return extent;
      } catch (error) {
        if (!FsError.is(error) || (error.reason !== 'tokenDeadline' && error.reason !== 'tokenRefused')) throw error;
        volume.counters.add('fs.regionsBusy');
        looked = 'unsure';
      }
    }
    // Only who has looked remembers: an answer out of memory doesn't make the memory last longer.
    this.#scarce = { untilMs: volume.clock.nowMs() + volume.settings.scarceMemoryMs, count };
    return looked;
  }

  /** What is wanted is taken under the same pin (T3): whoever waits for the region, or a server that is short of ranges, may call it back at once, every time. */
  async #tryRegion(region: number, preferred: NsdIndex, count: number): Promise<Extent | null> {
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
      });
      if (held.free < count || !this.#couldServe(held, count)) return null;
      await this.#clearFree(region, range.start);
      this.#held.set(region, held);
      volume.counters.add('fs.regionsTaken');
      return await this.#carvePinned(held, preferred, count);
    } finally {
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
      const at = start + index * SECTOR_BYTES;
      const map = await this.#volume
        .mapFile(ALLOCATION_MAP)
        .withBytes({ start: at, end: at + SECTOR_BYTES }, 'shared', (view) => view.bytes(at, SECTOR_BYTES).slice());
      const first = region * geometry.regionBlocks * SUB_BLOCKS_PER_BLOCK;
      for (const { from, count } of freeRuns(map, geometry.regionBlocks))
        extents.push({ nsd: nsdIndex(index), sector: first + from, sectorCount: count });
    }
    for (let at = 0; at < extents.length; at += DISCARD_EXTENTS_MAX)
      await parts.nsds.discard(extents.slice(at, at + DISCARD_EXTENTS_MAX));
  }

  #couldServe(held: HeldRegion, count: number): boolean {
    for (let nsd = 0; nsd < this.#volume.geometry.nsdCount; nsd++)
      if (this.#pickBlock(held, nsdIndex(nsd), count) !== null) return true;
    return false;
  }
}
