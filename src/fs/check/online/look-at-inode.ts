/** One inode by itself: its sector, its indirect blocks, its attributes, its count of sub-blocks, and with `data` whether its bytes can be read. */
import type { InodeNumber } from '../../../common/ids.js';
import { SECTOR_BYTES } from '../../../common/units.js';
import { FileType } from '../../file-system-api.js';
import { decodeInode, FREE_INODE, type InodeFields } from '../../inode-format.js';
import { type Extent, FIRST_USER_INODE, RENAME_LOCK, ROOT_DIRECTORY } from '../../layout.js';
import type { Volume } from '../../volume.js';
import { decodeXattrBlock, keptBlock } from '../../xattr-format.js';
import { READ_RUN } from '../check-storage.js';
import { detailOf, UNREADABLE } from '../inodes.js';
import { walkPointers } from '../pointer-walk.js';
import type { OnlineFindingKind } from './online-report.js';
import type { View } from './view.js';

export interface Fault {
  readonly kind: OnlineFindingKind;
  readonly object: string;
  /** What a path is wanted for. */
  readonly ino: InodeNumber | null;
  readonly detail: string;
}

export interface LookedAtInode {
  /** Null: free, or damaged. */
  readonly fields: InodeFields | null;
  /** Of its last life, when it is free. */
  readonly generation: number;
  readonly faults: Fault[];
}

export interface InodeLook {
  readonly view: View;
  readonly volume: Volume;
  readonly data: boolean;
  /** Space that it points to. */
  readonly claim: (extent: Extent) => void;
}

/** `sector`: null where it can't be read. */
export async function lookAtInode(
  look: InodeLook,
  ino: InodeNumber,
  sector: Uint8Array | null,
): Promise<LookedAtInode> {
  const faults: Fault[] = [];
  const fields = decoded(look.volume, ino, sector, faults);
  if (fields === null || fields.type === FREE_INODE)
    return { fields: null, generation: fields?.generation ?? 0, faults };
  await lookAtSpace(look, ino, fields, faults);
  return { fields, generation: fields.generation, faults };
}

function decoded(
  { fsId, geometry, checksums }: Volume,
  ino: InodeNumber,
  sector: Uint8Array | null,
  faults: Fault[],
): InodeFields | null {
  const isSystem = ino < FIRST_USER_INODE && ino !== ROOT_DIRECTORY && ino !== RENAME_LOCK;
  let detail = UNREADABLE;
  try {
    if (sector !== null) {
      const fields = decodeInode(ino, sector, fsId, geometry, checksums);
      const missing = fields === null || fields.type === FREE_INODE;
      if (missing && isOneOfSystem(ino))
        faults.push({ kind: 'systemInode', object: `inode ${ino}`, ino, detail: 'is missing' });
      return fields;
    }
  } catch (error) {
    detail = detailOf(error);
  }
  const kind = isSystem ? 'systemInode' : sector === null ? 'inodeUnreadable' : 'inodeDamaged';
  faults.push({ kind, object: `inode ${ino}`, ino, detail });
  return null;
}

const SYSTEM_INODES = 6;
const isOneOfSystem = (ino: InodeNumber): boolean => ino >= 1 && ino <= SYSTEM_INODES;

async function lookAtSpace(look: InodeLook, ino: InodeNumber, fields: InodeFields, faults: Fault[]): Promise<void> {
  const { view, volume, claim } = look;
  const data: Extent[] = [];
  let count = 0;
  const take = (extent: Extent): void => {
    claim(extent);
    count += extent.count;
  };
  const { fsId, geometry, checksums } = volume;
  await walkPointers({ storage: view, fsId, geometry, checksums }, ino, fields, {
    block: (_, pointer) => {
      take(pointer);
      if (look.data && fields.type === FileType.regular && ino >= FIRST_USER_INODE) data.push(pointer);
    },
    indirect: ({ pointer }) => take(pointer),
    broken: ({ level, firstBlock }, why) =>
      faults.push({
        kind: 'indirectDamaged',
        object: `inode ${ino}, indirect block of level ${level} from block ${firstBlock} on`,
        ino,
        detail: why,
      }),
  });
  const attributes = keptBlock(fields.kept);
  if (attributes !== null) {
    const detail = await attributesFault(look, ino, fields);
    if (detail === null) take(attributes.pointer);
    else faults.push({ kind: 'attributesDamaged', object: `attributes of inode ${ino}`, ino, detail });
  }
  const isCounted = ino >= FIRST_USER_INODE || ino === ROOT_DIRECTORY;
  if (isCounted && faults.length === 0 && count !== fields.allocatedSubBlocks)
    faults.push({
      kind: 'spaceCount',
      object: `inode ${ino}`,
      ino,
      detail: `has ${count} sub-blocks and says ${fields.allocatedSubBlocks}`,
    });
  for (const extent of data) await lookAtData(view, ino, extent, faults);
}

async function attributesFault({ view, volume }: InodeLook, ino: InodeNumber, fields: InodeFields) {
  const { pointer, lengthBytes } = keptBlock(fields.kept)!;
  const sectors = (await readAll(view, pointer)).filter((sector) => sector !== null);
  if (sectors.length < pointer.count) return UNREADABLE;
  try {
    const owner = { ino, generation: fields.generation };
    const bytes = Buffer.concat(sectors, pointer.count * SECTOR_BYTES);
    decodeXattrBlock(bytes, owner, lengthBytes, volume.fsId, volume.checksums);
    return null;
  } catch (error) {
    return detailOf(error);
  }
}

async function readAll(view: View, extent: Extent): Promise<(Uint8Array | null)[]> {
  const found: (Uint8Array | null)[] = [];
  await view.each(extent, extent.count, (sector) => found.push(sector));
  return found;
}

async function lookAtData(view: View, ino: InodeNumber, extent: Extent, faults: Fault[]): Promise<void> {
  for (let at = 0; at < extent.count; at += READ_RUN) {
    const run = { ...extent, sector: extent.sector + at, count: Math.min(READ_RUN, extent.count - at) };
    const bad = (await view.read(run)).flatMap((sector, i) => (sector === null ? [run.sector + i] : []));
    if (bad.length > 0)
      faults.push({
        kind: 'dataUnreadable',
        object: `inode ${ino}, sectors ${bad.join(', ')} of NSD ${extent.nsd}`,
        ino,
        detail: UNREADABLE,
      });
  }
}
