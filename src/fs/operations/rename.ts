/**
 * rename.
 *
 * A directory that moves between directories takes the file system's rename lock first, before any other token, and nothing that holds another token
 * ever asks for it: so the order of T4 has it at its very beginning, and while it is held the tree of directories has only one editor.
 * Then the way from the new parent up to the root is walked, one shared token at a time, to see that the directory doesn't move into itself.
 * The change itself takes all tokens in one request, after an unlocked look-up that is repeated under them.
 */

import { range } from '../../common/byte-range.js';
import { FsError } from '../../common/errors.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { TokenMode } from '../../token-manager/token.js';
import { Directory, type HashedName, hashedName, type Needed } from '../directory.js';
import { type Credentials, FileType, type OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { LINK_COUNT_MAX, RENAME_LOCK, ROOT_DIRECTORY } from '../layout.js';
import type { LeafEntry } from '../leaf-format.js';
import { type Walked, walk } from '../path-walk.js';
import { checkAccess, checkSticky, EXECUTE, WRITE } from '../permissions.js';
import { type InodeRef, loadDirectory, pinInodes, type Wanted } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';
import { freeIfUnused } from './free-inode.js';
import { dropLink } from './unlink.js';

interface Rename {
  readonly from: string;
  readonly to: string;
  readonly credentials: Credentials;
  readonly options: OpOptions | undefined;
}
interface Place {
  readonly parent: InodeRef;
  readonly name: HashedName;
}
interface Move extends Rename {
  readonly source: Place;
  readonly target: Place;
  readonly entry: LeafEntry;
  readonly replaced: LeafEntry | null;
}

const op = 'rename';

export async function rename(
  volume: Volume,
  from: string,
  to: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<void> {
  const request: Rename = { from, to, credentials, options };
  for (;;) {
    const source = await walk(volume, from, { op, credentials, followLast: false, options });
    if (source.target === null) throw new FsError('notFound', { op, object: from });
    const target = await walk(volume, to, { op, credentials, followLast: false, options });
    const move = { ...request, ...checkedPlaces(source, target, request) };
    const isDirectory = move.entry.type === FileType.directory;
    if (!isDirectory && (source.trailingSlash || target.trailingSlash))
      throw new FsError('notDirectory', { op, object: target.trailingSlash ? to : from });
    const moves = isDirectory && move.source.parent.ino !== move.target.parent.ino;
    if (moves ? await moveDirectory(volume, move) : await moveEntry(volume, move)) return;
  }
}

function checkedPlaces(source: Walked, target: Walked, { from, to }: Rename): Omit<Move, keyof Rename> {
  for (const [walked, path] of [
    [source, from],
    [target, to],
  ] as const) {
    if (walked.parent !== null) continue;
    throw new FsError(walked.dots ? 'invalidArgument' : 'busy', {
      op,
      object: path,
      detail: 'not a name that can change',
    });
  }
  return {
    source: { parent: source.parent!, name: hashedName(source.name) },
    target: { parent: target.parent!, name: hashedName(target.name) },
    entry: source.target!,
    replaced: target.target,
  };
}

async function moveDirectory(volume: Volume, move: Move): Promise<boolean> {
  const lock = await volume.pin([volume.dataItem(RENAME_LOCK, range(0, SECTOR_BYTES))], move.options);
  try {
    await checkNotInside(volume, move);
    return await moveEntry(volume, move);
  } finally {
    lock.release();
  }
}

/** From the new parent up: nobody moves directories meanwhile, so one token at a time is enough. */
async function checkNotInside(volume: Volume, { entry, target, to, options }: Move): Promise<void> {
  for (let ino = target.parent.ino; ; ) {
    if (ino === entry.ino)
      throw new FsError('invalidArgument', { op, object: to, detail: 'a directory can not move into itself' });
    if (ino === ROOT_DIRECTORY) return;
    const pins = await pinInodes(volume, [{ ino, status: TokenMode.shared }], options);
    try {
      const inode = await volume.inodes.load(ino);
      if (!inode.isDirectory || inode.nlink === 0) throw new FsError('notFound', { op, object: to });
      ino = inode.parent;
    } finally {
      pins.release();
    }
  }
}

/** False: the names mean something else by now, look again. */
async function moveEntry(volume: Volume, move: Move): Promise<boolean> {
  const { source, target, entry, replaced } = move;
  const wanted: Wanted[] = [
    { ino: source.parent.ino, status: TokenMode.exclusive, data: TokenMode.exclusive },
    { ino: target.parent.ino, status: TokenMode.exclusive, data: TokenMode.exclusive },
    { ino: entry.ino, status: TokenMode.exclusive },
  ];
  if (replaced !== null) wanted.push({ ino: replaced.ino, status: TokenMode.exclusive, data: TokenMode.exclusive });
  const pins = await pinInodes(volume, wanted, move.options);
  try {
    for (;;) {
      const step = await tryMove(volume, move);
      if (typeof step === 'boolean') return step;
      await step.directory.advance(step.needed);
    }
  } finally {
    publishStatus(volume, entry.ino);
    if (replaced !== null) publishStatus(volume, replaced.ino);
    pins.release();
  }
}

interface Waiting {
  readonly directory: Directory;
  readonly needed: Needed;
}

async function loadAll(volume: Volume, { source, target, entry, replaced, from, to }: Move) {
  for (;;) {
    const moved = await volume.inodes.load(entry.ino);
    const victim = replaced === null ? null : await volume.inodes.load(replaced.ino);
    const fromInode = await loadDirectory(volume, source.parent, op, from);
    const toInode = await loadDirectory(volume, target.parent, op, to);
    if (moved.valid && (victim?.valid ?? true) && fromInode.valid) return { moved, victim, fromInode, toInode };
  }
}

async function tryMove(volume: Volume, move: Move): Promise<boolean | Waiting> {
  const { source, target, entry, replaced } = move;
  const { moved, victim, fromInode, toInode } = await loadAll(volume, move);
  // From here to the commit nothing is awaited.
  const fromDirectory = new Directory(volume, fromInode);
  const toDirectory = fromInode === toInode ? fromDirectory : new Directory(volume, toInode);
  const there = fromDirectory.tryLookup(source.name);
  if (there !== null && 'kind' in there) return { directory: fromDirectory, needed: there };
  const taken = toDirectory.tryLookup(target.name);
  if (taken !== null && 'kind' in taken) return { directory: toDirectory, needed: taken };
  if (!sameEntry(there, entry) || !sameEntry(taken, replaced)) return false;
  if (moved.type === 0 || moved.generation !== entry.generation)
    throw new FsError('staleHandle', { op, object: move.from, detail: 'its inode is gone' });
  const dangling = victim !== null && (victim.type === 0 || victim.generation !== replaced!.generation);
  checkMove(move, moved, dangling ? null : victim, fromInode, toInode);
  // Two names of one inode: nothing to do, says POSIX.
  if (replaced !== null && replaced.ino === entry.ino) return true;

  const transaction = new MetadataTransaction(volume);
  const put =
    replaced === null
      ? toDirectory.tryInsert(target.name, entry, transaction)
      : toDirectory.tryReplace(target.name, entry, transaction);
  if (put !== null) return { directory: toDirectory, needed: put };
  const gone = fromDirectory.tryRemove(source.name, transaction);
  if (gone !== null) {
    // Taken back in the same turn: nobody has seen it, and its leaf was at hand a moment ago.
    if (replaced === null) toDirectory.tryRemove(target.name, transaction);
    else toDirectory.tryReplace(target.name, replaced, transaction);
    transaction.commit();
    return { directory: fromDirectory, needed: gone };
  }
  if (victim !== null && !dangling) withSettledState(volume, victim, () => dropLink(victim, toInode, transaction));
  if (moved.isDirectory && fromInode !== toInode) {
    moved.parent = toInode.ino;
    fromInode.nlink--;
    toInode.nlink++;
  }
  withSettledState(volume, moved, () => {
    moved.ctimeNs = transaction.nowNs;
    // In this order: written half, it has two names rather than none.
    moved.noteName(toInode.ino);
    if (fromInode !== toInode) moved.noteName(fromInode.ino);
    transaction.inode(moved);
    transaction.commit();
  });
  if (victim !== null && !dangling) await freeIfUnused(volume, victim);
  return true;
}

const sameEntry = (a: LeafEntry | null, b: LeafEntry | null): boolean =>
  a === null || b === null ? a === b : a.ino === b.ino && a.generation === b.generation;

function checkMove(move: Move, moved: Inode, victim: Inode | null, fromInode: Inode, toInode: Inode): void {
  const { credentials, from, to } = move;
  checkAccess(fromInode, credentials, WRITE | EXECUTE, op, from);
  checkAccess(toInode, credentials, WRITE | EXECUTE, op, to);
  checkSticky(fromInode, moved, credentials, op, from);
  const between = fromInode !== toInode;
  // Its '..' changes.
  if (moved.isDirectory && between) checkAccess(moved, credentials, WRITE, op, from);
  if (moved.isDirectory && between && victim === null && toInode.nlink >= LINK_COUNT_MAX)
    throw new FsError('linkCountLimit', { op, object: to });
  if (victim === null || victim === moved) return;
  checkSticky(toInode, victim, credentials, op, to);
  if (moved.isDirectory && !victim.isDirectory) throw new FsError('notDirectory', { op, object: to });
  if (!moved.isDirectory && victim.isDirectory) throw new FsError('isDirectory', { op, object: to });
  if (victim.isDirectory && victim.directoryEntries > 0) throw new FsError('notEmpty', { op, object: to });
}
