/** The native tools that figures are compared with: perftest for RDMA, fio for NVMe. Numbers come out of their tables and reports. */
import { gidIndex, hardware } from './environment.js';
import { background, listening, tool } from './tools.js';

const PORT = 18515;
/** Of one run, which takes up to some seconds. */
export const PERFTEST_DEADLINE_MS = 15_000;

/** Arguments that every perftest program takes here; the device's GID for RoCE, no complaint about the processor's clock. */
export function perftestArguments(extra: readonly string[]): string[] {
  const environment = hardware();
  return ['-d', environment.rdma, '-x', `${gidIndex(environment)}`, '-F', ...extra];
}

/** The row of numbers under perftest's heading. */
export function perftestRow(output: string): number[] {
  const row = output.split('\n').findLast((line) => /^\s*\d+\s+\d+\s+\S/.test(line));
  if (row === undefined) throw new Error(`no figures in:\n${output}`);
  return row.trim().split(/\s+/).map(Number);
}

/** Runs both ends of a perftest program on this machine. */
export async function perftestPair(program: string, extra: readonly string[]): Promise<number[]> {
  const args = perftestArguments(extra);
  const server = background(program, args);
  try {
    await listening(PORT);
    return perftestRow(await tool(program, [...args, hardware().address], PERFTEST_DEADLINE_MS));
  } finally {
    await server.stop();
  }
}

export interface PerftestLatency {
  readonly typicalUs: number;
  readonly p99Us: number;
}

/**
 * They measure the processor's clock first, and on a busy machine now and then get none: the figures are infinite then, or nothing. And
 * now and then one of the two waits for ever for a completion. Both are theirs; they are run again.
 */
async function withFigures(run: () => Promise<number[]>, columns: readonly number[]): Promise<number[]> {
  const why: string[] = [];
  for (let attempt = 0; attempt < 5; attempt++) {
    try {
      const row = await run();
      if (columns.every((column) => Number.isFinite(row[column]) && row[column]! > 0)) return row;
      why.push(`no steady clock: ${row.join(' ')}`);
    } catch (error) {
      why.push(String(error));
    }
  }
  throw new Error(`perftest gave no figures in 5 runs:\n${why.join('\n')}`);
}

/** ib_send_lat and its sisters. */
export async function perftestLatency(run: () => Promise<number[]>): Promise<PerftestLatency> {
  const row = await withFigures(run, [4]);
  return { typicalUs: row[4]!, p99Us: row[7]! };
}

export interface PerftestBandwidth {
  /** On average. */
  readonly megabytesPerSecond: number;
  readonly messagesPerSecond: number;
}

/** ib_read_bw and its sisters. Of large messages there may be too few a second for the figure that is printed. */
export async function perftestBandwidth(
  run: () => Promise<number[]>,
  wanted: 'bytes' | 'messages' = 'bytes',
): Promise<PerftestBandwidth> {
  const row = await withFigures(run, wanted === 'bytes' ? [3] : [3, 4]);
  return { megabytesPerSecond: row[3]!, messagesPerSecond: row[4]! * 1e6 };
}

export interface FioReads {
  readonly iops: number;
  readonly p50Us: number;
}

/** Random 4 KiB reads. A character device is read by passthrough. */
export async function fioRandomReads(device: string, depth: number, seconds = 3): Promise<FioReads> {
  const passthrough = device.includes('/ng');
  const output = await tool('fio', [
    ...[
      '--name=r',
      `--filename=${device}`,
      '--rw=randread',
      '--bs=4k',
      `--iodepth=${depth}`,
      '--time_based',
      `--runtime=${seconds}`,
    ],
    ...(passthrough ? ['--ioengine=io_uring_cmd', '--cmd_type=nvme'] : ['--ioengine=io_uring', '--direct=1']),
    ...['--output-format=json', '--thread'],
  ]);
  const report = JSON.parse(output.slice(output.indexOf('{'))) as {
    jobs: { error: number; read: { iops: number; clat_ns: { percentile?: Record<string, number> } } }[];
  };
  const job = report.jobs[0]!;
  if (job.error !== 0) throw new Error(`fio on ${device} failed with error ${job.error}`);
  return { iops: Math.round(job.read.iops), p50Us: (job.read.clat_ns.percentile?.['50.000000'] ?? 0) / 1000 };
}
