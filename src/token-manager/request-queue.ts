/**
 * The waiting line of one object: requests in the order of arrival, and the revocations sent on their behalf.
 *
 * First come, first served per conflicting range (T3): a request waits as long as one before it conflicts with it, even if
 * no holder does. Kept only while somebody waits. No fault model: everything here was checked before.
 */
import { type ByteRange, overlaps } from '../common/byte-range.js';
import { conflictsWithMask, type ModeMask, modeMask } from './compatibility.js';
import type { MemberIndex, ObjectKey } from './holder-table.js';
import type { Member } from './members.js';
import type { TokenMode } from './token.js';
import type { RequestPart } from './token-messages.js';

export interface QueuedRequest {
  readonly requestId: number;
  readonly member: Member;
  readonly key: ObjectKey;
  readonly parts: readonly RequestPart[];
  readonly nowait: boolean;
  /** See RequestItem. */
  readonly prompt: boolean;
  /** On the server's clock; Infinity is none. */
  readonly deadlineAtMs: number;
  readonly arrivedAtMs: number;
  /** False once granted, refused or fallen: the heap of deadlines forgets it then. */
  waiting: boolean;
}

export interface SentRevoke {
  readonly revokeId: number;
  readonly key: ObjectKey;
  readonly member: MemberIndex;
  readonly range: ByteRange;
  readonly keep: TokenMode;
  readonly upToSeq: number;
  readonly sentAtMs: number;
  readonly reclaim: boolean;
  readonly prompt: boolean;
}

export interface ObjectQueue {
  requests: QueuedRequest[];
  revokes: SentRevoke[];
}

/** What the requests looked at so far wait for: those behind them must not overtake. */
export class Ahead {
  readonly #entries: { start: number; end: number; mask: ModeMask }[] = [];

  add(request: QueuedRequest): void {
    for (const { required, mode } of request.parts) {
      const mask = modeMask(mode);
      const known = this.#entries.some(
        (e) => e.start <= required.start && required.end <= e.end && (e.mask & mask) === mask,
      );
      if (!known) this.#entries.push({ start: required.start, end: required.end, mask });
    }
  }

  blocks(request: QueuedRequest): boolean {
    if (this.#entries.length === 0) return false;
    return request.parts.some((part) =>
      this.#entries.some((e) => overlaps(e, part.required) && conflictsWithMask(part.mode, e.mask)),
    );
  }
}

/** Requests by deadline: a binary heap; those that have ended are dropped when they come to the top. */
export class DeadlineHeap {
  #heap: QueuedRequest[] = [];

  push(request: QueuedRequest): void {
    if (request.deadlineAtMs === Number.POSITIVE_INFINITY) return;
    if (this.#heap.length > 64 && this.#heap.length > 4 * this.#live()) this.#compact();
    const heap = this.#heap;
    let i = heap.push(request) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (heap[parent]!.deadlineAtMs <= request.deadlineAtMs) break;
      heap[i] = heap[parent]!;
      i = parent;
    }
    heap[i] = request;
    this.#waiting++;
  }

  /** To be called once for every pushed request that ends. */
  ended(request: QueuedRequest): void {
    if (request.deadlineAtMs !== Number.POSITIVE_INFINITY) this.#waiting--;
  }

  nextMs(): number {
    this.#skipEnded();
    return this.#heap[0]?.deadlineAtMs ?? Number.POSITIVE_INFINITY;
  }

  popDue(nowMs: number): QueuedRequest | undefined {
    this.#skipEnded();
    const top = this.#heap[0];
    if (top === undefined || top.deadlineAtMs > nowMs) return undefined;
    this.#pop();
    return top;
  }

  #waiting = 0;
  #live(): number {
    return this.#waiting;
  }

  #skipEnded(): void {
    while (this.#heap.length > 0 && !this.#heap[0]!.waiting) this.#pop();
  }

  #compact(): void {
    const waiting = this.#heap.filter((r) => r.waiting);
    // Ascending order is a heap.
    this.#heap = waiting.sort((a, b) => a.deadlineAtMs - b.deadlineAtMs);
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1]!.deadlineAtMs < heap[child]!.deadlineAtMs) child++;
      if (heap[child]!.deadlineAtMs >= last.deadlineAtMs) break;
      heap[i] = heap[child]!;
      i = child;
    }
    heap[i] = last;
  }
}
