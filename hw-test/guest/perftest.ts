/** The native tools that figures are compared with: perftest for RDMA, fio for NVMe. Numbers come out of their tables and reports. */
import { gidIndex, hardware } from './environment.js';
import { background, listening, tool } from './tools.js';

const PORT = 18515;

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
    return perftestRow(await tool(program, [...args, hardware().address]));
  } finally {
    await server.stop();
  }
}

export interface PerftestLatency {
  readonly typicalUs: number;
  readonly p99Us: number;
}

/**
 * ib_send_lat and its sisters. They measure the processor's clock first, and on a busy machine now and then get none: the
 * figures are infinite then, and they are run again.
 */
export async function perftestLatency(run: () => Promise<number[]>): Promise<PerftestLatency> {
  for (let attempt = 0; attempt < 5; attempt++) {
    const row = await run();
    const [, , , , typicalUs, , , p99Us] = row;
    if (Number.isFinite(typicalUs) && typicalUs! > 0) return { typicalUs: typicalUs!, p99Us: p99Us! };
  }
  throw new Error('perftest found no steady clock in 5 runs');
}

/** MB/s on average, the fourth column. */
export function perftestMBs(row: readonly number[]): number {
  return row[3]!;
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
