/**
 * Open tokens: which nodes have an inode open. The object is a segment of the inode file, as for status tokens, so that an inode's
 * status and open tokens are asked for in one message, and in runs of neighbours.
 *
 * In an inode's sector three bytes mean something: somebody reads it, somebody has it open at all, somebody writes it. Whoever has it open
 * keeps shared pins on the bytes concerned until the last close: an open file is an operation that may last for hours. Whoever wants to be
 * alone with an inode (the node that took its last name, before it frees it) takes the sector exclusively; who denies others reading or
 * writing takes that byte exclusively.
 * Rules: a request for open tokens is refused as soon as a node says that it has the file open (prompt requests in
 * docs/token-protocol.md). Who waits for others to close (patient) holds nothing meanwhile; see orphans.ts.
 */
import { constants } from 'node:fs';
import type { ByteRange } from '../common/byte-range.js';
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { INODES_PER_SEGMENT, TokenClass, type TokenItem, TokenMode, type TokenPins } from '../token-manager/token.js';
import { segmentOf } from './layout.js';
import type { Volume } from './volume.js';

/** Offsets within the sector. */
const READS = 0;
const PRESENT = 1;
const WRITES = 2;

const sectorOf = (ino: InodeNumber): ByteRange => ({ start: ino * SECTOR_BYTES, end: (ino + 1) * SECTOR_BYTES });

/** The bytes that an open with these flags uses. */
function usedBy(ino: InodeNumber, flags: number): ByteRange {
  const { start } = sectorOf(ino);
  const access = flags & 3;
  return {
    start: start + (access === constants.O_WRONLY ? PRESENT : READS),
    end: start + (access === constants.O_RDONLY ? PRESENT : WRITES) + 1,
  };
}

/** In the same run in which the inode's status token is asked for. */
export function openItem(volume: Volume, ino: InodeNumber, flags: number): TokenItem {
  const { desired } = volume.inodes.statusItem(ino, TokenMode.shared);
  const required = usedBy(ino, flags);
  return { class: TokenClass.open, object: segmentOf(ino), mode: TokenMode.shared, required, desired };
}

/** Nobody else has it open. `wide`: for a node that creates here, so that it may remove what it made without asking. */
export function aloneItem(ino: InodeNumber, wide = false): TokenItem {
  const required = sectorOf(ino);
  const segment = segmentOf(ino);
  const first = segment * INODES_PER_SEGMENT * SECTOR_BYTES;
  const desired = wide ? { start: first, end: first + INODES_PER_SEGMENT * SECTOR_BYTES } : required;
  return { class: TokenClass.open, object: segment, mode: TokenMode.exclusive, required, desired };
}

/** Until the file is closed. In the turn in which the item is pinned; null: somebody wants to be alone with it, and comes first. */
export const tryHoldOpen = (volume: Volume, ino: InodeNumber, flags: number): TokenPins | null =>
  volume.parts.tokens.tryPin([openItem(volume, ino, flags)]);

/** While this node has it open: somebody waits to be alone with it. */
export const isWantedAlone = (volume: Volume, ino: InodeNumber): boolean =>
  volume.parts.tokens.heldRange(TokenClass.open, segmentOf(ino), sectorOf(ino).start + PRESENT, TokenMode.shared) ===
  null;
