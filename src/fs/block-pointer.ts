/**
 * Block pointers: where a block of a file is. 16 bytes, the same in inodes and in indirect blocks; all zeros is a hole. A second copy is at the
 * same address of another NSD.
 *
 *   0 u8 NSD   1 u8 NSD of the second copy + 1, 0: one copy   2 u8 placement class   3 u8 flags   4 u32 birth epoch   8 u16 sub-blocks (1..256)   10 u48 sub-block address
 */
import { type NsdIndex, nsdIndex } from '../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { firstCopy, secondCopy } from '../nsd/copies.js';
import { type Extent, type Geometry, RESERVED_BLOCKS } from './layout.js';
import { getU16, getU32, setU16, setU32 } from './sector.js';

export const POINTER_BYTES = 16;

export interface BlockPointer extends Extent {
  /** Epoch of the cluster in which it was allocated: snapshots tell shared blocks from own ones by it. */
  readonly birthEpoch: number;
  readonly placementClass: number;
  readonly flags: number;
}

/** Sub-blocks of the pointer at `at`, 0 for a hole: what the hot paths look at first. */
export const pointerCount = (bytes: Uint8Array, at: number): number => getU16(bytes, at + 8);

export function readPointer(bytes: Uint8Array, at: number): BlockPointer | null {
  const count = getU16(bytes, at + 8);
  if (count === 0) return null;
  return {
    nsd: nsdIndex(getU16(bytes, at)),
    placementClass: bytes[at + 2]!,
    flags: bytes[at + 3]!,
    birthEpoch: getU32(bytes, at + 4),
    count,
    sector: getU16(bytes, at + 10) + getU32(bytes, at + 12) * 2 ** 16,
  };
}

export function writePointer(bytes: Uint8Array, at: number, pointer: BlockPointer | null): void {
  if (pointer === null) {
    bytes.fill(0, at, at + POINTER_BYTES);
    return;
  }
  setU16(bytes, at, pointer.nsd);
  bytes[at + 2] = pointer.placementClass;
  bytes[at + 3] = pointer.flags;
  setU32(bytes, at + 4, pointer.birthEpoch);
  setU16(bytes, at + 8, pointer.count);
  setU16(bytes, at + 10, pointer.sector % 2 ** 16);
  setU32(bytes, at + 12, Math.floor(pointer.sector / 2 ** 16));
}

/** Why a stored pointer can't be right, or null: it must lie inside one block of an NSD that exists, and flags there are none yet. */
export const pointerFault = (
  { nsd, sector, count, flags = 0 }: Extent & { readonly flags?: number },
  geometry: Geometry,
): string | null =>
  placeFault(nsd, sector, count, geometry) ?? (flags === 0 ? null : `pointer with flags ${flags.toString(16)}`);

/** The same of a place that nobody makes an object of. */
export function placeFault(nsd: NsdIndex, sector: number, count: number, geometry: Geometry): string | null {
  if (count > SUB_BLOCKS_PER_BLOCK) return `pointer to ${count} sub-blocks`;
  const block = Math.floor(sector / SUB_BLOCKS_PER_BLOCK);
  const first = firstCopy(nsd);
  const second = secondCopy(nsd);
  const fault = blockFault(first, block, geometry) ?? (second === null ? null : blockFault(second, block, geometry));
  if (fault !== null) return fault;
  if (second === first) return `pointer to two copies on NSD ${first}`;
  if ((sector % SUB_BLOCKS_PER_BLOCK) + count > SUB_BLOCKS_PER_BLOCK)
    return `pointer to ${count} sub-blocks from ${sector} on leaves its block`;
  return null;
}

function blockFault(nsd: NsdIndex, block: number, { nsdBlocks, nsdCount }: Geometry): string | null {
  const blocks = nsdBlocks[nsd];
  if (blocks === undefined) return `pointer to NSD ${nsd} of ${nsdCount}`;
  return block < RESERVED_BLOCKS || block >= blocks ? `pointer to block ${block} of ${blocks} on NSD ${nsd}` : null;
}

/** The first fault among consecutive pointers, or null. */
export function pointersFault(bytes: Uint8Array, at: number, count: number, geometry: Geometry): string | null {
  for (let i = 0; i < count; i++) {
    const pointer = readPointer(bytes, at + i * POINTER_BYTES);
    if (pointer === null) continue;
    const fault = pointerFault(pointer, geometry);
    if (fault !== null) return `${fault} (entry ${i})`;
  }
  return null;
}

export const blockPointer = (extent: Extent, birthEpoch: number, placementClass = 0): BlockPointer => ({
  nsd: extent.nsd as NsdIndex,
  sector: extent.sector,
  count: extent.count,
  birthEpoch,
  placementClass,
  flags: 0,
});
