/**
 * napi-nvme against fio: 4 KiB random reads at queue depths 32 and 1: O_DIRECT through io_uring of one file of 1 GiB, or, when an NVMe namespace is
 * named, commands passed through to it, against fio's io_uring_cmd on the same character device. Only reads.
 *
 * The contestants take turns in rounds, in changing order, since on a shared machine the disk itself differs more from second to second than
 * they do; what is printed are medians over the rounds, and the median of the ratios within each round. "event loop" is what Holdfast
 * runs; "blocking poll" is a worker that does nothing else. Run with the directory to use as argument, which must not be a tmpfs, or with the
 * namespace (/dev/nvme0n1).
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { BlockEngine, type IoBuffer } from 'napi-nvme';

const FILE_BYTES = 1 << 30;
const READ_BYTES = 4096;
const SECONDS = Number(process.env['HOLDFAST_BENCH_SECONDS'] ?? 1);
const ROUNDS = Number(process.env['HOLDFAST_BENCH_ROUNDS'] ?? 7);
/** Emulation multiplies what JavaScript costs, and fio's part is none of that. */
const emulated = process.env['HOLDFAST_HW'] === 'guest';
const GOALS = new Map(
  emulated
    ? [
        [32, 0.7],
        [1, 0.6],
      ]
    : [
        [32, 0.9],
        [1, 0.8],
      ],
);

const place = process.argv[2] ?? process.cwd();
const namespace = /^\/dev\/(nvme|ng)\d+n\d+$/.exec(place) !== null;
const file = namespace ? place : path.join(place, `.nvme-bench-${process.pid}`);
/** What fio is told about it; of a namespace that the engine passes commands to, its character device. */
let fioTarget: readonly string[] = [`--filename=${file}`, '--direct=1', '--ioengine=io_uring'];
let fileBytes = FILE_BYTES;

async function lookAt(): Promise<void> {
  const engine = new BlockEngine({ queueDepth: 1 });
  const device = await engine.open(file, { readOnly: true, direct: 'require' });
  fileBytes = Math.min(FILE_BYTES, device.sizeBytes - (device.sizeBytes % READ_BYTES));
  if (device.access === 'passthrough')
    fioTarget = [`--filename=${device.devicePath}`, '--ioengine=io_uring_cmd', '--cmd_type=nvme'];
  console.log(
    `${file}: ${device.access}, ${device.accessReason}; goals are ${emulated ? "an emulated device's" : "a real device's"}`,
  );
  await engine.close();
}

/** Written, not sparse: a hole is read without touching the disk. */
function layOut(): void {
  const chunk = Buffer.alloc(1 << 20, 0x5a);
  const descriptor = fs.openSync(file, 'w');
  for (let at = 0; at < FILE_BYTES; at += chunk.length) fs.writeSync(descriptor, chunk);
  fs.fsyncSync(descriptor);
  fs.closeSync(descriptor);
}

interface Result {
  readonly iops: number;
  readonly cpuUsPerRead: number;
}

function fio(depth: number): Result {
  const args = ['--name=bench', ...fioTarget, '--readonly', '--rw=randread', `--bs=${READ_BYTES}`];
  const time = ['--time_based', `--runtime=${SECONDS}`, `--size=${fileBytes}`];
  const ran = spawnSync('fio', [...args, ...time, `--iodepth=${depth}`, '--output-format=json'], {
    encoding: 'utf8',
  });
  if (ran.status !== 0) throw new Error(`fio: ${ran.error?.message ?? ran.stderr}`);
  const [job] = (JSON.parse(ran.stdout) as FioOutput).jobs;
  if (job === undefined) throw new Error('fio reported no job');
  return { iops: job.read.iops, cpuUsPerRead: ((job.usr_cpu + job.sys_cpu) * 10_000) / job.read.iops };
}
interface FioOutput {
  readonly jobs: readonly {
    readonly read: { readonly iops: number };
    readonly usr_cpu: number;
    readonly sys_cpu: number;
  }[];
}

async function engine(depth: number, blocking: boolean): Promise<Result> {
  const blocks = fileBytes / READ_BYTES;
  const made = new BlockEngine({ queueDepth: depth });
  const device = await made.open(file, { readOnly: true, direct: 'require' });
  const buffer: IoBuffer = made.allocate(depth * READ_BYTES);
  const cpu = process.cpuUsage();
  const start = performance.now();
  const end = start + SECONDS * 1000;
  let reads = 0;
  const lane = async (index: number): Promise<void> => {
    while (performance.now() < end) {
      await device.read(Math.floor(Math.random() * blocks) * READ_BYTES, buffer, index * READ_BYTES, READ_BYTES);
      reads++;
    }
  };
  const lanes = Promise.all(Array.from({ length: depth }, (_, index) => lane(index)));
  if (blocking) await pollUntilIdle(made);
  await lanes;
  const elapsed = (performance.now() - start) / 1000;
  const used = process.cpuUsage(cpu);
  await made.close();
  return { iops: reads / elapsed, cpuUsPerRead: (used.user + used.system) / reads };
}

/** The lanes go on in the microtasks between two polls; the event loop is not entered. */
async function pollUntilIdle(made: BlockEngine): Promise<void> {
  while (made.inFlight > 0) {
    made.pollCompletions(100_000);
    await null;
    await null;
    await null;
  }
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

let passed = 0;
if (!namespace) layOut();
try {
  await lookAt();
  for (const [depth, goal] of GOALS) {
    const contestants: Record<string, () => Promise<Result> | Result> = {
      fio: () => fio(depth),
      'event loop': () => engine(depth, false),
      'blocking poll': () => engine(depth, true),
    };
    const names = Object.keys(contestants);
    const results = new Map<string, Result[]>(names.map((name) => [name, []]));
    await engine(depth, false);
    for (let round = 0; round < ROUNDS; round++)
      for (let i = 0; i < names.length; i++) {
        const name = names[(i + round) % names.length]!;
        results.get(name)!.push(await contestants[name]!());
      }
    const rows = names.map((name) => {
      const own = results.get(name)!;
      const ratio = median(own.map((result, round) => result.iops / results.get('fio')![round]!.iops));
      if (name === 'event loop' && ratio >= goal) passed++;
      return {
        '4 KiB random reads': `depth ${depth}, ${name}`,
        'reads/s': Math.round(median(own.map((result) => result.iops))),
        'CPU µs/read': median(own.map((result) => result.cpuUsPerRead)).toFixed(1),
        'of fio': ratio.toFixed(2),
        goal: name === 'event loop' ? goal.toFixed(1) : '',
      };
    });
    console.table(rows);
  }
} finally {
  if (!namespace) fs.rmSync(file, { force: true });
}
console.log(`${passed} passed, ${GOALS.size - passed} failed`);
