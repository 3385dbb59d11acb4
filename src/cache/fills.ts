import type { ByteRange } from '../common/byte-range.js';
import { contains } from '../common/byte-range.js';
import { isDamage } from '../common/damage.js';
import { PAGE_BYTES, SECTOR_BYTES, SECTORS_PER_PAGE } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { FilePiece } from './backing-store.js';
import type { CacheCore } from './cache-core.js';
import type { SlotId } from './cache-map.js';
import type { FileCore } from './file-core.js';
import { Page } from './page.js';
import { completeSectors, partialMask, readsNeeded } from './sector-merge.js';
import { ALL_SECTORS_MASK, hasPartial } from './slot-content.js';

/**
 * Fills: bytes from the backing store into pages.
 *
 * A page that isn't there is read into its own slot and shown afterwards. A page that is there, with dirty bytes perhaps, is never read
 * into: its missing sectors go into a spare slot and are merged in while the page is closed, so dirty bytes are never overwritten.
 * A fill in flight is shared by everybody who wants the page; nobody's abort ends it.
 *
 * Invariants: a sector becomes valid only when a token covered it from the fill's start on (I2): a revoke waits for `filling` and takes
 * away what it brought. A fill needs no token and no page, so it ends when the devices answer.
 * Fault model: a failed read leaves no page behind; whoever started it gets the error, others try for themselves. A damaged sector costs nobody its neighbours: what is
 * needed is then read by itself.
 */
export interface SectorsWanted {
  readonly page: Page;
  readonly mask: number;
  /** Of these, what somebody needs; the others come along, and are left out when one of them is damaged. */
  readonly least: number;
}
interface SectorsRead extends SectorsWanted {
  readonly slot: SlotId;
}

export class Fills {
  readonly #core: CacheCore;

  constructor(core: CacheCore) {
    this.#core = core;
  }

  /**
   * Starts to read absent pages, in ascending order, into slots taken for them; one call for all. `required` is covered by pinned
   * tokens; beyond it, sectors become valid as far as tokens are held. Returns the pages and the end of it all (which may reject).
   */
  start(
    file: FileCore,
    indices: readonly number[],
    slots: readonly SlotId[],
    required: ByteRange | null,
    prefetched: boolean,
  ): { pages: Page[]; done: Promise<void> } {
    const masks = new HeldSectors(this.#core, file, required);
    const pages = indices.map((index, i) => new Page(file, index, slots[i]!));
    const wanted: SectorsRead[] = pages.map((page) => {
      const mask = masks.of(page.index);
      return { page, mask, least: mask & masks.requiredOf(page.index), slot: page.slot };
    });
    for (const page of pages) {
      page.prefetched = prefetched;
      this.#core.slots.adopt(page);
    }
    const done = this.#readOrLeast(file, wanted).then(
      (arrived) => this.#arrived(arrived),
      (error: unknown) => {
        for (const page of pages) this.#failed(page);
        throw error;
      },
    );
    const settled = done.catch(() => undefined);
    for (const page of pages) page.filling = settled;
    return { pages, done };
  }

  #arrived(wanted: readonly SectorsWanted[]): void {
    const { slots, eviction } = this.#core;
    for (const { page, mask } of wanted) {
      page.filling = null;
      if (page.gone) {
        slots.freeSlotOf(page);
        continue;
      }
      page.validMask = mask;
      page.loaded = true;
      eviction.admit(page);
      slots.show(page);
    }
  }
  #failed(page: Page): void {
    const { slots } = this.#core;
    page.filling = null;
    if (page.gone) slots.freeSlotOf(page);
    else slots.drop(page);
  }

  /** What has been read of them: all, or the least. */
  async #readOrLeast(file: FileCore, wanted: readonly SectorsRead[]): Promise<readonly SectorsRead[]> {
    try {
      await this.#read(file, piecesOf(wanted));
      return wanted;
    } catch (error) {
      const least = wanted.map((one) => ({ ...one, mask: one.least }));
      const isLess = wanted.some(({ mask, least }) => mask !== least) && wanted.some(({ least }) => least !== 0);
      if (!isDamage(error) || !isLess) throw error;
      this.#core.counters.add('cache.fillsBesideDamage');
      await this.#read(file, piecesOf(least));
      return least;
    }
  }

  async #read(file: FileCore, pieces: readonly FilePiece[]): Promise<void> {
    const { counters, backing } = this.#core;
    counters.add('cache.fills');
    counters.add(
      'cache.fillBytes',
      pieces.reduce((sum, piece) => sum + piece.lengthBytes, 0),
    );
    await backing.read(file.ino, pieces);
  }

  /**
   * Sectors that are missing in pages that are there. Resolves when they are in, or were when their turn came. `still` says which of
   * a page's sectors may be made valid when the turn has come: while it waited for a spare slot, a revoke may have taken some away, and
   * they must not come back behind it (I2).
   */
  async merge(file: FileCore, wanted: readonly SectorsWanted[], still: (page: Page) => number): Promise<void> {
    for (let done = 0; done < wanted.length; ) {
      const spares = await this.#core.slots.takeSpares(wanted.length - done);
      const batch = wanted.slice(done, done + spares.length);
      done += batch.length;
      try {
        await this.#mergeBatch(file, batch, spares, still);
      } finally {
        this.#core.slots.releaseSpares(spares);
      }
    }
  }

  async #mergeBatch(
    file: FileCore,
    wanted: readonly SectorsWanted[],
    spares: readonly SlotId[],
    still: (page: Page) => number,
  ): Promise<void> {
    const { slots } = this.#core;
    const generation = this.#core.generation;
    const reading: SectorsRead[] = [];
    for (const [i, { page, mask, least }] of wanted.entries()) {
      slots.refresh(page);
      const missing = mask & still(page) & ~page.validMask;
      // Somebody else is at it: whoever wants the page looks again when that has ended.
      if (missing === 0 || page.gone || page.filling !== null) continue;
      reading.push({ page, mask: missing, least: missing & least, slot: spares[i]! });
    }
    if (reading.length === 0) {
      const others = wanted.find(({ page }) => page.filling !== null);
      if (others?.page.filling) await others.page.filling;
      return;
    }
    const run = async (): Promise<void> => {
      try {
        const arrived = await this.#readOrLeast(file, reading);
        this.#core.check('cache.fill', file.ino, generation);
        for (const { page, mask, slot } of arrived) await this.#mergeIn(page, mask, slot);
      } finally {
        for (const { page } of reading) page.filling = null;
      }
    };
    const done = run();
    const settled = done.catch(() => undefined);
    // `run` can't have ended: a read always takes a turn.
    for (const { page } of reading) page.filling = settled;
    await done;
  }

  async #mergeIn(page: Page, mask: number, spare: SlotId): Promise<void> {
    const { slots, pool } = this.#core;
    await slots.close([page]);
    if (page.gone) return;
    slots.refresh(page);
    completeSectors(page, mask, (start, end) => {
      const at = spare * PAGE_BYTES;
      slots.bytesOf(page, start, end).set(pool.bytes.subarray(at + start, at + end));
    });
    slots.store(page);
    slots.reopen(page);
  }

  /**
   * Before a write-out: sectors of partial runs become whole. What lies behind the end of file is zeros and needs no read.
   * Returns what went wrong, if anything did; the others are complete all the same.
   */
  async completePartials(file: FileCore, pages: readonly Page[], sizeBytes: number): Promise<unknown> {
    const { slots } = this.#core;
    const reads: SectorsWanted[] = [];
    for (const page of pages) {
      if (page.gone || !hasPartial(slots.refresh(page))) continue;
      if (!slots.tryClose([page])) await slots.close([page]);
      if (page.gone) continue;
      const fromDevice = this.#completeClosed(page, sizeBytes);
      if (fromDevice !== 0) reads.push({ page, mask: fromDevice, least: fromDevice });
    }
    try {
      await this.merge(file, reads, partialMask);
      return null;
    } catch (error) {
      return error;
    }
  }

  /** One sector of a partial run, which takes a read. Null, or what went wrong. */
  async completeSector(file: FileCore, page: Page, sector: number): Promise<unknown> {
    const mask = 1 << sector;
    try {
      await this.merge(file, [{ page, mask, least: mask }], partialMask);
      return null;
    } catch (error) {
      return error;
    }
  }

  /** As `completePartials`, in one turn. False: somebody is at one of them, or it takes a read. */
  tryCompletePartials(pages: readonly Page[], sizeBytes: number): boolean {
    const { slots } = this.#core;
    for (const page of pages) {
      if (page.gone || !hasPartial(slots.refresh(page))) continue;
      if (!slots.tryClose([page])) return false;
      if (this.#completeClosed(page, sizeBytes) !== 0) return false;
    }
    return true;
  }

  /** With zeros, and open again. The sectors for which that is not enough. */
  #completeClosed(page: Page, sizeBytes: number): number {
    const { slots } = this.#core;
    slots.refresh(page);
    const all = partialMask(page);
    const fromDevice = readsNeeded(page, sizeBytes - page.index * PAGE_BYTES);
    completeSectors(page, all & ~fromDevice, (start, end) => slots.bytesOf(page, start, end).fill(0));
    slots.store(page);
    slots.reopen(page);
    return fromDevice;
  }
}

/** Which sectors of pages a fill may make valid: the pinned ones, and those whose token is held. */
export class HeldSectors {
  #held: ByteRange | null | undefined;

  constructor(
    private readonly core: CacheCore,
    private readonly file: FileCore,
    private readonly required: ByteRange | null,
  ) {}

  of(pageIndex: number): number {
    const start = pageIndex * PAGE_BYTES;
    const page = { start, end: start + PAGE_BYTES };
    if (this.required !== null && contains(this.required, page)) return ALL_SECTORS_MASK;
    if (this.#held != null && contains(this.#held, page)) return ALL_SECTORS_MASK;
    let mask = 0;
    for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
      const at = start + sector * SECTOR_BYTES;
      if (this.#isRequired(at) || this.#isHeld(at)) mask |= 1 << sector;
    }
    return mask;
  }
  requiredOf(pageIndex: number): number {
    let mask = 0;
    for (let sector = 0; sector < SECTORS_PER_PAGE; sector++)
      if (this.#isRequired(pageIndex * PAGE_BYTES + sector * SECTOR_BYTES)) mask |= 1 << sector;
    return mask;
  }
  #isRequired(at: number): boolean {
    return this.required !== null && at < this.required.end && this.required.start < at + SECTOR_BYTES;
  }
  #isHeld(at: number): boolean {
    if (this.#held === undefined || (this.#held !== null && (at < this.#held.start || at >= this.#held.end)))
      this.#held = this.core.tokens.heldRange(TokenClass.data, this.file.ino, at, TokenMode.shared);
    if (this.#held !== null) return this.#held.start <= at && at < this.#held.end;
    this.#held = undefined;
    return false;
  }
}

function piecesOf(wanted: readonly SectorsRead[]): readonly FilePiece[] {
  const list = new PieceList();
  for (const { page, mask, slot } of wanted) list.addSectors(page.index, mask, slot);
  return list.pieces;
}

/** Sectors in slots, as pieces: neighbours in the file and in the pool become one. */
export class PieceList {
  readonly pieces: { offsetBytes: number; lengthBytes: number; poolOffsetBytes: number }[] = [];

  addSectors(pageIndex: number, mask: number, slot: SlotId): void {
    if (mask === ALL_SECTORS_MASK) {
      this.#add(pageIndex * PAGE_BYTES, slot * PAGE_BYTES, PAGE_BYTES);
      return;
    }
    for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
      if ((mask & (1 << sector)) === 0) continue;
      this.#add(
        pageIndex * PAGE_BYTES + sector * SECTOR_BYTES,
        slot * PAGE_BYTES + sector * SECTOR_BYTES,
        SECTOR_BYTES,
      );
    }
  }

  #add(offsetBytes: number, poolOffsetBytes: number, lengthBytes: number): void {
    const last = this.pieces.at(-1);
    const follows =
      last !== undefined &&
      last.offsetBytes + last.lengthBytes === offsetBytes &&
      last.poolOffsetBytes + last.lengthBytes === poolOffsetBytes;
    if (follows) last.lengthBytes += lengthBytes;
    else this.pieces.push({ offsetBytes, lengthBytes, poolOffsetBytes });
  }
}
