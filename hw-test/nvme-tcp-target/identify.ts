import { createHash } from 'node:crypto';

/** What this target says of itself: Identify data structures, NVM Express Base Specification 2.0, section 5.17.2, and NVM Command Set Specification 1.0, section 4.1.5. */
export const NVME_VERSION = 0x0001_0400;
export const IDENTIFY_BYTES = 4096;
/** MDTS, in units of 4 KiB as a power of two: 128 KiB. */
const TRANSFER_SHIFT = 5;
export const TRANSFER_BYTES_MAX = 4096 << TRANSFER_SHIFT;
/** Data of this size travels within the command's capsule, more is asked for by R2T. */
export const IN_CAPSULE_BYTES = 4096;
export const QUEUE_ENTRIES_MAX = 128;
export const EVENT_REQUESTS_MAX = 4;
/** ONCS: reservations. */
const HAS_RESERVATIONS = 0x20;
/** RESCAP: through power loss, each of the six types, and the ignore-existing-key bit as of NVMe 1.3. */
const RESERVATION_CAPABILITIES = 0xff;

function page(): { readonly bytes: Uint8Array; readonly view: DataView } {
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  return { bytes, view: new DataView(bytes.buffer) };
}

function text(bytes: Uint8Array, offset: number, length: number, value: string, filler: number): void {
  bytes.fill(filler, offset, offset + length);
  bytes.set(Buffer.from(value, 'latin1').subarray(0, length), offset);
}

export function identifyController(subsystemNqn: string, controllerId: number): Uint8Array {
  const { bytes, view } = page();
  text(bytes, 4, 20, digestOf(subsystemNqn).toString('hex').slice(0, 20), 0x20);
  text(bytes, 24, 40, 'test target with reservations', 0x20);
  text(bytes, 64, 8, '1', 0x20);
  bytes[76] = 2; // CMIC: several controllers
  bytes[77] = TRANSFER_SHIFT;
  view.setUint16(78, controllerId, true);
  view.setUint32(80, NVME_VERSION, true);
  view.setUint32(96, 1, true); // CTRATT: host identifiers of 128 bits
  bytes[111] = 1; // CNTRLTYPE: I/O controller
  bytes[258] = 3; // ACL
  bytes[259] = EVENT_REQUESTS_MAX - 1;
  bytes[260] = 3; // FRMW: one slot, read-only
  view.setUint16(320, 1, true); // KAS: keep alive in units of 100 ms
  bytes[512] = 0x66;
  bytes[513] = 0x44;
  view.setUint16(514, QUEUE_ENTRIES_MAX, true);
  view.setUint32(516, 1, true);
  view.setUint16(520, HAS_RESERVATIONS, true);
  bytes[525] = 1; // VWC
  view.setUint32(536, (1 << 20) | 1, true); // SGLS: supported, as an offset into the capsule too
  text(bytes, 768, 256, subsystemNqn, 0);
  view.setUint32(1792, (64 + IN_CAPSULE_BYTES) / 16, true);
  view.setUint32(1796, 1, true);
  bytes[1803] = 1; // MSDBD
  return bytes;
}

export function identifyNamespace(blockCount: number, blockBytes: number): Uint8Array {
  const { bytes, view } = page();
  for (const offset of [0, 8, 16]) view.setBigUint64(offset, BigInt(blockCount), true);
  bytes[30] = 1; // NMIC: shared
  bytes[31] = RESERVATION_CAPABILITIES;
  view.setUint32(128, Math.log2(blockBytes) << 16, true);
  return bytes;
}

export function namespaceList(after: number): Uint8Array {
  const { bytes, view } = page();
  if (after < 1) view.setUint32(0, 1, true);
  return bytes;
}

/** One descriptor, a UUID: two subsystems that show the same blocks must not share it, or Linux takes the second for a mistake. */
export function namespaceDescriptors(subsystemNqn: string): Uint8Array {
  const { bytes } = page();
  bytes.set([3, 16]);
  bytes.set(digestOf(subsystemNqn).subarray(0, 16), 4);
  bytes[4 + 6] = (bytes[4 + 6]! & 0x0f) | 0x50;
  bytes[4 + 8] = (bytes[4 + 8]! & 0x3f) | 0x80;
  return bytes;
}

const digestOf = (nqn: string): Buffer => createHash('sha256').update(nqn).digest();
