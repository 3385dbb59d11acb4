import { PAGE_BYTES, SECTOR_BYTES, SECTORS_PER_PAGE } from '../common/units.js';
import type { SlotContent } from './cache-map.js';

/**
 * Arithmetic on what is in a page: valid sectors, dirty sectors, and one run of bytes that is both though its sectors aren't.
 *
 * The same rules as native/core/src/page_content.h; the suite compares them. After every write the run is canonical: its first
 * and its last sector are not wholly valid. Ranges are in the page, half open, and not empty.
 */
export const ALL_SECTORS_MASK = (1 << SECTORS_PER_PAGE) - 1;

export const EMPTY_CONTENT: Readonly<SlotContent> = { validMask: 0, dirtyMask: 0, partialStart: 0, partialEnd: 0 };

export const hasPartial = (content: SlotContent): boolean => content.partialStart < content.partialEnd;
export const isDirty = (content: SlotContent): boolean => content.dirtyMask !== 0 || hasPartial(content);

/** Dirty only where valid, and a partial range that lies in the page. */
export function isSoundContent(content: SlotContent): boolean {
  const { validMask, dirtyMask, partialStart, partialEnd } = content;
  if (![validMask, dirtyMask, partialStart, partialEnd].every((n) => Number.isInteger(n) && n >= 0)) return false;
  if (validMask > ALL_SECTORS_MASK || (dirtyMask & ~validMask) !== 0) return false;
  if (partialStart === 0 && partialEnd === 0) return true;
  return partialStart < partialEnd && partialEnd <= PAGE_BYTES;
}

/** Every byte of [start, end) lies in a valid sector or in the partial run. */
export function isReadable(content: SlotContent, start: number, end: number): boolean {
  for (let sector = Math.floor(start / SECTOR_BYTES); sector * SECTOR_BYTES < end; sector++) {
    if (content.validMask & (1 << sector)) continue;
    const from = Math.max(start, sector * SECTOR_BYTES);
    const to = Math.min(end, (sector + 1) * SECTOR_BYTES);
    if (from < content.partialStart || to > content.partialEnd) return false;
  }
  return true;
}

/** The content after a write of [start, end); null when masks and one run can't express it. */
export function withWrite(content: SlotContent, start: number, end: number): SlotContent | null {
  let touched = 0;
  let covered = 0;
  let loose = false; // some sector is neither valid nor wholly covered
  for (let sector = Math.floor(start / SECTOR_BYTES); sector * SECTOR_BYTES < end; sector++) {
    const bit = 1 << sector;
    touched |= bit;
    if (start <= sector * SECTOR_BYTES && (sector + 1) * SECTOR_BYTES <= end) covered |= bit;
    else if ((content.validMask & bit) === 0) loose = true;
  }
  // Only this: `content` may be a whole page.
  const next: SlotContent = {
    validMask: content.validMask,
    dirtyMask: content.dirtyMask,
    partialStart: content.partialStart,
    partialEnd: content.partialEnd,
  };
  if (loose) {
    if (!hasPartial(content)) {
      next.partialStart = start;
      next.partialEnd = end;
    } else if (start <= content.partialEnd && content.partialStart <= end) {
      next.partialStart = Math.min(content.partialStart, start);
      next.partialEnd = Math.max(content.partialEnd, end);
    } else {
      return null;
    }
  }
  next.validMask |= covered;
  next.dirtyMask |= touched & next.validMask;
  settle(next);
  return next;
}

/** Sectors that the run covers wholly become valid and dirty; ends of the run that lie in valid sectors are cut off. */
function settle(content: SlotContent): void {
  if (!hasPartial(content)) return;
  for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
    if (content.partialStart <= sector * SECTOR_BYTES && (sector + 1) * SECTOR_BYTES <= content.partialEnd) {
      content.validMask |= 1 << sector;
      content.dirtyMask |= 1 << sector;
    }
  }
  while (hasPartial(content)) {
    const sector = Math.floor(content.partialStart / SECTOR_BYTES);
    if ((content.validMask & (1 << sector)) === 0) break;
    content.dirtyMask |= 1 << sector;
    content.partialStart = (sector + 1) * SECTOR_BYTES;
  }
  while (hasPartial(content)) {
    const sector = Math.floor((content.partialEnd - 1) / SECTOR_BYTES);
    if ((content.validMask & (1 << sector)) === 0) break;
    content.dirtyMask |= 1 << sector;
    content.partialEnd = sector * SECTOR_BYTES;
  }
  if (!hasPartial(content)) content.partialStart = content.partialEnd = 0;
}
