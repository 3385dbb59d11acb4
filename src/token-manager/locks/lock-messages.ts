/**
 * What nodes and lock servers tell each other about file locks; little-endian, items up to the end of a body, handled in their order. The
 * fabric keeps the order of messages. Fault model: anything may come off the wire; a body is decoded completely or refused.
 */
import { type ByteRange, range } from '../../common/byte-range.js';
import { type Reason, reasonFromNumber, reasonNumber } from '../../common/errors.js';
import { type Epoch, epoch, type Incarnation, incarnation, nodeId } from '../../common/ids.js';
import { ByteReader, ByteWriter } from '../../protocol/codec.js';
import type { OwnerReport, OwnerWait, PlacedPiece } from './deadlock.js';
import { LOCK_END, type Lock, type LockOwner, LockSpace, LockType, type LockWish } from './lock-table.js';

export const LOCK_MESSAGE_VERSION = 1;
const BODY_BYTES_MAX = 256 * 1024;
const REPORT_PIECES_MAX = 256;
/** Of one `reduce`; an undo of more is cut into several. */
export const LOCK_PIECES_MAX = 256;

/** `wait`: queued until nobody stands against it. */
export interface LockRequest extends LockWish {
  readonly kind: 'lock';
  readonly requestId: number;
  readonly object: number;
  readonly wait: boolean;
}
/** Who stands against it? Nothing changes. */
export interface TestRequest extends LockWish {
  readonly kind: 'test';
  readonly requestId: number;
  readonly object: number;
}
/** The owner has in the range what the pieces say, which is no more than it had: an unlock, when there are none. */
export interface ReduceRequest {
  readonly kind: 'reduce';
  readonly requestId: number;
  readonly object: number;
  readonly space: LockSpace;
  readonly owner: LockOwner;
  readonly at: ByteRange;
  readonly pieces: readonly { readonly start: number; readonly end: number; readonly type: LockType }[];
}
export type LockServerRequest = LockRequest | TestRequest | ReduceRequest;
export type LockToServerItem =
  | LockServerRequest
  | { readonly kind: 'cancel'; readonly requestId: number }
  /** Of a handover or of claims, which end with the next one of those. */
  | { readonly kind: 'held'; readonly object: number; readonly space: LockSpace; readonly lock: Lock }
  /** "Here is all that I had of this file, of which I decided alone." */
  | { readonly kind: 'handover'; readonly object: number }
  /** A claim: "I decide alone about this file." */
  | { readonly kind: 'alone'; readonly object: number }
  | { readonly kind: 'claimEnd'; readonly epoch: Epoch; readonly askedEpoch: Epoch; readonly listFingerprint: number }
  /** To the deadlock detector: a process that waits, with what it holds. Without waits: no more. */
  | { readonly kind: 'report'; readonly report: OwnerReport }
  | { readonly kind: 'confirmed'; readonly checkId: number; readonly owner: LockOwner; readonly holds: boolean };
export type LockToClientItem =
  | { readonly kind: 'granted'; readonly requestId: number }
  /** Somebody's lock stands against it; the answer of a test, too. */
  | { readonly kind: 'refused'; readonly requestId: number; readonly blocker: Lock }
  | { readonly kind: 'queued'; readonly requestId: number }
  | { readonly kind: 'failed'; readonly requestId: number; readonly reason: Reason }
  /** "You decide alone about this file from now on": the lock token. */
  | { readonly kind: 'delegated'; readonly object: number }
  /** "You do already." */
  | { readonly kind: 'redo'; readonly requestId: number }
  | { readonly kind: 'recall'; readonly object: number }
  | { readonly kind: 'ask'; readonly epoch: Epoch }
  | { readonly kind: 'confirm'; readonly checkId: number; readonly owner: LockOwner; readonly version: number }
  | { readonly kind: 'victim'; readonly owner: LockOwner; readonly version: number; readonly opId: number };

export interface LockMessage<Item> {
  readonly epoch: Epoch;
  readonly toIncarnation: Incarnation;
  readonly items: readonly Item[];
}

const ToServer = {
  lock: 1,
  test: 2,
  reduce: 3,
  cancel: 4,
  held: 5,
  handover: 6,
  alone: 7,
  claimEnd: 8,
  report: 9,
  confirmed: 10,
} as const;
const ToClient = {
  granted: 1,
  refused: 2,
  queued: 3,
  failed: 4,
  delegated: 5,
  redo: 6,
  recall: 7,
  ask: 8,
  confirm: 9,
  victim: 10,
} as const;

function encode<Item>(message: LockMessage<Item>, put: (w: ByteWriter, item: Item) => void): Uint8Array[] {
  const bodies: Uint8Array[] = [];
  const begin = (): ByteWriter =>
    new ByteWriter(256).u8(LOCK_MESSAGE_VERSION).u64(message.epoch).u64(message.toIncarnation);
  let writer = begin();
  for (const item of message.items) {
    // The longest item is a report.
    if (writer.lengthBytes + 64 * REPORT_PIECES_MAX + 256 > BODY_BYTES_MAX) {
      bodies.push(writer.finish());
      writer = begin();
    }
    put(writer, item);
  }
  bodies.push(writer.finish());
  return bodies;
}

const putOwner = (w: ByteWriter, owner: LockOwner): ByteWriter =>
  w
    .u16(owner.node)
    .u64(owner.incarnation)
    .u64(owner.id)
    .u32(owner.pid)
    .u8(owner.isProcess ? 1 : 0);
const putRange = (w: ByteWriter, r: ByteRange): ByteWriter => w.u64(r.start).u64(r.end);
const putLock = (w: ByteWriter, lock: Lock): ByteWriter => putRange(putOwner(w, lock.owner).u8(lock.type), lock);
const putWish = (w: ByteWriter, wish: LockWish): ByteWriter =>
  putRange(putOwner(w.u8(wish.space), wish.owner).u8(wish.type), wish.at);
const putPlaced = (w: ByteWriter, piece: PlacedPiece): ByteWriter =>
  putRange(w.u64(piece.object).u8(piece.type), piece);

export const encodeLockToServer = (message: LockMessage<LockToServerItem>): Uint8Array[] =>
  encode(message, putToServer);
export const encodeLockToClient = (message: LockMessage<LockToClientItem>): Uint8Array[] =>
  encode(message, putToClient);

function putToServer(w: ByteWriter, item: LockToServerItem): void {
  w.u8(ToServer[item.kind]);
  switch (item.kind) {
    case 'lock':
      putWish(w.u64(item.requestId).u64(item.object), item).u8(item.wait ? 1 : 0);
      return;
    case 'test':
      putWish(w.u64(item.requestId).u64(item.object), item);
      return;
    case 'reduce':
      putRange(putOwner(w.u64(item.requestId).u64(item.object).u8(item.space), item.owner), item.at);
      w.u16(item.pieces.length);
      for (const piece of item.pieces) putRange(w.u8(piece.type), piece);
      return;
    case 'cancel':
      w.u64(item.requestId);
      return;
    case 'held':
      putLock(w.u64(item.object).u8(item.space), item.lock);
      return;
    case 'handover':
    case 'alone':
      w.u64(item.object);
      return;
    case 'claimEnd':
      w.u64(item.epoch).u64(item.askedEpoch).u32(item.listFingerprint);
      return;
    case 'report': {
      const { owner, version } = item.report;
      const waits = item.report.waits.slice(0, REPORT_PIECES_MAX);
      const holds = item.report.holds.slice(0, REPORT_PIECES_MAX);
      putOwner(w, owner).u64(version).u16(waits.length).u16(holds.length);
      for (const wait of waits) putPlaced(w, wait).u64(wait.opId).u64(Math.floor(wait.sinceMs));
      for (const held of holds) putPlaced(w, held);
      return;
    }
    case 'confirmed':
      putOwner(w.u64(item.checkId), item.owner).u8(item.holds ? 1 : 0);
      return;
  }
}

function putToClient(w: ByteWriter, item: LockToClientItem): void {
  w.u8(ToClient[item.kind]);
  switch (item.kind) {
    case 'granted':
    case 'queued':
    case 'redo':
      w.u64(item.requestId);
      return;
    case 'refused':
      putLock(w.u64(item.requestId), item.blocker);
      return;
    case 'failed':
      w.u64(item.requestId).u16(reasonNumber(item.reason));
      return;
    case 'delegated':
    case 'recall':
      w.u64(item.object);
      return;
    case 'ask':
      w.u64(item.epoch);
      return;
    case 'confirm':
      putOwner(w.u64(item.checkId), item.owner).u64(item.version);
      return;
    case 'victim':
      putOwner(w, item.owner).u64(item.version).u64(item.opId);
      return;
  }
}

function decode<Item>(body: Uint8Array, what: string, get: (r: ByteReader) => Item): LockMessage<Item> {
  const r = new ByteReader(body, what);
  const version = r.u8();
  if (version !== LOCK_MESSAGE_VERSION) throw r.bad(`version ${version}`);
  const header = { epoch: epoch(r.u64()), toIncarnation: incarnation(r.u64()) };
  const items: Item[] = [];
  while (r.remainingBytes > 0) items.push(get(r));
  return { ...header, items };
}

function flag(r: ByteReader): boolean {
  const value = r.u8();
  if (value > 1) throw r.bad(`flag ${value}`);
  return value === 1;
}
function getOwner(r: ByteReader): LockOwner {
  const [node, life, id, pid] = [nodeId(r.u16()), incarnation(r.u64()), r.u64(), r.u32()];
  return { node, incarnation: life, id, pid, isProcess: flag(r) };
}
function getRange(r: ByteReader): ByteRange {
  const [start, end] = [r.u64(), r.u64()];
  if (start >= end || end > LOCK_END) throw r.bad(`range [${start}, ${end})`);
  return range(start, end);
}
function getType(r: ByteReader): LockType {
  const type = r.u8();
  if (type !== LockType.read && type !== LockType.write) throw r.bad(`lock type ${type}`);
  return type;
}
function getSpace(r: ByteReader): LockSpace {
  const space = r.u8();
  if (space !== LockSpace.ranges && space !== LockSpace.whole) throw r.bad(`lock space ${space}`);
  return space;
}
function getLock(r: ByteReader): Lock {
  const owner = getOwner(r);
  const type = getType(r);
  return { owner, type, ...getRange(r) };
}
function getWish(r: ByteReader): LockWish {
  const space = getSpace(r);
  const owner = getOwner(r);
  const type = getType(r);
  return { space, owner, type, at: getRange(r) };
}
function getPlaced(r: ByteReader): PlacedPiece {
  const object = r.u64();
  const type = getType(r);
  return { object, type, ...getRange(r) };
}

/** @throws {FsError} badFrame */
export const decodeLockToServer = (body: Uint8Array): LockMessage<LockToServerItem> =>
  decode(body, 'lockToServer body', getToServer);
/** @throws {FsError} badFrame */
export const decodeLockToClient = (body: Uint8Array): LockMessage<LockToClientItem> =>
  decode(body, 'lockToClient body', getToClient);

function getToServer(r: ByteReader): LockToServerItem {
  const kind = r.u8();
  switch (kind) {
    case ToServer.lock: {
      const [requestId, object] = [r.u64(), r.u64()];
      const wish = getWish(r);
      return { kind: 'lock', requestId, object, ...wish, wait: flag(r) };
    }
    case ToServer.test:
      return { kind: 'test', requestId: r.u64(), object: r.u64(), ...getWish(r) };
    case ToServer.reduce: {
      const [requestId, object] = [r.u64(), r.u64()];
      const space = getSpace(r);
      const owner = getOwner(r);
      const at = getRange(r);
      const count = r.u16();
      if (count > LOCK_PIECES_MAX) throw r.bad(`${count} pieces`);
      const pieces = Array.from({ length: count }, () => ({ type: getType(r), ...getRange(r) }));
      let reached = at.start;
      for (const piece of pieces) {
        if (piece.start < reached || piece.end > at.end) throw r.bad('pieces not ascending in their range');
        reached = piece.end;
      }
      return { kind: 'reduce', requestId, object, space, owner, at, pieces };
    }
    case ToServer.cancel:
      return { kind: 'cancel', requestId: r.u64() };
    case ToServer.held: {
      const object = r.u64();
      const space = getSpace(r);
      return { kind: 'held', object, space, lock: getLock(r) };
    }
    case ToServer.handover:
      return { kind: 'handover', object: r.u64() };
    case ToServer.alone:
      return { kind: 'alone', object: r.u64() };
    case ToServer.claimEnd:
      return { kind: 'claimEnd', epoch: epoch(r.u64()), askedEpoch: epoch(r.u64()), listFingerprint: r.u32() };
    case ToServer.report: {
      const owner = getOwner(r);
      const version = r.u64();
      const [waitCount, holdCount] = [r.u16(), r.u16()];
      if (waitCount > REPORT_PIECES_MAX || holdCount > REPORT_PIECES_MAX) throw r.bad('too long a report');
      const waits: OwnerWait[] = [];
      for (let i = 0; i < waitCount; i++) waits.push({ ...getPlaced(r), opId: r.u64(), sinceMs: r.u64() });
      const holds: PlacedPiece[] = [];
      for (let i = 0; i < holdCount; i++) holds.push(getPlaced(r));
      return { kind: 'report', report: { owner, version, waits, holds } };
    }
    case ToServer.confirmed: {
      const checkId = r.u64();
      const owner = getOwner(r);
      return { kind: 'confirmed', checkId, owner, holds: flag(r) };
    }
    default:
      throw r.bad(`item of kind ${kind}`);
  }
}

function getToClient(r: ByteReader): LockToClientItem {
  const kind = r.u8();
  switch (kind) {
    case ToClient.granted:
      return { kind: 'granted', requestId: r.u64() };
    case ToClient.queued:
      return { kind: 'queued', requestId: r.u64() };
    case ToClient.redo:
      return { kind: 'redo', requestId: r.u64() };
    case ToClient.refused:
      return { kind: 'refused', requestId: r.u64(), blocker: getLock(r) };
    case ToClient.failed:
      return { kind: 'failed', requestId: r.u64(), reason: reasonFromNumber(r.u16()) };
    case ToClient.delegated:
      return { kind: 'delegated', object: r.u64() };
    case ToClient.recall:
      return { kind: 'recall', object: r.u64() };
    case ToClient.ask:
      return { kind: 'ask', epoch: epoch(r.u64()) };
    case ToClient.confirm: {
      const checkId = r.u64();
      const owner = getOwner(r);
      return { kind: 'confirm', checkId, owner, version: r.u64() };
    }
    case ToClient.victim: {
      const owner = getOwner(r);
      return { kind: 'victim', owner, version: r.u64(), opId: r.u64() };
    }
    default:
      throw r.bad(`item of kind ${kind}`);
  }
}
