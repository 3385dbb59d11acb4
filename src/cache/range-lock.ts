import type { ByteRange } from '../common/byte-range.js';
import { abortedError } from './wait-queue.js';

/**
 * Locks on ranges of one file between the engine's own operations: shared by reads, exclusive for writes.
 *
 * Fair: whoever comes later and overlaps waits, even when both readers before it would let it in, so a stream of readers
 * can't starve a writer. Hits of other threads don't know it; they are held off by pins and coverage.
 * Ranges are rounded to pages by the caller, so that two operations that share a page never hold it half each.
 * Fault model: a wait ends with the operations before it, or with its signal.
 */
export interface LockedRange extends ByteRange {
  readonly exclusive: boolean;
}

interface Request extends LockedRange {
  granted: boolean;
  resolve: (() => void) | null;
}

export class RangeLock {
  readonly #requests: Request[] = [];

  /** Nobody holds or waits for anything of it that conflicts. */
  isFree(start: number, end: number, exclusive: boolean): boolean {
    for (const request of this.#requests)
      if (request.start < end && start < request.end && (exclusive || request.exclusive)) return false;
    return true;
  }

  tryTake(start: number, end: number, exclusive: boolean): LockedRange | null {
    if (!this.isFree(start, end, exclusive)) return null;
    const request: Request = { start, end, exclusive, granted: true, resolve: null };
    this.#requests.push(request);
    return request;
  }

  async take(start: number, end: number, exclusive: boolean, signal?: AbortSignal): Promise<LockedRange> {
    const now = this.tryTake(start, end, exclusive);
    if (now !== null) return now;
    if (signal?.aborted) throw abortedError('other operations on the range', signal);
    const request: Request = { start, end, exclusive, granted: false, resolve: null };
    this.#requests.push(request);
    await new Promise<void>((resolve, reject) => {
      const onAbort = (): void => {
        if (request.granted) return;
        this.release(request);
        reject(abortedError('other operations on the range', signal));
      };
      request.resolve = () => {
        signal?.removeEventListener('abort', onAbort);
        resolve();
      };
      signal?.addEventListener('abort', onAbort, { once: true });
    });
    return request;
  }

  release(held: LockedRange): void {
    const at = this.#requests.indexOf(held as Request);
    if (at < 0) return;
    this.#requests.splice(at, 1);
    for (let i = at; i < this.#requests.length; i++) {
      const request = this.#requests[i]!;
      if (request.granted || this.#conflictsBefore(i, request)) continue;
      request.granted = true;
      request.resolve?.();
    }
  }

  #conflictsBefore(index: number, request: Request): boolean {
    for (let i = 0; i < index; i++) {
      const other = this.#requests[i]!;
      if (other.start < request.end && request.start < other.end && (other.exclusive || request.exclusive)) return true;
    }
    return false;
  }
}
