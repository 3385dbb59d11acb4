/**
 * Looking through all NSDs for what the system's files are made of. Every sector of theirs says which it is, so a block of them is known by any sector in it
 * that is whole; what says so may still be a copy of it that somebody keeps in a file (inode-file.ts).
 */
import type { InodeNumber, NsdIndex } from '../../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../../common/units.js';
import { mirrored } from '../../../nsd/copies.js';
import { readableCopies } from '../../../nsd/mirrored-nsds.js';
import { secondsFor } from '../../allocator.js';
import { allNsds, type Extent, type Geometry, RESERVED_BLOCKS } from '../../layout.js';
import type { Scan } from '../scan.js';
import { placeSaid } from './structures.js';

/** A block of a file, and where it seems to be: at one place, if nobody has made a copy. */
export interface FoundBlock {
  readonly ino: InodeNumber;
  readonly block: number;
  readonly homes: readonly Extent[];
}

/** Of one NSD, where something was found. */
interface Found {
  readonly nsd: NsdIndex;
  readonly sector: number;
}

/** `isFree`: nothing is there, for certain. */
export async function searchSystem(
  scan: Scan,
  isFree: (nsd: NsdIndex, block: number) => Promise<boolean>,
): Promise<FoundBlock[]> {
  const found = new Map<string, { readonly place: Omit<FoundBlock, 'homes'>; readonly list: Found[] }>();
  const total = scan.geometry.nsdBlocks.reduce((sum, count) => sum + count, 0);
  let done = 0;
  for (const nsd of allNsds(scan.geometry)) {
    // A copy that is out of date says what was (S5).
    const isUpToDate = readableCopies(scan.storage.parts.nsds, nsd).length > 0;
    for (let block = RESERVED_BLOCKS; block < scan.geometry.nsdBlocks[nsd]!; block++) {
      scan.progress('search for system files', done++, total);
      if (!isUpToDate || (await isFree(nsd, block))) continue;
      const sector = block * SUB_BLOCKS_PER_BLOCK;
      const said = await blockSaid(scan, { nsd, sector, count: SUB_BLOCKS_PER_BLOCK });
      if (said === null) continue;
      const key = `${said.ino} ${said.block}`;
      const one = found.get(key) ?? { place: said, list: [] };
      one.list.push({ nsd, sector });
      found.set(key, one);
    }
  }
  return [...found.values()].map(({ place, list }) => ({ ...place, homes: joinCopies(list, scan.geometry) }));
}

/** What most of its sectors say that it is. */
async function blockSaid(scan: Scan, home: Extent): Promise<Omit<FoundBlock, 'homes'> | null> {
  const votes = new Map<string, { readonly ino: InodeNumber; readonly block: number; count: number }>();
  await scan.storage.each(home, SUB_BLOCKS_PER_BLOCK, (bytes, i) => {
    const said = bytes === null ? null : placeSaid(bytes, scan);
    if (said === null || said.index % SUB_BLOCKS_PER_BLOCK !== i) return;
    const { ino } = said;
    const block = Math.floor(said.index / SUB_BLOCKS_PER_BLOCK);
    const one = votes.get(`${ino} ${block}`) ?? { ino, block, count: 0 };
    one.count++;
    votes.set(`${ino} ${block}`, one);
  });
  const [best] = [...votes.values()].sort((a, b) => b.count - a.count);
  return best === undefined ? null : { ino: best.ino, block: best.block };
}

/** Two copies are at one address of two NSDs. */
function joinCopies(list: readonly Found[], geometry: Geometry): Extent[] {
  const count = SUB_BLOCKS_PER_BLOCK;
  if (geometry.metadataCopies === 1) return list.map(({ nsd, sector }) => ({ nsd, sector, count }));
  const bySector = new Map<number, NsdIndex[]>();
  for (const { nsd, sector } of list) bySector.set(sector, [...(bySector.get(sector) ?? []), nsd]);
  return [...bySector].flatMap(([sector, nsds]) => pairs(nsds, geometry).map((nsd) => ({ nsd, sector, count })));
}

/** A copy of which nothing is left is where it can only be, if that is one place. */
function pairs(nsds: readonly NsdIndex[], geometry: Geometry): NsdIndex[] {
  const [first, second] = nsds;
  if (nsds.length === 2) return [mirrored(first!, second!)];
  if (nsds.length > 2) return [...nsds];
  const seconds = secondsFor(geometry, first!);
  return seconds.length === 1 ? [mirrored(first!, seconds[0]!)] : [first!];
}
