/**
 * Sub-blocks to which more than one pointer leads. Who they are is found by a second walk, over what is shared only.
 *
 * One pointer keeps the place: the system's before everybody's, metadata that verifies there before a file's bytes, of files the one whose pointer was
 * born in the later epoch (whoever allocates a block twice, allocates it later), at last the smaller inode number. Every other one gets a copy of what is
 * there now: which of the two files the bytes are of, nobody can know, so none of them loses any.
 */
import type { InodeNumber } from '../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { copiesOf } from '../../nsd/copies.js';
import { type BlockPointer, writePointer } from '../block-pointer.js';
import { FileType } from '../file-system-api.js';
import { decodeInode } from '../inode-format.js';
import { allNsds, type Extent, FIRST_USER_INODE, LOG_TABLE, RESERVED_BLOCKS, ROOT_DIRECTORY } from '../layout.js';
import { keptBlock } from '../xattr-format.js';
import type { SectorEdits } from './check-storage.js';
import { FreeSpace } from './free-space.js';
import { editInode, setPointerAt } from './inode-edits.js';
import { type PointerSite, walkPointers } from './pointer-walk.js';
import type { Scan } from './scan.js';

const Rank = { system: 0, metadata: 1, data: 2 } as const;

interface Claim {
  readonly ino: InodeNumber;
  readonly what: string;
  readonly rank: number;
  readonly pointer: Extent & { readonly birthEpoch: number };
  /** Null: it can't be moved. */
  readonly moveTo: ((edits: SectorEdits, to: BlockPointer) => Promise<void>) | null;
}

export async function checkSharedSpace(scan: Scan): Promise<void> {
  if (scan.space.sharedSubBlocks === 0) return;
  const claims = await findClaims(scan);
  claims.sort(
    (a, b) =>
      a.rank - b.rank ||
      b.pointer.birthEpoch - a.pointer.birthEpoch ||
      a.ino - b.ino ||
      a.pointer.sector - b.pointer.sector,
  );
  const keepers: Claim[] = [];
  for (const claim of claims) {
    const keeper = keepers.find(({ pointer }) => overlap(pointer, claim.pointer));
    if (keeper === undefined) {
      keepers.push(claim);
      continue;
    }
    const { nsd, sector, count } = claim.pointer;
    const about = {
      object: `sub-blocks ${sector} to ${sector + count - 1} of NSD ${copiesOf(nsd).join(' and ')}`,
      ino: claim.ino,
    };
    const detail = `belong to inode ${keeper.ino} (${keeper.what}) and to inode ${claim.ino} (${claim.what})`;
    if (claim.moveTo === null) scan.report('spaceShared', about, detail);
    else
      scan.report('spaceShared', about, detail, `inode ${claim.ino} gets a copy`, (edits) =>
        copyOut(scan, edits, claim),
      );
  }
}

const overlap = (a: Extent, b: Extent): boolean =>
  a.sector < b.sector + b.count &&
  b.sector < a.sector + a.count &&
  copiesOf(a.nsd).some((copy) => copiesOf(b.nsd).includes(copy));

async function copyOut(scan: Scan, edits: SectorEdits, { pointer, moveTo }: Claim): Promise<void> {
  const to = await new FreeSpace(scan).take(pointer.count, copiesOf(pointer.nsd).length === 1 ? 1 : 2);
  for (let at = 0; at < pointer.count; at++) {
    const bytes = await scan.storage.readOne(pointer.nsd, pointer.sector + at);
    // What nobody can read any more can't be copied either.
    if (bytes !== null) edits.put(to.nsd, to.sector + at, bytes, 'as it is');
  }
  await edits.commit();
  await moveTo!(edits, { ...pointer, ...to } as BlockPointer);
  await edits.commit();
}

async function findClaims(scan: Scan): Promise<Claim[]> {
  const claims: Claim[] = [];
  const add = (claim: Claim): void => {
    if (scan.space.isShared(claim.pointer)) claims.push(claim);
  };
  const system = { rank: Rank.system, moveTo: null };
  for (const nsd of allNsds(scan.geometry)) {
    const reserved = { nsd, sector: 0, count: RESERVED_BLOCKS * SUB_BLOCKS_PER_BLOCK, birthEpoch: 0 };
    add({ ...system, ino: ROOT_DIRECTORY, what: 'the superblock', pointer: reserved });
  }
  for (const extent of scan.logs.extents)
    add({ ...system, ino: LOG_TABLE, what: 'a log', pointer: { ...extent, birthEpoch: 0 } });
  for (const ino of scan.inodes.inUse()) await addClaimsOf(scan, ino, add);
  return claims;
}

async function addClaimsOf(scan: Scan, ino: InodeNumber, add: (claim: Claim) => void): Promise<void> {
  const system = scan.system.get(ino);
  if (system !== undefined) {
    const about = { ino, what: 'a file of the system', rank: Rank.system, moveTo: null };
    for (const pointer of system.blocks.values()) add({ ...about, pointer });
    for (const pointer of system.indirects) add({ ...about, pointer: { ...pointer, birthEpoch: 0 } });
    return;
  }
  const home = scan.inodes.home(ino)!;
  const sector = await scan.storage.readOne(home.nsd, home.sector);
  const fields = sector === null ? null : decodeInode(ino, sector, scan.fsId, scan.geometry, scan.checksums);
  if (fields === null) return;
  const isSystem = ino < FIRST_USER_INODE && ino !== ROOT_DIRECTORY;
  const movable = (site: PointerSite): Claim['moveTo'] =>
    isSystem ? null : (edits, to) => setPointerAt(scan, edits, ino, site, to);
  const isDirectory = fields.type === FileType.directory;
  await walkPointers(scan, ino, fields, {
    block: (block, pointer, site) =>
      add({
        ino,
        what: isDirectory ? `leaves from ${block * SUB_BLOCKS_PER_BLOCK} on` : `block ${block}`,
        rank: isSystem ? Rank.system : isDirectory ? Rank.metadata : Rank.data,
        pointer,
        moveTo: movable(site),
      }),
    indirect: ({ pointer, site, firstBlock }) =>
      add({
        ino,
        what: `indirect block from block ${firstBlock} on`,
        rank: isSystem ? Rank.system : Rank.metadata,
        pointer,
        moveTo: movable(site),
      }),
    broken: () => undefined,
  });
  const attributes = keptBlock(fields.kept);
  if (attributes !== null)
    add({
      ino,
      what: 'attributes',
      rank: Rank.metadata,
      pointer: attributes.pointer,
      moveTo: (edits, to) =>
        editInode(scan, edits, ino, (now) => {
          now.kept = now.kept.slice();
          writePointer(now.kept, 8, to);
        }),
    });
}
