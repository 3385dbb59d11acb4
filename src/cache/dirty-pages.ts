import { BLOCK_BYTES, PAGE_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import type { CacheCore } from './cache-core.js';
import { pageRange } from './file-core.js';
import type { Page } from './page.js';
import { WaitQueue } from './wait-queue.js';

/**
 * How much is dirty: the count, the room that writers wait for, and the credits that hits spend.
 *
 * A hit that turns a page dirty spends a credit and leaves the slot in the map's list; `drain` takes it in. The word of credits
 * is set to what is left, `dirtyPagesMax - dirty - promised`, at every drain: a hit in between makes it wrong by its few pages
 * until the next one, and never by more. Writers through the engine come first: what they were promised, hits don't get.
 *
 * Invariant: a page whose masks say dirty and that the engine has looked at is counted exactly once, in `count` and in its file.
 */
const DRAIN_BATCH = 1024;
const PAGES_PER_BLOCK = BLOCK_BYTES / PAGE_BYTES;

export class DirtyPages {
  readonly #core: CacheCore;
  readonly #max: number;
  readonly #room: WaitQueue<true>;
  /** Granted to writers that have not dirtied their pages yet. */
  #promised = 0;
  count = 0;

  constructor(core: CacheCore) {
    this.#core = core;
    this.#max = core.settings.dirtyPagesMax;
    this.#room = new WaitQueue({
      clock: core.clock,
      what: 'room for dirty pages',
      waitersMax: core.settings.waitersMax,
      deadlineMs: core.settings.waitDeadlineMs,
      tryTake: (pages) => {
        if (this.count + this.#promised + pages > this.#max) return null;
        this.#promised += pages;
        return true;
      },
      onWait: () => core.behind.kick(),
      causeOfDelay: () => core.behind.lastError,
    });
    core.map.addDirtyCredits(this.#max);
  }

  get roomWanted(): number {
    return this.#room.wanted;
  }

  /** Room for pages that will become dirty; given back by `endPromise`, when they are dirty or won't be. */
  promise(pages: number, signal?: AbortSignal): true | Promise<true> {
    // Writes to pages that are dirty already add nothing.
    if (pages === 0) return true;
    return this.#room.takeNow(pages) ?? this.#room.take(pages, signal);
  }
  endPromise(pages: number): void {
    this.#promised -= pages;
    this.#room.pump();
  }
  rejectWaiters(error: unknown): void {
    this.#room.rejectAll(error);
  }

  /** Takes in what hits made dirty, and sets their credits to what is left. */
  drain(): void {
    const { map, slots } = this.#core;
    for (;;) {
      const dirtied = map.takeDirtied(DRAIN_BATCH);
      for (const slot of dirtied) {
        const page = slots.pageOf(slot);
        if (page === null || page.gone) continue;
        slots.refresh(page);
        page.file.noteUse(pageRange(page), TokenMode.exclusive, this.#core.now());
      }
      if (dirtied.length < DRAIN_BATCH) break;
    }
    const wanted = Math.max(0, this.#max - this.count - this.#promised);
    const left = map.addDirtyCredits(0);
    if (left !== wanted) map.addDirtyCredits(wanted - left);
  }

  /** The engine made it dirty: hits have one credit less. */
  mark(page: Page): void {
    page.referenced = true;
    if (page.dirty) return;
    this.#count(page);
    this.#core.map.addDirtyCredits(-1);
  }

  /** Found dirty by a hit, which paid for it. */
  noteHit(page: Page): void {
    page.prefetched = false;
    this.#count(page);
  }

  clean(page: Page): void {
    page.dirty = false;
    page.file.dirtyPages.delete(page);
    const block = Math.floor(page.index / PAGES_PER_BLOCK);
    const inBlock = (page.file.dirtyInBlock.get(block) ?? 1) - 1;
    if (inBlock === 0) page.file.dirtyInBlock.delete(block);
    else page.file.dirtyInBlock.set(block, inBlock);
    this.count--;
    if (page.file.dirtyPages.size === 0) this.#core.behind.fileIsClean(page.file);
    this.#core.map.addDirtyCredits(1);
    this.#room.pump();
  }

  #count(page: Page): void {
    const { behind } = this.#core;
    page.dirty = true;
    page.dirtySinceMs = this.#core.now();
    page.retryAtMs = 0;
    page.file.dirtyPages.add(page);
    const block = Math.floor(page.index / PAGES_PER_BLOCK);
    const inBlock = (page.file.dirtyInBlock.get(block) ?? 0) + 1;
    page.file.dirtyInBlock.set(block, inBlock);
    this.count++;
    behind.fileIsDirty(page.file);
    if (inBlock === PAGES_PER_BLOCK) behind.blockIsWhole(page.file, block);
    if (this.count > this.#core.settings.writeBehindStartPages) behind.kick();
  }
}
