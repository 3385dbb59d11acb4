import { FsError } from '../common/errors.js';
import { type Epoch, epoch, type Incarnation, incarnation, type NodeId, nodeId } from '../common/ids.js';
import { isSectorVersion } from '../common/sector-version.js';
import { SECTOR_BYTES } from '../common/units.js';
import { ByteReader, ByteWriter } from './codec.js';

/**
 * Bodies of the messages between NSD clients and NSD servers. Owns the encoding and its limits, nothing else.
 *
 * Every request opens with the NSD's UUID (nsdFence, which concerns the whole server, excepted). Extents are listed in the
 * order of the bytes in the window (or inline), checksums and versions one per sector in the same order.
 *
 * Invariants: an encoded request always decodes to the same value; a decoder accepts nothing whose sectors, counts and
 * lengths don't agree with each other. Fault model: any bytes may arrive; a decoder throws badFrame and allocates no more than
 * the limits below allow. Whether a sector lies on the NSD is the server's to check, who knows its length.
 */

/** Sectors of one request: a whole window. */
export const NSD_REQUEST_SECTORS_MAX = 2048;
/** Bytes that travel in the message itself rather than through a window: what a window would cost more than the copy (docs/performance.md). */
export const NSD_INLINE_BYTES_MAX = 16 * 1024;
export const NSD_DISCARD_EXTENTS_MAX = 4096;
/** Sectors whose versions one request asks for; as many extents. */
export const NSD_VERSIONS_SECTORS_MAX = 8192;
/** As in the fabric, which may not be imported from here. */
const WINDOW_NAME_BYTES_MAX = 2048;
const NAME_BYTES_MAX = 128;

/** Consecutive sectors, counted from the NSD's first data sector. */
export interface SectorExtent {
  readonly sector: number;
  readonly sectorCount: number;
}

export interface NsdReadRequest {
  readonly nsd: string;
  readonly extents: readonly SectorExtent[];
  /** Where the bytes go; null asks for them in the reply. */
  readonly window: Uint8Array | null;
}
export interface NsdReadReply extends NsdLife {
  readonly crcs: Uint32Array;
  readonly versions: Uint32Array;
  /** The sectors' bytes, if the request named no window. */
  readonly data: Uint8Array | null;
}
/** Exactly one of `window` and `data` is set. */
export interface NsdWriteRequest {
  readonly nsd: string;
  readonly extents: readonly SectorExtent[];
  readonly crcs: Uint32Array;
  /** What the sectors' versions become; null: each counts up by one. */
  readonly versions: Uint32Array | null;
  /** A log record that holds the same bytes is durable: no intent is needed (S1). */
  readonly logged: boolean;
  /** A file says that these are its bytes: also what reads as zeros now is kept by an intent (S1). */
  readonly exposed: boolean;
  /** The sectors check themselves; then no versions are named. */
  readonly selfChecking: boolean;
  /** With a flush: durable when it is answered. */
  readonly durable: boolean;
  readonly window: Uint8Array | null;
  readonly data: Uint8Array | null;
}
/** Of the NSD as it is served now: what lives before `wholeSince` had not flushed may have been lost. */
export interface NsdLife {
  readonly life: number;
  readonly wholeSince: number;
}
export interface NsdWriteReply extends NsdLife {
  readonly versions: Uint32Array;
}
export interface NsdVersionsRequest {
  readonly nsd: string;
  readonly extents: readonly SectorExtent[];
}
export interface NsdVersionsReply {
  /** The sectors' version words, as they are on the device (nsd-layout.ts). */
  readonly words: Uint32Array;
}
export interface NsdDiscardRequest {
  readonly nsd: string;
  readonly extents: readonly SectorExtent[];
}
export interface NsdInfoReply {
  readonly nsd: string;
  /** Null while the NSD belongs to no file system. */
  readonly fsUuid: string | null;
  readonly name: string;
  readonly failureGroup: number;
  readonly dataSectorCount: number;
  readonly generation: number;
}
export interface NsdFenceRequest {
  readonly node: NodeId;
  /** This incarnation and all before it. */
  readonly upTo: Incarnation;
  readonly epoch: Epoch;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Every request names one of a few NSDs: those last named, both ways. Bounded; what was forgotten is made anew. */
const NAMED_MAX = 1024;
const bytesOf = new Map<string, Uint8Array>();
const namedBy = new Map<number, string>();

/** Shared: not to be written to. @throws {FsError} invalidArgument unless it is the lower-case form with hyphens. */
export function uuidToBytes(uuid: string): Uint8Array {
  const known = bytesOf.get(uuid);
  if (known !== undefined) return known;
  if (!UUID.test(uuid)) throw new FsError('invalidArgument', { op: 'encode', object: uuid, detail: 'not a UUID' });
  const bytes = new Uint8Array(Buffer.from(uuid.replaceAll('-', ''), 'hex'));
  if (bytesOf.size >= NAMED_MAX) bytesOf.clear();
  bytesOf.set(uuid, bytes);
  return bytes;
}

export function uuidFromBytes(bytes: Uint8Array): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, 16);
  const key = view.getUint32(0) ^ view.getUint32(12);
  const known = namedBy.get(key);
  if (known !== undefined && isNamed(bytes, known)) return known;
  const hex = Buffer.from(bytes.buffer, bytes.byteOffset, 16).toString('hex');
  const uuid = `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
  if (namedBy.size >= NAMED_MAX) namedBy.clear();
  namedBy.set(key, uuid);
  return uuid;
}

function isNamed(bytes: Uint8Array, uuid: string): boolean {
  const of = uuidToBytes(uuid);
  for (let i = 0; i < of.length; i++) if (of[i] !== bytes[i]) return false;
  return true;
}

export const sectorsOf = (extents: readonly SectorExtent[]): number =>
  extents.reduce((sum, extent) => sum + extent.sectorCount, 0);

function writeExtents(writer: ByteWriter, extents: readonly SectorExtent[]): void {
  writer.u32(extents.length);
  for (const extent of extents) writer.u64(extent.sector).u64(extent.sectorCount);
}

function readExtents(reader: ByteReader, countMax: number, sectorsMax: number): SectorExtent[] {
  const count = reader.count(countMax);
  if (count === 0) throw reader.bad('no extent');
  const extents: SectorExtent[] = [];
  let total = 0;
  for (let i = 0; i < count; i++) {
    const sector = reader.u64();
    const sectorCount = reader.u64();
    if (sectorCount === 0) throw reader.bad(`extent ${i} is empty`);
    total += sectorCount;
    if (total > sectorsMax) throw reader.bad(`more than ${sectorsMax} sectors`);
    if (!Number.isSafeInteger(sector + sectorCount)) throw reader.bad(`extent ${i} ends beyond 2^53`);
    extents.push({ sector, sectorCount });
  }
  return extents;
}

function writeWords(writer: ByteWriter, words: Uint32Array): void {
  writer.u32(words.length).words(words);
}
function readWords(
  reader: ByteReader,
  what: string,
  countExact: number,
  countMax = NSD_REQUEST_SECTORS_MAX,
): Uint32Array {
  const count = reader.count(countMax);
  if (count !== countExact) throw reader.bad(`${count} ${what} for ${countExact} sectors`);
  return reader.words(count);
}

function readWindow(reader: ByteReader): Uint8Array {
  const window = reader.bytes(WINDOW_NAME_BYTES_MAX);
  if (window.length === 0) throw reader.bad('empty window');
  return window.slice();
}
/** Bytes of the message itself, a view. */
function readInline(reader: ByteReader, sectorCount: number): Uint8Array {
  const data = reader.bytes(NSD_INLINE_BYTES_MAX);
  if (data.length !== sectorCount * SECTOR_BYTES) throw reader.bad(`${data.length} bytes for ${sectorCount} sectors`);
  return data;
}
const INLINE = 0;
const WINDOW = 1;
function readPlace(reader: ByteReader): 'inline' | 'window' {
  const place = reader.u8();
  if (place !== INLINE && place !== WINDOW) throw reader.bad(`place ${place}`);
  return place === INLINE ? 'inline' : 'window';
}

export function encodeNsdRead(request: NsdReadRequest): Uint8Array {
  const writer = new ByteWriter(64 + request.extents.length * 16);
  writer.raw(uuidToBytes(request.nsd));
  writeExtents(writer, request.extents);
  if (request.window === null) writer.u8(INLINE);
  else writer.u8(WINDOW).bytes(request.window);
  return writer.finish();
}
export function decodeNsdRead(body: Uint8Array): NsdReadRequest {
  const reader = new ByteReader(body, 'nsdRead body');
  const nsd = uuidFromBytes(reader.raw(16));
  const extents = readExtents(reader, NSD_REQUEST_SECTORS_MAX, NSD_REQUEST_SECTORS_MAX);
  const inline = readPlace(reader) === 'inline';
  if (inline && sectorsOf(extents) * SECTOR_BYTES > NSD_INLINE_BYTES_MAX)
    throw reader.bad('too long for an inline reply');
  const window = inline ? null : readWindow(reader);
  reader.end();
  return { nsd, extents, window };
}

export function encodeNsdReadReply(reply: NsdReadReply): Uint8Array {
  const writer = new ByteWriter(48 + reply.crcs.length * 8 + (reply.data?.length ?? 0));
  writeWords(writer, reply.crcs);
  writeWords(writer, reply.versions);
  if (reply.data === null) writer.u8(WINDOW);
  else writer.u8(INLINE).bytes(reply.data);
  return writer.u64(reply.life).u64(reply.wholeSince).finish();
}
/** @param sectorCount what was asked for; anything else is refused. @returns views of the body where there are bytes. */
export function decodeNsdReadReply(body: Uint8Array, sectorCount: number, inline: boolean): NsdReadReply {
  const reader = new ByteReader(body, 'nsdRead reply');
  const crcs = readWords(reader, 'checksums', sectorCount);
  const versions = readWords(reader, 'versions', sectorCount);
  if ((readPlace(reader) === 'inline') !== inline) throw reader.bad('bytes came another way than asked for');
  const data = inline ? readInline(reader, sectorCount) : null;
  const life = readLife(reader);
  reader.end();
  return { crcs, versions, data, ...life };
}

const WRITE_NAMES_VERSIONS = 1;
const WRITE_IS_LOGGED = 2;
const WRITE_CHECKS_ITSELF = 4;
const WRITE_IS_DURABLE = 8;
const WRITE_IS_EXPOSED = 16;
const WRITE_FLAGS = WRITE_NAMES_VERSIONS | WRITE_IS_LOGGED | WRITE_CHECKS_ITSELF | WRITE_IS_DURABLE | WRITE_IS_EXPOSED;
export function encodeNsdWrite(request: NsdWriteRequest): Uint8Array {
  const inlineBytes = request.data?.length ?? 0;
  const writer = new ByteWriter(64 + request.extents.length * 16 + request.crcs.length * 8 + inlineBytes);
  writer.raw(uuidToBytes(request.nsd));
  writeExtents(writer, request.extents);
  writeWords(writer, request.crcs);
  writer.u8(
    (request.versions === null ? 0 : WRITE_NAMES_VERSIONS) |
      (request.logged ? WRITE_IS_LOGGED : 0) |
      (request.selfChecking ? WRITE_CHECKS_ITSELF : 0) |
      (request.durable ? WRITE_IS_DURABLE : 0) |
      (request.exposed ? WRITE_IS_EXPOSED : 0),
  );
  if (request.versions !== null) writeWords(writer, request.versions);
  if (request.data !== null) writer.u8(INLINE).bytes(request.data);
  else if (request.window !== null) writer.u8(WINDOW).bytes(request.window);
  else
    throw new FsError('invalidArgument', { op: 'encode', object: 'nsdWrite body', detail: 'neither window nor data' });
  return writer.finish();
}
export function decodeNsdWrite(body: Uint8Array): NsdWriteRequest {
  const reader = new ByteReader(body, 'nsdWrite body');
  const nsd = uuidFromBytes(reader.raw(16));
  const extents = readExtents(reader, NSD_REQUEST_SECTORS_MAX, NSD_REQUEST_SECTORS_MAX);
  const sectorCount = sectorsOf(extents);
  const crcs = readWords(reader, 'checksums', sectorCount);
  const flags = reader.u8();
  const is = (flag: number): boolean => (flags & flag) !== 0;
  if ((flags & ~WRITE_FLAGS) !== 0 || (is(WRITE_CHECKS_ITSELF) && is(WRITE_NAMES_VERSIONS)))
    throw reader.bad(`flags ${flags}`);
  const versions = !is(WRITE_NAMES_VERSIONS) ? null : readWords(reader, 'versions', sectorCount);
  if (versions?.every(isSectorVersion) === false) throw reader.bad('a version that no write has');
  const inline = readPlace(reader) === 'inline';
  // Copied: the message's memory is the fabric's again after the handler's first await.
  const data = inline ? readInline(reader, sectorCount).slice() : null;
  const window = inline ? null : readWindow(reader);
  reader.end();
  const [logged, selfChecking, durable] = [is(WRITE_IS_LOGGED), is(WRITE_CHECKS_ITSELF), is(WRITE_IS_DURABLE)];
  const exposed = is(WRITE_IS_EXPOSED);
  return { nsd, extents, crcs, versions, logged, exposed, selfChecking, durable, window, data };
}
export function encodeNsdWriteReply(reply: NsdWriteReply): Uint8Array {
  const writer = new ByteWriter(8 + reply.versions.length * 4);
  writeWords(writer, reply.versions);
  return writer.u64(reply.life).u64(reply.wholeSince).finish();
}
export function decodeNsdWriteReply(body: Uint8Array, sectorCount: number): NsdWriteReply {
  const reader = new ByteReader(body, 'nsdWrite reply');
  const versions = readWords(reader, 'versions', sectorCount);
  const life = readLife(reader);
  reader.end();
  return { versions, ...life };
}

function readLife(reader: ByteReader): NsdLife {
  const life = reader.u64();
  const wholeSince = reader.u64();
  if (wholeSince > life) throw reader.bad(`life ${life} is whole since ${wholeSince}`);
  return { life, wholeSince };
}
/** Answer to nsdFlush and nsdDiscard. */
export const encodeNsdLife = ({ life, wholeSince }: NsdLife): Uint8Array =>
  new ByteWriter(16).u64(life).u64(wholeSince).finish();
export function decodeNsdLife(body: Uint8Array): NsdLife {
  const reader = new ByteReader(body, 'nsd life');
  const life = readLife(reader);
  reader.end();
  return life;
}

/** Body of nsdFlush and nsdInfo. */
export const encodeNsdName = (nsd: string): Uint8Array => uuidToBytes(nsd);
export function decodeNsdName(body: Uint8Array): string {
  const reader = new ByteReader(body, 'nsd name body');
  const nsd = uuidFromBytes(reader.raw(16));
  reader.end();
  return nsd;
}

export function encodeNsdVersions(request: NsdVersionsRequest): Uint8Array {
  const writer = new ByteWriter(32 + request.extents.length * 16);
  writer.raw(uuidToBytes(request.nsd));
  writeExtents(writer, request.extents);
  return writer.finish();
}
export function decodeNsdVersions(body: Uint8Array): NsdVersionsRequest {
  const reader = new ByteReader(body, 'nsdVersions body');
  const nsd = uuidFromBytes(reader.raw(16));
  const extents = readExtents(reader, NSD_VERSIONS_SECTORS_MAX, NSD_VERSIONS_SECTORS_MAX);
  reader.end();
  return { nsd, extents };
}
export function encodeNsdVersionsReply(reply: NsdVersionsReply): Uint8Array {
  const writer = new ByteWriter(8 + reply.words.length * 4);
  writeWords(writer, reply.words);
  return writer.finish();
}
export function decodeNsdVersionsReply(body: Uint8Array, sectorCount: number): NsdVersionsReply {
  const reader = new ByteReader(body, 'nsdVersions reply');
  const words = readWords(reader, 'versions', sectorCount, NSD_VERSIONS_SECTORS_MAX);
  reader.end();
  return { words };
}

export function encodeNsdDiscard(request: NsdDiscardRequest): Uint8Array {
  const writer = new ByteWriter(32 + request.extents.length * 16);
  writer.raw(uuidToBytes(request.nsd));
  writeExtents(writer, request.extents);
  return writer.finish();
}
export function decodeNsdDiscard(body: Uint8Array): NsdDiscardRequest {
  const reader = new ByteReader(body, 'nsdDiscard body');
  const nsd = uuidFromBytes(reader.raw(16));
  const extents = readExtents(reader, NSD_DISCARD_EXTENTS_MAX, Number.MAX_SAFE_INTEGER);
  reader.end();
  return { nsd, extents };
}

export function encodeNsdInfoReply(info: NsdInfoReply): Uint8Array {
  return new ByteWriter()
    .raw(uuidToBytes(info.nsd))
    .raw(info.fsUuid === null ? new Uint8Array(16) : uuidToBytes(info.fsUuid))
    .string(info.name)
    .u32(info.failureGroup)
    .u64(info.dataSectorCount)
    .u64(info.generation)
    .finish();
}
export function decodeNsdInfoReply(body: Uint8Array): NsdInfoReply {
  const reader = new ByteReader(body, 'nsdInfo reply');
  const nsd = uuidFromBytes(reader.raw(16));
  const fs = reader.raw(16);
  const reply = {
    nsd,
    fsUuid: fs.every((byte) => byte === 0) ? null : uuidFromBytes(fs),
    name: reader.string(NAME_BYTES_MAX),
    failureGroup: reader.u32(),
    dataSectorCount: reader.u64(),
    generation: reader.u64(),
  };
  reader.end();
  return reply;
}

export function encodeNsdFence(request: NsdFenceRequest): Uint8Array {
  return new ByteWriter().u16(request.node).u64(request.upTo).u64(request.epoch).finish();
}
export function decodeNsdFence(body: Uint8Array): NsdFenceRequest {
  const reader = new ByteReader(body, 'nsdFence body');
  const request = { node: nodeId(reader.u16()), upTo: incarnation(reader.u64()), epoch: epoch(reader.u64()) };
  reader.end();
  return request;
}
