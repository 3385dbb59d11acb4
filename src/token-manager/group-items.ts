/**
 * From the items of an operation to what is asked for: the total order of T4.
 *
 * Items are sorted by class, object, offset; those of one object become one group, which is asked for, granted and pinned
 * together. Were they pinned one by one, an operation with a pin on one range of an object could stand in line for another
 * range of it behind a request that waits for the pin: a deadlock that first come, first served makes (docs/token-protocol.md,
 * Deadlock). Ranges are rounded out to sectors (T1) for data and status; overlapping ranges become one.
 */
import { type ByteRange, hull, roundOut } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { RANGE_END } from '../common/units.js';
import { join, modeExists } from './compatibility.js';
import { OBJECT_MAX } from './holder-table.js';
import { compareItems, TokenClass, type TokenItem } from './token.js';
import type { TokenGroup } from './token-client-events.js';
import { REQUEST_PARTS_MAX, type RequestPart } from './token-messages.js';

const valid = (r: ByteRange): boolean =>
  Number.isSafeInteger(r.start) && Number.isSafeInteger(r.end) && r.start >= 0 && r.start < r.end && r.end <= RANGE_END;

/** @throws {FsError} invalidArgument */
export function groupItems(items: readonly TokenItem[]): TokenGroup[] {
  const groups: { class: TokenClass; object: number; parts: RequestPart[] }[] = [];
  for (const item of items.length < 2 ? items : [...items].sort(compareItems)) {
    if (
      !valid(item.required) ||
      !(item.object >= 0 && item.object <= OBJECT_MAX) ||
      !modeExists(item.class, item.mode)
    ) {
      const { start, end } = item.required;
      const object = `${Object.keys(TokenClass)[item.class]} ${item.object} [${start}, ${end}) mode ${item.mode}`;
      throw new FsError('invalidArgument', { op: 'token.acquire', object });
    }
    const bySector = item.class === TokenClass.data || item.class === TokenClass.status;
    const required = bySector ? roundOut(item.required) : item.required;
    const whole = valid(item.desired) ? hull(item.desired, required) : required;
    const part = { mode: item.mode, required, desired: bySector ? roundOut(whole) : whole };
    const group = groups[groups.length - 1];
    if (group?.class === item.class && group.object === item.object) addPart(group.parts, part);
    else groups.push({ class: item.class, object: item.object, parts: [part] });
  }
  for (const group of groups) while (group.parts.length > REQUEST_PARTS_MAX) mergeNearest(group.parts);
  return groups;
}

const merge = (a: RequestPart, b: RequestPart): RequestPart => ({
  mode: join(a.mode, b.mode),
  required: hull(a.required, b.required),
  desired: hull(a.desired, b.desired),
});

/** Parts arrive in ascending order of their starts. */
function addPart(parts: RequestPart[], part: RequestPart): void {
  const last = parts[parts.length - 1];
  const joins =
    last !== undefined &&
    (part.required.start < last.required.end || (part.required.start === last.required.end && part.mode === last.mode));
  if (joins) parts[parts.length - 1] = merge(last, part);
  else parts.push(part);
}

/** Too many for one request: the two with the smallest gap become one. */
function mergeNearest(parts: RequestPart[]): void {
  let nearest = 1;
  const gap = (i: number): number => parts[i]!.required.start - parts[i - 1]!.required.end;
  for (let i = 2; i < parts.length; i++) if (gap(i) < gap(nearest)) nearest = i;
  parts.splice(nearest - 1, 2, merge(parts[nearest - 1]!, parts[nearest]!));
}
