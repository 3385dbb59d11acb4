import { FsError, type Reason } from '../common/errors.js';

/**
 * The frame: what every message and every piece of a one-sided transfer is wrapped in on a stream. This file is the layout's
 * one source; native/tcp/src/frame.h repeats the numbers and a test compares the two (src/fabric/tcp-link.test.ts).
 *
 * Header, 48 bytes, little-endian; the body follows:
 *
 *     0  u16  magic             'HF'
 *     2  u8   version           of this layout
 *     3  u8   kind              FrameKind
 *     4  u32  bodyBytes         limit depends on the kind
 *     8  u32  epoch             the sender's when the frame was made; never goes back within a stream
 *    12  u32  incarnation       the sender's
 *    16  u64  sequence          place in the sender's stream, from 1 without gaps; 0 in frames outside of it
 *    24  u64  ack               highest sequence received in order from the other side
 *    32  u64  requestSequence   request and reply: the sender's number of the request, only ever rising; transfers: their id
 *    40  u16  messageType       MessageType; transferDone: TransferStatus
 *    42  u16  creditMessages    the other side may send up to ack + creditMessages
 *    44  u32  crc32c            Castagnoli, over bytes 0 to 43 and the body (but see flags below)
 *
 * Bodies of write, readRequest and readData begin with a transfer prefix of 32 bytes:
 *
 *     0  u64  windowId          0 in readData
 *     8  u64  windowSecret      0 in readData
 *    16  u64  offsetBytes       in the window; readData: in the transfer
 *    24  u32  lengthBytes       write, readData: of the data that follows; readRequest: wanted
 *    28  u32  flags             bit 0: last piece of the transfer; bit 1: the data is not in the frame's checksum, its users
 *                               have one of their own (readRequest: nor shall it be in those of the answer)
 *
 * Fault model: the bytes may be anything. A header that makes no sense, or a checksum that fails, leaves no way to find the
 * next frame, so the connection ends; what it carried is sent again on the next one.
 */
export const FRAME_MAGIC = 0x4648;
export const FRAME_VERSION = 1;
export const FRAME_HEADER_BYTES = 48;
export const FRAME_AT = {
  magic: 0,
  version: 2,
  kind: 3,
  bodyBytes: 4,
  epoch: 8,
  incarnation: 12,
  sequence: 16,
  ack: 24,
  requestSequence: 32,
  messageType: 40,
  creditMessages: 42,
  crc32c: 44,
} as const;

export const TRANSFER_PREFIX_BYTES = 32;
export const TRANSFER_AT = { windowId: 0, windowSecret: 8, offsetBytes: 16, lengthBytes: 24, flags: 28 } as const;
export const TRANSFER_FLAG_LAST = 1;
export const TRANSFER_FLAG_DATA_UNCHECKED = 2;

/** Body of an ordinary frame. Equal to MESSAGE_BODY_BYTES_MAX of the fabric, which may not be imported from here. */
export const FRAME_BODY_BYTES_MAX = 256 * 1024;
/** Transfers are cut into pieces of this size, so that a message waits for one piece at most. */
export const TRANSFER_CHUNK_BYTES = 256 * 1024;
/** What one transfer may move. */
export const TRANSFER_BYTES_MAX = 8 * 1024 * 1024;

export const FrameKind = {
  /** In the stream: numbered, acknowledged, sent again after a break. */
  message: 1,
  request: 2,
  reply: 3,
  replyError: 4,
  /** First frame of a session on a connection: `ack` says from where to go on. */
  resume: 5,
  ack: 6,
  /** One-sided transfers: of one connection, not of the stream. */
  write: 7,
  readRequest: 8,
  readData: 9,
  transferDone: 10,
} as const;
export type FrameKind = (typeof FrameKind)[keyof typeof FrameKind];
export const FRAME_KIND_MAX = FrameKind.transferDone;
/** Kinds up to this one are in the stream and carry a sequence. */
export const FRAME_KIND_STREAM_MAX = FrameKind.replyError;

export const TransferStatus = {
  landed: 0,
  /** No such window, or closed meanwhile. */
  windowUnknown: 1,
  /** Not this peer's, wrong secret, or the other direction. */
  windowDenied: 2,
  outOfBounds: 3,
  /** Set by the side that started it: the transfer was called off. */
  cancelled: 4,
} as const;
export type TransferStatus = (typeof TransferStatus)[keyof typeof TransferStatus];

/** Why a connection ended, as the native side numbers it. */
export const LinkEnd = {
  closedHere: 0,
  closedByPeer: 1,
  socketError: 2,
  badMagic: 3,
  badVersion: 4,
  badKind: 5,
  badLength: 6,
  badChecksum: 7,
  badTransfer: 8,
  backlogFull: 9,
} as const;
export type LinkEnd = (typeof LinkEnd)[keyof typeof LinkEnd];

interface LinkEndEntry {
  readonly name: string;
  readonly reason: Reason;
  readonly detail: string;
}
/** By LinkEnd: the counter's last part, and how it reads as an error. */
export const LINK_ENDS: readonly LinkEndEntry[] = [
  { name: 'closedHere', reason: 'closed', detail: 'connection closed by this side' },
  { name: 'closedByPeer', reason: 'connectionLost', detail: 'connection closed by the other side' },
  { name: 'socketError', reason: 'connectionLost', detail: 'socket error' },
  { name: 'badMagic', reason: 'badFrame', detail: 'a frame without the magic' },
  { name: 'badVersion', reason: 'wrongVersion', detail: 'a frame of another version' },
  { name: 'badKind', reason: 'badFrame', detail: 'a frame of unknown kind' },
  { name: 'badLength', reason: 'badFrame', detail: 'a frame whose length is not allowed for its kind' },
  { name: 'badChecksum', reason: 'badChecksum', detail: 'a frame whose checksum is wrong' },
  { name: 'badTransfer', reason: 'badFrame', detail: 'a piece of a transfer out of place' },
  { name: 'backlogFull', reason: 'queueFull', detail: 'the other side does not read what it asked for' },
];

export function linkEndError(end: number, object: string, socketError = ''): FsError {
  const entry = LINK_ENDS[end] ?? LINK_ENDS[LinkEnd.socketError]!;
  return new FsError(entry.reason, {
    op: 'fabric.link',
    object,
    detail: socketError === '' ? entry.detail : `${entry.detail}: ${socketError}`,
  });
}

/** Two u32 halves of a safe integer, and back. */
export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, (value / 0x1_0000_0000) >>> 0, true);
}
/** Above 2^53 the result is no longer exact: every such value fails the range checks of those who use it. */
export function getU64(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * 0x1_0000_0000;
}

export interface FrameFields {
  readonly kind: number;
  readonly epoch: number;
  readonly incarnation: number;
  readonly sequence: number;
  readonly ack: number;
  readonly requestSequence: number;
  readonly messageType: number;
  readonly creditMessages: number;
}

/** Writes a header at `at`, all but the checksum, which the link fills in last. The session's hot path does the same inline. */
export function writeFrameHeader(view: DataView, at: number, bodyBytes: number, fields: FrameFields): void {
  view.setUint16(at + FRAME_AT.magic, FRAME_MAGIC, true);
  view.setUint8(at + FRAME_AT.version, FRAME_VERSION);
  view.setUint8(at + FRAME_AT.kind, fields.kind);
  view.setUint32(at + FRAME_AT.bodyBytes, bodyBytes, true);
  view.setUint32(at + FRAME_AT.epoch, fields.epoch, true);
  view.setUint32(at + FRAME_AT.incarnation, fields.incarnation, true);
  setU64(view, at + FRAME_AT.sequence, fields.sequence);
  setU64(view, at + FRAME_AT.ack, fields.ack);
  setU64(view, at + FRAME_AT.requestSequence, fields.requestSequence);
  view.setUint16(at + FRAME_AT.messageType, fields.messageType, true);
  view.setUint16(at + FRAME_AT.creditMessages, fields.creditMessages, true);
}

/** A whole frame with its checksum, for tests and for whatever is not in a hurry. */
export function encodeFrame(fields: FrameFields, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + body.length);
  const view = new DataView(bytes.buffer);
  writeFrameHeader(view, 0, body.length, fields);
  bytes.set(body, FRAME_HEADER_BYTES);
  view.setUint32(FRAME_AT.crc32c, frameChecksum(bytes, 0, body.length), true);
  return bytes;
}

/** What the bytes at `at` are: a whole frame of so many bytes, the beginning of one, or nothing that may be believed. */
export type FrameVerdict =
  | { readonly is: 'frame'; readonly totalBytes: number }
  | { readonly is: 'partial' }
  | { readonly is: 'refused'; readonly end: LinkEnd };

/** The rules of native/tcp/src/frame.h in TypeScript: tests hold the two against each other, memory links use these. */
export function judgeFrame(bytes: Uint8Array, at: number, end: number): FrameVerdict {
  if (end - at < FRAME_HEADER_BYTES) return { is: 'partial' };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint16(at + FRAME_AT.magic, true) !== FRAME_MAGIC) return { is: 'refused', end: LinkEnd.badMagic };
  if (view.getUint8(at + FRAME_AT.version) !== FRAME_VERSION) return { is: 'refused', end: LinkEnd.badVersion };
  const kind = view.getUint8(at + FRAME_AT.kind);
  if (kind === 0 || kind > FRAME_KIND_MAX) return { is: 'refused', end: LinkEnd.badKind };
  const bodyBytes = view.getUint32(at + FRAME_AT.bodyBytes, true);
  if (!bodyLengthAllowed(kind, bodyBytes)) return { is: 'refused', end: LinkEnd.badLength };
  if (end - at < FRAME_HEADER_BYTES + bodyBytes) return { is: 'partial' };
  if (view.getUint32(at + FRAME_AT.crc32c, true) !== frameChecksum(bytes, at, bodyBytes)) {
    return { is: 'refused', end: LinkEnd.badChecksum };
  }
  return { is: 'frame', totalBytes: FRAME_HEADER_BYTES + bodyBytes };
}

function bodyLengthAllowed(kind: number, bodyBytes: number): boolean {
  if (kind <= FRAME_KIND_STREAM_MAX) return bodyBytes <= FRAME_BODY_BYTES_MAX;
  if (kind === FrameKind.write || kind === FrameKind.readData) {
    return bodyBytes > TRANSFER_PREFIX_BYTES && bodyBytes <= TRANSFER_PREFIX_BYTES + TRANSFER_CHUNK_BYTES;
  }
  return bodyBytes === (kind === FrameKind.readRequest ? TRANSFER_PREFIX_BYTES : 0);
}

const CRC32C_TABLE = new Uint32Array(256);
for (let i = 0; i < 256; i++) {
  let crc = i;
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  CRC32C_TABLE[i] = crc >>> 0;
}
function crc32cRun(crc: number, bytes: Uint8Array, start: number, end: number): number {
  for (let i = start; i < end; i++) crc = (crc >>> 8) ^ CRC32C_TABLE[(crc ^ bytes[i]!) & 0xff]!;
  return crc;
}
function frameChecksum(bytes: Uint8Array, at: number, bodyBytes: number): number {
  const header = crc32cRun(0xffffffff, bytes, at, at + FRAME_AT.crc32c);
  const body = at + FRAME_HEADER_BYTES;
  return ~crc32cRun(header, bytes, body, body + checkedBytes(bytes, at, bodyBytes)) >>> 0;
}
function checkedBytes(bytes: Uint8Array, at: number, bodyBytes: number): number {
  const kind = bytes[at + FRAME_AT.kind];
  if ((kind !== FrameKind.write && kind !== FrameKind.readData) || bodyBytes < TRANSFER_PREFIX_BYTES) return bodyBytes;
  const flags = bytes[at + FRAME_HEADER_BYTES + TRANSFER_AT.flags]!;
  return (flags & TRANSFER_FLAG_DATA_UNCHECKED) === 0 ? bodyBytes : TRANSFER_PREFIX_BYTES;
}
