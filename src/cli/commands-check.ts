import { type Command, InvalidArgumentError } from 'commander';
import { SUB_BLOCK_BYTES } from '../common/units.js';
import { adminSocketPath } from '../daemon/admin-api.js';
import { AdminClient } from '../daemon/admin-client.js';
import type { CheckReport } from '../fs/check/check.js';
import type { Finding } from '../fs/check/findings.js';
import { type OnlineReport, READ_BYTES_PER_S } from '../fs/check/online/online-report.js';
import type { RepairReport } from '../fs/check/repair.js';
import { bytesText, countText, facts, note, print, printJson, UsageError } from './output.js';
import { socketOf, type TargetOptions, withJson, withTarget } from './target.js';

/** A whole file system is read: as long as that takes. */
const CHECK_TIMEOUT_MS = 24 * 3600 * 1000;
const PROGRESS_INTERVAL_MS = 2000;

interface CheckOptions extends TargetOptions {
  readonly repair?: boolean;
  readonly online?: boolean;
  readonly data?: boolean;
  readonly rate?: number;
}

const MIB = 1 << 20;
const RATE_MAX = 1_000_000;

function parseRate(given: string): number {
  const rate = Number(given);
  if (!/^\d+$/.test(given) || rate > RATE_MAX)
    throw new InvalidArgumentError(`a number of MiB per second up to ${RATE_MAX}, 0: as fast as it can`);
  return rate;
}

export function addCheckCommand(fs: Command): void {
  withJson(withTarget(fs.command('check')))
    .argument('<name>', 'name of the file system')
    .option('--repair', 'mend what can be mended (without: nothing is changed); with --online damaged copies only')
    .option('--online', 'while it is mounted and worked on; says what that can not see')
    .option('--data', "with --online: read files' bytes too")
    .option(
      '--rate <MiB/s>',
      `with --online: how fast it reads at most (default: ${READ_BYTES_PER_S / MIB})`,
      parseRate,
    )
    .description(
      'read a whole file system, and say what does not fit together; nobody has it mounted, but for --online',
    )
    .addHelpText(
      'after',
      '\nExit code 1 when something does not fit (with --repair: still).\n\nExamples:\n  holdfast fs check data\n  holdfast fs check data --repair\n  holdfast fs check data --online\n',
    )
    .action(async (name: string, options: CheckOptions) => {
      if (options.online !== true && (options.data === true || options.rate !== undefined))
        throw new UsageError('--data and --rate are for --online');
      const admin = await AdminClient.connect(adminSocketPath(socketOf(options)));
      try {
        const stop = options.json === true ? () => undefined : followProgress(admin);
        const ask = (): Promise<CheckReport | RepairReport | OnlineReport> =>
          options.online === true
            ? admin.call('checkOnline', onlineParams(name, options), CHECK_TIMEOUT_MS)
            : options.repair === true
              ? admin.call('repairFileSystem', { name }, CHECK_TIMEOUT_MS)
              : admin.call('checkFileSystem', { name }, CHECK_TIMEOUT_MS);
        const report = await ask().finally(stop);
        if (report.findingCount > 0) process.exitCode = 1;
        if (options.json === true) printJson(report);
        else if ('notChecked' in report) printOnline(report);
        else printReport(report);
      } finally {
        admin.close();
      }
    });
}

const onlineParams = (name: string, { repair, data, rate }: CheckOptions) => ({
  name,
  repair: repair === true,
  data: data === true,
  readBytesPerS: rate === undefined ? READ_BYTES_PER_S : rate * MIB,
});

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

function printFinding({ kind, object, path, detail }: Omit<Finding, 'kind'> & { kind: string }, end: string): void {
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

function printOnline({ findings, findingCount, mended, notChecked, suspicions, ...seen }: OnlineReport): void {
  for (const one of mended) printFinding(one, `mended: ${one.mend ?? 'nothing to do'}`);
  for (const one of findings)
    printFinding(
      one,
      one.mend === null ? 'unmount everywhere, then --repair says what can be done' : `--repair: ${one.mend}`,
    );
  if (findingCount > findings.length) print(`... and ${countText(findingCount - findings.length)} more`);
  for (const { count, what } of notChecked) print(`not checked: ${countText(count)} ${what}`);
  print(
    facts([
      ['verdict', findingCount === 0 ? 'nothing found in what was checked' : 'not sound'],
      ...(mended.length === 0 ? [] : [['mended', countText(mended.length)] as [string, string]]),
      ['inodes', `${countText(seen.inodes)}, ${countText(seen.directories)} of them directories`],
      [
        'read',
        `${bytesText(seen.sectorsRead * SUB_BLOCK_BYTES)}, ${countText(suspicions)} looks repeated under tokens`,
      ],
    ]),
  );
}
