import { type Clock, sleep } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Random } from '../common/random.js';
import type { PagePool } from '../native/page-pool.js';
import type { TokenClientApi } from '../token-manager/token-client-api.js';
import type { BackingStore } from './backing-store.js';
import type { CacheMap } from './cache-map.js';
import { Copier } from './copy.js';
import { DirtyPages } from './dirty-pages.js';
import { Eviction } from './eviction.js';
import { FileTable } from './file-table.js';
import { Fills } from './fills.js';
import { PageAccess } from './page-access.js';
import type { PageCacheCounters } from './page-cache-counters.js';
import { completeSettings, type PageCacheSettings } from './page-cache-settings.js';
import { Publisher } from './publish.js';
import { ReadAhead } from './read-ahead.js';
import { Slots } from './slots.js';
import { WaitQueue } from './wait-queue.js';
import { WriteBehind } from './write-behind.js';

export interface PageCacheParts {
  readonly map: CacheMap;
  readonly pool: PagePool;
  readonly tokens: TokenClientApi;
  readonly backing: BackingStore;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly counters: Counters;
  readonly settings?: Partial<PageCacheSettings> | undefined;
}

const TURNS_AT_ONCE = 4;
const TURN_MAX_MS = 1;

/** The mechanisms of one page cache, as they see each other. Made once; none of them outlives it. */
export class CacheCore {
  readonly map: CacheMap;
  readonly pool: PagePool;
  readonly tokens: TokenClientApi;
  readonly backing: BackingStore;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly counters: PageCacheCounters;
  readonly settings: PageCacheSettings;

  readonly slots: Slots;
  readonly eviction: Eviction;
  readonly dirty: DirtyPages;
  readonly fills: Fills;
  readonly behind: WriteBehind;
  readonly ahead: ReadAhead;
  readonly publisher: Publisher;
  readonly files: FileTable;
  readonly access: PageAccess;
  readonly copier: Copier;
  /**
   * Pages that running operations on data may hold. Together less than there are, so that the pages an operation still needs can
   * always be had by evicting: two operations never wait for each other's.
   */
  readonly permits: WaitQueue<true>;
  #permits: number;

  /** Counted up when everything is dropped: operations that began before fail. */
  generation = 0;
  closed = false;

  constructor(parts: PageCacheParts) {
    this.map = parts.map;
    this.pool = parts.pool;
    this.tokens = parts.tokens;
    this.backing = parts.backing;
    this.clock = parts.clock;
    this.random = parts.random;
    this.logger = parts.logger;
    this.counters = parts.counters;
    this.settings = completeSettings(parts.settings ?? {}, parts.map.slotCount);
    this.slots = new Slots(this);
    this.eviction = new Eviction(this);
    this.behind = new WriteBehind(this);
    this.dirty = new DirtyPages(this);
    this.fills = new Fills(this);
    this.ahead = new ReadAhead(this);
    this.publisher = new Publisher(this);
    this.files = new FileTable(this);
    this.access = new PageAccess(this);
    this.copier = new Copier(this);
    this.#permits = this.slots.total - this.settings.metadataPages;
    this.permits = new WaitQueue({
      clock: this.clock,
      what: 'running operations to let go of pages',
      waitersMax: this.settings.waitersMax,
      deadlineMs: this.settings.waitDeadlineMs,
      tryTake: (pages) => {
        if (pages > this.#permits) return null;
        this.#permits -= pages;
        return true;
      },
    });
  }

  givePermits(pages: number): void {
    this.#permits += pages;
    this.permits.pump();
  }

  now(): number {
    return this.clock.nowMs();
  }

  /**
   * For waiting until hits of other threads have ended: each call waits for the next turn, and after a few turns longer and longer, so
   * that nothing spins when a thread was stopped in the midst of its hit.
   */
  turns(): () => Promise<void> {
    let count = 0;
    return () => {
      const delayMs = count++ < TURNS_AT_ONCE ? 0 : Math.min(TURN_MAX_MS, 0.01 * 2 ** (count - TURNS_AT_ONCE));
      return sleep(this.clock, delayMs);
    };
  }

  /** Before an operation goes on after a wait: the cache is open, and the same as when it began. */
  check(op: string, ino: InodeNumber, generation: number = this.generation): void {
    // Closed since, or not: what was dropped is the reason why.
    if (this.closed && this.generation === 0)
      throw new FsError('closed', { op, object: `inode ${ino}`, detail: 'the page cache is closed' });
    if (this.closed || generation !== this.generation) throw this.lostError(op, ino);
  }

  lostError(op: string, ino?: InodeNumber): FsError {
    const object = ino === undefined ? undefined : `inode ${ino}`;
    return new FsError('fenced', { op, object, detail: 'this node was fenced, its cache dropped' });
  }
}
