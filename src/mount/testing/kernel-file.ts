import { type ByteRange, range } from '../../common/byte-range.js';
import { below, type Random } from '../../common/random.js';

/**
 * A model of what the kernel does with one file's pages, as seen on Linux 6.18: pages are locked by the READ that is to fill them,
 * until its answer; an invalidation looks pages up in small batches and waits for locked ones; a direct write drops its pages before it is
 * sent and again after the answer. Values of pages are versions.
 *
 * Everything that can wait is a generator that yields what it waits for; a scheduler decides who goes on.
 */
export const PAGE = 4096;

/** One step is over; the next may be taken when the condition holds. */
export type Step = () => boolean;
export type Task<T = void> = Generator<Step, T, void>;
export const ready: Step = () => true;

interface Page {
  state: 'absent' | 'locked' | 'valid';
  version: number;
  dirty: boolean;
  /** Its bytes are on their way to the server: whoever invalidates it, or writes it back, waits for that. */
  writeback: boolean;
}

export type Answer =
  | { readonly kind: 'bytes'; readonly versions: ReadonlyMap<number, number> }
  | { readonly kind: 'error'; readonly again: boolean };

/** Whom the kernel asks. Answers are delivered by calling back. */
export interface Server {
  read(pages: ByteRange, cached: boolean, answered: (answer: Answer) => void): void;
  /** Returns the version that it became. */
  write(pages: ByteRange, answered: (version: number) => void): void;
  /** A page of a mapping, with the version that was stored. */
  launder(page: number, version: number, answered: () => void): void;
  /** A store through a mapping happens: its version. */
  store(page: number): number;
}

export class KernelFile {
  readonly pages: Page[];
  constructor(
    readonly random: Random,
    count: number,
    readonly server: Server,
  ) {
    this.pages = Array.from({ length: count }, () => ({ state: 'absent', version: 0, dirty: false, writeback: false }));
  }

  *#unlocked(index: number): Task {
    const page = this.pages[index]!;
    while (page.state === 'locked') yield () => page.state !== 'locked';
  }
  #bytes(first: number, count: number): ByteRange {
    return range(first * PAGE, (first + count) * PAGE);
  }

  /** Fills pages from one on: as many as are absent, at most `ahead`. */
  *#fill(first: number, ahead: number): Task<boolean> {
    let count = 0;
    while (count < ahead && this.pages[first + count]?.state === 'absent') count++;
    const locked = this.pages.slice(first, first + count);
    for (const page of locked) page.state = 'locked';
    const answer = yield* this.#ask(this.#bytes(first, count), true);
    for (const [i, page] of locked.entries()) {
      page.state = answer.kind === 'bytes' ? 'valid' : 'absent';
      if (answer.kind === 'bytes') page.version = answer.versions.get(first + i)!;
    }
    return answer.kind === 'bytes' || (answer.again && count > 1);
  }
  *#ask(pages: ByteRange, cached: boolean): Task<Answer> {
    const got: Answer[] = [];
    this.server.read(pages, cached, (one) => got.push(one));
    yield () => got.length > 0;
    return got[0]!;
  }

  /** A read of one page through a cached handle or a mapping: its version, or null for an error. */
  *cachedRead(index: number): Task<number | null> {
    const page = this.pages[index]!;
    for (let attempt = 0; ; attempt++) {
      yield ready;
      yield* this.#unlocked(index);
      // A hit asks nobody.
      if (page.state === 'valid') return page.version;
      const ahead = attempt === 0 ? 1 + below(this.random, 4) : 1;
      if (!(yield* this.#fill(index, ahead))) return null;
    }
  }

  *directRead(first: number, count: number): Task<ReadonlyMap<number, number> | null> {
    yield* this.#launder(first, count);
    const answer = yield* this.#ask(this.#bytes(first, count), false);
    return answer.kind === 'bytes' ? answer.versions : null;
  }

  *directWrite(first: number, count: number): Task<number> {
    yield* this.invalidate(first, count);
    const got: number[] = [];
    this.server.write(this.#bytes(first, count), (version) => got.push(version));
    yield () => got.length > 0;
    yield* this.invalidate(first, count);
    return got[0]!;
  }

  /** A store through a shared mapping: its version. The page is faulted in first. */
  *mappedStore(index: number): Task<number | null> {
    const page = this.pages[index]!;
    for (;;) {
      yield* this.#unlocked(index);
      if (page.state === 'valid') {
        page.version = this.server.store(index);
        page.dirty = true;
        return page.version;
      }
      if (!(yield* this.#fill(index, 1))) return null;
    }
  }

  /** A page's bytes come unasked. */
  *store(index: number, version: number): Task {
    yield ready;
    yield* this.#unlocked(index);
    const page = this.pages[index]!;
    page.state = 'valid';
    page.version = version;
  }

  *#launder(first: number, count: number): Task {
    for (let index = first; index < first + count; index++) yield* this.#writeBack(index);
  }
  *#writeBack(index: number): Task {
    const page = this.pages[index]!;
    while (page.writeback) yield () => !page.writeback;
    if (!page.dirty) return;
    page.dirty = false;
    page.writeback = true;
    this.server.launder(index, page.version, () => {
      page.writeback = false;
    });
    yield () => !page.writeback;
  }

  /** invalidate_inode_pages2_range: in batches of pages that are there when the batch is looked up. */
  *invalidate(first: number, count: number): Task {
    const end = first + count;
    for (let at = first; at < end; ) {
      const batch: number[] = [];
      const width = 1 + below(this.random, 4);
      while (at < end && batch.length < width) {
        if (this.pages[at]!.state !== 'absent') batch.push(at);
        at++;
      }
      for (const index of batch) {
        yield ready;
        const page = this.pages[index]!;
        for (;;) {
          yield* this.#unlocked(index);
          if (!page.dirty && !page.writeback) break;
          yield* this.#writeBack(index);
        }
        if (page.state === 'valid') page.state = 'absent';
      }
    }
  }
}
