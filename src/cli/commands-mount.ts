import { realpath } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import type { AdminParams } from '../daemon/admin-api.js';
import { countText, durationText, facts, print, printJson, table, UsageError } from './output.js';
import { type TargetOptions, withAdmin, withJson, withTarget } from './target.js';

/** The file system as a folder: mount, umount, mounts. */

type Flags = Omit<AdminParams<'mount'>, 'name' | 'target'>;
type Setting = { readonly [F in keyof Flags]?: boolean };

/** As mount(8) has them; the later of two that contradict each other would win there, here that is said. */
const OPTIONS: Readonly<Record<string, Setting>> = {
  defaults: {},
  rw: { readOnly: false },
  ro: { readOnly: true },
  nosuid: { noSuid: true },
  suid: { noSuid: false },
  nodev: { noDevices: true },
  dev: { noDevices: false },
  noexec: { noExecute: true },
  exec: { noExecute: false },
  noatime: { noAccessTimes: true },
  atime: { noAccessTimes: false },
  allow_other: { allowOther: true },
};
const DEFAULTS: Flags = {
  readOnly: false,
  noSuid: true,
  noDevices: true,
  noExecute: false,
  noAccessTimes: false,
  allowOther: true,
};

/** @throws {UsageError} */
export function parseMountOptions(texts: readonly string[]): Flags {
  const chosen = new Map<string, { readonly value: boolean; readonly option: string }>();
  for (const option of texts.flatMap((text) => text.split(',')).filter((text) => text !== '')) {
    const setting = OPTIONS[option];
    if (setting === undefined)
      throw new UsageError(`there is no mount option '${option}'; there are ${Object.keys(OPTIONS).join(', ')}`);
    for (const [flag, value] of Object.entries(setting)) {
      const before = chosen.get(flag);
      if (before !== undefined && before.value !== value)
        throw new UsageError(`the mount options '${before.option}' and '${option}' contradict each other`);
      chosen.set(flag, { value, option });
    }
  }
  return { ...DEFAULTS, ...Object.fromEntries([...chosen].map(([flag, { value }]) => [flag, value])) };
}

const gather = (text: string, before: readonly string[]): string[] => [...before, text];

export function addMountCommands(program: Command): void {
  withJson(withTarget(program.command('mount')))
    .argument('<name>', 'the file system')
    .argument('<directory>', 'an empty directory, where every program of the node will find it')
    .option('-o <options>', `separated by commas: ${Object.keys(OPTIONS).join(', ')}`, gather, [])
    .description('show a file system to all programs of the node')
    .addHelpText(
      'after',
      '\nExamples:\n  holdfast mount data /mnt/data\n  holdfast mount data /mnt/data -o ro,noexec --node 2\n',
    )
    .action(async (name: string, directory: string, options: TargetOptions & { o: string[] }) => {
      const flags = parseMountOptions(options.o);
      const target = path.resolve(directory);
      const line = await withAdmin(options, (admin) => admin.call('mount', { name, target, ...flags }));
      if (options.json === true) printJson(line);
      else print(`${line.name} is mounted on ${line.target}`);
    });

  withJson(withTarget(program.command('umount')))
    .argument('<directory>', 'where it is mounted')
    .option('-l, --lazy', 'off the tree at once; wholly when its last user has gone')
    .option('-f, --force', 'whatever uses it gets errors')
    .description('take a file system off the tree')
    .addHelpText('after', '\nExamples:\n  holdfast umount /mnt/data\n  holdfast umount -l /mnt/data\n')
    .action(async (directory: string, options: TargetOptions & { lazy?: boolean; force?: boolean }) => {
      const given = path.resolve(directory);
      // Its own name may be of a mount that answers nothing any more.
      const parent = await realpath(path.dirname(given)).catch(() => path.dirname(given));
      const target = path.join(parent, path.basename(given));
      const how = { lazy: options.lazy === true, force: options.force === true };
      await withAdmin(options, (admin) => admin.call('umount', { target, ...how }));
      if (options.json === true) printJson({ target });
      else print(`${target} is free`);
    });

  withJson(withTarget(program.command('mounts')))
    .description("a daemon's mounts")
    .option('--counters', 'what the kernel asked, and what was taken back from it')
    .addHelpText('after', '\nExample:\n  holdfast mounts --counters\n')
    .action(async (options: TargetOptions & { counters?: boolean }) => {
      const mounts = await withAdmin(options, (admin) => admin.call('mounts', {}));
      if (options.json === true) {
        printJson(mounts);
        return;
      }
      print(
        table(
          [
            'FILE SYSTEM',
            'DIRECTORY',
            'OPTIONS',
            { name: 'OPEN', align: 'right' },
            { name: 'NODES', align: 'right' },
            'FOR',
          ],
          mounts.map((one) => [
            one.name,
            one.target,
            one.options.join(','),
            one.files,
            one.nodes,
            durationText(Date.now() - one.sinceMs),
          ]),
        ),
      );
      if (options.counters !== true) return;
      for (const one of mounts) {
        print('');
        print(facts(Object.entries(one.counters).map(([name, value]) => [name, countText(value)])));
      }
    });
}
