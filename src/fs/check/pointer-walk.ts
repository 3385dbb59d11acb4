/**
 * All pointers of an inode, where one broken indirect block hides no more than what lies below it. Levels and first blocks are in the
 * headers, so a loop among indirect blocks is a block that is not what it should be.
 */
import type { InodeNumber } from '../../common/ids.js';
import type { Checksums } from '../../nsd/checksums.js';
import { type BlockPointer, POINTER_BYTES, readPointer, writePointer } from '../block-pointer.js';
import { checkIndirect, INDIRECT_POINTERS, INDIRECT_POINTERS_AT, rootPlace, span } from '../indirect-format.js';
import { AREA_BYTES, DIRECT_POINTERS, INDIRECT_LEVELS, type InodeFields, InodeFlag } from '../inode-format.js';
import type { Extent, Geometry } from '../layout.js';
import type { SectorReader } from './check-storage.js';

/** Where a pointer is stored. */
export type PointerSite =
  | { readonly kind: 'area'; readonly entry: number }
  | { readonly kind: 'indirect'; readonly home: Extent; readonly slot: number };

export interface IndirectPlace {
  readonly pointer: BlockPointer;
  readonly site: PointerSite;
  readonly level: number;
  readonly firstBlock: number;
}

export interface PointerVisitor {
  block(block: number, pointer: BlockPointer, site: PointerSite): void;
  indirect(place: IndirectPlace): void;
  /** What is below it is not known. `sector`: as it is, null if it can't be read. */
  broken(place: IndirectPlace, why: string, sector: Uint8Array | null): void;
}

export interface WalkedVolume {
  readonly storage: Pick<SectorReader, 'readOne'>;
  readonly fsId: bigint;
  readonly geometry: Geometry;
  readonly checksums: Checksums;
}

export async function walkPointers(
  volume: WalkedVolume,
  ino: InodeNumber,
  { area, flags, generation }: Pick<InodeFields, 'area' | 'flags' | 'generation'>,
  visitor: PointerVisitor,
): Promise<void> {
  if ((flags & InodeFlag.inline) !== 0) return;
  const entries = area.length / POINTER_BYTES;
  for (let block = 0; block < Math.min(entries, DIRECT_POINTERS); block++) {
    const pointer = readPointer(area, block * POINTER_BYTES);
    if (pointer !== null) visitor.block(block, pointer, { kind: 'area', entry: block });
  }
  for (let level = 1; level <= INDIRECT_LEVELS; level++) {
    const { root: entry, firstBlock } = rootPlace(level);
    const pointer = entry < entries ? readPointer(area, entry * POINTER_BYTES) : null;
    if (pointer !== null)
      await walkIndirect(volume, ino, generation, visitor, {
        pointer,
        site: { kind: 'area', entry },
        level,
        firstBlock,
      });
  }
}

async function walkIndirect(
  volume: WalkedVolume,
  ino: InodeNumber,
  generation: number,
  visitor: PointerVisitor,
  place: IndirectPlace,
): Promise<void> {
  const { pointer, level, firstBlock } = place;
  const sector = await volume.storage.readOne(pointer.nsd, pointer.sector);
  const why = indirectFault(volume, ino, generation, place, sector);
  if (why !== null) {
    visitor.broken(place, why, sector);
    return;
  }
  visitor.indirect(place);
  const home = { nsd: pointer.nsd, sector: pointer.sector, count: 1 };
  for (let slot = 0; slot < INDIRECT_POINTERS; slot++) {
    const below = readPointer(sector!, INDIRECT_POINTERS_AT + slot * POINTER_BYTES);
    if (below === null) continue;
    const site: PointerSite = { kind: 'indirect', home, slot };
    const first = firstBlock + slot * span(level);
    if (level === 1) visitor.block(first, below, site);
    else
      await walkIndirect(volume, ino, generation, visitor, {
        pointer: below,
        site,
        level: level - 1,
        firstBlock: first,
      });
  }
}

function indirectFault(
  { fsId, geometry, checksums }: WalkedVolume,
  ino: InodeNumber,
  generation: number,
  { pointer, level, firstBlock }: IndirectPlace,
  sector: Uint8Array | null,
): string | null {
  if (pointer.count !== 1) return `${pointer.count} sub-blocks instead of 1`;
  if (sector === null) return 'it can not be read, its bytes do not have their checksum';
  try {
    checkIndirect({ ino, generation }, level, firstBlock, sector, fsId, geometry, checksums);
    return null;
  } catch (error) {
    return (error as { detail?: string }).detail ?? String(error);
  }
}

/** Another pointer, or none, in an area of bytes that grows to hold it. */
export function withAreaPointer(area: Uint8Array, entry: number, pointer: BlockPointer | null): Uint8Array {
  const end = (entry + 1) * POINTER_BYTES;
  const changed = new Uint8Array(Math.min(AREA_BYTES, Math.max(area.length, end)));
  changed.set(area);
  writePointer(changed, entry * POINTER_BYTES, pointer);
  return changed;
}
