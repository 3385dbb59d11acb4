import { invalidArgType } from './node-errors.js';

/** What writeFile takes and what readFile gathers. */
export type WritableData =
  | string
  | NodeJS.ArrayBufferView
  | Iterable<string | NodeJS.ArrayBufferView>
  | AsyncIterable<string | NodeJS.ArrayBufferView>;

/** Read beyond the size that stat told, so that the end of file shows without another read. */
const PROBE_BYTES = 1;
const UNKNOWN_SIZE_BYTES = 65_536;

/** The type guard that node's own typings lack. */
export const isView = (value: unknown): value is NodeJS.ArrayBufferView => ArrayBuffer.isView(value);

const asBytes = (view: NodeJS.ArrayBufferView): Uint8Array =>
  new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

/** The bytes when they are all here already, else null. @throws {TypeError} ERR_INVALID_ARG_TYPE as node's writeFile. */
export function wholeBytes(data: unknown, encoding: BufferEncoding): Uint8Array | null {
  if (typeof data === 'string') return Buffer.from(data, encoding);
  if (isView(data)) return asBytes(data);
  if (typeof data === 'object' && data !== null && (Symbol.asyncIterator in data || Symbol.iterator in data))
    return null;
  throw invalidArgType('data', 'of type string or an instance of Buffer, TypedArray, or DataView', data);
}

/** Chunk by chunk. The argument is checked at once, not at the first chunk. */
export function toChunks(
  data: WritableData,
  encoding: BufferEncoding,
): Iterable<Uint8Array> | AsyncIterable<Uint8Array> {
  const whole = wholeBytes(data, encoding);
  if (whole !== null) return [whole];
  return (async function* () {
    for await (const chunk of data as AsyncIterable<string | NodeJS.ArrayBufferView>) {
      if (typeof chunk === 'string') yield Buffer.from(chunk, encoding);
      else if (isView(chunk)) yield asBytes(chunk);
      else throw invalidArgType('data', 'of type string or an instance of Buffer, TypedArray, or DataView', chunk);
    }
  })();
}

/** Reads until `read` answers 0 or short of what it was asked for. */
export async function collect(expectedBytes: number, read: (target: Uint8Array) => Promise<number>): Promise<Buffer> {
  let bytes = Buffer.allocUnsafeSlow((expectedBytes === 0 ? UNKNOWN_SIZE_BYTES : expectedBytes) + PROBE_BYTES);
  let filled = 0;
  for (;;) {
    const room = bytes.length - filled;
    const count = await read(bytes.subarray(filled));
    filled += count;
    if (count < room) return bytes.subarray(0, filled);
    const grown = Buffer.allocUnsafeSlow(bytes.length * 2);
    bytes.copy(grown, 0, 0, filled);
    bytes = grown;
  }
}
