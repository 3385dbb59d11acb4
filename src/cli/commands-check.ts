import type { Command } from 'commander';
import { SUB_BLOCK_BYTES } from '../common/units.js';
import { adminSocketPath } from '../daemon/admin-api.js';
import { AdminClient } from '../daemon/admin-client.js';
import type { CheckReport } from '../fs/check/check.js';
import type { Finding } from '../fs/check/findings.js';
import type { RepairReport } from '../fs/check/repair.js';
import { bytesText, countText, facts, note, print, printJson } from './output.js';
import { socketOf, type TargetOptions, withJson, withTarget } from './target.js';

/** A whole file system is read: as long as that takes. */
const CHECK_TIMEOUT_MS = 24 * 3600 * 1000;
const PROGRESS_INTERVAL_MS = 2000;

export function addCheckCommand(fs: Command): void {
  withJson(withTarget(fs.command('check')))
    .argument('<name>', 'name of the file system')
    .option('--repair', 'mend what can be mended (without: nothing is changed)')
    .description('read a whole file system that nobody has mounted, and say what does not fit together')
    .addHelpText(
      'after',
      '\nExit code 1 when something does not fit (with --repair: still).\n\nExamples:\n  holdfast fs check data\n  holdfast fs check data --repair\n',
    )
    .action(async (name: string, options: TargetOptions & { repair?: boolean }) => {
      const admin = await AdminClient.connect(adminSocketPath(socketOf(options)));
      try {
        const stop = options.json === true ? () => undefined : followProgress(admin);
        const ask = (): Promise<CheckReport | RepairReport> =>
          options.repair === true
            ? admin.call('repairFileSystem', { name }, CHECK_TIMEOUT_MS)
            : admin.call('checkFileSystem', { name }, CHECK_TIMEOUT_MS);
        const report = await ask().finally(stop);
        if (report.findingCount > 0) process.exitCode = 1;
        if (options.json === true) printJson(report);
        else printReport(report);
      } finally {
        admin.close();
      }
    });
}

/** A line on stderr now and then. */
function followProgress(admin: AdminClient): () => void {
  const timer = setInterval(() => {
    admin.call('checkProgress', {}).then(
      ({ progress }) => {
        if (progress !== null) note(`${progress.phase}: ${countText(progress.done)} of ${countText(progress.total)}`);
      },
      // The check itself says what is wrong.
      () => undefined,
    );
  }, PROGRESS_INTERVAL_MS);
  return () => clearInterval(timer);
}

function printFinding({ kind, object, path, detail }: Finding, end: string): void {
  print(`${kind}: ${object}${path === null ? '' : ` (${path})`}: ${detail} [${end}]`);
}

function printReport(report: CheckReport | RepairReport): void {
  const { findings, findingCount, lostSubBlocks, lostInodes, inodes, directories, usedSubBlocks } = report;
  if ('mended' in report) for (const one of report.mended) printFinding(one, `mended: ${one.mend ?? 'nothing to do'}`);
  for (const one of findings) printFinding(one, one.mend === null ? 'can not be mended' : `--repair: ${one.mend}`);
  if (findingCount > findings.length) print(`... and ${countText(findingCount - findings.length)} more`);
  print(
    facts([
      ['verdict', findingCount === 0 ? 'sound' : 'not sound'],
      ...('mended' in report
        ? [
            [
              'mended',
              `${countText(report.mended.length)}, ${countText(report.sectorsWritten)} sectors written, ${countText(report.logsRedone)} logs redone`,
            ] as [string, string],
          ]
        : []),
      ['inodes', `${countText(inodes)}, ${countText(directories)} of them directories`],
      ['space in use', bytesText(usedSubBlocks * SUB_BLOCK_BYTES)],
      ['lost', `${countText(lostInodes)} inodes, ${bytesText(lostSubBlocks * SUB_BLOCK_BYTES)}`],
    ]),
  );
}
