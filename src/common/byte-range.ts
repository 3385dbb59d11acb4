import { RANGE_END, SECTOR_BYTES } from './units.js';

/** Half-open: [start, end). Both are safe integers, start < end unless the range is empty. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

export const range = (start: number, end: number): ByteRange => ({ start, end });
export const WHOLE: ByteRange = { start: 0, end: RANGE_END };

export const isEmpty = (r: ByteRange): boolean => r.end <= r.start;
export const overlaps = (a: ByteRange, b: ByteRange): boolean => a.start < b.end && b.start < a.end;
export const contains = (outer: ByteRange, inner: ByteRange): boolean =>
  outer.start <= inner.start && inner.end <= outer.end;
export const intersect = (a: ByteRange, b: ByteRange): ByteRange => ({
  start: Math.max(a.start, b.start),
  end: Math.min(a.end, b.end),
});
export const hull = (a: ByteRange, b: ByteRange): ByteRange => ({
  start: Math.min(a.start, b.start),
  end: Math.max(a.end, b.end),
});
/** What is left of `a` without `b`: none, one or two ranges, ascending. */
export function subtract(a: ByteRange, b: ByteRange): ByteRange[] {
  if (!overlaps(a, b)) return isEmpty(a) ? [] : [a];
  const rest: ByteRange[] = [];
  if (a.start < b.start) rest.push({ start: a.start, end: b.start });
  if (b.end < a.end) rest.push({ start: b.end, end: a.end });
  return rest;
}
/** Rounded out to sectors (T1), clipped to the end of the token space. */
export function roundOut(r: ByteRange, unitBytes: number = SECTOR_BYTES): ByteRange {
  const start = Math.floor(r.start / unitBytes) * unitBytes;
  const end = Math.min(RANGE_END, Math.ceil(r.end / unitBytes) * unitBytes);
  return { start, end };
}
