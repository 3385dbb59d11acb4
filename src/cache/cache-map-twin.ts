import { invariant } from '../common/assert.js';
import type { Clock } from '../common/clock.js';
import type { InodeNumber } from '../common/ids.js';
import { PAGE_BYTES, RANGE_END, SECTOR_BYTES } from '../common/units.js';
import type { PagePool } from '../native/page-pool.js';
import { TokenMode } from '../token-manager/token.js';
import {
  type CacheMap,
  COVERAGE_RANGES_MAX,
  type Coverage,
  type EntryId,
  type EntryState,
  HIT_PAGES_MAX,
  Miss,
  Referenced,
  type SlotContent,
  type SlotId,
} from './cache-map.js';
import { EMPTY_CONTENT, isDirty, isReadable, isSoundContent, withWrite } from './slot-content.js';

/**
 * The cache map in TypeScript: the native one's twin for the simulator, over any page pool and any clock, on one thread.
 *
 * A hit runs to its end before anything else does, so no hit ever waits or is waited for: what remains of pins are the engine's
 * own and the closed bit. Results, misses and their precedence are the native map's; the suite and a model-based comparison hold
 * the two together. Fault model: as the native map's (InvariantError, TypeError, RangeError).
 */
interface Entry {
  generation: number;
  open: boolean;
  status: TokenMode;
  sizeBytes: number;
  mtimeNs: bigint;
  ctimeNs: bigint;
  changes: number;
  coverage: Coverage[];
  readonly slotOfPage: Map<number, number>;
}

/** With respect to the list of dirtied slots; cancelled: still in the list, but removed since. */
type Queued = 'no' | 'yes' | 'cancelled';

interface Slot {
  entry: Entry | null;
  pageIndex: number;
  closed: boolean;
  exclusive: boolean;
  sharedCount: number;
  content: SlotContent;
  writable: boolean;
  queued: Queued;
  references: number;
}

interface Page {
  readonly slotIndex: number;
  readonly slot: Slot;
  /** In the page. */
  readonly start: number;
  readonly end: number;
}

const ENTRY_INDEX_SPAN = 2 ** 20;
const CREDITS_MAX = 2 ** 40;

export class TwinCacheMap implements CacheMap {
  readonly slotCount: number;
  readonly entryCountMax: number;
  readonly #bytes: Uint8Array;
  readonly #clock: Pick<Clock, 'nowMs'>;
  readonly #slots: Slot[];
  readonly #entries: Entry[] = [];
  readonly #freeEntries: number[] = [];
  readonly #dirtied: number[] = [];
  #leaseDeadlineMs = 0;
  #dirtyCredits = 0;
  readonly #stats = {
    readHits: 0,
    writeHits: 0,
    readBytes: 0,
    writeBytes: 0,
    misses: Object.fromEntries(Object.keys(Miss).map((name) => [name, 0])),
  };

  /** `slotCount` pages from the start of the pool; the whole pool unless told otherwise. At most 2^20 entries. */
  constructor(
    pool: PagePool,
    clock: Pick<Clock, 'nowMs'>,
    entryCountMax: number,
    slotCount: number = Math.floor(pool.lengthBytes / PAGE_BYTES),
  ) {
    checkInteger('slotCount', slotCount, 1, Math.floor(pool.lengthBytes / PAGE_BYTES));
    checkInteger('entryCountMax', entryCountMax, 1, ENTRY_INDEX_SPAN);
    this.slotCount = slotCount;
    this.entryCountMax = entryCountMax;
    this.#bytes = pool.bytes;
    this.#clock = clock;
    this.#slots = Array.from({ length: slotCount }, () => ({
      entry: null,
      pageIndex: 0,
      closed: true,
      exclusive: false,
      sharedCount: 0,
      content: { ...EMPTY_CONTENT },
      writable: false,
      queued: 'no',
      references: 0,
    }));
  }

  setLeaseDeadline(deadlineMs: number): void {
    checkNumber('deadlineMs', deadlineMs);
    if (Number.isNaN(deadlineMs)) throw new RangeError('deadlineMs must be a time, not NaN');
    this.#leaseDeadlineMs = deadlineMs;
  }

  openEntry(_ino: InodeNumber, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): EntryId | null {
    checkState(state);
    let index = this.#freeEntries.pop();
    if (index === undefined) {
      if (this.#entries.length === this.entryCountMax) return null;
      index = this.#entries.length;
      this.#entries.push({
        generation: 0,
        open: false,
        status: TokenMode.none,
        sizeBytes: 0,
        mtimeNs: 0n,
        ctimeNs: 0n,
        changes: 0,
        coverage: [],
        slotOfPage: new Map(),
      });
    }
    const entry = this.#entries[index]!;
    entry.generation++;
    entry.open = true;
    entry.status = TokenMode.none;
    entry.changes = 0;
    entry.coverage = [];
    setTimesAndSize(entry, state);
    return (entry.generation * ENTRY_INDEX_SPAN + index) as EntryId;
  }

  closeEntry(entryId: EntryId): void {
    const entry = this.#engineEntry(entryId);
    invariant(entry.slotOfPage.size === 0, 'cache map: closeEntry: the entry still has slots');
    entry.open = false;
    this.#freeEntries.push(entryId % ENTRY_INDEX_SPAN);
  }

  setStatusMode(entryId: EntryId, mode: TokenMode): void {
    checkInteger('mode', mode, TokenMode.none, TokenMode.exclusive);
    this.#engineEntry(entryId).status = mode;
  }

  entryState(entryId: EntryId): EntryState {
    const { sizeBytes, mtimeNs, ctimeNs, changes } = this.#engineEntry(entryId);
    return { sizeBytes, mtimeNs, ctimeNs, changes };
  }

  setEntryState(entryId: EntryId, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): void {
    checkState(state);
    setTimesAndSize(this.#engineEntry(entryId), state);
  }

  noteWrite(entryId: EntryId, endBytes: number, wallNs: bigint): void {
    checkInteger('endBytes', endBytes, 0, RANGE_END);
    checkInt64('wallNs', wallNs);
    this.#written(this.#engineEntry(entryId), endBytes, wallNs);
  }

  setCoverage(entryId: EntryId, ranges: readonly Coverage[]): void {
    const published = ranges.slice(0, COVERAGE_RANGES_MAX).map(({ start, end, mode }) => ({ start, end, mode }));
    for (const { start, end, mode } of published) {
      const sound =
        start >= 0 && start <= end && end <= Number.MAX_SAFE_INTEGER && mode >= 0 && mode <= TokenMode.exclusive;
      if (!sound) throw new RangeError('ranges must be 0 <= start <= end with a token mode');
    }
    this.#engineEntry(entryId).coverage = published;
  }

  install(slotId: SlotId, entryId: EntryId, pageIndex: number, content: SlotContent, writable: boolean): void {
    const slot = this.#slot(slotId);
    checkInteger('pageIndex', pageIndex, 0, Math.floor(RANGE_END / PAGE_BYTES));
    checkContent(content);
    const entry = this.#engineEntry(entryId);
    invariant(slot.entry === null, 'cache map: install: the slot is in use');
    invariant(!entry.slotOfPage.has(pageIndex), 'cache map: install: the page is installed in another slot');
    slot.entry = entry;
    slot.pageIndex = pageIndex;
    slot.closed = false;
    slot.content = copyOf(content);
    slot.writable = writable;
    slot.references = 0;
    entry.slotOfPage.set(pageIndex, slotId);
  }

  setWritable(slotId: SlotId, writable: boolean): void {
    this.#installed(slotId, 'setWritable').slot.writable = writable;
  }

  remove(slotId: SlotId): void {
    const { slot, entry } = this.#installed(slotId, 'remove');
    invariant(
      slot.exclusive || (slot.closed && slot.sharedCount === 0),
      'cache map: remove: the slot is neither closed and quiet nor pinned exclusively',
    );
    entry.slotOfPage.delete(slot.pageIndex);
    slot.entry = null;
    slot.closed = true;
    slot.exclusive = false;
    slot.writable = false;
    slot.content = { ...EMPTY_CONTENT };
    if (slot.queued === 'yes') slot.queued = 'cancelled';
  }

  content(slotId: SlotId): SlotContent {
    return copyOf(this.#installed(slotId, 'content').slot.content);
  }

  setContent(slotId: SlotId, content: SlotContent): void {
    this.#slot(slotId);
    checkContent(content);
    const { slot } = this.#installed(slotId, 'setContent');
    invariant(
      slot.exclusive || slot.closed,
      'cache map: setContent: the slot is neither closed nor pinned exclusively',
    );
    slot.content = copyOf(content);
  }

  close(slotId: SlotId): boolean {
    const { slot } = this.#installed(slotId, 'close');
    slot.closed = true;
    return !slot.exclusive && slot.sharedCount === 0;
  }

  reopen(slotId: SlotId): void {
    this.#installed(slotId, 'reopen').slot.closed = false;
  }

  tryPinShared(slotId: SlotId): boolean {
    const slot = this.#slot(slotId);
    if (slot.closed || slot.exclusive) return false;
    slot.sharedCount++;
    return true;
  }

  tryPinExclusive(slotId: SlotId): boolean {
    const slot = this.#slot(slotId);
    if (slot.closed || slot.exclusive || slot.sharedCount > 0) return false;
    slot.exclusive = true;
    return true;
  }

  unpinShared(slotId: SlotId): void {
    const slot = this.#slot(slotId);
    invariant(slot.sharedCount > 0, 'cache map: unpinShared: the slot is not pinned like that');
    slot.sharedCount--;
  }

  unpinExclusive(slotId: SlotId): void {
    const slot = this.#slot(slotId);
    invariant(slot.exclusive, 'cache map: unpinExclusive: the slot is not pinned like that');
    slot.exclusive = false;
  }

  takeDirtied(max: number): SlotId[] {
    const taken: SlotId[] = [];
    let looked = 0;
    while (looked < this.#dirtied.length && taken.length < max) {
      const slotIndex = this.#dirtied[looked++]!;
      const slot = this.#slots[slotIndex]!;
      if (slot.queued === 'yes') taken.push(slotIndex as SlotId);
      slot.queued = 'no';
    }
    this.#dirtied.splice(0, looked);
    return taken;
  }

  addDirtyCredits(add: number): number {
    checkInteger('add', add, -CREDITS_MAX, CREDITS_MAX);
    this.#dirtyCredits = Math.max(0, this.#dirtyCredits + add);
    return this.#dirtyCredits;
  }

  takeReferences(slotId: SlotId): number {
    const slot = this.#slot(slotId);
    const references = slot.references;
    slot.references = 0;
    return references;
  }

  read(entryId: EntryId, offsetBytes: number, target: Uint8Array): number {
    checkNumber('entry', entryId);
    checkInteger('offsetBytes', offsetBytes, 0, Number.MAX_SAFE_INTEGER);
    checkBytes('target', target);
    const result = this.#read(entryId, offsetBytes, target);
    if (result < 0) return this.#missed(result as Miss);
    this.#stats.readHits++;
    this.#stats.readBytes += result;
    return result;
  }

  write(entryId: EntryId, offsetBytes: number, source: Uint8Array, wallNs: bigint): number {
    checkNumber('entry', entryId);
    checkInteger('offsetBytes', offsetBytes, -1, Number.MAX_SAFE_INTEGER);
    checkBytes('source', source);
    checkInt64('wallNs', wallNs);
    const result = this.#write(entryId, offsetBytes, source, wallNs);
    if (result < 0) return this.#missed(result as Miss);
    this.#stats.writeHits++;
    this.#stats.writeBytes += result;
    return result;
  }

  stats(): ReturnType<CacheMap['stats']> {
    return { ...this.#stats, misses: { ...this.#stats.misses } };
  }

  #read(entryId: EntryId, offset: number, target: Uint8Array): number {
    if (!this.#leaseHolds()) return Miss.lease;
    const entry = this.#liveEntry(entryId);
    if (entry === undefined) return Miss.stale;
    if (entry.status < TokenMode.shared) return Miss.status;
    const end = Math.min(offset + target.length, Math.max(entry.sizeBytes, offset));
    // Others may have written behind what this node knows to be the end.
    if (end < offset + target.length && entry.status === TokenMode.concurrentWrite) return Miss.status;
    if (end === offset) return 0;
    const pages = this.#pages(entry, offset, end, (slot) => !slot.exclusive);
    if (typeof pages === 'number') return pages;
    if (!covers(entry.coverage, offset, end, TokenMode.shared)) return Miss.coverage;
    if (!pages.every(({ slot, start, end }) => isReadable(slot.content, start, end))) return Miss.absent;
    let done = 0;
    for (const { slotIndex, slot, start, end } of pages) {
      const at = slotIndex * PAGE_BYTES;
      target.set(this.#bytes.subarray(at + start, at + end), done);
      done += end - start;
      slot.references |= Referenced.byRead;
    }
    return done;
  }

  #write(entryId: EntryId, offsetAsked: number, source: Uint8Array, wallNs: bigint): number {
    if (!this.#leaseHolds()) return Miss.lease;
    const entry = this.#liveEntry(entryId);
    if (entry === undefined) return Miss.stale;
    // Where the end is, only who has the status exclusively knows.
    if (entry.status < (offsetAsked === -1 ? TokenMode.exclusive : TokenMode.concurrentWrite)) return Miss.status;
    if (source.length === 0) return 0;
    if (source.length > HIT_PAGES_MAX * PAGE_BYTES) return Miss.limit;
    const offset = offsetAsked === -1 ? entry.sizeBytes : offsetAsked;
    if (source.length > RANGE_END - offset) return Miss.coverage;
    const end = offset + source.length;
    const pages = this.#pages(entry, offset, end, (slot) => !slot.exclusive && slot.sharedCount === 0);
    if (typeof pages === 'number') return pages;
    const coverEnd = roundDown(end + SECTOR_BYTES - 1, SECTOR_BYTES);
    if (!covers(entry.coverage, roundDown(offset, SECTOR_BYTES), coverEnd, TokenMode.exclusive)) return Miss.coverage;
    const contents: SlotContent[] = [];
    let credits = 0;
    for (const { slot, start, end } of pages) {
      const content = slot.writable ? withWrite(slot.content, start, end) : null;
      if (content === null) return Miss.absent;
      contents.push(content);
      if (!isDirty(slot.content)) credits++;
    }
    if (this.#dirtyCredits < credits) return Miss.credits;
    this.#dirtyCredits -= credits;

    let done = 0;
    for (const [i, { slotIndex, slot, start, end }] of pages.entries()) {
      this.#bytes.set(source.subarray(done, done + end - start), slotIndex * PAGE_BYTES + start);
      done += end - start;
      if (!isDirty(slot.content)) {
        if (slot.queued === 'no') this.#dirtied.push(slotIndex);
        slot.queued = 'yes';
      }
      slot.content = contents[i]!;
      slot.references |= Referenced.byWrite;
    }
    this.#written(entry, end, wallNs);
    return done;
  }

  /** The pages of [offset, end) in ascending order, or the first reason why one of them can't be pinned. */
  #pages(entry: Entry, offset: number, end: number, pinnable: (slot: Slot) => boolean): Page[] | Miss {
    const first = Math.floor(offset / PAGE_BYTES);
    const last = Math.floor((end - 1) / PAGE_BYTES);
    if (last - first + 1 > HIT_PAGES_MAX) return Miss.limit;
    const pages: Page[] = [];
    for (let pageIndex = first; pageIndex <= last; pageIndex++) {
      const slotIndex = entry.slotOfPage.get(pageIndex);
      if (slotIndex === undefined) return Miss.absent;
      const slot = this.#slots[slotIndex]!;
      if (slot.closed || !pinnable(slot)) return Miss.busy;
      const pageStart = pageIndex * PAGE_BYTES;
      const start = Math.max(offset, pageStart) - pageStart;
      pages.push({ slotIndex, slot, start, end: Math.min(end, pageStart + PAGE_BYTES) - pageStart });
    }
    return pages;
  }

  #written(entry: Entry, end: number, wallNs: bigint): void {
    entry.sizeBytes = Math.max(entry.sizeBytes, end);
    entry.mtimeNs = wallNs;
    entry.ctimeNs = wallNs;
    entry.changes++;
  }

  #missed(reason: Miss): Miss {
    for (const name of Object.keys(Miss) as (keyof typeof Miss)[]) {
      if (Miss[name] === reason) this.#stats.misses[name] = (this.#stats.misses[name] ?? 0) + 1;
    }
    return reason;
  }

  #leaseHolds(): boolean {
    return this.#clock.nowMs() < this.#leaseDeadlineMs;
  }

  #liveEntry(entryId: EntryId): Entry | undefined {
    const entry = this.#entries[entryId % ENTRY_INDEX_SPAN];
    return entry?.open && entry.generation === Math.floor(entryId / ENTRY_INDEX_SPAN) ? entry : undefined;
  }

  #engineEntry(entryId: EntryId): Entry {
    checkNumber('entry', entryId);
    const entry = this.#liveEntry(entryId);
    invariant(entry !== undefined, 'cache map: the entry is stale');
    return entry;
  }

  #slot(slotId: SlotId): Slot {
    checkInteger('slot', slotId, 0, this.slotCount - 1);
    return this.#slots[slotId]!;
  }

  #installed(slotId: SlotId, operation: string): { slot: Slot; entry: Entry } {
    const slot = this.#slot(slotId);
    invariant(slot.entry !== null, `cache map: ${operation}: the slot is free`);
    return { slot, entry: slot.entry };
  }
}

/** The whole of [start, end) lies in published ranges whose mode is at least `mode`. */
function covers(ranges: readonly Coverage[], start: number, end: number, mode: TokenMode): boolean {
  let reached = start;
  for (let moved = true; reached < end && moved; ) {
    moved = false;
    for (const range of ranges) {
      if (range.mode >= mode && range.start <= reached && reached < range.end) {
        reached = range.end;
        moved = true;
      }
    }
  }
  return reached >= end;
}

function setTimesAndSize(entry: Entry, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): void {
  entry.sizeBytes = state.sizeBytes;
  entry.mtimeNs = state.mtimeNs;
  entry.ctimeNs = state.ctimeNs;
}

const copyOf = ({ validMask, dirtyMask, partialStart, partialEnd }: SlotContent): SlotContent => ({
  validMask,
  dirtyMask,
  partialStart,
  partialEnd,
});

function checkNumber(name: string, value: unknown): void {
  if (typeof value !== 'number') throw new TypeError(`${name} must be a number`);
}

function checkInteger(name: string, value: unknown, min: number, max: number): void {
  checkNumber(name, value);
  if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
    throw new RangeError(`${name} must be an integer from ${min} to ${max}, not ${value}`);
  }
}

function checkInt64(name: string, value: unknown): void {
  if (typeof value !== 'bigint') throw new TypeError(`${name} must be a bigint`);
  if (BigInt.asIntN(64, value) !== value) throw new RangeError(`${name} must be a bigint of 64 bits`);
}

function checkBytes(name: string, value: unknown): void {
  if (!(value instanceof Uint8Array)) throw new TypeError(`${name} must be a Uint8Array`);
}

function checkState(state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): void {
  checkInteger('sizeBytes', state.sizeBytes, 0, RANGE_END);
  checkInt64('mtimeNs', state.mtimeNs);
  checkInt64('ctimeNs', state.ctimeNs);
}

function checkContent(content: SlotContent): void {
  if (!isSoundContent(content)) {
    throw new RangeError(
      'content must be dirty only where it is valid, with a partial range that is 0, 0 or start < end',
    );
  }
}

const roundDown = (value: number, unit: number): number => Math.floor(value / unit) * unit;
