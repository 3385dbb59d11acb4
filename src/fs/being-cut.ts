/**
 * A file whose space behind its end goes in steps (in-steps.ts) says so itself: its tail epoch is 0, in which nobody can have died, so that every
 * node takes what is behind its end for doubtful (file-tail.ts). It is never seen again, and who wants to write to the file goes through the steps that
 * are left first.
 */
import type { Inode } from './inode.js';
import type { MetadataTransaction } from './transaction.js';

/** Of no cluster: epochs count from 1. */
const BEING_CUT = 0;

export const isBeingCut = ({ tailDoubtful, tailEpoch }: Inode): boolean => tailDoubtful && tailEpoch === BEING_CUT;

/** For every node, as after a death: what a write left behind the end could not be taken back. */
export function doubtTail(inode: Inode): void {
  inode.tailDoubtful = true;
  inode.tailEpoch = BEING_CUT;
}

/** In the turn in which the size changes. Whoever made the transaction gives the inode to `volume.orphans` when it is committed. */
export function noteCut(inode: Inode, transaction: MetadataTransaction): void {
  doubtTail(inode);
  transaction.looseEnd({ kind: 'orphan', ino: inode.ino, generation: inode.generation });
}
