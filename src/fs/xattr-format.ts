/**
 * Extended attributes on the device: in the kept area of the inode (bytes 256 to 639), and what doesn't fit there in a block of its own, that is written
 * anew with every change. Also in there: the target of a symbolic link that is longer than an inode's area.
 *
 * Kept area: 0 u16 bytes of entries   2 u8 flags   4 u32 bytes of entries in the block   8 pointer to the block   24 entries
 * Entry: u8 name space   u8 length of the name   u32 length of the value   name (without its space)   value
 * Block: sectors with a header each, from byte 64 on the bytes of its entries.
 *
 * Fault model: all of it may be anything; what contradicts itself is refused when the inode or the block is read.
 */
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import type { Checksums } from '../nsd/checksums.js';
import { type BlockPointer, pointerFault, readPointer, writePointer } from './block-pointer.js';
import type { Geometry } from './layout.js';
import { corrupt, getU16, getU32, Magic, sealSector, sectorFault, setU16, setU32, writeHeader } from './sector.js';

export const KEPT_AT = 256;
export const KEPT_BYTES = 384;
const ENTRIES_AT = 24;
const INLINE_BYTES = KEPT_BYTES - ENTRIES_AT;
const ENTRY_HEADER_BYTES = 6;
const SECTOR_ENTRIES_AT = 64;
const SECTOR_ROOM = SECTOR_BYTES - SECTOR_ENTRIES_AT;
const BLOCK_BYTES_MAX = SUB_BLOCKS_PER_BLOCK * SECTOR_ROOM;

export const XattrSpace = { user: 1, trusted: 2, security: 3, accessAcl: 4, defaultAcl: 5, linkTarget: 6 } as const;
export type XattrSpace = (typeof XattrSpace)[keyof typeof XattrSpace];
const SPACES: ReadonlySet<number> = new Set(Object.values(XattrSpace));

/** The block holds an access list, or a default one: the inode is not complete without it. */
const KeptFlag = { accessAclInBlock: 1, defaultAclInBlock: 2 } as const;

export interface XattrEntry {
  readonly space: XattrSpace;
  readonly name: string;
  readonly value: Uint8Array;
}
export interface XattrBlock {
  readonly pointer: BlockPointer;
  readonly lengthBytes: number;
}

export const sameName = (a: XattrEntry, b: Pick<XattrEntry, 'space' | 'name'>): boolean =>
  a.space === b.space && a.name === b.name;

const entryBytes = ({ name, value }: XattrEntry): number => ENTRY_HEADER_BYTES + Buffer.byteLength(name) + value.length;
const totalBytes = (entries: readonly XattrEntry[]): number =>
  entries.reduce((sum, entry) => sum + entryBytes(entry), 0);

export function encodeEntries(entries: readonly XattrEntry[]): Uint8Array {
  const bytes = new Uint8Array(totalBytes(entries));
  let at = 0;
  for (const { space, name, value } of entries) {
    const nameBytes = Buffer.from(name, 'utf8');
    bytes[at] = space;
    bytes[at + 1] = nameBytes.length;
    setU32(bytes, at + 2, value.length);
    bytes.set(nameBytes, at + ENTRY_HEADER_BYTES);
    bytes.set(value, at + ENTRY_HEADER_BYTES + nameBytes.length);
    at += ENTRY_HEADER_BYTES + nameBytes.length + value.length;
  }
  return bytes;
}

/** What is wrong with the entries, or the entries. */
function decodeEntries(bytes: Uint8Array): XattrEntry[] | string {
  const entries: XattrEntry[] = [];
  for (let at = 0; at < bytes.length; ) {
    if (at + ENTRY_HEADER_BYTES > bytes.length) return 'an attribute that is cut off';
    const space = bytes[at]!;
    if (!SPACES.has(space)) return `an attribute of space ${space}`;
    const nameAt = at + ENTRY_HEADER_BYTES;
    const valueAt = nameAt + bytes[at + 1]!;
    const end = valueAt + getU32(bytes, at + 2);
    if (end > bytes.length) return 'an attribute that is cut off';
    const name = Buffer.from(bytes.subarray(nameAt, valueAt)).toString('utf8');
    entries.push({ space: space as XattrSpace, name, value: bytes.slice(valueAt, end) });
    at = end;
  }
  return entries;
}

/** Which entries go where: access lists first into the inode, then the small ones. Null: more than there is room for. */
export function placeEntries(
  entries: readonly XattrEntry[],
): { inline: readonly XattrEntry[]; block: readonly XattrEntry[] } | null {
  const isAcl = ({ space }: XattrEntry): boolean => space === XattrSpace.accessAcl || space === XattrSpace.defaultAcl;
  const sorted = [...entries].sort((a, b) => Number(isAcl(b)) - Number(isAcl(a)) || entryBytes(a) - entryBytes(b));
  const inline: XattrEntry[] = [];
  const block: XattrEntry[] = [];
  let room = INLINE_BYTES;
  for (const entry of sorted) {
    const fits = entryBytes(entry) <= room;
    if (fits) room -= entryBytes(entry);
    (fits ? inline : block).push(entry);
  }
  return totalBytes(block) > BLOCK_BYTES_MAX ? null : { inline, block };
}

/** The kept area; empty when there is nothing to be kept. */
export function encodeKept(
  inline: readonly XattrEntry[],
  block: XattrBlock | null,
  inBlock: readonly XattrEntry[],
): Uint8Array {
  if (inline.length === 0 && block === null) return new Uint8Array(0);
  const kept = new Uint8Array(KEPT_BYTES);
  const entries = encodeEntries(inline);
  setU16(kept, 0, entries.length);
  const holds = (space: XattrSpace): boolean => inBlock.some((entry) => entry.space === space);
  kept[2] =
    (holds(XattrSpace.accessAcl) ? KeptFlag.accessAclInBlock : 0) |
    (holds(XattrSpace.defaultAcl) ? KeptFlag.defaultAclInBlock : 0);
  setU32(kept, 4, block?.lengthBytes ?? 0);
  writePointer(kept, 8, block?.pointer ?? null);
  kept.set(entries, ENTRIES_AT);
  return kept;
}

export const keptEntries = (kept: Uint8Array): XattrEntry[] => {
  if (kept.length === 0) return [];
  const entries = decodeEntries(kept.subarray(ENTRIES_AT, ENTRIES_AT + getU16(kept, 0)));
  // It was looked through when the inode was read.
  return typeof entries === 'string' ? [] : entries;
};
export function keptBlock(kept: Uint8Array): XattrBlock | null {
  if (kept.length === 0) return null;
  const pointer = readPointer(kept, 8);
  return pointer === null ? null : { pointer, lengthBytes: getU32(kept, 4) };
}
export const aclInBlock = (kept: Uint8Array): boolean => kept.length > 0 && kept[2] !== 0;

/** What is wrong with a kept area, or null. */
export function keptFault(kept: Uint8Array, geometry: Geometry): string | null {
  const used = getU16(kept, 0);
  if (used > INLINE_BYTES) return `${used} bytes of attributes`;
  const entries = decodeEntries(kept.subarray(ENTRIES_AT, ENTRIES_AT + used));
  if (typeof entries === 'string') return entries;
  const block = keptBlock(kept);
  if (block === null) return getU32(kept, 4) === 0 && kept[2] === 0 ? null : 'attributes in a block that is not there';
  if (Math.ceil(block.lengthBytes / SECTOR_ROOM) !== block.pointer.count)
    return `${block.lengthBytes} bytes of attributes in ${block.pointer.count} sub-blocks`;
  return pointerFault(block.pointer, geometry);
}

export const sectorsFor = (lengthBytes: number): number => Math.ceil(lengthBytes / SECTOR_ROOM);

interface BlockOwner {
  readonly ino: InodeNumber;
  readonly generation: number;
}

/** `target` has room for the sectors. */
export function encodeXattrBlock(
  bytes: Uint8Array,
  { ino, generation }: BlockOwner,
  target: Uint8Array,
  fsId: bigint,
  checksums: Checksums,
): void {
  for (let index = 0; index < sectorsFor(bytes.length); index++) {
    const sector = target.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
    sector.fill(0);
    writeHeader(sector, { magic: Magic.xattrs, fsId, owner: ino, index, generation });
    sector.set(bytes.subarray(index * SECTOR_ROOM, (index + 1) * SECTOR_ROOM), SECTOR_ENTRIES_AT);
    sealSector(sector, checksums);
  }
}

/** @throws {FsError} corrupt */
export function decodeXattrBlock(
  sectors: Uint8Array,
  { ino, generation }: BlockOwner,
  lengthBytes: number,
  fsId: bigint,
  checksums: Checksums,
): XattrEntry[] {
  const bad = (detail: string) => corrupt('xattr.read', `inode ${ino}`, detail);
  const bytes = new Uint8Array(lengthBytes);
  for (let index = 0; index < sectorsFor(lengthBytes); index++) {
    const sector = sectors.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
    const fault = sectorFault(sector, { magic: Magic.xattrs, fsId, owner: ino, index }, checksums);
    if (fault !== null) throw bad(`block of attributes, sector ${index}: ${fault}`);
    if (getU32(sector, 32) !== generation) throw bad('block of attributes of another life of the inode');
    const room = Math.min(SECTOR_ROOM, lengthBytes - index * SECTOR_ROOM);
    bytes.set(sector.subarray(SECTOR_ENTRIES_AT, SECTOR_ENTRIES_AT + room), index * SECTOR_ROOM);
  }
  const entries = decodeEntries(bytes);
  if (typeof entries === 'string') throw bad(entries);
  return entries;
}
