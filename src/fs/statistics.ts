/**
 * What statfs answers. Counted from the maps as they are on the devices, after this node and the others have brought there what they
 * have freed and what they hold (space-peers.ts); a node that doesn't answer in time is counted as its last write-out left it.
 * Counting costs every node a little: it is done again after ten times as long as it took, at most `statisticsAgeMs`.
 */

import { isDamage } from '../common/damage.js';
import { BLOCK_BYTES, SECTOR_BYTES, SUB_BLOCK_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { INODES_PER_SEGMENT } from '../token-manager/token.js';
import { findPointer, loadPointers } from './block-map.js';
import type { FsStatistics } from './file-system-api.js';
import type { Inode } from './inode.js';
import { ALLOCATION_MAP, INODE_MAP, NAME_BYTES_MAX, RESERVED_BLOCKS } from './layout.js';
import { regionFault, regionFree, segmentFault, segmentFree } from './map-formats.js';
import { Mutex } from './mutex.js';
import { settle } from './settle.js';
import { Settling } from './space-peers.js';
import type { Volume } from './volume.js';

const READ_RUN = 64;
/** What is counted is believed for so many times what counting it took. */
const AGE_PER_COST = 10;

interface Counts {
  readonly count: number;
  readonly untilMs: number;
  readonly freeSubBlocks: ReadonlyMap<number, number>;
  readonly freeInodes: number;
}

export class Statistics {
  readonly #volume: Volume;
  readonly #counting = new Mutex();
  /** Counts begun. */
  #begun = 0;
  #last: Counts | null = null;

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  async read(): Promise<FsStatistics> {
    const { geometry } = this.#volume;
    const last = await this.#counts();
    const freeByRegion = new Map(last.freeSubBlocks);
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
      freeInodes: last.freeInodes,
      nameBytesMax: NAME_BYTES_MAX,
    };
  }

  /** Whoever asks while others do shares the first count that begins from here on. */
  async #counts(): Promise<Counts> {
    const asked = this.#begun;
    return this.#counting.run(async () => {
      const { clock } = this.#volume;
      if (this.#last !== null && (this.#last.count > asked || clock.nowMs() < this.#last.untilMs)) return this.#last;
      this.#last = await this.#count(++this.#begun);
      return this.#last;
    });
  }

  async #count(count: number): Promise<Counts> {
    const { geometry, fsId, checksums, clock, systemFiles, settings, parts, numbers } = this.#volume;
    const beganMs = clock.nowMs();
    // What one has freed is in another one's region perhaps (S6): it arrives there before that one counts.
    await Promise.all([
      // What keeps it from ending keeps the count below from it too, which says so.
      settle(this.#volume, Settling.space).catch(() => undefined),
      parts.peers.settle(Settling.space, settings.peersTimeoutMs),
    ]);
    const [own, others] = await Promise.all([
      settle(this.#volume, Settling.counts).catch((error: unknown) => {
        // What can't be written now is counted as the devices have it.
        parts.logger.warn({ error: String(error) }, 'space is counted without what this node has not written');
        return { unusedNumbers: numbers.unusedCount };
      }),
      parts.peers.settle(Settling.counts, settings.peersTimeoutMs),
    ]);
    const freeSubBlocks = new Map<number, number>();
    await this.#scan(systemFiles.get(ALLOCATION_MAP)!, geometry.regionCount * geometry.nsdCount, (sector, index) => {
      if (regionFault(sector, index, geometry, fsId, checksums) !== null) return;
      const region = Math.floor(index / geometry.nsdCount);
      freeSubBlocks.set(region, (freeSubBlocks.get(region) ?? 0) + regionFree(sector));
    });
    let freeInodes = own.unusedNumbers + others.unusedNumbers;
    await this.#scan(systemFiles.get(INODE_MAP)!, geometry.segmentCount, (sector, index) => {
      if (segmentFault(sector, index, fsId, checksums) === null) freeInodes += segmentFree(sector);
    });
    const tookMs = clock.nowMs() - beganMs;
    const untilMs = clock.nowMs() + Math.min(settings.statisticsAgeMs, AGE_PER_COST * tookMs);
    return { count, untilMs, freeSubBlocks, freeInodes };
  }

  async #scan(file: Inode, sectors: number, use: (sector: Uint8Array, index: number) => void): Promise<void> {
    for (let at = 0; at < sectors; at += READ_RUN) {
      const block = Math.floor(at / SUB_BLOCKS_PER_BLOCK);
      await loadPointers(this.#volume, file, block);
      const home = findPointer(file, block);
      if (!home) continue;
      const count = Math.min(READ_RUN, sectors - at);
      const read = (from: number, length: number): Promise<void> =>
        this.#volume.readSectors(home.nsd, home.sector + (from % SUB_BLOCKS_PER_BLOCK), length, (bytes) => {
          for (let i = 0; i < length; i++) use(bytes.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES), from + i);
        });
      try {
        await read(at, count);
      } catch (error) {
        if (!isDamage(error)) throw error;
        // One that can't be read has nothing that could be had.
        for (let one = at; one < at + count; one++)
          await read(one, 1).catch((damage: unknown) => {
            if (!isDamage(damage)) throw damage;
          });
      }
    }
  }
}
