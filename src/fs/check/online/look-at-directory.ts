/** One directory: its leaves, the names in them, its counts; and one name of it, found again. */
import type { InodeNumber } from '../../../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../../../common/units.js';
import { FileType } from '../../file-system-api.js';
import { decodeInode, directoryFault, type InodeFields } from '../../inode-format.js';
import type { Extent } from '../../layout.js';
import { hashName, leafDepth, leafEntries, leafExists, leafFault, type NamedEntry } from '../../leaf-format.js';
import type { Volume } from '../../volume.js';
import { UNREADABLE } from '../inodes.js';
import { Leaves } from '../names.js';
import { type PointerVisitor, walkPointers } from '../pointer-walk.js';
import type { Fault } from './look-at-inode.js';
import type { View } from './view.js';

export type UseEntry = (entry: NamedEntry, leaf: number) => void;

/** As it is; null: it is not there, or can't be believed (which is said of the inode). Its place has been looked for before. */
export async function readInode(view: View, volume: Volume, ino: InodeNumber): Promise<InodeFields | null> {
  const home = volume.inodes.locate(ino);
  const sector = home ? await view.readOne(home.nsd, home.sector) : null;
  try {
    return sector === null ? null : decodeInode(ino, sector, volume.fsId, volume.geometry, volume.checksums);
  } catch {
    return null;
  }
}

/** Null: no directory. */
export async function readDirectory(view: View, volume: Volume, ino: InodeNumber): Promise<InodeFields | null> {
  const fields = await readInode(view, volume, ino);
  return fields?.type === FileType.directory ? fields : null;
}

export async function lookAtDirectory(
  view: View,
  volume: Volume,
  ino: InodeNumber,
  use: UseEntry = () => undefined,
): Promise<Fault[]> {
  const faults: Fault[] = [];
  const fields = await readDirectory(view, volume, ino);
  // Removed: its leaves go.
  if (fields === null || fields.nlink === 0) return faults;
  const say = (kind: Fault['kind'], object: string, detail: string): void =>
    void faults.push({ kind, object, ino, detail });
  const blocks = await blocksOf(view, volume, ino, fields, ({ level, firstBlock }, why) =>
    say('indirectDamaged', `inode ${ino}, indirect block of level ${level} from block ${firstBlock} on`, why),
  );
  const leaves = await Leaves.in(view, blocks);
  for (const index of leaves.missing()) say('leafDamaged', `directory ${ino} leaf ${index}`, 'is missing');
  let entries = 0;
  let directories = 0;
  let sizeBytes = 0;
  await leaves.each((leaf, index) => {
    const object = `directory ${ino} leaf ${index}`;
    const owner = { ino, generation: fields.generation };
    const fault = leaf === null ? UNREADABLE : leafFault(leaf, owner, index, volume.fsId, volume.checksums);
    if (leaf === null || fault !== null) {
      say('leafDamaged', object, fault ?? UNREADABLE);
      return;
    }
    if (!leafExists(leaf)) return;
    sizeBytes = Math.max(sizeBytes, (index + 1) * SECTOR_BYTES);
    const depth = leaves.depthOf(index);
    if (leafDepth(leaf) !== depth) say('leafDepth', object, `has depth ${leafDepth(leaf)} instead of ${depth}`);
    const names = new Set<string>();
    for (const entry of leafEntries(leaf)) {
      entries++;
      if (entry.type === FileType.directory) directories++;
      const wrong = nameFault(entry, index, leaves, names, fields.directorySeed);
      if (wrong !== null) say(wrong.kind, `name '${textOf(entry)}' in directory ${ino}`, wrong.detail);
      use(entry, index);
    }
  });
  if (faults.some(({ kind }) => kind === 'leafDamaged' || kind === 'indirectDamaged')) return faults;
  const impossible =
    directoryFault(fields.type, { sizeBytes: fields.sizeBytes, depth: fields.directoryDepth }) !== null;
  const tooLow = leaves.maxDepth > fields.directoryDepth || sizeBytes > fields.sizeBytes;
  if (entries !== fields.directoryEntries || tooLow || impossible)
    say(
      'directoryCount',
      `inode ${ino}`,
      `has ${entries} names in leaves of depth ${leaves.maxDepth} up to byte ${sizeBytes}, ` +
        `and says ${fields.directoryEntries}, ${fields.directoryDepth} and ${fields.sizeBytes}`,
    );
  if (fields.nlink !== 2 + directories)
    say('linkCount', `inode ${ino}`, `has ${directories} directories and ${fields.nlink} links`);
  return faults;
}

export const textOf = ({ name }: Pick<NamedEntry, 'name'>): string => Buffer.from(name).toString('utf8');

function nameFault(
  entry: NamedEntry,
  index: number,
  leaves: Leaves,
  names: Set<string>,
  seed: number,
): Pick<Fault, 'kind' | 'detail'> | null {
  const key = Buffer.from(entry.name).toString('latin1');
  if (names.has(key)) return { kind: 'entryTwice', detail: `is there twice, once as inode ${entry.ino}` };
  names.add(key);
  if (entry.name.includes(0) || entry.name.includes(0x2f) || key === '.' || key === '..')
    return { kind: 'entryBadName', detail: `is no name, and names inode ${entry.ino}` };
  if (hashName(entry.name, seed) !== entry.hash || leaves.leafOf(entry.hash) !== index)
    return { kind: 'entryMisplaced', detail: `is in leaf ${index}, where nobody looks for it` };
  return null;
}

async function blocksOf(
  view: View,
  volume: Volume,
  ino: InodeNumber,
  fields: InodeFields,
  broken: PointerVisitor['broken'] = () => undefined,
): Promise<{ readonly block: number; readonly extent: Extent }[]> {
  const blocks: { block: number; extent: Extent }[] = [];
  const { fsId, geometry, checksums } = volume;
  await walkPointers({ storage: view, fsId, geometry, checksums }, ino, fields, {
    block: (block, extent) => void blocks.push({ block, extent }),
    indirect: () => undefined,
    broken,
  });
  return blocks;
}

/** The name as it is now in this leaf; null: it has gone, or moved. */
export async function findAgain(
  view: View,
  volume: Volume,
  directory: InodeNumber,
  name: Uint8Array,
  index: number,
): Promise<NamedEntry | null> {
  const fields = await readDirectory(view, volume, directory);
  if (fields === null) return null;
  const wanted = Math.floor(index / SUB_BLOCKS_PER_BLOCK);
  const within = index % SUB_BLOCKS_PER_BLOCK;
  for (const { block, extent } of await blocksOf(view, volume, directory, fields)) {
    if (block !== wanted || within >= extent.count) continue;
    const leaf = await view.readOne(extent.nsd, extent.sector + within);
    const owner = { ino: directory, generation: fields.generation };
    if (leaf === null || leafFault(leaf, owner, index, volume.fsId, volume.checksums) !== null) return null;
    if (!leafExists(leaf)) return null;
    return leafEntries(leaf).find((entry) => Buffer.compare(entry.name, name) === 0) ?? null;
  }
  return null;
}
