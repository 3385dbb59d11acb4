import { type ByteRange, roundOut } from '../common/byte-range.js';
import { BLOCK_BYTES, PAGE_BYTES } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { ReadStream } from './access-pattern.js';
import type { CacheCore } from './cache-core.js';
import type { SlotId } from './cache-map.js';
import type { FileCore } from './file-core.js';

/**
 * Read-ahead: fetching in front of the streams that the access pattern sees.
 *
 * A window in front of each stream is kept full, block by block: each block is one request to its NSD's server, and its pages can be used as
 * soon as they are there, whatever the others do. So several requests to every server are under way while the reader is at work.
 *
 * How the window moves though hits don't pass the engine: either whoever hits says from time to time how far it has come (`notePassed`),
 * or the engine *withholds* one page in the middle of the window: read, but not shown to hits. The reader who arrives there misses, comes to the
 * engine, finds the page valid (no device, no wait), and moves the window on while half of it still lies in front.
 *
 * The window adapts to the stream: it doubles up to 2 MiB each time it moves, and beyond that, up to its maximum, only when the reader had to
 * wait for bytes; who is slower than the devices keeps a small one. Pages thrown away unused halve it.
 *
 * It fetches only where a token is held; further on it asks for one in the background, which a revoke of the file cancels. It takes slots that
 * are free or can be had by evicting, waits for none, and holds nothing up.
 * Invariants: in front of one stream, at most the window, and at most an eighth of the pool. Nothing behind the end of file.
 */
const POOL_SHARE = 1 / 8;
/** So far the window grows by itself. */
const WINDOW_FREE_BYTES = 2 * BLOCK_BYTES;
const PAGES_PER_BLOCK = BLOCK_BYTES / PAGE_BYTES;
const ASK_TIMEOUT_MS = 10_000;

export class ReadAhead {
  readonly #core: CacheCore;
  readonly #windowMax: number;

  constructor(core: CacheCore) {
    this.#core = core;
    const share = Math.floor(core.slots.total * POOL_SHARE) * PAGE_BYTES;
    this.#windowMax = Math.min(core.settings.readAheadMaxBytes, share);
  }

  /** A read came to the engine: fetches what will be wanted next. Never waits. `waited`: the bytes were not there when it came. */
  noteRead(file: FileCore, read: ByteRange, waited: boolean): void {
    const stream = file.pattern.noteRead(read);
    if (stream !== null && this.#windowMax >= 2 * PAGE_BYTES) this.#advance(file, stream, waited);
  }

  /** Hits have gone through the range, and will say again when they have gone through as much once more. */
  notePassed(file: FileCore, passed: ByteRange): void {
    const stream = file.pattern.noteRead(passed);
    if (stream === null) return;
    // With a window of two reports the next one comes in time, and nothing need be kept from hits.
    const enough = Math.min(2 * (passed.end - passed.start), this.#windowMax);
    const reportsDo = stream.kind === 'forward' && 2 * (passed.end - passed.start) <= this.#windowMax;
    stream.windowBytes = Math.max(stream.windowBytes, enough);
    this.#advance(file, stream, false);
    if (reportsDo) this.#showWithheld(file, stream);
  }

  /** The range, as far as tokens are held and slots are to be had. */
  fetch(file: FileCore, range: ByteRange): void {
    this.#fetch(file, range, -1);
  }

  /** A revoke came: whoever wants the file now goes first. */
  cancelRequests(file: FileCore): void {
    file.askingForToken?.abort();
    file.askingForToken = null;
  }

  #advance(file: FileCore, stream: ReadStream, waited: boolean): void {
    this.#grow(file, stream, waited);
    if (stream.kind === 'stride') this.#advanceStride(file, stream);
    else if (stream.kind === 'forward') this.#advanceForward(file, stream);
    else this.#advanceReverse(file, stream);
  }

  #advanceForward(file: FileCore, stream: ReadStream): void {
    const window = stream.windowBytes;
    const size = this.#core.files.stateOf(file).sizeBytes;
    const from = stream.frontier;
    // Not for less than a block: requests of a few pages cost as much each.
    if (stream.end + window - from < Math.min(BLOCK_BYTES, window / 2) || from >= size) return;
    let to = roundOut({ start: 0, end: stream.end + window }, PAGE_BYTES).end;
    if (to - from > BLOCK_BYTES) to -= to % BLOCK_BYTES;
    to = Math.min(to, size);
    const { missing, reached } = this.#fetch(file, { start: from, end: to }, -1);
    stream.frontier = Math.min(missing?.start ?? reached, reached);
    // At the end of file nothing more is to come.
    if (to < size) this.#withhold(file, stream, window);
    if (missing !== null) this.#askFor(file, missing);
  }

  /** One page of what is on its way, half a window in front of the reader, unless there is one already. */
  #withhold(file: FileCore, stream: ReadStream, window: number): void {
    if (stream.withheldPage * PAGE_BYTES >= stream.end) return;
    const end = Math.floor(stream.frontier / PAGE_BYTES);
    for (let index = Math.ceil((stream.end + window / 2) / PAGE_BYTES); index < end; index++) {
      const page = file.pages.get(index);
      if (page === undefined || page.loaded || !page.prefetched) continue;
      page.withheld = true;
      stream.withheldPage = index;
      return;
    }
  }

  #showWithheld(file: FileCore, stream: ReadStream): void {
    const page = file.pages.get(stream.withheldPage);
    stream.withheldPage = -1;
    if (page === undefined || !page.withheld) return;
    page.withheld = false;
    this.#core.slots.show(page);
  }

  #advanceReverse(file: FileCore, stream: ReadStream): void {
    const window = stream.windowBytes;
    if (stream.start - stream.frontier > window / 2 || stream.frontier === 0) return;
    const to = stream.frontier;
    const from = Math.max(0, Math.floor((stream.start - window) / PAGE_BYTES) * PAGE_BYTES);
    const middle =
      from === 0 ? -1 : Math.min(Math.floor(to / PAGE_BYTES) - 1, Math.floor((from + window / 2) / PAGE_BYTES));
    const { missing } = this.#fetch(file, { start: from, end: to }, middle);
    stream.frontier = missing?.end ?? from;
    if (missing !== null) this.#askFor(file, missing);
  }

  #advanceStride(file: FileCore, stream: ReadStream): void {
    const { strideBytes } = stream;
    const lengthBytes = stream.end - stream.start;
    const perRecord = roundOut({ start: stream.start, end: stream.end }, PAGE_BYTES);
    const records = Math.max(1, Math.floor(stream.windowBytes / (perRecord.end - perRecord.start)));
    const ahead = (stream.frontier - stream.start) / strideBytes;
    if (ahead > records / 2) return;
    const size = this.#core.files.stateOf(file).sizeBytes;
    const middle = Math.max(ahead + 1, Math.ceil(records / 2));
    for (let record = Math.max(1, ahead + 1); record <= records; record++) {
      const start = stream.start + record * strideBytes;
      const wanted = { start, end: Math.min(start + lengthBytes, size) };
      if (start < 0 || start >= size) return;
      const withheld = record === middle ? Math.floor(start / PAGE_BYTES) : -1;
      if (this.#fetch(file, wanted, withheld).missing !== null) return;
      stream.frontier = start;
    }
  }

  #grow(file: FileCore, stream: ReadStream, waited: boolean): void {
    if (file.pattern.advice === 'sequential') stream.windowBytes = this.#windowMax;
    else if (waited || stream.windowBytes < WINDOW_FREE_BYTES) stream.windowBytes *= 2;
    stream.windowBytes = Math.min(stream.windowBytes, this.#windowMax);
  }

  /**
   * Starts to read what isn't there, block by block. `withheld`: the page that hits must not find, or -1. `missing`: what no token is held
   * for; `reached`: the end of the range, or where slots ran short.
   */
  #fetch(file: FileCore, range: ByteRange, withheld: number): { missing: ByteRange | null; reached: number } {
    const { tokens, slots } = this.#core;
    if (file.forgotten) return { missing: null, reached: range.end };
    const first = Math.floor(range.start / PAGE_BYTES);
    const end = Math.min(Math.ceil(range.end / PAGE_BYTES), first + Math.floor(slots.total * POOL_SHARE));
    let absent: number[] = [];
    let missing: ByteRange | null = null;
    let held: ByteRange | null = null;
    for (let index = first; index < end; index++) {
      if (absent.length > 0 && index % PAGES_PER_BLOCK === 0) {
        const short = this.#start(file, absent, withheld);
        if (short !== null) return { missing, reached: short };
        absent = [];
      }
      if (file.pages.has(index)) continue;
      const start = Math.max(range.start, index * PAGE_BYTES);
      const stop = Math.min(range.end, (index + 1) * PAGE_BYTES);
      if (held === null || start < held.start || stop > held.end)
        held = tokens.heldRange(TokenClass.data, file.ino, start, TokenMode.shared);
      if (held !== null && stop <= held.end) absent.push(index);
      else missing = missing === null ? { start, end: stop } : { start: missing.start, end: stop };
    }
    const short = absent.length === 0 ? null : this.#start(file, absent, withheld);
    return { missing, reached: short ?? range.end };
  }

  /** One fill for these pages; returns where slots ran short, if they did. What comes after is simply not fetched. */
  #start(file: FileCore, indices: readonly number[], withheld: number): number | null {
    const taken = this.#takeSlots(indices.length);
    if (taken === null) return indices[0]! * PAGE_BYTES;
    const { pages, done } = this.#core.fills.start(file, indices.slice(0, taken.length), taken, null, true);
    done.catch(() => undefined); // whoever needs the page reads it, and gets the error
    this.#core.counters.add('cache.readAheadPages', pages.length);
    if (withheld >= 0) for (const page of pages) page.withheld = page.index === withheld;
    return taken.length < indices.length ? indices[taken.length]! * PAGE_BYTES : null;
  }

  #takeSlots(count: number): SlotId[] | null {
    for (let wanted = count; wanted > 0; wanted = Math.floor(wanted / 2)) {
      const taken = this.#core.slots.takeNow(wanted, 'ahead');
      if (taken !== null) return taken;
    }
    return null;
  }

  /** In the background, one request per file at a time; the bytes come right with the grant. */
  #askFor(file: FileCore, range: ByteRange): void {
    if (file.askingForToken !== null || this.#core.closed || file.revoking.length > 0) return;
    const asking = new AbortController();
    file.askingForToken = asking;
    const wanted = roundOut(range);
    const item = {
      class: TokenClass.data,
      object: file.ino,
      mode: TokenMode.shared,
      required: wanted,
      desired: wanted,
    };
    this.#core.counters.add('cache.readAheadTokens');
    this.#core.tokens
      .acquire([item], { signal: asking.signal, timeoutMs: ASK_TIMEOUT_MS })
      .then((pins) => {
        if (!asking.signal.aborted && !this.#core.closed)
          this.#fetch(file, range, Math.floor(range.start / PAGE_BYTES));
        pins.release();
      })
      .catch(() => undefined) // the reader asks for itself when it gets there
      .finally(() => {
        if (file.askingForToken === asking) file.askingForToken = null;
      });
  }
}
