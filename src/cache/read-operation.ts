import type { ByteRange } from '../common/byte-range.js';
import { PAGE_BYTES } from '../common/units.js';
import type { CacheCore } from './cache-core.js';
import type { FileCore } from './file-core.js';
import { Claim, firstPage, pageCount, pageEnd } from './page-access.js';
import { cutIntoPieces } from './pieces.js';

/**
 * A read through the engine; without a target, only the pages are brought, for a hit to copy from.
 *
 * Order: range lock, permits for as many pages as it holds, pages read in, all pinned, copied in one turn. What is longer than a piece
 * goes piece by piece, with the range withdrawn from hits, so that no write gets between the pieces.
 */
export async function readPages(
  core: CacheCore,
  file: FileCore,
  range: ByteRange,
  target: Uint8Array | null,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { generation } = core;
  file.untouched = false;
  const start = firstPage(range) * PAGE_BYTES;
  const end = pageEnd(range) * PAGE_BYTES;
  const lock = file.lock.tryTake(start, end, false) ?? (await file.lock.take(start, end, false, signal));
  try {
    // Fenced while it waited: its tokens are gone.
    core.check('cache.read', file.ino, generation);
    const pieces = cutIntoPieces(range, core.settings.pieceBytes);
    if (pieces.length === 1) {
      if (readNow(core, file, range, target)) return;
      await readPiece(core, file, range, target, generation, signal, () => core.ahead.noteRead(file, range, true));
      return;
    }
    const withdrawn = await core.publisher.withdraw(file, range);
    try {
      for (const [i, piece] of pieces.entries()) {
        const next = pieces[i + 1];
        const bytes = target?.subarray(piece.start - range.start, piece.end - range.start) ?? null;
        await readPiece(core, file, piece, bytes, generation, signal, () => {
          if (next === undefined) core.ahead.noteRead(file, range, true);
          else core.ahead.fetch(file, next);
        });
      }
    } finally {
      withdrawn.end();
    }
  } finally {
    file.lock.release(lock);
  }
}

/** Everything is there and nobody is in the way. */
function readNow(core: CacheCore, file: FileCore, range: ByteRange, target: Uint8Array | null): boolean {
  const { access, slots, copier } = core;
  const pages = access.tryAll(file, range, 'read');
  if (pages === null || !slots.tryPinAll(pages)) return false;
  if (target !== null) copier.copyOut(pages, range, target);
  slots.unpinAll(pages);
  for (const page of pages) access.use(page);
  core.counters.add('cache.readHits');
  core.counters.add('cache.readBytes', target?.length ?? 0);
  core.ahead.noteRead(file, range, false);
  return true;
}

async function readPiece(
  core: CacheCore,
  file: FileCore,
  range: ByteRange,
  target: Uint8Array | null,
  generation: number,
  signal: AbortSignal | undefined,
  lookAhead: () => void,
): Promise<void> {
  const { access, slots, copier, permits, counters } = core;
  const count = pageCount(range);
  counters.add('cache.readMisses');
  counters.add('cache.readBytes', target?.length ?? 0);
  if (permits.takeNow(count) === null) await permits.take(count, signal);
  const claim = new Claim(core);
  try {
    core.check('cache.read', file.ino, generation);
    const bringing = access.pinned(file, range, 'read', claim, signal);
    // The read itself has been asked for: what comes after it follows on its heels.
    lookAhead();
    const pages = await bringing;
    if (target !== null) copier.copyOut(pages, range, target);
    slots.unpinAll(pages);
  } finally {
    claim.end();
    core.givePermits(count);
  }
}
