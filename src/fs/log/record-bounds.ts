/**
 * Whether what a record names can be there at all: sectors of NSDs that the file system has, space that can be allocated, numbers that inodes can have. A record
 * that was read under good checksums and names something else is of no use to anybody, and redo must not write by it.
 */
import type { NsdIndex } from '../../common/ids.js';
import { copiesOf } from '../../nsd/copies.js';
import { INODES_PER_SEGMENT } from '../../token-manager/token.js';
import { placeFault } from '../block-pointer.js';
import type { Geometry } from '../layout.js';
import type { LogRecord } from './log-records.js';
import type { LooseEnd } from './loose-ends.js';

/** Null: it can be there. */
export const recordFault = (record: LogRecord, geometry: Geometry): string | null =>
  record.kind === 'sector'
    ? sectorFault(record.sector.nsd, record.sector.sector, geometry)
    : endFault(record, geometry);

export const sectorFault = (nsd: NsdIndex, sector: number, geometry: Geometry): string | null =>
  placeFault(nsd, sector, 1, geometry) === null
    ? null
    : `a record about sector ${sector} of NSD ${copiesOf(nsd).join('+')}, which is none of the file system's`;

export function endFault(change: LooseEnd, geometry: Geometry): string | null {
  switch (change.kind) {
    case 'limbo':
    case 'settled':
    case 'shipped':
    case 'arrived':
      for (const { nsd, sector, count } of change.extents) {
        const fault = placeFault(nsd, sector, count, geometry);
        if (fault !== null) return `space that is none of the file system's: ${fault}`;
      }
      return null;
    case 'numbersTaken':
    case 'numbersSettled':
      return numberFault(change.first + change.count - 1, geometry);
    case 'orphan':
    case 'orphanSettled':
      return numberFault(change.ino, geometry);
    case 'reset':
      return null;
  }
}

const numberFault = (ino: number, { segmentCount }: Geometry): string | null =>
  ino < segmentCount * INODES_PER_SEGMENT ? null : `inode ${ino}, which can't be there`;
