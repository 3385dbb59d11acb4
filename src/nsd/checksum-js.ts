import { SECTOR_BYTES } from '../common/units.js';
import { crc32cJs } from '../native/crc32c-js.js';
import type { Checksums } from './checksums.js';

/** The checksums without the native core: for tests, for the simulator, and for tools on machines that lack it. */
export const checksumsJs: Checksums = {
  sectors(bytes, offsetBytes, sectorCount, out, outIndex) {
    for (let i = 0; i < sectorCount; i++) {
      const at = offsetBytes + i * SECTOR_BYTES;
      out[outIndex + i] = crc32cJs(bytes.subarray(at, at + SECTOR_BYTES));
    }
  },
  bytes: (bytes) => crc32cJs(bytes),
};
