import type { CacheCore } from './cache-core.js';
import type { Page } from './page.js';

/**
 * Which page goes when slots are short: 2Q (Johnson and Shasha, VLDB 1994), its second queue a CLOCK in place of LRU, since
 * hits leave only a reference bit.
 *
 * Pages come into `in`, a queue first in, first out: a scan passes through it and no further, however often its pages are
 * referenced within a short time. The keys of those that left it are remembered (ghosts); a page that is wanted again while its
 * key is there goes into `main`, the hot set. `in` gives pages as long as it has more than a quarter of all.
 *
 * Invariants: every loaded page that isn't gone is in exactly one queue. Only clean pages go, that nobody holds, fills, writes or pins.
 */
const IN_SHARE = 0.25;
const GHOST_SHARE = 0.5;

export class Eviction {
  readonly #core: CacheCore;
  readonly #in = new PageQueue();
  readonly #main = new PageQueue();
  readonly #ghosts: Ghosts;
  readonly #inTarget: number;

  constructor(core: CacheCore) {
    this.#core = core;
    this.#inTarget = Math.max(1, Math.floor(core.slots.total * IN_SHARE));
    this.#ghosts = new Ghosts(Math.max(1, Math.floor(core.slots.total * GHOST_SHARE)));
  }

  /** A page was loaded. One that read-ahead brings shows only later whether it was wanted again. */
  admit(page: Page): void {
    const wasGhost = this.#ghosts.take(page);
    if (wasGhost && !page.prefetched) this.#push(page, 'main');
    else {
      page.wasGhost = wasGhost;
      this.#push(page, 'in');
    }
  }

  /** The page leaves, for whatever reason. */
  forget(page: Page): void {
    if (page.queue === 'in') this.#in.remove(page);
    if (page.queue === 'main') this.#main.remove(page);
    page.queue = 'none';
  }

  /** Makes up to `count` slots free; returns how many. */
  reclaim(count: number): number {
    let freed = 0;
    // Two rounds: the first takes the reference bits off the hot set.
    for (let round = 0; round < 2 && freed < count; round++) {
      let looks = this.#in.length + this.#main.length;
      let inSpent = 0;
      let mainSpent = 0;
      while (freed < count && looks-- > 0) {
        const inLeft = inSpent < this.#in.length;
        const mainLeft = mainSpent < this.#main.length;
        if (!inLeft && !mainLeft) break;
        const fromIn = inLeft && (!mainLeft || this.#in.length > this.#inTarget);
        if (fromIn ? this.#tryIn() : this.#tryMain()) freed++;
        else if (fromIn) inSpent++;
        else mainSpent++;
      }
    }
    return freed;
  }

  /** The page goes now, if nothing speaks against it. */
  tryEvict(page: Page): boolean {
    const { slots, counters } = this.#core;
    if (page.holds > 0 || page.pins > 0 || page.filling !== null || page.dirty) return false;
    if (!slots.tryClose([page])) return false;
    slots.refresh(page);
    // A hit dirtied it since the engine last looked.
    if (page.dirty) {
      slots.reopen(page);
      return false;
    }
    slots.drop(page, true);
    counters.add('cache.evictions');
    return true;
  }

  #tryIn(): boolean {
    const page = this.#in.oldest!;
    if (page.wasGhost && !page.prefetched && this.#wasReferenced(page)) {
      this.#in.remove(page);
      this.#push(page, 'main');
      return false;
    }
    if (this.tryEvict(page)) {
      this.#ghosts.add(page);
      return true;
    }
    this.#in.toFront(page);
    return false;
  }

  #tryMain(): boolean {
    const page = this.#main.oldest!;
    if (!this.#wasReferenced(page) && this.tryEvict(page)) return true;
    // A page that could not be evicted stays, with the hot ones.
    if (page.queue === 'main') this.#main.toFront(page);
    return false;
  }

  #wasReferenced(page: Page): boolean {
    const byHits = page.installed && this.#core.map.takeReferences(page.slot) !== 0;
    const referenced = byHits || page.referenced;
    page.referenced = false;
    if (byHits) page.prefetched = false;
    return referenced;
  }

  #push(page: Page, queue: 'in' | 'main'): void {
    page.queue = queue;
    (queue === 'in' ? this.#in : this.#main).push(page);
  }
}

/**
 * Keys of pages that left, the latest `max` of them, in buckets of four: where five meet, the oldest is forgotten early. That costs one
 * read more, and nothing is allocated or searched.
 */
class Ghosts {
  readonly #max: number;
  readonly #mask: number;
  readonly #tags: Uint32Array;
  /** When it was added, by count; 0: empty. */
  readonly #added: Float64Array;
  #count = 0;

  constructor(max: number) {
    this.#max = max;
    const buckets = 2 ** Math.ceil(Math.log2(Math.max(1, max / 2)));
    this.#mask = buckets - 1;
    this.#tags = new Uint32Array(buckets * BUCKET);
    this.#added = new Float64Array(buckets * BUCKET);
  }
  add(page: Page): void {
    const tag = hashOf(page);
    const first = (tag & this.#mask) * BUCKET;
    let oldest = first;
    for (let at = first + 1; at < first + BUCKET; at++) if (this.#added[at]! < this.#added[oldest]!) oldest = at;
    this.#tags[oldest] = tag;
    this.#added[oldest] = ++this.#count;
  }
  /** Whether it was there; it isn't afterwards. */
  take(page: Page): boolean {
    const tag = hashOf(page);
    const first = (tag & this.#mask) * BUCKET;
    for (let at = first; at < first + BUCKET; at++) {
      const added = this.#added[at]!;
      if (this.#tags[at] !== tag || added === 0) continue;
      this.#added[at] = 0;
      return this.#count - added < this.#max;
    }
    return false;
  }
}
const BUCKET = 4;

/** Inode and page in 32 bits, mixed (the finaliser of MurmurHash3). */
function hashOf(page: Page): number {
  let h = Math.imul(page.file.ino, 0x9e3779b1) ^ page.index ^ Math.imul(Math.floor(page.index / 2 ** 32), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Doubly linked through the pages themselves; the oldest at the end. */
class PageQueue {
  #newest: Page | null = null;
  oldest: Page | null = null;
  length = 0;

  push(page: Page): void {
    page.previous = null;
    page.next = this.#newest;
    if (this.#newest !== null) this.#newest.previous = page;
    this.#newest = page;
    this.oldest ??= page;
    this.length++;
  }
  remove(page: Page): void {
    if (page.previous === null) this.#newest = page.next;
    else page.previous.next = page.next;
    if (page.next === null) this.oldest = page.previous;
    else page.next.previous = page.previous;
    page.previous = page.next = null;
    this.length--;
  }
  toFront(page: Page): void {
    this.remove(page);
    this.push(page);
  }
}
