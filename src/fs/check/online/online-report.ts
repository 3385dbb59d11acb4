/** What a check of a mounted file system says: what does not fit, and what it could not look at. */
import type { Finding, FindingKind } from '../findings.js';

/** A file's bytes that don't have their checksum: looked for only when asked. */
export type OnlineFindingKind = FindingKind | 'dataUnreadable';

export interface OnlineFinding extends Omit<Finding, 'kind'> {
  readonly kind: OnlineFindingKind;
}

/** What can't be known while nodes work, and why. In the order in which it is told. */
export const NOT_CHECKED = {
  lostSpace:
    'sub-blocks that are marked as used and that nothing in place points to: on their way in or out on some node, or lost',
  lostNumbers: 'inode numbers that are marked as used and that no inode in place has: some node has them, or lost',
  nameless: 'inodes with neither a name nor links: open, being freed, or orphans',
  hidden: 'inodes of which names may be in what is damaged',
  unreached: 'names of inodes to which a damaged block of pointers of the inode file leads',
  logs: 'logs in use: what is in them',
  logsLeft: 'logs of nodes that are gone: to be redone and settled',
  freeMarks: 'regions: whether their marks of shipped frees are ahead of the logs',
  copies: 'NSDs that are not up to date: their copies',
  busy: 'objects that changed whenever they were looked at',
  tokens: 'objects whose tokens could not be had in time',
  data: 'regular files: whether their bytes can be read (without --data)',
} as const;
export type NotCheckedKind = keyof typeof NOT_CHECKED;

export interface NotChecked {
  readonly kind: NotCheckedKind;
  readonly count: number;
  readonly what: string;
}

export interface OnlineReport {
  /** At most 1000. */
  readonly findings: readonly OnlineFinding[];
  readonly findingCount: number;
  /** With repair: what was found and mended. */
  readonly mended: readonly OnlineFinding[];
  readonly notChecked: readonly NotChecked[];
  /** Looks that had to be repeated under tokens, since what was read without did not fit. */
  readonly suspicions: number;
  readonly inodes: number;
  readonly directories: number;
  readonly sectorsRead: number;
}

export interface OnlineProgress {
  readonly phase: string;
  readonly done: number;
  /** 0: not known. */
  readonly total: number;
}

export interface OnlineOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: OnlineProgress) => void) | undefined;
  /** Damaged copies are written from the others; nothing else. */
  readonly repair?: boolean | undefined;
  /** Files' bytes are read too. */
  readonly data?: boolean | undefined;
  /** How fast it reads at most; 0: as fast as it can. */
  readonly readBytesPerS?: number | undefined;
}

export const READ_BYTES_PER_S = 128 << 20;
