import { FsError } from '../common/errors.js';
import { PAGE_BYTES } from '../common/units.js';
import type { PoolSegment } from '../native/page-pool.js';
import { NSD_SERVER_STAGING_BYTES_GOOD } from '../nsd/nsd-server.js';

/** How one node's page pool is divided: the cache map's slots first, because slot i is page i of the pool, then staging space. */
export interface PoolPlan {
  readonly slotCount: number;
  /** Metadata on its way to and from the NSDs. */
  readonly fsStaging: PoolSegment;
  /** Bytes between this node's devices and other nodes; null where no NSD is served. */
  readonly serverStaging: PoolSegment | null;
  /** For measuring the way to other nodes (`holdfast fabric test`). */
  readonly fabricScratch: PoolSegment;
  /** One piece for each NSD served. */
  readonly storeStaging: readonly PoolSegment[];
}

const MIB = 1 << 20;
const STORE_STAGING_BYTES = MIB;
const FABRIC_SCRATCH_BYTES = MIB;
const SLOTS_MIN = 256;

/** @throws {FsError} badConfiguration when the pool is too small for what it has to hold. */
export function planPool(lengthBytes: number, storeCount: number): PoolPlan {
  const fsBytes = Math.min(16 * MIB, pageFloor(lengthBytes / 16));
  const serverBytes = storeCount === 0 ? 0 : Math.min(NSD_SERVER_STAGING_BYTES_GOOD, pageFloor(lengthBytes / 4));
  const storeBytes = storeCount === 0 ? 0 : Math.min(STORE_STAGING_BYTES, pageFloor(lengthBytes / 32));
  const scratchBytes = Math.min(FABRIC_SCRATCH_BYTES, pageFloor(lengthBytes / 64));
  const slotBytes = pageFloor(lengthBytes) - fsBytes - serverBytes - scratchBytes - storeBytes * storeCount;
  if (slotBytes < SLOTS_MIN * PAGE_BYTES) {
    throw new FsError('badConfiguration', {
      op: 'pagePool',
      detail: `${lengthBytes} bytes leave fewer than ${SLOTS_MIN} pages for the cache beside ${storeCount} NSDs`,
    });
  }
  let at = slotBytes;
  const take = (bytes: number): PoolSegment => {
    const segment = { offsetBytes: at, lengthBytes: bytes };
    at += bytes;
    return segment;
  };
  return {
    slotCount: slotBytes / PAGE_BYTES,
    fsStaging: take(fsBytes),
    serverStaging: serverBytes === 0 ? null : take(serverBytes),
    fabricScratch: take(scratchBytes),
    storeStaging: Array.from({ length: storeCount }, () => take(storeBytes)),
  };
}

const pageFloor = (bytes: number): number => Math.floor(bytes / PAGE_BYTES) * PAGE_BYTES;
