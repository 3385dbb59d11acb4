import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { below, SeededRandom } from '../common/random.js';
import { canMount, type MountClient } from '../mount/testing/mounted.js';
import { type FileInput, type FileOutput, type FileState, fileModel } from '../sim/file-model.js';
import { checkLinearizable, type Operation, type SequentialModel } from '../sim/linearizability.js';
import { type MountedCluster, startMountedCluster } from './testing/mounted-cluster.js';

/**
 * Programs on two mounts read, write, append, cut and look at one file, each as it likes, with descriptors of both kinds: what they were told can be put into
 * one order. A cell is a quarter of a page: Linux reads pages one by one, whatever the file system.
 */
const CELL_BYTES = 1024;
const CELLS = 24;

interface Step {
  readonly input: FileInput;
  /** Through a descriptor that is read-only (the kernel's pages), or one that writes. */
  readonly cached: boolean;
}
interface Done {
  readonly output: number[] | null;
  readonly calledAt: number;
  readonly returnedAt: number;
}

/** Where an append went is not told to who appends. */
const model: SequentialModel<FileState, FileInput, FileOutput> = {
  ...fileModel,
  step: (state, input, output) => fileModel.step(state, input, input.op === 'append' ? [state.length] : output),
};

/**
 * `mixed`: everybody reads and writes cells that are there. `growing`: those on one node make the file longer, too, those on the other read. (A program that
 * reads at the end of a file that its own node has open for writing may see an older end: docs/mount.md.)
 */
type Kind = 'mixed' | 'growing';

function stepsOf(random: SeededRandom, kind: Kind, node: number, count: number, stamps: () => number): Step[] {
  return Array.from({ length: count }, () => {
    const from = below(random, CELLS);
    const choice = below(random, 20);
    const reads = kind === 'growing' && node === 1;
    const cached = kind === 'growing' ? node === 1 : below(random, 3) > 0;
    if (choice < 3) return { input: { op: 'stat' }, cached };
    if (choice < 12 || reads)
      return { input: { op: 'read', from, to: cached ? from + 1 : from + 1 + below(random, 4) }, cached };
    const stamp = stamps();
    if (choice < 18 || kind === 'mixed')
      return { input: { op: 'write', from, to: Math.min(CELLS, from + 1 + below(random, 5)), stamp }, cached };
    return { input: { op: 'append', count: 1, stamp }, cached };
  });
}

const run = (program: MountClient, name: string, steps: Step[], readOnly: boolean): Promise<Done[]> =>
  program.run(
    ({ fs, dir }, steps, cellBytes, name, readOnly) => {
      const file = `${dir}/${name}`;
      const descriptors = (readOnly ? ['r'] : ['r', 'r+', 'a']).map((flags) => fs.openSync(file, flags));
      const [r, w, a] = descriptors as [number, number, number];
      const target = Buffer.alloc(cellBytes * 32);
      const filled = (stamp: number, cells: number): Buffer => {
        const bytes = Buffer.alloc(cells * cellBytes);
        for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(stamp, at);
        return bytes;
      };
      const cellsOf = (length: number): number[] => {
        const cells: number[] = [];
        for (let at = 0; at < length; at += cellBytes) {
          const stamp = target.readUInt32LE(at);
          for (let word = at; word < Math.min(length, at + cellBytes); word += 4)
            if (target.readUInt32LE(word) !== stamp)
              throw new Error(`a mixture of ${stamp} and ${target.readUInt32LE(word)}`);
          if (length - at < cellBytes) throw new Error(`half a cell at ${at} of ${length}`);
          cells.push(stamp);
        }
        return cells;
      };
      const act = ({ input, cached }: Step): number[] | null => {
        switch (input.op) {
          case 'read': {
            const bytes = (input.to - input.from) * cellBytes;
            return cellsOf(fs.readSync(cached ? r : w, target, 0, bytes, input.from * cellBytes));
          }
          case 'write': {
            const bytes = filled(input.stamp, input.to - input.from);
            fs.writeSync(w, bytes, 0, bytes.length, input.from * cellBytes);
            return [];
          }
          case 'append':
            fs.writeSync(a, filled(input.stamp, input.count));
            return [];
          default:
            return [(cached ? fs.fstatSync(r) : fs.statSync(file)).size / cellBytes];
        }
      };
      const done = steps.map((step) => {
        const calledAt = Number(process.hrtime.bigint());
        const output = act(step);
        return { output, calledAt, returnedAt: Number(process.hrtime.bigint()) };
      });
      for (const fd of descriptors) fs.closeSync(fd);
      return done;
    },
    steps,
    CELL_BYTES,
    name,
    readOnly,
  );

describe.skipIf(!canMount())('programs on two mounts', () => {
  let cluster: MountedCluster;
  const programs: MountClient[] = [];
  beforeAll(async () => {
    cluster = await startMountedCluster({
      nodes: 2,
      mounts: 2,
      nsds: 2,
    });
    for (const node of [0, 0, 1, 1]) programs.push(await cluster.program(node));
  });
  afterAll(() => cluster?.close());

  const full = process.env['HOLDFAST_TEST_FULL'] === '1';
  test('what they were told about one file can be put into one order', async () => {
    const seed = Number(process.env['HOLDFAST_SEED'] ?? 1);
    const random = new SeededRandom(seed);
    let stamp = 0;
    for (let round = 0; round < (full ? 60 : 2); round++) {
      const name = `round-${round}`;
      const kind: Kind = round % 2 === 0 ? 'mixed' : 'growing';
      const cells = kind === 'mixed' ? CELLS : 0;
      await programs[0]!.run(
        ({ fs, dir }, name, bytes) => fs.writeFileSync(`${dir}/${name}`, Buffer.alloc(bytes)),
        name,
        cells * CELL_BYTES,
      );
      const steps = programs.map((_, index) => stepsOf(random, kind, index >> 1, 60, () => ++stamp));
      const done = await Promise.all(
        programs.map((program, index) => run(program, name, steps[index]!, kind === 'growing' && index >= 2)),
      );
      const history: Operation<FileInput, FileOutput>[] = done.flatMap((all, index) =>
        all.map((one, at) => ({
          client: `${index}${steps[index]![at]!.cached ? 'c' : 'd'}`,
          input: steps[index]![at]!.input,
          ...one,
        })),
      );
      const verdict = checkLinearizable({ ...model, initial: new Array<number>(cells).fill(0) }, history);
      if (!verdict.ok && !verdict.undecided) {
        const base = verdict.ordered[0]?.calledAt ?? 0;
        const line = ({ client, input, output, calledAt, returnedAt }: Operation<FileInput, FileOutput>): string =>
          `${client} ${JSON.stringify(input)} -> ${JSON.stringify(output)} ${(calledAt - base) / 1000}..${(returnedAt - base) / 1000}`;
        const last = verdict.ordered.slice(-16).map(line).join('\n');
        throw new Error(
          `seed ${seed}, round ${round}:\n${last}\nnone can be next:\n${verdict.stuckAt.map(line).join('\n')}`,
        );
      }
      expect(verdict.ok || verdict.undecided).toBe(true);
    }
  });
});
