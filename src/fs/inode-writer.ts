/**
 * Writes inodes out, in runs of neighbours.
 *
 * Order, for each: its dirty data; then the allocation map, as far as its pointers rely on it; then its indirect blocks; then its
 * sector. So a pointer never reaches a device before what it points to, nor before its space is marked used: after a
 * crash no two inodes own a sub-block. What the new image no longer points to is freed after it has been written.
 * Two images of one inode are never in flight together. Needs no token.
 */
import { type Deferred, deferred } from '../common/deferred.js';
import { SECTOR_BYTES } from '../common/units.js';
import { dirtyIndirects } from './block-map.js';
import type { IndirectNode, Inode } from './inode.js';
import { AREA_BYTES, encodeInode, FREE_INODE } from './inode-format.js';
import type { InodeTable } from './inode-table.js';
import type { Extent } from './layout.js';
import { sealSector } from './sector.js';
import type { Volume } from './volume.js';

/** Inodes per device write, and files flushed side by side. */
const RUN_MAX = 64;
const FLUSHES_MAX = 32;

interface Image {
  readonly inode: Inode;
  readonly sector: Uint8Array;
  readonly sequence: number;
  readonly frees: readonly Extent[];
  readonly indirects: readonly { node: IndirectNode; sector: Uint8Array }[];
  readonly wasFree: boolean;
}

export class InodeWriter {
  readonly #volume: Volume;
  readonly #table: InodeTable;

  constructor(volume: Volume, table: InodeTable) {
    this.#volume = volume;
    this.#table = table;
  }

  async writeOut(inodes: Iterable<Inode>): Promise<void> {
    // Ascending, so that two write-outs that share inodes wait for each other in one direction only.
    const sorted = [...inodes].sort((a, b) => a.ino - b.ino);
    const mine: { inode: Inode; done: Deferred<void> }[] = [];
    try {
      for (const inode of sorted) {
        while (inode.writing !== null) await inode.writing;
        if (!inode.valid || !(inode.dirty || this.#table.hasDirtyData(inode))) continue;
        const done = deferred<void>();
        inode.writing = done.promise;
        mine.push({ inode, done });
      }
      if (mine.length > 0) await this.#write(mine.map(({ inode }) => inode));
    } finally {
      for (const { inode, done } of mine) {
        inode.writing = null;
        done.resolve();
      }
    }
  }

  async #write(inodes: readonly Inode[]): Promise<void> {
    for (let at = 0; at < inodes.length; at += FLUSHES_MAX)
      await Promise.all(inodes.slice(at, at + FLUSHES_MAX).map((inode) => this.#flushData(inode)));
    const images: Image[] = [];
    for (const inode of inodes) if (inode.dirty) images.push(this.#image(inode));
    if (images.length === 0) return;
    try {
      // After the images were taken: every pointer in them was allocated before.
      await this.#volume.allocator.flush();
      await this.#writeIndirects(images);
      for (const run of runsOf(images)) await this.#writeRun(run);
    } catch (error) {
      for (const image of images) this.#takeBack(image);
      throw error;
    }
    for (const image of images) await this.#finish(image);
  }

  /** Not written, or not known to be: everything is as dirty as before. Written again, it is the same. */
  #takeBack({ inode, indirects, frees }: Image): void {
    for (const { node } of indirects) node.dirty = true;
    inode.pendingFrees.push(...frees);
    this.#table.markDirty(inode, true);
  }

  async #flushData(inode: Inode): Promise<void> {
    if (inode.type === FREE_INODE) return;
    const file = inode.file ?? this.#volume.cache.get(inode.ino);
    if (file?.dirty) await file.flush();
    this.#table.refresh(inode);
  }

  /** A copy of how it is now: it may change while it is being written. */
  #image(inode: Inode): Image {
    if (inode.isInline && inode.area.length !== inode.sizeBytes) fitInline(inode);
    // This node alone could write to it since it was read: whoever dies from now on does so in a later epoch.
    if (!inode.tailDoubtful) inode.tailEpoch = this.#volume.parts.epoch();
    const sector = new Uint8Array(SECTOR_BYTES);
    encodeInode(inode.ino, inode, sector, this.#volume.fsId, this.#volume.checksums);
    const indirects = dirtyIndirects(inode).map((node) => {
      node.dirty = false;
      return { node, sector: node.sector.slice() };
    });
    const frees = inode.pendingFrees;
    inode.pendingFrees = [];
    return { inode, sector, sequence: inode.dirtySequence, frees, indirects, wasFree: inode.type === FREE_INODE };
  }

  async #writeIndirects(images: readonly Image[]): Promise<void> {
    for (const { inode, indirects } of images) {
      for (const { node, sector } of indirects) {
        sealSector(sector, this.#volume.checksums);
        await this.#volume.writeSectors(node.home.nsd, node.home.sector, 1, (bytes) => bytes.set(sector));
        inode.unflushed.add(node.home.nsd);
      }
    }
  }

  async #writeRun(run: readonly Image[]): Promise<void> {
    const first = run[0]!.inode.home;
    await this.#volume.writeSectors(first.nsd, first.sector, run.length, (bytes) => {
      run.forEach((image, index) => {
        bytes.set(image.sector, index * SECTOR_BYTES);
      });
    });
    for (const { inode, sequence } of run) {
      inode.unflushed.add(inode.home.nsd);
      inode.onDevice = true;
      if (inode.dirtySequence === sequence) {
        inode.dirty = false;
        inode.dirtyCore = false;
      } else inode.dirtySinceMs = this.#volume.clock.nowMs();
      this.#table.wasWritten(inode.ino);
    }
    this.#volume.counters.add('fs.inodeWrites');
    this.#volume.counters.add('fs.inodesWritten', run.length);
  }

  async #finish({ inode, frees, wasFree }: Image): Promise<void> {
    if (frees.length > 0) {
      await inode.transfersEnded();
      this.#volume.frees.add(frees);
    }
    if (!wasFree || inode.dirty) return;
    this.#volume.numbers.giveBack(inode.ino);
    this.#table.drop(inode);
  }
}

/** Inline bytes follow the size: what truncation and sparse writes leave is zeros. */
function fitInline(inode: Inode): void {
  const fitted = new Uint8Array(Math.min(inode.sizeBytes, AREA_BYTES));
  fitted.set(inode.area.subarray(0, fitted.length));
  inode.area = fitted;
}

function runsOf(images: readonly Image[]): Image[][] {
  const runs: Image[][] = [];
  let run: Image[] = [];
  for (const image of images) {
    const last = run.at(-1)?.inode.home;
    const home = image.inode.home;
    if (last === undefined || last.nsd !== home.nsd || last.sector + 1 !== home.sector || run.length >= RUN_MAX) {
      run = [];
      runs.push(run);
    }
    run.push(image);
  }
  return runs;
}
