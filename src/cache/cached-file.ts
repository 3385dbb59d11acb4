import { type ByteRange, contains, roundOut, WHOLE } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { BLOCK_BYTES, PAGE_BYTES, RANGE_END } from '../common/units.js';
import { TokenClass, type TokenItem, type TokenMode } from '../token-manager/token.js';
import type { CacheCore } from './cache-core.js';
import type { EntryId, EntryState } from './cache-map.js';
import { discardRange, zeroRange } from './discard.js';
import { FileCore, pageRange } from './file-core.js';
import type { FileState } from './file-table.js';
import type { Page } from './page.js';
import { Claim, firstPage, pageEnd } from './page-access.js';
import type { CachedFile, PageView } from './page-cache-api.js';
import { PinnedView } from './page-view.js';
import { readPages } from './read-operation.js';
import { rewriteRange } from './rewrite.js';
import { writePages } from './write-operation.js';

/**
 * A file as its users see it: the interface, argument checks, and the paths that don't wait. The operations are beside it, one a file.
 * Everything that touches pages is called with its tokens pinned.
 */
export class CachedFileOps implements CachedFile {
  readonly file: FileCore;
  readonly #core: CacheCore;

  constructor(core: CacheCore, ino: InodeNumber) {
    this.#core = core;
    this.file = new FileCore(ino);
  }

  get ino(): InodeNumber {
    return this.file.ino;
  }
  get entry(): EntryId | null {
    return this.file.entry;
  }
  get state(): EntryState {
    return this.#core.files.stateOf(this.file);
  }
  setState(state: FileState): void {
    this.#core.files.setState(this.file, state);
  }
  noteWrite(endBytes: number, wallNs: bigint): void {
    this.#core.files.noteWrite(this.file, endBytes, wallNs);
  }
  setStatusMode(mode: TokenMode): void {
    if (this.file.entry !== null) this.#core.map.setStatusMode(this.file.entry, mode);
  }
  setSizeIsFloor(isFloor: boolean): void {
    this.file.sizeIsFloor = isFloor;
  }
  detach(): void {
    this.#core.files.detach(this.file);
  }
  publish(): void {
    this.#core.publisher.publish(this.file);
  }

  /** Dirty pages, those that hits dirtied a moment ago among them. */
  get dirty(): boolean {
    if (this.file.dirtyPages.size > 0) return true;
    if (this.file.installedCount > 0) this.#core.dirty.drain();
    return this.file.dirtyPages.size > 0;
  }

  dataItem(range: ByteRange, mode: TokenMode): TokenItem {
    const { file } = this;
    const required = roundOut(range);
    file.noteUse(required, mode, this.#core.now());
    const desired = this.#desired(required);
    return { class: TokenClass.data, object: file.ino, mode, required, desired };
  }

  /** The first user gets all; who goes through the file gets the rest of it; who jumps about, the blocks around (T1). */
  #desired(required: ByteRange): ByteRange {
    const { file } = this;
    if (file.untouched) return WHOLE;
    if (file.pattern.isSequentialAt(required.start)) return { start: required.start, end: RANGE_END };
    return roundOut(required, BLOCK_BYTES);
  }

  async read(offsetBytes: number, target: Uint8Array, options?: { signal?: AbortSignal | undefined }): Promise<void> {
    if (target.length === 0) return;
    const range = this.#range('cache.read', offsetBytes, target.length);
    await readPages(this.#core, this.file, range, target, options?.signal);
  }

  async bring(offsetBytes: number, lengthBytes: number, options?: { signal?: AbortSignal | undefined }): Promise<void> {
    if (lengthBytes === 0) return;
    const range = this.#range('cache.bring', offsetBytes, lengthBytes);
    await readPages(this.#core, this.file, range, null, options?.signal);
  }

  async write(
    offsetBytes: number,
    source: Uint8Array,
    options: { signal?: AbortSignal | undefined; onCopied: () => void },
  ): Promise<void> {
    if (source.length === 0) {
      options.onCopied();
      return;
    }
    const range = this.#range('cache.write', offsetBytes, source.length);
    await writePages(this.#core, this.file, range, source, options);
  }

  async withBytes<T>(
    range: ByteRange,
    mode: 'shared' | 'exclusive',
    use: (view: PageView) => T,
    options?: { signal?: AbortSignal | undefined },
  ): Promise<T> {
    this.#range('cache.withBytes', range.start, range.end - range.start);
    const now = this.tryWithBytes(range, mode, use);
    if (now !== undefined) return now.value;
    const { access } = this.#core;
    const { generation } = this.#core;
    const exclusive = mode === 'exclusive';
    const lock = await this.file.lock.take(
      firstPage(range) * PAGE_BYTES,
      pageEnd(range) * PAGE_BYTES,
      exclusive,
      options?.signal,
    );
    const claim = new Claim(this.#core);
    try {
      this.#core.check('cache.withBytes', this.ino, generation);
      const pages = exclusive
        ? await access.closed(this.file, range, 'bytes', claim, options?.signal)
        : await access.pinned(this.file, range, 'bytes', claim, options?.signal);
      return this.#use(pages, exclusive, use);
    } finally {
      claim.end();
      this.file.lock.release(lock);
    }
  }

  tryWithBytes<T>(
    range: ByteRange,
    mode: 'shared' | 'exclusive',
    use: (view: PageView) => T,
  ): { value: T } | undefined {
    const { access, slots } = this.#core;
    const exclusive = mode === 'exclusive';
    this.#core.check('cache.withBytes', this.ino);
    const first = firstPage(range) * PAGE_BYTES;
    if (!this.file.lock.isFree(first, pageEnd(range) * PAGE_BYTES, exclusive)) return undefined;
    const pages = access.tryAll(this.file, range, 'bytes');
    if (pages === null) return undefined;
    if (exclusive ? !slots.tryClose(pages) : !slots.tryPinAll(pages)) return undefined;
    for (const page of pages) access.use(page);
    return { value: this.#use(pages, exclusive, use) };
  }

  #use<T>(pages: readonly Page[], exclusive: boolean, use: (view: PageView) => T): T {
    const { slots } = this.#core;
    // Hits may have changed the masks until a moment ago.
    if (exclusive) for (const page of pages) slots.refresh(page);
    const view = new PinnedView(this.#core, pages, pages[0]?.index ?? 0, exclusive);
    this.file.untouched = false;
    try {
      return use(view);
    } finally {
      view.end();
      if (exclusive) for (const page of pages) slots.reopen(page);
      else slots.unpinAll(pages);
    }
  }

  async flush(range: ByteRange = WHOLE): Promise<void> {
    const { file } = this;
    const { generation } = this.#core;
    this.#core.dirty.drain();
    const remembered = file.writeError;
    file.writeError = null;
    const failed = await this.#core.behind.flush(file, dirtyIn(file, range));
    // What was dropped was not written (I10).
    const lost = generation === this.#core.generation ? null : this.#core.lostError('cache.flush', file.ino);
    const error = failed ?? lost ?? remembered;
    if (error !== null) throw error;
  }

  rewrite(range: ByteRange): Promise<ByteRange[]> {
    return rewriteRange(this.#core, this.file, range);
  }

  discard(range: ByteRange): Promise<void> {
    return discardRange(this.#core, this.file, range);
  }

  zero(range: ByteRange): Promise<void> {
    return zeroRange(this.#core, this, range);
  }

  hint(kind: 'willNeed' | 'dontNeed' | 'sequential' | 'random' | 'normal' | 'passed', range: ByteRange): void {
    const { file } = this;
    const { ahead, eviction, dirty, behind } = this.#core;
    if (kind === 'willNeed') {
      const end = Math.min(range.end, this.state.sizeBytes);
      if (range.start < end) ahead.fetch(file, { start: range.start, end });
      return;
    }
    if (kind === 'passed') {
      const end = Math.min(range.end, this.state.sizeBytes);
      if (range.start < end) ahead.notePassed(file, { start: range.start, end });
      return;
    }
    if (kind !== 'dontNeed') {
      file.pattern.advice = kind;
      return;
    }
    dirty.drain();
    const pages = file.pagesIn(range).filter((page) => contains(range, pageRange(page)));
    const dropClean = (): void => {
      for (const page of pages) if (!page.gone && page.loaded) eviction.tryEvict(page);
    };
    const unwritten = pages.filter((page) => page.dirty);
    dropClean();
    if (unwritten.length > 0)
      void behind.flush(file, unwritten).then((error) => {
        if (error === null) dropClean();
        else file.writeError ??= error;
      });
  }

  #range(op: string, start: number, lengthBytes: number): ByteRange {
    this.#core.check(op, this.ino);
    const end = start + lengthBytes;
    if (Number.isSafeInteger(start) && Number.isSafeInteger(end) && start >= 0 && end >= start && end <= RANGE_END)
      return { start, end };
    throw new FsError('invalidArgument', { op, object: `inode ${this.ino}`, detail: `range ${start} to ${end}` });
  }
}

function dirtyIn(file: FileCore, range: ByteRange): Page[] {
  const found: Page[] = [];
  for (const page of file.dirtyPages) {
    const start = page.index * PAGE_BYTES;
    if (start < range.end && range.start < start + PAGE_BYTES) found.push(page);
  }
  return found;
}
