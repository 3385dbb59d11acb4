import { countText, table } from './output.js';

/** What one phase of the quickstart did, in figures: from the counters of all daemons before and after. */
export type CounterSnapshot = Readonly<Record<string, number>>;

export interface Phase {
  readonly name: string;
  readonly files: number;
  readonly bytes: number;
  readonly seconds: number;
  /** Summed over all nodes. */
  readonly counters: CounterSnapshot;
}

export const sumCounters = (snapshots: readonly CounterSnapshot[]): CounterSnapshot => {
  const sum: Record<string, number> = {};
  for (const snapshot of snapshots)
    for (const [name, value] of Object.entries(snapshot)) sum[name] = (sum[name] ?? 0) + value;
  return sum;
};
export const difference = (after: CounterSnapshot, before: CounterSnapshot): CounterSnapshot =>
  Object.fromEntries(Object.entries(after).map(([name, value]) => [name, value - (before[name] ?? 0)]));

const of = (counters: CounterSnapshot, ...names: string[]): number =>
  names.reduce((sum, name) => sum + (counters[name] ?? 0), 0);
const percent = (part: number, whole: number): string | null =>
  whole === 0 ? null : `${((100 * part) / whole).toFixed(1)} %`;

export function phaseFigures({ name, files, bytes, seconds, counters }: Phase) {
  const hits = of(counters, 'cache.readHits', 'map.readHits');
  const misses = of(counters, 'cache.readMisses');
  const operations = of(counters, 'client.calls');
  // Token messages are counted where they are sent; every NSD request has an answer.
  const messages = of(counters, 'tokens.messagesOut') + 2 * of(counters, 'nsd.requests');
  const ahead = of(counters, 'cache.readAheadPages');
  return {
    name,
    seconds,
    filesPerSecond: files / seconds,
    megabytesPerSecond: bytes / 1e6 / seconds,
    hitRate: hits + misses === 0 ? null : hits / (hits + misses),
    operations,
    messages,
    messagesPerOperation: operations === 0 ? null : messages / operations,
    tokensGranted: of(counters, 'tokens.grants'),
    tokensRevoked: of(counters, 'tokens.revokesServed'),
    readAheadWaste: ahead === 0 ? null : of(counters, 'cache.readAheadWastedPages') / ahead,
  };
}

export function report(phases: readonly Phase[]): string {
  const right = (name: string) => ({ name, align: 'right' as const });
  return table(
    ['PHASE', 'SECONDS', 'FILES/S', 'MB/S', 'HIT RATE', 'MESSAGES/OP', 'GRANTED', 'REVOKED', 'READ-AHEAD WASTE'].map(
      (name, i) => (i === 0 ? name : right(name)),
    ),
    phases
      .map(phaseFigures)
      .map((f) => [
        f.name,
        f.seconds.toFixed(1),
        f.filesPerSecond === 0 ? null : countText(f.filesPerSecond),
        f.megabytesPerSecond.toFixed(1),
        f.hitRate === null ? null : percent(f.hitRate, 1),
        f.messagesPerOperation === null ? null : f.messagesPerOperation.toFixed(2),
        countText(f.tokensGranted),
        countText(f.tokensRevoked),
        f.readAheadWaste === null ? null : percent(f.readAheadWaste, 1),
      ]),
  );
}
