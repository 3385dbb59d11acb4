#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { isUnreachable } from '../daemon/admin-client.js';
import { addBenchCommand } from './commands-bench.js';
import { addClusterCommands } from './commands-cluster.js';
import { addDevCommands } from './commands-dev.js';
import { addFabricCommands } from './commands-fabric.js';
import { addFileCommands } from './commands-files.js';
import { addMountCommands } from './commands-mount.js';
import { Exit, errorJson, note, sentence, UsageError } from './output.js';

/**
 * holdfast: the command line. Owns the exit codes: 0 done, 1 failed, 2 wrong usage, 3 the daemon can't be reached. Errors are
 * one sentence on stderr, or with --json one line of JSON; HOLDFAST_DEBUG=1 adds the stack.
 */
const program = new Command('holdfast')
  .description('Coherent cache cluster: one file system on many nodes.')
  .configureHelp({ sortSubcommands: true })
  .showHelpAfterError('(add --help for what is possible)')
  .addHelpText(
    'after',
    `
Examples:
  holdfast dev up                      a cluster on this machine
  holdfast fs create data              a file system over its NSDs
  holdfast cp -r ./src hf:/            a tree into it, through node 1
  holdfast ls -l /src --node 2         and seen from node 2
  holdfast mount data /mnt/data        a folder for every program
  holdfast dev down --clean            all of it away

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the daemon can't be reached.
`,
  );

addDevCommands(program);
addClusterCommands(program);
addFabricCommands(program);
addFileCommands(program);
addMountCommands(program);
addBenchCommand(program);
overrideExit(program);

/** Commander would end the process by itself, with 1 for wrong usage. */
function overrideExit(command: Command): void {
  command.exitOverride();
  for (const child of command.commands) overrideExit(child);
}

const asked = (option: string): boolean => process.argv.slice(2).includes(option);

function exitCode(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? Exit.ok : Exit.usage;
  if (error instanceof UsageError) return Exit.usage;
  return isUnreachable(error) ? Exit.unreachable : Exit.failed;
}

// A reader like `head` that has seen enough is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) =>
  process.exit(error.code === 'EPIPE' ? Exit.ok : Exit.failed),
);

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = exitCode(error);
  if (!(error instanceof CommanderError)) {
    note(asked('--json') ? JSON.stringify(errorJson(error)) : `holdfast: ${sentence(error)}`);
    if (process.env['HOLDFAST_DEBUG'] === '1' && error instanceof Error) note(error.stack ?? '');
  }
}
