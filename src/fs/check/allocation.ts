/** The two maps against what there is: space that is pointed to, numbers that are in use. */
import { inodeNumber, type NsdIndex, nsdIndex } from '../../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { INODES_PER_SEGMENT } from '../../token-manager/token.js';
import { FREE_INODE } from '../inode-format.js';
import { ALLOCATION_MAP, type Extent, FIRST_USER_INODE, INODE_MAP } from '../layout.js';
import { LogState } from '../log/log-table.js';
import {
  BITMAPS_AT,
  blockFree,
  formatRegion,
  formatSegment,
  freedThrough,
  inodeUsed,
  regionFault,
  segmentFault,
  segmentGeneration,
  setFreedThrough,
  setInodeUsed,
  setRegionFree,
  setSegmentFree,
  setSegmentGeneration,
} from '../map-formats.js';
import type { SectorEdits } from './check-storage.js';
import { UNREADABLE } from './inodes.js';
import type { Scan } from './scan.js';

export async function checkMaps(scan: Scan): Promise<void> {
  const { geometry } = scan;
  const regions = geometry.regionCount * geometry.nsdCount;
  for (let index = 0; index < regions && scan.system.has(ALLOCATION_MAP); index++) {
    if (index % SUB_BLOCKS_PER_BLOCK === 0) scan.progress('allocation map', index, regions);
    await checkRegion(scan, index, scan.systemSector(ALLOCATION_MAP, index)!);
  }
  for (let segment = 0; segment < geometry.segmentCount && scan.system.has(INODE_MAP); segment++) {
    if (segment % SUB_BLOCKS_PER_BLOCK === 0) scan.progress('inode map', segment, geometry.segmentCount);
    await checkSegment(scan, segment, scan.systemSector(INODE_MAP, segment)!);
  }
}

interface Run {
  readonly sector: number;
  count: number;
}

async function checkRegion(scan: Scan, index: number, home: Extent): Promise<void> {
  const { geometry } = scan;
  const region = Math.floor(index / geometry.nsdCount);
  const nsd = nsdIndex(index % geometry.nsdCount);
  const object = `allocation map sector ${index} (region ${region} of NSD ${nsd})`;
  const sector = await scan.storage.readOne(home.nsd, home.sector);
  const fault = sector === null ? UNREADABLE : regionFault(sector, index, geometry, scan.fsId, scan.checksums);
  const expected = expectedRegion(scan, region, nsd, fault === null ? sector : null);
  const put = async (edits: SectorEdits): Promise<void> => edits.put(home.nsd, home.sector, expected);
  if (sector === null || fault !== null) {
    scan.report('regionDamaged', { object }, fault ?? UNREADABLE, 'made anew from what is pointed to', put);
    return;
  }
  const lost: Run[] = [];
  const used: Run[] = [];
  const first = region * geometry.regionBlocks * SUB_BLOCKS_PER_BLOCK;
  for (let at = BITMAPS_AT; at < BITMAPS_AT + geometry.regionBlocks * (SUB_BLOCKS_PER_BLOCK / 8); at++) {
    if (sector[at] === expected[at]) continue;
    for (let bit = 0; bit < 8; bit++) {
      const marked = (sector[at]! >> bit) & 1;
      if (marked === ((expected[at]! >> bit) & 1)) continue;
      addTo(marked === 1 ? lost : used, first + (at - BITMAPS_AT) * 8 + bit);
    }
  }
  const ahead = nsd === 0 ? marksAhead(scan, sector) : [];
  if (ahead.length > 0)
    scan.report(
      'freeMarkAhead',
      { object },
      `says of logs ${ahead.map(([slot]) => slot).join(', ')} that frees have been applied that they have not logged yet`,
      'set back to where these logs go on',
      put,
    );
  if (used.length > 0)
    scan.report('spaceFreeButUsed', { object }, `${runsText(used)} are marked as free, and pointed to`, 'marked', put);
  if (lost.length === 0) return;
  scan.lostSubBlocks += countOf(lost);
  scan.report(
    'spaceLost',
    { object },
    `${runsText(lost)} are marked as used, and nothing points to them`,
    'freed',
    async (edits) => {
      for (const { sector: from, count } of lost) edits.discard({ nsd, sector: from, count });
      await put(edits);
    },
  );
}

/** S6: a log goes on at its tail; a mark behind that would make what it ships seem to have been freed already. */
function marksAhead(scan: Scan, sector: Uint8Array): [slot: number, through: number][] {
  return scan.logs.descriptors.flatMap((descriptor): [number, number][] => {
    if (descriptor === null || !(descriptor.state === LogState.clean || descriptor.state === LogState.unused))
      return [];
    const { slot, tail } = descriptor;
    return freedThrough(sector, slot) > tail ? [[slot, tail]] : [];
  });
}

function addTo(runs: Run[], sector: number): void {
  const last = runs.at(-1);
  if (last !== undefined && last.sector + last.count === sector) last.count++;
  else runs.push({ sector, count: 1 });
}
const countOf = (runs: readonly Run[]): number => runs.reduce((sum, { count }) => sum + count, 0);
const RUNS_TOLD = 4;
function runsText(runs: readonly Run[]): string {
  const told = runs.slice(0, RUNS_TOLD).map(({ sector, count }) => `${sector} to ${sector + count - 1}`);
  const more = runs.length > RUNS_TOLD ? `, and ${runs.length - RUNS_TOLD} more runs` : '';
  return `${countOf(runs)} sub-blocks (${told.join(', ')}${more})`;
}

/** `present`: as it is, where that can be believed. */
function expectedRegion(scan: Scan, region: number, nsd: NsdIndex, present: Uint8Array | null): Uint8Array {
  const { geometry } = scan;
  const sector = new Uint8Array(SECTOR_BYTES);
  if (present === null) formatRegion(sector, region, nsd, geometry, scan.fsId);
  else sector.set(present);
  if (nsd === 0 && present !== null)
    for (const [slot, through] of marksAhead(scan, present)) setFreedThrough(sector, slot, through);
  const bytes = SUB_BLOCKS_PER_BLOCK / 8;
  const bits = scan.space.bits(nsd);
  let free = 0;
  for (let block = 0; block < geometry.regionBlocks; block++) {
    const whole = region * geometry.regionBlocks + block;
    if (whole < geometry.nsdBlocks[nsd]!)
      sector.set(bits.subarray(whole * bytes, (whole + 1) * bytes), BITMAPS_AT + block * bytes);
    free += blockFree(sector, block);
  }
  setRegionFree(sector, free);
  return sector;
}

async function checkSegment(scan: Scan, segment: number, home: Extent): Promise<void> {
  const object = `inode map segment ${segment}`;
  const sector = await scan.storage.readOne(home.nsd, home.sector);
  const fault = sector === null ? UNREADABLE : segmentFault(sector, segment, scan.fsId, scan.checksums);
  const before = sector === null || fault !== null ? 1 : segmentGeneration(sector);
  const expected = expectedSegment(scan, segment, before);
  const put = async (edits: SectorEdits): Promise<void> => edits.put(home.nsd, home.sector, expected);
  if (sector === null || fault !== null) {
    scan.report('segmentDamaged', { object }, fault ?? UNREADABLE, 'made anew from the inodes', put);
    return;
  }
  const lost: number[] = [];
  const used: number[] = [];
  for (let slot = 0; slot < INODES_PER_SEGMENT; slot++) {
    const marked = inodeUsed(sector, slot);
    if (marked !== inodeUsed(expected, slot)) (marked ? lost : used).push(segment * INODES_PER_SEGMENT + slot);
  }
  if (used.length > 0)
    scan.report('numberFreeButUsed', { object }, `${numbersText(used)} in use, and marked as free`, 'marked', put);
  if (lost.length > 0) {
    scan.lostInodes += lost.length;
    scan.report('numberLost', { object }, `${numbersText(lost)} marked as used, and no inode has them`, 'freed', put);
  }
  const generation = segmentGeneration(expected);
  if (generation !== before)
    scan.report(
      'generationLow',
      { object },
      `its next generation is ${before}, an inode in it has ${generation - 1} already`,
      `${generation} written`,
      put,
    );
}

function numbersText(numbers: readonly number[]): string {
  const told = numbers.slice(0, RUNS_TOLD).join(', ');
  const more = numbers.length > RUNS_TOLD ? ', …' : '';
  return numbers.length === 1 ? `number ${told} is` : `${numbers.length} numbers (${told}${more}) are`;
}

function expectedSegment(scan: Scan, segment: number, generationBefore: number): Uint8Array {
  const sector = new Uint8Array(SECTOR_BYTES);
  formatSegment(sector, segment, scan.fsId);
  let used = 0;
  let generation = generationBefore;
  for (let slot = 0; slot < INODES_PER_SEGMENT; slot++) {
    const ino = inodeNumber(segment * INODES_PER_SEGMENT + slot);
    if (ino >= FIRST_USER_INODE) generation = Math.max(generation, scan.inodes.generation(ino) + 1);
    if (ino >= FIRST_USER_INODE && scan.inodes.type(ino) === FREE_INODE) continue;
    setInodeUsed(sector, slot, true);
    used++;
  }
  setSegmentFree(sector, INODES_PER_SEGMENT - used);
  setSegmentGeneration(sector, generation);
  return sector;
}
