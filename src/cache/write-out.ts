import { contains } from '../common/byte-range.js';
import { isDamage } from '../common/damage.js';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import type { CacheCore } from './cache-core.js';
import { giveUpDamagedPartials } from './damaged-partials.js';
import { type FileCore, pageRange } from './file-core.js';
import { PieceList } from './fills.js';
import type { Page } from './page.js';
import { hasPartial, isDirty } from './slot-content.js';

/**
 * The way of dirty pages to the backing store: of one file, or of several small ones together.
 *
 * Partial runs are completed first. Then the pages are pinned shared and stay so until the devices have them (S2): hits that would
 * write miss, writers through the engine wait for `writing`. Nothing is waited for while a pin is held, but the device.
 * Dirty bits are taken off under the pin and a closed slot, so no write can come between the last look and the clean bit.
 *
 * Fault model: a failed write leaves its pages dirty, to be tried again after a pause. Needs no token and no free slot, only spares (T5).
 */
interface InHand {
  readonly page: Page;
  readonly mask: number;
}

/** Pages of one file. */
export interface Group {
  readonly file: FileCore;
  readonly pages: readonly Page[];
}

/** Pages that are on their way to the backing store. */
interface OnTheirWay {
  readonly file: FileCore;
  readonly pieces: PieceList['pieces'];
  /** With what came of it. */
  ended(cause: unknown): FsError | null;
}

export class WriteOut {
  readonly #core: CacheCore;

  constructor(core: CacheCore) {
    this.#core = core;
  }

  /** In a range whose bytes are about to be thrown away. */
  isDiscarded(page: Page): boolean {
    const { discarding } = page.file;
    return discarding.length > 0 && discarding.some((range) => contains(range, pageRange(page)));
  }

  /**
   * The dirty pages of the list, each once. Thorough: those that are on their way already are waited for, and tried again if that
   * failed; else they are left to whoever has them. Null, or the first error.
   */
  async write(file: FileCore, pages: readonly Page[], thorough: boolean): Promise<FsError | null> {
    let first: FsError | null = null;
    let rest: readonly Page[] = pages;
    const turn = this.#core.turns();
    try {
      while (rest.length > 0) {
        rest = await this.#waitForOthers(rest, thorough);
        const failed = await this.#completePartials(file, rest);
        if (failed !== null) {
          first ??= FsError.from(failed, 'cache.writeOut', `inode ${file.ino}`);
          const stuck = new Set(rest.filter((page) => !page.gone && hasPartial(page)));
          this.#postpone(stuck);
          rest = rest.filter((page) => !stuck.has(page));
        }
        const { taken, later } = this.#take(rest);
        if (taken.length > 0) {
          const error = await this.#send(file, taken);
          first ??= error;
          // Their dirty bits stay: this is not the one to try again.
          if (error !== null) return first;
        } else if (later.some((page) => page.writing === null)) await turn();
        rest = later;
      }
    } catch (error) {
      first ??= FsError.from(error, 'cache.writeOut', `inode ${file.ino}`);
    }
    return first;
  }

  async #completePartials(file: FileCore, pages: readonly Page[]): Promise<unknown> {
    const { fills, files } = this.#core;
    const failed = await fills.completePartials(file, pages, file.endOf(files.stateOf(file)));
    return isDamage(failed) ? giveUpDamagedPartials(this.#core, file, pages) : failed;
  }

  async #waitForOthers(pages: readonly Page[], thorough: boolean): Promise<readonly Page[]> {
    if (!thorough) return pages.filter((page) => page.dirty && page.writing === null && !this.isDiscarded(page));
    for (const page of pages) if (page.writing !== null) await page.writing;
    return pages.filter((page) => page.dirty);
  }

  /** Pins what can be pinned in this turn; the others come later. */
  #take(pages: readonly Page[]): { taken: InHand[]; later: Page[] } {
    const { slots } = this.#core;
    const taken: InHand[] = [];
    const later: Page[] = [];
    for (const page of pages) {
      if (page.gone || !page.dirty) continue;
      if (page.writing !== null || !slots.tryPinShared(page)) {
        later.push(page);
        continue;
      }
      slots.refresh(page);
      // It was completed a moment ago: a hit has begun another run, which is completed in the next round.
      if (hasPartial(page)) later.push(page);
      if (page.dirtyMask === 0) slots.unpinShared(page);
      else taken.push({ page, mask: page.dirtyMask });
    }
    return { taken, later };
  }

  /**
   * Groups of different files, none of which anybody waits for: what can be taken in this turn goes in one write of the backing store, the rest by
   * itself. Calls back for each file that failed.
   */
  async writeTogether(groups: readonly Group[], failed: (file: FileCore, error: FsError) => void): Promise<void> {
    const underWay: Promise<void>[] = [];
    const writeAlone = async (file: FileCore, pages: readonly Page[]): Promise<void> => {
      const error = await this.write(file, pages, false);
      if (error !== null) failed(file, error);
    };
    const together: OnTheirWay[] = [];
    for (const { file, pages } of groups) {
      const candidates = pages.filter((page) => page.dirty && page.writing === null && !this.isDiscarded(page));
      if (!this.#core.fills.tryCompletePartials(candidates, file.endOf(this.#core.files.stateOf(file)))) {
        underWay.push(writeAlone(file, pages));
        continue;
      }
      const { taken, later } = this.#take(candidates);
      if (taken.length > 0) together.push(this.#begin(file, taken));
      if (later.length > 0) underWay.push(writeAlone(file, later));
    }
    const writes = this.#core.backing.writeTogether(together.map(({ file, pieces }) => ({ ino: file.ino, pieces })));
    for (const [index, { file, ended }] of together.entries())
      underWay.push(
        writes[index]!.then(
          () => void ended(null),
          (cause: unknown) => {
            const error = ended(cause);
            if (error !== null) failed(file, error);
          },
        ),
      );
    await Promise.all(underWay);
  }

  async #send(file: FileCore, taken: readonly InHand[]): Promise<FsError | null> {
    const { pieces, ended } = this.#begin(file, taken);
    try {
      await this.#core.backing.write(file.ino, pieces);
      return ended(null);
    } catch (cause) {
      return ended(cause);
    }
  }

  #begin(file: FileCore, taken: readonly InHand[]): OnTheirWay {
    const { counters } = this.#core;
    const list = new PieceList();
    for (const { page, mask } of taken) list.addSectors(page.index, mask, page.slot);
    const over = deferred<void>();
    for (const { page } of taken) page.writing = over.promise;
    const ended = (cause: unknown): FsError | null => {
      const error = cause === null ? null : FsError.from(cause, 'cache.writeOut', `inode ${file.ino}`);
      if (error === null) {
        counters.add('cache.writeBehinds');
        counters.add(
          'cache.writeBehindBytes',
          list.pieces.reduce((sum, piece) => sum + piece.lengthBytes, 0),
        );
      }
      for (const { page, mask } of taken) this.#end(page, error === null ? mask : 0);
      if (error !== null) this.#postpone(taken.map(({ page }) => page));
      over.resolve();
      return error;
    };
    return { file, pieces: list.pieces, ended };
  }

  #end(page: Page, cleanMask: number): void {
    const { slots, dirty, map } = this.#core;
    page.writing = null;
    if (page.gone || cleanMask === 0) {
      slots.unpinShared(page);
      return;
    }
    // Our own pin keeps writers out until the slot is closed; readers may be at it.
    if (page.installed) map.close(page.slot);
    page.dirtyMask &= ~cleanMask;
    page.writtenMask |= cleanMask;
    slots.store(page);
    if (!isDirty(page)) dirty.clean(page);
    if (page.installed) map.reopen(page.slot);
    slots.unpinShared(page);
  }

  /** Behind all others of their file, after a pause. */
  #postpone(pages: Iterable<Page>): void {
    const now = this.#core.now();
    // Not all nodes at once, when a server comes back.
    const pauseMs = this.#core.settings.writeRetryMs * (1 + this.#core.random.next() / 2);
    for (const page of pages) {
      if (page.gone || !page.dirty) continue;
      page.dirtySinceMs = now;
      page.retryAtMs = now + pauseMs;
      page.file.dirtyPages.delete(page);
      page.file.dirtyPages.add(page);
    }
  }
}
