/**
 * When what goes to the log: group commit, its space, its tail. Pure: bytes and events in, effects out.
 *
 * Owns the numbering of transactions (from 1) and of the log's sectors, and which transactions are durable.
 * Invariants
 * - One group is on its way at a time; everything appended meanwhile is the next one (DeWitt et al., 1984: group commit).
 * - A transaction is durable when its group, and with it every earlier one, was written and flushed.
 * - Sectors from the announced tail on are never overwritten: `head - announcedTail <= capacity`.
 * Fault model: a group is written until that succeeds, with the same bytes to the same sectors; there is no other way on.
 */
import { invariant } from '../../common/assert.js';
import { type LogGroup, sectorsFor } from './log-sectors.js';

export interface LogMachineSettings {
  readonly capacitySectors: number;
  /** Of one group; a transaction alone may have more. */
  readonly groupSectorsMax: number;
}

export type LogEvent =
  | { readonly type: 'append'; readonly bytes: Uint8Array }
  /** Somebody waits for this transaction, and all before it, to be durable. */
  | { readonly type: 'force'; readonly sequence: number }
  /** The group on its way is durable. */
  | { readonly type: 'written' }
  /** Nothing before this transaction is needed any more: what it was about is in place and flushed. */
  | { readonly type: 'trim'; readonly needed: number }
  /** The tail in the log's descriptor is durable. */
  | { readonly type: 'tailAnnounced'; readonly tail: number };

export type LogEffect =
  /** Write the group and flush what it lies on, however often it takes; then `written`. */
  | { readonly type: 'write'; readonly group: LogGroup }
  | { readonly type: 'durable'; readonly sequence: number }
  /** Nothing can be written before the tail has moved. */
  | { readonly type: 'full' };

interface Placed {
  /** Last transaction of the group, and the first sector behind it. */
  readonly last: number;
  readonly first: number;
}

export class LogMachine {
  readonly #settings: LogMachineSettings;
  #appended = 0;
  #durable = 0;
  #forced = 0;
  #head: number;
  #tail: number;
  #announcedTail: number;
  #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #writing: { readonly group: LogGroup; readonly last: number } | null = null;
  /** Groups that recovery may still need, oldest first. */
  readonly #placed: Placed[] = [];

  /** `head`: the first sector that the log writes. */
  constructor(settings: LogMachineSettings, head: number) {
    this.#settings = settings;
    this.#head = head;
    this.#tail = head;
    this.#announcedTail = head;
  }

  /** Of the transaction appended last. */
  get appended(): number {
    return this.#appended;
  }
  get durable(): number {
    return this.#durable;
  }
  get head(): number {
    return this.#head;
  }
  get tail(): number {
    return this.#tail;
  }
  /** Sectors that are written or are going to be, and that recovery may need. */
  get usedSectors(): number {
    return this.#head - this.#announcedTail + sectorsFor(this.#waitingBytes);
  }
  get writing(): boolean {
    return this.#writing !== null;
  }

  step(event: LogEvent): LogEffect[] {
    switch (event.type) {
      case 'append':
        this.#appended++;
        this.#waiting.push(event.bytes);
        this.#waitingBytes += event.bytes.length;
        return this.#begin();
      case 'force':
        invariant(event.sequence <= this.#appended, 'only what was appended can be forced');
        this.#forced = Math.max(this.#forced, event.sequence);
        return this.#begin();
      case 'written':
        return this.#written();
      case 'trim':
        return this.#trim(event.needed);
      case 'tailAnnounced':
        invariant(event.tail <= this.#tail, 'only a tail that was reached is announced');
        this.#announcedTail = Math.max(this.#announcedTail, event.tail);
        return this.#begin();
    }
  }

  #begin(): LogEffect[] {
    if (this.#writing !== null || this.#waiting.length === 0) return [];
    const { capacitySectors, groupSectorsMax } = this.#settings;
    const isFull = sectorsFor(this.#waitingBytes) >= groupSectorsMax;
    if (this.#forced <= this.#durable && !isFull) return [];
    let bytes = 0;
    let count = 0;
    for (const transaction of this.#waiting) {
      if (count > 0 && sectorsFor(bytes + transaction.length) > groupSectorsMax) break;
      bytes += transaction.length;
      count++;
    }
    const sectorCount = sectorsFor(bytes);
    invariant(sectorCount <= capacitySectors, 'a transaction fits into the log');
    if (this.#head + sectorCount - this.#announcedTail > capacitySectors) return [{ type: 'full' }];
    const transactions = this.#waiting.splice(0, count);
    this.#waitingBytes -= bytes;
    const group: LogGroup = { first: this.#head, sectorCount, tail: this.#tail, transactions };
    const last = this.#appended - this.#waiting.length;
    this.#head += sectorCount;
    this.#placed.push({ last, first: group.first });
    this.#writing = { group, last };
    return [{ type: 'write', group }];
  }

  #written(): LogEffect[] {
    const writing = this.#writing;
    invariant(writing !== null, 'what was written was on its way');
    this.#writing = null;
    this.#durable = writing.last;
    return [{ type: 'durable', sequence: writing.last }, ...this.#begin()];
  }

  #trim(needed: number): LogEffect[] {
    const kept = Math.min(needed, this.#durable + 1);
    while (this.#placed.length > 0 && this.#placed[0]!.last < kept) this.#placed.shift();
    this.#tail = Math.max(this.#tail, this.#placed[0]?.first ?? this.#head);
    return [];
  }
}
