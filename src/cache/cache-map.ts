import type { ByteRange } from '../common/byte-range.js';
import type { InodeNumber } from '../common/ids.js';
import type { TokenMode } from '../token-manager/token.js';

/**
 * The cache map: what is cached, in shared memory, so that any thread hits without asking anybody (design, rule 2).
 *
 * A *slot* is a page of the pool; slot i is the pool's bytes [i * PAGE_BYTES, (i + 1) * PAGE_BYTES). An *entry* is an inode
 * in use on this node: size, times, the mode of its status token, the ranges its data tokens cover. One *lease word* for all.
 * Two implementations pass one suite: the native one (C++ atomics, many threads) and the TypeScript twin for the simulator.
 *
 * Who may change what: hits (any thread) pin, copy, and change only: pins, dirty masks, partial ranges, size (grow), mtime,
 * the dirty ring and credits. Everything else is the engine's thread.
 */
export type EntryId = number & { readonly entryId: unique symbol };
export type SlotId = number & { readonly slotId: unique symbol };

/** Why a hit did not happen; the engine does the operation then. Negative, so that counts of bytes are never mixed up. */
export const Miss = {
  lease: -1,
  stale: -2, // the entry was closed or reused
  status: -3, // status token not held in the needed mode, or being revoked
  coverage: -4, // data token doesn't cover the range
  absent: -5, // a page is not there, not valid where needed, or not prepared for writing
  busy: -6, // a pin conflicts for longer than a hit waits
  credits: -7, // no dirty credit left
  limit: -8, // more pages than one hit may pin (HIT_PAGES_MAX)
} as const;
export type Miss = (typeof Miss)[keyof typeof Miss];
/** Bits of takeReferences. */
export const Referenced = { byRead: 1, byWrite: 2 } as const;
export const HIT_PAGES_MAX = 80;
/** Coverage ranges an entry can publish; more are simply not hit. */
export const COVERAGE_RANGES_MAX = 8;

export interface Coverage extends ByteRange {
  readonly mode: TokenMode; // shared or exclusive
}

/** What is in a page. Masks have one bit per sector. A page's partial range is bytes valid (and dirty) though their sectors aren't. */
export interface SlotContent {
  validMask: number;
  dirtyMask: number;
  /** In the page, start < end, or 0 and 0 when there is none. Dirty bytes whose sector is not wholly valid yet. */
  partialStart: number;
  partialEnd: number;
}

export interface EntryState {
  readonly sizeBytes: number;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  /** Raised by every write hit: the engine sees that size or times may have changed since it last looked. */
  readonly changes: number;
}

export interface CacheMap {
  readonly slotCount: number;
  readonly entryCountMax: number;

  /** CLOCK_BOOTTIME milliseconds (the engine's Clock.nowMs); hits end there. */
  setLeaseDeadline(deadlineMs: number): void;

  /** @returns null when the table is full. */
  openEntry(ino: InodeNumber, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): EntryId | null;
  /** All its slots must have been removed. Waits for running hits. */
  closeEntry(entry: EntryId): void;
  /** Lowering it returns when no hit that relied on the higher mode runs any more. */
  setStatusMode(entry: EntryId, mode: TokenMode): void;
  entryState(entry: EntryId): EntryState;
  /**
   * Engine's own changes of size and times (truncate, utimes): the state as given. A write hit that runs meanwhile may grow the
   * size before or after it, so lower the status mode first (it waits for hits), change, raise it again.
   */
  setEntryState(entry: EntryId, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): void;
  /**
   * A write through the engine: the size becomes at least `endBytes`, mtime and ctime `wallNs`, `changes` is raised, as by a
   * write hit. Unlike entryState followed by setEntryState it undoes no growth by hits of other threads.
   */
  noteWrite(entry: EntryId, endBytes: number, wallNs: bigint): void;
  /** Replaces what is published, at most COVERAGE_RANGES_MAX. Shrinking alone does not wait for running hits: close the slots. */
  setCoverage(entry: EntryId, ranges: readonly Coverage[]): void;

  /** Makes a slot findable as this page. It must be free; content as given; `writable`: space is reserved, write hits may dirty it. */
  install(slot: SlotId, entry: EntryId, pageIndex: number, content: SlotContent, writable: boolean): void;
  setWritable(slot: SlotId, writable: boolean): void;
  /** Only closed or exclusively pinned slots; the slot is free afterwards, and unpinned. */
  remove(slot: SlotId): void;
  content(slot: SlotId): SlotContent;
  /** Only under an exclusive pin or while closed. */
  setContent(slot: SlotId, content: SlotContent): void;
  /** No new pins from now on. True when no pin is left; else call again (running hits end within microseconds, the engine knows its own). */
  close(slot: SlotId): boolean;
  reopen(slot: SlotId): void;
  /** The engine's own pins. False when they conflict now. */
  tryPinShared(slot: SlotId): boolean;
  tryPinExclusive(slot: SlotId): boolean;
  unpinShared(slot: SlotId): void;
  unpinExclusive(slot: SlotId): void;

  /** Slots that hits turned from clean to dirty since the last call, each once. */
  takeDirtied(max: number): SlotId[];
  /** How many more pages hits may turn dirty; add may be negative, the word never goes below 0. Returns what is left. */
  addDirtyCredits(add: number): number;
  /** The slot's reference bits (see Referenced) since the last call, then cleared: for the eviction policy. */
  takeReferences(slot: SlotId): number;

  /** A hit: bytes copied (0 at or behind the end of file), or a Miss. Atomic against other reads and writes of the entry's pages. */
  read(entry: EntryId, offsetBytes: number, target: Uint8Array): number;
  /** A hit: bytes written, or a Miss. Grows the size, sets mtime and ctime to `wallNs`. `offsetBytes` -1 appends at the end of file. */
  write(entry: EntryId, offsetBytes: number, source: Uint8Array, wallNs: bigint): number;
  /** Hits and misses by reason since the start. */
  stats(): {
    readHits: number;
    writeHits: number;
    readBytes: number;
    writeBytes: number;
    misses: Record<string, number>;
  };
}
