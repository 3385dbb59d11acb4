import { invariant } from '../common/assert.js';
import { PAGE_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { Page } from './page.js';
import type { PageView } from './page-cache-api.js';
import { sectorMask } from './sector-merge.js';

/** Views of pages that are pinned for as long as `use` runs; after that it refuses. */
export class PinnedView implements PageView {
  #open = true;

  constructor(
    private readonly core: CacheCore,
    private readonly pages: readonly Page[],
    private readonly firstIndex: number,
    private readonly exclusive: boolean,
  ) {}

  bytes(offsetBytes: number, lengthBytes: number): Uint8Array {
    const page = this.#page(offsetBytes, lengthBytes);
    const start = offsetBytes - page.index * PAGE_BYTES;
    return this.core.slots.bytesOf(page, start, start + lengthBytes);
  }

  changed(offsetBytes: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    invariant(this.exclusive, 'page cache: bytes are changed in exclusive mode only');
    const page = this.#page(offsetBytes, lengthBytes);
    const start = offsetBytes - page.index * PAGE_BYTES;
    const mask = sectorMask(start, start + lengthBytes);
    invariant((page.validMask & mask) === mask, 'page cache: changed bytes lie in the range that was asked for');
    page.dirtyMask |= mask;
    this.core.dirty.mark(page);
    this.core.slots.store(page);
  }

  end(): void {
    this.#open = false;
  }

  #page(offsetBytes: number, lengthBytes: number): Page {
    invariant(this.#open, 'page cache: a view is used only while its pages are pinned');
    const index = Math.floor(offsetBytes / PAGE_BYTES);
    const page = this.pages[index - this.firstIndex];
    invariant(
      page !== undefined && offsetBytes + lengthBytes <= (index + 1) * PAGE_BYTES,
      'page cache: a view lies in the range that was asked for and in one page',
    );
    return page;
  }
}
