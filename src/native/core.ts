import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { invariant } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import type { PagePool } from './page-pool.js';

export { crc32cJs } from './crc32c-js.js';

/**
 * The boundary of native/core: the page pool, CRC-32C, the clocks, and the raw functions of the cache map (typed here, used by
 * src/cache/cache-map-native.ts only).
 *
 * The addon is loaded on first use, so that the simulator can import what stands above without having built it. Invariant: both
 * sides agree on the constants they share, checked when it loads. Fault model: the addon may not be built, or not loadable
 * (FsError nativeMissing, which says what to run); wrong arguments are TypeErrors and RangeErrors from the addon.
 */

/** How the pool's memory came: `none` means pages of 4 KiB. */
export type HugePages = 'none' | 'transparent' | 'reserved';

export interface NativePagePool extends PagePool {
  /** What another thread of this process opens it by. Never reused in a process. */
  readonly id: number;
  readonly hugePages: HugePages;
  /**
   * The creator gives the pool up: nobody can open it any more, and it is unmapped when the last thread's buffer was collected
   * and the last cache map over it closed. On a pool that was opened, or again: nothing.
   */
  close(): void;
}

/** The functions of one cache map; faults are numbers, see cache-map-native.ts. Positional, because every object would cost. */
export interface CacheMapBinding {
  readonly id: number;
  readonly slotCount: number;
  readonly entryCountMax: number;
  read(entry: number, offsetBytes: number, target: Uint8Array): number;
  write(entry: number, offsetBytes: number, source: Uint8Array, wallNs: bigint): number;
  setLeaseDeadline(deadlineMs: number): void;
  /** 0 when the table is full. */
  openEntry(sizeBytes: number, mtimeNs: bigint, ctimeNs: bigint): number;
  closeEntry(entry: number): number;
  setStatusMode(entry: number, mode: number): number;
  /** Into `out`: size, changes, then mtime and ctime as the bit patterns of signed 64-bit integers. */
  entryState(entry: number, out: Float64Array): number;
  setEntryState(entry: number, sizeBytes: number, mtimeNs: bigint, ctimeNs: bigint): number;
  noteWrite(entry: number, endBytes: number, wallNs: bigint): number;
  /** `ranges` holds triples: start, end, mode. */
  setCoverage(entry: number, ranges: Float64Array, count: number): number;
  install(
    slot: number,
    entry: number,
    pageIndex: number,
    validMask: number,
    dirtyMask: number,
    partialStart: number,
    partialEnd: number,
    writable: boolean,
  ): number;
  setWritable(slot: number, writable: boolean): number;
  remove(slot: number): number;
  /** validMask | dirtyMask << 8 | partialStart << 16 | partialEnd << 32; -1 when the slot is free. */
  content(slot: number): number;
  setContent(slot: number, validMask: number, dirtyMask: number, partialStart: number, partialEnd: number): number;
  /** 1 when no pin is left, 0 when some are, -1 when the slot is free. */
  closeSlot(slot: number): number;
  reopen(slot: number): number;
  tryPinShared(slot: number): boolean;
  tryPinExclusive(slot: number): boolean;
  unpinShared(slot: number): number;
  unpinExclusive(slot: number): number;
  takeDirtied(out: Uint32Array, max: number): number;
  addDirtyCredits(add: number): number;
  takeReferences(slot: number): number;
  /** Into `out`: readHits, writeHits, readBytes, writeBytes, then the misses by reason. */
  statistics(out: Float64Array): void;
  close(): void;
}

interface NativePool {
  readonly id: number;
  readonly buffer: ArrayBuffer;
  readonly lengthBytes: number;
  readonly hugePages: number;
}

interface CoreAddon {
  createPool(lengthBytes: number): NativePool;
  openPool(id: number): NativePool;
  closePool(id: number): boolean;
  mappedPoolCount(): number;
  crc32c(bytes: Uint8Array, seed: number): number;
  crc32cSectors(bytes: Uint8Array, offsetBytes: number, sectorCount: number, out: Uint32Array, outIndex: number): void;
  bootTimeMs(): number;
  wallClockNs(): bigint;
  stayAwake(forUs: number): void;
  createCacheMap(poolId: number, slotCount: number, entryCountMax: number): CacheMapBinding;
  openCacheMap(id: number): CacheMapBinding;
  readonly constants: {
    readonly pageBytes: number;
    readonly sectorBytes: number;
    readonly hitPagesMax: number;
    readonly coverageRangesMax: number;
    readonly missReasons: number;
    readonly modeExclusive: number;
  };
}

/** Where the addon is: this file runs from src/native (tests) and from dist/src/native. */
export function coreAddonPath(): string {
  const build = process.env['HOLDFAST_NATIVE'] === 'asan' ? 'build-asan' : 'build';
  const here = path.dirname(fileURLToPath(import.meta.url));
  const places = ['../..', '../../..'].map((up) => path.resolve(here, up, 'native/core', build, 'Release/core.node'));
  const found = places.find((place) => existsSync(place));
  if (found === undefined) {
    throw new FsError('nativeMissing', {
      op: 'native.load',
      object: 'core.node',
      detail: `the native addon isn't built: run \`npm run build:native\` (looked at ${places.join(' and ')})`,
    });
  }
  return found;
}

let loaded: CoreAddon | undefined;

function addon(): CoreAddon {
  if (loaded !== undefined) return loaded;
  const file = coreAddonPath();
  let core: CoreAddon;
  try {
    core = createRequire(import.meta.url)(file) as CoreAddon;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FsError('nativeMissing', {
      op: 'native.load',
      object: file,
      detail: `the native addon doesn't load (${why}): install the system packages, then run \`npm run build:native\``,
      cause,
    });
  }
  invariant(
    core.constants?.pageBytes === PAGE_BYTES && core.constants.sectorBytes === SECTOR_BYTES,
    `${file} was built for another page or sector size: run \`npm run build:native\``,
  );
  loaded = core;
  return core;
}

const HUGE_PAGES: readonly HugePages[] = ['none', 'transparent', 'reserved'];

function toPagePool(native: NativePool, close: () => void): NativePagePool {
  return {
    id: native.id,
    buffer: native.buffer,
    bytes: new Uint8Array(native.buffer),
    lengthBytes: native.lengthBytes,
    hugePages: HUGE_PAGES[native.hugePages] ?? 'none',
    close,
  };
}

/** Maps a new pool, all zeros. @throws {FsError} internal, with the system's words, when the memory can't be mapped. */
export function createPagePool(lengthBytes: number): NativePagePool {
  const core = addon();
  let native: NativePool;
  try {
    native = core.createPool(lengthBytes);
  } catch (error) {
    if (error instanceof TypeError || error instanceof RangeError) throw error;
    throw FsError.from(error, 'pagePool.create', `${lengthBytes} bytes`);
  }
  return toPagePool(native, () => {
    core.closePool(native.id);
  });
}

/** This thread's view of a pool that a thread of this process created. @throws {RangeError} when it isn't open. */
export function openPagePool(id: number): NativePagePool {
  return toPagePool(addon().openPool(id), () => undefined);
}

/** Pools that are mapped in this process now, closed ones that are still in use included. */
export const mappedPoolCount = (): number => addon().mappedPoolCount();

/** CRC-32C; `seed` is the checksum of the bytes before these. */
export const crc32c = (bytes: Uint8Array, seed = 0): number => addon().crc32c(bytes, seed);

/** Checksums of `sectorCount` sectors that start at `offsetBytes`, into `out` from `outIndex` on. */
export function crc32cSectors(
  bytes: Uint8Array,
  offsetBytes: number,
  sectorCount: number,
  out: Uint32Array,
  outIndex: number,
): void {
  addon().crc32cSectors(bytes, offsetBytes, sectorCount, out, outIndex);
}

/** CLOCK_BOOTTIME in milliseconds with a fraction. */
export const bootTimeMs = (): number => addon().bootTimeMs();

/** Wall clock, nanoseconds since 1970. */
export const wallClockNs = (): bigint => addon().wallClockNs();

/**
 * The processor that this thread runs on is kept from being halted from now on for so long (10 ms at most, 0: no longer), by a helper thread that takes only time
 * that nobody else wants. For who is about to sleep until
 * something that is due within microseconds: waking a halted processor takes longer than that. For whom it is allowed.
 */
export const stayAwake = (forUs: number): void => addon().stayAwake(forUs);
/** It uses up idle time, which is somebody's on a shared host and counts against a container's quota: only where it is asked for. */
export const mayStayAwake = process.env['HOLDFAST_STAY_AWAKE'] === '1';

export const createCacheMapBinding = (poolId: number, slotCount: number, entryCountMax: number): CacheMapBinding =>
  addon().createCacheMap(poolId, slotCount, entryCountMax);
export const openCacheMapBinding = (id: number): CacheMapBinding => addon().openCacheMap(id);
export const coreConstants = (): CoreAddon['constants'] => addon().constants;
