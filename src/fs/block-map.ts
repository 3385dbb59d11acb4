/**
 * From a block of a file to its pointer, and back to nothing: the tree of pointers below an inode, in memory as it is on the
 * device. Indirect blocks are read when first needed (a device read, never a token) and written with the inode.
 *
 * Invariant: a new or changed indirect block is `dirty` until it has been written, and its inode is dirty as long.
 */
import { invariant } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import type { Epoch, InodeNumber, NsdIndex } from '../common/ids.js';
import type { Checksums } from '../nsd/checksums.js';
import {
  type BlockPointer,
  blockPointer,
  POINTER_BYTES,
  pointerCount,
  readPointer,
  writePointer,
} from './block-pointer.js';
import {
  checkIndirect,
  FILE_BLOCKS_MAX,
  formatIndirect,
  INDIRECT_POINTERS,
  INDIRECT_POINTERS_AT,
  type PointerPlace,
  pointerPlace,
  rootPlace,
  span,
} from './indirect-format.js';
import type { IndirectNode, Inode } from './inode.js';
import { AREA_BYTES, DIRECT_POINTERS, INDIRECT_LEVELS } from './inode-format.js';
import type { Extent, Geometry } from './layout.js';

/** What the tree of pointers needs around it: a mounted file system, or mkfs. */
export interface PointerHost {
  readonly fsId: bigint;
  readonly geometry: Geometry;
  readonly checksums: Checksums;
  readonly parts: { readonly epoch: () => Epoch };
  readonly allocator: { allocateMetadata(ino: InodeNumber, block: number, count: number): Promise<Extent> };
  readSectors<T>(
    nsd: NsdIndex,
    sector: number,
    count: number,
    use: (bytes: Uint8Array, versions: Uint32Array) => T,
  ): Promise<T>;
  /** Absent where there is no log. */
  learnVersions?(extents: readonly Extent[]): Promise<void>;
  /** A sector was read at this version. */
  wasRead?(place: Extent, version: number): void;
}

const NOT_LOADED = undefined;
export const entryOffset = (slot: number): number => INDIRECT_POINTERS_AT + slot * POINTER_BYTES;
export const rootIndex = (root: number): number => root - DIRECT_POINTERS;
const slotOf = (node: { level: number; firstBlock: number }, block: number): number =>
  Math.floor((block - node.firstBlock) / span(node.level));

/** Whether it has any pointers beyond those in its area. */
export function hasIndirects(inode: Inode): boolean {
  for (let index = 0; index < INDIRECT_LEVELS; index++)
    if (areaPointer(inode, DIRECT_POINTERS + index) !== null) return true;
  return false;
}

export function areaPointer(inode: Inode, entry: number): BlockPointer | null {
  const at = entry * POINTER_BYTES;
  return inode.isInline || at + POINTER_BYTES > inode.area.length ? null : readPointer(inode.area, at);
}

/** The area grows by doubling: most files need one pointer. */
function setAreaPointer(inode: Inode, entry: number, pointer: BlockPointer | null): void {
  invariant(!inode.isInline, 'inline data has no pointers');
  const end = (entry + 1) * POINTER_BYTES;
  if (end > inode.area.length) {
    if (pointer === null) return;
    const grown = new Uint8Array(Math.min(AREA_BYTES, Math.max(end, inode.area.length * 2)));
    grown.set(inode.area);
    inode.area = grown;
  }
  writePointer(inode.area, entry * POINTER_BYTES, pointer);
}

/** Null is a hole, undefined: an indirect block on the way has to be loaded first. */
export function findPointer(inode: Inode, block: number): BlockPointer | null | undefined {
  const place = pointerPlace(block);
  if (place.level === 0) return areaPointer(inode, place.root);
  if (areaPointer(inode, place.root) === null) return null;
  let node = inode.roots[rootIndex(place.root)];
  while (node) {
    const slot = slotOf(node, block);
    if (node.level === 1) return readPointer(node.sector, entryOffset(slot));
    if (pointerCount(node.sector, entryOffset(slot)) === 0) return null;
    node = node.children.get(slot) ?? null;
  }
  return NOT_LOADED;
}

async function readIndirect(
  volume: PointerHost,
  inode: Inode,
  level: number,
  firstBlock: number,
  home: BlockPointer,
): Promise<IndirectNode> {
  const sector = await volume.readSectors(home.nsd, home.sector, 1, (bytes, versions) => {
    volume.wasRead?.(home, versions[0]!);
    return bytes.slice();
  });
  checkIndirect(inode, level, firstBlock, sector, volume.fsId, volume.geometry, volume.checksums);
  return { level, firstBlock, home, sector, dirty: false, children: new Map() };
}

/** The root's node, loaded; null when the root is a hole. */
export async function loadRoot(volume: PointerHost, inode: Inode, place: PointerPlace): Promise<IndirectNode | null> {
  const index = rootIndex(place.root);
  const home = areaPointer(inode, place.root);
  if (home === null) return null;
  const present = inode.roots[index];
  if (present) return present;
  const node = await readIndirect(volume, inode, place.level, place.firstBlock, home);
  // Somebody else may have loaded (and changed) it while we read.
  const first = inode.roots[index];
  if (first) return first;
  inode.setRoot(index, node);
  return node;
}

export async function loadChild(
  volume: PointerHost,
  inode: Inode,
  parent: IndirectNode,
  slot: number,
): Promise<IndirectNode | null> {
  const present = parent.children.get(slot);
  if (present !== undefined) return present;
  const home = readPointer(parent.sector, entryOffset(slot));
  if (home === null) return null;
  const level = parent.level - 1;
  const node = await readIndirect(volume, inode, level, parent.firstBlock + slot * span(parent.level), home);
  const raced = parent.children.get(slot);
  if (raced !== undefined) return raced;
  parent.children.set(slot, node);
  return node;
}

/** Afterwards `findPointer(block)` knows. */
export async function loadPointers(volume: PointerHost, inode: Inode, block: number): Promise<void> {
  const place = pointerPlace(block);
  if (place.level === 0) return;
  let node = await loadRoot(volume, inode, place);
  while (node !== null && node.level > 1) node = await loadChild(volume, inode, node, slotOf(node, block));
}

async function newIndirect(
  volume: PointerHost,
  inode: Inode,
  level: number,
  firstBlock: number,
): Promise<IndirectNode> {
  const extent = await volume.allocator.allocateMetadata(inode.ino, firstBlock, 1);
  await volume.learnVersions?.([extent]);
  const sector = formatIndirect(inode.ino, level, firstBlock, inode.generation, volume.fsId);
  const home = blockPointer(extent, volume.parts.epoch());
  return { level, firstBlock, home, sector, dirty: true, children: new Map() };
}

function touched(inode: Inode, node: IndirectNode): void {
  if (node.dirty) return;
  node.dirty = true;
  inode.dirtyIndirects++;
}

/** A count that was too small comes to nothing first: below that it would be no count at all, and the inode none that can be read. */
export function countSubBlocks(inode: Inode, change: number): void {
  const count = inode.allocatedSubBlocks + change;
  inode.allocatedSubBlocks = Math.max(0, count);
  if (count < 0) inode.keeper?.miscounted(inode);
}

/** In the turn in which it gets its pointer. */
function added(inode: Inode, { home }: IndirectNode): void {
  inode.dirtyIndirects++;
  inode.keeper?.holdBack(inode);
  countSubBlocks(inode, 1);
  inode.reserved.push(home);
}

/** Loads or makes the indirect blocks above a block, so that `setPointer` can't fail. Under `inode.structure`. */
export async function preparePointer(volume: PointerHost, inode: Inode, block: number): Promise<void> {
  if (block >= FILE_BLOCKS_MAX)
    throw new FsError('fileTooBig', { op: 'write', object: `inode ${inode.ino}`, detail: `block ${block}` });
  const place = pointerPlace(block);
  if (place.level === 0) return;
  let node = await loadRoot(volume, inode, place);
  if (node === null) {
    node = await newIndirect(volume, inode, place.level, place.firstBlock);
    added(inode, node);
    setAreaPointer(inode, place.root, node.home);
    inode.setRoot(rootIndex(place.root), node);
  }
  while (node.level > 1) {
    const slot = slotOf(node, block);
    let child: IndirectNode | null = await loadChild(volume, inode, node, slot);
    if (child === null) {
      child = await newIndirect(volume, inode, node.level - 1, node.firstBlock + slot * span(node.level));
      added(inode, child);
      writePointer(node.sector, entryOffset(slot), child.home);
      node.children.set(slot, child);
      touched(inode, node);
    }
    node = child;
  }
}

/** `preparePointer` has been called for the block. Counts what is allocated; the caller marks the inode dirty. */
export function setPointer(inode: Inode, block: number, pointer: BlockPointer | null): void {
  const before = findPointer(inode, block);
  invariant(before !== NOT_LOADED, 'a pointer is set where its indirect block is known');
  inode.keeper?.holdBack(inode);
  countSubBlocks(inode, (pointer?.count ?? 0) - (before?.count ?? 0));
  const place = pointerPlace(block);
  if (place.level === 0) {
    setAreaPointer(inode, place.root, pointer);
    return;
  }
  let node = inode.roots[rootIndex(place.root)]!;
  while (node.level > 1) node = node.children.get(slotOf(node, block))!;
  writePointer(node.sector, entryOffset(slotOf(node, block)), pointer);
  touched(inode, node);
}

async function loadBelow(
  volume: PointerHost,
  inode: Inode,
  node: IndirectNode,
  fromBlock: number,
  toBlock: number,
): Promise<void> {
  if (node.level === 1) return;
  for (let slot = 0; slot < INDIRECT_POINTERS; slot++) {
    const first = node.firstBlock + slot * span(node.level);
    if (first + span(node.level) <= fromBlock || first >= toBlock) continue;
    const child = await loadChild(volume, inode, node, slot);
    if (child !== null) await loadBelow(volume, inode, child, fromBlock, toBlock);
  }
}

/** Loads every indirect block that a cut from `fromBlock` to `toBlock` will look at. */
export async function loadForCut(
  volume: PointerHost,
  inode: Inode,
  fromBlock: number,
  toBlock = FILE_BLOCKS_MAX,
): Promise<void> {
  if (inode.isInline) return;
  for (let level = 1; level <= INDIRECT_LEVELS; level++) {
    const place = rootPlace(level);
    if (place.firstBlock >= toBlock) return;
    if (place.firstBlock + INDIRECT_POINTERS * span(level) <= fromBlock) continue;
    const node = await loadRoot(volume, inode, place);
    if (node !== null) await loadBelow(volume, inode, node, fromBlock, toBlock);
  }
}

/**
 * The first block from `fromBlock` on whose pointer is as wanted; an indirect block that isn't there is so many holes. Null: none in the
 * length that a file can have.
 */
export async function findBlock(
  volume: PointerHost,
  inode: Inode,
  fromBlock: number,
  wanted: (pointer: BlockPointer | null) => boolean,
): Promise<number | null> {
  for (let block = fromBlock; block < DIRECT_POINTERS; block++) if (wanted(areaPointer(inode, block))) return block;
  const below = async (node: IndirectNode): Promise<number | null> => {
    const from = Math.max(fromBlock, node.firstBlock);
    for (let slot = slotOf(node, from); slot < INDIRECT_POINTERS; slot++) {
      const first = Math.max(from, node.firstBlock + slot * span(node.level));
      const pointer = readPointer(node.sector, entryOffset(slot));
      if (node.level === 1 || pointer === null) {
        if (wanted(pointer)) return first;
        continue;
      }
      const child = await loadChild(volume, inode, node, slot);
      const found = child === null ? null : await below(child);
      if (found !== null) return found;
    }
    return null;
  };
  for (let level = 1; level <= INDIRECT_LEVELS; level++) {
    const place = rootPlace(level);
    if (place.firstBlock + INDIRECT_POINTERS * span(level) <= fromBlock) continue;
    const node = await loadRoot(volume, inode, place);
    const found = node !== null ? await below(node) : wanted(null) ? Math.max(fromBlock, place.firstBlock) : null;
    if (found !== null) return found < FILE_BLOCKS_MAX ? found : null;
  }
  return null;
}

function cutNode(inode: Inode, node: IndirectNode, fromBlock: number, toBlock: number, freed: Extent[]): boolean {
  let left = false;
  for (let slot = 0; slot < INDIRECT_POINTERS; slot++) {
    const pointer = readPointer(node.sector, entryOffset(slot));
    if (pointer === null) continue;
    const first = node.firstBlock + slot * span(node.level);
    if (first + span(node.level) <= fromBlock || first >= toBlock) {
      left = true;
      continue;
    }
    if (node.level > 1) {
      if (cutNode(inode, node.children.get(slot)!, fromBlock, toBlock, freed)) {
        left = true;
        continue;
      }
      node.children.delete(slot);
    }
    freed.push(pointer);
    writePointer(node.sector, entryOffset(slot), null);
    touched(inode, node);
  }
  return left;
}

/** Takes away every pointer of the blocks named, indirect blocks that are empty then included. After `loadForCut`, in one turn. */
export function cutPointers(inode: Inode, fromBlock: number, toBlock = FILE_BLOCKS_MAX): Extent[] {
  const freed: Extent[] = [];
  if (inode.isInline) return freed;
  inode.keeper?.holdBack(inode);
  for (let entry = Math.min(fromBlock, DIRECT_POINTERS); entry < Math.min(toBlock, DIRECT_POINTERS); entry++) {
    const pointer = areaPointer(inode, entry);
    if (pointer === null) continue;
    freed.push(pointer);
    setAreaPointer(inode, entry, null);
  }
  for (let index = 0; index < INDIRECT_LEVELS; index++) {
    const node = inode.roots[index];
    if (!node || cutNode(inode, node, fromBlock, toBlock, freed)) continue;
    freed.push(node.home);
    setAreaPointer(inode, DIRECT_POINTERS + index, null);
    inode.setRoot(index, null);
  }
  if (freed.length > 0) countSubBlocks(inode, -freed.reduce((sum, { count }) => sum + count, 0));
  return freed;
}

export function dirtyIndirects(inode: Inode): IndirectNode[] {
  const found: IndirectNode[] = [];
  const visit = (node: IndirectNode): void => {
    if (node.dirty) found.push(node);
    for (const child of node.children.values()) visit(child);
  };
  for (const root of inode.roots) if (root !== null && root !== undefined) visit(root);
  return found;
}

/** Every pointer that is loaded (after `loadForCut` from 0: every one there is), blocks of the file and indirect blocks apart. */
export function allPointers(inode: Inode): {
  blocks: { block: number; pointer: BlockPointer }[];
  indirects: BlockPointer[];
} {
  const blocks: { block: number; pointer: BlockPointer }[] = [];
  const indirects: BlockPointer[] = [];
  const visit = (node: IndirectNode): void => {
    indirects.push(node.home);
    for (let slot = 0; slot < INDIRECT_POINTERS; slot++) {
      const pointer = node.level === 1 ? readPointer(node.sector, entryOffset(slot)) : null;
      if (pointer !== null) blocks.push({ block: node.firstBlock + slot, pointer });
    }
    for (const child of node.children.values()) visit(child);
  };
  for (let block = 0; block < DIRECT_POINTERS; block++) {
    const pointer = areaPointer(inode, block);
    if (pointer !== null) blocks.push({ block, pointer });
  }
  for (const root of inode.roots) if (root) visit(root);
  return { blocks, indirects };
}
