import type { ByteRange } from '../common/byte-range.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { FileCore } from './file-core.js';
import type { Page } from './page.js';
import { inPage } from './page-access.js';
import { hasPartial, withWrite } from './slot-content.js';

/**
 * Copies between pages and the memory of whoever asked. Each runs in one turn, with every page of the range pinned, so that
 * neither hits nor other operations see half of it.
 */
export class Copier {
  readonly #core: CacheCore;

  constructor(core: CacheCore) {
    this.#core = core;
  }

  /** Out of pages that are pinned shared and readable. */
  copyOut(pages: readonly Page[], range: ByteRange, target: Uint8Array): void {
    let done = 0;
    for (const page of pages) {
      const { start, end } = inPage(range, page.index);
      target.set(this.#core.slots.bytesOf(page, start, end), done);
      done += end - start;
    }
  }

  /** Into pages that are closed and can take it in. They stay closed: `reopen` them when size and times are right. */
  copyIn(pages: readonly Page[], range: ByteRange, source: Uint8Array): void {
    const { slots, dirty } = this.#core;
    let done = 0;
    for (const page of pages) {
      const { start, end } = inPage(range, page.index);
      slots.bytesOf(page, start, end).set(source.subarray(done, done + end - start));
      done += end - start;
      // That it can take it in was seen in this turn.
      const content = withWrite(page, start, end)!;
      page.validMask = content.validMask;
      page.dirtyMask = content.dirtyMask;
      page.partialStart = content.partialStart;
      page.partialEnd = content.partialEnd;
      dirty.mark(page);
      slots.store(page);
    }
  }

  /** Pages of the range that a write would turn dirty: what it needs room for. */
  cleanPages(file: FileCore, first: number, end: number): number {
    let count = end - first;
    for (let index = first; index < end; index++) if (file.pages.get(index)?.dirty) count--;
    return count;
  }

  dirtyBytes(pages: readonly Page[]): number {
    const ranges = pages.flatMap((page) => this.dirtyRanges(page));
    return ranges.reduce((sum, { start, end }) => sum + end - start, 0);
  }

  /** The page's dirty bytes, as ranges of the file. */
  dirtyRanges(page: Page): ByteRange[] {
    const ranges: ByteRange[] = [];
    const pageStart = page.index * PAGE_BYTES;
    this.#core.slots.refresh(page);
    for (let sector = 0; page.dirtyMask >> sector !== 0; sector++) {
      if ((page.dirtyMask & (1 << sector)) === 0) continue;
      ranges.push({ start: pageStart + sector * SECTOR_BYTES, end: pageStart + (sector + 1) * SECTOR_BYTES });
    }
    if (hasPartial(page)) ranges.push({ start: pageStart + page.partialStart, end: pageStart + page.partialEnd });
    return ranges;
  }
}
