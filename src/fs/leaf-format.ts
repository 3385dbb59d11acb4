/**
 * A directory's leaf: one sector of entries in no order, packed from the front. Which names belong to it is the business of
 * extensible hashing (directory.ts); here is only what is inside.
 *
 *   40 u8 local depth   42 u16 entries   44 u16 bytes used behind the header   48 entries:
 *      u32 hash, u64 inode, u32 generation, u8 type, u8 length of the name, name
 */
import type { InodeNumber } from '../common/ids.js';
import { inodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Checksums } from '../nsd/checksums.js';
import { FileType } from './file-system-api.js';
import { DIRECTORY_DEPTH_MAX } from './inode-format.js';
import { getU16, getU32, getU64, isZero, Magic, sectorFault, setU16, setU32, setU64, writeHeader } from './sector.js';

export const LEAF_ENTRIES_AT = 48;
export const LEAF_CAPACITY_BYTES = SECTOR_BYTES - LEAF_ENTRIES_AT;
const ENTRY_HEADER_BYTES = 18;

export interface LeafEntry {
  readonly ino: InodeNumber;
  readonly generation: number;
  readonly type: FileType;
}
export interface NamedEntry extends LeafEntry {
  readonly hash: number;
  readonly name: Uint8Array;
}

export const entryBytes = (nameLength: number): number => ENTRY_HEADER_BYTES + nameLength;
export const leafExists = (leaf: Uint8Array): boolean => getU32(leaf, 0) === Magic.leaf;
export const leafDepth = (leaf: Uint8Array): number => leaf[40]!;
export const leafEntryCount = (leaf: Uint8Array): number => getU16(leaf, 42);
export const leafUsedBytes = (leaf: Uint8Array): number => getU16(leaf, 44);

/** MurmurHash3 x86_32 (Appleby, public domain): good low bits, which is what picks the leaf. */
export function hashName(name: Uint8Array, seed: number): number {
  let h = seed | 0;
  const whole = name.length & ~3;
  let i = 0;
  for (; i < whole; i += 4) {
    let k = name[i]! | (name[i + 1]! << 8) | (name[i + 2]! << 16) | (name[i + 3]! << 24);
    k = Math.imul(k, 0xcc9e2d51);
    k = (k << 15) | (k >>> 17);
    h ^= Math.imul(k, 0x1b873593);
    h = (h << 13) | (h >>> 19);
    h = (Math.imul(h, 5) + 0xe6546b64) | 0;
  }
  let k = 0;
  const tail = name.length & 3;
  if (tail === 3) k ^= name[i + 2]! << 16;
  if (tail >= 2) k ^= name[i + 1]! << 8;
  if (tail >= 1) {
    k ^= name[i]!;
    k = Math.imul(k, 0xcc9e2d51);
    k = (k << 15) | (k >>> 17);
    h ^= Math.imul(k, 0x1b873593);
  }
  h ^= name.length;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

export function formatLeaf(
  leaf: Uint8Array,
  directory: InodeNumber,
  index: number,
  depth: number,
  generation: number,
  fsId: bigint,
): void {
  leaf.fill(0);
  writeHeader(leaf, { magic: Magic.leaf, fsId, owner: directory, index, generation });
  leaf[40] = depth;
}

/** Where the entry of this name begins, or -1. */
export function findEntry(leaf: Uint8Array, hash: number, name: Uint8Array): number {
  const end = LEAF_ENTRIES_AT + leafUsedBytes(leaf);
  const h0 = hash & 0xff;
  const h1 = (hash >>> 8) & 0xff;
  for (let at = LEAF_ENTRIES_AT; at < end; ) {
    const length = leaf[at + 17]!;
    if (leaf[at] === h0 && leaf[at + 1] === h1 && length === name.length && getU32(leaf, at) === hash) {
      let i = 0;
      while (i < length && leaf[at + ENTRY_HEADER_BYTES + i] === name[i]) i++;
      if (i === length) return at;
    }
    at += ENTRY_HEADER_BYTES + length;
  }
  return -1;
}

export const entryAt = (leaf: Uint8Array, at: number): LeafEntry => ({
  ino: inodeNumber(getU64(leaf, at + 4)),
  generation: getU32(leaf, at + 12),
  type: leaf[at + 16] as FileType,
});

export function setEntryAt(leaf: Uint8Array, at: number, entry: LeafEntry): void {
  setU64(leaf, at + 4, entry.ino);
  setU32(leaf, at + 12, entry.generation);
  leaf[at + 16] = entry.type;
}

/** The caller has seen that it fits. */
export function appendEntry(leaf: Uint8Array, hash: number, name: Uint8Array, entry: LeafEntry): void {
  const used = leafUsedBytes(leaf);
  const at = LEAF_ENTRIES_AT + used;
  setU32(leaf, at, hash);
  setEntryAt(leaf, at, entry);
  leaf[at + 17] = name.length;
  leaf.set(name, at + ENTRY_HEADER_BYTES);
  setU16(leaf, 42, leafEntryCount(leaf) + 1);
  setU16(leaf, 44, used + entryBytes(name.length));
}

export function removeEntry(leaf: Uint8Array, at: number): void {
  const used = leafUsedBytes(leaf);
  const bytes = entryBytes(leaf[at + 17]!);
  const end = LEAF_ENTRIES_AT + used;
  leaf.copyWithin(at, at + bytes, end);
  leaf.fill(0, end - bytes, end);
  setU16(leaf, 42, leafEntryCount(leaf) - 1);
  setU16(leaf, 44, used - bytes);
}

/** Names are copies: they outlive the page. */
export function leafEntries(leaf: Uint8Array): NamedEntry[] {
  const entries: NamedEntry[] = [];
  const end = LEAF_ENTRIES_AT + leafUsedBytes(leaf);
  for (let at = LEAF_ENTRIES_AT; at < end; ) {
    const length = leaf[at + 17]!;
    const name = leaf.slice(at + ENTRY_HEADER_BYTES, at + ENTRY_HEADER_BYTES + length);
    entries.push({ hash: getU32(leaf, at), name, ...entryAt(leaf, at) });
    at += ENTRY_HEADER_BYTES + length;
  }
  return entries;
}

/** What is wrong with a leaf as it came from the device, or null. Afterwards its entries can be walked without a check. */
export function leafFault(
  leaf: Uint8Array,
  directory: { readonly ino: InodeNumber; readonly generation: number },
  index: number,
  fsId: bigint,
  checksums: Checksums,
): string | null {
  if (isZero(leaf)) return null;
  const fault = sectorFault(leaf, { magic: Magic.leaf, fsId, owner: directory.ino, index }, checksums);
  if (fault !== null) return fault;
  if (getU32(leaf, 32) !== directory.generation)
    return `of generation ${getU32(leaf, 32)} instead of ${directory.generation}`;
  if (leafDepth(leaf) > DIRECTORY_DEPTH_MAX) return `local depth ${leafDepth(leaf)}`;
  if (index >= 2 ** leafDepth(leaf)) return `local depth ${leafDepth(leaf)} of leaf ${index}`;
  const used = leafUsedBytes(leaf);
  if (used > LEAF_CAPACITY_BYTES) return `${used} bytes used`;
  const end = LEAF_ENTRIES_AT + used;
  let count = 0;
  let at = LEAF_ENTRIES_AT;
  while (at < end) {
    if (at + ENTRY_HEADER_BYTES > end) return `entry ${count} runs out of the leaf`;
    const length = leaf[at + 17]!;
    const type = leaf[at + 16]!;
    if (length === 0 || type === 0 || type > FileType.socket) return `entry ${count} has type ${type}, ${length} bytes`;
    if (Number.isNaN(getU64(leaf, at + 4))) return `entry ${count} names no inode`;
    at += ENTRY_HEADER_BYTES + length;
    count++;
  }
  if (at !== end || count !== leafEntryCount(leaf)) return `${count} entries instead of ${leafEntryCount(leaf)}`;
  return null;
}
