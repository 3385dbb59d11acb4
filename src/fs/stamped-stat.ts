/**
 * stat in one turn: when every directory on the way, and what the path names, is at hand under tokens that this node holds. What it finds can be
 * remembered by another thread (src/cache/stamps.ts): all of it is of one moment, with the stamps of the same.
 */
import { TokenMode } from '../token-manager/token.js';
import { type Credentials, FileType, type StampedAttributes } from './file-system-api.js';
import type { Inode } from './inode.js';
import type { LeafEntry } from './leaf-format.js';
import { rootRef, tryLookupIn } from './path-walk.js';
import type { Volume } from './volume.js';

/**
 * Null: not to be had in one turn, or not there, or by way of a link: walk. @throws {FsError} what the walk would say: accessDenied, notDirectory,
 * nameTooLong.
 */
export function tryStat(
  volume: Volume,
  path: string,
  follow: boolean,
  credentials: Credentials,
): StampedAttributes | null {
  if (volume.closed || volume.fenced || !path.startsWith('/')) return null;
  const request = { op: follow ? 'stat' : 'lstat', credentials };
  const stamps: number[] = [];
  const { stamps: board } = volume.parts;
  let at: LeafEntry = rootRef;
  for (let from = 1; from < path.length; ) {
    const slash = path.indexOf('/', from);
    const to = slash < 0 ? path.length : slash;
    const name = path.slice(from, to);
    from = to + 1;
    // Doubled slashes, one at the end, and dots are for the walk.
    if (name === '' || name === '.' || name === '..' || from === path.length) return null;
    const next = tryLookupIn(volume, at, name, path, request);
    if (!next) return null;
    if (next.type === FileType.symlink && (follow || from < path.length)) return null;
    board?.take(at.ino, stamps);
    at = next;
  }
  const pins = volume.parts.tokens.tryPin([volume.inodes.statusItem(at.ino, TokenMode.shared)]);
  if (pins === null) return null;
  try {
    const inode = volume.inodes.getPinned(at.ino);
    if (inode === undefined || inode.type === 0 || inode.generation !== at.generation) return null;
    volume.inodes.refresh(inode);
    volume.ahead.looked(at.ino);
    board?.take(at.ino, stamps);
    return { attributes: inode.attributes(), stamps: board === null || !isStill(volume, inode) ? null : stamps };
  } finally {
    pins.release();
  }
}

/** Threads of the application grow an open file, and set its times, by themselves; what is not written out yet may still take or give space. */
const isStill = (volume: Volume, inode: Inode): boolean =>
  inode.type !== FileType.regular ||
  (inode.file === null && inode.openCount === 0 && !inode.unexposed && !volume.inodes.hasDirtyData(inode));
