/**
 * Inode numbers: a batch from this node's own segment at a time, taken under the exclusive data token of the segment's sector of
 * the inode map, in an operation of its own, and then handed out without asking anybody.
 *
 * Each batch has a generation greater than any that its numbers had before: a handle or a directory entry of an earlier life of the
 * number is recognised by it. Numbers given back wait until their inode has been written as free, then go back in batches, never
 * straight to the next create: their next life needs a new generation.
 * The data tokens of a batch are asked for with it, in one message: whoever makes a file writes it next, and would ask for each alone. So are the status
 * and open tokens of a segment with its first batch. Batches grow while they are used up, to four blocks of the inode file, and the next is there before the last
 * has gone: who makes many files meets no token message, and no wait, between them.
 * Fault model: a node that dies takes the rest of its batch with it (numbers marked used, inodes free); a check finds them.
 */
import { WHOLE } from '../common/byte-range.js';
import { isDamage } from '../common/damage.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, inodeNumber, type NsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { INODES_PER_SEGMENT, TokenClass, TokenMode } from '../token-manager/token.js';
import { groupBy } from './group.js';
import { type Extent, INODE_MAP, segmentOf, segmentRange } from './layout.js';
import { runsOf } from './log/loose-ends.js';
import {
  inodeUsed,
  segmentFree,
  segmentGeneration,
  setInodeUsed,
  setSegmentFree,
  setSegmentGeneration,
} from './map-formats.js';
import { Mutex } from './mutex.js';
import { aloneItem } from './open-tokens.js';
import { Settling } from './space-peers.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

export interface InodeTicket {
  readonly ino: InodeNumber;
  readonly generation: number;
  /** Where the inode will be; known before anything names the number. */
  readonly home: { readonly nsd: NsdIndex; readonly sector: number };
}

/** How many times the first batch a batch may grow to; in a file system of so many blocks for each block of numbers. */
const BATCH_GROWTH_MAX = 4;
const BLOCKS_PER_GROWTH = 256;
/** Segments looked at ahead of need. */
const SEGMENTS_AHEAD = 16;

/** Steps from a segment to the next: so many nodes side by side have room between them. */
const SEGMENT_STRIDE = 8;

/**
 * The segments in the order in which a node uses them up: nodes with neighbouring numbers begin side by side, so that the inode file stays short, and go on
 * in strides, so that none runs into the segment that another one is using. Every segment comes once; segment 0 last, it is everybody's: the root
 * is in it.
 */
export function nthSegment(nodeId: number, n: number, segmentCount: number): number {
  const count = segmentCount - 1;
  if (n % segmentCount >= count) return 0;
  let stride = SEGMENT_STRIDE;
  while (commonDivisor(stride, count) !== 1) stride++;
  return 1 + ((nodeId - 1 + (n % segmentCount) * stride) % count);
}
const commonDivisor = (a: number, b: number): number => (b === 0 ? a : commonDivisor(b, a % b));

export class InodeNumbers {
  readonly #volume: Volume;
  /** Descending, so that `pop` gives neighbours in ascending order. */
  #free: InodeTicket[] = [];
  #returned: InodeNumber[] = [];
  readonly #mutex = new Mutex();
  #ahead: Promise<void> | null = null;
  /** Nothing was found ahead of need: not looked for again before something has been found in need. */
  #noneAhead = false;
  /** In this node's order of them. */
  #segmentIndex = 0;
  /** Whose status and open tokens have been asked for. */
  #segmentAsked = -1;
  /** How many to take next, and how many were taken last. */
  #batch: number;
  #lastBatch = 0;
  readonly #batchMax: number;

  constructor(volume: Volume) {
    this.#volume = volume;
    const { nsdBlocks } = volume.geometry;
    const blocks = nsdBlocks.reduce((sum, count) => sum + count, 0);
    this.#batch = volume.settings.inodeBatch;
    this.#batchMax = this.#batch * Math.max(1, Math.min(BATCH_GROWTH_MAX, Math.floor(blocks / BLOCKS_PER_GROWTH)));
  }

  /** The segment in which this node creates. */
  get segment(): number {
    return nthSegment(this.#volume.parts.nodeId, this.#segmentIndex, this.#volume.geometry.segmentCount);
  }

  tryTake(): InodeTicket | null {
    const ticket = this.#free.pop() ?? null;
    if (ticket !== null && this.#free.length <= this.#lastBatch >>> 1) this.#refillAhead();
    return ticket;
  }

  /** @throws {FsError} noInodes; noSpace when the inode file can't grow. */
  async take(): Promise<InodeTicket> {
    for (;;) {
      const ticket = this.tryTake();
      if (ticket !== null) return ticket;
      await this.#mutex.run(async () => {
        if (this.#free.length === 0) await this.#refill();
      });
    }
  }

  /** An unused ticket: its generation was not seen by anybody. */
  putBack(ticket: InodeTicket): void {
    this.#free.push(ticket);
  }

  /** The inode has been written as free. */
  giveBack(ino: InodeNumber): void {
    this.#returned.push(ino);
  }

  get returnedCount(): number {
    return this.#returned.length;
  }

  /** While half a batch is left, so that who creates one file after the other never waits for the next. */
  #refillAhead(): void {
    if (this.#ahead !== null || this.#noneAhead || this.#mutex.busy || this.#volume.closed) return;
    const { logger } = this.#volume.parts;
    this.#ahead = this.#mutex
      .run(async () => {
        const { segmentCount } = this.#volume.geometry;
        this.#noneAhead = !(await this.#refillFromSegments(Math.min(SEGMENTS_AHEAD, segmentCount)));
      })
      .catch((error: unknown) => {
        this.#noneAhead = true;
        logger.info({ error: String(error) }, 'inode numbers could not be taken ahead');
      })
      .finally(() => {
        this.#ahead = null;
      });
  }

  async #refill(): Promise<void> {
    if (await this.#refillFromMap()) return;
    // Others may have removed files whose numbers are on their way, or have numbers in stock.
    const { parts, settings } = this.#volume;
    await parts.peers.settle(Settling.numbers, settings.peersTimeoutMs);
    if (await this.#refillFromMap()) return;
    throw new FsError('noInodes', { op: 'create', detail: 'every inode of the file system is in use' });
  }

  async #refillFromMap(): Promise<boolean> {
    await this.#volume.inodes.writeOutFreeing();
    await this.#returnNow();
    this.#noneAhead = false;
    return this.#refillFromSegments(this.#volume.geometry.segmentCount);
  }

  async #refillFromSegments(count: number): Promise<boolean> {
    for (let i = 0; i < count; i++) {
      if (await this.#tryRefillFrom(this.segment)) return true;
      this.#segmentIndex = (this.#segmentIndex + 1) % this.#volume.geometry.segmentCount;
    }
    return false;
  }

  /** One that is damaged has none: its inodes can be read and written. */
  async #tryRefillFrom(segment: number): Promise<boolean> {
    try {
      return await this.#refillFrom(segment);
    } catch (error) {
      if (!isDamage(error)) throw error;
      this.#volume.counters.add('fs.segmentsDamaged');
      this.#volume.parts.logger.error({ segment, error: error.message }, 'a segment of the inode map is damaged');
      return false;
    }
  }

  async #refillFrom(segment: number): Promise<boolean> {
    for (;;) {
      try {
        const taken = await this.#takeFrom(segment);
        if (taken === 0) return false;
        this.#lastBatch = taken;
        this.#batch = Math.min(2 * this.#batch, this.#batchMax);
        return true;
      } catch (error) {
        // The inode file could not grow by so much.
        const isSmallest = this.#batch <= this.#volume.settings.inodeBatch;
        if (isSmallest || !FsError.is(error) || error.reason !== 'noSpace') throw error;
        this.#volume.counters.add('fs.numberBatchesCut');
        this.#batch = this.#volume.settings.inodeBatch;
        await this.#returnNow();
      }
    }
  }

  /** How many it got. */
  async #takeFrom(segment: number): Promise<number> {
    const batch = await this.#takeBatch(segment);
    if (batch.length === 0) return 0;
    try {
      const inos = batch.map(({ ino }) => ino);
      const homes = await this.#volume.inodes.ensureMapped(inos);
      this.#askFor(inos);
      const tickets = batch.map((ticket, index) => ({ ...ticket, home: homes[index]! }));
      await this.#learnHeld(tickets);
      this.#free.unshift(...tickets.reverse());
      this.#volume.counters.add('fs.numberBatches');
    } catch (error) {
      this.#returned.push(...batch.map(({ ino }) => ino));
      throw error;
    }
    return batch.length;
  }

  /** What creating and writing them will take; what is not granted is asked for again by who needs it. */
  #askFor(inos: readonly InodeNumber[]): void {
    const { inodes, parts } = this.#volume;
    const items = inos.map((ino) => this.#volume.dataItem(ino, WHOLE));
    const segment = segmentOf(inos[0]!);
    if (segment !== this.#segmentAsked) {
      items.unshift(inodes.statusItem(inos[0]!, TokenMode.exclusive, true), aloneItem(this.#volume, inos[0]!, true));
      this.#segmentAsked = segment;
    }
    parts.tokens.ask(items);
  }

  /**
   * The versions of those whose status is held: nobody else writes them until that is given up, which forgets them (somebody who makes a copy good does write
   * free ones). Of the others they are learned by who creates with them.
   */
  async #learnHeld(tickets: readonly InodeTicket[]): Promise<void> {
    const { inodes, parts } = this.#volume;
    const { tokens } = parts;
    try {
      // It has been asked for.
      (await tokens.acquire([inodes.statusItem(tickets[0]!.ino, TokenMode.exclusive, true)])).release();
    } catch (error) {
      // Whoever creates asks for it again, and is told.
      if (!FsError.is(error)) throw error;
    }
    const offsetOf = ({ ino }: InodeTicket): number => ino * SECTOR_BYTES;
    for (let at = 0, end = 0; at < tickets.length; at = end) {
      const object = segmentOf(tickets[at]!.ino);
      const mode = TokenMode.exclusive;
      const held = tokens.heldRange(TokenClass.status, object, offsetOf(tickets[at]!), mode);
      for (end = at + 1; held !== null && end < tickets.length && offsetOf(tickets[end]!) < held.end; ) end++;
      if (held === null) continue;
      const required = { start: offsetOf(tickets[at]!), end: offsetOf(tickets[end - 1]!) + SECTOR_BYTES };
      const pins = tokens.tryPin([{ class: TokenClass.status, object, mode, required, desired: required }]);
      if (pins === null) continue;
      try {
        await this.#volume.learnVersions(runsOfHomes(tickets.slice(at, end).map(({ home }) => home)));
      } finally {
        pins.release();
      }
    }
  }

  async #takeBatch(segment: number): Promise<Omit<InodeTicket, 'home'>[]> {
    const batch: Omit<InodeTicket, 'home'>[] = [];
    await this.#change(segment, (sector, transaction) => {
      const free = segmentFree(sector);
      if (free === 0) return false;
      const generation = segmentGeneration(sector);
      for (let slot = 0; slot < INODES_PER_SEGMENT && batch.length < this.#batch; slot++) {
        if (inodeUsed(sector, slot)) continue;
        setInodeUsed(sector, slot, true);
        const ino = inodeNumber(segment * INODES_PER_SEGMENT + slot);
        batch.push({ ino, generation });
      }
      for (const { first, count } of runsOf(batch.map(({ ino }) => ino)))
        transaction.numbers('numbersTaken', first, count);
      setSegmentFree(sector, free - batch.length);
      setSegmentGeneration(sector, generation + 1);
      return true;
    });
    return batch;
  }

  #change(segment: number, use: (sector: Uint8Array, transaction: MetadataTransaction) => boolean): Promise<void> {
    return this.#volume.innerChange(() => this.#changeSector(segment, use));
  }

  async #changeSector(
    segment: number,
    use: (sector: Uint8Array, transaction: MetadataTransaction) => boolean,
  ): Promise<void> {
    const volume = this.#volume;
    const range = segmentRange(segment);
    const pins = await volume.pin([volume.dataItem(INODE_MAP, range)], undefined);
    try {
      await volume.mapFile(INODE_MAP).withBytes(range, 'exclusive', (view) => {
        const sector = view.bytes(range.start, SECTOR_BYTES);
        const transaction = new MetadataTransaction(volume);
        if (!use(sector, transaction)) return;
        view.changed(range.start, SECTOR_BYTES);
        transaction.sector(volume.systemFiles.get(INODE_MAP)!, range.start, sector);
        transaction.commit();
      });
    } finally {
      pins.release();
    }
  }

  /** Numbers of one segment are free in the map from here on. `also`: what belongs into the same transaction. */
  clear(
    segment: number,
    inos: readonly InodeNumber[],
    also: (transaction: MetadataTransaction) => void,
  ): Promise<void> {
    return this.#change(segment, (sector, transaction) => {
      const used = inos.filter((ino) => inodeUsed(sector, ino % INODES_PER_SEGMENT));
      for (const ino of used) setInodeUsed(sector, ino % INODES_PER_SEGMENT, false);
      setSegmentFree(sector, segmentFree(sector) + used.length);
      also(transaction);
      return true;
    });
  }

  async #returnNow(): Promise<void> {
    const returned = this.#returned;
    this.#returned = [];
    for (const [segment, inos] of groupBy(returned, segmentOf)) {
      try {
        await this.clear(segment, inos, (transaction) => {
          for (const { first, count } of runsOf(inos)) transaction.numbers('numbersSettled', first, count);
        });
      } catch (error) {
        this.#returned.push(...inos);
        this.#volume.parts.logger.warn({ segment, error: String(error) }, 'inode numbers could not be given back yet');
      }
    }
  }

  /** Freed numbers go back to the map. */
  async returnNumbers(): Promise<void> {
    if (this.#returned.length > 0) await this.#mutex.run(() => this.#returnNow());
  }

  /** Marked as used in the map, and in truth free: in stock, or on their way back. */
  get unusedCount(): number {
    return this.#free.length + this.#returned.length;
  }

  /** Another node has none left. Who is looking for some itself has none to give, and is not waited for. */
  async surrender(): Promise<void> {
    await this.#ahead;
    if (!this.#mutex.busy) await this.close();
  }

  /** Before unmounting: unused numbers too. */
  async close(): Promise<void> {
    await this.#mutex.run(async () => {
      const unused = this.#free.map((ticket) => ticket.ino);
      this.#returned.push(...unused);
      this.#free = [];
      await this.#returnNow();
      const { tokens } = this.#volume.parts;
      await Promise.all(unused.map((ino) => tokens.release(TokenClass.data, ino, WHOLE)));
    });
  }
}

/** Neighbours together. */
function runsOfHomes(homes: readonly InodeTicket['home'][]): Extent[] {
  const runs: { nsd: NsdIndex; sector: number; count: number }[] = [];
  for (const { nsd, sector } of homes) {
    const last = runs.at(-1);
    if (last !== undefined && last.nsd === nsd && last.sector + last.count === sector) last.count++;
    else runs.push({ nsd, sector, count: 1 });
  }
  return runs;
}
