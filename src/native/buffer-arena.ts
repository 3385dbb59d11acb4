import { invariant } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { BufferArena, PoolSegment } from './page-pool.js';

/**
 * Staging space in a fixed part of the pool; see BufferArena. First fit over a free list sorted by offset; neighbours merge when
 * they are freed (Knuth, volume 1, 2.5).
 *
 * Invariants: free pieces are disjoint, ascending and never adjacent; what is free and what is handed out add up to the whole.
 * Nobody overtakes the line: while somebody waits, tryAllocate gives nothing. Fault model: a segment freed twice, or one that the
 * arena never gave, is a bug of the caller (InvariantError); a waiter may be aborted at any time.
 */
export interface BufferArenaOptions {
  /** How many may wait in line. */
  readonly waitersMax?: number;
}

interface FreePiece {
  start: number;
  end: number;
}

interface Waiter {
  readonly lengthBytes: number;
  grant(segment: PoolSegment): void;
}

export class SegmentArena implements BufferArena {
  readonly #waitersMax: number;
  readonly #wholeBytes: number;
  readonly #free: FreePiece[];
  /** Length of every segment handed out, by offset. */
  readonly #taken = new Map<number, number>();
  readonly #waiters = new Set<Waiter>();
  #freeBytes: number;

  /** `area` is the arena's part of the pool, in whole sectors. */
  constructor(area: PoolSegment, options: BufferArenaOptions = {}) {
    if (area.offsetBytes % SECTOR_BYTES !== 0 || area.lengthBytes % SECTOR_BYTES !== 0 || area.lengthBytes <= 0) {
      throw new FsError('invalidArgument', {
        op: 'bufferArena.create',
        detail: `an arena is made of whole sectors, not of ${area.lengthBytes} bytes at ${area.offsetBytes}`,
      });
    }
    this.#waitersMax = options.waitersMax ?? 1024;
    this.#wholeBytes = area.lengthBytes;
    this.#freeBytes = area.lengthBytes;
    this.#free = [{ start: area.offsetBytes, end: area.offsetBytes + area.lengthBytes }];
  }

  get freeBytes(): number {
    return this.#freeBytes;
  }

  tryAllocate(lengthBytes: number): PoolSegment | null {
    const rounded = this.#rounded(lengthBytes);
    return this.#waiters.size > 0 ? null : this.#take(rounded);
  }

  async allocate(lengthBytes: number, signal?: AbortSignal): Promise<PoolSegment> {
    const rounded = this.#rounded(lengthBytes);
    if (rounded > this.#wholeBytes) {
      throw new FsError('tooLarge', {
        op: 'bufferArena.allocate',
        detail: `${lengthBytes} bytes never fit into an arena of ${this.#wholeBytes}`,
      });
    }
    if (signal?.aborted) throw aborted(signal);
    const now = this.#waiters.size > 0 ? null : this.#take(rounded);
    if (now !== null) return now;
    if (this.#waiters.size >= this.#waitersMax) {
      throw new FsError('queueFull', {
        op: 'bufferArena.allocate',
        detail: `${this.#waiters.size} requests wait for staging space`,
      });
    }
    return new Promise<PoolSegment>((resolve, reject) => {
      const onAbort = () => {
        this.#waiters.delete(waiter);
        reject(aborted(signal!));
        // The one behind may ask for less.
        this.#serve();
      };
      const waiter: Waiter = {
        lengthBytes: rounded,
        grant: (segment) => {
          signal?.removeEventListener('abort', onAbort);
          resolve(segment);
        },
      };
      this.#waiters.add(waiter);
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  free(segment: PoolSegment): void {
    const { offsetBytes, lengthBytes } = segment;
    invariant(
      this.#taken.get(offsetBytes) === lengthBytes,
      `buffer arena: ${lengthBytes} bytes at ${offsetBytes} are freed but were not handed out`,
    );
    this.#taken.delete(offsetBytes);
    this.#freeBytes += lengthBytes;
    const end = offsetBytes + lengthBytes;
    const next = this.#indexBehind(offsetBytes);
    const before = this.#free[next - 1];
    const behind = this.#free[next];
    const joinsBefore = before !== undefined && before.end === offsetBytes;
    const joinsBehind = behind !== undefined && behind.start === end;
    if (joinsBefore && joinsBehind) {
      before.end = behind.end;
      this.#free.splice(next, 1);
    } else if (joinsBefore) {
      before.end = end;
    } else if (joinsBehind) {
      behind.start = offsetBytes;
    } else {
      this.#free.splice(next, 0, { start: offsetBytes, end });
    }
    this.#serve();
  }

  #serve(): void {
    for (const waiter of this.#waiters) {
      const segment = this.#take(waiter.lengthBytes);
      if (segment === null) return;
      this.#waiters.delete(waiter);
      waiter.grant(segment);
    }
  }

  #take(lengthBytes: number): PoolSegment | null {
    const index = this.#free.findIndex((piece) => piece.end - piece.start >= lengthBytes);
    const piece = this.#free[index];
    if (piece === undefined) return null;
    const offsetBytes = piece.start;
    piece.start += lengthBytes;
    if (piece.start === piece.end) this.#free.splice(index, 1);
    this.#taken.set(offsetBytes, lengthBytes);
    this.#freeBytes -= lengthBytes;
    return { offsetBytes, lengthBytes };
  }

  /** Of the first free piece behind the offset. */
  #indexBehind(offsetBytes: number): number {
    let low = 0;
    let high = this.#free.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#free[middle]!.start < offsetBytes) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #rounded(lengthBytes: number): number {
    if (!Number.isSafeInteger(lengthBytes) || lengthBytes <= 0) {
      throw new FsError('invalidArgument', {
        op: 'bufferArena.allocate',
        detail: `${lengthBytes} is not a length in bytes`,
      });
    }
    return Math.ceil(lengthBytes / SECTOR_BYTES) * SECTOR_BYTES;
  }
}

const aborted = (signal: AbortSignal): FsError =>
  new FsError('aborted', { op: 'bufferArena.allocate', detail: 'given up by the caller', cause: signal.reason });
