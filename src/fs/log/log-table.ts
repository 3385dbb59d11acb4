/**
 * The table of logs: a sector for each slot, in a system file that mkfs lays out and that never moves.
 *
 * A slot is a log: where it lies, whose it is, from where it has to be read. Its sector's exclusive data token is held, pinned, by the node whose
 * log it is for as long as it is mounted; of a dead node it is held until its log has been replayed, like all its tokens.
 *
 *   header HLT1 (owner: inode 6, index: slot, generation: of the log)
 *   40 u8 state · 42 u16 sectors per piece · 44 u16 pieces · 48 u64 tail · 56 u64 owner's node · 64 u64 its incarnation
 *   72 u32 loose ends that have been settled · 128 block pointers: the pieces
 */
import type { ByteRange } from '../../common/byte-range.js';
import type { FsError } from '../../common/errors.js';
import { BLOCK_BYTES, SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import type { Checksums } from '../../nsd/checksums.js';
import { blockPointer, POINTER_BYTES, pointersFault, readPointer, writePointer } from '../block-pointer.js';
import type { Extent, Geometry } from '../layout.js';
import { LOG_TABLE } from '../layout.js';
import {
  corrupt,
  getU16,
  getU32,
  getU64,
  isZero,
  Magic,
  sectorFault,
  setU16,
  setU32,
  setU64,
  writeHeader,
} from '../sector.js';

export const LOG_SLOTS = SUB_BLOCKS_PER_BLOCK;
const POINTERS_AT = 128;
export const LOG_POINTERS_MAX = (SECTOR_BYTES - POINTERS_AT) / POINTER_BYTES;

export const LogState = {
  /** Nobody's, without space. */
  unused: 0,
  /** Its space is being taken from the allocation map. */
  creating: 1,
  /** Nothing in it matters. */
  clean: 2,
  /** In use by its owner, or left behind by it. */
  open: 3,
  /** Redone; what its owner left unfinished has still to be settled. */
  replayed: 4,
} as const;
export type LogState = (typeof LogState)[keyof typeof LogState];

export interface LogDescriptor {
  readonly slot: number;
  readonly state: LogState;
  readonly generation: number;
  /** Where recovery begins to read; where a clean log goes on. */
  readonly tail: number;
  readonly owner: { readonly nodeId: number; readonly incarnation: number };
  readonly settledEnds: number;
  readonly pieceSectors: number;
  readonly pieces: readonly Extent[];
}

const LOG_BYTES_MIN = 256 * 1024;
const LOG_BYTES_MAX = 64 * 1024 * 1024;
/** A log has this share of the file system, within these bounds; all that mkfs makes, at most an eighth. */
const CAPACITY_SHARE = 128;
const CAPACITY_SHARE_OF_ALL = 8;

const capacityOf = ({ nsdBlocks }: Geometry): number =>
  nsdBlocks.reduce((sum, blocks) => sum + blocks, 0) * BLOCK_BYTES;

export function logBytesFor(geometry: Geometry, wanted: number | null): number {
  const bytes = wanted ?? Math.max(LOG_BYTES_MIN, capacityOf(geometry) / CAPACITY_SHARE);
  return Math.min(LOG_BYTES_MAX, bytes);
}

/** How many logs mkfs lays out: a node that mounts a full file system needs one too. */
export function logsFor(geometry: Geometry, bytes: number, expectedNodes: number): number {
  const room = capacityOf(geometry) / CAPACITY_SHARE_OF_ALL / geometry.metadataCopies;
  return Math.max(1, Math.min(expectedNodes, LOG_SLOTS, Math.floor(room / bytes)));
}

export function logPieces(bytes: number): { pieceSectors: number; pieces: number } {
  const sectors = Math.ceil(bytes / SECTOR_BYTES);
  const pieceSectors = Math.min(SUB_BLOCKS_PER_BLOCK, sectors);
  return { pieceSectors, pieces: Math.min(LOG_POINTERS_MAX, Math.ceil(sectors / pieceSectors)) };
}

export const slotRange = (slot: number): ByteRange => ({ start: slot * SECTOR_BYTES, end: (slot + 1) * SECTOR_BYTES });

export const unusedSlot = (slot: number): LogDescriptor => ({
  slot,
  state: LogState.unused,
  generation: 0,
  tail: 0,
  owner: { nodeId: 0, incarnation: 0 },
  settledEnds: 0,
  pieceSectors: 0,
  pieces: [],
});

/** Not sealed. */
export function encodeDescriptor(descriptor: LogDescriptor, fsId: bigint, birthEpoch: number): Uint8Array {
  const sector = new Uint8Array(SECTOR_BYTES);
  const { slot, generation, pieces } = descriptor;
  writeHeader(sector, { magic: Magic.logTable, fsId, owner: LOG_TABLE, index: slot, generation });
  sector[40] = descriptor.state;
  setU16(sector, 42, descriptor.pieceSectors);
  setU16(sector, 44, pieces.length);
  setU64(sector, 48, descriptor.tail);
  setU64(sector, 56, descriptor.owner.nodeId);
  setU64(sector, 64, descriptor.owner.incarnation);
  setU32(sector, 72, descriptor.settledEnds);
  for (const [index, extent] of pieces.entries())
    writePointer(sector, POINTERS_AT + index * POINTER_BYTES, blockPointer(extent, birthEpoch));
  return sector;
}

/** @throws {FsError} corrupt */
export function decodeDescriptor(
  sector: Uint8Array,
  slot: number,
  fsId: bigint,
  geometry: Geometry,
  checksums: Checksums,
): LogDescriptor {
  if (isZero(sector)) return unusedSlot(slot);
  const bad = (why: string): FsError => corrupt('log.open', `log ${slot}`, why);
  const fault = sectorFault(sector, { magic: Magic.logTable, fsId, owner: LOG_TABLE, index: slot }, checksums);
  if (fault !== null) throw bad(fault);
  const state = sector[40] as LogState;
  const pieceSectors = getU16(sector, 42);
  const pieceCount = getU16(sector, 44);
  if (!Object.values(LogState).includes(state)) throw bad(`state ${state}`);
  if (pieceCount > LOG_POINTERS_MAX) throw bad(`${pieceCount} pieces`);
  const pointerFault = pointersFault(sector, POINTERS_AT, pieceCount, geometry);
  if (pointerFault !== null) throw bad(pointerFault);
  const pieces: Extent[] = [];
  for (let piece = 0; piece < pieceCount; piece++) {
    const pointer = readPointer(sector, POINTERS_AT + piece * POINTER_BYTES);
    if (pointer === null || pointer.count !== pieceSectors) throw bad(`piece ${piece} is none`);
    pieces.push({ nsd: pointer.nsd, sector: pointer.sector, count: pointer.count });
  }
  const descriptor = {
    slot,
    state,
    generation: getU32(sector, 32),
    tail: getU64(sector, 48),
    owner: { nodeId: getU64(sector, 56), incarnation: getU64(sector, 64) },
    settledEnds: getU32(sector, 72),
    pieceSectors,
    pieces,
  };
  if (Number.isNaN(descriptor.tail) || Number.isNaN(descriptor.owner.nodeId + descriptor.owner.incarnation))
    throw bad('an integer beyond 2^53');
  if (state !== LogState.unused && pieceCount === 0) throw bad('no space');
  return descriptor;
}
