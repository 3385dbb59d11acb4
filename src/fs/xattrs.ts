/**
 * The extended attributes of an inode in memory: reading the block that holds what doesn't fit into the inode, and preparing a new set.
 *
 * A changed block is written to new space, and flushed, before the inode points to it (L1); so a change of attributes is a change of the inode
 * alone, one record. The old block is free once the inode has been written.
 * Under the inode's status token; a change under the exclusive one.
 */
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { type Acl, decodeAcl } from './acl.js';
import { countSubBlocks } from './block-map.js';
import { blockPointer } from './block-pointer.js';
import { durably } from './durable.js';
import type { Inode } from './inode.js';
import type { Volume } from './volume.js';
import {
  aclInBlock,
  decodeXattrBlock,
  encodeEntries,
  encodeKept,
  encodeXattrBlock,
  keptBlock,
  keptEntries,
  placeEntries,
  sectorsFor,
  type XattrBlock,
  type XattrEntry,
  type XattrSpace,
} from './xattr-format.js';

const isComplete = (inode: Inode): boolean => inode.xattrBlock !== null || keptBlock(inode.kept) === null;

/** Reads the block, if there is one and it isn't known. Takes no token. */
export async function loadXattrBlock(volume: Volume, inode: Inode): Promise<void> {
  while (!isComplete(inode)) {
    const { kept, generation } = inode;
    const block = keptBlock(kept)!;
    const { nsd, sector, count } = block.pointer;
    try {
      const entries = await volume.readSectors(nsd, sector, count, (bytes) =>
        decodeXattrBlock(bytes, { ino: inode.ino, generation }, block.lengthBytes, volume.fsId, volume.checksums),
      );
      if (inode.kept === kept) inode.xattrBlock = entries;
    } catch (error) {
      // Another operation of this node has put a new block in its place, and the old one may have been reused.
      if (inode.kept === kept) throw error;
    }
  }
}

/** With all of them known, in one turn: between two turns somebody else may be done with the block and forget it. */
export async function withXattrs<T>(volume: Volume, inode: Inode, use: () => T): Promise<T> {
  while (!isComplete(inode)) await loadXattrBlock(volume, inode);
  try {
    return use();
  } finally {
    forgetLongBlock(inode);
  }
}

/** What is longer is read again when it is asked for: many inodes are kept in memory, and most never are asked for attributes. */
const KEPT_BLOCK_BYTES_MAX = 4096;

/** After a use of the attributes: a long block is forgotten, unless permissions depend on it. */
function forgetLongBlock(inode: Inode): void {
  const block = keptBlock(inode.kept);
  if (block !== null && block.lengthBytes > KEPT_BLOCK_BYTES_MAX && !aclInBlock(inode.kept)) inode.xattrBlock = null;
}

/** All of them, in no order; inside `withXattrs`, or where permissions keep the block known. */
export const allXattrs = (inode: Inode): XattrEntry[] => [...keptEntries(inode.kept), ...(inode.xattrBlock ?? [])];

/** An inode's list, decoded once; its block is loaded if it is in there (InodeTable.get sees to that). */
export function aclOf(inode: Inode, space: typeof XattrSpace.accessAcl | typeof XattrSpace.defaultAcl): Acl | null {
  if (inode.kept.length === 0) return null;
  inode.acls ??= new Map();
  let acl = inode.acls.get(space);
  if (acl === undefined) {
    const found = allXattrs(inode).find((entry) => entry.space === space);
    acl = found === undefined ? null : decodeAcl(found.value, 'acl', `inode ${inode.ino}`);
    inode.acls.set(space, acl);
  }
  return acl;
}

/** A set of attributes as an inode will hold it. */
export interface PreparedXattrs {
  readonly kept: Uint8Array;
  readonly inBlock: readonly XattrEntry[] | null;
  /** Written for it; given back if it is not used after all. */
  readonly block: XattrBlock | null;
}
export const NO_XATTRS: PreparedXattrs = { kept: new Uint8Array(0), inBlock: null, block: null };

const tooMuch = (op: string, ino: InodeNumber) =>
  new FsError('noSpace', { op, object: `inode ${ino}`, detail: 'more extended attributes than a block holds' });

/** When all of it fits into the inode; else null. */
export function tryPrepareXattrs(entries: readonly XattrEntry[]): PreparedXattrs | null {
  const placed = placeEntries(entries);
  if (placed === null || placed.block.length > 0) return null;
  return { kept: encodeKept(placed.inline, null, []), inBlock: null, block: null };
}

/** The same with a block, written and flushed; `present`: the inode's own, used again when nothing in it changes. */
export async function prepareXattrs(
  volume: Volume,
  owner: { readonly ino: InodeNumber; readonly generation: number },
  entries: readonly XattrEntry[],
  present: { readonly kept: Uint8Array; readonly inBlock: readonly XattrEntry[] | null } | null,
  op: string,
): Promise<PreparedXattrs> {
  const placed = placeEntries(entries);
  if (placed === null) throw tooMuch(op, owner.ino);
  const { inline, block: inBlock } = placed;
  if (inBlock.length === 0) return { kept: encodeKept(inline, null, []), inBlock: null, block: null };
  const bytes = encodeEntries(inBlock);
  const old = present === null ? null : keptBlock(present.kept);
  if (old !== null && Buffer.compare(bytes, encodeEntries(present?.inBlock ?? [])) === 0)
    return { kept: encodeKept(inline, old, inBlock), inBlock, block: null };
  const extent = await volume.allocator.allocateMetadata(owner.ino, 0, sectorsFor(bytes.length));
  try {
    await durably(volume.parts.nsds, [extent.nsd], 'attributes', () =>
      volume.writeSectors(extent.nsd, extent.sector, extent.count, (target) =>
        encodeXattrBlock(bytes, owner, target, volume.fsId, volume.checksums),
      ),
    );
  } catch (error) {
    volume.frees.add([extent]);
    throw error;
  }
  const block = { pointer: blockPointer(extent, volume.parts.epoch()), lengthBytes: bytes.length };
  return { kept: encodeKept(inline, block, inBlock), inBlock, block };
}

export function giveUpXattrs(volume: Volume, { block }: PreparedXattrs): void {
  if (block !== null) volume.frees.add([block.pointer]);
}

/** In the turn of the transaction that the inode is part of. */
export function installXattrs(inode: Inode, { kept, inBlock, block }: PreparedXattrs): void {
  const before = keptBlock(inode.kept)?.pointer;
  const after = keptBlock(kept)?.pointer;
  if (before !== undefined && (before.sector !== after?.sector || before.nsd !== after.nsd))
    inode.attributeSpace.given.push(before);
  if (block !== null) inode.attributeSpace.taken.push(block.pointer);
  countSubBlocks(inode, (after?.count ?? 0) - (before?.count ?? 0));
  inode.kept = kept;
  inode.xattrBlock = inBlock === null ? null : [...inBlock];
  inode.acls = null;
  forgetLongBlock(inode);
}
