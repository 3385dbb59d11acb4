import { SECTOR_BYTES, SECTORS_PER_PAGE } from '../common/units.js';
import type { SlotContent } from './cache-map.js';
import { hasPartial } from './slot-content.js';

/**
 * More arithmetic on what is in a page (see slot-content.ts): making the sectors of a partial run whole, and taking sectors away.
 * Pure; offsets are in the page.
 */

/** The sectors that [start, end) touches. */
export function sectorMask(start: number, end: number): number {
  let mask = 0;
  for (let sector = Math.floor(start / SECTOR_BYTES); sector * SECTOR_BYTES < end; sector++) mask |= 1 << sector;
  return mask;
}

/** The sectors that lie wholly in [start, end). */
export function wholeSectorMask(start: number, end: number): number {
  let mask = 0;
  for (let sector = Math.ceil(start / SECTOR_BYTES); (sector + 1) * SECTOR_BYTES <= end; sector++) mask |= 1 << sector;
  return mask;
}

/** The sectors of the partial run that are not valid. */
export const partialMask = (content: SlotContent): number =>
  hasPartial(content) ? sectorMask(content.partialStart, content.partialEnd) & ~content.validMask : 0;

/** Of these, the ones with bytes before `sizeInPage` that the run doesn't have. */
export function readsNeeded(content: SlotContent, sizeInPage: number): number {
  let mask = 0;
  for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
    if ((partialMask(content) & (1 << sector)) === 0) continue;
    const start = sector * SECTOR_BYTES;
    const end = Math.min(start + SECTOR_BYTES, sizeInPage);
    const before = Math.min(content.partialStart, end) > start;
    const behind = end > Math.max(content.partialEnd, start);
    if (before || behind) mask |= 1 << sector;
  }
  return mask;
}

/**
 * The sectors become valid: `put` brings the bytes that are neither valid nor in the run; sectors that the run touches become dirty,
 * since part of them is.
 */
export function completeSectors(content: SlotContent, mask: number, put: (start: number, end: number) => void): void {
  for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
    const bit = 1 << sector;
    if ((mask & bit) === 0 || (content.validMask & bit) !== 0) continue;
    const start = sector * SECTOR_BYTES;
    const end = start + SECTOR_BYTES;
    const from = Math.min(Math.max(content.partialStart, start), end);
    const to = Math.max(Math.min(content.partialEnd, end), start);
    if (!hasPartial(content) || from >= to) put(start, end);
    else {
      if (start < from) put(start, from);
      if (to < end) put(to, end);
      content.dirtyMask |= bit;
    }
    content.validMask |= bit;
  }
  trimPartial(content);
}

/** The ends of the run that lie in valid sectors are cut off; those sectors are dirty. */
function trimPartial(content: SlotContent): void {
  while (hasPartial(content)) {
    const bit = 1 << Math.floor(content.partialStart / SECTOR_BYTES);
    if ((content.validMask & bit) === 0) break;
    content.dirtyMask |= bit;
    content.partialStart = (Math.floor(content.partialStart / SECTOR_BYTES) + 1) * SECTOR_BYTES;
  }
  while (hasPartial(content)) {
    const sector = Math.floor((content.partialEnd - 1) / SECTOR_BYTES);
    if ((content.validMask & (1 << sector)) === 0) break;
    content.dirtyMask |= 1 << sector;
    content.partialEnd = sector * SECTOR_BYTES;
  }
  if (!hasPartial(content)) content.partialStart = content.partialEnd = 0;
}

/** [start, end) would leave bytes of the run on both its sides. */
export const splitsPartial = (content: SlotContent, start: number, end: number): boolean =>
  hasPartial(content) && content.partialStart < start && end < content.partialEnd;

/**
 * Forgets [start, end): sectors that lie wholly in it, and the run's bytes there. Sectors that it only touches stay as they are.
 * The run must not be split by it.
 */
export function forgetBytes(content: SlotContent, start: number, end: number): void {
  const whole = wholeSectorMask(start, end);
  content.validMask &= ~whole;
  content.dirtyMask &= ~whole;
  if (!hasPartial(content) || end <= content.partialStart || content.partialEnd <= start) return;
  // Bytes of the run in valid sectors are those sectors', which stay or go whole.
  if (content.partialStart >= start) content.partialStart = Math.min(end, content.partialEnd);
  else content.partialEnd = start;
  if (content.partialStart >= content.partialEnd) content.partialStart = content.partialEnd = 0;
  trimPartial(content);
}
