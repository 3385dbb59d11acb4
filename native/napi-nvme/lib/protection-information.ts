/**
 * Protection information of 8 bytes per block, as the host can make and check it itself: a guard (CRC-16 of the block, polynomial 0x8BB7), an
 * application tag, a reference tag, all big-endian (T10 SBC-3; NVM Command Set Specification 1.0, section 5.2.1).
 */
export interface ProtectionTags {
  /** Of the first block; it counts up with types 1 and 2. */
  readonly referenceTag: number;
  readonly applicationTag?: number;
}

export const PROTECTION_BYTES = 8;

const TABLE = Uint16Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 8;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 0x8000) !== 0 ? (crc << 1) ^ 0x8bb7 : crc << 1;
  return crc & 0xffff;
});

export function guardOf(bytes: Uint8Array): number {
  let crc = 0;
  for (const byte of bytes) crc = ((crc << 8) & 0xffff) ^ TABLE[(crc >> 8) ^ byte]!;
  return crc;
}

/** One record for each block of `bytes`. */
export function protectionInformation(bytes: Uint8Array, lbaBytes: number, tags: ProtectionTags): Uint8Array {
  if (lbaBytes <= 0 || bytes.byteLength % lbaBytes !== 0) throw new RangeError(`not whole blocks of ${lbaBytes} bytes`);
  const count = bytes.byteLength / lbaBytes;
  const made = new Uint8Array(count * PROTECTION_BYTES);
  const view = new DataView(made.buffer);
  for (let block = 0; block < count; block++) {
    view.setUint16(block * 8, guardOf(bytes.subarray(block * lbaBytes, (block + 1) * lbaBytes)));
    view.setUint16(block * 8 + 2, tags.applicationTag ?? 0);
    view.setUint32(block * 8 + 4, (tags.referenceTag + block) >>> 0);
  }
  return made;
}
