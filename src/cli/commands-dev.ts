import type { Command } from 'commander';
import { InvalidArgumentError } from 'commander';
import { parseSize } from '../daemon/config-schema.js';
import { devDown, devStatus, devUp } from '../daemon/dev-cluster.js';
import { note, print, printJson, table } from './output.js';
import { DEFAULT_DIR, parseCount, withJson } from './target.js';

/** `holdfast dev`: a cluster on this machine. */
function size(text: string): string {
  if (parseSize(text) === null) throw new InvalidArgumentError('Expected a size like 2GiB.');
  return text;
}

const withDir = (command: Command): Command =>
  command.option('--dir <path>', 'directory of the local cluster', process.env['HOLDFAST_DIR'] ?? DEFAULT_DIR);

export function addDevCommands(program: Command): void {
  const dev = program.command('dev').description('a cluster on this machine: private etcd, daemons, NSDs in files');

  withJson(withDir(dev.command('up')))
    .description('start what is not running; may be called again')
    .option('--nodes <n>', 'daemons', parseCount(1, 64), 3)
    .option('--nsd-size <size>', 'size of each new NSD (a sparse file)', size, '2GiB')
    .option('--page-pool <size>', 'cache memory of each daemon', size, '256MiB')
    .addHelpText(
      'after',
      '\nExamples:\n  holdfast dev up\n  holdfast dev up --nodes 5 --nsd-size 10GiB --dir /tmp/hf\n',
    )
    .action(async (options: { dir: string; nodes: number; nsdSize: string; pagePool: string; json?: boolean }) => {
      const { state, started } = await devUp({ ...options, onProgress: (text) => note(`holdfast: ${text}`) });
      if (options.json === true) {
        printJson({
          started,
          nodes: state.nodes.map(({ nodeId, socket, process }) => ({ nodeId, socket, pid: process?.pid ?? null })),
        });
        return;
      }
      print(
        table(
          ['NODE', 'PID', 'SOCKET'],
          state.nodes.map((node) => [node.nodeId, node.process?.pid ?? null, node.socket]),
        ),
      );
    });

  withJson(withDir(dev.command('down')))
    .description('stop everything, cleanly')
    .option('--clean', 'remove the directory with all its data')
    .addHelpText('after', '\nExamples:\n  holdfast dev down\n  holdfast dev down --clean\n')
    .action(async (options: { dir: string; clean?: boolean; json?: boolean }) => {
      const result = await devDown(options.dir, { clean: options.clean ?? false });
      if (options.json === true) printJson(result);
      else {
        const rows = result.nodes.map((node) => [`node ${node.nodeId}`, node.outcome]);
        print(table(['PROCESS', 'OUTCOME'], [...rows, ['etcd', result.etcd]]));
      }
      if (result.nodes.some((node) => node.outcome === 'killed'))
        throw new Error('a node did not stop in time and was killed');
    });

  withJson(withDir(dev.command('status')))
    .description('what is running; exit code 3 when something is not')
    .addHelpText('after', '\nExample:\n  holdfast dev status --json\n')
    .action(async (options: { dir: string; json?: boolean }) => {
      const status = await devStatus(options.dir);
      if (options.json === true) printJson(status);
      else {
        const word = (running: boolean, ready: boolean): string => (ready ? 'ready' : running ? 'starting' : 'stopped');
        const rows = status.nodes.map((node) => [
          `node ${node.nodeId}`,
          word(node.running, node.ready),
          node.pid,
          node.socket,
        ]);
        const etcd = [
          'etcd',
          status.etcd?.running === true ? 'ready' : 'stopped',
          status.etcd?.pid ?? null,
          status.etcd?.endpoint ?? null,
        ];
        print(table(['PROCESS', 'STATE', 'PID', 'ADDRESS'], [...rows, etcd]));
      }
      if (status.etcd?.running !== true || status.nodes.some((node) => !node.ready)) process.exitCode = 3;
    });
}
