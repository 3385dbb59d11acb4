/**
 * Sub-blocks on their way back to the allocation map.
 *
 * An extent comes here after the record that gives it up was logged, and after the last transfer to or from it has ended. Then, in this
 * order: the log is forced as far as that record (S6), discarded on its NSD (so that a free sub-block reads as zeros, and an unwritten part of a block that is
 * allocated later never shows what somebody else had there), then its bits are cleared under the region's token. Until then
 * nobody can allocate it. What a dying node has in this queue is in limbo in its log: recovery frees it.
 */
import type { NsdIndex } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { copiesOf } from '../nsd/copies.js';
import { groupBy } from './group.js';
import type { Inode } from './inode.js';
import { ALLOCATION_MAP, type Extent, regionOf, regionRange, regionSectorRange, regionSectorsRange } from './layout.js';
import { countBits, fillBits, regionFree, setRegionFree } from './map-formats.js';
import { Mutex } from './mutex.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

export const DISCARD_EXTENTS_MAX = 256;

export class FreeQueue {
  readonly #volume: Volume;
  #extents: Extent[] = [];
  /** The transaction that gave up the last of them. */
  #sequence = 0;
  readonly #draining = new Mutex();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  get length(): number {
    return this.#extents.length;
  }

  /** `sequence`: the transaction since which no record needs them any more; it is durable before they are thrown away (S6). */
  add(extents: readonly Extent[], sequence = 0): void {
    for (const extent of extents) this.#extents.push(extent);
    this.#sequence = Math.max(this.#sequence, sequence);
  }

  /** Of an inode, when the last transfer to or from it has ended; who waited for that with its tokens would hold up whoever asks for them. */
  addOf(inode: Inode, extents: readonly Extent[], sequence: number): void {
    if (extents.length > 0) void inode.transfersEnded().then(() => this.add(extents, sequence));
  }

  /** Before an operation that will free more, with nothing pinned: keeps the queue bounded. */
  async makeRoom(): Promise<void> {
    if (this.#extents.length >= this.#volume.settings.freeQueueMax) await this.drain();
  }

  /** Gives back what waits. Regions that can't be had in time keep their extents in the queue; they are tried again. */
  async drain(): Promise<number> {
    return this.#draining.run(async () => {
      if (this.#extents.length > 0) await this.#volume.log?.force(this.#sequence);
      const extents = this.#extents;
      this.#extents = [];
      let freed = 0;
      const { regionCount } = this.#volume.geometry;
      // Per NSD (or two) and region: what is one sector of the map, or one of each copy, is changed in one moment, wholly or not at all.
      for (const some of groupBy(
        extents,
        (e) => e.nsd * regionCount + regionOf(this.#volume.geometry, e.sector),
      ).values()) {
        try {
          await this.#discard(some);
          freed += await this.#volume.innerChange(() => this.#clear(some));
        } catch (error) {
          this.#extents.push(...some);
          this.#volume.counters.add('fs.freesDelayed', some.length);
          this.#volume.parts.logger.warn({ error: String(error) }, 'freed space could not be given back yet');
        }
      }
      return freed;
    });
  }

  /** Before "no space" is said: whatever this node has freed goes back now. True when that made room. */
  async reclaim(): Promise<boolean> {
    await this.#volume.orphans.attempted(this.#volume.settings.regionTimeoutMs);
    await this.#volume.inodes.writeOutFreeing();
    return this.#extents.length > 0 && (await this.drain()) > 0;
  }

  /** Space that a node which is gone had in limbo, of one sector of the map. `also`: what belongs into the same transaction. */
  async giveBack(extents: readonly Extent[], also: (transaction: MetadataTransaction) => void): Promise<void> {
    await this.#discard(extents);
    await this.#volume.innerChange(() => this.#clear(extents, also));
  }

  async #discard(extents: readonly Extent[]): Promise<void> {
    for (let at = 0; at < extents.length; at += DISCARD_EXTENTS_MAX) {
      const some = extents.slice(at, at + DISCARD_EXTENTS_MAX);
      await this.#volume.parts.nsds.discard(
        some.map(({ nsd, sector, count }) => ({ nsd, sector, sectorCount: count })),
      );
    }
  }

  async #clear(extents: readonly Extent[], also?: (transaction: MetadataTransaction) => void): Promise<number> {
    const volume = this.#volume;
    const { nsd } = extents[0]!;
    const region = regionOf(volume.geometry, extents[0]!.sector);
    const item = volume.dataItem(ALLOCATION_MAP, regionRange(volume.geometry, region));
    const pins =
      volume.parts.tokens.tryPin([item]) ??
      (await volume.parts.tokens.acquire([item], { timeoutMs: volume.settings.regionTimeoutMs }));
    let freed = 0;
    try {
      const range = regionSectorsRange(volume.geometry, region, nsd);
      await volume.mapFile(ALLOCATION_MAP).withBytes(range, 'exclusive', (view) => {
        const transaction = new MetadataTransaction(volume);
        for (const copy of copiesOf(nsd)) {
          const { start } = regionSectorRange(volume.geometry, region, copy);
          const sector = view.bytes(start, SECTOR_BYTES);
          for (const extent of extents) freed += this.#clearOne(sector, region, extent, copy);
          view.changed(start, SECTOR_BYTES);
          transaction.sector(volume.systemFiles.get(ALLOCATION_MAP)!, start, sector);
        }
        transaction.settled(extents);
        also?.(transaction);
        transaction.commit();
      });
    } finally {
      pins.release();
    }
    volume.counters.add('fs.subBlocksFreed', freed);
    return freed;
  }

  #clearOne(sector: Uint8Array, region: number, extent: Extent, nsd: NsdIndex): number {
    const block = Math.floor(extent.sector / SUB_BLOCKS_PER_BLOCK) % this.#volume.geometry.regionBlocks;
    const first = extent.sector % SUB_BLOCKS_PER_BLOCK;
    const used = countBits(sector, block, first, extent.count, 1);
    if (used !== extent.count)
      // A pointer and the map disagreed: a check of the file system finds who is right. Going on loses nothing.
      this.#volume.parts.logger.error({ ...extent, nsd, used }, 'sub-blocks to be freed are free already');
    fillBits(sector, block, first, extent.count, 0);
    setRegionFree(sector, regionFree(sector) + used);
    this.#volume.allocator.freed(region, nsd, block, used);
    return used;
  }
}
