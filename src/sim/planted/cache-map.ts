import type { Coverage, EntryId, SlotId } from '../../cache/cache-map.js';
import type { TokenMode } from '../../token-manager/token.js';
import type { SimNode } from '../sim-node.js';
import { WatchedCacheMap } from '../watched-map.js';
import type { World } from '../world.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs of what hits rely on: coverage, status, lease, size and pins in the cache map. */
const MAP_ENTRIES = 64;

const map = (world: World, life: SimNode, Kind: typeof WatchedCacheMap): WatchedCacheMap =>
  new Kind(life.pool, world.scheduler, MAP_ENTRIES, world.plan.slotCount);

class LeaseForEver extends WatchedCacheMap {
  override setLeaseDeadline(): void {
    super.setLeaseDeadline(Number.MAX_SAFE_INTEGER);
  }
}

class CoverageNeverShrinks extends WatchedCacheMap {
  readonly #before = new Map<EntryId, readonly Coverage[]>();
  override setCoverage(entry: EntryId, ranges: readonly Coverage[]): void {
    const kept = ranges.length === 0 ? (this.#before.get(entry) ?? ranges) : ranges;
    this.#before.set(entry, kept);
    super.setCoverage(entry, kept);
  }
  override closeEntry(entry: EntryId): void {
    this.#before.delete(entry);
    super.closeEntry(entry);
  }
}

class StatusNeverLowered extends WatchedCacheMap {
  override setStatusMode(entry: EntryId, mode: TokenMode): void {
    super.setStatusMode(entry, Math.max(mode, this.published.get(entry)?.status ?? mode) as TokenMode);
  }
}

class SizeComesLate extends WatchedCacheMap {
  late: (run: () => void) => void = (run) => run();
  override noteWrite(entry: EntryId, endBytes: number, wallNs: bigint): void {
    if (endBytes <= this.entryState(entry).sizeBytes) super.noteWrite(entry, endBytes, wallNs);
    else this.late(() => this.published.has(entry) && super.noteWrite(entry, endBytes, wallNs));
  }
}

/** Looks, and does not stay. */
class NoSharedPins extends WatchedCacheMap {
  override tryPinShared(slot: SlotId): boolean {
    if (!super.tryPinShared(slot)) return false;
    super.unpinShared(slot);
    return true;
  }
  override unpinShared(_slot: SlotId): void {}
}

export const CACHE_MAP_BUGS: readonly PlantedBug[] = [
  {
    name: 'coverage-kept',
    what: 'Hits go on in a range that has been given up (I2).',
    makeMap: (world, life) => map(world, life, CoverageNeverShrinks),
  },
  {
    name: 'status-kept',
    what: 'Hits go on relying on a status token that has been lowered (I2).',
    makeMap: (world, life) => map(world, life, StatusNeverLowered),
  },
  {
    name: 'lease-for-ever',
    what: 'The lease word never ends: a node that is cut off serves its cache (I7, F2).',
    needs: ['storeCut', 'zombie', 'lateWrites'],
    likelySeed: 9,
    makeMap: (world, life) => map(world, life, LeaseForEver),
  },
  {
    name: 'stamps-stay',
    what: 'What a thread remembers of a name is told again after somebody has changed it (I2).',
    likelySeed: 4,
    alterNode: (_world, { stamps }) => {
      stamps.changed = () => undefined;
    },
  },
  {
    name: 'size-published-late',
    what: 'The size grows a millisecond after the write has returned (I13).',
    makeMap: (world, life) => {
      const made = map(world, life, SizeComesLate) as SizeComesLate;
      made.late = (run) => void world.scheduler.after(1, run);
      return made;
    },
  },
  {
    name: 'unstable-pages',
    what: 'Hits write to pages that are on their way to a device (S2).',
    needs: ['slowDisk', 'stuckDisk'],
    likelySeed: 4,
    makeMap: (world, life) => map(world, life, NoSharedPins),
  },
];
