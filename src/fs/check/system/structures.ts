/** Sectors of the system's files that say themselves what they are: of which file, and which place in it. */
import type { InodeNumber } from '../../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../../common/units.js';
import type { Checksums } from '../../../nsd/checksums.js';
import { INODES_PER_SEGMENT } from '../../../token-manager/token.js';
import { ALLOCATION_MAP, type Extent, type Geometry, INODE_FILE, INODE_MAP, LOG_TABLE } from '../../layout.js';
import { systemFileSectors } from '../../mkfs-layout.js';
import { getU32, getU64, Magic, sectorFault } from '../../sector.js';
import { READ_RUN, type SectorReader } from '../check-storage.js';

/** Inodes whose files a mount can't do without. */
export const SYSTEM_FILES = [INODE_FILE, ALLOCATION_MAP, INODE_MAP, LOG_TABLE] as const;

export interface SearchedVolume {
  readonly storage: SectorReader;
  readonly fsId: bigint;
  readonly geometry: Geometry;
  readonly checksums: Checksums;
}

export interface PlaceInFile {
  readonly ino: InodeNumber;
  readonly index: number;
}

/** Whose it is, of what it says and has sealed; null: nothing of the system's files, or damaged. */
export function placeSaid(sector: Uint8Array, { fsId, geometry, checksums }: SearchedVolume): PlaceInFile | null {
  const magic = getU32(sector, 0);
  const ino = FILE_OF.get(magic);
  if (ino === undefined) return null;
  const owner = getU64(sector, 16);
  const index = getU64(sector, 24);
  if (owner !== (ino === INODE_FILE ? index : ino)) return null;
  if (!(index < (ino === INODE_FILE ? geometry.segmentCount * INODES_PER_SEGMENT : systemFileSectors(geometry, ino))))
    return null;
  const identity = { magic: magic as Magic, fsId, owner, index };
  return sectorFault(sector, identity, checksums) === null ? { ino, index } : null;
}

const FILE_OF: ReadonlyMap<number, InodeNumber> = new Map<number, InodeNumber>([
  [Magic.inode, INODE_FILE],
  [Magic.region, ALLOCATION_MAP],
  [Magic.segment, INODE_MAP],
  [Magic.logTable, LOG_TABLE],
]);

/** What is in a block where one of a system file should be. `damage`: nothing that could be anything. */
export type Holding = 'its own' | 'damage' | 'something else';

export async function holdingOf(
  volume: SearchedVolume,
  ino: InodeNumber,
  block: number,
  home: Extent,
): Promise<Holding> {
  const first = block * SUB_BLOCKS_PER_BLOCK;
  const sectors = Math.min(SUB_BLOCKS_PER_BLOCK, systemFileSectors(volume.geometry, ino) - first);
  let holding: Holding = 'damage';
  // As a rule the first says it.
  for (let at = 0, length = 1; at < sectors; at += length, length = READ_RUN) {
    const run = { nsd: home.nsd, sector: home.sector + at, count: Math.min(length, sectors - at) };
    await volume.storage.each(run, run.count, (sector, i) => {
      const said = sector === null ? null : placeSaid(sector, volume);
      if (said === null || holding === 'its own') return;
      holding = said.ino === ino && said.index === first + at + i ? 'its own' : 'something else';
    });
    if ((holding as Holding) === 'its own') break;
  }
  return holding;
}
