import { invariant } from '../common/assert.js';
import { BLOCK_BYTES, PAGE_BYTES } from '../common/units.js';

/** What may be set; what isn't given follows from the size of the pool. */
export interface PageCacheSettings {
  /** Pages that may be dirty before writers wait. Default: two fifths of the pool. */
  readonly dirtyPagesMax: number;
  /** Write-behind begins at this many dirty pages. Default: half of dirtyPagesMax. */
  readonly writeBehindStartPages: number;
  /** Dirty for this long: written. */
  readonly writeBehindAgeMs: number;
  /** How often ages are looked at, and what hits made dirty is taken in. */
  readonly writeBehindTickMs: number;
  /** Write-outs in flight at once, each at most a block (1 MiB). */
  readonly writeBehindConcurrency: number;
  /** After a failed write-out, before the next attempt. */
  readonly writeRetryMs: number;
  /** The most that read-ahead fetches in front of one stream; an eighth of the pool at most. */
  readonly readAheadMaxBytes: number;
  /** How far write hits are prepared in front of a sequential writer. Default: a block, at most an eighth of the pool. */
  readonly prepareBytes: number;
  /** The most that one operation pins at once; longer ones go piece by piece. A multiple of a page. */
  readonly pieceBytes: number;
  /** Slots never installed, into which pages are read that have dirty bytes. */
  readonly sparePages: number;
  /** Slots that operations on file data leave to metadata, so that a fill that reads metadata can't be stuck behind data. */
  readonly metadataPages: number;
  /** Free slots: below low, eviction runs until there are high. */
  readonly freePagesLow: number;
  readonly freePagesHigh: number;
  readonly waitersMax: number;
  /** The longest that an operation waits for a page or for room. */
  readonly waitDeadlineMs: number;
  /** A file not touched for this long is idle: it gives up everything that another node desires. */
  readonly workingIdleMs: number;
}

export function completeSettings(given: Partial<PageCacheSettings>, slotCount: number): PageCacheSettings {
  invariant(slotCount >= 8, 'page cache: a pool of at least 8 pages');
  const share = (part: number, min: number): number => Math.max(min, Math.floor(slotCount * part));
  const dirtyPagesMax = given.dirtyPagesMax ?? share(0.4, 2);
  const sparePages = given.sparePages ?? Math.min(64, share(1 / 32, 1));
  const metadataPages = given.metadataPages ?? Math.min(256, share(1 / 8, 2));
  const low = share(1 / 32, 1);
  const settings: PageCacheSettings = {
    writeBehindStartPages: Math.max(1, Math.floor(dirtyPagesMax / 2)),
    writeBehindAgeMs: 5000,
    writeBehindTickMs: 500,
    writeBehindConcurrency: 4,
    writeRetryMs: 1000,
    readAheadMaxBytes: 32 * BLOCK_BYTES,
    prepareBytes: Math.min(BLOCK_BYTES, share(1 / 8, 1) * PAGE_BYTES),
    freePagesLow: low,
    freePagesHigh: 2 * low,
    waitersMax: 4096,
    waitDeadlineMs: 30_000,
    workingIdleMs: 1000,
    ...given,
    dirtyPagesMax,
    sparePages,
    metadataPages,
    pieceBytes: pieceBytes(given.pieceBytes ?? 8 * BLOCK_BYTES, slotCount - sparePages - metadataPages, dirtyPagesMax),
  };
  invariant(dirtyPagesMax >= 1 && sparePages >= 1, 'page cache: at least one dirty and one spare page');
  invariant(slotCount - sparePages - metadataPages >= 2, 'page cache: too few pages for file data');
  return settings;
}

/** A piece fits twice into what data may use, and into what may be dirty; whole pages, at least one. */
function pieceBytes(wanted: number, dataPages: number, dirtyPagesMax: number): number {
  const pages = Math.min(Math.floor(wanted / PAGE_BYTES), Math.floor(dataPages / 2), dirtyPagesMax);
  return Math.max(1, pages) * PAGE_BYTES;
}
