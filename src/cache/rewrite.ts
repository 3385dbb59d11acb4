import type { ByteRange } from '../common/byte-range.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { FileCore } from './file-core.js';
import type { Page } from './page.js';
import { inPage, pageEnd } from './page-access.js';
import { sectorMask } from './sector-merge.js';

/**
 * What was written out and got lost on its way to the medium is dirty again, where it still is in the cache: sectors that have been written from
 * their page, and not read into it since. Returns the rest of the range.
 *
 * More may be dirty afterwards than may become dirty; writers wait the longer.
 */
export async function rewriteRange(core: CacheCore, file: FileCore, range: ByteRange): Promise<ByteRange[]> {
  const { generation } = core;
  const missing: ByteRange[] = [];
  for (let index = Math.floor(range.start / PAGE_BYTES); index < pageEnd(range); index++) {
    const { start, end } = inPage(range, index);
    const wanted = sectorMask(start, end);
    const found = await rewritePage(core, file.pages.get(index), wanted);
    core.check('cache.rewrite', file.ino, generation);
    for (let sector = 0; sector * SECTOR_BYTES < end; sector++) {
      if (((wanted & ~found) >>> sector) % 2 === 0) continue;
      const at = index * PAGE_BYTES + sector * SECTOR_BYTES;
      if (missing.at(-1)?.end === at)
        missing[missing.length - 1] = { start: missing.at(-1)!.start, end: at + SECTOR_BYTES };
      else missing.push({ start: at, end: at + SECTOR_BYTES });
    }
  }
  core.dirty.drain();
  return missing;
}

async function rewritePage(core: CacheCore, page: Page | undefined, wanted: number): Promise<number> {
  const { slots, dirty } = core;
  if (page === undefined) return 0;
  if (!slots.tryClose([page])) await slots.close([page]);
  if (page.gone) return 0;
  slots.refresh(page);
  const found = wanted & page.validMask & (page.writtenMask | page.dirtyMask);
  if ((found & ~page.dirtyMask) !== 0) {
    page.dirtyMask |= found;
    slots.store(page);
    dirty.mark(page);
  }
  slots.reopen(page);
  return found;
}
