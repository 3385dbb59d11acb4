import { FsError } from '../common/errors.js';
import { getU64, setU64 } from '../protocol/frame.js';

/**
 * What crosses an RDMA link: greetings in the connection manager's private data, units (one per SEND), names of windows with
 * their keys. All of it little-endian, all of it checked before it is believed.
 *
 * Unit, 24 bytes and the payload, never without these 24:
 *
 *     0  u16  magic          'HR'
 *     2  u8   version
 *     3  u8   kind           UnitKind
 *     4  u32  payloadBytes
 *     8  u32  number         of the unit in its direction, from 1, modulo 2^32, without gaps
 *    12  u32  limit          the other side may send units up to this number: so many receives are posted
 *    16  u32  zero
 *    20  u32  crc32c         over the unit with zeros here
 *
 * Payloads: record: 128 bytes of handshake. frames: whole frames. part: u32 totalBytes, u32 offset, a part of a frame that fits
 * into no unit. credit: nothing. All others begin with a prefix of 40 bytes:
 *
 *     0  u32  transfer       id, the initiator's
 *     4  u32  detail         write, readData: bit 0 last piece. done, bindAnswer: status. bindRequest: 1 read, 2 write
 *     8  u64  windowId       with its secret the first 16 bytes of the window's name
 *    16  u64  windowSecret
 *    24  u64  offsetBytes    in the window; readData: in the transfer
 *    32  u32  lengthBytes    of the data; readRequest: wanted; bindAnswer: runs that follow
 *    36  u32  zero
 *
 * Name of a window: 16 bytes identity, then, where the owner has bound it on a link, the keys for that link: u32 owner's number of
 * the link, u32 count of runs, and per run u64 address, u32 length, u32 key.
 */
export const RDMA_VERSION = 1;
export const GREETING_BYTES = 56;
const GREETING_MAGIC = 0x44524648; // 'HFRD'
const REJECTION_MAGIC = 0x4e524648; // 'HFRN'
const CLUSTER_HASH_BYTES = 8;
const NONCE_BYTES = 16;

/** Private data of request and answer; the proofs of the handshake cover both. */
export interface Greeting {
  readonly version: number;
  /** 8 bytes of the cluster id's hash. */
  readonly cluster: Uint8Array;
  readonly nodeId: number;
  readonly incarnation: number;
  /** The sender's number of this link, unique in its life: keys are good for one link. */
  readonly linkNumber: number;
  readonly receives: number;
  readonly unitBytesMax: number;
  /** Whether windows can be bound at the sender's. */
  readonly windows: boolean;
  readonly nonce: Uint8Array;
}

export function encodeGreeting(greeting: Greeting): Uint8Array {
  const bytes = new Uint8Array(GREETING_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, GREETING_MAGIC, true);
  view.setUint16(4, greeting.version, true);
  view.setUint16(6, greeting.windows ? 1 : 0, true);
  bytes.set(greeting.cluster.subarray(0, CLUSTER_HASH_BYTES), 8);
  view.setUint32(16, greeting.nodeId, true);
  view.setUint32(20, greeting.incarnation, true);
  view.setUint32(24, greeting.linkNumber, true);
  view.setUint32(28, greeting.receives, true);
  view.setUint32(32, greeting.unitBytesMax, true);
  bytes.set(greeting.nonce.subarray(0, NONCE_BYTES), 36);
  return bytes;
}

export const Rejection = { malformed: 1, wrongVersion: 2, wrongCluster: 3, crowd: 4, closing: 5 } as const;
export type Rejection = (typeof Rejection)[keyof typeof Rejection];
const REJECTION_NAMES: Record<Rejection, string> = {
  [Rejection.malformed]: 'malformed',
  [Rejection.wrongVersion]: 'wrongVersion',
  [Rejection.wrongCluster]: 'wrongCluster',
  [Rejection.crowd]: 'crowd',
  [Rejection.closing]: 'closing',
};
export const rejectionName = (rejection: Rejection): string => REJECTION_NAMES[rejection];

/** A greeting that may be believed as far as its form goes, or why not. Private data comes padded with zeros. */
export function judgeGreeting(bytes: Uint8Array, cluster: Uint8Array, version: number): Greeting | Rejection {
  if (bytes.length < GREETING_BYTES) return Rejection.malformed;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, true) !== GREETING_MAGIC) return Rejection.malformed;
  if (view.getUint16(4, true) !== version) return Rejection.wrongVersion;
  for (let i = 0; i < CLUSTER_HASH_BYTES; i++) if (bytes[8 + i] !== cluster[i]) return Rejection.wrongCluster;
  const greeting: Greeting = {
    version,
    windows: (view.getUint16(6, true) & 1) !== 0,
    cluster: bytes.slice(8, 8 + CLUSTER_HASH_BYTES),
    nodeId: view.getUint32(16, true),
    incarnation: view.getUint32(20, true),
    linkNumber: view.getUint32(24, true),
    receives: view.getUint32(28, true),
    unitBytesMax: view.getUint32(32, true),
    nonce: bytes.slice(36, 36 + NONCE_BYTES),
  };
  const plausible =
    greeting.nodeId >= 1 &&
    greeting.nodeId <= 0xffff &&
    greeting.incarnation >= 1 &&
    greeting.receives >= RECEIVES_MIN &&
    greeting.receives <= RECEIVES_MAX &&
    greeting.unitBytesMax >= UNIT_BYTES_MIN &&
    greeting.unitBytesMax <= UNIT_BYTES_MAX;
  return plausible ? greeting : Rejection.malformed;
}
export const RECEIVES_MIN = 4;
export const RECEIVES_MAX = 4096;
export const UNIT_BYTES_MIN = 1024;
export const UNIT_BYTES_MAX = 1 << 20;

export function encodeRejection(rejection: Rejection): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, REJECTION_MAGIC, true);
  view.setUint16(4, RDMA_VERSION, true);
  view.setUint16(6, rejection, true);
  return bytes;
}
/** Null: the connection manager refused by itself, or somebody who speaks something else. */
export function readRejection(bytes: Uint8Array | null): Rejection | null {
  if (bytes === null || bytes.length < 8) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, true) !== REJECTION_MAGIC) return null;
  const value = view.getUint16(6, true);
  return value in REJECTION_NAMES ? (value as Rejection) : null;
}

/** What `connect` of a VerbsPort throws when the other side said no. */
export class VerbsRejected extends FsError {
  constructor(
    object: string,
    readonly privateData: Uint8Array | null,
    cause?: unknown,
  ) {
    super('unreachable', { op: 'fabric.dial', object, detail: 'the other side refused the connection', cause });
  }
}

export const UNIT_HEADER_BYTES = 24;
const UNIT_MAGIC = 0x5248; // 'HR'
export const UnitKind = {
  record: 1,
  frames: 2,
  part: 3,
  credit: 4,
  write: 5,
  readRequest: 6,
  readData: 7,
  done: 8,
  bindRequest: 9,
  bindAnswer: 10,
} as const;
export type UnitKind = (typeof UnitKind)[keyof typeof UnitKind];
const UNIT_KIND_MAX = UnitKind.bindAnswer;
export const UNIT_AT = { kind: 3, payloadBytes: 4, number: 8, limit: 12, crc: 20 } as const;

export const PART_PREFIX_BYTES = 8;
export const PREFIX_BYTES = 40;
export const PIECE_LAST = 1;
/** A bindAnswer's status beyond those of TransferStatus: there are no keys now, move it by messages. */
export const BIND_BY_MESSAGES = 16;

export function writeUnitHeader(
  view: DataView,
  at: number,
  kind: UnitKind,
  payloadBytes: number,
  number: number,
  limit: number,
): void {
  view.setUint32(at, UNIT_MAGIC | (RDMA_VERSION << 16) | (kind << 24), true);
  view.setUint32(at + UNIT_AT.payloadBytes, payloadBytes, true);
  view.setUint32(at + UNIT_AT.number, number, true);
  view.setUint32(at + UNIT_AT.limit, limit, true);
  view.setUint32(at + 16, 0, true);
  view.setUint32(at + UNIT_AT.crc, 0, true);
}

/** Null when the header fits the bytes that arrived, else what is wrong with it: the last part of a counter's name. */
export function judgeUnit(
  view: DataView,
  at: number,
  arrivedBytes: number,
): 'badMagic' | 'badVersion' | 'badKind' | 'badLength' | null {
  if (arrivedBytes < UNIT_HEADER_BYTES) return 'badLength';
  const word = view.getUint32(at, true);
  if ((word & 0xffff) !== UNIT_MAGIC) return 'badMagic';
  if (((word >>> 16) & 0xff) !== RDMA_VERSION) return 'badVersion';
  const kind = word >>> 24;
  if (kind === 0 || kind > UNIT_KIND_MAX) return 'badKind';
  if (view.getUint32(at + UNIT_AT.payloadBytes, true) !== arrivedBytes - UNIT_HEADER_BYTES) return 'badLength';
  return null;
}

export interface Prefix {
  readonly transfer: number;
  readonly detail: number;
  readonly windowId: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** `name`: of the window, of which the first 16 bytes count; null writes zeros. */
export function writePrefix(
  bytes: Uint8Array,
  view: DataView,
  at: number,
  transfer: number,
  detail: number,
  name: Uint8Array | null,
  offsetBytes: number,
  lengthBytes: number,
): void {
  view.setUint32(at, transfer, true);
  view.setUint32(at + 4, detail, true);
  if (name === null) bytes.fill(0, at + 8, at + 24);
  else bytes.set(name.subarray(0, IDENTITY_BYTES), at + 8);
  setU64(view, at + 24, offsetBytes);
  view.setUint32(at + 32, lengthBytes, true);
  view.setUint32(at + 36, 0, true);
}
export const readPrefix = (view: DataView, at: number): Prefix => ({
  transfer: view.getUint32(at, true),
  detail: view.getUint32(at + 4, true),
  windowId: getU64(view, at + 8),
  offsetBytes: getU64(view, at + 24),
  lengthBytes: view.getUint32(at + 32, true),
});

/** A contiguous run of a window, as the peer's side of a link reaches it. */
export interface Run {
  readonly address: number;
  readonly lengthBytes: number;
  readonly key: number;
}
export const IDENTITY_BYTES = 16;
export const RUN_BYTES = 16;
const NAME_HEADER_BYTES = IDENTITY_BYTES + 8;
/** Windows of more runs are named without keys; the peer asks for them on the link. */
export const NAME_RUNS_MAX = 64;
export const NAME_BYTES_MAX = NAME_HEADER_BYTES + NAME_RUNS_MAX * RUN_BYTES;

export interface NamedKeys {
  readonly linkNumber: number;
  readonly runs: readonly Run[];
}

export function encodeName(identity: Uint8Array, keys: NamedKeys | null): Uint8Array {
  if (keys === null) return identity.slice(0, IDENTITY_BYTES);
  const bytes = new Uint8Array(NAME_HEADER_BYTES + keys.runs.length * RUN_BYTES);
  bytes.set(identity.subarray(0, IDENTITY_BYTES));
  const view = new DataView(bytes.buffer);
  view.setUint32(IDENTITY_BYTES, keys.linkNumber, true);
  view.setUint32(IDENTITY_BYTES + 4, keys.runs.length, true);
  writeRuns(view, NAME_HEADER_BYTES, keys.runs);
  return bytes;
}

/** The keys in a name; null where there are none, or none that make sense. */
export function readKeys(name: Uint8Array): NamedKeys | null {
  if (name.length <= NAME_HEADER_BYTES) return null;
  const view = new DataView(name.buffer, name.byteOffset, name.byteLength);
  const count = view.getUint32(IDENTITY_BYTES + 4, true);
  if (count === 0 || count > NAME_RUNS_MAX || name.length !== NAME_HEADER_BYTES + count * RUN_BYTES) return null;
  return { linkNumber: view.getUint32(IDENTITY_BYTES, true), runs: readRuns(view, NAME_HEADER_BYTES, count) };
}

export function writeRuns(view: DataView, at: number, runs: readonly Run[]): void {
  for (const run of runs) {
    setU64(view, at, run.address);
    view.setUint32(at + 8, run.lengthBytes, true);
    view.setUint32(at + 12, run.key, true);
    at += RUN_BYTES;
  }
}
export function readRuns(view: DataView, at: number, count: number): Run[] {
  const runs: Run[] = [];
  for (let i = 0; i < count; i++, at += RUN_BYTES) {
    runs.push({
      address: getU64(view, at),
      lengthBytes: view.getUint32(at + 8, true),
      key: view.getUint32(at + 12, true),
    });
  }
  return runs;
}

/** a - b of numbers that wrap at 2^32. */
export const distance = (a: number, b: number): number => (a - b) | 0;
