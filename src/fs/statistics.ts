/**
 * What statfs answers. Counted from the maps as they are on the devices, without a token, so that asking disturbs nobody; what this
 * node holds is taken from memory. As old as other nodes' last write-out of their regions, plus `statisticsAgeMs`.
 */
import { BLOCK_BYTES, SECTOR_BYTES, SUB_BLOCK_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';
import { findPointer, loadPointers } from './block-map.js';
import type { FsStatistics } from './file-system-api.js';
import type { Inode } from './inode.js';
import { ALLOCATION_MAP, INODE_MAP, NAME_BYTES_MAX, RESERVED_BLOCKS } from './layout.js';
import { regionFault, regionFree, segmentFault, segmentFree } from './map-formats.js';
import type { Volume } from './volume.js';

const READ_RUN = 64;

export class Statistics {
  readonly #volume: Volume;
  #last: { atMs: number; freeSubBlocks: Map<number, number>; freeInodes: number } | null = null;

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  async read(): Promise<FsStatistics> {
    const { geometry, clock, settings } = this.#volume;
    if (this.#last === null || clock.nowMs() - this.#last.atMs > settings.statisticsAgeMs)
      this.#last = await this.#count();
    const freeByRegion = new Map(this.#last.freeSubBlocks);
    for (const [region, free] of this.#volume.allocator.heldFree()) freeByRegion.set(region, free);
    let freeSubBlocks = 0;
    for (const free of freeByRegion.values()) freeSubBlocks += free;
    const blocks = geometry.nsdBlocks.reduce((sum, each) => sum + each - RESERVED_BLOCKS, 0);
    return {
      blockBytes: BLOCK_BYTES,
      subBlockBytes: SUB_BLOCK_BYTES,
      totalBytes: blocks * BLOCK_BYTES,
      freeBytes: freeSubBlocks * SUB_BLOCK_BYTES,
      totalInodes: geometry.segmentCount * INODES_PER_SEGMENT,
      freeInodes: this.#last.freeInodes,
      nameBytesMax: NAME_BYTES_MAX,
    };
  }

  async #count() {
    const { geometry, fsId, checksums, clock, systemFiles } = this.#volume;
    const freeSubBlocks = new Map<number, number>();
    await this.#scan(systemFiles.get(ALLOCATION_MAP)!, geometry.regionCount * geometry.nsdCount, (sector, index) => {
      if (regionFault(sector, index, geometry, fsId, checksums) !== null) return;
      const region = Math.floor(index / geometry.nsdCount);
      freeSubBlocks.set(region, (freeSubBlocks.get(region) ?? 0) + regionFree(sector));
    });
    let freeInodes = 0;
    await this.#scan(systemFiles.get(INODE_MAP)!, geometry.segmentCount, (sector, index) => {
      if (segmentFault(sector, index, fsId, checksums) === null) freeInodes += segmentFree(sector);
    });
    return { atMs: clock.nowMs(), freeSubBlocks, freeInodes };
  }

  async #scan(file: Inode, sectors: number, use: (sector: Uint8Array, index: number) => void): Promise<void> {
    for (let at = 0; at < sectors; at += READ_RUN) {
      const block = Math.floor(at / SUB_BLOCKS_PER_BLOCK);
      await loadPointers(this.#volume, file, block);
      const home = findPointer(file, block);
      if (!home) continue;
      const count = Math.min(READ_RUN, sectors - at);
      await this.#volume.readSectors(home.nsd, home.sector + (at % SUB_BLOCKS_PER_BLOCK), count, (bytes) => {
        for (let i = 0; i < count; i++) use(bytes.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES), at + i);
      });
    }
  }
}
