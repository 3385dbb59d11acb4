import type { ProtectionDomain } from './memory.js';
import type { NativeAbi } from './native.js';
import { type Segments, SegmentWriter } from './segment-writer.js';

/** @internal Receives, written into the addon's arena until they are posted together. */
export class ReceiveArena {
  queued = 0;
  readonly #words: Uint32Array;
  readonly #doubles: Float64Array;
  readonly #segments: SegmentWriter;
  readonly #abi: NativeAbi;
  readonly #recordBytes: number;
  readonly #max: number;

  constructor(arena: ArrayBuffer, domain: ProtectionDomain, max: number, maxSegments: number, abi: NativeAbi) {
    this.#words = new Uint32Array(arena);
    this.#doubles = new Float64Array(arena);
    this.#segments = new SegmentWriter(this.#words, this.#doubles, domain, maxSegments, abi);
    this.#abi = abi;
    this.#recordBytes = abi.receive.bytes + maxSegments * abi.segment.bytes;
    this.#max = max;
  }

  /** False when it is full. */
  add(segments: Segments | null, id: number): boolean {
    if (!Number.isSafeInteger(id) || id < 0) throw new RangeError(`id ${id} is not from 0 to 2^53 - 1`);
    if (this.queued >= this.#max) return false;
    const at = this.queued * this.#recordBytes;
    const count = this.#segments.write(segments, at + this.#abi.receive.bytes, true);
    this.#doubles[(at + this.#abi.receive.id) / 8] = id;
    this.#words[(at + this.#abi.receive.segmentCount) / 4] = count;
    this.queued++;
    return true;
  }
}
