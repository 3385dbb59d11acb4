import { FsError } from '../common/errors.js';
import { copyWordsFrom, copyWordsTo } from './words.js';

const SHORT_PART_BYTES = 64;

/**
 * Fixed little-endian encoding for message bodies and disk structures. The writer grows by itself; the reader checks every
 * access against the end, every integer against the safe range, and every count against a limit named by the caller.
 */
export class ByteWriter {
  #bytes: Uint8Array;
  #view: DataView;
  #length = 0;

  constructor(capacityBytes = 256) {
    this.#bytes = new Uint8Array(capacityBytes);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get lengthBytes(): number {
    return this.#length;
  }

  #room(bytes: number): number {
    const at = this.#length;
    const need = at + bytes;
    if (need > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(need, this.#bytes.length * 2));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length = need;
    return at;
  }

  u8(value: number): this {
    const at = this.#room(1);
    this.#view.setUint8(at, value);
    return this;
  }
  u16(value: number): this {
    const at = this.#room(2);
    this.#view.setUint16(at, value, true);
    return this;
  }
  u32(value: number): this {
    const at = this.#room(4);
    this.#view.setUint32(at, value, true);
    return this;
  }
  /** A safe integer from 0 on, as 64 bits. */
  u64(value: number): this {
    const at = this.#room(8);
    this.#view.setUint32(at, value % 2 ** 32, true);
    this.#view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
    return this;
  }
  /** u32 each, no count. */
  words(values: Uint32Array): this {
    const at = this.#room(values.length * 4);
    copyWordsTo(values, this.#bytes, at);
    return this;
  }
  i64(value: bigint): this {
    const at = this.#room(8);
    this.#view.setBigInt64(at, value, true);
    return this;
  }
  /** Bytes as they are, no length. */
  raw(value: Uint8Array): this {
    const at = this.#room(value.length);
    this.#bytes.set(value, at);
    return this;
  }
  /** u32 length, then the bytes. */
  bytes(value: Uint8Array): this {
    return this.u32(value.length).raw(value);
  }
  string(value: string): this {
    return this.bytes(Buffer.from(value, 'utf8'));
  }
  zeros(count: number): this {
    const at = this.#room(count);
    this.#bytes.fill(0, at, at + count);
    return this;
  }
  /** A view of what has been written; valid until the next write. */
  finish(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }
  reset(): this {
    this.#length = 0;
    return this;
  }
  /** Instead of what was written there. */
  u16At(at: number, value: number): void {
    this.#view.setUint16(at, value, true);
  }
  u32At(at: number, value: number): void {
    this.#view.setUint32(at, value, true);
  }
  /** Part of other bytes, as they are. */
  part(from: Uint8Array, start: number, end: number): this {
    const at = this.#room(end - start);
    const bytes = this.#bytes;
    // A view costs more than the few bytes that most parts are.
    if (end - start > SHORT_PART_BYTES) bytes.set(from.subarray(start, end), at);
    else for (let i = start; i < end; i++) bytes[at + i - start] = from[i]!;
    return this;
  }
}

export class ByteReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(
    bytes: Uint8Array,
    /** Named in errors: 'nsdRead body'. */
    readonly what: string,
  ) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get remainingBytes(): number {
    return this.#bytes.length - this.#at;
  }

  bad(detail: string): FsError {
    return new FsError('badFrame', { op: 'decode', object: this.what, detail });
  }

  #take(bytes: number): number {
    const at = this.#at;
    if (at + bytes > this.#bytes.length)
      throw this.bad(`ends at byte ${this.#bytes.length}, ${bytes} more wanted at ${at}`);
    this.#at = at + bytes;
    return at;
  }

  u8(): number {
    return this.#view.getUint8(this.#take(1));
  }
  u16(): number {
    return this.#view.getUint16(this.#take(2), true);
  }
  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }
  u64(): number {
    const at = this.#take(8);
    const high = this.#view.getUint32(at + 4, true);
    if (high > 0x1fffff) throw this.bad(`integer beyond 2^53 at ${at}`);
    return high * 2 ** 32 + this.#view.getUint32(at, true);
  }
  /** u32 each, copied. */
  words(count: number): Uint32Array {
    return copyWordsFrom(this.#bytes, this.#take(count * 4), count);
  }
  i64(): bigint {
    return this.#view.getBigInt64(this.#take(8), true);
  }
  skip(lengthBytes: number): void {
    this.#take(lengthBytes);
  }
  /** A view, not a copy. */
  raw(lengthBytes: number): Uint8Array {
    const at = this.#take(lengthBytes);
    return this.#bytes.subarray(at, at + lengthBytes);
  }
  bytes(limitBytes: number): Uint8Array {
    return this.raw(this.count(limitBytes));
  }
  string(limitBytes: number): string {
    return Buffer.from(this.bytes(limitBytes)).toString('utf8');
  }
  /** A u32 that counts something: refused beyond the limit before anything is allocated for it. */
  count(limit: number): number {
    const value = this.u32();
    if (value > limit) throw this.bad(`count ${value} over the limit of ${limit}`);
    return value;
  }
  end(): void {
    if (this.remainingBytes !== 0) throw this.bad(`${this.remainingBytes} bytes too many`);
  }
}
