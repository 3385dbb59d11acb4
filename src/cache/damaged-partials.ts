import { isDamage } from '../common/damage.js';
import { FsError } from '../common/errors.js';
import { PAGE_BYTES, SECTOR_BYTES, SECTORS_PER_PAGE } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import { forgetInPage } from './discard.js';
import type { FileCore } from './file-core.js';
import type { Page } from './page.js';
import { readsNeeded } from './sector-merge.js';
import { hasPartial } from './slot-content.js';

/**
 * Bytes that were written to a part of a sector whose other bytes are damaged. The sector can't be made whole, now or later: written as it is it would pass what
 * nobody knows for good, and kept it would hold up every revoke and every fsync of the file for ever. So these bytes are given up and told of as lost (I10), those of
 * that sector alone; reading it says what is wrong with it, as it did before the write.
 *
 * Returns the first error that is no damage: then what is left stays dirty, and is tried again.
 */
export async function giveUpDamagedPartials(
  core: CacheCore,
  file: FileCore,
  pages: readonly Page[],
): Promise<FsError | null> {
  for (const page of pages)
    for (const sector of damageable(core, file, page)) {
      const error = await core.fills.completeSector(file, page, sector);
      if (error === null) continue;
      if (!isDamage(error)) return FsError.from(error, 'cache.writeOut', `inode ${file.ino}`);
      await giveUp(core, page, sector, error);
    }
  return null;
}

/** The sectors of the run that take a read: its first and its last at most. */
function damageable(core: CacheCore, file: FileCore, page: Page): number[] {
  if (page.gone || !hasPartial(core.slots.refresh(page))) return [];
  const sizeInPage = file.endOf(core.files.stateOf(file)) - page.index * PAGE_BYTES;
  const mask = readsNeeded(page, sizeInPage);
  return Array.from({ length: SECTORS_PER_PAGE }, (_, sector) => sector).filter(
    (sector) => (mask & (1 << sector)) !== 0,
  );
}

async function giveUp(core: CacheCore, page: Page, sector: number, cause: FsError): Promise<void> {
  const { slots, backing, counters, logger } = core;
  if (!slots.tryClose([page])) await slots.close([page]);
  if (page.gone) return;
  slots.refresh(page);
  const start = page.index * PAGE_BYTES + sector * SECTOR_BYTES;
  const range = { start, end: start + SECTOR_BYTES };
  const from = Math.max(start, page.index * PAGE_BYTES + page.partialStart);
  const to = Math.min(range.end, page.index * PAGE_BYTES + page.partialEnd);
  // A write has made it whole meanwhile.
  if ((page.validMask & (1 << sector)) !== 0 || from >= to) {
    slots.reopen(page);
    return;
  }
  const { ino } = page.file;
  forgetInPage(core, page, range);
  counters.add('cache.partialsGivenUp');
  logger.error(
    { ino, range: { start: from, end: to }, error: cause.message },
    'bytes written beside damaged ones are lost',
  );
  backing.lost(ino, { start: from, end: to }, cause);
}
