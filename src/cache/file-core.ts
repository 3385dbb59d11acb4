import type { ByteRange } from '../common/byte-range.js';
import type { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { PAGE_BYTES } from '../common/units.js';
import type { TokenMode } from '../token-manager/token.js';
import { AccessPattern } from './access-pattern.js';
import type { Coverage, EntryId, EntryState } from './cache-map.js';
import type { Page } from './page.js';
import { RangeLock } from './range-lock.js';

/**
 * What the page cache knows of one inode. State only; the mechanisms beside it work on it.
 *
 * Invariants: `pages` holds every page that isn't gone, under its index; `dirtyPages` those counted as dirty, the longest dirty
 * first. A range in `revoking` or `withdrawn` is in no published coverage; in `discarding`, nothing is written out.
 */
export class FileCore {
  entry: EntryId | null = null;
  /** Size and times while there is no entry in the map. */
  ownState: EntryState = { sizeBytes: 0, mtimeNs: 0n, ctimeNs: 0n, changes: 0 };
  /** `changes` of the state before the entry was opened: it never seems to go back. */
  changesBefore = 0;
  attachCount = 0;
  /** The size is a lower bound. */
  sizeIsFloor = false;
  /** Out of the table; a later attach makes a new one. */
  forgotten = false;
  /** Pages in the map, those that are gone but still in a transfer among them. */
  installedCount = 0;
  readonly pages = new Map<number, Page>();
  readonly dirtyPages = new Set<Page>();
  /** Dirty pages per 1 MiB block, to see when one is whole. */
  readonly dirtyInBlock = new Map<number, number>();
  readonly lock = new RangeLock();
  readonly pattern = new AccessPattern();

  /** `publish` was called: hits are wanted, pages are installed. */
  hitsWanted = false;
  coverage: readonly Coverage[] = [];
  readonly revoking: ByteRange[] = [];
  readonly withdrawn: ByteRange[] = [];
  readonly discarding: ByteRange[] = [];
  /** Offsets where operations were of late, the latest first: coverage is published around them. */
  readonly positions: number[] = [];
  lastRange: ByteRange | null = null;
  lastMode: TokenMode = 0;
  lastUsedMs = Number.NEGATIVE_INFINITY;
  /** No operation yet, and no revoke: ask for the whole file. */
  untouched = true;

  /** Of a write-out that nobody waited for; the next flush reports it (I10). */
  writeError: FsError | null = null;
  preparing = false;
  /** The read-ahead's request for a token, while there is one. */
  askingForToken: AbortController | null = null;

  constructor(readonly ino: InodeNumber) {}

  /** The pages of the range that are there, in ascending order; pages that the range only touches included. */
  pagesIn(range: ByteRange): Page[] {
    const first = Math.floor(range.start / PAGE_BYTES);
    const last = Math.ceil(range.end / PAGE_BYTES);
    const found: Page[] = [];
    if (last - first <= this.pages.size) {
      for (let index = first; index < last; index++) {
        const page = this.pages.get(index);
        if (page !== undefined) found.push(page);
      }
      return found;
    }
    for (const page of this.pages.values()) if (page.index >= first && page.index < last) found.push(page);
    return found.sort((a, b) => a.index - b.index);
  }

  /** Where zeros begin that nobody has written, if the size says so. */
  endOf({ sizeBytes }: { readonly sizeBytes: number }): number {
    return this.sizeIsFloor ? Number.MAX_SAFE_INTEGER : sizeBytes;
  }

  noteUse(range: ByteRange, mode: TokenMode, nowMs: number): void {
    this.lastRange = range;
    this.lastMode = mode;
    this.lastUsedMs = nowMs;
    // One position for each neighbourhood, so that a long run of writes doesn't push the others out.
    const at = this.positions.findIndex((position) => Math.abs(position - range.start) < NEAR_BYTES);
    if (at >= 0) this.positions.splice(at, 1);
    this.positions.unshift(range.start);
    if (this.positions.length > POSITIONS_MAX) this.positions.pop();
  }
}
const POSITIONS_MAX = 6;
const NEAR_BYTES = 1 << 22;

export const pageRange = (page: Page): ByteRange => ({
  start: page.index * PAGE_BYTES,
  end: (page.index + 1) * PAGE_BYTES,
});
