import { invariant } from '../common/assert.js';
import { PAGE_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { SlotId } from './cache-map.js';
import { pageRange } from './file-core.js';
import type { Page } from './page.js';
import { isDirty } from './slot-content.js';
import { WaitQueue } from './wait-queue.js';

/**
 * The slots: who has which, and the engine's side of pins.
 *
 * Owns the free list, the spare slots (never installed; pages that have dirty bytes are read into them and merged), and the queue for
 * free slots. Data leaves some slots to metadata: a fill of data may read metadata to find its blocks, never the other way round.
 *
 * Invariants: a slot is free, spare, or one page's. A slot named in a transfer is not given back before the transfer has ended (S3):
 * a page that goes while it is read or written keeps its slot, and the transfer's end gives it back.
 * A page is closed only by an operation that waits for nothing but hits, which last microseconds; so waiting for `closed` ends.
 * Fault model: a hit that pins a page is waited for a few looks, then turn by turn.
 */
export type SlotUse = 'data' | 'metadata' | 'ahead';

const LOOKS_MAX = 8;
const POLL_MS = 5;

export class Slots {
  readonly #core: CacheCore;
  readonly #free: SlotId[] = [];
  readonly #spares: SlotId[] = [];
  readonly #pageOf: (Page | null)[];
  readonly #queues: Record<'data' | 'metadata', WaitQueue<SlotId[]>>;
  readonly #spareQueue: WaitQueue<SlotId[]>;
  readonly total: number;
  #polling = false;
  #reclaiming = false;

  constructor(core: CacheCore) {
    this.#core = core;
    const { slotCount } = core.map;
    const { sparePages, waitersMax, waitDeadlineMs } = core.settings;
    this.total = slotCount - sparePages;
    this.#pageOf = new Array<Page | null>(slotCount).fill(null);
    // Taken from the end, so that neighbours in a file tend to be neighbours in the pool, and go in one piece.
    for (let slot = slotCount - 1; slot >= 0; slot--)
      (slot < this.total ? this.#free : this.#spares).push(slot as SlotId);
    const queue = (use: 'data' | 'metadata'): WaitQueue<SlotId[]> =>
      new WaitQueue({
        clock: core.clock,
        what: 'page that is neither dirty nor in use',
        waitersMax,
        deadlineMs: waitDeadlineMs,
        tryTake: (count) => this.#tryTake(count, use),
        onWait: () => this.#poll(),
        causeOfDelay: () => core.behind.lastError,
      });
    this.#queues = { data: queue('data'), metadata: queue('metadata') };
    this.#spareQueue = new WaitQueue({
      clock: core.clock,
      what: 'spare page',
      waitersMax,
      deadlineMs: waitDeadlineMs,
      tryTake: (count) => (this.#spares.length === 0 ? null : this.#spares.splice(-count)),
    });
  }

  get freeCount(): number {
    return this.#free.length;
  }
  /** Pages that somebody waits for: write-behind makes haste. */
  get wanted(): number {
    return this.#queues.data.wanted + this.#queues.metadata.wanted;
  }
  pageOf(slot: SlotId): Page | null {
    return this.#pageOf[slot] ?? null;
  }

  // Free slots

  /** All or nothing, ascending; null when that would need waiting. */
  takeNow(count: number, use: SlotUse): SlotId[] | null {
    return use === 'ahead' ? this.#tryTake(count, use) : this.#queues[use].takeNow(count);
  }
  take(count: number, use: 'data' | 'metadata', signal?: AbortSignal): Promise<SlotId[]> {
    return this.#queues[use].take(count, signal);
  }
  release(slot: SlotId): void {
    this.#pageOf[slot] = null;
    this.#free.push(slot);
    this.pump();
  }
  /** Slots were freed, or pages became evictable. */
  pump(): void {
    if (this.#queues.metadata.length > 0) this.#queues.metadata.pump();
    if (this.#queues.data.length > 0) this.#queues.data.pump();
  }
  rejectWaiters(error: unknown): void {
    this.#queues.metadata.rejectAll(error);
    this.#queues.data.rejectAll(error);
    this.#spareQueue.rejectAll(error);
  }

  /** At least one, at most `count` spare slots. */
  takeSpares(count: number): Promise<SlotId[]> {
    return this.#spareQueue.take(count);
  }
  releaseSpares(slots: readonly SlotId[]): void {
    this.#spares.push(...slots);
    this.#spareQueue.pump();
  }

  #tryTake(count: number, use: SlotUse): SlotId[] | null {
    const { metadataPages, freePagesLow, freePagesHigh } = this.#core.settings;
    // While somebody waits, nothing is fetched ahead.
    if (use === 'ahead' && this.wanted > 0) return null;
    const keep = use === 'metadata' ? 0 : metadataPages;
    const short = count + keep - this.#free.length;
    if (short > 0) this.#core.eviction.reclaim(short);
    if (this.#free.length < count + keep) return null;
    const taken = this.#free.splice(this.#free.length - count);
    // Pages that went in the order of a file left their slots in order.
    for (let i = 1; i < taken.length; i++)
      if (taken[i - 1]! > taken[i]!) {
        taken.sort((a, b) => a - b);
        break;
      }
    if (this.#free.length < metadataPages + freePagesLow && !this.#reclaiming) {
      this.#reclaiming = true;
      this.#core.clock.after(0, () => {
        this.#reclaiming = false;
        this.#core.eviction.reclaim(metadataPages + freePagesHigh - this.#free.length);
        this.#core.behind.kick();
      });
    }
    return taken;
  }

  /** Nothing tells when a hit unpins the page that a waiter needs: look again now and then. */
  #poll(): void {
    this.#core.behind.kick();
    if (this.#polling) return;
    this.#polling = true;
    this.#core.clock.after(POLL_MS, () => {
      this.#polling = false;
      this.pump();
      if (this.wanted > 0) this.#poll();
    });
  }

  // Pages in slots

  /** The page's slot is taken for it: from now on it is in the file. */
  adopt(page: Page): void {
    this.#pageOf[page.slot] = page;
    page.file.pages.set(page.index, page);
  }

  bytesOf(page: Page, start: number, end: number): Uint8Array {
    const at = page.slot * PAGE_BYTES;
    return this.#core.pool.bytes.subarray(at + start, at + end);
  }

  /** Brings the masks up to date with what hits did; takes notice of pages that they made dirty. */
  refresh(page: Page): Page {
    if (!page.installed || !page.writable || page.gone) return page;
    const { validMask, dirtyMask, partialStart, partialEnd } = this.#core.map.content(page.slot);
    page.validMask = validMask;
    page.dirtyMask = dirtyMask;
    page.partialStart = partialStart;
    page.partialEnd = partialEnd;
    if (!page.dirty && isDirty(page)) this.#core.dirty.noteHit(page);
    return page;
  }

  /** Tells the map what the masks say; the page is closed, or not installed. */
  store(page: Page): void {
    if (page.installed) this.#core.map.setContent(page.slot, page);
  }

  /** Hits may find the page, if they are wanted and nothing speaks against it. */
  show(page: Page): void {
    const { entry, hitsWanted } = page.file;
    if (entry === null || !hitsWanted || page.installed || page.withheld || !page.loaded) return;
    if (page.closed || page.gone || page.writing !== null || page.pins > 0) return;
    page.installed = true;
    page.file.installedCount++;
    this.#core.map.install(page.slot, entry, page.index, page, page.writable);
  }

  /** Write hits may dirty the page from now on: space for all of it is reserved. */
  allowWrites(page: Page): void {
    if (page.writable || page.gone) return;
    page.writable = true;
    if (page.installed) this.#core.map.setWritable(page.slot, true);
  }
  /** The page is closed. */
  forbidWrites(page: Page): void {
    if (!page.writable || page.gone) return;
    this.refresh(page);
    page.writable = false;
    if (page.installed) this.#core.map.setWritable(page.slot, false);
  }

  /**
   * The page leaves the cache, now. Its slot is free at once when the page is closed and quiet, or not installed; else as soon as the
   * transfer, the engine's pins and the hits that use it have ended. `isQuiet`: the caller has just closed it, and no hit is left.
   */
  drop(page: Page, isQuiet = false): void {
    invariant(!page.gone, 'page cache: a page is dropped once');
    const { map, counters, eviction, dirty } = this.#core;
    if (page.prefetched && !(page.installed && map.takeReferences(page.slot) !== 0)) {
      counters.add('cache.readAheadWastedPages');
      page.file.pattern.penalize();
    }
    eviction.forget(page);
    if (page.dirty) dirty.clean(page);
    page.gone = true;
    page.file.pages.delete(page.index);
    const quiet = isQuiet || this.#closeNow(page);
    const inTransfer = page.writing !== null || (page.filling !== null && !page.loaded);
    if (!inTransfer && page.pins === 0) {
      if (quiet) this.freeSlotOf(page);
      else void this.retire(page);
    }
    this.#core.files.forgetIfUnused(page.file);
  }

  /** The slot of a page that went while it was in use: free as soon as the last hit has ended. */
  async retire(page: Page): Promise<void> {
    const turn = this.#core.turns();
    while (!this.#closeNow(page)) await turn();
    this.freeSlotOf(page);
  }

  /** The slot of a page that is gone, now that no transfer names it. */
  freeSlotOf(page: Page): void {
    if (page.installed) {
      page.installed = false;
      page.file.installedCount--;
      this.#core.map.remove(page.slot);
      this.#core.files.closeEntryIfEmpty(page.file);
    }
    this.release(page.slot);
  }

  // Pins

  /** True when nobody is at the page any more and nobody can be before `reopen`. */
  #closeNow(page: Page): boolean {
    if (!page.installed) return true;
    for (let look = 0; look < LOOKS_MAX; look++) if (this.#core.map.close(page.slot)) return true;
    return false;
  }

  /** Exclusive use of all the pages in this very turn, or none of them. */
  tryClose(pages: readonly Page[]): boolean {
    for (const page of pages) if (page.closed || page.writing !== null || page.gone) return false;
    for (let i = 0; i < pages.length; i++) {
      const page = pages[i]!;
      if (this.#closeNow(page)) {
        page.closed = true;
        continue;
      }
      if (page.installed) this.#core.map.reopen(page.slot);
      for (let j = 0; j < i; j++) this.reopen(pages[j]!);
      return false;
    }
    return true;
  }

  /**
   * Exclusive use of the pages. Closes them only when no write-out has them and nobody else closes them, all in one turn; then only
   * hits are waited for. Pages may be gone afterwards: look.
   */
  async close(pages: readonly Page[]): Promise<void> {
    const turn = this.#core.turns();
    for (;;) {
      const written = pages.find((page) => page.writing !== null);
      if (written?.writing) await written.writing;
      else if (pages.some((page) => page.closed && !page.gone)) await turn();
      else break;
    }
    let noisy: Page[] = [];
    for (const page of pages) {
      if (page.gone) continue;
      page.closed = true;
      if (!this.#closeNow(page)) noisy.push(page);
    }
    while (noisy.length > 0) {
      await turn();
      noisy = noisy.filter((page) => !page.gone && !this.#closeNow(page));
    }
  }

  reopen(page: Page): void {
    page.closed = false;
    if (page.gone) return;
    if (page.installed) this.#core.map.reopen(page.slot);
    else this.show(page);
  }

  /** No hit that began before this call uses any of the pages when it resolves; those to come find the coverage as it is now. */
  async waitForHits(pages: readonly Page[]): Promise<void> {
    for (const page of pages) {
      if (page.gone || !page.installed) continue;
      if (!this.tryClose([page])) await this.close([page]);
      if (!page.gone) this.reopen(page);
    }
  }

  /** Shared with hits that read and with write-outs, against everybody who changes the page. */
  tryPinShared(page: Page): boolean {
    if (page.closed || page.gone) return false;
    if (!page.installed) {
      page.pins++;
      return true;
    }
    for (let look = 0; look < LOOKS_MAX; look++) {
      if (!this.#core.map.tryPinShared(page.slot)) continue;
      page.pins++;
      return true;
    }
    return false;
  }
  unpinShared(page: Page): void {
    page.pins--;
    if (page.installed) this.#core.map.unpinShared(page.slot);
    if (page.gone && page.pins === 0) void this.retire(page);
    else this.show(page);
  }

  /** Shared pins on all the pages in this very turn, or on none. */
  tryPinAll(pages: readonly Page[]): boolean {
    for (let i = 0; i < pages.length; i++) {
      if (this.tryPinShared(pages[i]!)) continue;
      for (let j = 0; j < i; j++) this.unpinShared(pages[j]!);
      return false;
    }
    return true;
  }
  unpinAll(pages: readonly Page[]): void {
    for (const page of pages) this.unpinShared(page);
  }

  /**
   * Shared pins on all the pages, in ascending order; waits for hits that write, and for operations that wait for hits. Those that
   * it has are kept while it waits, so that a stream of write hits can't starve it. Throws when one is gone.
   */
  async pinShared(pages: readonly Page[]): Promise<void> {
    const turn = this.#core.turns();
    for (let i = 0; i < pages.length; i++) {
      while (!this.tryPinShared(pages[i]!)) {
        if (pages[i]!.gone) {
          for (let j = 0; j < i; j++) this.unpinShared(pages[j]!);
          throw this.#core.lostError('cache.read');
        }
        await turn();
      }
    }
  }

  /** The page's reservation is known to be whole: write hits may come, or come again. */
  allowWritesIfReserved(page: Page): void {
    if (!page.writable && this.#core.backing.isReserved(page.file.ino, pageRange(page))) this.allowWrites(page);
  }
}
