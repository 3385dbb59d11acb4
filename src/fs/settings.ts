import { TRANSACTION_BYTES_MAX } from './log/log-records.js';

/** What an operator may set; the defaults suit a node with some GiB of page pool. */
export interface FsSettings {
  /** Age at which a dirty inode is written out. */
  readonly inodeWriteBehindMs: number;
  /** How often the background looks. */
  readonly backgroundIntervalMs: number;
  /** Inodes kept in memory beyond those in use. */
  readonly inodesCachedMax: number;
  /** Inode numbers taken from a segment at a time. */
  readonly inodeBatch: number;
  /** Inodes asked for around one that is read. */
  readonly inodeRun: number;
  /** How long a region's holder may take before another region is tried. */
  readonly regionTimeoutMs: number;
  /** How long "no room for more than is needed" is believed. */
  readonly scarceMemoryMs: number;
  /** How long the other nodes may take to settle what they have freed, before "full" is said or space is counted without them. */
  readonly peersTimeoutMs: number;
  /** How long the allocation manager may take to answer, before the file system is looked through without it. */
  readonly managerTimeoutMs: number;
  /** Extents waiting to be freed before an operation helps out. */
  readonly freeQueueMax: number;
  /** Extents that one transaction gives up; more goes in steps (in-steps.ts). At least 8; fewer where the log is small. */
  readonly stepExtentsMax: number;
  /** Bytes of one transaction; for tests, that show that none has more. */
  readonly transactionBytesMax: number;
  /** So many bytes of dirty data at most go into the log first when a file is synced; 0: always to their place. */
  readonly logWriteBytesMax: number;
  /** Bytes of a new log; null: by the size of the file system, 256 KiB to 64 MiB. */
  readonly logBytes: number | null;
  /** How old the counts that statfs answers with may be at most; never older than ten times what it takes to count. */
  readonly statisticsAgeMs: number;
  /** Whether reads move atime: as Linux's relatime, or not at all. */
  readonly accessTimes: 'relatime' | 'none';
}

export const DEFAULT_FS_SETTINGS: FsSettings = {
  inodeWriteBehindMs: 5_000,
  backgroundIntervalMs: 1_000,
  inodesCachedMax: 50_000,
  inodeBatch: 256,
  inodeRun: 64,
  regionTimeoutMs: 2_000,
  scarceMemoryMs: 200,
  peersTimeoutMs: 2_000,
  managerTimeoutMs: 500,
  freeQueueMax: 16_384,
  stepExtentsMax: 1_024,
  transactionBytesMax: TRANSACTION_BYTES_MAX,
  statisticsAgeMs: 2_000,
  accessTimes: 'relatime',
  logBytes: null,
  logWriteBytesMax: 64 * 1024,
};
