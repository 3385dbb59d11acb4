/**
 * Whether what a record names can be there at all: sectors of NSDs that the file system has, space that can be allocated, numbers that inodes can have. A record
 * that was read under good checksums and names something else is of no use to anybody, and redo must not write by it.
 */
import { copiesOf } from '../../nsd/copies.js';
import { INODES_PER_SEGMENT } from '../../token-manager/token.js';
import { pointerFault } from '../block-pointer.js';
import type { Extent, Geometry } from '../layout.js';
import type { LogRecord } from './log-records.js';

const AS_POINTER = { placementClass: 0, flags: 0, birthEpoch: 0 };

/** Null: it can be there. */
export function recordFault(record: LogRecord, geometry: Geometry): string | null {
  switch (record.kind) {
    case 'sector':
      return sectorFault(record.sector, geometry);
    case 'limbo':
    case 'settled':
    case 'shipped':
    case 'arrived':
      for (const extent of record.extents) {
        const fault = extentFault(extent, geometry);
        if (fault !== null) return fault;
      }
      return null;
    case 'numbersTaken':
    case 'numbersSettled':
      return numberFault(record.first + record.count - 1, geometry);
    case 'orphan':
    case 'orphanSettled':
      return numberFault(record.ino, geometry);
    case 'reset':
      return null;
  }
}

function sectorFault({ nsd, sector }: { readonly nsd: number; readonly sector: number }, geometry: Geometry) {
  const fault = pointerFault({ nsd: nsd as Extent['nsd'], sector, count: 1, ...AS_POINTER }, geometry);
  return fault === null
    ? null
    : `a record about sector ${sector} of NSD ${copiesOf(nsd as Extent['nsd']).join('+')}, which is none of the file system's`;
}

function extentFault({ nsd, sector, count }: Extent, geometry: Geometry): string | null {
  const fault = pointerFault({ nsd, sector, count, ...AS_POINTER }, geometry);
  return fault === null ? null : `space that is none of the file system's: ${fault}`;
}

const numberFault = (ino: number, { segmentCount }: Geometry): string | null =>
  ino < segmentCount * INODES_PER_SEGMENT ? null : `inode ${ino}, which can't be there`;
