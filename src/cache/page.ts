import type { SlotContent, SlotId } from './cache-map.js';
import type { FileCore } from './file-core.js';

/**
 * A page of a file, as the engine sees it: which slot it is in and who is at it.
 *
 * The masks are exact while the page is not `writable` (then hits change nothing) or not installed; else `Slots.refresh` brings
 * them up to date. What they say is readable stays so until the engine itself takes it away.
 *
 * States: being read for the first time (`loaded` false, `filling` set) -> loaded -> gone. A loaded page may be installed (hits
 * find it), closed (one engine operation changes it, waiting for hits only, never for a device), writing (its bytes are stable
 * until the devices have them, S2), filling (missing sectors are being read into a spare slot), held (an operation needs it).
 */
export class Page implements SlotContent {
  validMask = 0;
  dirtyMask = 0;
  partialStart = 0;
  partialEnd = 0;
  /** Valid sectors that have been written out from here since they were last read from below. */
  writtenMask = 0;

  loaded = false;
  installed = false;
  /** Space is reserved for all of it: write hits may dirty it. */
  writable = false;
  /** Valid but left out of the map, so that the reader who arrives here comes to the engine and moves its read-ahead window. */
  withheld = false;
  closed = false;
  gone = false;
  /** Operations that need it to stay. */
  holds = 0;
  /** The engine's own shared pins (reads, the write-out); while there are any it is not installed, or they would miss theirs. */
  pins = 0;
  /** Settles when the read that is in flight has ended, well or not; never rejects. */
  filling: Promise<void> | null = null;
  /** Settles when the write-out that is in flight has ended; never rejects. */
  writing: Promise<void> | null = null;

  /** Counted as dirty, since when (Clock.nowMs), and not to be tried again before. */
  dirty = false;
  dirtySinceMs = 0;
  retryAtMs = 0;

  /** Brought by read-ahead and not used yet. */
  prefetched = false;
  /** Used by the engine since the eviction policy last looked; hits leave their mark in the map. */
  referenced = false;

  // The eviction policy's.
  queue: 'none' | 'in' | 'main' = 'none';
  wasGhost = false;
  previous: Page | null = null;
  next: Page | null = null;

  constructor(
    readonly file: FileCore,
    readonly index: number,
    readonly slot: SlotId,
  ) {}
}
