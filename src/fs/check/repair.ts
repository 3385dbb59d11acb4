/**
 * Mending what a check finds, in a file system that nobody has mounted and nobody mounts meanwhile (the caller sees to that).
 *
 * Logs are redone first. Then: read everything; of the first stage that has something to be mended, mend it, durably; and again, until nothing is left
 * that can be. Every conclusion is drawn from what is on the devices, never from what this run remembers of its own doing; so a repair that was cut off
 * anywhere is gone on with by the next one, and a second run finds nothing to do. What is written in one step is in an order in which no name and no byte
 * is only in memory: copies before the pointers to them, a name in its new place before it leaves the old one, zeros before a bit says free.
 * What can't be mended (no space for a copy) is left as it is, and said.
 */
import type { Counters } from '../../common/counters.js';
import { FsError } from '../../common/errors.js';
import type { Logger } from '../../common/logger.js';
import { readDescriptors } from '../log/log-reader.js';
import { type LogDescriptor, LogState } from '../log/log-table.js';
import { type RecoveryVolume, replayLogs } from '../recovery.js';
import { checkWritable } from '../superblock.js';
import type { CheckParts } from './check-storage.js';
import { SectorEdits } from './check-storage.js';
import type { Finding } from './findings.js';
import { type CheckReport, reportOf } from './report.js';
import { type FoundNow, Scan, type ScanOptions } from './scan.js';

export interface RepairParts extends CheckParts {
  readonly logger: Logger;
  readonly counters: Counters;
}

/** What was found and mended, in that order; and what a check says afterwards. */
export interface RepairReport extends CheckReport {
  readonly mended: readonly Finding[];
  readonly logsRedone: number;
  readonly sectorsWritten: number;
}

/** Each takes away what it found; one that doesn't end has a fault of its own. */
const ROUNDS_MAX = 200;

export async function repairFileSystem(
  parts: RepairParts,
  nsdCount: number | undefined,
  options: ScanOptions = {},
): Promise<RepairReport> {
  const mended: Finding[] = [];
  const failed = new Map<string, string>();
  let logsRedone = 0;
  let sectorsWritten = 0;
  for (let round = 0; round < ROUNDS_MAX; round++) {
    let scan = await Scan.run(parts, nsdCount, options);
    if (round === 0) {
      checkWritable(scan.superblock, 'fs.repair');
      mended.push(...(await holesOf(scan)));
      logsRedone = await redoLogs(scan, parts);
      if (logsRedone > 0) scan = await Scan.run(parts, nsdCount, options);
    }
    for (const found of scan.found) if (failed.has(keyOf(found))) scan.giveUp(found, failed.get(keyOf(found))!);
    const stage = scan.stageToMend();
    if (stage === null) return { ...(await reportOf(scan)), mended, logsRedone, sectorsWritten };
    const wanted = scan.ofStage(stage).filter(({ mending }) => mending !== null);
    const described = await scan.describe(wanted);
    const edits = new SectorEdits(scan.storage);
    for (const [at, found] of wanted.entries()) {
      try {
        await found.mending!(edits);
        mended.push(described[at]!);
      } catch (error) {
        if (!FsError.is(error) || !MENDING_FAILS.has(error.reason)) throw error;
        failed.set(keyOf(found), error.detail ?? error.message);
      }
    }
    await edits.commit();
    sectorsWritten += edits.sectorsWritten;
  }
  throw new FsError('internal', { op: 'fs.repair', detail: `not at its end after ${ROUNDS_MAX} rounds` });
}

/** What one mending may fail with while the others go on. */
const MENDING_FAILS: ReadonlySet<string> = new Set(['noSpace', 'noInodes', 'notDirectory', 'fileTooBig']);

const keyOf = ({ kind, object, detail }: FoundNow): string => `${kind} ${object} ${detail}`;

/** What is lost in a log is not to be seen any more once the rest of it has been redone. */
const holesOf = async (scan: Scan): Promise<Finding[]> =>
  scan.describe(scan.found.filter(({ kind }) => kind === 'logHole'));

async function redoLogs(scan: Scan, { logger, counters }: RepairParts): Promise<number> {
  const volume: RecoveryVolume = { ...scan.logs.volume, nsds: scan.storage.mirror, logger, counters };
  const { table } = scan.logs;
  // What is said of it comes first.
  if (table === null) return 0;
  const open = (await readDescriptors(volume, table)).filter(
    (descriptor): descriptor is LogDescriptor => descriptor?.state === LogState.open,
  );
  return (await replayLogs(volume, table, open)).logs;
}
