import * as zlib from 'node:zlib';
import { FsError } from '../common/errors.js';

/**
 * Frames between a proxied client and the daemon's socket.
 *
 *   0 u32 length of the frame, header included      20 u64 ack: no answer below this id is missed any more
 *   4 u16 magic                                     28 u32 length of the JSON
 *   6 u8  version                                   32 u32 CRC-32 of what follows the header
 *   7 u8  kind                                      36 u32 CRC-32 of bytes 0 to 35
 *   8 u16 operation (calls), else 0                 40 JSON in UTF-8, then the payload
 *  10 u16 0
 *  12 u64 id of the call
 *
 * Little-endian. Fault model: anything may arrive. The header is checked before its length is believed, the body's checksum
 * before it is parsed; the first fault ends the connection (nothing after it can be trusted to start where it seems to).
 */
export const FRAME_HEADER_BYTES = 40;
export const FRAME_BYTES_MAX = 16 << 20;
export const PROTOCOL_VERSION = 1;
const MAGIC = 0x4648;

/**
 * saved: the daemon ends, and what was written through the session's handles is durable. taken: the client has these answers, which overtook
 * an older call's.
 */
export const FrameKind = {
  hello: 1,
  welcome: 2,
  call: 3,
  reply: 4,
  error: 5,
  cancel: 6,
  goodbye: 7,
  saved: 8,
  taken: 9,
} as const;
export type FrameKind = (typeof FrameKind)[keyof typeof FrameKind];
const KIND_MAX = 9;

export interface Frame {
  readonly kind: FrameKind;
  readonly op: number;
  readonly id: number;
  readonly ack: number;
  readonly json: unknown;
  readonly payload: Uint8Array;
}

const EMPTY = new Uint8Array(0);

let table: Uint32Array | undefined;
/** For Node before 20.15, which has no zlib.crc32. */
function crc32Slow(bytes: Uint8Array, start: number): number {
  table ??= Uint32Array.from({ length: 256 }, (_, i) => {
    let c = i;
    for (let bit = 0; bit < 8; bit++) c = (c & 1) !== 0 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
    return c;
  });
  let crc = ~start;
  for (const byte of bytes) crc = (crc >>> 8) ^ table[(crc ^ byte) & 0xff]!;
  return ~crc >>> 0;
}
const native = (zlib as { crc32?: (bytes: Uint8Array, start?: number) => number }).crc32;
const crc32 = (bytes: Uint8Array, start = 0): number =>
  native === undefined ? crc32Slow(bytes, start) : native(bytes, start);

const bad = (detail: string): FsError => new FsError('badFrame', { op: 'frame', detail });

/** @returns header and JSON in one buffer; the payload follows it on the wire as it is. @throws {FsError} tooLarge */
export function encodeFrame(frame: {
  kind: FrameKind;
  id: number;
  op?: number;
  ack?: number;
  json?: unknown;
  payload?: Uint8Array | undefined;
}): Buffer {
  const json = frame.json === undefined ? '' : JSON.stringify(frame.json);
  const jsonBytes = Buffer.byteLength(json);
  const payload = frame.payload ?? EMPTY;
  const length = FRAME_HEADER_BYTES + jsonBytes + payload.length;
  if (length > FRAME_BYTES_MAX)
    throw new FsError('tooLarge', { op: 'frame', detail: `${length} bytes, the limit is ${FRAME_BYTES_MAX}` });
  const head = Buffer.allocUnsafe(FRAME_HEADER_BYTES + jsonBytes);
  head.write(json, FRAME_HEADER_BYTES, 'utf8');
  head.writeUInt32LE(length, 0);
  head.writeUInt16LE(MAGIC, 4);
  head.writeUInt8(PROTOCOL_VERSION, 6);
  head.writeUInt8(frame.kind, 7);
  head.writeUInt16LE(frame.op ?? 0, 8);
  head.writeUInt16LE(0, 10);
  writeU64(head, frame.id, 12);
  writeU64(head, frame.ack ?? 0, 20);
  head.writeUInt32LE(jsonBytes, 28);
  const body = crc32(head.subarray(FRAME_HEADER_BYTES));
  head.writeUInt32LE(payload.length === 0 ? body : crc32(payload, body), 32);
  head.writeUInt32LE(crc32(head.subarray(0, 36)), 36);
  return head;
}

function writeU64(to: Buffer, value: number, at: number): void {
  to.writeUInt32LE(value % 2 ** 32, at);
  to.writeUInt32LE(Math.floor(value / 2 ** 32), at + 4);
}
function readU64(from: Buffer, at: number): number {
  const high = from.readUInt32LE(at + 4);
  if (high > 0x1fffff) throw bad('an id beyond 2^53');
  return high * 2 ** 32 + from.readUInt32LE(at);
}

/** Cuts a stream into frames. After it threw, it is of no use any more. */
export class FrameDecoder {
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES);
  #headerFilled = 0;
  #body: Buffer | null = null;
  #bodyFilled = 0;

  /** True while a frame has begun and not ended: what a deadline should watch. */
  get inFrame(): boolean {
    return this.#headerFilled > 0;
  }

  /** @throws {FsError} badFrame, badChecksum, tooLarge, wrongVersion */
  push(chunk: Buffer): Frame[] {
    const frames: Frame[] = [];
    let at = 0;
    while (at < chunk.length) {
      if (this.#body === null) {
        const count = Math.min(FRAME_HEADER_BYTES - this.#headerFilled, chunk.length - at);
        chunk.copy(this.#header, this.#headerFilled, at, at + count);
        at += count;
        this.#headerFilled += count;
        if (this.#headerFilled < FRAME_HEADER_BYTES) break;
        this.#body = Buffer.allocUnsafeSlow(this.#checkHeader());
        this.#bodyFilled = 0;
      }
      const body = this.#body;
      const count = Math.min(body.length - this.#bodyFilled, chunk.length - at);
      chunk.copy(body, this.#bodyFilled, at, at + count);
      at += count;
      this.#bodyFilled += count;
      if (this.#bodyFilled < body.length) break;
      frames.push(this.#finish(body));
      this.#body = null;
      this.#headerFilled = 0;
    }
    return frames;
  }

  /** @returns how many bytes follow the header. */
  #checkHeader(): number {
    const h = this.#header;
    if (h.readUInt16LE(4) !== MAGIC) throw bad('no frame of this protocol');
    if (crc32(h.subarray(0, 36)) !== h.readUInt32LE(36))
      throw new FsError('badChecksum', { op: 'frame', detail: 'the header does not match its checksum' });
    const version = h.readUInt8(6);
    if (version !== PROTOCOL_VERSION)
      throw new FsError('wrongVersion', { op: 'frame', detail: `version ${version}, not ${PROTOCOL_VERSION}` });
    const length = h.readUInt32LE(0);
    if (length > FRAME_BYTES_MAX)
      throw new FsError('tooLarge', { op: 'frame', detail: `${length} bytes, the limit is ${FRAME_BYTES_MAX}` });
    const kind = h.readUInt8(7);
    if (kind < 1 || kind > KIND_MAX) throw bad(`kind ${kind}`);
    if (h.readUInt16LE(10) !== 0) throw bad('reserved bytes in use');
    if (FRAME_HEADER_BYTES + h.readUInt32LE(28) > length) throw bad('more JSON than frame');
    return length - FRAME_HEADER_BYTES;
  }

  #finish(body: Buffer): Frame {
    const h = this.#header;
    if (crc32(body) !== h.readUInt32LE(32))
      throw new FsError('badChecksum', { op: 'frame', detail: 'the body does not match its checksum' });
    const jsonBytes = h.readUInt32LE(28);
    let json: unknown;
    if (jsonBytes > 0) {
      try {
        json = JSON.parse(body.toString('utf8', 0, jsonBytes));
      } catch (cause) {
        throw new FsError('badFrame', { op: 'frame', detail: 'arguments that are no JSON', cause });
      }
    }
    return {
      kind: h.readUInt8(7) as FrameKind,
      op: h.readUInt16LE(8),
      id: readU64(h, 12),
      ack: readU64(h, 20),
      json,
      payload: body.subarray(jsonBytes),
    };
  }
}
