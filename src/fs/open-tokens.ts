/**
 * Open tokens: which nodes have an inode open. The object is a segment of the inode file, as for status tokens, so that an inode's
 * status and open tokens are asked for in one message, and in runs of neighbours.
 *
 * In an inode's sector three bytes mean something: somebody reads it, somebody has it open at all, somebody writes it. Whoever has it open
 * keeps pins on the bytes concerned until the last close: shared on what it does, concurrent-write on what it denies: an open file is an operation that may last for hours. Whoever wants to be
 * alone with an inode (the node that took its last name, before it frees it) takes the sector exclusively.
 * Handles of one node are compared among themselves (`checkShare`).
 * Rules: a request for open tokens is refused as soon as a node says that it has the file open (prompt requests in
 * docs/token-protocol.md). Who waits for others to close (patient) holds nothing meanwhile; see orphans.ts.
 */
import { constants } from 'node:fs';
import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { TokenClass, type TokenItem, TokenMode, type TokenPins } from '../token-manager/token.js';
import type { Deny } from './file-system-api.js';
import { segmentOf } from './layout.js';
import type { Volume } from './volume.js';

/** Offsets within the sector. */
const READS = 0;
const PRESENT = 1;
const WRITES = 2;

const sectorOf = (ino: InodeNumber): ByteRange => ({ start: ino * SECTOR_BYTES, end: (ino + 1) * SECTOR_BYTES });

/** What an open does, and what it denies others while it lasts (share modes, as in DCE DFS). */
export interface OpenUse {
  readonly flags: number;
  readonly deny?: Deny | undefined;
}

export const accessOf = (flags: number): { readonly reads: boolean; readonly writes: boolean } => ({
  reads: (flags & 3) !== constants.O_WRONLY,
  writes: (flags & 3) !== constants.O_RDONLY || (flags & constants.O_TRUNC) !== 0,
});
export const deniesRead = (deny: Deny | undefined): boolean => deny === 'read' || deny === 'readwrite';
export const deniesWrite = (deny: Deny | undefined): boolean => deny === 'write' || deny === 'readwrite';

/** Those who do it are together, those who deny it are together; who does both is alone with it. */
function modeOf(does: boolean, denies: boolean): TokenMode {
  if (does && denies) return TokenMode.exclusive;
  if (denies) return TokenMode.concurrentWrite;
  return does ? TokenMode.shared : TokenMode.none;
}

/** In the same run in which the inode's status token is asked for. */
export function openItems(volume: Volume, ino: InodeNumber, { flags, deny }: OpenUse): TokenItem[] {
  const { desired } = volume.inodes.statusItem(ino, TokenMode.shared);
  const { start } = sectorOf(ino);
  const { reads, writes } = accessOf(flags);
  const modes = [
    [READS, modeOf(reads, deniesRead(deny))],
    [PRESENT, TokenMode.shared],
    [WRITES, modeOf(writes, deniesWrite(deny))],
  ] as const;
  const items: TokenItem[] = [];
  for (const [byte, mode] of modes) {
    if (mode === TokenMode.none) continue;
    const required = { start: start + byte, end: start + byte + 1 };
    const last = items.at(-1);
    // Usually all shared: one item.
    if (last !== undefined && last.mode === mode && last.required.end === required.start)
      items[items.length - 1] = { ...last, required: { start: last.required.start, end: required.end } };
    else {
      const wanted = mode === TokenMode.shared ? desired : required;
      items.push({ class: TokenClass.open, object: segmentOf(ino), mode, required, desired: wanted });
    }
  }
  // Parts of one request are disjoint.
  return items.length === 1 ? items : items.map((item) => ({ ...item, desired: item.required }));
}

/** Nobody else has it open. With its whole run, or the segment: who removes, or creates, one inode is about to do so with its neighbours. */
export function aloneItem(volume: Volume, ino: InodeNumber, wide = false): TokenItem {
  const required = sectorOf(ino);
  const segment = segmentOf(ino);
  const { desired } = volume.inodes.statusItem(ino, TokenMode.exclusive, wide);
  return { class: TokenClass.open, object: segment, mode: TokenMode.exclusive, required, desired };
}

/** Until the file is closed. In the turn in which the item is pinned; null: somebody wants to be alone with it, and comes first. */
export const tryHoldOpen = (volume: Volume, ino: InodeNumber, use: OpenUse): TokenPins | null =>
  volume.parts.tokens.tryPin(openItems(volume, ino, use));

/** While this node has it open: somebody waits to be alone with it. */
export const isWantedAlone = (volume: Volume, ino: InodeNumber): boolean =>
  volume.parts.tokens.heldRange(TokenClass.open, segmentOf(ino), sectorOf(ino).start + PRESENT, TokenMode.shared) ===
  null;

/** Handles of this node don't meet in tokens. @throws {FsError} tokenRefused */
export function checkShare(volume: Volume, ino: InodeNumber, use: OpenUse): void {
  const denying = volume.denying.get(ino) ?? 0;
  if (use.deny === undefined && denying === 0) return;
  const { reads, writes } = accessOf(use.flags);
  for (const file of volume.openFiles) {
    if (file.ino !== ino) continue;
    const other = accessOf(file.flags);
    const isDenied = (reads && deniesRead(file.deny)) || (writes && deniesWrite(file.deny));
    const denies = (other.reads && deniesRead(use.deny)) || (other.writes && deniesWrite(use.deny));
    if (isDenied || denies)
      throw new FsError('tokenRefused', { op: 'open', object: `inode ${ino}`, detail: 'open on this node' });
  }
}
