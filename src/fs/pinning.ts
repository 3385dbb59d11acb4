/** Operations name inodes and modes; here that becomes one sorted request for tokens (T4). */
import { WHOLE } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { TokenClass, type TokenItem, TokenMode, type TokenPins } from '../token-manager/token.js';
import type { AcquireOptions } from '../token-manager/token-client-api.js';
import type { Inode } from './inode.js';
import { aloneItem, type OpenUse, openItems } from './open-tokens.js';
import type { Volume } from './volume.js';

export interface Wanted {
  readonly ino: InodeNumber;
  readonly status: TokenMode;
  /** The whole object; absent: none of it. */
  readonly data?: TokenMode;
  /** To be opened so. */
  readonly open?: OpenUse;
  /** Nobody else has it open. */
  readonly alone?: boolean;
  /** Ask for the whole segment: this node creates here. */
  readonly wide?: boolean;
}

/** An inode as a name or a handle knows it. */
export interface InodeRef {
  readonly ino: InodeNumber;
  readonly generation: number;
}

/** Waits for open files elsewhere. The signal is asked for by who waits. */
export const patiently = (options: AcquireOptions | undefined): AcquireOptions => ({
  patient: true,
  timeoutMs: options?.timeoutMs,
  get signal() {
    return options?.signal;
  },
});

/** Everything in one request; the same inode twice is asked for once, in its strongest modes. `more`: of other classes and objects. */
export async function pinInodes(
  volume: Volume,
  wanted: readonly Wanted[],
  options: AcquireOptions | undefined,
  more: readonly TokenItem[] = [],
): Promise<TokenPins> {
  const items: TokenItem[] = [...more];
  const merged = wanted.length === 1 ? wanted : mergeWanted(wanted);
  for (const { ino, status, open, alone, data, wide } of merged) {
    if (volume.inodes.get(ino) === undefined && !volume.inodes.locate(ino)) await volume.inodes.find(ino);
    items.push(volume.inodes.statusItem(ino, status, wide));
    if (open !== undefined) items.push(...openItems(volume, ino, open));
    if (alone === true) items.push(aloneItem(volume, ino, wide));
    if (data !== undefined && data !== TokenMode.none)
      items.push({ class: TokenClass.data, object: ino, mode: data, required: WHOLE, desired: WHOLE });
  }
  return volume.pin(items, options);
}

function mergeWanted(wanted: readonly Wanted[]): Wanted[] {
  const byIno = new Map<InodeNumber, Wanted>();
  for (const one of wanted) {
    const other = byIno.get(one.ino);
    if (other === undefined) {
      byIno.set(one.ino, one);
      continue;
    }
    byIno.set(one.ino, {
      ino: one.ino,
      status: Math.max(one.status, other.status) as TokenMode,
      data: Math.max(one.data ?? 0, other.data ?? 0) as TokenMode,
      alone: (one.alone ?? false) || (other.alone ?? false),
      wide: (one.wide ?? false) || (other.wide ?? false),
    });
  }
  return [...byIno.values()];
}

/** With its status token pinned. @throws {FsError} staleHandle when the number has another life by now. */
export async function loadRef(volume: Volume, ref: InodeRef, op: string): Promise<Inode> {
  const inode = volume.inodes.getPinned(ref.ino) ?? (await volume.inodes.load(ref.ino));
  if (inode.type === 0 || inode.generation !== ref.generation)
    throw new FsError('staleHandle', { op, object: `inode ${ref.ino}`, detail: 'has been removed' });
  return inode;
}

/** The same for a directory in which a name is looked up or changed: one that was removed has no names any more. */
export async function loadDirectory(volume: Volume, ref: InodeRef, op: string, path: string): Promise<Inode> {
  const inode = volume.inodes.getPinned(ref.ino) ?? (await volume.inodes.load(ref.ino));
  checkDirectory(inode, ref, op, path);
  return inode;
}

export function checkDirectory(inode: Inode, ref: InodeRef, op: string, path: string): void {
  if (inode.type === 0 || inode.generation !== ref.generation || inode.nlink === 0)
    throw new FsError('notFound', { op, object: path, detail: 'the directory has been removed' });
  if (!inode.isDirectory) throw new FsError('notDirectory', { op, object: path });
}
