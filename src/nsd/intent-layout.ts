import { SECTOR_BYTES } from '../common/units.js';
import type { Checksums } from './checksums.js';
import { INTENT_SECTORS_MAX, selfChecksum } from './nsd-layout.js';

/**
 * A sector of an NSD's intent area, format 1 (S1). Little-endian; unnamed bytes are zero.
 *
 *   byte  bytes
 *      0  4   magic "HFIS"
 *      4  4   CRC32C of the sector, this field as zero
 *      8  8   first 8 bytes of the NSD's UUID
 *     16  8   number: counted up by one with every sector written here; sector n of the area holds those that are n modulo I
 *     24  8   oldest: the lowest number that counted when this one was written; what is below has been cleared
 *     32  4   intents in it, 0 to 168
 *     64  24  each: u64 data sector, u32 CRC32C and u32 version word before the write, the same after it
 *
 * The intents that count are those of the numbers from the `oldest` of the highest number on, up to it; several for one data sector are its history
 * since it was last flushed, or longer.
 */
export const INTENTS_PER_SECTOR = 168;
const MAGIC = 0x53494648; // "HFIS"
const CRC_AT = 4;
const HEAD_BYTES = 64;
const INTENT_BYTES = 24;

/** One data sector that is being written over. */
export interface Intent {
  readonly sector: number;
  readonly oldCrc: number;
  readonly oldWord: number;
  readonly newCrc: number;
  readonly newWord: number;
}
export interface IntentSector {
  readonly number: number;
  readonly oldest: number;
  readonly intents: readonly Intent[];
}

const viewOf = (bytes: Uint8Array, offsetBytes: number): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset + offsetBytes, SECTOR_BYTES);

export function encodeIntentSector(
  nsd: Uint8Array,
  sector: IntentSector,
  checksums: Checksums,
  into: Uint8Array,
  offsetBytes: number,
): void {
  const view = viewOf(into, offsetBytes);
  into.fill(0, offsetBytes, offsetBytes + SECTOR_BYTES);
  view.setUint32(0, MAGIC, true);
  into.set(nsd.subarray(0, 8), offsetBytes + 8);
  view.setBigUint64(16, BigInt(sector.number), true);
  view.setBigUint64(24, BigInt(sector.oldest), true);
  view.setUint32(32, sector.intents.length, true);
  let at = HEAD_BYTES;
  for (const intent of sector.intents) {
    view.setUint32(at, intent.sector % 2 ** 32, true);
    view.setUint32(at + 4, Math.floor(intent.sector / 2 ** 32), true);
    view.setUint32(at + 8, intent.oldCrc, true);
    view.setUint32(at + 12, intent.oldWord, true);
    view.setUint32(at + 16, intent.newCrc, true);
    view.setUint32(at + 20, intent.newWord, true);
    at += INTENT_BYTES;
  }
  view.setUint32(CRC_AT, selfChecksum(checksums, into, offsetBytes, CRC_AT), true);
}

/** Null when it can't be believed: never written, torn, or of another place. */
export function decodeIntentSector(
  nsd: Uint8Array,
  place: { readonly slot: number; readonly slotCount: number; readonly dataSectorCount: number },
  checksums: Checksums,
  bytes: Uint8Array,
  offsetBytes: number,
): IntentSector | null {
  const view = viewOf(bytes, offsetBytes);
  if (view.getUint32(0, true) !== MAGIC) return null;
  if (view.getUint32(CRC_AT, true) !== selfChecksum(checksums, bytes, offsetBytes, CRC_AT)) return null;
  for (let i = 0; i < 8; i++) if (bytes[offsetBytes + 8 + i] !== nsd[i]) return null;
  const number = Number(view.getBigUint64(16, true));
  const oldest = Number(view.getBigUint64(24, true));
  const count = view.getUint32(32, true);
  if (!Number.isSafeInteger(number) || number % place.slotCount !== place.slot) return null;
  if (oldest > number + 1 || number - oldest >= INTENT_SECTORS_MAX || count > INTENTS_PER_SECTOR) return null;
  const intents: Intent[] = [];
  for (let i = 0, at = HEAD_BYTES; i < count; i++, at += INTENT_BYTES) {
    const sector = view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
    if (sector >= place.dataSectorCount) return null;
    intents.push({
      sector,
      oldCrc: view.getUint32(at + 8, true),
      oldWord: view.getUint32(at + 12, true),
      newCrc: view.getUint32(at + 16, true),
      newWord: view.getUint32(at + 20, true),
    });
  }
  return { number, oldest, intents };
}
