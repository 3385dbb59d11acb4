/**
 * Writes, and the flush that makes them durable (I8).
 *
 * Every flush that the file system makes has a name here; flushes.test.ts leaves out one after the other, and finds each missing.
 * Fault model: an NSD may lose what was not flushed while its writers live, when its server loses power and comes back. The flush that follows
 * succeeds then, and covers nothing: so whoever writes takes down how often that has happened before he begins, and compares after the flush
 * (the write verifier of NFSv4, RFC 7530 section 16.36). What was lost is written again.
 */
import type { NsdIndex } from '../common/ids.js';
import type { NsdClientApi, SectorIo } from '../nsd/nsd-api.js';

export const FLUSHES = [
  /** A group of the log, before those who wait for it go on. */
  'log',
  /** Metadata in place, before the log's tail passes its records. */
  'tail',
  /** Metadata in place, before its token leaves. */
  'handOver',
  /** Data, before the record that exposes it. */
  'exposure',
  /** Data, before fsync returns. */
  'fsync',
  /** Data, before its token leaves. */
  'dataHandOver',
  /** Discards where a file is to have zeros, before that is said. */
  'zeros',
  /** The copy of a block, before the old one is given up. */
  'move',
  /** A block of attributes, before an inode names it. */
  'attributes',
  /** Discards of what was freed, before it can be allocated again. */
  'freed',
  /** Discards of what is free in a region, before it is allocated from. */
  'region',
  /** The state of a log, before anybody relies on it. */
  'logState',
  /** The space of a new log in the map, before it is written to. */
  'logSpace',
  /** Zeros in that space, before the log is said to be there. */
  'logCleared',
  /** What a node that is gone had written of its log and where that leads, before the log is redone. */
  'leftBehind',
  /** And what it had written into files elsewhere. */
  'leftData',
  /** What a log said, in place, before the log is done. */
  'redo',
  /** The content of a new file system, before the superblocks that say it is there. */
  'mkfs',
  /** These. */
  'superblock',
  /** What a copy had missed, before anybody reads it. */
  'resync',
  /** Zeros where a repair gives space back, before a map says that it is free. */
  'repairZeros',
  /** What a repair wrote, before what relies on it, and before it says so. */
  'repair',
  /** A copy that a check of a mounted file system wrote anew, before it says so. */
  'mendedCopy',
  /** The same of a superblock. */
  'mendedSuperblock',
] as const;
export type Flush = (typeof FLUSHES)[number];

type Nsds = Pick<NsdClientApi, 'flush' | 'lossesOf'>;

/** How often each has lost something, before writes that may be lost begin. */
export class LossMark {
  readonly #before: ReadonlyMap<NsdIndex, number>;

  constructor(
    private readonly nsds: Nsds,
    which: Iterable<NsdIndex>,
  ) {
    this.#before = new Map([...which].map((nsd) => [nsd, nsds.lossesOf(nsd)]));
  }
  /** After their flush: some of them may not be covered. */
  get lost(): boolean {
    for (const [nsd, losses] of this.#before) if (this.nsds.lossesOf(nsd) !== losses) return true;
    return false;
  }
}

/** What `write` writes to these NSDs is durable when it resolves; it is called again if some of it was lost. */
export async function durably(
  nsds: Nsds,
  which: readonly NsdIndex[],
  why: Flush,
  write: () => Promise<void>,
): Promise<void> {
  for (;;) {
    const mark = new LossMark(nsds, which);
    await write();
    if (which.length > 0) await nsds.flush(which, { why });
    if (!mark.lost) return;
  }
}

/** The same of one write, whose flush goes with it: one request to each NSD, and where that is possible one operation of its device. */
export async function writeDurably(
  nsds: Nsds & Pick<NsdClientApi, 'write'>,
  ios: readonly SectorIo[],
  why: Flush,
): Promise<void> {
  for (;;) {
    const mark = new LossMark(
      nsds,
      ios.map(({ nsd }) => nsd),
    );
    await nsds.write(ios, { flush: why });
    if (!mark.lost) return;
  }
}
