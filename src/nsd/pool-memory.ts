import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';

/** Whole sectors of the pool, at a sector's boundary. @throws {FsError} invalidArgument */
export function checkMemory(op: string, memory: PoolSegment, pool: PagePool): void {
  const { offsetBytes, lengthBytes } = memory;
  const whole = Number.isSafeInteger(offsetBytes) && Number.isSafeInteger(lengthBytes);
  const aligned = offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0;
  if (!whole || !aligned || offsetBytes < 0 || lengthBytes <= 0 || offsetBytes + lengthBytes > pool.lengthBytes)
    throw new FsError('invalidArgument', {
      op,
      detail: `memory of ${lengthBytes} bytes at ${offsetBytes} is not whole sectors of the page pool`,
    });
}

/** What an NSD's store needs of the pool for itself, at least. */
export const NSD_STAGING_BYTES_MIN = 4 * SECTOR_BYTES;

export function checkStaging({ staging, pool }: { readonly staging: PoolSegment; readonly pool: PagePool }): void {
  checkMemory('nsd.open', staging, pool);
  if (staging.lengthBytes < NSD_STAGING_BYTES_MIN)
    throw new FsError('invalidArgument', { op: 'nsd.open', detail: 'too little staging space for an NSD' });
}
