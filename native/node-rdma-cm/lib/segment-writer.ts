import { RdmaError } from './errors.js';
import type { LocalSegment, ProtectionDomain } from './memory.js';
import type { NativeAbi } from './native.js';

const NONE: readonly LocalSegment[] = [];

/** @internal */
export type Segments = LocalSegment | readonly LocalSegment[];

/** @internal Writes segments behind a record of an arena, checked. */
export class SegmentWriter {
  readonly #words: Uint32Array;
  readonly #doubles: Float64Array;
  readonly #domain: ProtectionDomain;
  readonly #max: number;
  readonly #strideBytes: number;
  readonly #regionAt: number;
  readonly #lengthAt: number;
  readonly #offsetAt: number;

  constructor(words: Uint32Array, doubles: Float64Array, domain: ProtectionDomain, max: number, abi: NativeAbi) {
    this.#words = words;
    this.#doubles = doubles;
    this.#domain = domain;
    this.#max = max;
    this.#strideBytes = abi.segment.bytes;
    this.#regionAt = abi.segment.region;
    this.#lengthAt = abi.segment.length;
    this.#offsetAt = abi.segment.offset;
  }

  /** Returns how many there were. Nothing of the record counts before its segments are all good. */
  write(segments: Segments | null, atBytes: number, emptyAllowed: boolean): number {
    if (segments === null) segments = NONE;
    if (!('length' in segments)) {
      this.#one(segments, atBytes);
      return 1;
    }
    if (segments.length > this.#max) throw new RangeError(`${segments.length} segments, this queue takes ${this.#max}`);
    if (segments.length === 0 && !emptyAllowed) throw new RangeError('a message of no bytes: soft-RoCE fails on these');
    for (let index = 0; index < segments.length; index++)
      this.#one(segments[index] as LocalSegment, atBytes + index * this.#strideBytes);
    return segments.length;
  }

  #one(segment: LocalSegment, atBytes: number): void {
    const { region, offsetBytes, lengthBytes } = segment;
    if (region.protectionDomain !== this.#domain)
      throw new TypeError('the memory region is of another protection domain');
    if (region.closed) throw new RdmaError('EBADF', 'queue', 'it is closed', { object: 'memory region' });
    if (!(Number.isInteger(offsetBytes) && offsetBytes >= 0))
      throw new RangeError(`offsetBytes ${offsetBytes} is no offset`);
    if (!(Number.isInteger(lengthBytes) && lengthBytes >= 1 && lengthBytes <= 0x7fffffff))
      throw new RangeError(`lengthBytes ${lengthBytes} is no length of a segment`);
    if (offsetBytes + lengthBytes > region.lengthBytes)
      throw new RangeError(
        `${lengthBytes} bytes at ${offsetBytes} are not inside of the region's ${region.lengthBytes}`,
      );
    this.#words[(atBytes + this.#regionAt) / 4] = region.slot;
    this.#words[(atBytes + this.#lengthAt) / 4] = lengthBytes;
    this.#doubles[(atBytes + this.#offsetAt) / 8] = offsetBytes;
  }
}
