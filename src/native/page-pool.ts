import type { FsError } from '../common/errors.js';

/**
 * The page pool: one aligned native region that every thread maps, that the devices and the fabric are registered with,
 * and in which all bulk bytes live. Offsets into it, never JS copies, are what the layers pass each other.
 */
export interface PagePool {
  /** An ArrayBuffer over the whole pool, this thread's view of it. */
  readonly buffer: ArrayBuffer;
  readonly bytes: Uint8Array;
  readonly lengthBytes: number;
}

/** A piece of the page pool. */
export interface PoolSegment {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** A pool on the JS heap: for the simulator and for unit tests. */
export function heapPagePool(lengthBytes: number): PagePool {
  const buffer = new ArrayBuffer(lengthBytes);
  return { buffer, bytes: new Uint8Array(buffer), lengthBytes };
}

/**
 * Staging space in a fixed part of the pool, for bytes that are not cache pages: an NSD server's buffers, metadata on its
 * way out. First fit over a sorted free list, in units of sectors; waiters are served in order, and their number is bounded.
 */
export interface BufferArena {
  /** Contiguous, a multiple of a sector. Null when there is no room now. */
  tryAllocate(lengthBytes: number): PoolSegment | null;
  /** Waits in line for room. @throws {FsError} queueFull when too many wait, tooLarge when it can never fit. */
  allocate(lengthBytes: number, signal?: AbortSignal): Promise<PoolSegment>;
  free(segment: PoolSegment): void;
  readonly freeBytes: number;
}
export type BufferArenaError = FsError;
