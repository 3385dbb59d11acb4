/**
 * A change of a region's sectors in the allocation map, with the region's token pinned: bits, the shipments' marks, and what is logged with them.
 *
 * While a region is pinned nothing is waited for but a device (its sectors may have to be read, or are being written): see disk-format.md.
 */
import { type NsdIndex, nsdIndex } from '../../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { allCopiesOf, copiesOf } from '../../nsd/copies.js';
import { groupBy } from '../group.js';
import { ALLOCATION_MAP, type Extent, regionOf, regionRange, regionSectorRange } from '../layout.js';
import { countBits, fillBits, regionFree, setRegionFree } from '../map-formats.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';

/** The NSD whose sector of a region has the region's marks. */
export const MARKS_NSD = nsdIndex(0);

export const byRegion = ({ geometry }: Volume, extents: readonly Extent[]): Map<number, Extent[]> =>
  groupBy(extents, ({ sector }) => regionOf(geometry, sector));

/** With room in the log, and the region's token pinned. Null: it isn't held here, and `timeoutMs` is null. @throws {FsError} tokenDeadline */
export async function withRegion<T>(
  volume: Volume,
  region: number,
  timeoutMs: number | null,
  body: () => Promise<T>,
): Promise<T | null> {
  const { tokens } = volume.parts;
  return volume.innerChange(async () => {
    const items = [volume.dataItem(ALLOCATION_MAP, regionRange(volume.geometry, region))];
    const pins = tokens.tryPin(items) ?? (timeoutMs === null ? null : await tokens.acquire(items, { timeoutMs }));
    if (pins === null) return null;
    try {
      return await body();
    } finally {
      pins.release();
    }
  });
}

export type SectorOf = (nsd: NsdIndex) => Uint8Array;

/** `change` sees a region's sectors of these NSDs; null: nothing was changed, nothing is logged. */
export async function inRegion<T>(
  volume: Volume,
  region: number,
  nsds: Iterable<NsdIndex>,
  change: (sectorOf: SectorOf, transaction: MetadataTransaction) => T | null,
): Promise<T | null> {
  const ranges = new Map([...allCopiesOf(nsds)].map((nsd) => [nsd, regionSectorRange(volume.geometry, region, nsd)]));
  const starts = [...ranges.values()].map(({ start }) => start);
  const range = { start: Math.min(...starts), end: Math.max(...starts) + SECTOR_BYTES };
  return volume.mapFile(ALLOCATION_MAP).withBytes(range, 'exclusive', (view) => {
    const sectors = new Map([...ranges].map(([nsd, { start }]) => [nsd, view.bytes(start, SECTOR_BYTES)]));
    const transaction = new MetadataTransaction(volume);
    const value = change((nsd) => sectors.get(nsd)!, transaction);
    if (value === null) return null;
    for (const [nsd, { start }] of ranges) {
      view.changed(start, SECTOR_BYTES);
      transaction.sector(volume.systemFiles.get(ALLOCATION_MAP)!, start, sectors.get(nsd)!);
    }
    transaction.commit();
    return value;
  });
}

/** Marks them as free, on every copy. Returns how many sub-blocks were in use. */
export function clearBits(volume: Volume, sectorOf: SectorOf, extents: readonly Extent[]): number {
  const { geometry, counters, allocator, parts } = volume;
  let freed = 0;
  for (const extent of extents)
    for (const nsd of copiesOf(extent.nsd)) {
      const sector = sectorOf(nsd);
      const block = Math.floor(extent.sector / SUB_BLOCKS_PER_BLOCK) % geometry.regionBlocks;
      const first = extent.sector % SUB_BLOCKS_PER_BLOCK;
      const used = countBits(sector, block, first, extent.count, 1);
      if (used !== extent.count) {
        // A pointer and the map disagreed: a check of the file system finds who is right. Going on loses nothing.
        counters.add('fs.freesDisagreed');
        parts.logger.error({ ...extent, nsd, used }, 'sub-blocks to be freed are free already');
      }
      fillBits(sector, block, first, extent.count, 0);
      setRegionFree(sector, regionFree(sector) + used);
      allocator.freed(regionOf(geometry, extent.sector), nsd, block, used);
      freed += used;
    }
  counters.add('fs.subBlocksFreed', freed);
  return freed;
}

export const nsdsOf = (extents: readonly Extent[]): NsdIndex[] => extents.map(({ nsd }) => nsd);
