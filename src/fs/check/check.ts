/**
 * Reads a whole file system that nobody has mounted, and says what does not fit together. Changes nothing.
 *
 * Memory: a bit per sub-block, some 17 bytes per inode, a little more per directory.
 */
import { FsError } from '../../common/errors.js';
import { withCopies } from '../../nsd/mirrored-nsds.js';
import { findLogTable, readDescriptors } from '../log/log-reader.js';
import { LogState } from '../log/log-table.js';
import { readSuperblock } from '../mount.js';
import { fsIdOf } from '../superblock.js';
import type { CheckParts } from './check-storage.js';
import { type CheckReport, reportOf } from './report.js';
import { Scan, type ScanOptions } from './scan.js';

export type { CheckParts } from './check-storage.js';
export type { CheckReport } from './report.js';

export async function checkFileSystem(
  parts: CheckParts,
  nsdCount?: number,
  options: ScanOptions = {},
): Promise<CheckReport> {
  return reportOf(await Scan.run(parts, nsdCount, options));
}

/** Who has a log open, or is taking one: whoever has it mounted, or had when it died. */
export async function logOwners(
  parts: CheckParts,
  nsdCount: number,
): Promise<{ readonly nodeId: number; readonly incarnation: number }[]> {
  const { fsUuid, geometry, inodeFile } = await readSuperblock(parts, nsdCount);
  const { nsds } = parts;
  const logs = { ...parts, nsds: withCopies({ nsds }), fsId: fsIdOf(fsUuid), geometry, inodeFile };
  let descriptors: Awaited<ReturnType<typeof readDescriptors>>;
  try {
    descriptors = await readDescriptors(logs, await findLogTable(logs));
  } catch (error) {
    // Damaged: nobody could have mounted it like that.
    if (FsError.is(error) && (error.reason === 'corrupt' || error.reason === 'checksumMismatch')) return [];
    throw error;
  }
  return descriptors.flatMap((descriptor) =>
    descriptor?.state === LogState.open || descriptor?.state === LogState.creating ? [descriptor.owner] : [],
  );
}
