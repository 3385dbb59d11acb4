/**
 * What of an inode's sector that doesn't verify can still be believed.
 *
 * A sector whose checksum is right and whose header is another's is another's: nothing of it is taken. One whose checksum is wrong is taken field by
 * field if three of the four things that its header says are right; what can't be is dropped, and named.
 */
import type { InodeNumber } from '../../common/ids.js';
import { RANGE_END } from '../../common/units.js';
import type { Checksums } from '../../nsd/checksums.js';
import { POINTER_BYTES, pointerFault, readPointer, writePointer } from '../block-pointer.js';
import { FileType } from '../file-system-api.js';
import {
  ALLOCATED_SUB_BLOCKS_MAX,
  AREA_AT,
  AREA_BYTES,
  DIRECTORY_DEPTH_MAX,
  decodeInode,
  FREE_INODE,
  InodeFlag,
  KNOWN_FLAGS,
} from '../inode-format.js';
import type { Geometry } from '../layout.js';
import {
  getI64,
  getU16,
  getU32,
  getU64,
  type SectorIdentity,
  sealSector,
  setU16,
  setU32,
  setU64,
  writeHeader,
} from '../sector.js';
import { KEPT_AT, KEPT_BYTES, keptFault } from '../xattr-format.js';

export interface Salvaged {
  /** Not sealed. */
  readonly sector: Uint8Array;
  readonly dropped: readonly string[];
}

/** Whether a sector is the one it should be, for all that can be seen: damaged somewhere, and not another's. */
export function isItself(
  sector: Uint8Array,
  expected: Omit<SectorIdentity, 'generation'>,
  checksums: Checksums,
): boolean {
  const signs = [
    getU32(sector, 0) === expected.magic,
    getI64(sector, 8) === BigInt.asIntN(64, expected.fsId),
    getU64(sector, 16) === expected.owner,
    getU64(sector, 24) === expected.index,
  ];
  const right = signs.filter(Boolean).length;
  return right === signs.length || (right === signs.length - 1 && !isSealed(sector, checksums));
}

function isSealed(sector: Uint8Array, checksums: Checksums): boolean {
  const copy = sector.slice();
  sealSector(copy, checksums);
  return getU32(copy, 4) === getU32(sector, 4);
}

export function salvageInode(
  ino: InodeNumber,
  damaged: Uint8Array,
  identity: Omit<SectorIdentity, 'generation'>,
  geometry: Geometry,
  checksums: Checksums,
): Salvaged | null {
  if (!isItself(damaged, identity, checksums)) return null;
  const sector = damaged.slice();
  const type = sector[40]!;
  if (type === FREE_INODE || type > FileType.socket) return null;
  writeHeader(sector, { ...identity, generation: getU32(damaged, 32) });
  const dropped: string[] = [];
  const mode = getU16(sector, 42);
  if (mode > 0o7777) {
    setU16(sector, 42, mode & 0o7777);
    dropped.push('bits of its mode');
  }
  // Of a directory nothing is inline: what it has are pointers.
  const flags = type === FileType.directory ? KNOWN_FLAGS & ~InodeFlag.inline : KNOWN_FLAGS;
  setU32(sector, 104, getU32(sector, 104) & flags);
  for (const [at, what, max] of [
    [96, 'its device number', Number.MAX_SAFE_INTEGER],
    [112, 'its count of sub-blocks', ALLOCATED_SUB_BLOCKS_MAX],
    [120, 'its parent', Number.MAX_SAFE_INTEGER],
  ] as const)
    if (!(getU64(sector, at) <= max)) {
      setU64(sector, at, 0);
      dropped.push(what);
    }
  if (sector[110]! > DIRECTORY_DEPTH_MAX) {
    sector[110] = 0;
    dropped.push('its depth');
  }
  salvageAttributes(sector, geometry, dropped);
  salvageArea(sector, geometry, dropped);
  sealSector(sector, checksums);
  try {
    return decodeInode(ino, sector, identity.fsId, geometry, checksums) === null ? null : { sector, dropped };
  } catch {
    // More is wrong with it than can be dropped.
    return null;
  }
}

function salvageAttributes(sector: Uint8Array, geometry: Geometry, dropped: string[]): void {
  const kept = sector.subarray(KEPT_AT, KEPT_AT + KEPT_BYTES);
  if (kept.every((byte) => byte === 0) || keptFault(kept, geometry) === null) return;
  kept.fill(0);
  dropped.push('its extended attributes');
}

function salvageArea(sector: Uint8Array, geometry: Geometry, dropped: string[]): void {
  const inline = (getU32(sector, 104) & InodeFlag.inline) !== 0;
  let used = getU16(sector, 108);
  const size = getU64(sector, 56);
  if (inline) {
    if (used > AREA_BYTES || used !== size) {
      // One of the two is right; zeros at the end of the area are nobody's loss.
      used = Math.min(size <= AREA_BYTES ? size : used, AREA_BYTES);
      setU16(sector, 108, used);
      setU64(sector, 56, used);
      dropped.push('its size');
    }
    return;
  }
  if (used > AREA_BYTES || used % POINTER_BYTES !== 0) {
    used = AREA_BYTES - (AREA_BYTES % POINTER_BYTES);
    setU16(sector, 108, used);
  }
  if (!(size <= RANGE_END)) {
    setU64(sector, 56, 0);
    dropped.push('its size');
  }
  for (let entry = 0; entry < used / POINTER_BYTES; entry++) {
    const at = AREA_AT + entry * POINTER_BYTES;
    const pointer = readPointer(sector, at);
    const fault = pointer === null ? null : pointerFault(pointer, geometry);
    if (fault === null) continue;
    writePointer(sector, at, null);
    dropped.push(`pointer ${entry} of its area (${fault})`);
  }
}
