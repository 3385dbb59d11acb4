import { endianness } from 'node:os';

/**
 * Many u32 at once, between typed arrays (which have the machine's byte order) and little-endian bytes: one copy where the orders are
 * the same, which is on every machine that Holdfast is likely to meet.
 */
const SAME_ORDER = endianness() === 'LE';

export function copyWordsTo(words: Uint32Array, bytes: Uint8Array, atByte: number): void {
  if (SAME_ORDER) {
    bytes.set(new Uint8Array(words.buffer, words.byteOffset, words.byteLength), atByte);
    return;
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (const [i, word] of words.entries()) view.setUint32(atByte + i * 4, word, true);
}

export function copyWordsFrom(bytes: Uint8Array, atByte: number, count: number): Uint32Array {
  const words = new Uint32Array(count);
  if (SAME_ORDER) {
    new Uint8Array(words.buffer).set(bytes.subarray(atByte, atByte + count * 4));
    return words;
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let i = 0; i < count; i++) words[i] = view.getUint32(atByte + i * 4, true);
  return words;
}
