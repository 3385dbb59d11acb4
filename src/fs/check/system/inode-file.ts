/**
 * Which of the blocks that look like the inode file's are it.
 *
 * Anybody can keep a copy of such a block in a file, and write into one whatever he wants. But then the file's inode points to it, and nothing points to a block of
 * the inode file but inode 1. So a block to which no inode leads is one of it; one to which an inode leads that is in such a block is not, and what the
 * inodes in it point to counts for nothing. The first block is known: the superblock names it.
 */
import { inodeNumber } from '../../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../../common/units.js';
import { copiesOf } from '../../../nsd/copies.js';
import { decodeInode, FREE_INODE, type InodeFields } from '../../inode-format.js';
import { type Extent, FIRST_USER_INODE, INODE_FILE, INODES_PER_BLOCK } from '../../layout.js';
import { keptBlock } from '../../xattr-format.js';
import { walkPointers } from '../pointer-walk.js';
import type { Scan } from '../scan.js';
import type { FoundBlock } from './search.js';

interface Candidate {
  readonly block: number;
  readonly home: Extent;
  /** Others, in which an inode points to something in it. */
  readonly namedBy: Set<Candidate>;
  verdict: 'unknown' | 'inode file' | 'a copy';
}

export interface InodeFileBlocks {
  readonly blocks: ReadonlyMap<number, Extent>;
  /** Why they are not to be believed. */
  readonly doubt: string | null;
}

export async function inodeFileBlocks(scan: Scan, found: readonly FoundBlock[]): Promise<InodeFileBlocks> {
  const { inodeFile } = scan.superblock;
  const candidates: Candidate[] = [{ block: 0, home: inodeFile, namedBy: new Set(), verdict: 'inode file' }];
  for (const { ino, block, homes } of found)
    if (ino === INODE_FILE && block > 0)
      for (const home of homes) candidates.push({ block, home, namedBy: new Set(), verdict: 'unknown' });
  await noteWhoNames(scan, candidates);
  judge(candidates);
  const chosen = new Map<number, Extent>();
  for (const { block, home, verdict } of candidates) {
    if (verdict === 'a copy') continue;
    const other = chosen.get(block);
    if (verdict === 'unknown')
      return {
        blocks: chosen,
        doubt: `whether block ${block} of it is at ${placeText(home)} can't be told: inodes there and elsewhere lead to each other`,
      };
    if (other !== undefined)
      return { blocks: chosen, doubt: `block ${block} of it is at ${placeText(other)} and at ${placeText(home)}` };
    chosen.set(block, home);
  }
  return { blocks: chosen, doubt: null };
}

export const placeText = ({ nsd, sector }: Extent): string => `sector ${sector} of NSD ${copiesOf(nsd).join(' and ')}`;

async function noteWhoNames(scan: Scan, candidates: readonly Candidate[]): Promise<void> {
  if (candidates.every(({ verdict }) => verdict !== 'unknown')) return;
  const byBlock = new Map<string, Candidate>();
  for (const candidate of candidates) for (const key of blocksOf(candidate.home)) byBlock.set(key, candidate);
  for (const [done, candidate] of candidates.entries()) {
    scan.progress('inodes found', done, candidates.length);
    for (const extent of await spaceOfInodesIn(scan, candidate))
      for (const key of blocksOf(extent)) {
        const named = byBlock.get(key);
        if (named !== undefined && named !== candidate) named.namedBy.add(candidate);
      }
  }
}

const blocksOf = ({ nsd, sector }: Extent): string[] =>
  copiesOf(nsd).map((copy) => `${copy} ${Math.floor(sector / SUB_BLOCKS_PER_BLOCK)}`);

async function spaceOfInodesIn(scan: Scan, { block, home }: Candidate): Promise<Extent[]> {
  const inodes: { readonly ino: number; readonly fields: InodeFields }[] = [];
  await scan.storage.each(home, INODES_PER_BLOCK, (sector, i) => {
    const ino = inodeNumber(block * INODES_PER_BLOCK + i);
    if (sector === null || ino < FIRST_USER_INODE) return;
    try {
      const fields = decodeInode(ino, sector, scan.fsId, scan.geometry, scan.checksums);
      if (fields !== null && fields.type !== FREE_INODE) inodes.push({ ino, fields });
    } catch {
      // What is damaged names nothing; it is reported when the inodes are looked at.
    }
  });
  const extents: Extent[] = [];
  for (const { ino, fields } of inodes) {
    await walkPointers(scan, inodeNumber(ino), fields, {
      block: (_, pointer) => extents.push(pointer),
      indirect: ({ pointer }) => extents.push(pointer),
      broken: ({ pointer }) => extents.push(pointer),
    });
    const attributes = keptBlock(fields.kept);
    if (attributes !== null) extents.push(attributes.pointer);
  }
  return extents;
}

/** Until nothing follows any more from what is known. */
function judge(candidates: readonly Candidate[]): void {
  for (let more = true; more; ) {
    more = false;
    for (const candidate of candidates) {
      if (candidate.verdict !== 'unknown') continue;
      const by = [...candidate.namedBy].filter(({ verdict }) => verdict !== 'a copy');
      if (by.length > 0 && !by.some(({ verdict }) => verdict === 'inode file')) continue;
      candidate.verdict = by.length === 0 ? 'inode file' : 'a copy';
      more = true;
    }
  }
}
