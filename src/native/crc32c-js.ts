/**
 * CRC-32C in JavaScript: for the simulator, which runs without the native addon, and to compare the addon with.
 *
 * Castagnoli's polynomial, reflected; one table of 256 entries (Sarwate 1988). Same results as crc32c of core.ts.
 */
const POLYNOMIAL_REFLECTED = 0x82f63b78;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? POLYNOMIAL_REFLECTED : 0);
  return value >>> 0;
});

/** `seed` is the checksum of the bytes before these. */
export function crc32cJs(bytes: Uint8Array, seed = 0): number {
  let state = ~seed;
  for (let i = 0; i < bytes.length; i++) state = (state >>> 8) ^ TABLE[(state ^ bytes[i]!) & 0xff]!;
  return ~state >>> 0;
}
