import { TwinCacheMap } from '../../cache/cache-map-twin.js';
import { createPageCache } from '../../cache/page-cache.js';
import type { Clock } from '../../common/clock.js';
import { Counters } from '../../common/counters.js';
import { epoch, incarnation, nodeId } from '../../common/ids.js';
import { silentLogger } from '../../common/logger.js';
import { SeededRandom } from '../../common/random.js';
import { BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES } from '../../common/units.js';
import { FileBacking } from '../../fs/backing.js';
import { type CheckReport, checkFileSystem } from '../../fs/check/check.js';
import { createFileSystem } from '../../fs/mkfs.js';
import { type MountedFileSystem, mountFileSystem } from '../../fs/mount.js';
import type { FsSettings } from '../../fs/settings.js';
import { TestArbiter, TestTokens } from '../../fs/testing.js';
import { TestLockServer, TestLocks } from '../../fs/testing-locks.js';
import { SegmentArena } from '../../native/buffer-arena.js';
import { crc32c, crc32cSectors } from '../../native/core.js';
import { heapPagePool, type PagePool } from '../../native/page-pool.js';
import type { BlockDevice, NsdClientApi } from '../../nsd/nsd-api.js';
import { NsdStore } from '../../nsd/nsd-store.js';
import { LocalNsds } from './local-nsds.js';
import { LateMemory, type PlantedOrder, plantOrder } from './planted-order.js';

/**
 * One machine with its disks: the file system that the daemon runs, with its cache, its log and its NSDs, over devices that are handed in. Alone: its tokens come
 * from an arbiter in the same process.
 */
export const checksums = { sectors: crc32cSectors, bytes: (bytes: Uint8Array) => crc32c(bytes) };

const CACHE_PAGES = 256;
const FS_STAGING_BYTES = 3 * BLOCK_BYTES;
const STORE_STAGING_BYTES = 16 * SECTOR_BYTES;
const LATE_BYTES = 3 * BLOCK_BYTES;
const CACHE_BYTES = CACHE_PAGES * PAGE_BYTES;
export const NSD_COUNT = 2;
const POOL_BYTES = CACHE_BYTES + FS_STAGING_BYTES + NSD_COUNT * STORE_STAGING_BYTES + LATE_BYTES;
const FS_UUID = '6f1d2c3b-0a19-4857-8e6d-5c4b3a291807';
const nsdUuid = (index: number): string => `00000000-0000-4000-8000-${String(index + 1).padStart(12, '0')}`;
/** So that what is put off happens within a workload. */
const SETTINGS: Partial<FsSettings> = {
  inodeWriteBehindMs: 30,
  backgroundIntervalMs: 20,
  inodeBatch: 4,
  inodeRun: 4,
  accessTimes: 'none',
};

export interface StackSize {
  /** MiB of data of each NSD. */
  readonly blocks: number;
  readonly logBytes: number;
  readonly metadataCopies: 1 | 2;
}

/** The memory of a machine; used by one life after the other, as what is in it counts for nothing after a power cut. */
export function newMemory(): PagePool {
  return heapPagePool(POOL_BYTES);
}

const fsArena = (): SegmentArena => new SegmentArena({ offsetBytes: CACHE_BYTES, lengthBytes: FS_STAGING_BYTES });
const storeParts = (device: BlockDevice, pool: PagePool, index: number) => ({
  device,
  pool,
  checksums,
  staging: {
    offsetBytes: CACHE_BYTES + FS_STAGING_BYTES + index * STORE_STAGING_BYTES,
    lengthBytes: STORE_STAGING_BYTES,
  },
});

/** An empty file system on these devices. */
export async function format(
  devices: readonly BlockDevice[],
  pool: PagePool,
  clock: Clock,
  { blocks, logBytes, metadataCopies }: StackSize,
): Promise<void> {
  const stores: NsdStore[] = [];
  for (const [index, device] of devices.entries()) {
    const parts = storeParts(device, pool, index);
    const options = { uuid: nsdUuid(index), clusterId: 'explorer', failureGroup: index, name: `disk ${index}` };
    await NsdStore.format(parts, options);
    stores.push(await NsdStore.open(parts, {}));
  }
  await createFileSystem({
    nsds: stores.map((store, index) => ({ uuid: store.uuid, blocks, failureGroup: index })),
    fsUuid: FS_UUID,
    name: 'explored',
    nsdClient: new LocalNsds(stores, pool, checksums),
    arena: fsArena(),
    pool,
    checksums,
    clock,
    random: new SeededRandom(1),
    regionBlocks: blocks,
    segmentCount: 1,
    expectedNodes: 2,
    metadataCopies,
    logBytes,
  });
  for (const store of stores) await store.close();
}

export class Stack {
  private constructor(
    readonly fs: MountedFileSystem,
    readonly counters: Counters,
    private readonly stores: readonly NsdStore[],
    private readonly nsds: NsdClientApi,
    private readonly pool: PagePool,
  ) {}

  /** Opens the NSDs and mounts: everything that a machine does whose power is back. */
  static async mount(
    devices: readonly BlockDevice[],
    pool: PagePool,
    clock: Clock,
    { life, planted = null }: { readonly life: number; readonly planted?: PlantedOrder | null },
  ): Promise<Stack> {
    const stores: NsdStore[] = [];
    for (const [index, device] of devices.entries()) stores.push(await NsdStore.open(storeParts(device, pool, index)));
    const local = new LocalNsds(stores, pool, checksums);
    const lateAt = CACHE_BYTES + FS_STAGING_BYTES + NSD_COUNT * STORE_STAGING_BYTES;
    const nsds =
      planted === null
        ? local
        : plantOrder(local, planted, new LateMemory(pool, { offsetBytes: lateAt, lengthBytes: LATE_BYTES }));
    const counters = new Counters();
    const tokens = new TestTokens(new TestArbiter());
    const backing = new FileBacking();
    const map = new TwinCacheMap(pool, clock, 64, CACHE_PAGES);
    map.setLeaseDeadline(Number.MAX_SAFE_INTEGER);
    const random = new SeededRandom(1);
    const common = { tokens, pool, clock, random, logger: silentLogger, counters };
    const cache = createPageCache({
      ...common,
      map,
      backing,
      settings: { writeBehindAgeMs: 15, writeBehindTickMs: 10 },
    });
    const fs = await mountFileSystem({
      ...common,
      nodeId: nodeId(1),
      incarnation: incarnation(life),
      epoch: () => epoch(life),
      locks: new TestLocks(new TestLockServer(), 1, life),
      cache,
      backing,
      nsds,
      arena: fsArena(),
      checksums,
      settings: SETTINGS,
    });
    return new Stack(fs, counters, stores, local, pool);
  }

  /** With what it has left on its NSDs checked. */
  async unmount(): Promise<CheckReport> {
    await this.fs.unmount();
    const report = await checkFileSystem({ nsds: this.nsds, arena: fsArena(), pool: this.pool, checksums });
    for (const store of this.stores) await store.close();
    return report;
  }
}
