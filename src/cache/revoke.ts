import type { ByteRange } from '../common/byte-range.js';
import { sleep } from '../common/clock.js';
import type { InodeNumber } from '../common/ids.js';
import { covers } from '../token-manager/compatibility.js';
import { type Revocation, TokenMode } from '../token-manager/token.js';
import type { RevokeHandler } from '../token-manager/token-client-api.js';
import type { CacheCore } from './cache-core.js';
import { forgetRange } from './discard.js';
import type { FileCore } from './file-core.js';
import type { Page } from './page.js';
import { inPage } from './page-access.js';
import { sectorMask } from './sector-merge.js';

/**
 * Serving revokes of data tokens.
 *
 * Order: coverage lowered, hits that began before waited for, fills in flight waited for, the owner's hook, dirty pages written, and made durable (or
 * the next holder might read what a server that lost power has gone back to), pages dropped (or kept clean, when the shared mode is kept). Nothing on the way needs a token (T5), or waits for something that does: operations
 * that have the range pinned are over before the token client calls, fills and write-outs wait for devices only.
 * Invariants: I3, when it resolves nothing of the range is dirty; I2, no page of a range given up can be read.
 * Fault model: a write-out that fails is tried again until it succeeds, or until the node is fenced and everything is dropped:
 * giving the token up with dirty bytes would lose them silently.
 */
/** Before anything is done about a token that leaves: what it resolves with is called when it has left. Null: nothing to wait for. */
export type LeaveHook = (ino: InodeNumber, range: ByteRange, keep: TokenMode) => Promise<() => void> | null;
export type RevokeHook = (range: ByteRange, keep: TokenMode) => Promise<void>;

const RETRY_MAX_MS = 5_000;

export class Revoker implements RevokeHandler {
  readonly #core: CacheCore;
  readonly #hooks = new Map<InodeNumber, RevokeHook>();
  /** Of every token that leaves, before anything else happens. */
  listener: ((ino: InodeNumber) => void) | null = null;
  leaving: LeaveHook | null = null;

  constructor(core: CacheCore) {
    this.#core = core;
  }

  setHook(ino: InodeNumber, hook: RevokeHook): void {
    this.#hooks.set(ino, hook);
  }

  async revoke(revocation: Revocation): Promise<void> {
    const { object, range, keep } = revocation;
    const leaving = this.leaving?.(object as InodeNumber, range, keep) ?? null;
    const left = leaving === null ? null : await leaving;
    try {
      await this.#revoke(revocation);
    } finally {
      left?.();
    }
  }

  async #revoke({ object, range, keep }: Revocation): Promise<void> {
    const { counters, files } = this.#core;
    counters.add('cache.revokes');
    const ino = object as InodeNumber;
    if (!covers(keep, TokenMode.shared)) this.listener?.(ino);
    const file = files.get(ino)?.file;
    const hook = this.#hooks.get(ino);
    if (file === undefined) {
      await hook?.(range, keep);
      await this.#unwatched(ino, range);
      return;
    }
    file.untouched = false;
    file.revoking.push(range);
    this.#core.ahead.cancelRequests(file);
    this.#core.publisher.lower(file);
    try {
      await this.#core.slots.waitForHits(file.pagesIn(range));
      await this.#endFills(file, range);
      await hook?.(range, keep);
      await this.#flush(file, range);
      if (keep < TokenMode.shared) await forgetRange(this.#core, file, range);
      else await this.#keepClean(file, range);
    } finally {
      file.revoking.splice(file.revoking.indexOf(range), 1);
    }
  }

  /** Where the file is in use, as far as the engine sees; null when it has been left alone for a while. */
  working(object: number): ByteRange | null {
    const { files, dirty, settings } = this.#core;
    const file = files.get(object as InodeNumber)?.file;
    if (file === undefined) return null;
    if (file.coverage.length > 0) dirty.drain();
    if (file.lastRange === null || this.#core.now() - file.lastUsedMs > settings.workingIdleMs) return null;
    return file.pattern.working(file.lastRange, settings.prepareBytes);
  }

  async #endFills(file: FileCore, range: ByteRange): Promise<void> {
    for (;;) {
      const filling = file.pagesIn(range).find((page) => page.filling !== null)?.filling;
      if (!filling) return;
      await filling;
    }
  }

  async #flush(file: FileCore, range: ByteRange): Promise<void> {
    const { clock, copier, dirty, behind, counters, logger, settings, generation } = this.#core;
    for (let delayMs = settings.writeRetryMs; ; delayMs = Math.min(2 * delayMs, RETRY_MAX_MS)) {
      dirty.drain();
      const pages = file.pagesIn(range).filter((page) => this.#isDirtyIn(page, range));
      if (generation !== this.#core.generation) return;
      if (pages.length === 0) {
        const durable = await this.#makeDurable(file.ino, range);
        if (durable === true) return;
        if (durable === 'failed') await sleep(clock, delayMs);
        continue;
      }
      counters.add('cache.revokeFlushes');
      counters.add('cache.revokeFlushBytes', copier.dirtyBytes(pages));
      const error = await behind.flush(file, pages);
      if (error === null) {
        delayMs = settings.writeRetryMs / 2;
        continue;
      }
      file.writeError ??= error;
      logger.warn({ ino: file.ino, range, error: error.message }, 'a revoke waits: its dirty pages cannot be written');
      await sleep(clock, delayMs);
    }
  }

  /** Of a file without a page in the cache: what was written of it may wait for a flush all the same. */
  async #unwatched(ino: InodeNumber, range: ByteRange): Promise<void> {
    const { clock, settings, generation } = this.#core;
    for (let delayMs = settings.writeRetryMs; generation === this.#core.generation; ) {
      if ((await this.#makeDurable(ino, range)) !== 'failed') return;
      await sleep(clock, delayMs);
      delayMs = Math.min(2 * delayMs, RETRY_MAX_MS);
    }
  }

  async #makeDurable(ino: InodeNumber, range: ByteRange): Promise<boolean | 'failed'> {
    try {
      return await this.#core.backing.makeDurable(ino, range);
    } catch (error) {
      this.#core.logger.warn({ ino, range, error: String(error) }, 'a revoke waits: a flush fails');
      return 'failed';
    }
  }

  /** Writers of the page's other sectors go on: they may have it dirty again and again, and must not hold the token up. */
  #isDirtyIn(page: Page, range: ByteRange): boolean {
    if (!page.dirty) return false;
    const { start, end } = inPage(range, page.index);
    const { dirtyMask, partialStart, partialEnd } = this.#core.slots.refresh(page);
    return (dirtyMask & sectorMask(start, end)) !== 0 || (partialStart < end && start < partialEnd);
  }

  /** Pages stay, clean; no write hit may dirty them until a write finds space reserved again. Those without a valid byte go. */
  async #keepClean(file: FileCore, range: ByteRange): Promise<void> {
    const { slots } = this.#core;
    const empty: Page[] = [];
    for (const page of file.pagesIn(range)) {
      if (!page.writable && page.validMask !== 0) continue;
      if (!slots.tryClose([page])) await slots.close([page]);
      if (page.gone) continue;
      slots.forbidWrites(page);
      if (page.validMask === 0 && page.holds === 0 && page.pins === 0 && !page.dirty) empty.push(page);
      else slots.reopen(page);
    }
    for (const page of empty) slots.drop(page);
  }
}
