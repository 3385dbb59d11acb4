/**
 * A run of sectors may have a second copy, at the same address of another NSD. Which two NSDs that are is said wherever one NSD is named: in block pointers,
 * in extents, in the records of the log, in what a caller asks of the storage. So nothing between a pointer and the NSDs has to know of copies.
 *
 *   low byte: the NSD · next byte: the NSD of the second copy + 1, or 0: there is one copy
 */
import { type NsdIndex, nsdIndex } from '../common/ids.js';

const SECOND = 256;
/** NSDs, those with a copy elsewhere included: keys are made with it. */
export const NSD_PAIRS_MAX = 2 ** 15;

export const mirrored = (first: NsdIndex, second: NsdIndex): NsdIndex => nsdIndex(first + (second + 1) * SECOND);
export const isMirrored = (nsd: NsdIndex): boolean => nsd >= SECOND;
export const firstCopy = (nsd: NsdIndex): NsdIndex => nsdIndex(nsd % SECOND);
export const secondCopy = (nsd: NsdIndex): NsdIndex | null =>
  nsd < SECOND ? null : nsdIndex(Math.floor(nsd / SECOND) - 1);

/** The NSDs that the sectors are on, one by one. */
export function copiesOf(nsd: NsdIndex): readonly NsdIndex[] {
  const second = secondCopy(nsd);
  return second === null ? [nsd] : [firstCopy(nsd), second];
}

/** Each of them once. */
export const allCopiesOf = (nsds: Iterable<NsdIndex>): Set<NsdIndex> => {
  const found = new Set<NsdIndex>();
  for (const nsd of nsds) for (const copy of copiesOf(nsd)) found.add(copy);
  return found;
};
