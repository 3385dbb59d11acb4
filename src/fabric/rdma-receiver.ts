import { crc32c } from '../native/core.js';
import {
  FRAME_AT,
  FRAME_BODY_BYTES_MAX,
  FRAME_HEADER_BYTES,
  FRAME_KIND_STREAM_MAX,
  FRAME_MAGIC,
  FRAME_VERSION,
  FrameKind,
} from '../protocol/frame.js';
import type { FrameBatch } from './link.js';
import { distance, judgeUnit, PART_PREFIX_BYTES, UNIT_AT, UNIT_HEADER_BYTES, UnitKind } from './rdma-wire.js';
import type { VerbsMemory } from './verbs-port.js';

/**
 * Units as they arrive: checked, frames gathered into batches, large frames put together again.
 *
 * Fault model: the bytes may be anything, in any number. Whatever doesn't fit ends the link; `take` says what it was.
 */
const OFFSETS_MIN = 4096;

export class UnitReceiver {
  readonly #memory: VerbsMemory;
  readonly #view: DataView;
  readonly #batch: FrameBatch;
  readonly #deliver: (batch: FrameBatch) => void;
  readonly #other: (kind: UnitKind, view: DataView, at: number, payloadBytes: number) => string | null;
  #number = 0;
  #assembly: Uint8Array | null = null;
  #assembled = 0;

  /** @param other For everything but frames; returns what is wrong with it, or null. */
  constructor(
    memory: VerbsMemory,
    unitBytes: number,
    deliver: (batch: FrameBatch) => void,
    other: (kind: UnitKind, view: DataView, at: number, payloadBytes: number) => string | null,
  ) {
    this.#memory = memory;
    this.#view = new DataView(memory.bytes.buffer, memory.bytes.byteOffset, memory.bytes.byteLength);
    const perUnit = Math.ceil(unitBytes / FRAME_HEADER_BYTES);
    const offsets = new Uint32Array(Math.max(OFFSETS_MIN, 2 * perUnit));
    this.#batch = { bytes: memory.bytes, view: this.#view, offsets, count: 0 };
    this.#room = offsets.length - perUnit;
    this.#deliver = deliver;
    this.#other = other;
  }
  readonly #room: number;

  /** Of the last unit received. */
  get number(): number {
    return this.#number;
  }

  /** @param credit Judges the limit that the unit tells. @returns null, or what is wrong: the last part of a counter's name. */
  take(at: number, arrivedBytes: number, credit: (limit: number) => boolean): string | null {
    const view = this.#view;
    const misfit = judgeUnit(view, at, arrivedBytes);
    if (misfit !== null) return misfit;
    const crc = view.getUint32(at + UNIT_AT.crc, true);
    view.setUint32(at + UNIT_AT.crc, 0, true);
    if (crc !== crc32c(this.#memory.bytes.subarray(at, at + arrivedBytes))) return 'badChecksum';
    const number = view.getUint32(at + UNIT_AT.number, true);
    if (distance(number, this.#number) !== 1) return 'badNumber';
    this.#number = number;
    if (!credit(view.getUint32(at + UNIT_AT.limit, true))) return 'badCredit';
    const kind = view.getUint8(at + UNIT_AT.kind) as UnitKind;
    const payload = at + UNIT_HEADER_BYTES;
    const payloadBytes = arrivedBytes - UNIT_HEADER_BYTES;
    if (kind === UnitKind.frames) return this.#frames(payload, payloadBytes);
    if (kind === UnitKind.credit) return payloadBytes === 0 ? null : 'badLength';
    if (kind === UnitKind.part) return this.#part(payload, payloadBytes);
    this.flush();
    return this.#other(kind, view, payload, payloadBytes);
  }

  /** Hands over the frames gathered so far. Their memory may be given away after it. */
  flush(): void {
    if (this.#batch.count === 0) return;
    this.#deliver(this.#batch);
    this.#batch.count = 0;
  }

  #frames(at: number, payloadBytes: number): string | null {
    if (this.#assembly !== null || payloadBytes === 0) return 'badLength';
    if (this.#batch.count > this.#room) this.flush();
    const end = at + payloadBytes;
    while (at < end) {
      const total = frameBytes(this.#view, at, end - at);
      if (total === 0 || at + total > end) return 'badFrame';
      this.#batch.offsets[this.#batch.count++] = at;
      at += total;
    }
    return null;
  }

  #part(at: number, payloadBytes: number): string | null {
    const taken = payloadBytes - PART_PREFIX_BYTES;
    if (taken <= 0) return 'badLength';
    const total = this.#view.getUint32(at, true);
    if (total > FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX || total < FRAME_HEADER_BYTES) return 'badLength';
    const offset = this.#view.getUint32(at + 4, true);
    if (this.#assembly === null) {
      if (offset !== 0) return 'badPart';
      this.#assembly = new Uint8Array(total);
      this.#assembled = 0;
    }
    const frame = this.#assembly;
    if (frame.length !== total || offset !== this.#assembled || offset + taken > total) return 'badPart';
    frame.set(this.#memory.bytes.subarray(at + PART_PREFIX_BYTES, at + PART_PREFIX_BYTES + taken), offset);
    this.#assembled += taken;
    if (this.#assembled < total) return null;
    this.#assembly = null;
    const view = new DataView(frame.buffer);
    if (frameBytes(view, 0, total) !== total) return 'badFrame';
    this.flush();
    this.#deliver({ bytes: frame, view, offsets: Uint32Array.of(0), count: 1 });
    return null;
  }
}

/** The length of the frame that begins here; 0 when nothing sensible does. Its checksum is the unit's. */
function frameBytes(view: DataView, at: number, bytesLeft: number): number {
  if (bytesLeft < FRAME_HEADER_BYTES) return 0;
  if (view.getUint16(at + FRAME_AT.magic, true) !== FRAME_MAGIC) return 0;
  if (view.getUint8(at + FRAME_AT.version) !== FRAME_VERSION) return 0;
  const kind = view.getUint8(at + FRAME_AT.kind);
  const bodyBytes = view.getUint32(at + FRAME_AT.bodyBytes, true);
  const stream = kind >= 1 && kind <= FRAME_KIND_STREAM_MAX;
  const bare = kind === FrameKind.resume || kind === FrameKind.ack;
  if (!stream && !bare) return 0;
  if (bodyBytes > (bare ? 0 : FRAME_BODY_BYTES_MAX)) return 0;
  return FRAME_HEADER_BYTES + bodyBytes;
}
