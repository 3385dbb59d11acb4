import type { ByteRange } from '../common/byte-range.js';
import { PAGE_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { SlotId } from './cache-map.js';
import type { FileCore } from './file-core.js';
import { HeldSectors, type SectorsWanted } from './fills.js';
import { Page } from './page.js';
import { sectorMask } from './sector-merge.js';
import { isReadable, withWrite } from './slot-content.js';
import type { SlotUse } from './slots.js';
import { abortable } from './wait-queue.js';

/**
 * Bringing the pages of a range into the state that an operation needs, and keeping them there.
 *
 * `read`: every byte readable. `write`: every byte can be taken in; an absent page needs no read, a page whose masks can't express
 * the write does. `bytes`: every sector valid, for views.
 * A `Claim` names the pages that an operation needs; they aren't evicted until it ends. Loops until all are there in one and the
 * same turn, since any wait may change any of them.
 */
export type Purpose = 'read' | 'write' | 'bytes';

export class Claim {
  readonly #held = new Set<Page>();
  constructor(private readonly core: CacheCore) {}

  hold(page: Page): void {
    if (this.#held.has(page)) return;
    this.#held.add(page);
    page.holds++;
  }
  end(): void {
    for (const page of this.#held) page.holds--;
    this.#held.clear();
    this.core.slots.pump();
  }
}

/** The bytes of the range that lie in a page: [start, end) in it. */
export const inPage = (range: ByteRange, index: number): ByteRange => ({
  start: Math.max(range.start - index * PAGE_BYTES, 0),
  end: Math.min(range.end - index * PAGE_BYTES, PAGE_BYTES),
});
export const firstPage = (range: ByteRange): number => Math.floor(range.start / PAGE_BYTES);
export const pageEnd = (range: ByteRange): number => Math.ceil(range.end / PAGE_BYTES);
export const pageCount = (range: ByteRange): number => pageEnd(range) - firstPage(range);

export class PageAccess {
  readonly #core: CacheCore;

  constructor(core: CacheCore) {
    this.#core = core;
  }

  /** All pages of the range as the purpose needs them, now; null when something is missing. */
  tryAll(file: FileCore, range: ByteRange, purpose: Purpose): Page[] | null {
    const pages: Page[] = [];
    for (let index = firstPage(range); index < pageEnd(range); index++) {
      const page = file.pages.get(index);
      if (page === undefined || !this.isReady(page, range, purpose)) return null;
      pages.push(page);
    }
    return pages;
  }

  isReady(page: Page, range: ByteRange, purpose: Purpose): boolean {
    if (!page.loaded) return false;
    const { start, end } = inPage(range, page.index);
    if (purpose === 'read')
      return isReadable(page, start, end) || isReadable(this.#core.slots.refresh(page), start, end);
    if (purpose === 'write') return withWrite(this.#core.slots.refresh(page), start, end) !== null;
    const mask = sectorMask(start, end);
    return (page.validMask & mask) === mask || (this.#core.slots.refresh(page).validMask & mask) === mask;
  }

  /**
   * Waits until all pages of the range are as needed; the claim holds them. `range` is covered by pinned tokens.
   * @throws {FsError} of the backing store, aborted, deadlinePassed, fenced.
   */
  async all(file: FileCore, range: ByteRange, purpose: Purpose, claim: Claim, signal?: AbortSignal): Promise<Page[]> {
    const { generation, slots, fills } = this.#core;
    const use: SlotUse = purpose === 'bytes' ? 'metadata' : 'data';
    // Slots in hand; kept while waiting for more, which permits make safe, and given back in the end.
    const stock: SlotId[] = [];
    try {
      for (;;) {
        this.#core.check(`cache.${purpose}`, file.ino, generation);
        const { pages, absent, wanted, others } = this.#look(file, range, purpose, claim);
        if (absent.length === 0 && wanted.length === 0 && others === null) return pages;
        const short = absent.length - stock.length;
        if (short > 0) {
          const now = slots.takeNow(short, use);
          stock.push(...(now ?? (await slots.take(short, use, signal))));
          // After a wait everything may be different.
          if (now === null) continue;
        }
        const running: Promise<unknown>[] = [];
        if (absent.length > 0)
          running.push(this.#bring(file, range, purpose, absent, stock.splice(0, absent.length), claim));
        if (wanted.length > 0)
          running.push(fills.merge(file, wanted, (page) => new HeldSectors(this.#core, file, range).of(page.index)));
        if (others !== null) running.push(others);
        await abortable(settledAll(running), 'a read', signal);
      }
    } finally {
      for (const slot of stock) slots.release(slot);
    }
  }

  /** All pages as needed, and pinned shared in the turn in which it resolves. */
  async pinned(
    file: FileCore,
    range: ByteRange,
    purpose: Purpose,
    claim: Claim,
    signal?: AbortSignal,
  ): Promise<Page[]> {
    const { slots } = this.#core;
    for (;;) {
      const pages = await this.all(file, range, purpose, claim, signal);
      if (!slots.tryPinAll(pages)) await slots.pinShared(pages);
      if (pages.every((page) => !page.gone && this.isReady(page, range, purpose))) return pages;
      slots.unpinAll(pages);
    }
  }

  /** All pages as needed, and closed: the caller reopens them. */
  async closed(
    file: FileCore,
    range: ByteRange,
    purpose: Purpose,
    claim: Claim,
    signal?: AbortSignal,
  ): Promise<Page[]> {
    const { slots } = this.#core;
    for (;;) {
      const pages = await this.all(file, range, purpose, claim, signal);
      if (!slots.tryClose(pages)) await slots.close(pages);
      if (pages.every((page) => !page.gone && this.isReady(page, range, purpose))) return pages;
      for (const page of pages) slots.reopen(page);
    }
  }

  #look(
    file: FileCore,
    range: ByteRange,
    purpose: Purpose,
    claim: Claim,
  ): { pages: Page[]; absent: number[]; wanted: SectorsWanted[]; others: Promise<void> | null } {
    const pages: Page[] = [];
    const absent: number[] = [];
    const wanted: SectorsWanted[] = [];
    let others: Promise<void> | null = null;
    for (let index = firstPage(range); index < pageEnd(range); index++) {
      const page = file.pages.get(index);
      if (page === undefined) {
        absent.push(index);
        continue;
      }
      claim.hold(page);
      this.use(page);
      pages.push(page);
      if (this.isReady(page, range, purpose)) continue;
      if (page.filling !== null) others ??= page.filling;
      else wanted.push(this.#missing(page, file, range, purpose));
    }
    return { pages, absent, wanted, others };
  }

  #bring(
    file: FileCore,
    range: ByteRange,
    purpose: Purpose,
    absent: readonly number[],
    slots: readonly SlotId[],
    claim: Claim,
  ): Promise<void> {
    this.#core.counters.add('cache.missedPages', absent.length);
    if (purpose !== 'write') {
      const { pages, done } = this.#core.fills.start(file, absent, slots, range, false);
      for (const page of pages) claim.hold(page);
      return done;
    }
    for (const [i, index] of absent.entries()) {
      const page = new Page(file, index, slots[i]!);
      page.loaded = true;
      this.#core.slots.adopt(page);
      this.#core.eviction.admit(page);
      claim.hold(page);
    }
    return Promise.resolve();
  }

  /** What a page that is there still needs: for a write, the sectors that it changes in part; else the page, as far as tokens reach. */
  #missing(page: Page, file: FileCore, range: ByteRange, purpose: Purpose): SectorsWanted {
    const { start, end } = inPage(range, page.index);
    const least = sectorMask(start, end) & ~page.validMask;
    if (purpose === 'write') return { page, mask: least, least };
    return { page, mask: new HeldSectors(this.#core, file, range).of(page.index) & ~page.validMask, least };
  }

  /** An operation uses the page: what read-ahead kept from hits is shown to them. */
  use(page: Page): void {
    page.referenced = true;
    page.prefetched = false;
    if (!page.withheld) return;
    page.withheld = false;
    this.#core.slots.show(page);
  }
}

/** All have ended, before the first error is thrown: nothing is left running behind the operation's back. */
async function settledAll(running: readonly Promise<unknown>[]): Promise<void> {
  const results = await Promise.allSettled(running);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
