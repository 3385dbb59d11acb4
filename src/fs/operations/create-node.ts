/** A new name for a new inode: what open, mkdir and symlink have in common. */

import { FsError } from '../../common/errors.js';
import type { InodeNumber } from '../../common/ids.js';
import { below } from '../../common/random.js';
import { TokenMode } from '../../token-manager/token.js';
import { Directory, hashedName } from '../directory.js';
import { type Credentials, FileType, type OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { AREA_BYTES, EMPTY_AREA, InodeFlag } from '../inode-format.js';
import type { InodeTicket } from '../inode-numbers.js';
import { LINK_COUNT_MAX } from '../layout.js';
import type { LeafEntry } from '../leaf-format.js';
import { keyOf } from '../log/logged-sectors.js';
import { checkAccess, EXECUTE, WRITE } from '../permissions.js';
import { type InodeRef, loadDirectory, patiently, pinInodes } from '../pinning.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';
import { installXattrs } from '../xattrs.js';
import { Inheritance, type Inherited } from './inheritance.js';

export interface NewNode {
  readonly op: string;
  readonly path: string;
  readonly type: FileType;
  readonly mode: number;
  readonly credentials: Credentials;
  /** Of a symbolic link. */
  readonly target?: Uint8Array;
  /** Of a device. */
  readonly rdev?: number;
  readonly options?: OpOptions | undefined;
  /** In the turn in which it came to be, with its tokens pinned. */
  readonly onCreated?: (inode: Inode) => void;
}

/** Null when it was created, else what has that name already. */
export async function createNode(
  volume: Volume,
  parent: InodeRef,
  name: string,
  node: NewNode,
): Promise<LeafEntry | null> {
  const ticket = volume.numbers.tryTake() ?? (await volume.numbers.take());
  const inheritance = new Inheritance(volume, ticket, node);
  let used = false;
  try {
    const pins = await pinInodes(
      volume,
      [
        { ino: parent.ino, status: TokenMode.exclusive, data: TokenMode.exclusive },
        { ino: ticket.ino, status: TokenMode.exclusive, alone: true, wide: true },
      ],
      // Nobody keeps a free number open; one who came too late for its former life looks, and goes.
      patiently(node.options),
    );
    try {
      const existing = await insertNode(volume, parent, name, node, ticket, inheritance);
      used = existing === null;
      return existing;
    } finally {
      pins.release();
    }
  } finally {
    inheritance.giveUp();
    if (!used) volume.numbers.putBack(ticket);
  }
}

async function insertNode(
  volume: Volume,
  parent: InodeRef,
  name: string,
  node: NewNode,
  ticket: InodeTicket,
  inheritance: Inheritance,
): Promise<LeafEntry | null> {
  const hashed = hashedName(name);
  const entry: LeafEntry = { ino: ticket.ino, generation: ticket.generation, type: node.type };
  for (;;) {
    // Again after every wait: another operation of this node may have removed the directory, or made the name.
    const directoryInode = await loadDirectory(volume, parent, node.op, node.path);
    const directory = new Directory(volume, directoryInode);
    const found = directory.tryLookup(hashed);
    if (found !== null && 'kind' in found) {
      await directory.advance(found);
      continue;
    }
    if (found !== null) return found;
    checkAccess(directoryInode, node.credentials, WRITE | EXECUTE, node.op, node.path);
    const isDirectory = node.type === FileType.directory;
    const isDevice = node.type === FileType.characterDevice || node.type === FileType.blockDevice;
    if (isDevice && node.credentials.uid !== 0)
      throw new FsError('notPermitted', { op: node.op, object: node.path, detail: 'only root makes devices' });
    if (isDirectory && directoryInode.nlink >= LINK_COUNT_MAX)
      throw new FsError('linkCountLimit', { op: node.op, object: node.path });
    const inherited = inheritance.tryFrom(directoryInode);
    if (inherited === null) {
      await inheritance.prepare(directoryInode);
      continue;
    }
    if (!knowsHome(volume, ticket)) {
      await learnHome(volume, ticket);
      continue;
    }
    const transaction = new MetadataTransaction(volume);
    const needed = directory.tryInsert(hashed, entry, transaction);
    if (needed !== null) {
      await directory.advance(needed);
      continue;
    }
    if (isDirectory) directoryInode.nlink++;
    const inode = volume.inodes.create(ticket.ino, ticket.home);
    initialise(volume, inode, directoryInode, node, inherited, ticket.generation, transaction.nowNs);
    installXattrs(inode, inheritance.use());
    transaction.numbers('numbersSettled', ticket.ino);
    transaction.inode(inode);
    transaction.commit();
    node.onCreated?.(inode);
    volume.counters.add('fs.creates');
    return null;
  }
}

/** Who looked at the number in vain after its former life has forgotten it since, and with it the version that it was taken with. */
export const knowsHome = (volume: Volume, { home }: InodeTicket): boolean => volume.sectors.knows(keyOf(home));
/** With its status token pinned: nobody else writes it. */
export const learnHome = (volume: Volume, { home }: InodeTicket): Promise<void> =>
  volume.learnVersions([{ ...home, count: 1 }]);

export function initialise(
  volume: Volume,
  inode: Inode,
  parent: Inode,
  node: NewNode,
  { mode, gid }: Inherited,
  generation: number,
  nowNs: bigint,
): void {
  const isDirectory = node.type === FileType.directory;
  const passesOn = isDirectory || node.type === FileType.regular;
  const inArea = (node.target?.length ?? 0) <= AREA_BYTES;
  inode.assign({
    type: node.type,
    mode,
    uid: node.credentials.uid,
    gid,
    nlink: isDirectory ? 2 : 1,
    sizeBytes: node.target?.length ?? 0,
    atimeNs: nowNs,
    mtimeNs: nowNs,
    ctimeNs: nowNs,
    birthtimeNs: nowNs,
    rdev: node.rdev ?? 0,
    flags: (isDirectory || !inArea ? 0 : InodeFlag.inline) | (passesOn ? parent.flags & InodeFlag.sharedWrite : 0),
    placementClass: parent.placementClass,
    generation,
    allocatedSubBlocks: 0,
    parent: isDirectory ? parent.ino : (0 as InodeNumber),
    directoryDepth: 0,
    directorySeed: isDirectory ? below(volume.parts.random, 2 ** 32) : 0,
    directoryEntries: 0,
    projectId: parent.projectId,
    tailEpoch: volume.parts.epoch(),
    kept: EMPTY_AREA,
    area: inArea ? (node.target ?? EMPTY_AREA) : EMPTY_AREA,
  });
}
