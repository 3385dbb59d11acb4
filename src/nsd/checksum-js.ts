import { SECTOR_BYTES } from '../common/units.js';
import type { Checksums } from './checksums.js';

/**
 * CRC32C in JavaScript, slicing by four (Kounavis and Berry, ISCC 2005, cut to one word): for tests, for the simulator and for
 * tools on machines without the native core. About 0.5 GB/s; same values as the core's.
 */
const TABLES: readonly Uint32Array[] = makeTables();

function makeTables(): Uint32Array[] {
  const tables = [0, 1, 2, 3].map(() => new Uint32Array(256));
  const first = tables[0]!;
  for (let n = 0; n < 256; n++) {
    let crc = n;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    first[n] = crc >>> 0;
  }
  for (let k = 1; k < 4; k++)
    for (let n = 0; n < 256; n++) {
      const previous = tables[k - 1]![n]!;
      tables[k]![n] = (first[previous & 0xff]! ^ (previous >>> 8)) >>> 0;
    }
  return tables;
}

/** CRC32C of a range of bytes, unsigned. */
export function crc32c(bytes: Uint8Array, offsetBytes = 0, lengthBytes = bytes.length - offsetBytes): number {
  const [t0, t1, t2, t3] = TABLES as [Uint32Array, Uint32Array, Uint32Array, Uint32Array];
  let crc = 0xffffffff;
  let at = offsetBytes;
  const end = offsetBytes + lengthBytes;
  for (; at + 4 <= end; at += 4) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    crc = t3[crc & 0xff]! ^ t2[(crc >>> 8) & 0xff]! ^ t1[(crc >>> 16) & 0xff]! ^ t0[crc >>> 24]!;
  }
  for (; at < end; at++) crc = t0[(crc ^ bytes[at]!) & 0xff]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

export const checksumsJs: Checksums = {
  sectors(bytes, offsetBytes, sectorCount, out, outIndex) {
    for (let i = 0; i < sectorCount; i++)
      out[outIndex + i] = crc32c(bytes, offsetBytes + i * SECTOR_BYTES, SECTOR_BYTES);
  },
};
