import { constants } from 'node:fs';
import path from 'node:path';
import type { Command } from 'commander';
import type { FileSystemClient } from '../client/file-system-client.js';
import { type CopyResult, copy, isCode } from './copy.js';
import { eachLimit } from './limit.js';
import { bytesText, countText, durationText, facts, note, print, printJson, table, UsageError } from './output.js';
import { insidePath, remotePath, type TargetOptions, withFiles, withJson, withTarget } from './target.js';
import { holdfastTree, localTree } from './tree.js';

/** Files, as a shell has them: ls, cat, stat, cp, rm, mkdir. Paths are Holdfast's; `hf:` in front of them is optional except for cp. */
type Stat = Awaited<ReturnType<FileSystemClient['lstat']>>;
const IN_FLIGHT = 64;

/** What a file is called, and its letter in a listing. */
const KINDS: ReadonlyMap<number, readonly [name: string, letter: string]> = new Map([
  [constants.S_IFREG, ['file', '-']],
  [constants.S_IFDIR, ['directory', 'd']],
  [constants.S_IFLNK, ['symlink', 'l']],
  [constants.S_IFIFO, ['fifo', 'p']],
  [constants.S_IFSOCK, ['socket', 's']],
  [constants.S_IFCHR, ['character device', 'c']],
  [constants.S_IFBLK, ['block device', 'b']],
]);
const kindOf = ({ mode }: Pick<Stat, 'mode'>) => KINDS.get(mode & constants.S_IFMT) ?? (['unknown', '?'] as const);
const typeOf = (stat: Stat): string => kindOf(stat)[0];

/** As `ls -l` shows it: setuid, setgid and sticky in the place of the executions that they change. */
export function modeText(stat: Pick<Stat, 'mode'>): string {
  const bits = [0o400, 0o200, 0o100, 0o40, 0o20, 0o10, 0o4, 0o2, 0o1];
  const letters = bits.map((bit, i) => ((stat.mode & bit) === 0 ? '-' : 'rwx'[i % 3]!));
  for (const [bit, at, letter] of [
    [0o4000, 2, 's'],
    [0o2000, 5, 's'],
    [0o1000, 8, 't'],
  ] as const)
    if ((stat.mode & bit) !== 0) letters[at] = letters[at] === 'x' ? letter : letter.toUpperCase();
  return kindOf(stat)[1] + letters.join('');
}

const asJson = (name: string, stat: Stat) => ({
  name,
  type: typeOf(stat),
  mode: (stat.mode & 0o7777).toString(8).padStart(4, '0'),
  nlink: stat.nlink,
  uid: stat.uid,
  gid: stat.gid,
  size: stat.size,
  allocated: stat.blocks * 512,
  ino: stat.ino,
  atime: stat.atime.toISOString(),
  mtime: stat.mtime.toISOString(),
  ctime: stat.ctime.toISOString(),
});

export function addFileCommands(program: Command): void {
  withJson(withTarget(program.command('ls')))
    .argument('[path]', 'directory or file', '/')
    .description('list a directory')
    .option('-l, --long', 'modes, owners, sizes, times')
    .addHelpText('after', '\nExamples:\n  holdfast ls /\n  holdfast ls -l hf:/src --node 2\n')
    .action(async (given: string, options: TargetOptions & { long?: boolean }) => {
      const root = insidePath(given);
      await withFiles(options, async (files) => {
        const isDirectory = (await files.lstat(root)).isDirectory();
        const names = isDirectory ? (await files.readdir(root)).sort() : [path.posix.basename(root)];
        if (options.long !== true && options.json !== true) {
          if (names.length > 0) print(names.join('\n'));
          return;
        }
        const rows: { name: string; stat: Stat; target: string | null }[] = [];
        await eachLimit(names, IN_FLIGHT, async (name) => {
          const file = isDirectory ? path.posix.join(root, name) : root;
          try {
            const stat = await files.lstat(file);
            rows.push({ name, stat, target: stat.isSymbolicLink() ? await files.readlink(file) : null });
          } catch (error) {
            // Another node removed it since the listing.
            if (!isCode(error, 'ENOENT')) throw error;
          }
        });
        rows.sort((a, b) => (a.name < b.name ? -1 : 1));
        if (options.json === true)
          printJson(
            rows.map(({ name, stat, target }) => ({ ...asJson(name, stat), ...(target === null ? {} : { target }) })),
          );
        else
          print(
            table(
              [
                'MODE',
                { name: 'LINKS', align: 'right' },
                'UID',
                'GID',
                { name: 'SIZE', align: 'right' },
                'MODIFIED',
                'NAME',
              ],
              rows.map(({ name, stat, target }) => [
                modeText(stat),
                stat.nlink,
                stat.uid,
                stat.gid,
                stat.size,
                stat.mtime.toISOString().slice(0, 19).replace('T', ' '),
                target === null ? name : `${name} -> ${target}`,
              ]),
            ),
          );
      });
    });

  withTarget(program.command('cat'))
    .argument('<paths...>', 'files')
    .description('write files to stdout')
    .addHelpText('after', '\nExample:\n  holdfast cat /etc/hosts --node 3\n')
    .action(async (paths: string[], options: TargetOptions) => {
      const inside = paths.map(insidePath);
      await withFiles(options, async (files) => {
        for (const file of inside) await catFile(files, file);
      });
    });

  withJson(withTarget(program.command('stat')))
    .argument('<path>', 'file or directory; links are not followed')
    .description('everything about a file')
    .addHelpText('after', '\nExample:\n  holdfast stat /data --json\n')
    .action(async (given: string, options: TargetOptions) => {
      const file = insidePath(given);
      const stat = await withFiles(options, (files) => files.lstat(file));
      const json = asJson(file, stat);
      if (options.json === true) printJson(json);
      else
        print(
          facts([
            ['path', file],
            ['type', json.type],
            ['size', `${countText(stat.size)} bytes, ${bytesText(json.allocated)} allocated`],
            ['mode', `${json.mode} (${modeText(stat)})`],
            ['owner', `uid ${stat.uid}, gid ${stat.gid}`],
            ['inode', `${stat.ino}, ${stat.nlink} links`],
            ['accessed', json.atime],
            ['modified', json.mtime],
            ['changed', json.ctime],
          ]),
        );
    });

  withJson(withTarget(program.command('shared-write')))
    .argument('<path>', 'file or directory; links are followed')
    .argument('[state]', 'on, off; without it: what it is')
    .description('files that all nodes read and write through one of them, which caches them for all')
    .addHelpText('after', '\nExamples:\n  holdfast shared-write /queue on\n  holdfast shared-write /queue\n')
    .action(async (given: string, state: string | undefined, options: TargetOptions) => {
      if (state !== undefined && state !== 'on' && state !== 'off') throw new UsageError('say on or off');
      const file = insidePath(given);
      const on = await withFiles(options, async (files) => {
        if (state !== undefined) await files.setSharedWrite(file, state === 'on');
        return files.isSharedWrite(file);
      });
      if (options.json === true) printJson({ path: file, sharedWrite: on });
      else print(`${file} is ${on ? '' : 'not '}shared-write`);
    });

  withJson(withTarget(program.command('locate')))
    .argument('<file>', 'links are followed')
    .description('which NSD, served by which node, has which bytes of a file')
    .addHelpText('after', '\nExample:\n  holdfast locate /data/table --json\n')
    .action(async (given: string, options: TargetOptions) => {
      const ranges = await withFiles(options, (files) => files.locate(insidePath(given)));
      if (options.json === true) {
        printJson(ranges);
        return;
      }
      const right = (name: string) => ({ name, align: 'right' as const });
      const rows = ranges.map(({ offset, length, kind, nsd, nsdUuid, node, sector }) => [
        countText(offset),
        countText(length),
        kind === 'data' ? (nsd ?? nsdUuid) : kind,
        kind !== 'data' ? '' : node === null ? 'nobody' : `node ${node}`,
        sector === null ? '' : countText(sector),
      ]);
      print(table([right('OFFSET'), right('BYTES'), 'NSD', 'SERVED BY', right('SECTOR')], rows));
    });

  withJson(withTarget(program.command('cp')))
    .argument('<paths...>', 'one or more sources, then the destination; paths in Holdfast start with hf:/')
    .description('copy files and trees, into Holdfast, out of it, or within it')
    .option('-r, --recursive', 'copy directories')
    .addHelpText(
      'after',
      '\nExamples:\n  holdfast cp -r ./src hf:/\n  holdfast cp -r hf:/src /tmp/back --node 2\n  holdfast cp hf:/a hf:/b --json\n',
    )
    .action(async (paths: string[], options: TargetOptions & { recursive?: boolean }) => {
      if (paths.length < 2) throw new UsageError('cp needs at least a source and a destination');
      const ends = paths.map((text) => ({ text, remote: remotePath(text) }));
      const sources = ends.slice(0, -1);
      const target = ends[ends.length - 1]!;
      if (target.remote === null && sources.some((source) => source.remote === null))
        throw new UsageError('one side of each copy must be in Holdfast: write its path as hf:/path');
      // Permission bits are copied as they are, on both sides.
      process.umask(0);
      await withFiles(
        options,
        async (files) => {
          const inside = holdfastTree(files);
          const end = ({ text, remote }: { text: string; remote: string | null }) =>
            remote === null
              ? { fs: localTree, path: path.resolve(text) }
              : { fs: inside, path: path.posix.normalize(remote) };
          const results: CopyResult[] = [];
          for (const source of sources)
            results.push(
              await copy(end(source), end(target), {
                recursive: options.recursive ?? false,
                quiet: options.json ?? false,
                label: source.text,
              }),
            );
          reportCopy(results, options.json ?? false);
        },
        0,
      );
    });

  withJson(withTarget(program.command('rm')))
    .argument('<paths...>', 'files, or trees with -r')
    .description('remove')
    .option('-r, --recursive', 'remove directories and what is in them')
    .option('-f, --force', 'what is not there is no error')
    .addHelpText('after', '\nExample:\n  holdfast rm -r /src\n')
    .action(async (paths: string[], options: TargetOptions & { recursive?: boolean; force?: boolean }) => {
      const inside = paths.map(insidePath);
      await withFiles(options, async (files) => {
        for (const file of inside)
          await files
            .rm(file, { recursive: options.recursive ?? false, force: options.force ?? false })
            .catch((error: unknown) => {
              // What node:fs says of it names neither the reason nor the way.
              throw isCode(error, 'ERR_FS_EISDIR') ? new Error(`${file} is a directory: rm -r removes it`) : error;
            });
      });
      if (options.json === true) printJson({ removed: inside });
    });

  withJson(withTarget(program.command('mkdir')))
    .argument('<paths...>', 'directories')
    .description('make directories')
    .option('-p, --parents', 'parents too; what is there is no error')
    .addHelpText('after', '\nExample:\n  holdfast mkdir -p /a/b/c\n')
    .action(async (paths: string[], options: TargetOptions & { parents?: boolean }) => {
      const inside = paths.map(insidePath);
      await withFiles(options, async (files) => {
        for (const directory of inside) await files.mkdir(directory, { recursive: options.parents ?? false });
      });
      if (options.json === true) printJson({ made: inside });
    });
}

const CAT_BYTES = 1 << 20;

async function catFile(files: FileSystemClient, file: string): Promise<void> {
  const handle = await files.open(file, 'r');
  try {
    for (let position = 0; ; ) {
      const buffer = new Uint8Array(CAT_BYTES);
      const { bytesRead } = await handle.read(buffer, 0, CAT_BYTES, position);
      if (bytesRead === 0) return;
      position += bytesRead;
      const written = new Promise<void>((resolve, reject) =>
        process.stdout.write(buffer.subarray(0, bytesRead), (error) => (error == null ? resolve() : reject(error))),
      );
      await written;
    }
  } finally {
    await handle.close();
  }
}

function reportCopy(results: readonly CopyResult[], json: boolean): void {
  const sum = (pick: (result: CopyResult) => number): number =>
    results.reduce((total, result) => total + pick(result), 0);
  const seconds = sum((result) => result.seconds);
  const summary = {
    files: sum((result) => result.files),
    directories: sum((result) => result.directories),
    symlinks: sum((result) => result.symlinks),
    skipped: results.flatMap((result) => result.skipped),
    bytes: sum((result) => result.bytes),
    seconds,
    filesPerSecond: sum((result) => result.files + result.symlinks) / seconds,
    bytesPerSecond: sum((result) => result.bytes) / seconds,
  };
  if (json) {
    printJson(summary);
    return;
  }
  note(
    `${countText(summary.files)} files, ${countText(summary.directories)} directories, ${countText(summary.symlinks)} links, ` +
      `${bytesText(summary.bytes)} in ${durationText(seconds * 1000)}: ` +
      `${countText(summary.filesPerSecond)} files/s, ${bytesText(summary.bytesPerSecond)}/s`,
  );
  for (const skipped of summary.skipped) note(`left out, neither file, directory nor link: ${skipped}`);
}
