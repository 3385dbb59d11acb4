/**
 * Brings inodes out: what is held back of them into the log (exposing), and what is logged to its place.
 *
 * Order, for each: how it is now is taken down; its dirty data goes to the NSDs; these are flushed; then one transaction of the log says
 * what was taken down (L1: no record exposes bytes that are not durable), with the space that is in use from here on and the space that no
 * longer is; and only when that is durable its sector and its indirect blocks are written in place. What is given up is freed when the record that
 * gives it up is durable and the last transfer to or from it has ended (S6).
 * Two write-outs of one inode never overlap. Needs no token.
 */
import { WHOLE } from '../common/byte-range.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { SECTOR_BYTES } from '../common/units.js';
import { dirtyIndirects } from './block-map.js';
import type { Inode } from './inode.js';
import { FREE_INODE } from './inode-format.js';
import { holdBack, wholeImage } from './inode-image.js';
import type { InodeTable } from './inode-table.js';
import type { Extent } from './layout.js';
import { keyOf, type SectorKey } from './log/logged-sectors.js';
import { EXTENT_BYTES } from './log/loose-ends.js';
import { MetadataTransaction } from './transaction.js';
import { flushWritten } from './unflushed.js';
import type { Volume } from './volume.js';

/** Files flushed side by side. */
const FLUSHES_MAX = 32;

/** What of a file is to be exposed: as it was when its flush began. */
interface Held {
  readonly inode: Inode;
  readonly image: Uint8Array;
  /** Of its held changes: what came later is not in it. */
  readonly sequence: number;
  readonly wasInline: boolean;
  readonly sizeBytes: number;
  readonly indirects: readonly { readonly home: Extent; readonly sector: Uint8Array }[];
  readonly reserved: readonly Extent[];
  readonly frees: readonly Extent[];
}

/** What exposing it logs, about. */
const loggedBytes = ({ indirects, reserved, frees }: Held): number =>
  (1 + indirects.length) * (SECTOR_BYTES + RECORD_BYTES) + (reserved.length + frees.length) * EXTENT_BYTES;
const RECORD_BYTES = 64;

export class InodeWriter {
  readonly #volume: Volume;
  readonly #table: InodeTable;

  constructor(volume: Volume, table: InodeTable) {
    this.#volume = volume;
    this.#table = table;
  }

  async writeOut(inodes: Iterable<Inode>): Promise<void> {
    await this.#inTurn(inodes, async (mine) => {
      await this.#expose(mine);
      await this.#place(mine);
    });
  }

  async expose(inodes: Iterable<Inode>): Promise<void> {
    await this.#inTurn(inodes, (mine) => this.#expose(mine));
  }

  isDue(inode: Inode): boolean {
    return (
      inode.dirty || inode.hasUnflushed || this.#table.hasDirtyData(inode) || this.#volume.logged.isAhead(inode.ino)
    );
  }

  async #inTurn(inodes: Iterable<Inode>, work: (mine: readonly Inode[]) => Promise<void>): Promise<void> {
    // Ascending, so that two write-outs that share inodes wait for each other in one direction only.
    const sorted = [...inodes].sort((a, b) => a.ino - b.ino);
    const mine: { inode: Inode; done: Deferred<void> }[] = [];
    try {
      for (const inode of sorted) {
        while (inode.writing !== null) await inode.writing;
        if (!inode.valid || !this.isDue(inode)) continue;
        const done = deferred<void>();
        inode.writing = done.promise;
        mine.push({ inode, done });
      }
      if (mine.length > 0) await work(mine.map(({ inode }) => inode));
    } finally {
      for (const { inode, done } of mine) {
        inode.writing = null;
        done.resolve();
      }
    }
  }

  // Exposing

  async #expose(inodes: readonly Inode[]): Promise<void> {
    const held: Held[] = [];
    for (const inode of inodes) {
      this.#table.refresh(inode);
      if (this.#table.hasDirtyData(inode) && !inode.concurrent) holdBack(this.#volume, inode);
      if (inode.unexposed) held.push(this.#take(inode));
    }
    try {
      if (inodes.length > 1) {
        const failed = await this.#volume.cache.flushTogether(inodes.map(({ ino }) => ino));
        for (const error of failed.values()) throw error;
      }
      // Again when an NSD lost some of it.
      do
        for (let at = 0; at < inodes.length; at += FLUSHES_MAX)
          await Promise.all(inodes.slice(at, at + FLUSHES_MAX).map((inode) => this.#flushData(inode)));
      while (!(await flushWritten(this.#volume, inodes, 'exposure')));
    } catch (error) {
      for (const one of held) this.#takeBack(one);
      throw error;
    }
    const toLog = new Set(held);
    try {
      for (const one of held)
        await this.#volume.innerChange(
          () => {
            toLog.delete(one);
            this.#log(one);
          },
          { lengthBytes: loggedBytes(one) },
        );
    } catch (error) {
      // There was no room for them in time.
      for (const one of toLog) this.#takeBack(one);
      throw error;
    }
  }

  /** A copy of how it is now: it may change while its data is on its way. */
  #take(inode: Inode): Held {
    // This node alone could write to it since it was read: whoever dies from now on does so in a later epoch.
    if (!inode.tailDoubtful) inode.tailEpoch = this.#volume.parts.epoch();
    const indirects = dirtyIndirects(inode).map((node) => {
      node.dirty = false;
      return { home: node.home, sector: node.sector.slice() };
    });
    const held = {
      inode,
      image: wholeImage(this.#volume, inode.ino, inode),
      sequence: inode.heldChanges,
      wasInline: inode.isInline,
      sizeBytes: inode.sizeBytes,
      indirects,
      reserved: inode.reserved,
      frees: inode.pendingFrees,
    };
    inode.exposing = inode.reserved;
    inode.reserved = [];
    inode.pendingFrees = [];
    inode.dirtyIndirects = 0;
    return held;
  }

  /** Nothing of it was logged: it is held back as before. */
  #takeBack({ inode, reserved, frees, indirects }: Held): void {
    inode.reserved.unshift(...reserved);
    inode.exposing = [];
    inode.pendingFrees.unshift(...frees);
    inode.dirtyIndirects += indirects.length;
    const homes = new Set(indirects.map(({ home }) => keyOf(home)));
    for (const node of allIndirects(inode)) if (homes.has(keyOf(node.home))) node.dirty = true;
    this.#table.markDirty(inode, true);
  }

  async #flushData(inode: Inode): Promise<void> {
    if (inode.type === FREE_INODE) return;
    const file = inode.file ?? this.#volume.cache.get(inode.ino);
    if (file?.dirty) await file.flush();
    this.#table.refresh(inode);
  }

  #log({ inode, image, sequence, wasInline, sizeBytes, indirects, reserved, frees }: Held): void {
    const volume = this.#volume;
    inode.exposing = [];
    if (!inode.valid) return;
    const transaction = new MetadataTransaction(volume);
    // Freed meanwhile, all its space is in limbo but what it had given up before.
    if (inode.type !== FREE_INODE) {
      const exposed = wasInline && inode.isInline ? this.#inlineImage(inode, sizeBytes) : image;
      transaction.expose({ inode, image: exposed, indirects });
      transaction.settled(reserved);
      if (inode.heldChanges === sequence) inode.unexposed = false;
    }
    transaction.limbo(frees);
    const logged = transaction.commit();
    volume.frees.addOf(inode, frees, logged);
  }

  /** Inline bytes came to the inode by the flush of its page: as many of them as there were when it began. */
  #inlineImage(inode: Inode, sizeBytes: number): Uint8Array {
    const length = Math.min(sizeBytes, inode.sizeBytes);
    const area = new Uint8Array(length);
    area.set(inode.area.subarray(0, length));
    return wholeImage(this.#volume, inode.ino, { ...inode, sizeBytes: length, area });
  }

  // In place

  async #place(inodes: readonly Inode[]): Promise<void> {
    const { log, logged, sectors } = this.#volume;
    if (log === null) return;
    const keys: SectorKey[] = [];
    for (const inode of inodes) {
      keys.push(keyOf(inode.home));
      for (const node of allIndirects(inode)) keys.push(keyOf(node.home));
      keys.push(...logged.keysIn(inode.ino, WHOLE));
    }
    await log.writeInPlace(keys.filter((key) => sectors.latest(key) !== undefined));
    for (const inode of inodes) logged.forget(logged.keysIn(inode.ino, WHOLE));
    for (const inode of inodes) this.#placed(inode);
    this.#volume.counters.add('fs.inodeWrites');
    this.#volume.counters.add('fs.inodesWritten', inodes.length);
  }

  #placed(inode: Inode): void {
    const { sectors } = this.#volume;
    this.#table.wasWritten(inode.ino);
    if (inode.unexposed || sectors.latest(keyOf(inode.home)) !== undefined) {
      inode.dirtySinceMs = this.#volume.clock.nowMs();
      return;
    }
    for (const node of allIndirects(inode)) if (node.dirty || sectors.latest(keyOf(node.home)) !== undefined) return;
    inode.dirty = false;
    inode.dirtyCore = false;
    inode.image = null;
    if (inode.type !== FREE_INODE) return;
    this.#volume.numbers.giveBack(inode.ino);
    this.#table.drop(inode);
  }
}

function* allIndirects(inode: Inode) {
  const nodes = inode.roots.filter((root) => root !== null && root !== undefined);
  for (let node = nodes.pop(); node !== undefined; node = nodes.pop()) {
    yield node;
    nodes.push(...node.children.values());
  }
}

/** Where its indirect blocks lie, as far as they are in memory. */
export const indirectHomes = (inode: Inode): Extent[] => [...allIndirects(inode)].map(({ home }) => home);
