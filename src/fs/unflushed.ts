/**
 * What of a file's data is written and waits for a flush in the NSDs' volatile caches. Whoever flushes takes it; who comes meanwhile has nothing
 * to flush, and must not say that all is durable before the flush under way has ended: so it waits for it, and takes over what it left.
 *
 * Fault model: an NSD that loses power loses some of it (durable.ts). What is still in the page cache is made dirty again, and written again; what
 * isn't is lost, and each handle of the file is told (I10). Which sectors it was is kept by block of the file; that is as much as is
 * written within the time in which inodes are written out in the background, since that flushes.
 */
import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';
import { BLOCK_BYTES, SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { firstCopy } from '../nsd/copies.js';
import type { SectorIo } from '../nsd/nsd-api.js';
import { findPointer } from './block-map.js';
import type { Flush } from './durable.js';
import type { Inode } from './inode.js';
import { holdBack } from './inode-image.js';
import type { Volume } from './volume.js';

/** A transfer of a file's bytes. */
export interface FileIo extends SectorIo {
  readonly fileOffsetBytes: number;
}

/** To one NSD, all of it since one loss of that NSD: by block of the file, which sub-blocks. */
interface Written {
  readonly nsd: NsdIndex;
  readonly losses: number;
  readonly blocks: Map<number, Uint32Array>;
}
const LOSSES_MAX = 2 ** 32;
type Outcome = 'durable' | 'lost' | 'failed';

export class Unflushed {
  #written = new Map<number, Written>();
  readonly #flushing = new Set<Promise<Outcome>>();
  /** A flush of these is under way. */
  readonly #taken = new Set<Written>();

  /** Something waits for a flush, or for the end of one. */
  get any(): boolean {
    return this.#written.size > 0 || this.#flushing.size > 0;
  }

  /** Writes to it have ended that began when its NSD had lost something so often. */
  add({ nsd, memory, fileOffsetBytes }: FileIo, losses: number): void {
    const block = Math.floor(fileOffsetBytes / BLOCK_BYTES);
    const first = (fileOffsetBytes % BLOCK_BYTES) / SECTOR_BYTES;
    const mask = new Uint32Array(SUB_BLOCKS_PER_BLOCK / 32);
    for (let at = first; at < first + memory.lengthBytes / SECTOR_BYTES; at++) mask[at >> 5]! |= 1 << (at & 31);
    this.#add(nsd, losses, block, mask);
  }

  #add(nsd: NsdIndex, losses: number, block: number, mask: Uint32Array): void {
    const key = nsd * LOSSES_MAX + losses;
    let group = this.#written.get(key);
    if (group === undefined) {
      group = { nsd, losses, blocks: new Map() };
      this.#written.set(key, group);
    }
    const present = group.blocks.get(block);
    if (present === undefined) group.blocks.set(block, mask);
    else for (const [index, word] of mask.entries()) present[index]! |= word;
  }

  /** Cut off, or made zeros: nobody wants to know what becomes of whole sectors of it. */
  forget({ start, end }: ByteRange): void {
    for (const { blocks } of this.#written.values())
      for (const [block, mask] of blocks) {
        const from = Math.max(0, Math.ceil((start - block * BLOCK_BYTES) / SECTOR_BYTES));
        const to = Math.min(SUB_BLOCKS_PER_BLOCK, Math.floor((end - block * BLOCK_BYTES) / SECTOR_BYTES));
        for (let at = from; at < to; at++) mask[at >> 5]! &= ~(1 << (at & 31));
      }
  }

  take(): Written[] {
    const taken = [...this.#written.values()];
    this.#written = new Map();
    for (const one of taken) this.#taken.add(one);
    return taken;
  }
  /** They are durable, or written again, or told as lost, or put back. */
  settled(taken: readonly Written[]): void {
    for (const one of taken) this.#taken.delete(one);
  }

  /** Of these transfers the first byte of the file that an NSD has lost, as far as is known, and that was not written again. */
  lostIn(ios: readonly FileIo[], lossesOf: (nsd: NsdIndex) => number): { nsd: NsdIndex; offsetBytes: number } | null {
    const all = [...this.#written.values(), ...this.#taken];
    const lost = all.filter(({ nsd, losses }) => lossesOf(nsd) !== losses);
    if (lost.length === 0) return null;
    const has = ({ blocks }: Written, block: number, at: number): boolean =>
      (((blocks.get(block)?.[at >> 5] ?? 0) >>> (at & 31)) & 1) === 1;
    const since = all.filter((one) => !lost.includes(one));
    for (const { fileOffsetBytes, memory } of ios)
      for (let offset = fileOffsetBytes; offset < fileOffsetBytes + memory.lengthBytes; offset += SECTOR_BYTES) {
        const block = Math.floor(offset / BLOCK_BYTES);
        const at = (offset % BLOCK_BYTES) / SECTOR_BYTES;
        const where = lost.find((one) => has(one, block, at));
        if (where !== undefined && !since.some((one) => has(one, block, at)))
          return { nsd: where.nsd, offsetBytes: offset };
      }
    return null;
  }
  putBack(taken: readonly Written[]): void {
    for (const { nsd, losses, blocks } of taken)
      for (const [block, mask] of blocks) this.#add(nsd, losses, block, mask);
  }
  get flushing(): ReadonlySet<Promise<Outcome>> {
    return this.#flushing;
  }
  during(flushing: Promise<Outcome>): void {
    this.#flushing.add(flushing);
    void flushing.then(() => this.#flushing.delete(flushing));
  }
}

/**
 * What has been written for these files is durable when it resolves; or false: some of it was lost, and is dirty in the page cache again,
 * where it still was.
 */
export async function flushWritten(
  volume: Volume,
  inodes: readonly Inode[],
  why: Flush,
  signal?: AbortSignal,
): Promise<boolean> {
  let whole = true;
  for (;;) {
    const concerned = inodes.filter((inode) => inode.hasUnflushed);
    const elsewhere = concerned.flatMap(({ unflushed }) => [...unflushed.flushing]);
    const taken = concerned.flatMap((inode) => {
      const written = inode.unflushed.take();
      return written.length === 0 ? [] : [{ inode, written }];
    });
    if (taken.length > 0) {
      const flushing = flushTaken(volume, taken, why, signal);
      const outcome = flushing.catch((): Outcome => 'failed');
      for (const { inode, written } of taken) {
        inode.unflushed.during(outcome);
        void outcome.then(() => inode.unflushed.settled(written));
      }
      if ((await flushing) === 'lost') whole = false;
    }
    const others = await Promise.all(elsewhere);
    if (others.includes('lost')) whole = false;
    if (!others.includes('failed')) return whole;
    signal?.throwIfAborted();
  }
}

type Taken = readonly { readonly inode: Inode; readonly written: readonly Written[] }[];

async function flushTaken(volume: Volume, taken: Taken, why: Flush, signal?: AbortSignal): Promise<Outcome> {
  const { nsds } = volume.parts;
  try {
    const which = new Set(taken.flatMap(({ written }) => written.map(({ nsd }) => nsd)));
    await nsds.flush([...which], { signal, why });
  } catch (error) {
    for (const { inode, written } of taken) inode.unflushed.putBack(written);
    throw error;
  }
  let outcome: Outcome = 'durable';
  for (const { inode, written } of taken)
    for (const one of written)
      if (nsds.lossesOf(one.nsd) !== one.losses && (await rescue(volume, inode, one))) outcome = 'lost';
  return outcome;
}

/** What of it is in the page cache is dirty afterwards; the rest is lost. Whether there is something to be written again. */
async function rescue(volume: Volume, inode: Inode, written: Written): Promise<boolean> {
  const file = inode.file ?? volume.cache.get(inode.ino);
  const lost: ByteRange[] = [];
  let again = false;
  for (const range of rangesOf(inode, written)) {
    const gone = file === undefined ? [range] : await file.rewrite(range);
    lost.push(...gone);
    again ||= gone.reduce((sum, { start, end }) => sum + end - start, 0) < range.end - range.start;
  }
  if (again) {
    if (!inode.concurrent) {
      holdBack(volume, inode);
      volume.inodes.markDirty(inode, true);
    }
    volume.counters.add('fs.lossesRewritten');
  }
  // What lies behind the end is nobody's: it was reserved, or has been cut off.
  const told = lost.filter(({ start }) => start < inode.sizeBytes);
  if (told.length === 0) return again;
  const { uuid } = volume.superblock.nsds[firstCopy(written.nsd)]!;
  const { start, end } = { start: told[0]!.start, end: told.at(-1)!.end };
  const error = new FsError('writesLost', {
    op: 'fsync',
    object: `inode ${inode.ino}`,
    detail: `bytes ${start} to ${end} were written, and NSD ${uuid} has lost them before they were flushed`,
  });
  volume.counters.add('fs.writesLost');
  volume.parts.logger.error({ ino: inode.ino, nsd: uuid, ranges: told }, 'writes were lost before they were flushed');
  inode.noteLost(error);
  return again;
}

/** Runs of sectors that the file still has, ascending; they may lie elsewhere by now. */
function* rangesOf(inode: Inode, { blocks }: Written): Generator<ByteRange> {
  for (const [block, mask] of [...blocks].sort(([a], [b]) => a - b)) {
    const pointer = findPointer(inode, block);
    if (pointer === null) continue;
    const count = pointer?.count ?? SUB_BLOCKS_PER_BLOCK;
    const has = (at: number): boolean => at < count && ((mask[at >> 5]! >>> (at & 31)) & 1) === 1;
    for (let at = 0; at < count; ) {
      let end = at;
      while (has(end)) end++;
      if (end > at) {
        const from = block * BLOCK_BYTES;
        yield { start: from + at * SECTOR_BYTES, end: from + end * SECTOR_BYTES };
      }
      at = end + 1;
    }
  }
}
