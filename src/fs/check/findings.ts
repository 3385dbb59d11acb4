/**
 * What a check can find, and in which order a repair mends it.
 *
 * A stage is mended as a whole, and then everything is read again: what a later stage concludes (nobody names it, nobody points to it) is only true
 * when nothing of an earlier stage is left.
 */

/** In the order in which they are mended. */
export const STAGES = ['copies', 'blocks', 'shared', 'names', 'tree', 'counts', 'maps', 'logs'] as const;
export type Stage = (typeof STAGES)[number];

export const FINDING_STAGES = {
  /** One of two copies of a sector is unreadable, damaged, or not what the other is. */
  copyDamaged: 'copies',
  /** A copy of the superblock is unreadable, damaged, another file system's or of an earlier generation. */
  superblockCopy: 'blocks',
  /** One of inodes 1 to 6 is not what it has to be. */
  systemInode: 'blocks',
  inodeUnreadable: 'blocks',
  inodeDamaged: 'blocks',
  indirectDamaged: 'blocks',
  attributesDamaged: 'blocks',
  logDescriptorDamaged: 'blocks',
  /** Two pointers to one sub-block. */
  spaceShared: 'shared',
  leafDamaged: 'names',
  /** A leaf's depth is not what the leaves beside it say. */
  leafDepth: 'names',
  entryBadName: 'names',
  entryDangling: 'names',
  entryTwice: 'names',
  entryMisplaced: 'names',
  entryType: 'names',
  /** A directory has two names. */
  directoryTwice: 'names',
  directoryLoop: 'tree',
  directoryDetached: 'tree',
  fileDetached: 'tree',
  /** Neither a name nor a link count: a node that died had it open. */
  orphan: 'tree',
  parentWrong: 'counts',
  linkCount: 'counts',
  directoryCount: 'counts',
  spaceCount: 'counts',
  regionDamaged: 'maps',
  /** A region's mark of shipped frees (S6) is ahead of the log that ships. */
  freeMarkAhead: 'maps',
  spaceFreeButUsed: 'maps',
  spaceLost: 'maps',
  segmentDamaged: 'maps',
  numberFreeButUsed: 'maps',
  numberLost: 'maps',
  generationLow: 'maps',
  logNotEnded: 'logs',
  logHole: 'logs',
} as const satisfies Record<string, Stage>;

export type FindingKind = keyof typeof FINDING_STAGES;

export interface Finding {
  readonly kind: FindingKind;
  /** As errors name objects: `inode 17`, `directory 2 leaf 0`, `NSD 1 sector 512`. */
  readonly object: string;
  /** Where the object, or what it belongs to, is found by name; null: nowhere, or not looked for. */
  readonly path: string | null;
  /** What is wrong, and what of it can't be brought back. */
  readonly detail: string;
  /** What a repair does about it; null: nothing. */
  readonly mend: string | null;
}

/** Space and numbers that nobody uses: what a node that died leaves behind, and no contradiction. */
export const isLoss = ({ kind }: Finding): boolean => kind === 'spaceLost' || kind === 'numberLost';

export const findingText = ({ object, path, detail }: Finding): string =>
  `${object}${path === null ? '' : ` (${path})`}: ${detail}`;
