/**
 * One file written and read cold over three NSDs on three daemons, beside what it is measured against, in rounds: every round takes
 * the devices (three files at once, O_DIRECT, one process), bulk over TCP (the fabric's own, two processes), the write and the cold read. What is
 * reported is the median of the rounds' ratios, and where the processor's time went, by process and thread.
 */
import { fork } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { rm, truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { BlockEngine } from 'napi-nvme';
import { connect } from '../src/client/connect.js';
import type { FileSystemClient } from '../src/client/file-system-client.js';

const MIB = 2 ** 20;
const FILE_BYTES = Number(process.env['HOLDFAST_BENCH_MIB'] ?? 384) * MIB;
const ROUNDS = Number(process.env['HOLDFAST_BENCH_ROUNDS'] ?? 3);
/** Linux counts processor time in these, whatever the kernel's own tick (proc(5)). */
const TICKS_PER_SECOND = 100;

export interface SequentialParts {
  readonly directory: string;
  readonly daemonPids: readonly number[];
  readonly library: Parameters<typeof connect>[0];
  readonly row: (what: string, figure: string, ratio: number | null, goal: string) => void;
}

const mb = (bytesPerSecond: number): string => `${(bytesPerSecond / 1e6).toFixed(0)} MB/s`;
const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

/** Sequential, 1 MiB, eight at a time, O_DIRECT, over three files as three NSDs are. */
async function devices(directory: string): Promise<{ read: number; write: number }> {
  const engine = new BlockEngine();
  const memory = engine.allocate(8 * MIB);
  const paths = [0, 1, 2].map((i) => path.join(directory, `device-${i}`));
  const files = await Promise.all(
    paths.map(async (file) => {
      await writeFile(file, '');
      await truncate(file, Math.ceil(FILE_BYTES / 3 / MIB) * MIB + MIB);
      return engine.open(file, { direct: 'require' });
    }),
  );
  const blocks = Math.floor(FILE_BYTES / MIB);
  const pass = async (write: boolean): Promise<number> => {
    const started = performance.now();
    let next = 0;
    await Promise.all(
      [0, 1, 2, 3, 4, 5, 6, 7].map(async (slot) => {
        for (let block = next++; block < blocks; block = next++) {
          const file = files[block % 3]!;
          const offset = Math.floor(block / 3) * MIB;
          if (write) await file.write(offset, memory, slot * MIB, MIB);
          else await file.read(offset, memory, slot * MIB, MIB);
        }
      }),
    );
    if (write) for (const file of files) await file.flush();
    return FILE_BYTES / ((performance.now() - started) / 1000);
  };
  const write = await pass(true);
  const read = await pass(false);
  await engine.close();
  for (const file of paths) await rm(file);
  return { read, write };
}

/** One-sided writes of 1 MiB between two processes' pools: the fabric's own bench, in a child. */
async function bulk(): Promise<number> {
  const bench = path.join(path.dirname(fileURLToPath(import.meta.url)), 'fabric.bench.js');
  const env = { ...process.env, HOLDFAST_BENCH_ROUNDS: '1', HOLDFAST_BENCH_SECONDS: '1' };
  const child = fork(bench, ['bulk'], { env, stdio: ['ignore', 'pipe', 'inherit', 'ipc'] });
  let output = '';
  child.stdout!.on('data', (chunk: Buffer) => {
    output += chunk.toString();
  });
  await new Promise((resolve) => child.once('exit', resolve));
  const found = /writeRemote[^\n]*?([0-9.]+) GB\/s/.exec(output);
  return found === null ? Number.NaN : Number(found[1]) * 1e9;
}

/** Processor time in s so far: of each daemon, and of this process by thread. */
function processorTime(daemonPids: readonly number[]): Map<string, number> {
  const times = new Map<string, number>();
  const add = (what: string, stat: string): void => {
    // After the command's name, which may hold anything: state is the first field, utime and stime the 12th and 13th.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    times.set(what, (times.get(what) ?? 0) + (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND);
  };
  for (const pid of daemonPids) add('the daemons', readFileSync(`/proc/${pid}/stat`, 'utf8'));
  for (const task of readdirSync('/proc/self/task')) {
    const what = Number(task) === process.pid ? 'the application' : "the library's threads";
    add(what, readFileSync(`/proc/self/task/${task}/stat`, 'utf8'));
  }
  return times;
}

interface Timed {
  readonly bytesPerSecond: number;
  /** ms of processor time per MiB. */
  readonly cost: Map<string, number>;
}

async function timed(daemonPids: readonly number[], work: () => Promise<void>): Promise<Timed> {
  const before = processorTime(daemonPids);
  const started = performance.now();
  await work();
  const seconds = (performance.now() - started) / 1000;
  const after = processorTime(daemonPids);
  const cost = new Map<string, number>();
  for (const [what, time] of after) cost.set(what, ((time - (before.get(what) ?? 0)) * 1000) / (FILE_BYTES / MIB));
  return { bytesPerSecond: FILE_BYTES / seconds, cost };
}

async function write(client: FileSystemClient, name: string): Promise<void> {
  const chunk = Buffer.alloc(MIB, 0x5a);
  const out = await client.open(name, 'w');
  for (let at = 0; at < FILE_BYTES; at += MIB) await out.write(chunk, 0, MIB, at);
  await out.sync();
  await out.close();
}

async function read(client: FileSystemClient, name: string): Promise<void> {
  const chunk = Buffer.alloc(MIB);
  const input = await client.open(name, 'r');
  for (let at = 0; at < FILE_BYTES; at += MIB) {
    const { bytesRead } = await input.read(chunk, 0, MIB, at);
    if (bytesRead !== MIB || chunk[0] !== 0x5a || chunk[MIB - 1] !== 0x5a) throw new Error(`wrong bytes at ${at}`);
  }
  await input.close();
}

const costs = ({ cost }: Timed): string => [...cost].map(([what, ms]) => `${what} ${ms.toFixed(2)}`).join(', ');

export async function sequential({ directory, daemonPids, library, row }: SequentialParts): Promise<void> {
  const rounds: { writeRatio: number; readRatio: number; written: Timed; readBack: Timed; least: number }[] = [];
  const writer = await connect(library);
  // A node that never saw the files.
  const reader = await connect(library);
  // Round 0 isn't counted: pools are touched, code is compiled. Cold is what is read: every round has a file of its own.
  for (let round = 0; round <= ROUNDS; round++) {
    const base = round === 0 ? null : { ...(await devices(directory)), bulk: await bulk() };
    const name = `/sequential-${round}`;
    const written = await timed(daemonPids, () => write(writer, name));
    const readBack = await timed(daemonPids, () => read(reader, name));
    await writer.unlink(name);
    if (base === null) continue;
    const least = (device: number): number => (Number.isNaN(base.bulk) ? device : Math.min(device, base.bulk));
    rounds.push({
      writeRatio: written.bytesPerSecond / least(base.write),
      readRatio: readBack.bytesPerSecond / least(base.read),
      written,
      readBack,
      least: least(base.read),
    });
    row(`${round}: devices write / read, bulk`, `${mb(base.write)} / ${mb(base.read)}, ${mb(base.bulk)}`, null, '');
    row(
      `${round}: write and fsync`,
      mb(written.bytesPerSecond),
      written.bytesPerSecond / least(base.write),
      costs(written),
    );
    row(
      `${round}: cold read`,
      mb(readBack.bytesPerSecond),
      readBack.bytesPerSecond / least(base.read),
      costs(readBack),
    );
  }
  await writer.close();
  await reader.close();
  const middle = [...rounds].sort((a, b) => a.readRatio - b.readRatio)[rounds.length >> 1]!;
  row(
    'sequential write and fsync over three NSDs',
    mb(median(rounds.map(({ written }) => written.bytesPerSecond))),
    median(rounds.map(({ writeRatio }) => writeRatio)),
    'at least 0.7',
  );
  row('cold sequential read over three NSDs', mb(middle.readBack.bytesPerSecond), middle.readRatio, 'at least 0.8');
  console.log(`processor, ms per MiB written: ${costs(middle.written)}`);
  console.log(`processor, ms per MiB read: ${costs(middle.readBack)}`);
}
