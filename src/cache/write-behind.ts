import type { Timer } from '../common/clock.js';
import type { FsError } from '../common/errors.js';
import { BLOCK_BYTES, PAGE_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { FileCore } from './file-core.js';
import type { Page } from './page.js';
import { WaitQueue } from './wait-queue.js';
import { type Group, WriteOut } from './write-out.js';

/**
 * Write-behind: which dirty pages go out, and when, without anybody waiting for them.
 *
 * Pages go when they have been dirty for long enough, when too much is dirty in all (the files that have been dirty longest first),
 * when somebody waits for room or for a slot, and whole dirty blocks at once. A file is written in ascending order, in groups of
 * at most a block; groups of small files go together, up to a block of them; a few such transfers are in flight, and a flush somebody waits for goes before
 * everything in the background.
 *
 * Invariants: `dirtyFiles` are the files with pages counted as dirty, the longest dirty first. What failed stays dirty, is remembered on
 * its file for the next flush (I10), and is tried again after a pause.
 * Fault model: errors of the backing store; nothing here throws at whoever made pages dirty.
 */
const PAGES_PER_BLOCK = BLOCK_BYTES / PAGE_BYTES;

export class WriteBehind {
  readonly #core: CacheCore;
  readonly #out: WriteOut;
  readonly #dirtyFiles = new Set<FileCore>();
  readonly #wholeBlocks: { file: FileCore; block: number }[] = [];
  #groups: Group[] = [];
  readonly #transfers: WaitQueue<true>;
  #inFlight = 0;
  #pumping = false;
  #kicked = false;
  #tick: Timer | null = null;
  /** The latest failure of a write-out: why somebody who waits for room may be waiting. */
  lastError: FsError | null = null;

  constructor(core: CacheCore) {
    this.#core = core;
    this.#out = new WriteOut(core);
    this.#transfers = new WaitQueue({
      clock: core.clock,
      what: 'write-outs in flight to end',
      waitersMax: Number.MAX_SAFE_INTEGER,
      deadlineMs: null,
      tryTake: () => {
        if (this.#inFlight >= core.settings.writeBehindConcurrency) return null;
        this.#inFlight++;
        return true;
      },
    });
  }

  // What others report

  fileIsDirty(file: FileCore): void {
    this.#dirtyFiles.add(file);
    this.watch();
  }
  fileIsClean(file: FileCore): void {
    this.#dirtyFiles.delete(file);
  }
  blockIsWhole(file: FileCore, block: number): void {
    this.#wholeBlocks.push({ file, block });
    this.kick();
  }

  /** Something may want writing: looked at in a turn of its own. */
  kick(): void {
    if (this.#kicked || this.#core.closed) return;
    this.#kicked = true;
    this.#core.clock.after(0, () => {
      this.#kicked = false;
      this.#core.dirty.drain();
      void this.#pump();
    });
  }

  /** The tick runs from now on, as long as hits may make pages dirty or some are. */
  watch(): void {
    if (this.#tick !== null || this.#core.closed) return;
    this.#tick = this.#core.clock.after(this.#core.settings.writeBehindTickMs, () => {
      this.#tick = null;
      this.#core.dirty.drain();
      void this.#pump();
      if (this.#dirtyFiles.size > 0 || this.#core.publisher.writersPublished) this.watch();
    });
  }
  stop(): void {
    this.#tick?.cancel();
    this.#tick = null;
    this.#groups = [];
    this.#wholeBlocks.length = 0;
  }

  // In the background

  async #pump(): Promise<void> {
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      for (;;) {
        if (this.#groups.length === 0) this.#plan();
        if (this.#groups.length === 0 || this.#core.closed) return;
        await this.#transfers.take(1);
        // Not waited for: the next transfer follows as soon as there may be another one.
        const groups = takeTogether(this.#groups);
        const ended = this.#out.writeTogether(groups, (file, error) => this.#failed(file, error));
        void ended.then(() => {
          this.#transferEnded();
          this.#core.slots.pump();
          if (this.#needsMore()) this.kick();
        });
      }
    } finally {
      this.#pumping = false;
    }
  }

  #needsMore(): boolean {
    const { dirty, slots, settings } = this.#core;
    return (
      dirty.count > settings.writeBehindStartPages || dirty.roomWanted > 0 || (slots.wanted > 0 && dirty.count > 0)
    );
  }

  #plan(): void {
    const { dirty, slots, settings } = this.#core;
    for (const { file, block } of this.#wholeBlocks.splice(0)) {
      const pages: Page[] = [];
      for (let index = block * PAGES_PER_BLOCK; index < (block + 1) * PAGES_PER_BLOCK; index++) {
        const page = file.pages.get(index);
        if (page !== undefined) pages.push(page);
      }
      this.#addGroups(file, pages);
    }
    const now = this.#core.now();
    // Down to three quarters of where it starts, and as much as is waited for.
    const target = Math.floor(settings.writeBehindStartPages * 0.75);
    let excess = dirty.count > settings.writeBehindStartPages ? dirty.count - target : 0;
    excess = Math.max(excess, dirty.roomWanted, slots.wanted);
    for (const { pages } of this.#groups) excess -= pages.length;
    const due = now - settings.writeBehindAgeMs;
    for (const file of this.#dirtyFiles) {
      const oldest = firstOf(file.dirtyPages);
      const isDue = oldest !== undefined && oldest.dirtySinceMs <= due;
      if (!isDue && excess <= 0) continue;
      const youngest = isDue && excess <= 0 ? now - settings.writeBehindAgeMs / 2 : now;
      excess -= this.#addGroups(
        file,
        [...file.dirtyPages].filter((page) => page.dirtySinceMs <= youngest),
      );
    }
  }

  #addGroups(file: FileCore, candidates: readonly Page[]): number {
    const now = this.#core.now();
    const pages = candidates.filter(
      (page) => page.dirty && page.writing === null && page.retryAtMs <= now && !this.#out.isDiscarded(page),
    );
    for (const group of groupByBlock(pages)) this.#groups.push({ file, pages: group });
    return pages.length;
  }

  #transferEnded(): void {
    this.#inFlight--;
    this.#transfers.pump();
  }

  #failed(file: FileCore, error: FsError): void {
    this.lastError = error;
    file.writeError ??= error;
    this.#core.counters.add('cache.writeBehindErrors');
    this.#core.logger.warn({ ino: file.ino, error: error.message }, 'write-behind failed; the pages stay dirty');
    this.watch();
  }

  // For somebody who waits

  /** Writes out what is dirty among the pages, and waits for what is already on its way. Null, or the first error. */
  async flush(file: FileCore, pages: readonly Page[]): Promise<FsError | null> {
    let first: FsError | null = null;
    const groups = groupByBlock(pages.filter((page) => page.dirty));
    await Promise.all(
      groups.map(async (group) => {
        await this.#transfers.takeUrgent(1);
        const error = await this.#out.write(file, group, true);
        this.#transferEnded();
        if (error !== null) {
          first ??= error;
          this.lastError = error;
        }
      }),
    );
    this.#core.slots.pump();
    return first;
  }

  /**
   * What is dirty of these files, as far as it can be taken at once, in few transfers: for who is going to flush each of them but those that failed, which it
   * returns.
   */
  async flushTogether(files: readonly FileCore[]): Promise<ReadonlyMap<FileCore, FsError>> {
    const failed = new Map<FileCore, FsError>();
    const groups = files.flatMap((file) =>
      groupByBlock([...file.dirtyPages].filter((page) => page.dirty && page.writing === null)).map((pages) => ({
        file,
        pages,
      })),
    );
    const transfers: Promise<void>[] = [];
    while (groups.length > 0) {
      const some = takeTogether(groups);
      transfers.push(this.#transferOf(some, failed));
    }
    await Promise.all(transfers);
    this.#core.slots.pump();
    return failed;
  }

  async #transferOf(groups: readonly Group[], failures: Map<FileCore, FsError>): Promise<void> {
    await this.#transfers.takeUrgent(1);
    try {
      await this.#out.writeTogether(groups, (file, error) => {
        this.lastError = error;
        if (!failures.has(file)) failures.set(file, error);
      });
    } finally {
      this.#transferEnded();
    }
  }

  forgetAll(): void {
    this.#dirtyFiles.clear();
    this.#groups = [];
    this.#wholeBlocks.length = 0;
  }
}

const firstOf = <T>(set: ReadonlySet<T>): T | undefined => {
  for (const value of set) return value;
  return undefined;
};

/** Takes from the front what goes in one transfer: a block at most, each file once. */
function takeTogether(groups: Group[]): Group[] {
  const files = new Set<FileCore>();
  let pages = 0;
  let count = 0;
  for (const group of groups) {
    if (count > 0 && (pages + group.pages.length > PAGES_PER_BLOCK || files.has(group.file))) break;
    files.add(group.file);
    pages += group.pages.length;
    count++;
  }
  return groups.splice(0, count);
}

/** Ascending, cut where a block ends: what is written together lies together. */
function groupByBlock(pages: readonly Page[]): Page[][] {
  const groups: Page[][] = [];
  let block = -1;
  for (const page of [...pages].sort((a, b) => a.index - b.index)) {
    const of = Math.floor(page.index / PAGES_PER_BLOCK);
    if (of !== block) groups.push([]);
    block = of;
    groups.at(-1)!.push(page);
  }
  return groups;
}
