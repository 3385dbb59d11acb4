import { invariant } from '../common/assert.js';
import type { InodeNumber } from '../common/ids.js';
import { PAGE_BYTES } from '../common/units.js';
import {
  type CacheMapBinding,
  coreConstants,
  createCacheMapBinding,
  type NativePagePool,
  openCacheMapBinding,
} from '../native/core.js';
import { TokenMode } from '../token-manager/token.js';
import {
  type CacheMap,
  COVERAGE_RANGES_MAX,
  type Coverage,
  type EntryId,
  type EntryState,
  HIT_PAGES_MAX,
  Miss,
  type SlotContent,
  type SlotId,
} from './cache-map.js';

/**
 * The cache map in native memory (native/core/src/cache_map.h says how it works between threads).
 *
 * The engine's thread creates it; any other thread of the process opens it by its id, and hits. Invariant: numbers that both
 * languages know are equal, checked on creation. Fault model: an engine call that its caller must not make (a stale entry, a
 * slot in use) is a broken invariant; wrong arguments are TypeErrors and RangeErrors; a call after close() is an Error.
 */
const FAULTS: readonly string[] = [
  'no fault',
  'the entry is stale',
  'the entry still has slots',
  'the slot is in use',
  'the slot is free',
  'the page is installed in another slot',
  'the slot is neither closed and quiet nor pinned exclusively by the engine',
  'the slot is not pinned like that',
];

const MISS_NAMES = Object.keys(Miss) as (keyof typeof Miss)[];
const STATE_WORDS = 4;
const STATISTICS_HEAD = 4;

function check(fault: number, operation: string): void {
  invariant(fault === 0, `cache map: ${operation}: ${FAULTS[fault] ?? `fault ${fault}`}`);
}

export class NativeCacheMap implements CacheMap {
  /** What another thread of this process opens the map by. */
  readonly id: number;
  readonly slotCount: number;
  readonly entryCountMax: number;
  readonly #native: CacheMapBinding;
  readonly #state = new Float64Array(STATE_WORDS);
  readonly #stateBits = new BigInt64Array(this.#state.buffer);
  readonly #coverage = new Float64Array(COVERAGE_RANGES_MAX * 3);
  #dirtied = new Uint32Array(64);

  private constructor(native: CacheMapBinding) {
    const constants = coreConstants();
    invariant(
      constants.hitPagesMax === HIT_PAGES_MAX &&
        constants.coverageRangesMax === COVERAGE_RANGES_MAX &&
        constants.missReasons === MISS_NAMES.length &&
        constants.modeExclusive === TokenMode.exclusive,
      'the native addon knows other limits of the cache map: run `npm run build:native`',
    );
    this.#native = native;
    this.id = native.id;
    this.slotCount = native.slotCount;
    this.entryCountMax = native.entryCountMax;
  }

  /** `slotCount` pages from the start of the pool; the whole pool unless told otherwise. At most 2^20 entries. */
  static create(
    pool: NativePagePool,
    entryCountMax: number,
    slotCount: number = Math.floor(pool.lengthBytes / PAGE_BYTES),
  ): NativeCacheMap {
    return new NativeCacheMap(createCacheMapBinding(pool.id, slotCount, entryCountMax));
  }

  /** A map that another thread of this process created. @throws {RangeError} when it isn't open. */
  static open(id: number): NativeCacheMap {
    return new NativeCacheMap(openCacheMapBinding(id));
  }

  /**
   * This thread's use of the map ends; after its creator's, no thread can open it any more. The memory goes with the last
   * thread that has it open. May be repeated.
   */
  dispose(): void {
    this.#native.close();
  }

  setLeaseDeadline(deadlineMs: number): void {
    this.#native.setLeaseDeadline(deadlineMs);
  }

  openEntry(_ino: InodeNumber, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): EntryId | null {
    const entry = this.#native.openEntry(state.sizeBytes, state.mtimeNs, state.ctimeNs);
    return entry === 0 ? null : (entry as EntryId);
  }

  closeEntry(entry: EntryId): void {
    check(this.#native.closeEntry(entry), 'closeEntry');
  }

  setStatusMode(entry: EntryId, mode: TokenMode): void {
    check(this.#native.setStatusMode(entry, mode), 'setStatusMode');
  }

  entryState(entry: EntryId): EntryState {
    check(this.#native.entryState(entry, this.#state), 'entryState');
    return {
      sizeBytes: this.#state[0]!,
      mtimeNs: this.#stateBits[2]!,
      ctimeNs: this.#stateBits[3]!,
      changes: this.#state[1]!,
    };
  }

  setEntryState(entry: EntryId, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): void {
    check(this.#native.setEntryState(entry, state.sizeBytes, state.mtimeNs, state.ctimeNs), 'setEntryState');
  }

  noteWrite(entry: EntryId, endBytes: number, wallNs: bigint): void {
    check(this.#native.noteWrite(entry, endBytes, wallNs), 'noteWrite');
  }

  setCoverage(entry: EntryId, ranges: readonly Coverage[]): void {
    const count = Math.min(ranges.length, COVERAGE_RANGES_MAX);
    for (let i = 0; i < count; i++) {
      const { start, end, mode } = ranges[i]!;
      this.#coverage[i * 3] = start;
      this.#coverage[i * 3 + 1] = end;
      this.#coverage[i * 3 + 2] = mode;
    }
    check(this.#native.setCoverage(entry, this.#coverage, count), 'setCoverage');
  }

  install(slot: SlotId, entry: EntryId, pageIndex: number, content: SlotContent, writable: boolean): void {
    const { validMask, dirtyMask, partialStart, partialEnd } = content;
    const fault = this.#native.install(
      slot,
      entry,
      pageIndex,
      validMask,
      dirtyMask,
      partialStart,
      partialEnd,
      writable,
    );
    check(fault, 'install');
  }

  setWritable(slot: SlotId, writable: boolean): void {
    check(this.#native.setWritable(slot, writable), 'setWritable');
  }

  remove(slot: SlotId): void {
    check(this.#native.remove(slot), 'remove');
  }

  content(slot: SlotId): SlotContent {
    const packed = this.#native.content(slot);
    invariant(packed >= 0, `cache map: content: ${FAULTS[4]}`);
    const low = packed % 2 ** 32;
    return {
      validMask: low & 0xff,
      dirtyMask: (low >>> 8) & 0xff,
      partialStart: low >>> 16,
      partialEnd: Math.floor(packed / 2 ** 32),
    };
  }

  setContent(slot: SlotId, content: SlotContent): void {
    const { validMask, dirtyMask, partialStart, partialEnd } = content;
    check(this.#native.setContent(slot, validMask, dirtyMask, partialStart, partialEnd), 'setContent');
  }

  close(slot: SlotId): boolean {
    const quiet = this.#native.closeSlot(slot);
    invariant(quiet >= 0, `cache map: close: ${FAULTS[4]}`);
    return quiet === 1;
  }

  reopen(slot: SlotId): void {
    check(this.#native.reopen(slot), 'reopen');
  }

  tryPinShared(slot: SlotId): boolean {
    return this.#native.tryPinShared(slot);
  }

  tryPinExclusive(slot: SlotId): boolean {
    return this.#native.tryPinExclusive(slot);
  }

  unpinShared(slot: SlotId): void {
    check(this.#native.unpinShared(slot), 'unpinShared');
  }

  unpinExclusive(slot: SlotId): void {
    check(this.#native.unpinExclusive(slot), 'unpinExclusive');
  }

  takeDirtied(max: number): SlotId[] {
    const most = Math.min(max, this.slotCount);
    if (this.#dirtied.length < most) this.#dirtied = new Uint32Array(most);
    const count = this.#native.takeDirtied(this.#dirtied, most);
    return Array.from(this.#dirtied.subarray(0, count)) as SlotId[];
  }

  addDirtyCredits(add: number): number {
    return this.#native.addDirtyCredits(add);
  }

  takeReferences(slot: SlotId): number {
    return this.#native.takeReferences(slot);
  }

  read(entry: EntryId, offsetBytes: number, target: Uint8Array): number {
    return this.#native.read(entry, offsetBytes, target);
  }

  write(entry: EntryId, offsetBytes: number, source: Uint8Array, wallNs: bigint): number {
    return this.#native.write(entry, offsetBytes, source, wallNs);
  }

  stats(): ReturnType<CacheMap['stats']> {
    const numbers = new Float64Array(STATISTICS_HEAD + MISS_NAMES.length);
    this.#native.statistics(numbers);
    const [readHits = 0, writeHits = 0, readBytes = 0, writeBytes = 0] = numbers;
    // The miss -n is counted behind the head, at n - 1.
    const misses = Object.fromEntries(MISS_NAMES.map((name) => [name, numbers[STATISTICS_HEAD - 1 - Miss[name]] ?? 0]));
    return { readHits, writeHits, readBytes, writeBytes, misses };
  }
}
