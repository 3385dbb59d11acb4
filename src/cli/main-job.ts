import path from 'node:path';
import type { FileSystemClient } from '../client/file-system-client.js';
import { copy } from './copy.js';
import { countText, note } from './output.js';
import {
  type Comparison,
  compare,
  type Expected,
  type ImportRoot,
  skipped,
  togetherBytes,
  writeTogether,
} from './quickstart-checks.js';
import { type CounterSnapshot, difference, type Phase, sumCounters } from './quickstart-report.js';
import { holdfastTree, localTree } from './tree.js';

/**
 * The job that shows whether a cluster works: a tree in through node 1, every file's SHA-256 from other nodes, cold and then hot, two writers in
 * one file, every byte compared. The same for three daemons on one machine and for guests with devices of their own.
 */
export interface MainJob {
  /** Of nodes 1, 2, …: how to work through each. */
  readonly clients: readonly FileSystemClient[];
  /** All counters of one of them. */
  readonly counters: (node: number) => Promise<CounterSnapshot>;
  readonly roots: readonly ImportRoot[];
  readonly expected: Expected;
  /** Nodes that read everything, in this order. */
  readonly readers: readonly number[];
  readonly writers: readonly [number, number];
  /** Of each writer, in the file that both write. */
  readonly records: number;
  /** Around each phase. */
  readonly say: <T>(what: string, work: () => Promise<T>) => Promise<T>;
}

const DIFFERENCES_SHOWN = 10;

/** @throws {Error} with the first differences, after the phase that found them. */
export async function mainJob(job: MainJob): Promise<Phase[]> {
  const { clients, expected, roots, readers, writers, records } = job;
  const phases: Phase[] = [];
  const counters = async (): Promise<CounterSnapshot> =>
    sumCounters(await Promise.all(clients.map((_, index) => job.counters(index + 1))));
  const phase = async (name: string, files: number, bytes: number, work: () => Promise<Comparison>): Promise<void> => {
    const before = await counters();
    const { seconds, differences } = await job.say(name, work);
    phases.push({ name, files, bytes, seconds, counters: difference(await counters(), before) });
    if (differences.length === 0) return;
    for (const text of differences.slice(0, DIFFERENCES_SHOWN)) note(`  ${text}`);
    throw new Error(`${name}: ${countText(differences.length)} differences, the first: ${differences[0]}`);
  };
  const files = expected.files.size;
  await phase('import through node 1', files, expected.bytes, () => importTree(clients[0]!, roots));
  for (const temperature of ['cold', 'hot'])
    for (const node of readers)
      await phase(`SHA-256 from node ${node}, ${temperature}`, files, expected.bytes, () =>
        compare(clients[node - 1]!, expected, roots, `node ${node}, ${temperature}`),
      );
  const together = writers.map((node) => clients[node - 1]!);
  await phase(`nodes ${writers.join(' and ')} write one file`, 0, togetherBytes(records), () =>
    writeTogether(together, clients, records),
  );
  return phases;
}

async function importTree(client: FileSystemClient, roots: readonly ImportRoot[]): Promise<Comparison> {
  const started = performance.now();
  await client.mkdir('/import');
  const inside = holdfastTree(client);
  for (const root of roots)
    await copy(
      { fs: localTree, path: root.local },
      { fs: inside, path: root.inside },
      { recursive: true, quiet: false, label: path.basename(root.local), skip: skipped },
    );
  return { seconds: (performance.now() - started) / 1000, differences: [] };
}
