import { type ByteRange, intersect, isEmpty } from '../common/byte-range.js';
import { PAGE_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { FileCore } from './file-core.js';
import type { Page } from './page.js';
import { inPage, pageEnd } from './page-access.js';
import type { CachedFile } from './page-cache-api.js';
import { forgetBytes, splitsPartial } from './sector-merge.js';
import { isDirty } from './slot-content.js';
import { writePages } from './write-operation.js';

/**
 * Throwing bytes away without writing them (truncate, the last unlink), and zeros at a new end of file.
 *
 * While it runs the range is out of what hits may use, and write-behind leaves it alone; what is in flight is waited for. Sectors that
 * lie wholly in the range go, those it only touches stay.
 */
export async function discardRange(core: CacheCore, file: FileCore, range: ByteRange): Promise<void> {
  if (isEmpty(range)) return;
  const { generation } = core;
  core.check('cache.discard', file.ino, generation);
  const start = Math.floor(range.start / PAGE_BYTES) * PAGE_BYTES;
  const lock = await file.lock.take(start, pageEnd(range) * PAGE_BYTES, true);
  file.discarding.push(range);
  try {
    const withdrawn = await core.publisher.withdraw(file, range);
    try {
      await completeSplitRuns(core, file, range);
      await forgetRange(core, file, range);
    } finally {
      withdrawn.end();
    }
  } finally {
    file.discarding.splice(file.discarding.indexOf(range), 1);
    file.lock.release(lock);
  }
}

/** What a page knows is one run: if the range would leave two pieces of it, its sectors are completed first. */
async function completeSplitRuns(core: CacheCore, file: FileCore, range: ByteRange): Promise<void> {
  const split = file.pagesIn(range).filter((page) => {
    const { start, end } = inPage(range, page.index);
    return page.loaded && splitsPartial(core.slots.refresh(page), start, end);
  });
  if (split.length === 0) return;
  const error = await core.fills.completePartials(file, split, file.endOf(core.files.stateOf(file)));
  if (error !== null) throw error;
}

/**
 * Takes the range out of all pages; no hit uses it any more and no operation may. Waits for transfers in flight, then does it in one turn,
 * page by page.
 */
export async function forgetRange(core: CacheCore, file: FileCore, range: ByteRange): Promise<void> {
  const { slots } = core;
  const turn = core.turns();
  for (;;) {
    const pages = file.pagesIn(range);
    const busy = pages.find((page) => page.filling !== null || page.writing !== null);
    const transfer = busy?.filling ?? busy?.writing;
    if (transfer) {
      await transfer;
      continue;
    }
    let left = 0;
    for (const page of pages) {
      // Held by a hit, in another part of the page: look again when it has ended.
      if (slots.tryClose([page])) forgetInPage(core, page, range);
      else left++;
    }
    if (left === 0) return;
    await turn();
  }
}

/** The page is closed. */
export function forgetInPage(core: CacheCore, page: Page, range: ByteRange): void {
  const { slots, dirty } = core;
  // Whether space is still reserved is found out by the next write.
  slots.forbidWrites(page);
  const { start, end } = inPage(range, page.index);
  forgetBytes(page, start, end);
  page.writtenMask &= page.validMask;
  const nothingLeft = page.validMask === 0 && !isDirty(page);
  if (page.dirty && !isDirty(page)) dirty.clean(page);
  if (nothingLeft && page.holds === 0 && page.pins === 0) {
    slots.drop(page);
    return;
  }
  slots.store(page);
  slots.reopen(page);
}

/** Zeros where the range isn't zero already; space for it is reserved if need be. */
export async function zeroRange(
  core: CacheCore,
  target: CachedFile & { file: FileCore },
  range: ByteRange,
): Promise<void> {
  const { file } = target;
  const { generation } = core;
  for (let index = Math.floor(range.start / PAGE_BYTES); index < pageEnd(range); index++) {
    const part = intersect(range, { start: index * PAGE_BYTES, end: (index + 1) * PAGE_BYTES });
    const zero = await isZeroNow(target, part);
    core.check('cache.zero', file.ino, generation);
    if (zero) continue;
    const zeros = new Uint8Array(part.end - part.start);
    await writePages(core, file, part, zeros, { onCopied: () => undefined });
  }
}

/** False also when nobody knows: the bytes behind a new end of file must be zeros, readable or not. */
async function isZeroNow(target: CachedFile, part: ByteRange): Promise<boolean> {
  try {
    return await target.withBytes(part, 'shared', (view) => isZero(view.bytes(part.start, part.end - part.start)));
  } catch {
    return false;
  }
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);
