/**
 * rename, onto nothing, onto something, or the two exchanged.
 *
 * A directory that moves between directories takes the file system's rename lock first, before any other token, and nothing that holds another token
 * ever asks for it: so the order of T4 has it at its very beginning, and while it is held the tree of directories has only one editor.
 * Then the ways from both parents up to the root are walked, one shared token at a time, to see that no directory moves into itself.
 * The change itself takes all tokens in one request, after an unlocked look-up that is repeated under them.
 */

import { range } from '../../common/byte-range.js';
import { FsError } from '../../common/errors.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { TokenMode } from '../../token-manager/token.js';
import { Directory, type HashedName, hashedName, type Needed } from '../directory.js';
import { type Credentials, FileType, type RenameOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { LINK_COUNT_MAX, RENAME_LOCK, ROOT_DIRECTORY } from '../layout.js';
import type { LeafEntry } from '../leaf-format.js';
import { type Walked, walk } from '../path-walk.js';
import { checkAccess, checkSticky, EXECUTE, WRITE } from '../permissions.js';
import { type InodeRef, loadDirectory, pinInodes, type Wanted } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { corrupt } from '../sector.js';
import { MetadataTransaction } from '../transaction.js';
import { checkNamed, parentOf } from '../tree-faults.js';
import type { Volume } from '../volume.js';
import { freeIfUnused } from './free-inode.js';
import { dropLink } from './unlink.js';

interface Rename {
  readonly from: string;
  readonly to: string;
  readonly credentials: Credentials;
  readonly options: RenameOptions | undefined;
}
interface Place {
  readonly parent: InodeRef;
  readonly name: HashedName;
}
interface Move extends Rename {
  readonly source: Place;
  readonly target: Place;
  readonly entry: LeafEntry;
  /** What has the new name: it goes, or with `exchange` gets the old one. */
  readonly replaced: LeafEntry | null;
  readonly exchange: boolean;
}

const op = 'rename';

export async function rename(
  volume: Volume,
  from: string,
  to: string,
  credentials: Credentials,
  options: RenameOptions | undefined,
): Promise<void> {
  const request: Rename = { from, to, credentials, options };
  if (options?.noReplace === true && options.exchange === true)
    throw new FsError('invalidArgument', { op, object: to, detail: 'noReplace and exchange exclude each other' });
  for (;;) {
    const walkRequest = { op, credentials, followLast: false, nameOnly: true, options };
    const source = await walk(volume, from, walkRequest);
    const toDirectory = options?.toDirectory ?? options?.directory;
    const target = await walk(volume, to, { ...walkRequest, options: { ...options, directory: toDirectory } });
    const move = { ...request, ...checkedPlaces(source, target, request) };
    const between = move.source.parent.ino !== move.target.parent.ino;
    const directory = isDirectory(move.entry) || (move.replaced !== null && isDirectory(move.replaced));
    if (between && directory ? await moveDirectory(volume, move) : await moveEntry(volume, move)) return;
  }
}

const isDirectory = ({ type }: LeafEntry): boolean => type === FileType.directory;

/** In the order in which Linux finds fault. */
function checkedPlaces(source: Walked, target: Walked, { from, to, options }: Rename): Omit<Move, keyof Rename> {
  const exchange = options?.exchange === true;
  const noReplace = options?.noReplace === true;
  const unchangeable = { op, detail: 'not a name that can change' };
  if (source.parent === null) throw new FsError('busy', { ...unchangeable, object: from });
  if (target.parent === null) throw new FsError(noReplace ? 'exists' : 'busy', { ...unchangeable, object: to });
  const entry = source.target;
  const replaced = target.target;
  if (entry === null) throw new FsError('notFound', { op, object: from });
  if (noReplace && replaced !== null) throw new FsError('exists', { op, object: to });
  if (exchange && replaced === null) throw new FsError('notFound', { op, object: to });
  if (exchange && target.trailingSlash && !isDirectory(replaced!))
    throw new FsError('notDirectory', { op, object: to });
  if (!isDirectory(entry) && (source.trailingSlash || (target.trailingSlash && !exchange)))
    throw new FsError('notDirectory', { op, object: target.trailingSlash ? to : from });
  return {
    source: { parent: source.parent, name: hashedName(source.name) },
    target: { parent: target.parent, name: hashedName(target.name) },
    entry,
    replaced,
    exchange,
  };
}

async function moveDirectory(volume: Volume, move: Move): Promise<boolean> {
  const { entry, replaced, source, target, exchange, from, to } = move;
  const lock = await volume.pin([volume.dataItem(RENAME_LOCK, range(0, SECTOR_BYTES))], move.options);
  try {
    if (isDirectory(entry) && (await isBelow(volume, target.parent, entry, move)))
      throw new FsError('invalidArgument', { op, object: to, detail: 'a directory can not move into itself' });
    if (replaced !== null && isDirectory(replaced) && (await isBelow(volume, source.parent, replaced, move)))
      throw new FsError(exchange ? 'invalidArgument' : 'notEmpty', { op, object: from });
    return await moveEntry(volume, move);
  } finally {
    lock.release();
  }
}

/**
 * Whether a directory is another one or below it: upwards; nobody moves directories meanwhile, so one token at a time is enough. Where damage has made a loop
 * of directories the way up comes again to one of those at which it has been after 1, 2, 4, … steps (R. P. Brent, An Improved Monte Carlo Factorization
 * Algorithm, section 2).
 */
async function isBelow(volume: Volume, from: InodeRef, directory: InodeRef, { to, options }: Move): Promise<boolean> {
  let mark = from.ino;
  let markedAt = 1;
  for (let { ino } = from, steps = 0; ; steps++) {
    if (ino === directory.ino) return true;
    if (steps > 0 && ino === mark && ino !== ROOT_DIRECTORY)
      throw corrupt(op, `directory ${ino}`, 'it is its own ancestor (fs check --repair)');
    if (steps === markedAt) {
      mark = ino;
      markedAt *= 2;
    }
    if (ino === ROOT_DIRECTORY) return false;
    const pins = await pinInodes(volume, [{ ino, status: TokenMode.shared }], options);
    try {
      const inode = await volume.inodes.load(ino);
      if (!inode.isDirectory || inode.nlink === 0) throw new FsError('notFound', { op, object: to });
      ino = parentOf(volume, inode, op);
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
  // Its data too, since it may be the end of it.
  if (replaced !== null)
    wanted.push({
      ino: replaced.ino,
      status: TokenMode.exclusive,
      ...(move.exchange ? {} : { data: TokenMode.exclusive }),
    });
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
/** The inodes of a move, all of them valid in one turn. */
interface Loaded {
  readonly moved: Inode;
  /** Null: none, or its inode is gone (its node died before it was written). */
  readonly victim: Inode | null;
  readonly fromInode: Inode;
  readonly toInode: Inode;
}

async function loadAll(volume: Volume, { source, target, entry, replaced, from, to }: Move): Promise<Loaded> {
  for (;;) {
    const moved = await volume.inodes.load(entry.ino);
    const victim = replaced === null ? null : await volume.inodes.load(replaced.ino);
    const fromInode = await loadDirectory(volume, source.parent, op, from);
    const toInode = await loadDirectory(volume, target.parent, op, to);
    if (!moved.valid || !(victim?.valid ?? true) || !fromInode.valid) continue;
    const dangling = victim !== null && (victim.type === 0 || victim.generation !== replaced!.generation);
    return { moved, victim: dangling ? null : victim, fromInode, toInode };
  }
}

async function tryMove(volume: Volume, move: Move): Promise<boolean | Waiting> {
  const { source, target, entry, replaced, exchange } = move;
  const loaded = await loadAll(volume, move);
  // From here to the commit nothing is awaited.
  const { moved, victim, fromInode, toInode } = loaded;
  const fromDirectory = new Directory(volume, fromInode);
  const toDirectory = fromInode === toInode ? fromDirectory : new Directory(volume, toInode);
  const there = fromDirectory.tryLookup(source.name);
  if (there !== null && 'kind' in there) return { directory: fromDirectory, needed: there };
  const taken = toDirectory.tryLookup(target.name);
  if (taken !== null && 'kind' in taken) return { directory: toDirectory, needed: taken };
  if (!sameEntry(there, entry) || !sameEntry(taken, replaced)) return false;
  if (moved.type === 0 || moved.generation !== entry.generation)
    throw new FsError('staleHandle', { op, object: move.from, detail: 'its inode is gone' });
  // Two names of one inode: nothing to do, says POSIX.
  if (replaced !== null && replaced.ino === entry.ino) return true;
  checkMove(move, loaded);
  checkNamed(op, fromInode, source.name.text, entry, moved);
  if (victim !== null) checkNamed(op, toInode, target.name.text, replaced!, victim);

  const transaction = new MetadataTransaction(volume);
  const waiting = changeNames(move, fromDirectory, toDirectory, transaction);
  if (waiting !== null) return waiting;
  if (victim !== null)
    withSettledState(volume, victim, () => {
      if (exchange) renamed(victim, fromInode, toInode, transaction);
      else dropLink(victim, toInode, transaction);
    });
  withSettledState(volume, moved, () => {
    renamed(moved, toInode, fromInode, transaction);
    transaction.commit();
  });
  if (victim !== null && !exchange) await freeIfUnused(volume, victim);
  return true;
}

/** Both names or, not null, neither: then what is waited for. */
function changeNames(
  { source, target, entry, replaced, exchange }: Move,
  fromDirectory: Directory,
  toDirectory: Directory,
  transaction: MetadataTransaction,
): Waiting | null {
  const put =
    replaced === null
      ? toDirectory.tryInsert(target.name, entry, transaction)
      : toDirectory.tryReplace(target.name, entry, transaction);
  if (put !== null) return { directory: toDirectory, needed: put };
  const gone = exchange
    ? fromDirectory.tryReplace(source.name, replaced!, transaction)
    : fromDirectory.tryRemove(source.name, transaction);
  if (gone === null) return null;
  // Taken back in the same turn: nobody has seen it, and its leaf was at hand a moment ago.
  if (replaced === null) toDirectory.tryRemove(target.name, transaction);
  else toDirectory.tryReplace(target.name, replaced, transaction);
  transaction.commit();
  return { directory: fromDirectory, needed: gone };
}

/** It has a name in another directory now, or another one in the same. */
function renamed(inode: Inode, into: Inode, outOf: Inode, transaction: MetadataTransaction): void {
  inode.ctimeNs = transaction.nowNs;
  if (into !== outOf && inode.isDirectory) {
    inode.parent = into.ino;
    outOf.nlink--;
    into.nlink++;
  }
  transaction.inode(inode);
}

const sameEntry = (a: LeafEntry | null, b: LeafEntry | null): boolean =>
  a === null || b === null ? a === b : a.ino === b.ino && a.generation === b.generation;

function checkMove(move: Move, { moved, victim, fromInode, toInode }: Loaded): void {
  const { credentials, from, to, exchange } = move;
  const fail = (reason: 'notDirectory' | 'isDirectory' | 'notEmpty' | 'linkCountLimit', object: string) =>
    new FsError(reason, { op, object });
  checkAccess(fromInode, credentials, WRITE | EXECUTE, op, from);
  checkSticky(fromInode, moved, credentials, op, from);
  checkAccess(toInode, credentials, WRITE | EXECUTE, op, to);
  if (victim !== null) {
    checkSticky(toInode, victim, credentials, op, to);
    if (!exchange && moved.isDirectory && !victim.isDirectory) throw fail('notDirectory', to);
    if (!exchange && !moved.isDirectory && victim.isDirectory) throw fail('isDirectory', to);
  }
  if (fromInode !== toInode) {
    // Its '..' changes.
    if (moved.isDirectory) checkAccess(moved, credentials, WRITE, op, from);
    if (exchange && victim?.isDirectory) checkAccess(victim, credentials, WRITE, op, to);
    if (moved.isDirectory && !victim?.isDirectory && toInode.nlink >= LINK_COUNT_MAX) throw fail('linkCountLimit', to);
    if (exchange && !moved.isDirectory && victim?.isDirectory && fromInode.nlink >= LINK_COUNT_MAX)
      throw fail('linkCountLimit', from);
  }
  if (!exchange && victim?.isDirectory && victim.directoryEntries > 0) throw fail('notEmpty', to);
}
