import { randomUUID } from 'node:crypto';
import { open } from 'node:fs/promises';
import { BlockEngine } from 'napi-nvme';
import type { NsdTarget } from '../cluster/membership-api.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import { SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { type BlockEngineDevice, PoolEngine } from '../nsd/block-engine-device.js';
import type { Checksums } from '../nsd/checksums.js';
import { HoldBackDevice } from '../nsd/hold-back-device.js';
import type { BlockDevice } from '../nsd/nsd-api.js';
import { NsdStore, type NsdStoreParts } from '../nsd/nsd-store.js';
import type { PoolPlan } from './pool-plan.js';

/** One NSD that a node serves. */
export interface NsdConfig {
  readonly name: string;
  /** An NVMe namespace's block device, a loop device, or a file. */
  readonly path: string;
  /** A file that doesn't exist yet is made with this size. */
  readonly sizeBytes: number | null;
  readonly failureGroup: number;
  /** Others have a path to it too: an empty one is not made an NSD unless `format` says so here. */
  readonly shared?: boolean;
  readonly format?: boolean;
  /** Where this node's path to it can be shut. */
  readonly target?: NsdTarget;
  /** False only where nodes on one machine stand for machines of their own, and a file for the namespace that each of them has a path to. */
  readonly lock?: boolean;
  /** Tests only: the NSD holds back what is not flushed, and loses or tears some of it when this process is killed. */
  readonly fault?: NsdFault;
}
export interface NsdFault {
  /** Of what goes out early, and how. */
  readonly seed: number;
  /** How likely an operation sends a held sector out early. */
  readonly early?: number;
}

/** Puts something in front of a device; `scratch` is a sector of the pool's that is its own. */
export type WrapDevice = (device: BlockDevice, nsd: NsdConfig, pool: PagePool, scratch: PoolSegment) => BlockDevice;

/** This node's way to one NSD. `store` is there while the device is open. */
export class NsdPath {
  readonly #reopen: () => Promise<NsdStore>;
  #store: NsdStore | null;
  readonly uuid: string;
  readonly header: NsdStore['header'];
  readonly lengthBytes: number;

  constructor(
    readonly config: NsdConfig,
    store: NsdStore,
    reopen: () => Promise<NsdStore>,
    private readonly logger: Logger,
  ) {
    this.#store = store;
    this.#reopen = reopen;
    this.uuid = store.uuid;
    this.header = store.header;
    this.lengthBytes = store.lengthBytes;
  }

  get store(): NsdStore | null {
    return this.#store;
  }
  get target(): NsdTarget | null {
    return this.config.target ?? null;
  }

  /** To serve it. As it is, or opened anew, with everything read again that another server may have changed. */
  async open(): Promise<NsdStore> {
    if (this.#store !== null) {
      await this.#store.recover();
      return this.#store;
    }
    const store = await this.#reopen();
    if (store.uuid !== this.uuid) {
      await store.close();
      throw new FsError('wrongNsd', {
        op: 'nsd.open',
        object: this.config.path,
        detail: `holds NSD ${store.uuid} by now`,
      });
    }
    this.#store = store;
    await store.recover();
    return store;
  }
  /** Waits for what is under way, flushes, closes the device. */
  async close(): Promise<void> {
    const store = this.#store;
    if (store === null) return;
    this.#store = null;
    // Its path may have been shut. Whoever syncs asks the server that there is then for the flush of the same device.
    await store.close((error) =>
      this.logger.warn({ nsd: this.uuid, error: String(error) }, 'the last flush of an NSD failed'),
    );
  }
}

export interface OpenedStores {
  readonly paths: readonly NsdPath[];
  /** Waits for what is under way, then closes the devices. */
  close(): Promise<void>;
}

/** A namespace that several machines have a path to keeps what was written when one of these dies, whichever serves it next. */
const KEPT_BY_ITSELF = 'ffffffff-ffff-4fff-bfff-ffffffffffff';

const PROBE_BYTES = 1 << 20;
const LOCK_WAIT_MS = 5000;
const LOCK_LOOK_AGAIN_MS = 50;

/**
 * Opens the NSDs of a configuration. An empty device (a new file, or one whose first megabyte is zeros) becomes an NSD; one that
 * holds anything else than this NSD is refused: nothing is ever formatted over data.
 */
export async function openStores(
  configs: readonly NsdConfig[],
  parts: {
    readonly pool: PagePool;
    readonly plan: PoolPlan;
    readonly checksums: Checksums;
    readonly counters: Counters;
    readonly clusterId: string;
    readonly logger: Logger;
    readonly wrapDevice?: WrapDevice;
    /** Told of the one that isn't served, before the error is thrown. */
    readonly onRefused: (config: NsdConfig, why: FsError) => Promise<void>;
  },
): Promise<OpenedStores> {
  if (configs.length === 0) return { paths: [], close: () => Promise.resolve() };
  const engine = new PoolEngine(new BlockEngine(), parts.pool, parts.logger);
  const paths: NsdPath[] = [];
  const close = async (): Promise<void> => {
    for (const path of paths) await path.close();
    await engine.close();
  };
  try {
    for (const [index, config] of configs.entries())
      try {
        const store = await openOne(config, index, engine, parts);
        const reopen = () => openOne({ ...config, format: false }, index, engine, parts);
        paths.push(new NsdPath(config, store, reopen, parts.logger));
      } catch (error) {
        await parts.onRefused(config, FsError.from(error, 'nsd.open', config.path));
        throw error;
      }
    return { paths, close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function openOne(
  config: NsdConfig,
  index: number,
  engine: PoolEngine,
  parts: Parameters<typeof openStores>[1],
): Promise<NsdStore> {
  const { pool, plan, checksums, counters, clusterId, logger } = parts;
  const made = await prepare(config);
  const opened = await openLocked(config, engine);
  const { access, accessReason: because } = opened.handle;
  logger.info({ nsd: config.name, path: config.path, access, because }, 'the NSD is worked with in this way');
  let device: BlockDevice = opened;
  let staging = plan.storeStaging[index]!;
  const scratch = (sectors: number): PoolSegment => {
    const lengthBytes = staging.lengthBytes - sectors * SECTOR_BYTES;
    const end = staging.offsetBytes + lengthBytes;
    staging = { offsetBytes: staging.offsetBytes, lengthBytes };
    return { offsetBytes: end, lengthBytes: sectors * SECTOR_BYTES };
  };
  if (config.fault !== undefined) {
    const { seed, early } = config.fault;
    logger.warn(
      { nsd: config.name, seed },
      'TEST SETTING: this NSD loses what is not flushed when the process is killed',
    );
    device = new HoldBackDevice(device, pool, scratch(Math.floor(staging.lengthBytes / SECTOR_BYTES / 4)), {
      random: new SeededRandom(seed),
      ...(early === undefined ? {} : { earlyChance: early }),
    });
  }
  if (parts.wrapDevice !== undefined) device = parts.wrapDevice(device, config, pool, scratch(1));
  try {
    const empty = made || (await isEmpty(opened, pool, plan.storeStaging[index]!));
    if (empty && (config.format ?? config.shared !== true) === false) {
      throw new FsError('badConfiguration', {
        op: 'nsd.open',
        object: config.path,
        detail:
          "it is empty, and several nodes have a path to it: set 'format: true' at the one that is to make it an NSD",
      });
    }
    const storeParts: NsdStoreParts = { device, pool, checksums, counters, staging };
    if (empty) {
      logger.info({ nsd: config.name, path: config.path }, 'an empty device becomes an NSD');
      await NsdStore.format(storeParts, {
        uuid: randomUUID(),
        clusterId,
        failureGroup: config.failureGroup,
        name: config.name,
      });
    }
    // What was left half written is settled when this node serves it; until then another server may be at work.
    const store = await NsdStore.open(storeParts, { lookOnly: true });
    const { header } = store;
    if (header.clusterId !== clusterId || header.name !== config.name) {
      throw new FsError('wrongNsd', {
        op: 'nsd.open',
        object: config.path,
        detail: `it holds NSD '${header.name}' of ${header.clusterId === clusterId ? 'this' : 'another'} cluster, not '${config.name}'`,
      });
    }
    return store;
  } catch (error) {
    await device.close();
    throw error;
  }
}

/**
 * With the lock that tells a new life of a node that what an older one left under way has ended: the kernel may be at it for a moment after
 * the older process is gone.
 */
async function openLocked({ path, lock, shared }: NsdConfig, engine: PoolEngine): Promise<BlockEngineDevice> {
  const endMs = performance.now() + LOCK_WAIT_MS;
  for (;;)
    try {
      return await engine.open(path, { lock: lock ?? true }, shared === true ? KEPT_BY_ITSELF : undefined);
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'busy' || performance.now() > endMs) throw error;
      await new Promise((resolve) => setTimeout(resolve, LOCK_LOOK_AGAIN_MS));
    }
}

/** Whether the first megabyte is zeros; read by the way that the NSD will be worked with, so that no other cache is asked. */
async function isEmpty(device: BlockDevice, pool: PagePool, staging: PoolSegment): Promise<boolean> {
  const wholeBlocks = device.lengthBytes - (device.lengthBytes % device.logicalBlockBytes);
  const probeBytes = Math.min(PROBE_BYTES, wholeBlocks);
  for (let at = 0; at < probeBytes; at += staging.lengthBytes) {
    const { offsetBytes } = staging;
    const lengthBytes = Math.min(staging.lengthBytes, probeBytes - at);
    await device.read(at, { offsetBytes, lengthBytes });
    if (!pool.bytes.subarray(offsetBytes, offsetBytes + lengthBytes).every((byte) => byte === 0)) return false;
  }
  return probeBytes > 0;
}

/** Makes the file if it is to be made; true when it did. */
async function prepare(config: NsdConfig): Promise<boolean> {
  try {
    const file = await open(config.path, config.sizeBytes === null ? 'r' : 'a+');
    try {
      const stat = await file.stat();
      if (stat.isFile() && stat.size === 0) {
        if (config.sizeBytes === null) {
          throw new FsError('badConfiguration', {
            op: 'nsd.open',
            object: config.path,
            detail: 'the file is empty and no size is configured',
          });
        }
        await file.truncate(config.sizeBytes);
        return true;
      }
      return false;
    } finally {
      await file.close();
    }
  } catch (error) {
    if (FsError.is(error)) throw error;
    throw new FsError('badConfiguration', {
      op: 'nsd.open',
      object: config.path,
      detail: error instanceof Error ? error.message : String(error),
      cause: error,
    });
  }
}
