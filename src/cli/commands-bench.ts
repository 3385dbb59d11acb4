import { type Command, InvalidArgumentError } from 'commander';
import { parseSize } from '../daemon/config-schema.js';
import { runBench } from './bench.js';
import { bytesText, countText, print, printJson, table } from './output.js';
import { insidePath, parseCount, type TargetOptions, withFiles, withJson, withTarget } from './target.js';

function bytes(text: string): number {
  const size = parseSize(text);
  if (size === null || size < 2 ** 20) throw new InvalidArgumentError('Expected a size of at least 1MiB, like 256MiB.');
  return size;
}

export function addBenchCommand(program: Command): void {
  withJson(withTarget(program.command('bench')))
    .argument('[directory]', 'where to work; everything is removed again', '/')
    .description('read, write and metadata throughput through one daemon')
    .option('--size <size>', 'size of the one large file', bytes, 128 * 2 ** 20)
    .option('--files <n>', 'small files', parseCount(1, 1_000_000), 2000)
    .option('--in-flight <n>', 'operations at once', parseCount(1, 128), 32)
    .addHelpText(
      'after',
      '\nExamples:\n  holdfast bench\n  holdfast bench / --size 1GiB --files 10000 --node 2 --json\n',
    )
    .action(async (given: string, options: TargetOptions & { size: number; files: number; inFlight: number }) => {
      const directory = insidePath(given);
      const lines = await withFiles(options, (files) =>
        runBench(files, directory, { sizeBytes: options.size, files: options.files, inFlight: options.inFlight }),
      );
      if (options.json === true) {
        printJson(lines);
        return;
      }
      const right = (name: string) => ({ name, align: 'right' as const });
      print(
        table(
          ['WHAT', right('OPERATIONS'), right('SECONDS'), right('PER SECOND'), right('BYTES PER SECOND')],
          lines.map((line) => [
            line.name,
            countText(line.operations),
            line.seconds.toFixed(2),
            countText(line.operations / line.seconds),
            line.bytes === 0 ? null : `${bytesText(line.bytes / line.seconds)}/s`,
          ]),
        ),
      );
    });
}
