/**
 * Four nodes writing one file, each in a region of its own, against the same nodes writing a file each, in rounds that take turns; a fifth node
 * looks at what is written meanwhile, and every size that it sees is judged: no less than what was written when it asked, no more than what had
 * been begun when it was answered. What is reported is the median of the rounds' ratios, of the whole work with its fsyncs.
 */
import { performance } from 'node:perf_hooks';
import { connect } from '../src/client/connect.js';
import type { FileSystemClient } from '../src/client/file-system-client.js';

const MIB = 2 ** 20;
const WRITERS = 4;
const REGION_BYTES = Number(process.env['HOLDFAST_BENCH_REGION_MIB'] ?? 24) * MIB;
const RECORD_BYTES = Number(process.env['HOLDFAST_BENCH_RECORD_KIB'] ?? 256) * 1024;
const ROUNDS = Number(process.env['HOLDFAST_BENCH_ROUNDS'] ?? 5);
/** Between one look at the files and the next. */
const LOOK_EVERY_MS = Number(process.env['HOLDFAST_BENCH_LOOK_MS'] ?? 100);

export interface OneFileParts {
  readonly library: Parameters<typeof connect>[0];
  readonly row: (what: string, figure: string, ratio: number | null, goal: string) => void;
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

/** A file as its writers know it: how far it reaches for sure, and how far it may. */
class Written {
  done = 0;
  begun = 0;
  constructor(readonly name: string) {}
}

interface Region {
  readonly file: Written;
  readonly startBytes: number;
}

interface Round {
  readonly bytesPerSecond: number;
  readonly looks: number;
  /** Of what the writers' engines counted, per round: what the sharing costs. */
  readonly counted: Readonly<Record<(typeof COUNTED)[number], number>>;
}

/** Status given up; space or sizes taken exclusively in between; data given up; token messages. */
const COUNTED = ['fs.statusRevokes', 'fs.concurrentSizesTaken', 'cache.revokes', 'tokens.messagesOut'] as const;

async function count(clients: readonly FileSystemClient[]): Promise<Record<(typeof COUNTED)[number], number>> {
  const engines = await Promise.all(clients.map(async (client) => (await client.stats()).engine));
  const sum = (name: string): number => engines.reduce((total, engine) => total + (engine[name] ?? 0), 0);
  return Object.fromEntries(COUNTED.map((name) => [name, sum(name)])) as Record<(typeof COUNTED)[number], number>;
}

async function writeRegion(client: FileSystemClient, { file, startBytes }: Region): Promise<void> {
  const record = Buffer.alloc(RECORD_BYTES, 0x5a);
  const out = await client.open(file.name, 'r+');
  for (let at = startBytes; at < startBytes + REGION_BYTES; at += RECORD_BYTES) {
    file.begun = Math.max(file.begun, at + RECORD_BYTES);
    await out.write(record, 0, RECORD_BYTES, at);
    file.done = Math.max(file.done, at + RECORD_BYTES);
  }
  await out.sync();
  await out.close();
}

async function look(client: FileSystemClient, file: Written): Promise<void> {
  const least = file.done;
  const { size } = await client.stat(file.name);
  if (size < least || size > file.begun)
    throw new Error(`${file.name}: stat says ${size}, which is not within ${least} and ${file.begun}`);
}

async function round(
  writers: readonly FileSystemClient[],
  looker: FileSystemClient,
  files: readonly Written[],
): Promise<Round> {
  for (const { name } of files) await looker.writeFile(name, '');
  const before = await count(writers);
  const startedMs = performance.now();
  let looks = 0;
  let writing = true;
  const looking = async (): Promise<void> => {
    while (writing) {
      await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
      for (const file of files) await look(looker, file);
      looks++;
    }
  };
  const watched = LOOK_EVERY_MS > 0 ? looking() : Promise.resolve();
  const regions = writers.map((_, index) =>
    files.length === 1 ? { file: files[0]!, startBytes: index * REGION_BYTES } : { file: files[index]!, startBytes: 0 },
  );
  await Promise.all(writers.map((client, index) => writeRegion(client, regions[index]!)));
  const seconds = (performance.now() - startedMs) / 1000;
  writing = false;
  await watched;
  for (const file of files) await looker.unlink(file.name);
  const after = await count(writers);
  const counted = { ...after };
  for (const name of COUNTED) counted[name] -= before[name];
  return { bytesPerSecond: (WRITERS * REGION_BYTES) / seconds, looks, counted };
}

export async function oneFile({ library, row }: OneFileParts): Promise<void> {
  const writers: FileSystemClient[] = [];
  for (let i = 0; i < WRITERS; i++) writers.push(await connect(library));
  const looker = await connect(library);
  const apart: Round[] = [];
  const together: Round[] = [];
  // Round 0 isn't counted: pools are touched, code is compiled. Who is first changes from round to round.
  for (let i = 0; i <= ROUNDS; i++) {
    const many = (): Promise<Round> =>
      round(
        writers,
        looker,
        writers.map((_, index) => new Written(`/apart-${i}-${index}`)),
      );
    const one = (): Promise<Round> => round(writers, looker, [new Written(`/together-${i}`)]);
    const found = i % 2 === 0 ? { many: await many(), one: await one() } : { one: await one(), many: await many() };
    if (i === 0) continue;
    apart.push(found.many);
    together.push(found.one);
  }
  for (const client of [...writers, looker]) await client.close();
  const mb = (rounds: readonly Round[]): string =>
    `${(median(rounds.map(({ bytesPerSecond }) => bytesPerSecond)) / 1e6).toFixed(0)} MB/s`;
  const looks = (rounds: readonly Round[]): string =>
    `${rounds.reduce((sum, each) => sum + each.looks, 0)} times looked at from another node, every size right`;
  row('four nodes writing a file each, with fsync', mb(apart), null, looks(apart));
  const ratios = together.map(({ bytesPerSecond }, index) => bytesPerSecond / apart[index]!.bytesPerSecond);
  row('four nodes writing one file, with fsync', mb(together), median(ratios), `at least 0.9; ${looks(together)}`);
  for (const [what, rounds] of [
    ['a file each', apart],
    ['one file', together],
  ] as const)
    console.log(
      `${what}, per round: ${COUNTED.map((name) => `${name} ${median(rounds.map(({ counted }) => counted[name]))}`).join(', ')}`,
    );
  console.log(`ratios: ${ratios.map((ratio) => ratio.toFixed(2)).join(' ')}`);
}
