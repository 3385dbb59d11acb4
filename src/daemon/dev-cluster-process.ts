import { readFileSync } from 'node:fs';

/**
 * Processes that a local cluster started, known by pid and start time: a pid alone may by now be somebody else's.
 *
 * Invariant: nothing is ever signalled whose start time isn't the one that was written down.
 */
export interface ProcessRecord {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat: clock ticks since boot. */
  readonly startTicks: string;
}

/** Null: there is no such process, or it is a zombie. */
export function processRecord(pid: number): ProcessRecord | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name, in parentheses, may hold anything; what follows its last parenthesis doesn't.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const [state, startTicks] = [fields[0], fields[19]];
    return startTicks === undefined || state === 'Z' || state === 'X' ? null : { pid, startTicks };
  } catch {
    return null;
  }
}

export const isRunning = (record: ProcessRecord | null): boolean =>
  record !== null && processRecord(record.pid)?.startTicks === record.startTicks;

/** SIGTERM, then SIGKILL after `graceMs`. @returns how it ended. */
export async function stopProcess(record: ProcessRecord, graceMs: number): Promise<'gone' | 'stopped' | 'killed'> {
  if (!isRunning(record)) return 'gone';
  signal(record, 'SIGTERM');
  if (await ended(record, graceMs)) return 'stopped';
  signal(record, 'SIGKILL');
  await ended(record, 10_000);
  return 'killed';
}

function signal(record: ProcessRecord, name: NodeJS.Signals): void {
  if (!isRunning(record)) return;
  try {
    process.kill(record.pid, name);
  } catch {
    // It ended between the two calls.
  }
}

async function ended(record: ProcessRecord, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  while (isRunning(record)) {
    if (performance.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  return true;
}
