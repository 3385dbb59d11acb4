import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { TokenClass } from '../token-manager/token.js';
import { CacheCore, type PageCacheParts } from './cache-core.js';
import type { CachedFileOps } from './cached-file.js';
import type { FileState } from './file-table.js';
import type { PageCacheApi } from './page-cache-api.js';
import { type LeaveHook, type RevokeHook, Revoker } from './revoke.js';

/**
 * The page cache of one node: puts its mechanisms together, and what concerns all files.
 *
 * One thread, one event loop; applications' threads meet it in the cache map only. Time and chance come from outside, so it runs in
 * the simulator as it is.
 *
 * Which mechanism waits for which, so that none waits in a circle: an operation waits for its range lock, then room for dirty pages, then
 * permits, then slots and fills, then hits. Room and slots are made by write-outs and eviction; write-outs wait for spares
 * and devices; fills for devices. Neither write-outs, nor fills, nor revokes take a range lock, a permit, or a token.
 *
 * Fault model: errors of the backing store reach whoever waits, or the next flush of the file (I10). A fenced node drops everything
 * and says what it lost (F3).
 */
export type { PageCacheParts } from './cache-core.js';
export type { PageCacheSettings } from './page-cache-settings.js';

export function createPageCache(parts: PageCacheParts): PageCacheApi {
  return new PageCache(parts);
}

class PageCache implements PageCacheApi {
  readonly #core: CacheCore;
  readonly #revoker: Revoker;

  constructor(parts: PageCacheParts) {
    this.#core = new CacheCore(parts);
    this.#revoker = new Revoker(this.#core);
    parts.tokens.setRevokeHandler(TokenClass.data, this.#revoker);
  }

  attach(ino: InodeNumber, state: FileState): CachedFileOps {
    this.#core.check('cache.attach', ino);
    return this.#core.files.attach(ino, state);
  }
  get(ino: InodeNumber): CachedFileOps | undefined {
    return this.#core.files.get(ino);
  }
  setRevokeHook(ino: InodeNumber, hook: RevokeHook): void {
    this.#revoker.setHook(ino, hook);
  }
  setLeaveHook(hook: LeaveHook | null): void {
    this.#revoker.leaving = hook;
  }
  setRevokeListener(listener: (ino: InodeNumber) => void): void {
    this.#revoker.listener = listener;
  }

  async flushTogether(inos: readonly InodeNumber[]): Promise<ReadonlyMap<InodeNumber, FsError>> {
    const { files, behind, dirty } = this.#core;
    dirty.drain();
    const found = inos.map((ino) => files.get(ino)?.file).filter((file) => file !== undefined);
    const failed = await behind.flushTogether(found);
    return new Map([...failed].map(([{ ino }, error]) => [ino, error]));
  }

  async flushAll(): Promise<void> {
    const failed = await this.flushTogether(this.#core.files.all().map(({ file }) => file.ino));
    let first: unknown = failed.values().next().value ?? null;
    await Promise.all(
      this.#core.files.all().map(async (ops) => {
        try {
          if (!failed.has(ops.ino)) await ops.flush();
        } catch (error) {
          first ??= error;
        }
      }),
    );
    if (first !== null) throw first;
  }

  usage(): { pages: number; pagesUsed: number; dirtyPages: number; dirtyPagesMax: number } {
    const { slots, dirty, settings } = this.#core;
    dirty.drain();
    const pages = slots.total;
    return {
      pages,
      pagesUsed: pages - slots.freeCount,
      dirtyPages: dirty.count,
      dirtyPagesMax: settings.dirtyPagesMax,
    };
  }

  dropEverything(): { ino: InodeNumber; range: ByteRange }[] {
    const core = this.#core;
    core.dirty.drain();
    core.generation++;
    core.behind.forgetAll();
    const lost: { ino: InodeNumber; range: ByteRange }[] = [];
    for (const { file } of core.files.all()) {
      core.ahead.cancelRequests(file);
      core.publisher.forget(file);
      const ranges: ByteRange[] = [];
      for (const page of [...file.pages.values()].sort((a, b) => a.index - b.index)) {
        ranges.push(...core.copier.dirtyRanges(page));
        core.slots.drop(page);
      }
      file.writeError = null;
      for (const range of merged(ranges)) lost.push({ ino: file.ino, range });
    }
    core.dirty.drain();
    const error = core.lostError('cache.wait');
    core.slots.rejectWaiters(error);
    core.dirty.rejectWaiters(error);
    core.permits.rejectAll(error);
    return lost;
  }

  async close(): Promise<void> {
    const core = this.#core;
    if (core.closed) return;
    try {
      await this.flushAll();
    } finally {
      core.closed = true;
      core.behind.stop();
      const error = new FsError('closed', { op: 'cache.close', detail: 'the page cache is closed' });
      core.slots.rejectWaiters(error);
      core.dirty.rejectWaiters(error);
      core.permits.rejectAll(error);
      for (const { file } of core.files.all()) {
        core.ahead.cancelRequests(file);
        core.publisher.forget(file);
      }
    }
  }
}

/** Ascending ranges, those that touch made one. */
function merged(ranges: readonly ByteRange[]): ByteRange[] {
  const result: ByteRange[] = [];
  for (const range of [...ranges].sort((a, b) => a.start - b.start)) {
    const last = result.at(-1);
    if (last !== undefined && last.end >= range.start)
      result[result.length - 1] = { start: last.start, end: Math.max(last.end, range.end) };
    else result.push(range);
  }
  return result;
}
