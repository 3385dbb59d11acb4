import { FsError, type FsErrorRecord } from '../common/errors.js';

/**
 * How admin calls cross a unix socket: u32 length, big-endian, then that many bytes of JSON. Requests {id, method, params},
 * answers {id, result} or {id, error}.
 *
 * Fault model: the other side may send anything; a length beyond the limit or bytes that are no JSON end the connection.
 */
export const ADMIN_REQUEST_BYTES_MAX = 1 << 20;
export const ADMIN_REPLY_BYTES_MAX = 64 << 20;

export interface AdminRequest {
  readonly id: number;
  readonly method: string;
  readonly params: unknown;
}
export type AdminReply =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: FsErrorRecord };

export function encodeAdminFrame(value: AdminRequest | AdminReply): Buffer {
  const body = Buffer.from(JSON.stringify(value));
  const frame = Buffer.allocUnsafe(4 + body.length);
  frame.writeUInt32BE(body.length, 0);
  body.copy(frame, 4);
  return frame;
}

/** Puts frames together from whatever pieces arrive. */
export class AdminFrames {
  #pieces: Buffer[] = [];
  #bufferedBytes = 0;

  constructor(readonly frameBytesMax: number) {}

  /** @throws {FsError} tooLarge, badFrame: nothing that follows can be understood. */
  push(piece: Buffer): unknown[] {
    this.#pieces.push(piece);
    this.#bufferedBytes += piece.length;
    const values: unknown[] = [];
    for (let frame = this.#next(); frame !== null; frame = this.#next()) {
      try {
        values.push(JSON.parse(frame.toString('utf8')));
      } catch (error) {
        throw new FsError('badFrame', { op: 'admin', detail: 'a frame that is no JSON', cause: error });
      }
    }
    return values;
  }

  #next(): Buffer | null {
    if (this.#bufferedBytes < 4) return null;
    if (this.#pieces[0]!.length < 4) this.#merge();
    const length = this.#pieces[0]!.readUInt32BE(0);
    if (length > this.frameBytesMax)
      throw new FsError('tooLarge', {
        op: 'admin',
        detail: `a frame of ${length} bytes, ${this.frameBytesMax} are allowed`,
      });
    if (this.#bufferedBytes < 4 + length) return null;
    if (this.#pieces[0]!.length < 4 + length) this.#merge();
    const first = this.#pieces[0]!;
    this.#pieces[0] = first.subarray(4 + length);
    if (this.#pieces[0].length === 0) this.#pieces.shift();
    this.#bufferedBytes -= 4 + length;
    return first.subarray(4, 4 + length);
  }

  #merge(): void {
    this.#pieces = [Buffer.concat(this.#pieces)];
  }
}
