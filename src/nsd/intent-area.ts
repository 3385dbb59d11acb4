import { invariant } from '../common/assert.js';
import type { Counters } from '../common/counters.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { Checksums } from './checksums.js';
import type { FlushLine } from './flush-line.js';
import {
  decodeIntentSector,
  encodeIntentSector,
  INTENTS_PER_SECTOR,
  type Intent,
  type IntentSector,
} from './intent-layout.js';
import type { BlockDevice } from './nsd-api.js';
import type { NsdGeometry } from './nsd-layout.js';

/**
 * The intent area of one open NSD (S1): a ring of sectors, each with the intents of writes that were asked for at the same time.
 *
 * Invariants
 * - `announce` resolves only after the intents are on the device and a flush that began after that has ended.
 * - An intent is cleared (its sector of the ring may be used again, and no longer counts) only when its write has ended, data and
 *   checksum, and a flush that began after that has ended. A write that ends badly clears its intents in the same way: whoever
 *   gave it the error knows that the sector may mismatch.
 * - The ring never wraps into what is not cleared; who finds it full waits for writes under way, then for a flush of its own.
 *
 * Group commit: while sectors of intents are on their way to the device, further ones gather; while a flush is under way, the next batch
 * is written and shares the flush after it.
 *
 * Fault model: intents may be torn or lost as long as no flush has covered them: then no data of theirs has gone out either. Any of them may be there all the
 * same, while the data of an earlier write to the same sector, which no flush has covered either, is not: all that count have their say (intent-recovery.ts).
 */
export interface IntentTicket {
  readonly first: number;
  readonly last: number;
}

/** Of one data sector, the oldest first; one at least. */
export interface IntentChain {
  readonly sector: number;
  readonly intents: readonly Intent[];
}

interface Request {
  readonly intents: readonly Intent[];
  /** How many of them are in sectors already. */
  placed: number;
  /** The ring's sectors that they are in; -1 before the first. */
  first: number;
  last: number;
  readonly done: Deferred<IntentTicket>;
  failed: { readonly error: unknown } | null;
}

interface Slot {
  /** Writes whose intents are in it and that have not ended. */
  users: number;
  /** The last flush that had begun when the last of them ended. */
  endedAt: number;
}

export class IntentArea {
  readonly #slots: Slot[];
  readonly #queue: Request[] = [];
  #next = 0;
  #oldest = 0;
  #writing = false;
  #roomMade: Deferred<void> | null = null;

  constructor(
    private readonly parts: {
      readonly device: BlockDevice;
      readonly pool: PagePool;
      readonly checksums: Checksums;
      readonly counters: Counters;
      readonly line: FlushLine;
      readonly geometry: NsdGeometry;
      /** Of the NSD. */
      readonly uuid: Uint8Array;
      /** This area's own piece of the pool: whole sectors. */
      readonly staging: PoolSegment;
    },
  ) {
    this.#slots = Array.from({ length: parts.geometry.intentSectorCount }, () => ({ users: 0, endedAt: 0 }));
    invariant(parts.staging.lengthBytes >= SECTOR_BYTES, 'intent area without staging space');
  }

  /** How many intents one call of `announce` may bring. */
  get atOnceMax(): number {
    // The first of its sectors may be one that others have begun.
    return (this.#slots.length - 1) * INTENTS_PER_SECTOR;
  }

  /**
   * What counts, by data sector in the sectors' order, each one's in the order in which they were made; and goes on behind it.
   * @throws {FsError} deviceError
   */
  async load(): Promise<IntentChain[]> {
    const { device, pool, checksums, geometry, staging, uuid, counters } = this.parts;
    const slotCount = this.#slots.length;
    const found: IntentSector[] = [];
    const atOnce = staging.lengthBytes / SECTOR_BYTES;
    for (let slot = 0; slot < slotCount; slot += atOnce) {
      const count = Math.min(atOnce, slotCount - slot);
      const memory = { offsetBytes: staging.offsetBytes, lengthBytes: count * SECTOR_BYTES };
      await device.read((geometry.intentStart + slot) * SECTOR_BYTES, memory);
      for (let i = 0; i < count; i++) {
        const place = { slot: slot + i, slotCount, dataSectorCount: geometry.dataSectorCount };
        const at = staging.offsetBytes + i * SECTOR_BYTES;
        const sector = decodeIntentSector(uuid, place, checksums, pool.bytes, at);
        if (sector !== null) found.push(sector);
      }
    }
    found.sort((a, b) => a.number - b.number);
    const newest = found.at(-1);
    if (newest === undefined) return [];
    this.#next = newest.number + 1;
    this.#oldest = this.#next;
    const bySector = new Map<number, Intent[]>();
    for (const { number, intents } of found) {
      if (number < newest.oldest) continue;
      for (const intent of intents) {
        const chain = bySector.get(intent.sector);
        if (chain === undefined) bySector.set(intent.sector, [intent]);
        else chain.push(intent);
      }
    }
    counters.add('nsd.intentsFound', bySector.size);
    return [...bySector].map(([sector, intents]) => ({ sector, intents })).sort((a, b) => a.sector - b.sector);
  }

  /** All that there was is of no account any more: what it spoke of is on the device and flushed. */
  async forget(): Promise<void> {
    const { device, geometry, staging } = this.parts;
    const number = this.#next++;
    this.#oldest = this.#next;
    this.#encode({ number, oldest: this.#oldest, intents: [] }, 0);
    const memory = { offsetBytes: staging.offsetBytes, lengthBytes: SECTOR_BYTES };
    await device.write((geometry.intentStart + (number % this.#slots.length)) * SECTOR_BYTES, memory);
  }

  /**
   * Resolves when the intents are durable: the data may go out. `ended` must follow.
   * @throws {FsError} deviceError, noSpace: then nothing may be written, and nothing follows.
   */
  announce(intents: readonly Intent[]): Promise<IntentTicket> {
    invariant(intents.length > 0 && intents.length <= this.atOnceMax, 'intents of one write are bounded');
    const request: Request = { intents, placed: 0, first: -1, last: -1, done: deferred(), failed: null };
    this.#queue.push(request);
    if (!this.#writing) void this.#write();
    return request.done.promise;
  }

  /** The write has ended: its data and its checksums are on the device, or it has failed. */
  ended(ticket: IntentTicket): void {
    for (let number = ticket.first; number <= ticket.last; number++) {
      const slot = this.#slotOf(number);
      slot.users--;
      invariant(slot.users >= 0, 'an intent ended twice');
      slot.endedAt = this.parts.line.begun;
    }
    this.#roomMade?.resolve();
  }

  /** Flush `number` has ended: what had ended before it began is cleared. */
  flushed(number: number): void {
    while (this.#oldest < this.#next) {
      const slot = this.#slotOf(this.#oldest);
      if (slot.users > 0 || slot.endedAt >= number) break;
      this.#oldest++;
    }
    this.#roomMade?.resolve();
  }

  #slotOf(number: number): Slot {
    return this.#slots[number % this.#slots.length]!;
  }
  get #room(): number {
    return this.#slots.length - (this.#next - this.#oldest);
  }

  async #write(): Promise<void> {
    this.#writing = true;
    const { counters } = this.parts;
    while (this.#queue.length > 0) {
      if (this.#room === 0) {
        counters.add('nsd.intentRoomWaits');
        await this.#makeRoom();
        continue;
      }
      await this.#writeBatch();
    }
    this.#writing = false;
  }

  /** As many as there are, and as there is room for in the ring up to its end and in memory. */
  async #writeBatch(): Promise<void> {
    const { device, geometry, staging, line, counters } = this.parts;
    const first = this.#next;
    const toEnd = this.#slots.length - (first % this.#slots.length);
    const sectorsMax = Math.min(this.#room, toEnd, staging.lengthBytes / SECTOR_BYTES);
    const whole: Request[] = [];
    const touched: Request[] = [];
    for (let i = 0; i < sectorsMax && this.#queue.length > 0; i++) {
      const number = this.#next++;
      const slot = this.#slotOf(number);
      slot.users = 0;
      const intents: Intent[] = [];
      while (intents.length < INTENTS_PER_SECTOR) {
        const request = this.#queue[0];
        if (request === undefined) break;
        const some = request.intents.slice(request.placed, request.placed + INTENTS_PER_SECTOR - intents.length);
        intents.push(...some);
        if (request.placed === 0) request.first = number;
        request.last = number;
        request.placed += some.length;
        slot.users++;
        if (touched.at(-1) !== request) touched.push(request);
        if (request.placed < request.intents.length) break;
        whole.push(request);
        this.#queue.shift();
      }
      this.#encode({ number, oldest: this.#oldest, intents }, i);
    }
    const count = this.#next - first;
    const fail = (error: unknown): void => {
      for (const request of touched) request.failed ??= { error };
    };
    try {
      const memory = { offsetBytes: staging.offsetBytes, lengthBytes: count * SECTOR_BYTES };
      await device.write((geometry.intentStart + (first % this.#slots.length)) * SECTOR_BYTES, memory);
      counters.add('nsd.intentSectorWrites', count);
    } catch (error) {
      fail(error);
    }
    const flushed = touched.every(({ failed }) => failed !== null) ? Promise.resolve() : line.flush();
    void flushed.catch(fail).then(() => {
      for (const request of whole) this.#resolve(request);
    });
  }

  /** Fails those in line if it can't be made: without a flush nothing is cleared. */
  async #makeRoom(): Promise<void> {
    if (this.#slotOf(this.#oldest).users > 0) {
      this.#roomMade = deferred();
      await this.#roomMade.promise;
      this.#roomMade = null;
      return;
    }
    try {
      await this.parts.line.flush();
    } catch (error) {
      for (const request of this.#queue.splice(0)) {
        request.failed ??= { error };
        this.#resolve(request);
      }
    }
  }

  #resolve({ first, last, failed, done }: Request): void {
    if (failed === null) {
      done.resolve({ first, last });
      return;
    }
    if (first >= 0) this.ended({ first, last });
    done.reject(failed.error);
  }

  #encode(sector: IntentSector, index: number): void {
    const { uuid, checksums, pool, staging } = this.parts;
    encodeIntentSector(uuid, sector, checksums, pool.bytes, staging.offsetBytes + index * SECTOR_BYTES);
  }
}
