import { crc32c } from '../native/core.js';
import { FRAME_AT, FRAME_HEADER_BYTES } from '../protocol/frame.js';
import { HANDSHAKE_RECORD_BYTES } from './link.js';
import { distance, PART_PREFIX_BYTES, UNIT_AT, UNIT_HEADER_BYTES, UnitKind, writeUnitHeader } from './rdma-wire.js';
import type { Work, WorkQueue } from './rdma-work.js';
import type { VerbsMemory, VerbsQueue } from './verbs-port.js';

/**
 * The units that leave a link: frames packed into as few of them as possible, and whatever else the link says.
 *
 * Invariants: never a unit that the peer has no receive for (the last one's room is kept for telling credit, so that two sides
 * that have used theirs up can't wait for each other); a slot is written anew only when its send has completed or was inline.
 * Bytes handed in are copied once: into a slot, or where there is none into the outbox, which is bounded.
 */
const OUTBOX_BYTES_MAX = 32 * 1024 * 1024;
const CONTROL_MAX = 16_384;

/** Writes a payload and returns its length. */
export type WritePayload = (bytes: Uint8Array, view: DataView, at: number) => number;

interface Waiting {
  readonly bytes: Uint8Array;
  at: number;
  /** Within a frame too large for a unit: how much of it has left. */
  partDone: number;
}

export class UnitSender {
  readonly #work: WorkQueue;
  readonly #memory: VerbsMemory;
  readonly #view: DataView;
  readonly #baseBytes: number;
  readonly #slotBytes: number;
  readonly #inlineBytesMax: number;
  readonly #grant: () => number;
  readonly #freeSlots: number[] = [];
  readonly #control: { kind: UnitKind; write: WritePayload }[] = [];
  readonly #outbox: Waiting[] = [];
  #outboxBytes = 0;
  #number = 0;
  /** The peer has receives for units up to this one. */
  #limit: number;
  #granted: number;

  /**
   * @param grant Number of the last unit that the other side may send.
   * @param limit Receives that it posted before the link was made.
   */
  constructor(
    work: WorkQueue,
    queue: VerbsQueue,
    memory: VerbsMemory,
    baseBytes: number,
    slots: number,
    slotBytes: number,
    limit: number,
    grant: () => number,
  ) {
    this.#work = work;
    this.#memory = memory;
    this.#view = new DataView(memory.bytes.buffer, memory.bytes.byteOffset, memory.bytes.byteLength);
    this.#baseBytes = baseBytes;
    this.#slotBytes = slotBytes;
    this.#inlineBytesMax = queue.inlineBytesMax;
    this.#limit = limit;
    this.#grant = grant;
    this.#granted = grant();
    for (let i = slots - 1; i >= 0; i--) this.#freeSlots.push(i);
  }

  get payloadBytesMax(): number {
    return this.#slotBytes - UNIT_HEADER_BYTES;
  }
  /** Of the last unit sent. */
  get number(): number {
    return this.#number;
  }
  /** Receives that we posted and the other side doesn't know of. */
  get owed(): number {
    return distance(this.#grant(), this.#granted);
  }

  /** The peer says up to where it has receives. False: that can't be. */
  creditTo(limit: number, receivesMax: number): boolean {
    if (distance(limit, this.#number) > receivesMax) return false;
    if (distance(limit, this.#limit) > 0) this.#limit = limit >>> 0;
    return true;
  }

  get ready(): boolean {
    return this.#ready(2);
  }
  #ready(credits: number): boolean {
    return distance(this.#limit, this.#number) >= credits && this.#freeSlots.length > 0 && this.#work.free > 0;
  }

  /** False: too much is waiting. */
  frames(bytes: Uint8Array, start: number, end: number): boolean {
    const waiting: Waiting = { bytes, at: start, partDone: 0 };
    if (this.#outbox.length === 0) {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      while (waiting.at < end && this.#ready(2)) this.#pack(waiting, view, end);
      if (waiting.at === end) return true;
    }
    const rest = bytes.slice(waiting.at, end);
    if (this.#outboxBytes + rest.length > OUTBOX_BYTES_MAX) return false;
    this.#outboxBytes += rest.length;
    this.#outbox.push({ bytes: rest, at: 0, partDone: waiting.partDone });
    return true;
  }

  record(record: Uint8Array): boolean {
    return this.unit(UnitKind.record, (bytes, _view, at) => {
      bytes.set(record, at);
      return HANDSHAKE_RECORD_BYTES;
    });
  }

  /** False: too much is waiting. `write` runs when there is room. */
  unit(kind: UnitKind, write: WritePayload): boolean {
    if (this.#control.length >= CONTROL_MAX) return false;
    this.#control.push({ kind, write });
    return true;
  }

  /** As much as credit, slots and queue allow; posted by the caller's flush. */
  pump(): void {
    while (this.#control.length > 0 && this.#ready(2)) {
      const { kind, write } = this.#control.shift()!;
      this.#emit(kind, write);
    }
    while (this.#outbox.length > 0 && this.#ready(2)) {
      const head = this.#outbox[0]!;
      const { bytes } = head;
      this.#pack(head, new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), bytes.length);
      if (head.at === bytes.length) {
        this.#outbox.shift();
        this.#outboxBytes -= bytes.length;
      }
    }
  }

  /** Tells our credit by itself, when it is much and nothing else goes. */
  tellCredit(owedMin: number): void {
    if (this.owed >= owedMin && this.#ready(1)) this.#emit(UnitKind.credit, () => 0);
  }

  /** Something that was looked for room for by `ready`. */
  emit(kind: UnitKind, write: WritePayload): void {
    this.#emit(kind, write);
  }

  #pack(waiting: Waiting, view: DataView, end: number): void {
    const room = this.payloadBytesMax;
    const first = FRAME_HEADER_BYTES + view.getUint32(waiting.at + FRAME_AT.bodyBytes, true);
    if (first > room) {
      const take = Math.min(room - PART_PREFIX_BYTES, first - waiting.partDone);
      this.#emit(UnitKind.part, (bytes, out, at) => {
        out.setUint32(at, first, true);
        out.setUint32(at + 4, waiting.partDone, true);
        const from = waiting.at + waiting.partDone;
        bytes.set(waiting.bytes.subarray(from, from + take), at + PART_PREFIX_BYTES);
        return PART_PREFIX_BYTES + take;
      });
      waiting.partDone += take;
      if (waiting.partDone === first) {
        waiting.at += first;
        waiting.partDone = 0;
      }
      return;
    }
    let through = waiting.at + first;
    while (through < end) {
      const next = FRAME_HEADER_BYTES + view.getUint32(through + FRAME_AT.bodyBytes, true);
      if (through + next - waiting.at > room) break;
      through += next;
    }
    this.#emit(UnitKind.frames, (bytes, _view, at) => {
      bytes.set(waiting.bytes.subarray(waiting.at, through), at);
      return through - waiting.at;
    });
    waiting.at = through;
  }

  #emit(kind: UnitKind, write: WritePayload): void {
    const slot = this.#freeSlots.pop()!;
    const { bytes } = this.#memory;
    const at = this.#baseBytes + slot * this.#slotBytes;
    const payloadBytes = write(bytes, this.#view, at + UNIT_HEADER_BYTES);
    this.#number = (this.#number + 1) >>> 0;
    this.#granted = this.#grant();
    writeUnitHeader(this.#view, at, kind, payloadBytes, this.#number, this.#granted);
    const lengthBytes = UNIT_HEADER_BYTES + payloadBytes;
    this.#view.setUint32(at + UNIT_AT.crc, crc32c(bytes.subarray(at, at + lengthBytes)), true);
    // Records get a completion: a link that ends with one waits until it has arrived.
    const inline = lengthBytes <= this.#inlineBytesMax && kind !== UnitKind.record;
    this.#work.add(
      new SendUnit(this.#memory, at, lengthBytes, inline, inline ? null : () => this.#freeSlots.push(slot)),
    );
    // Inline bytes are taken when the batch is posted, before which nobody asks for a slot of it again.
    if (inline) this.#inlineSlots.push(slot);
  }
  readonly #inlineSlots: number[] = [];

  /** After the batch was posted. */
  posted(): void {
    this.#freeSlots.push(...this.#inlineSlots);
    this.#inlineSlots.length = 0;
  }
}

class SendUnit implements Work {
  constructor(
    readonly memory: VerbsMemory,
    readonly offsetBytes: number,
    readonly lengthBytes: number,
    readonly inline: boolean,
    readonly release: (() => void) | null,
  ) {}
  get awaited(): boolean {
    return !this.inline;
  }
  queue(queue: VerbsQueue, id: number, signalled: boolean): void {
    queue.send(id, this.memory, this.offsetBytes, this.lengthBytes, this.inline, signalled);
  }
  done(): void {
    this.release?.();
  }
}
