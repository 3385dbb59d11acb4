import type { Command } from 'commander';
import { bytesText, print, printJson, table } from './output.js';
import { parseCount, type TargetOptions, withAdmin, withJson, withTarget } from './target.js';

/** What carries messages and pages between nodes. */
export function addFabricCommands(program: Command): void {
  const fabric = program.command('fabric').description('what carries messages and pages between nodes');
  withJson(withTarget(fabric.command('test')))
    .argument('<peer>', 'the other node, by its number', parseCount(1, 65_535))
    .description('measures latency and bandwidth of each transport to another node')
    .addHelpText('after', '\nExamples:\n  holdfast fabric test 2\n  holdfast fabric test 2 --node 3 --json\n')
    .action(async (peer: number, options: TargetOptions) => {
      const results = await withAdmin(options, (admin) => admin.call('fabricTest', { node: peer }));
      // The lines say why; to a script nothing was measured.
      if (results.every(({ error }) => error !== null)) process.exitCode = 1;
      if (options.json === true) {
        printJson(results);
        return;
      }
      const right = (name: string) => ({ name, align: 'right' as const });
      print(
        table(
          ['TRANSPORT', right('64 B p50'), right('p99'), right('READ'), right('WRITE'), 'OF', ''],
          results.map((one) =>
            one.error === null
              ? [
                  one.transport,
                  `${one.roundTripP50Us} µs`,
                  `${one.roundTripP99Us} µs`,
                  `${bytesText(one.readBytesPerSecond)}/s`,
                  `${bytesText(one.writeBytesPerSecond)}/s`,
                  bytesText(one.transferBytes),
                  null,
                ]
              : [one.transport, null, null, null, null, null, one.error],
          ),
        ),
      );
    });
}
