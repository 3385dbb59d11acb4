/**
 * The bodies of tokenToServer, tokenToClient, tokenList and tokenExpel (docs/token-protocol.md, Messages).
 *
 * A body is a header and then items up to its end, in the order in which they were decided: the receiver handles them in
 * that order. One step's items for one destination are one message; only when they outgrow a body are they cut into several,
 * which the fabric keeps in order. Fault model: anything may come off the wire; a body is decoded completely or refused.
 */
import { type ByteRange, contains } from '../common/byte-range.js';
import { type Reason, reasonFromNumber, reasonNumber } from '../common/errors.js';
import { type Epoch, epoch, type Incarnation, incarnation, type NodeId, nodeId } from '../common/ids.js';
import { SECTOR_VERSION_MAX } from '../common/sector-version.js';
import { RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { MESSAGE_BODY_BYTES_MAX } from '../fabric/fabric.js';
import { ByteReader, ByteWriter } from '../protocol/codec.js';
import { OBJECT_MAX } from './holder-table.js';
import { type StatusNote, TokenClass, TokenMode, type TokenObject } from './token.js';

/** Ranges of one object that one request asks for together, and ranges in one statement. */
export const REQUEST_PARTS_MAX = 32;
export const STATEMENT_RANGES_MAX = 64;
export const BLOCKERS_MAX = 16;
export const LIST_ENTRIES_MAX = 4096;
const TOKEN_MESSAGE_VERSION = 3;

export interface MessageHeader {
  /** Of the sender's view of the cluster. */
  readonly epoch: Epoch;
  /** The life of the receiver that is meant; any other drops the message. */
  readonly toIncarnation: Incarnation;
}

export interface RequestPart {
  readonly mode: TokenMode;
  readonly required: ByteRange;
  readonly desired: ByteRange;
}
/** Asks for all parts together: none is granted before all can be. */
export interface RequestItem {
  readonly kind: 'request';
  readonly requestId: number;
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly parts: readonly RequestPart[];
  readonly nowait: boolean;
  /** Refused as soon as a holder says that it has it in use for long: an open file. */
  readonly prompt: boolean;
  /** Remaining, in milliseconds from arrival; 0 is none. */
  readonly deadlineMs: number;
}
export interface CancelItem {
  readonly kind: 'cancel';
  readonly requestId: number;
}
/** "Having seen the grants up to `asOfSeq`, I hold at most `mode` on these ranges." */
export interface Statement {
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly asOfSeq: number;
  readonly mode: TokenMode;
  readonly ranges: readonly ByteRange[];
}
export interface ReleaseItem extends Statement {
  readonly kind: 'release';
}
export interface AnswerItem extends Statement {
  readonly kind: 'answer';
  readonly revokeId: number;
}
export interface ClaimItem {
  readonly kind: 'claim';
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly mode: TokenMode;
  readonly range: ByteRange;
  /** In the server's numbering; 0 when the grant came from another server. */
  readonly seq: number;
}
/** All claims for this server are told, as held under the list of servers with this fingerprint. */
export interface ClaimEndItem {
  readonly kind: 'claimEnd';
  readonly epoch: Epoch;
  /** Of the ask that is answered: whatever was granted before that ask is in the claims. */
  readonly askedEpoch: Epoch;
  readonly listFingerprint: number;
}
/** Just before the answer, release or claims that it belongs to; to a client, just before the grant. */
export interface NoteItem {
  readonly kind: 'note';
  /** Of status. */
  readonly object: TokenObject;
  readonly note: StatusNote;
}
export type ToServerItem = RequestItem | CancelItem | ReleaseItem | AnswerItem | ClaimItem | ClaimEndItem | NoteItem;

export interface ToServerMessage extends MessageHeader {
  /** The highest grant sequence received from this server before the message was made. */
  readonly seenSeq: number;
  readonly items: readonly ToServerItem[];
}

export interface GrantedRange {
  readonly mode: TokenMode;
  readonly range: ByteRange;
}
export interface GrantItem {
  readonly kind: 'grant';
  readonly requestId: number;
  readonly seq: number;
  readonly class: TokenClass;
  readonly object: TokenObject;
  /** One for each part of the request, in its order. */
  readonly parts: readonly GrantedRange[];
}
export interface RevokeItem {
  readonly kind: 'revoke';
  readonly revokeId: number;
  readonly class: TokenClass;
  readonly object: TokenObject;
  /** The conflict: here the holder gives up everything beyond `keep`. */
  readonly required: ByteRange;
  /** What the requester would like beyond it; contains `required`. */
  readonly desired: ByteRange;
  readonly keep: TokenMode;
  /** Answered at once, with nothing given up, when something in the range is pinned. */
  readonly prompt: boolean;
  /** 0 when the server itself wants ranges back to bound its memory. */
  readonly requester: NodeId;
  /** Grants up to this sequence are meant. */
  readonly upToSeq: number;
}
export interface Blocker {
  readonly node: NodeId;
  readonly range: ByteRange;
  readonly mode: TokenMode;
  /** For how long the server has waited for it, in milliseconds; whole numbers on the wire. */
  readonly sinceMs: number;
}
export interface RefusalItem {
  readonly kind: 'refusal';
  readonly requestId: number;
  readonly reason: Reason;
  /** The server's: a request refused as staleEpoch is asked again when the client has reached it. */
  readonly epoch: Epoch;
  readonly blockers: readonly Blocker[];
}
/** "Tell me all that you hold of my objects, once you have reached this epoch." */
export interface AskItem {
  readonly kind: 'ask';
  readonly epoch: Epoch;
}
/** "You and another node both claim this, and neither falls: I1 is broken, and nothing that you cache may be believed." */
export interface ContradictionItem {
  readonly kind: 'contradiction';
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly mode: TokenMode;
  readonly range: ByteRange;
  readonly other: NodeId;
}
export type ToClientItem = GrantItem | RevokeItem | RefusalItem | AskItem | ContradictionItem | NoteItem;

export interface ToClientMessage extends MessageHeader {
  readonly items: readonly ToClientItem[];
}

const ToServerKind = { request: 1, cancel: 2, release: 3, answer: 4, claim: 5, claimEnd: 6, note: 7 } as const;
const ToClientKind = { grant: 1, revoke: 2, refusal: 3, ask: 4, contradiction: 5, note: 6 } as const;
/** No item is longer than this; a body is closed while another one still fits. */
const ITEM_BYTES_MAX = 2048;

function encodeBodies<Item>(
  header: (w: ByteWriter) => void,
  items: readonly Item[],
  put: (w: ByteWriter, item: Item) => void,
) {
  const bodies: Uint8Array[] = [];
  let writer = new ByteWriter(64 + 48 * Math.min(items.length, 64));
  header(writer);
  for (const item of items) {
    if (writer.lengthBytes + ITEM_BYTES_MAX > MESSAGE_BODY_BYTES_MAX) {
      bodies.push(writer.finish());
      writer = new ByteWriter(MESSAGE_BODY_BYTES_MAX / 4);
      header(writer);
    }
    put(writer, item);
  }
  bodies.push(writer.finish());
  return bodies;
}

const putRange = (w: ByteWriter, r: ByteRange): ByteWriter => w.u64(r.start).u64(r.end);
const putObject = (w: ByteWriter, i: { class: TokenClass; object: TokenObject }): ByteWriter =>
  w.u8(i.class).u64(i.object);

export function encodeToServer(message: ToServerMessage): Uint8Array[] {
  return encodeBodies(
    (w) => w.u8(TOKEN_MESSAGE_VERSION).u64(message.epoch).u64(message.toIncarnation).u64(message.seenSeq),
    message.items,
    putToServer,
  );
}

function putToServer(w: ByteWriter, item: ToServerItem): void {
  w.u8(ToServerKind[item.kind]);
  switch (item.kind) {
    case 'request':
      putObject(w.u64(item.requestId), item).u8((item.nowait ? 1 : 0) | (item.prompt ? 2 : 0));
      w.u32(Math.min(Math.ceil(item.deadlineMs), 0xffffffff)).u8(item.parts.length);
      for (const part of item.parts) putRange(putRange(w.u8(part.mode), part.required), part.desired);
      return;
    case 'cancel':
      w.u64(item.requestId);
      return;
    case 'answer':
      putStatement(w.u64(item.revokeId), item);
      return;
    case 'release':
      putStatement(w, item);
      return;
    case 'claim':
      putRange(putObject(w, item).u8(item.mode), item.range).u64(item.seq);
      return;
    case 'claimEnd':
      w.u64(item.epoch).u64(item.askedEpoch).u32(item.listFingerprint);
      return;
    case 'note':
      putNote(w, item);
      return;
  }
}

function putNote(w: ByteWriter, { object, note }: NoteItem): void {
  w.u64(object).u64(note.offsetBytes).u32(note.version).u64(note.sizeBytes).i64(note.mtimeNs).i64(note.ctimeNs);
}

function putStatement(w: ByteWriter, item: Statement): void {
  putObject(w, item).u64(item.asOfSeq).u8(item.mode).u8(item.ranges.length);
  for (const r of item.ranges) putRange(w, r);
}

export function encodeToClient(message: ToClientMessage): Uint8Array[] {
  return encodeBodies(
    (w) => w.u8(TOKEN_MESSAGE_VERSION).u64(message.epoch).u64(message.toIncarnation),
    message.items,
    putToClient,
  );
}

function putToClient(w: ByteWriter, item: ToClientItem): void {
  w.u8(ToClientKind[item.kind]);
  switch (item.kind) {
    case 'grant':
      putObject(w.u64(item.requestId).u64(item.seq), item).u8(item.parts.length);
      for (const part of item.parts) putRange(w.u8(part.mode), part.range);
      return;
    case 'revoke':
      putObject(w.u64(item.revokeId), item)
        .u8(item.keep)
        .u8(item.prompt ? 1 : 0);
      putRange(putRange(w, item.required), item.desired).u16(item.requester).u64(item.upToSeq);
      return;
    case 'refusal':
      w.u64(item.requestId).u16(reasonNumber(item.reason)).u64(item.epoch).u8(item.blockers.length);
      for (const b of item.blockers) putBlocker(w, b);
      return;
    case 'ask':
      w.u64(item.epoch);
      return;
    case 'contradiction':
      putRange(putObject(w, item).u8(item.mode), item.range).u16(item.other);
      return;
    case 'note':
      putNote(w, item);
      return;
  }
}

const putBlocker = (w: ByteWriter, b: Blocker): ByteWriter =>
  putRange(w.u16(b.node).u8(b.mode), b.range).u32(Math.min(Math.round(b.sinceMs), 0xffffffff));

function getRange(r: ByteReader): ByteRange {
  const start = r.u64();
  const end = r.u64();
  if (start >= end || end > RANGE_END) throw r.bad(`range [${start}, ${end})`);
  return { start, end };
}
function getMode(r: ByteReader, least: TokenMode): TokenMode {
  const mode = r.u8();
  if (mode < least || mode > TokenMode.exclusive) throw r.bad(`mode ${mode}`);
  return mode as TokenMode;
}
function getClass(r: ByteReader): TokenClass {
  const value = r.u8();
  if (value > TokenClass.data) throw r.bad(`token class ${value}`);
  return value as TokenClass;
}
function getObject(r: ByteReader): TokenObject {
  const object = r.u64();
  if (object > OBJECT_MAX) throw r.bad(`object ${object}`);
  return object;
}
/** A count in one byte, between 1 (or 0) and the limit. */
function getCount(r: ByteReader, least: number, limit: number): number {
  const count = r.u8();
  if (count < least || count > limit) throw r.bad(`${count} entries, ${least} to ${limit} allowed`);
  return count;
}
function getRangePair(r: ByteReader): { required: ByteRange; desired: ByteRange } {
  const required = getRange(r);
  const desired = getRange(r);
  if (!contains(desired, required)) throw r.bad('desired range does not contain the required one');
  return { required, desired };
}
function getVersion(r: ByteReader): void {
  const version = r.u8();
  if (version !== TOKEN_MESSAGE_VERSION) throw r.bad(`version ${version}`);
}

/** @throws {FsError} badFrame */
export function decodeToServer(body: Uint8Array): ToServerMessage {
  const r = new ByteReader(body, 'tokenToServer body');
  getVersion(r);
  const header = { epoch: epoch(r.u64()), toIncarnation: incarnation(r.u64()), seenSeq: r.u64() };
  const items: ToServerItem[] = [];
  while (r.remainingBytes > 0) items.push(getToServer(r));
  return { epoch: header.epoch, toIncarnation: header.toIncarnation, seenSeq: header.seenSeq, items };
}

function getToServer(r: ByteReader): ToServerItem {
  const kind = r.u8();
  switch (kind) {
    case ToServerKind.request:
      return getRequest(r);
    case ToServerKind.cancel:
      return { kind: 'cancel', requestId: r.u64() };
    case ToServerKind.release:
      return { kind: 'release', ...getStatement(r) };
    case ToServerKind.answer: {
      const revokeId = r.u64();
      return { kind: 'answer', revokeId, ...getStatement(r) };
    }
    case ToServerKind.claim: {
      const tokenClass = getClass(r);
      const object = getObject(r);
      const mode = getMode(r, TokenMode.shared);
      const held = getRange(r);
      return { kind: 'claim', class: tokenClass, object, mode, range: held, seq: r.u64() };
    }
    case ToServerKind.claimEnd:
      return { kind: 'claimEnd', epoch: epoch(r.u64()), askedEpoch: epoch(r.u64()), listFingerprint: r.u32() };
    case ToServerKind.note:
      return getNote(r);
    default:
      throw r.bad(`item of kind ${kind}`);
  }
}

function getNote(r: ByteReader): NoteItem {
  const object = getObject(r);
  const offsetBytes = r.u64();
  if (offsetBytes % SECTOR_BYTES !== 0) throw r.bad(`a note of offset ${offsetBytes}`);
  const version = r.u32();
  const sizeBytes = r.u64();
  if (offsetBytes >= RANGE_END || sizeBytes > RANGE_END || version > SECTOR_VERSION_MAX)
    throw r.bad(`a note of offset ${offsetBytes}, version ${version}, size ${sizeBytes}`);
  return { kind: 'note', object, note: { offsetBytes, version, sizeBytes, mtimeNs: r.i64(), ctimeNs: r.i64() } };
}

function getRequest(r: ByteReader): RequestItem {
  const requestId = r.u64();
  const tokenClass = getClass(r);
  const object = getObject(r);
  const flags = r.u8();
  if (flags > 3) throw r.bad(`flags ${flags}`);
  const deadlineMs = r.u32();
  const count = getCount(r, 1, REQUEST_PARTS_MAX);
  const parts: RequestPart[] = [];
  for (let i = 0; i < count; i++) {
    const mode = getMode(r, TokenMode.shared);
    const { required, desired } = getRangePair(r);
    const before = parts[i - 1];
    if (before !== undefined && required.start < before.required.end) throw r.bad('parts not ascending');
    parts.push({ mode, required, desired });
  }
  return {
    kind: 'request',
    requestId,
    class: tokenClass,
    object,
    parts,
    nowait: (flags & 1) !== 0,
    prompt: (flags & 2) !== 0,
    deadlineMs,
  };
}

function getStatement(r: ByteReader): Statement {
  const tokenClass = getClass(r);
  const object = getObject(r);
  const asOfSeq = r.u64();
  const mode = getMode(r, TokenMode.none);
  const count = getCount(r, 0, STATEMENT_RANGES_MAX);
  const ranges: ByteRange[] = [];
  for (let i = 0; i < count; i++) ranges.push(getRange(r));
  return { class: tokenClass, object, asOfSeq, mode, ranges };
}

/** @throws {FsError} badFrame */
export function decodeToClient(body: Uint8Array): ToClientMessage {
  const r = new ByteReader(body, 'tokenToClient body');
  getVersion(r);
  const header = { epoch: epoch(r.u64()), toIncarnation: incarnation(r.u64()) };
  const items: ToClientItem[] = [];
  while (r.remainingBytes > 0) items.push(getToClient(r));
  return { epoch: header.epoch, toIncarnation: header.toIncarnation, items };
}

function getToClient(r: ByteReader): ToClientItem {
  const kind = r.u8();
  switch (kind) {
    case ToClientKind.grant: {
      const requestId = r.u64();
      const seq = r.u64();
      const tokenClass = getClass(r);
      const object = getObject(r);
      const count = getCount(r, 1, REQUEST_PARTS_MAX);
      const parts: GrantedRange[] = [];
      for (let i = 0; i < count; i++) {
        const mode = getMode(r, TokenMode.shared);
        parts.push({ mode, range: getRange(r) });
      }
      return { kind: 'grant', requestId, seq, class: tokenClass, object, parts };
    }
    case ToClientKind.revoke: {
      const revokeId = r.u64();
      const tokenClass = getClass(r);
      const object = getObject(r);
      const keep = getMode(r, TokenMode.none);
      const promptly = r.u8();
      if (promptly > 1) throw r.bad(`flags ${promptly}`);
      const { required, desired } = getRangePair(r);
      const requester = nodeId(r.u16());
      return {
        kind: 'revoke',
        revokeId,
        class: tokenClass,
        object,
        required,
        desired,
        keep,
        prompt: promptly === 1,
        requester,
        upToSeq: r.u64(),
      };
    }
    case ToClientKind.refusal: {
      const requestId = r.u64();
      const reason = reasonFromNumber(r.u16());
      const at = epoch(r.u64());
      const count = getCount(r, 0, BLOCKERS_MAX);
      const blockers: Blocker[] = [];
      for (let i = 0; i < count; i++) blockers.push(getBlocker(r));
      return { kind: 'refusal', requestId, reason, epoch: at, blockers };
    }
    case ToClientKind.ask:
      return { kind: 'ask', epoch: epoch(r.u64()) };
    case ToClientKind.contradiction: {
      const tokenClass = getClass(r);
      const object = getObject(r);
      const mode = getMode(r, TokenMode.shared);
      const range = getRange(r);
      return { kind: 'contradiction', class: tokenClass, object, mode, range, other: nodeId(r.u16()) };
    }
    case ToClientKind.note:
      return getNote(r);
    default:
      throw r.bad(`item of kind ${kind}`);
  }
}

function getBlocker(r: ByteReader): Blocker {
  const node = nodeId(r.u16());
  const mode = getMode(r, TokenMode.none);
  const held = getRange(r);
  return { node, mode, range: held, sinceMs: r.u32() };
}

// ---- requests of tools and of whoever fences

/** One range of a server's table. */
export interface ListedRange {
  readonly by: { readonly nodeId: NodeId; readonly incarnation: Incarnation };
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly mode: TokenMode;
  readonly range: ByteRange;
  readonly seq: number;
}

export const encodeListRequest = (skip: number, limit: number): Uint8Array =>
  new ByteWriter().u64(skip).u32(Math.min(limit, LIST_ENTRIES_MAX)).finish();

export function decodeListRequest(body: Uint8Array): { skip: number; limit: number } {
  const r = new ByteReader(body, 'tokenList body');
  const skip = r.u64();
  const limit = r.count(LIST_ENTRIES_MAX);
  r.end();
  return { skip, limit };
}

export function encodeListReply(held: readonly ListedRange[]): Uint8Array {
  const w = new ByteWriter(64 + held.length * 48).u32(held.length);
  for (const h of held) putRange(putObject(w.u16(h.by.nodeId).u64(h.by.incarnation), h).u8(h.mode), h.range).u64(h.seq);
  return w.finish();
}

export function decodeListReply(body: Uint8Array): ListedRange[] {
  const r = new ByteReader(body, 'tokenList reply');
  const held: ListedRange[] = [];
  for (let left = r.count(LIST_ENTRIES_MAX); left > 0; left--) {
    const by = { nodeId: nodeId(r.u16()), incarnation: incarnation(r.u64()) };
    const tokenClass = getClass(r);
    const object = getObject(r);
    const mode = getMode(r, TokenMode.shared);
    const at = getRange(r);
    held.push({ by, class: tokenClass, object, mode, range: at, seq: r.u64() });
  }
  r.end();
  return held;
}

/** What became of a node, as whoever fenced it tells the token servers. */
export interface NodeFate {
  readonly type: 'expelled' | 'holdClosed' | 'released';
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
}
const FATES = ['expelled', 'holdClosed', 'released'] as const;

export const encodeExpel = (fate: NodeFate): Uint8Array =>
  new ByteWriter().u8(FATES.indexOf(fate.type)).u16(fate.nodeId).u64(fate.incarnation).finish();

export function decodeExpel(body: Uint8Array): NodeFate {
  const r = new ByteReader(body, 'tokenExpel body');
  const type = FATES[r.u8()];
  if (type === undefined) throw r.bad('unknown fate');
  const fate = { type, nodeId: nodeId(r.u16()), incarnation: incarnation(r.u64()) };
  r.end();
  return fate;
}
