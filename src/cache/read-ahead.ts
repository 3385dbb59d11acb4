import { type ByteRange, contains, intersect, roundOut } from '../common/byte-range.js';
import { PAGE_BYTES } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { ReadStream } from './access-pattern.js';
import type { CacheCore } from './cache-core.js';
import type { SlotId } from './cache-map.js';
import type { FileCore } from './file-core.js';

/**
 * Read-ahead: fetching in front of the streams that the access pattern sees.
 *
 * How the window moves though hits don't pass the engine: when the engine sees a stream with less than half of its window fetched in
 * front, it fetches up to the whole window, and *withholds* the page in the middle of it: read, but not shown to hits. The reader
 * who arrives there misses, comes to the engine, finds the page valid (no device, no wait), and moves the window on while half of it, 4 MiB
 * by default, still lies in front. A sequential reader thus comes to the engine once per 4 MiB, and waits only when the backing store needs
 * longer for half a window than the reader for the other half. The window doubles each time, up to its maximum.
 *
 * It fetches only where a token is held; further on it asks for one in the background, which a revoke of the file cancels. It takes slots that
 * are free or can be had by evicting, waits for none, and holds nothing up.
 * Invariants: in front of one stream, at most the window, and at most an eighth of the pool. Nothing behind the end of file.
 */
const POOL_SHARE = 1 / 8;
const ASK_TIMEOUT_MS = 10_000;

export class ReadAhead {
  readonly #core: CacheCore;
  readonly #windowMax: number;

  constructor(core: CacheCore) {
    this.#core = core;
    const share = Math.floor(core.slots.total * POOL_SHARE) * PAGE_BYTES;
    this.#windowMax = Math.min(core.settings.readAheadMaxBytes, share);
  }

  /** A read came to the engine: fetches what will be wanted next. Never waits. */
  noteRead(file: FileCore, read: ByteRange): void {
    const stream = file.pattern.noteRead(read);
    if (stream !== null && this.#windowMax >= 2 * PAGE_BYTES) this.#advance(file, stream);
  }

  /** The range, as far as tokens are held and slots are to be had. */
  fetch(file: FileCore, range: ByteRange): void {
    this.#fetch(file, range, null);
  }

  /** A revoke came: whoever wants the file now goes first. */
  cancelRequests(file: FileCore): void {
    file.askingForToken?.abort();
    file.askingForToken = null;
  }

  #advance(file: FileCore, stream: ReadStream): void {
    if (stream.kind === 'stride') this.#advanceStride(file, stream);
    else if (stream.kind === 'forward') this.#advanceForward(file, stream);
    else this.#advanceReverse(file, stream);
  }

  #advanceForward(file: FileCore, stream: ReadStream): void {
    const window = this.#window(file, stream);
    const size = this.#core.files.stateOf(file).sizeBytes;
    if (stream.frontier - stream.end > window / 2 || stream.frontier >= size) return;
    const from = stream.frontier;
    const to = Math.min(roundOut({ start: 0, end: stream.end + window }, PAGE_BYTES).end, size);
    // Not at the end of file: nothing more is to come there.
    const middle =
      to === size ? -1 : Math.max(Math.ceil(from / PAGE_BYTES), Math.floor((to - window / 2) / PAGE_BYTES));
    this.#moved(file, stream, this.#fetch(file, { start: from, end: to }, middle), { start: from, end: to });
  }

  #advanceReverse(file: FileCore, stream: ReadStream): void {
    const window = this.#window(file, stream);
    if (stream.start - stream.frontier > window / 2 || stream.frontier === 0) return;
    const to = stream.frontier;
    const from = Math.max(0, Math.floor((stream.start - window) / PAGE_BYTES) * PAGE_BYTES);
    const middle =
      from === 0 ? -1 : Math.min(Math.floor(to / PAGE_BYTES) - 1, Math.floor((from + window / 2) / PAGE_BYTES));
    this.#moved(file, stream, this.#fetch(file, { start: from, end: to }, middle), { start: from, end: to });
  }

  #advanceStride(file: FileCore, stream: ReadStream): void {
    const { strideBytes } = stream;
    const lengthBytes = stream.end - stream.start;
    const perRecord = roundOut({ start: stream.start, end: stream.end }, PAGE_BYTES);
    const records = Math.max(1, Math.floor(this.#window(file, stream) / (perRecord.end - perRecord.start)));
    const ahead = (stream.frontier - stream.start) / strideBytes;
    if (ahead > records / 2) return;
    const size = this.#core.files.stateOf(file).sizeBytes;
    const middle = Math.max(ahead + 1, Math.ceil(records / 2));
    this.#grow(stream);
    for (let record = Math.max(1, ahead + 1); record <= records; record++) {
      const start = stream.start + record * strideBytes;
      const wanted = { start, end: Math.min(start + lengthBytes, size) };
      if (start < 0 || start >= size) return;
      const withheld = record === middle ? Math.floor(start / PAGE_BYTES) : -1;
      if (this.#fetch(file, wanted, withheld) !== null) return;
      stream.frontier = start;
    }
  }

  #window(file: FileCore, stream: ReadStream): number {
    if (file.pattern.advice === 'sequential') stream.windowBytes = this.#windowMax;
    return Math.min(stream.windowBytes, this.#windowMax);
  }
  /** It moved on: the next one reaches further. */
  #grow(stream: ReadStream): void {
    stream.windowBytes = Math.min(2 * stream.windowBytes, this.#windowMax);
  }

  #moved(file: FileCore, stream: ReadStream, missing: ByteRange | null, wanted: ByteRange): void {
    const reached = missing === null ? null : stream.kind === 'forward' ? missing.start : missing.end;
    this.#grow(stream);
    stream.frontier = reached ?? (stream.kind === 'forward' ? wanted.end : wanted.start);
    if (missing !== null) this.#askFor(file, missing);
  }

  /**
   * Starts to read what isn't there. `withheld`: the page that hits must not find, or -1. Returns what no token is held for, or null;
   * where slots are short, what comes after is simply not fetched.
   */
  #fetch(file: FileCore, range: ByteRange, withheld: number | null): ByteRange | null {
    const { tokens, slots, counters, fills } = this.#core;
    if (file.forgotten) return null;
    const first = Math.floor(range.start / PAGE_BYTES);
    const end = Math.min(Math.ceil(range.end / PAGE_BYTES), first + Math.floor(slots.total * POOL_SHARE));
    const absent: number[] = [];
    let missing: ByteRange | null = null;
    let held: ByteRange | null = null;
    for (let index = first; index < end; index++) {
      if (file.pages.has(index)) continue;
      const page = intersect(range, { start: index * PAGE_BYTES, end: (index + 1) * PAGE_BYTES });
      if (held === null || !contains(held, page))
        held = tokens.heldRange(TokenClass.data, file.ino, page.start, TokenMode.shared);
      if (held !== null && contains(held, page)) absent.push(index);
      else missing = missing === null ? page : { start: missing.start, end: page.end };
    }
    if (absent.length === 0) return missing;
    const taken = this.#takeSlots(absent.length);
    if (taken === null) return null;
    const indices = absent.slice(0, taken.length);
    const { pages, done } = fills.start(file, indices, taken, null, true);
    done.catch(() => undefined); // whoever needs the page reads it, and gets the error
    counters.add('cache.readAheadPages', pages.length);
    for (const page of pages) page.withheld = page.index === withheld;
    return missing;
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
