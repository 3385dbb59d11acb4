import { type ByteRange, contains } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { PAGE_BYTES } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { CacheCore } from './cache-core.js';
import type { FileCore } from './file-core.js';
import { Page } from './page.js';
import { Claim, firstPage, pageCount, pageEnd } from './page-access.js';
import { cutIntoPieces } from './pieces.js';

/**
 * A write through the engine, and the preparation of the pages in front of it for write hits.
 *
 * Order: space reserved (nothing of the file held: the reservation may use its pages), range lock, room for dirty pages, permits, pages
 * that can take it in, all closed, bytes copied, `onCopied`, reopened; from the copy to the end in one turn. What is longer than a piece goes
 * piece by piece with the range withdrawn from hits, `onCopied` in the last one's turn.
 * Fault model: an error leaves the file as it was; of a write in pieces, those that were copied stay, and what they put
 * behind the end of file is made zeros again.
 */
const RESERVE_ATTEMPTS_MAX = 100;

interface WriteOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onCopied: () => void;
}

export async function writePages(
  core: CacheCore,
  file: FileCore,
  range: ByteRange,
  source: Uint8Array,
  options: WriteOptions,
): Promise<void> {
  const { generation } = core;
  file.untouched = false;
  const lock = await lockReserved(core, file, range, options.signal);
  try {
    // Fenced while it waited: its tokens are gone.
    core.check('cache.write', file.ino, generation);
    const pieces = cutIntoPieces(range, core.settings.pieceBytes);
    if (pieces.length === 1) await writePiece(core, file, range, source, generation, options.onCopied, options.signal);
    else await writeInPieces(core, file, range, pieces, source, generation, options);
  } finally {
    file.lock.release(lock);
  }
  core.counters.add('cache.writes');
  core.counters.add('cache.writeBytes', source.length);
  if (file.pattern.noteWrite(range) && file.hitsWanted) void prepareAhead(core, file, range.end);
}

/** The lock on the range, with space for all of it reserved. */
async function lockReserved(
  core: CacheCore,
  file: FileCore,
  range: ByteRange,
  signal: AbortSignal | undefined,
): ReturnType<FileCore['lock']['take']> {
  const { backing } = core;
  const { generation } = core;
  const start = firstPage(range) * PAGE_BYTES;
  const end = pageEnd(range) * PAGE_BYTES;
  for (let attempt = 0; attempt < RESERVE_ATTEMPTS_MAX; attempt++) {
    if (!backing.isReserved(file.ino, range)) await backing.reserve(file.ino, range);
    core.check('cache.write', file.ino, generation);
    const lock = file.lock.tryTake(start, end, true) ?? (await file.lock.take(start, end, true, signal));
    // A discard that was before us in the line may have given it back.
    if (backing.isReserved(file.ino, range)) return lock;
    file.lock.release(lock);
  }
  throw new FsError('internal', { op: 'cache.write', object: `inode ${file.ino}`, detail: 'space stays unreserved' });
}

async function writeInPieces(
  core: CacheCore,
  file: FileCore,
  range: ByteRange,
  pieces: readonly ByteRange[],
  source: Uint8Array,
  generation: number,
  options: WriteOptions,
): Promise<void> {
  const withdrawn = await core.publisher.withdraw(file, range);
  let copiedTo = range.start;
  try {
    for (const piece of pieces) {
      const bytes = source.subarray(piece.start - range.start, piece.end - range.start);
      const onCopied = piece.end === range.end ? options.onCopied : () => undefined;
      // Once a piece is in, the rest follows: half a write is no answer to an abort.
      await writePiece(
        core,
        file,
        piece,
        bytes,
        generation,
        onCopied,
        copiedTo === range.start ? options.signal : undefined,
      );
      copiedTo = piece.end;
    }
  } catch (error) {
    await clearBehindEnd(core, file, { start: range.start, end: copiedTo }, generation);
    throw error;
  } finally {
    withdrawn.end();
  }
}

/** Bytes behind the end of file are zeros, or they would appear when it grows. */
async function clearBehindEnd(core: CacheCore, file: FileCore, copied: ByteRange, generation: number): Promise<void> {
  const start = Math.max(copied.start, file.endOf(core.files.stateOf(file)));
  if (start >= copied.end) return;
  for (const piece of cutIntoPieces({ start, end: copied.end }, core.settings.pieceBytes)) {
    const zeros = new Uint8Array(piece.end - piece.start);
    try {
      await writePiece(core, file, piece, zeros, generation, () => undefined, undefined);
    } catch (error) {
      core.logger.error({ ino: file.ino, error: String(error) }, 'bytes behind the end of file could not be cleared');
      core.backing.leftBehindEnd(file.ino);
      return;
    }
  }
}

async function writePiece(
  core: CacheCore,
  file: FileCore,
  range: ByteRange,
  source: Uint8Array,
  generation: number,
  onCopied: () => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { access, slots, copier, dirty, permits } = core;
  const count = pageCount(range);
  const room = copier.cleanPages(file, firstPage(range), pageEnd(range));
  const promise = dirty.promise(room, signal);
  if (promise !== true) await promise;
  try {
    core.check('cache.write', file.ino, generation);
    if (permits.takeNow(count) === null) await permits.take(count, signal);
    const claim = new Claim(core);
    try {
      core.check('cache.write', file.ino, generation);
      const pages = await access.closed(file, range, 'write', claim, signal);
      try {
        copier.copyIn(pages, range, source);
        onCopied();
      } finally {
        for (const page of pages) {
          slots.allowWritesIfReserved(page);
          slots.reopen(page);
        }
      }
    } finally {
      claim.end();
      core.givePermits(count);
    }
  } finally {
    dirty.endPromise(room);
  }
}

/**
 * In front of a sequential writer: space for the next pages is reserved and the pages are made ready for write hits: those that are
 * there as they are, the others empty, without a read. Only inside a held exclusive token; if space is short, not at all.
 */
async function prepareAhead(core: CacheCore, file: FileCore, from: number): Promise<void> {
  const { tokens, backing, slots } = core;
  if (file.preparing) return;
  file.preparing = true;
  try {
    const held = (): ByteRange | null => tokens.heldRange(TokenClass.data, file.ino, from, TokenMode.exclusive);
    const token = held();
    if (token === null) return;
    const firstIndex = Math.floor(from / PAGE_BYTES);
    const end = Math.min(from + core.settings.prepareBytes, Math.floor(token.end / PAGE_BYTES) * PAGE_BYTES);
    const wanted = { start: firstIndex * PAGE_BYTES, end: Math.ceil(end / PAGE_BYTES) * PAGE_BYTES };
    if (wanted.end <= wanted.start || !contains(token, wanted)) return;
    if (!backing.isReserved(file.ino, wanted)) await backing.reserve(file.ino, wanted, { ahead: true });
    // It may have been revoked or cut off meanwhile.
    const still = held();
    if (core.closed || file.forgotten || still === null || !contains(still, wanted)) return;
    if (!backing.isReserved(file.ino, wanted) || file.discarding.length > 0) return;
    const absent: number[] = [];
    for (let index = firstIndex; index * PAGE_BYTES < wanted.end; index++) {
      const page = file.pages.get(index);
      if (page === undefined) absent.push(index);
      else if (page.loaded) slots.allowWrites(page);
    }
    const taken = slots.takeNow(absent.length, 'ahead');
    if (taken === null) return;
    for (const [i, index] of absent.entries()) {
      const page = new Page(file, index, taken[i]!);
      page.loaded = true;
      page.writable = true;
      slots.adopt(page);
      core.eviction.admit(page);
      slots.show(page);
    }
    file.pattern.prepared(wanted.end);
    core.counters.add('cache.preparedPages', absent.length);
  } catch (error) {
    // The writer goes on through the engine, and finds out for itself.
    core.logger.debug({ ino: file.ino, error: String(error) }, 'pages could not be prepared');
  } finally {
    file.preparing = false;
  }
}
